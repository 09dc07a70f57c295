"""Scores and latents as text: streams score as whole arrays do, and every format carries the same figures."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from support import bundles
from support.bundles import Forge
from vae_runtime import VAE, InputError
from vae_runtime import manifest as manifests
from vae_runtime.ranks import Ranks
from vae_runtime.reports import format_info, format_latents, format_scores
from vae_runtime.scores import Scores, score

FIGURES = ("elbo", "standard_error", "reconstruction", "kl", "percentile", "bits_per_dimension")
each_likelihood = pytest.mark.parametrize("likelihood", bundles.LIKELIHOODS)


@pytest.fixture
def linear(forge: Forge) -> Callable[..., VAE]:
    """A VAE of two linear graphs with a likelihood of choice: 3 latents, images of 2 x 5 x 6 or 1 x 5 x 6."""

    def make(likelihood: str, scale: float = 1.0, channels: int = 2, **load: int) -> VAE:
        return VAE.load(bundles.linear(forge, likelihood, (channels, 5, 6), scale=scale), **load)

    return make


def levels(n: int, vae: VAE, seed: int = 0) -> np.ndarray:
    """Images of 8-bit levels, which each likelihood takes: float32 [n, C, H, W]."""
    values = np.random.default_rng(seed).integers(0, 256, (n, *vae.observation.shape))
    return (values / 255).astype(np.float32)


def cut(x: np.ndarray, *sizes: int) -> Iterator[np.ndarray]:
    """The images in batches of these sizes, the last one of what is left."""
    for size in sizes:
        yield x[:size]
        x = x[size:]
    yield x


def grey(loaded) -> np.ndarray:
    """Ninety images, every third of them grey."""
    x = loaded.x[:90].copy()
    x[::3] *= 0.7
    return x


CUTS = [(1,) * 89, (7,) * 12, (89,), (64,), (0, 30, 0, 1, 0), ()]


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize("sizes", CUTS, ids=["ones", "sevens", "89", "64", "odd", "whole"])
def test_a_stream_scores_as_one_batch(loaded, sizes: tuple[int, ...], num_samples: int):
    """However a stream is cut, each image's figures are those that the API gives the whole array, bit for bit, grey
    images among them.
    """
    vae, x = loaded.vae, grey(loaded)
    scores = score(vae, cut(x, *sizes), num_samples, seed=6)
    terms = vae.terms(x, num_samples, 6, observe=True)
    for name in ("elbo", "standard_error", "reconstruction", "kl"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(terms, name), err_msg=name)
    np.testing.assert_array_equal(scores.percentile, vae.percentile(terms.elbo))
    assert scores.off_support == 30
    assert scores.elbo.dtype == np.float64


@pytest.mark.parametrize(("threads", "memory"), [(1, None), (2, 1), (1, 300_000)])
def test_kl_per_latent_is_the_same_bits_too(loaded, threads: int, memory: int | None):
    """The mean KL of each latent does not depend on batches, threads or memory either, not even in its last bit."""
    x = loaded.x[:90]
    whole = score(loaded.vae, x, 1)
    vae = VAE.load(loaded.path, threads, memory)
    for sizes in CUTS:
        parts = score(vae, cut(x, *sizes), 1)
        np.testing.assert_array_equal(parts.elbo, whole.elbo)
        np.testing.assert_array_equal(parts.kl_per_dimension, whole.kl_per_dimension)


@each_likelihood
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_per_dimension_belong_to_probabilities(linear, likelihood: str, channels: int):
    """-ELBO in bits over the number of pixels, channels counted; None under a density, whose unit is no bit."""
    vae = linear(likelihood, channels=channels)
    scores = score(vae, levels(20, vae), 3)
    if likelihood == "gaussian":
        assert scores.bits_per_dimension is None
        assert "bits_per_dimension" not in scores.columns()
    else:
        expected = [-float(nats) * math.log2(math.e) / (channels * 30) for nats in scores.elbo]
        np.testing.assert_allclose(scores.bits_per_dimension, expected, rtol=1e-12)
        assert list(scores.columns()) == [*FIGURES[:-1], "test_observations", FIGURES[-1]]
    assert scores.off_support == (20 if likelihood == "bernoulli" else 0)


@each_likelihood
def test_pixels_between_levels_are_rounded_where_the_likelihood_is_of_levels(linear, likelihood: str):
    """Under a likelihood of 8-bit levels pixels between them score as the nearest ones, and are counted."""
    vae = linear(likelihood)
    x = levels(20, vae)
    between = x.copy()
    between[:7] = np.clip(between[:7] + np.float32(0.3 / 255), 0, 1)
    scores = score(vae, between, 2)
    if likelihood == "logistic":
        np.testing.assert_array_equal(scores.elbo, score(vae, x, 2).elbo)
        assert scores.off_support == 7
        assert score(vae, x, 2).off_support == 0
    else:
        assert (scores.elbo[:7] != score(vae, x, 2).elbo[:7]).all()
        assert scores.off_support == (20 if likelihood == "bernoulli" else 0)


@each_likelihood
@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_extreme_parameters_give_finite_scores(linear, likelihood: str, scale: float):
    """A decoder whose parameters reach +-10,000 and far beyond gives finite figures for every image, and no warning."""
    vae = linear(likelihood, scale)
    x = levels(30, vae)
    assert np.abs(vae.parameters(vae.encode(x)[0])).max() > 1e3
    scores = score(vae, x, 4)
    for name, column in scores.columns().items():
        assert np.isfinite(column).all(), name
    assert np.isfinite(vae.log_likelihood(vae.binarise(x) if likelihood == "bernoulli" else x, 8)).all()
    for images in (vae.sample(5), vae.sample(5, mean=True), vae.reconstruct(x)):
        assert np.isfinite(images).all()


@pytest.mark.parametrize("sizes", [(), (10,), (40, 40), (1,) * 66], ids=["whole", "10", "40", "ones"])
def test_an_image_off_the_support_is_named_by_its_place_in_the_stream(linear, sizes: tuple[int, ...]):
    """Image 66 off the 8-bit levels is told as image 66, however the stream is cut, with the API's iterators too."""
    vae = linear("logistic", memory=200_000)
    x = levels(90, vae)
    x[66:, 0, 2, 2] = 0.5001
    for call in (lambda: vae.elbo(cut(x, *sizes)), lambda: vae.elbo(x)):
        with pytest.raises(InputError, match="values that are no 8-bit levels: image 66; "):
            call()


def test_no_images_give_no_scores(loaded):
    """An empty stream has no figures, and no KL per latent but zeros."""
    scores = score(loaded.vae, iter([]))
    assert all(len(getattr(scores, name)) == 0 for name in FIGURES)
    np.testing.assert_array_equal(scores.kl_per_dimension, np.zeros(loaded.vae.latent_dim))


def test_a_stream_is_read_as_it_is_scored(loaded):
    """No more than a few batches are taken from the stream before an error in an early one is raised."""
    taken = []

    def stream() -> Iterator[np.ndarray]:
        for i in range(1000):
            taken.append(i)
            yield np.full((64, *loaded.vae.observation.shape), np.nan if i == 3 else 0, np.float32)

    with pytest.raises(InputError, match="NaN"):
        score(loaded.vae, stream())
    assert len(taken) < 100


def rows(text: str) -> dict[str, list[str]]:
    """CSV by column."""
    header, *lines = csv.reader(io.StringIO(text))
    return {name: [line[i] for line in lines] for i, name in enumerate(header)}


def lines_of(scores: Scores, names: list[str], style: str, k: int = 1, seed: int = 5) -> list[str]:
    """The lines of one format, each of them one line."""
    lines = list(format_scores(scores, names, style, k, seed, "image"))
    assert all(isinstance(line, str) for line in lines)
    return lines


@each_likelihood
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n", [1, 7])
def test_every_format_carries_the_same_figures(linear, likelihood: str, k: int, n: int):
    """csv, json and jsonl give every figure to the last bit; the table shows the same ones rounded to 2 places."""
    vae = linear(likelihood)
    scores = score(vae, levels(n, vae), k, 5)
    names = [f"image {i}.png" for i in range(n)]
    expected = scores.columns()
    assert ("standard_error" in expected) is (k > 1)
    assert ("bits_per_dimension" in expected) is (likelihood != "gaussian")

    columns = rows("\n".join(lines_of(scores, names, "csv", k)))
    assert list(columns) == ["image", *expected]
    assert columns.pop("image") == names
    assert {name: [float(text) for text in column] for name, column in columns.items()} == expected

    read = json.loads("\n".join(lines_of(scores, names, "json", k)))
    objects = [json.loads(line) for line in lines_of(scores, names, "jsonl", k)]
    assert read.pop("images") == objects
    assert [one.pop("image") for one in objects] == names
    assert {name: [one[name] for one in objects] for name in objects[0]} == expected
    assert (read.pop("unit"), read.pop("samples"), read.pop("seed")) == ("nats", k, 5)
    assert read.pop("mean_elbo") == pytest.approx(math.fsum(expected["elbo"]) / n)
    error = read.pop("standard_error_of_mean")
    assert error is None if n == 1 else error == pytest.approx(scores.elbo.std(ddof=1) / math.sqrt(n))
    np.testing.assert_array_equal(read.pop("kl_per_dimension"), scores.kl_per_dimension)
    assert read == {}
    test_images = vae.manifest.evaluation.observations
    assert expected.pop("test_observations") == [test_images] * n

    header, *table, mean, latents = lines_of(scores, names, "table", k)
    assert header.split() == ["image", "ELBO", *["+-"] * (k > 1), "log", "p(x|z)", "KL", "percentile"]
    for i, line in enumerate(table):
        assert line.startswith(names[i] + " ")
        figures = line.removeprefix(names[i]).split()
        shown = [expected[name][i] for name in ("elbo", "standard_error", "reconstruction", "kl") if name in expected]
        assert figures[: len(shown)] == [f"{figure:.2f}" for figure in shown]
        assert line.endswith("%")
        assert float(line.split()[-1].strip("<>%")) == pytest.approx(expected["percentile"][i], abs=0.51)
    bits = " (log density)"
    if scores.bits_per_dimension is not None:
        bits = f" ({np.mean(scores.bits_per_dimension):.3f} bits per dimension)"
    plus_minus = f" +- {scores.elbo.std(ddof=1) / math.sqrt(n):.2f}" if n > 1 else ""
    draws = "1 draw" if k == 1 else "3 draws"
    of = f" of {n} images:" if n > 1 else ""
    figures = f"{scores.elbo.mean():.2f}{plus_minus} nats per image{bits}"
    assert mean == f"mean ELBO{of} {figures}, {draws} of z per image, seed 5, percentiles of {test_images} test images"
    assert latents.startswith("mean KL per latent, largest first: ")
    assert "..." not in latents


def made(n: int, latents: int = 3) -> Scores:
    """Made-up scores of n images."""
    column = np.linspace(-120, -80, n)
    kl, percentile = np.arange(latents) % 7 + 0.25, np.linspace(0.1, 99.9, n)
    ranks = Ranks(10_000, percentile, column)
    index = np.arange(n, dtype=np.uint64)
    return Scores(column, np.full(n, np.nan), column + 5, np.full(n, 5.0), percentile, None, kl, 0, index, ranks)


def test_the_last_line_orders_latents_by_kl():
    """The table's last line names the eight latents of largest KL, ties by index, and says that there are more."""
    last = lines_of(made(2, 3), ["a", "b"], "table")[-1]
    assert last == "mean KL per latent, largest first: 2.25 (latent 2), 1.25 (latent 1), 0.25 (latent 0)"
    last = lines_of(made(2, 20), ["a", "b"], "table")[-1]
    shown = ", ".join(
        f"{kl}.25 (latent {i})" for kl, i in [(6, 6), (6, 13), (5, 5), (5, 12), (5, 19), (4, 4), (4, 11), (4, 18)]
    )
    assert last == f"mean KL per latent, largest first: {shown}, ..."


@pytest.mark.parametrize(
    ("index", "of"),
    [((0, 1, 2), "of 3 images:"), ((0, 1, 0), "of 3 images, 2 distinct:"), ((5, 5, 5), "of 3 images, all equal:")],
)
def test_equal_images_are_counted(index: tuple[int, ...], of: str):
    """The line of the mean says how many different images it is of, where some are equal."""
    scores = dataclasses.replace(made(3), index=np.array(index, np.uint64))
    assert lines_of(scores, ["a", "b", "c"], "table")[-2].startswith(f"mean ELBO {of} -100.00")


@each_likelihood
def test_info_names_a_density(linear, likelihood: str):
    """Figures under a Gaussian likelihood are of a log density, and the line of the likelihood says so."""
    first = format_info(linear(likelihood).manifest).splitlines()[0]
    assert ("(a log density)" in first) is (likelihood == "gaussian")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"levels": "as they are"}, None),
        ({"steps": [{"resize": [32], "filter": "box"}, {"crop": [28, 28]}], "grey": True},
         "pictures are resized to 32 at the shorter side (box), then cut to the 28 x 28 at the centre; "
         "colours become grey"),
        ({"steps": [{"resize": [28, 28]}], "network_takes": {"mean": [0.5] * 3, "std": [0.5, 0.25, 1]}},
         "pictures are resized to 28 x 28 (bilinear); the graphs give the network (x - 0.5) / [0.5, 0.25, 1]"),
        ({"network_takes": {"mean": [0, 0, 0], "std": [1, 1, 1], "colours": "BGR"}},
         "the graphs give the network (x - 0) / 1, in BGR"),
        ({"columns": [{"name": f"c{i}"} for i in range(9)]},
         "(value - mean) / scale of each column, c0, c1, c2, c3, c4, c5, c6, c7 and 1 more"),
        ({"windows": {"stride": 16, "time": "when", "interval": 30.0}},
         "windows begin every 16 rows, rows are 30 apart in time (column when)"),
        ({"windows": {"stride": 1, "time": None, "interval": None}}, "windows begin at every row"),
    ],
)  # fmt: skip
def test_info_says_how_files_are_prepared(tiny_bundle, how: dict[str, object], words: str | None):
    """In a line, where that is not what is always done."""
    manifest = manifests.of({**VAE.load(tiny_bundle).manifest.raw, "preprocessing": how})
    lines = dict(line.split(maxsplit=1) for line in format_info(manifest).splitlines())
    assert lines.get("prepared") == words


@pytest.mark.parametrize(
    ("nats", "said"),
    [(0.25, "0.2500 +- 0.0100 nats per image below"), (-0.002, "0.0020 +- 0.0100 nats per image above")],
)
def test_info_says_on_which_side_of_fp32_smaller_graphs_are(tiny_bundle, nats: float, said: str):
    """The ELBO of 8-bit graphs is below that of fp32 or, by chance, above it: no loss is shown as a negative number."""
    smaller = {"precision": "int8", "nats": nats, "standard_error": 0.01}
    manifest = manifests.of({**VAE.load(tiny_bundle).manifest.raw, "precision": smaller})
    line = next(line for line in format_info(manifest).splitlines() if line.startswith("precision"))
    assert line.split(maxsplit=1)[1] == f"int8, ELBO {said} that of fp32, of which the figures above are"


def test_the_ends_of_the_percentiles_are_marked():
    """0.1 and 99.9 stand for all beyond them, and the table says so; csv and json keep the numbers."""
    table = lines_of(made(3), ["a", "b", "c"], "table")[1:4]
    assert [line.split()[-1] for line in table] == ["<0.1%", "50.0%", ">99.9%"]
    objects = map(json.loads, lines_of(made(3), ["a", "b", "c"], "jsonl"))
    assert [one["percentile"] for one in objects] == pytest.approx([0.1, 50.0, 99.9])


NAMES = [
    "a,b.png", 'say "x".png', "it's.png", "two  spaces ", " first", "ёлка.png", "\U0001f600.png", "", "semi;colon",
    "a\ttab",     "back\\slash", "=1+1", "new\nline.png", "carriage\rreturn.png", '",\n"', "\udcff.png",
]  # fmt: skip


def test_any_name_survives_csv_and_json():
    """Names with commas, quotes, line ends, other scripts, and bytes that are no text, read back as they were."""
    scores = made(len(NAMES))
    assert rows("\n".join(lines_of(scores, NAMES, "csv")))["image"] == NAMES
    assert [one["image"] for one in json.loads("\n".join(lines_of(scores, NAMES, "json")))["images"]] == NAMES
    assert [json.loads(line)["image"] for line in lines_of(scores, NAMES, "jsonl")] == NAMES
    array = np.zeros((len(NAMES), 2), np.float32)
    assert rows("\n".join(format_latents(NAMES, array, array, "csv", "image")))["image"] == NAMES
    assert [json.loads(line)["image"] for line in format_latents(NAMES, array, array, "jsonl", "image")] == NAMES


def test_names_and_figures_are_of_one_length():
    """A name too many or too few is an error in every format, not a silent loss."""
    for style in ("csv", "json", "jsonl", "table"):
        for names in (["a"], ["a", "b", "c"]):
            with pytest.raises((ValueError, IndexError)):
                lines_of(made(2), names, style)


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_latents_read_back_to_the_same_floats(loaded, style: str):
    """mu and logsigma are printed with all the digits that float32 needs, in both formats, one image a line."""
    mu, logsigma = loaded.vae.encode(loaded.x)
    mu[0], logsigma[0] = np.float32(1e-38), np.float32(-0.0)
    names = [f"x[{i}]" for i in range(len(mu))]
    lines = list(format_latents(names, mu, logsigma, style, "image"))
    dim = loaded.vae.latent_dim
    if style == "csv":
        header, *body = csv.reader(lines)
        assert header == ["image", *(f"mu_{i}" for i in range(dim)), *(f"logsigma_{i}" for i in range(dim))]
        assert [row[0] for row in body] == names
        figures = np.array([row[1:] for row in body], np.float64).astype(np.float32)
        got = figures[:, :dim], figures[:, dim:]
    else:
        objects = [json.loads(line) for line in lines]
        assert [one["image"] for one in objects] == names
        got = tuple(np.array([one[name] for one in objects]).astype(np.float32) for name in ("mu", "logsigma"))
    for array, expected in zip(got, (mu, logsigma), strict=True):
        assert array.view(np.uint32).tolist() == expected.view(np.uint32).tolist()
