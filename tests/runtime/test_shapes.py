"""Observations and latents of any shape: vectors, series and spatial latents through the API and every verb."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from support import bundles
from support.bundles import Forge
from vae_runtime import VAE, ArgumentError, InputError, latents, noise, score
from vae_runtime.cli import main
from vae_runtime.observation import Observation
from vae_runtime.prior import KNOWN, StandardNormal
from vae_runtime.reports import format_scores

CASES = {  # likelihood, observation, latents
    "vector": ("gaussian", (6,), (3,)),
    "binary vector": ("bernoulli", (6,), (3,)),
    "series": ("gaussian", (2, 5), (3,)),
    "spatial": ("gaussian", (2, 4, 5), (2, 2, 3)),
    "binary spatial": ("bernoulli", (1, 4, 5), (2, 3)),
}
K, SEED = 3, 4


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, forge: Forge) -> VAE:
    """A linear VAE of one kind of observation and latent."""
    return VAE.load(bundles.linear(forge, *CASES[request.param]))


@pytest.fixture
def rows(forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 12 readings of 6 columns, in which commands run, and the bundle of their model."""
    folder = bundles.linear(forge, *CASES["vector"])
    monkeypatch.chdir(tmp_path)
    np.save("readings.npy", np.random.default_rng(3).normal(2, 3, (12, 6)))
    return folder


def observations(vae: VAE, n: int) -> np.ndarray:
    """Observations in the likelihood's support, far from zero where there is no range."""
    x = np.random.default_rng(1).normal(0, 3, (n, *vae.observation.shape)).astype(np.float32)
    return (x > 0).astype(np.float32) if vae.observation.range else x


def graph(vae: VAE, name: str, feed: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime alone makes of a graph."""
    session = onnxruntime.InferenceSession(vae.path / f"{name}.onnx")
    return session.run(None, {session.get_inputs()[0].name: feed})


class NoClosedForm(StandardNormal):
    """N(0, I), whose KL has to be estimated as if it were not known."""

    def kl(self, mu: np.ndarray, logsigma: np.ndarray) -> None:
        """None."""
        return


def estimated(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> VAE:
    """The same model, with such a prior."""
    monkeypatch.setitem(KNOWN, "standard-normal", NoClosedForm)
    return VAE.load(vae.path)


def test_a_kl_without_a_closed_form_is_the_mean_over_the_draws(case: VAE, monkeypatch: pytest.MonkeyPatch):
    """Terms and scores have it as the mean of log q(z|x) - log p(z), near the closed form; nothing is said of latents.

    The bound, which needs no KL, keeps its bits.
    """
    vae, x = estimated(case, monkeypatch), observations(case, 4)
    draws = 4000
    closed, terms = case.terms(x, draws, SEED), vae.terms(x, draws, SEED)
    assert terms.kl_per_dimension is None
    np.testing.assert_array_equal(terms.reconstruction, closed.reconstruction)
    np.testing.assert_allclose(terms.kl, closed.kl, rtol=0.1)
    off = np.hypot(terms.standard_error, closed.standard_error)
    assert (np.abs(terms.elbo - closed.elbo) < 5 * off).all()
    np.testing.assert_array_equal(vae.log_likelihood(x, 9, SEED), case.log_likelihood(x, 9, SEED))
    scores = score(vae, x, K, SEED)
    np.testing.assert_array_equal(scores.kl, vae.terms(x, K, SEED).kl)
    assert scores.kl_per_dimension is None
    walked = latents.traverse(vae, x, steps=3)
    assert len(walked.latents) == len(set(walked.latents)) == min(10, vae.latent_dim)


def test_grey_observations_need_no_closed_form(forge: Forge, monkeypatch: pytest.MonkeyPatch):
    """Grey and binary ones in one batch have the estimated KL, each as alone."""
    closed = VAE.load(bundles.linear(forge, *CASES["binary vector"]))
    vae, x = estimated(closed, monkeypatch), observations(closed, 4)
    x[1::2] = 0.3
    terms = vae.terms(x, 2000, SEED, observe=True)
    expected = closed.terms(x, 2000, SEED, observe=True)
    assert terms.kl_per_dimension is None
    np.testing.assert_array_equal(terms.reconstruction, expected.reconstruction)
    np.testing.assert_allclose(terms.kl, expected.kl, rtol=0.1)
    for i in range(4):
        assert vae.terms(x[i : i + 1], 2000, SEED, observe=True).kl[0] == terms.kl[i]


def test_scores_without_latents_of_their_own_are_written(case: VAE, monkeypatch: pytest.MonkeyPatch):
    """The table and JSON leave out what there is not."""
    scores = score(estimated(case, monkeypatch), observations(case, 3), K, SEED)
    table = "\n".join(format_scores(scores, "abc", "table", K, SEED, "row"))
    assert "mean ELBO" in table and "per latent" not in table
    assert "kl_per_dimension" not in json.loads("\n".join(format_scores(scores, "abc", "json", K, SEED, "row")))


def test_shapes_are_the_contracts(case: VAE):
    """Encodings, reconstructions and samples have the shapes that the contract says, and are the graphs' own."""
    x = observations(case, 5)
    mu, logsigma = case.encode(x)
    assert mu.shape == logsigma.shape == (5, *case.latent_shape)
    for got, expected in zip((mu, logsigma), graph(case, "encoder", x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    (parameters,) = graph(case, "decoder", mu)
    np.testing.assert_allclose(case.parameters(mu), parameters, rtol=1e-6)
    assert case.reconstruct(x).shape == x.shape
    assert case.sample(4, seed=1).shape == (4, *case.observation.shape)
    np.testing.assert_array_equal(case.sample(4, seed=1)[2:], case.sample(2, seed=1, start=2))


def test_the_elbo_sums_over_all_axes(case: VAE):
    """ELBO, terms and bound are those of K draws by the definitions in float64, whatever the axes."""
    x = observations(case, 7)
    mu, logsigma = (array.astype(np.float64) for array in case.encode(x))
    index = noise.index(x)
    eps = noise.normal(SEED, noise.POSTERIOR, index, K * case.latent_dim).reshape(7, K, *case.latent_shape)
    z = mu[:, None] + np.exp(logsigma[:, None]) * eps
    parameters = np.stack([case.parameters(z[:, k]) for k in range(K)], axis=1).astype(np.float64)
    if case.likelihood.binary:
        log_p = -np.logaddexp(0, np.where(x[:, None] == 1, -parameters, parameters))
    else:
        sigma = math.exp(bundles.LOGSIGMA)
        log_p = -0.5 * ((x[:, None] - parameters) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    log_p = log_p.reshape(7, K, -1).sum(axis=2)
    kl = (0.5 * (np.exp(2 * logsigma) + mu**2 - 1) - logsigma).reshape(7, -1)
    log_ratio = (0.5 * (eps**2 - z**2) + logsigma[:, None]).reshape(7, K, -1).sum(axis=2)
    terms = case.terms(x, K, SEED)
    np.testing.assert_allclose(terms.reconstruction, log_p.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(terms.kl_per_dimension, kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(case.elbo(x, K, SEED), log_p.mean(axis=1) - kl.sum(axis=1), rtol=1e-5)
    bound = np.logaddexp.reduce(log_p + log_ratio, axis=1) - math.log(K)
    np.testing.assert_allclose(case.log_likelihood(x, K, SEED), bound, rtol=1e-5)
    scores = score(case, x, K, SEED)
    np.testing.assert_array_equal(scores.elbo, terms.elbo)
    assert (scores.bits_per_dimension is None) is not case.likelihood.discrete


def test_walks_keep_the_shapes(case: VAE):
    """Interpolations begin and end at the reconstructions, and a traversal varies each number of z by itself."""
    x = observations(case, 2)
    walk = latents.interpolate(case, *x, steps=4)
    assert walk.shape == (4, *case.observation.shape)
    np.testing.assert_allclose(walk[[0, -1]], case.reconstruct(x), rtol=1e-5, atol=1e-5)
    walked = latents.traverse(case, x, steps=3, most=2)
    assert walked.theta.shape == (2, 3, *case.observation.shape)
    z = case.encode(x)[0][0].ravel()
    z[walked.latents[1]] = 3
    np.testing.assert_allclose(walked.theta[1, 2], case.decode(z.reshape(1, *case.latent_shape))[0], rtol=1e-6)


def test_other_shapes_and_values_are_refused(case: VAE):
    """Another shape, NaN and, where there is a range, what lies outside of it raise InputError with the noun."""
    x = observations(case, 4)
    noun = case.observation.noun
    with pytest.raises(InputError, match=f"{noun}s of the wrong shape"):
        case.encode(x[..., :-1])
    with pytest.raises(InputError, match="latents of the wrong shape"):
        case.decode(np.zeros((2, *case.latent_shape[:-1], case.latent_shape[-1] + 1)))
    x[2].flat[1] = np.nan
    with pytest.raises(InputError, match=f"NaN or infinite .*: {noun} 2"):
        case.elbo(x)
    x[2].flat[1] = 7
    if case.observation.range:
        with pytest.raises(InputError, match=rf"outside \[0, 1\]: {noun} 2"):
            case.elbo(x)
    else:
        assert np.isfinite(case.elbo(x)).all()


@pytest.mark.parametrize(
    "wrong",
    [("scalar", (3,)), ("image", (3,)), ("vector", (3, 3)), ("vector", ()), ("series", (0, 4)), ("image", (1, 2, -3))],
)
def test_kinds_have_their_axes(wrong: tuple[str, tuple[int, ...]]):
    """An observation of another number of axes than its kind has, or without numbers, is none."""
    with pytest.raises(ValueError, match=wrong[0]):
        Observation(*wrong, None)


def test_rows_are_scored_and_printed(command, rows: Path):
    """`elbo readings.npy` scores each row as the API does, calls rows rows, and a density a density."""
    vae = VAE.load(rows)
    x = np.load("readings.npy").astype(np.float32)
    elbo = vae.elbo(x, 16, 0)
    table = command(main, "--bundle", rows, "elbo", "readings.npy")
    assert (table.code, table.err) == (0, "")
    assert table.out.startswith("row ")
    assert f"mean ELBO of 12 rows: {elbo.mean():.2f} +- " in table.out
    assert "nats per row (log density), 16 draws of z per row, seed 0" in table.out
    printed = command(main, "--bundle", rows, "elbo", "readings.npy", "--format", "csv")
    found = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["row"] for row in found] == [f"readings.npy[{i}]" for i in range(12)]
    np.testing.assert_array_equal([float(row["elbo"]) for row in found], elbo)
    written = json.loads(command(main, "--bundle", rows, "elbo", "readings.npy", "--format", "json").out)
    assert [row["elbo"] for row in written["rows"]] == elbo.tolist()


def test_every_verb_takes_and_gives_rows(command, rows: Path):
    """Samples, reconstructions, decodings and walks of rows are tables by default, equal to the API's."""
    vae = VAE.load(rows)
    x = np.load("readings.npy").astype(np.float32)
    np.save("first.npy", x[:1])
    np.save("last.npy", x[-1])

    def gives(name: str, expected: np.ndarray, *call: object) -> None:
        result = command(main, "--bundle", rows, *call)
        assert (result.code, result.err) == (0, ""), call
        assert result.out.startswith(f"{name}: "), call
        assert "column 0,column 1," in Path(name).read_text().partition("\n")[0]
        np.testing.assert_allclose(np.loadtxt(name, delimiter=",", skiprows=1), expected, rtol=1e-8)

    gives("samples.csv", vae.sample(5, seed=2), "sample", "-n", 5, "--seed", 2)
    gives("reconstructions.csv", np.hstack([x, vae.reconstruct(x)]), "reconstruct", "readings.npy")
    assert command(main, "--bundle", rows, "sample", "-n", 5, "--seed", 2, "-o", "samples.npy").code == 0
    np.testing.assert_array_equal(np.load("samples.npy"), vae.sample(5, seed=2))
    np.save("z.npy", np.ones((4, 3)))
    gives("decoded.csv", vae.decode(np.ones((4, 3))), "decode", "z.npy")
    gives("interpolation.csv", latents.interpolate(vae, x[0], x[-1], 4), "interpolate", "first.npy", "last.npy",
          "--steps", 4)  # fmt: skip
    walked = latents.traverse(vae, x, 3)
    which = np.column_stack([np.repeat(walked.latents, 3), np.tile([-3.0, 0, 3], 3)])
    expected = np.hstack([which, walked.theta.reshape(9, 6)])
    gives("traversal.csv", expected, "traverse", "readings.npy", "--steps", 3)
    assert Path("traversal.csv").read_text().startswith("latent,z,column 0,")
    encoded = command(main, "--bundle", rows, "encode", "readings.npy").out
    assert [float(row["mu_1"]) for row in csv.DictReader(io.StringIO(encoded))] == vae.encode(x)[0][:, 1].tolist()
    about = command(main, "--bundle", rows, "info").out
    assert "rows                   6, gaussian likelihood" in about


def test_pictures_of_colour_show_means_unless_draws_are_asked_for(
    command, forge: Forge, tiny_bundle: Path, tmp_path: Path
):
    """Draws of every pixel look like noise; it is said, and arrays and folders hold draws as ever."""
    folder = bundles.linear(forge, "logistic", (3, 4, 5))

    def sampled(name: str, *options: str) -> tuple[bytes, str]:
        call = ["--bundle", folder, "sample", "-n", 4, "--seed", 2, "-o", tmp_path / name, *options]
        result = command(main, *call)
        assert result.code == 0, result.err
        return (tmp_path / name).read_bytes(), result.err

    usual, note = sampled("a.png")
    assert note == "vae-infer: note: a picture shows E[x|z]; --draws draws each pixel from p(x|z) too\n"
    assert sampled("b.png", "--mean") == (usual, "")
    assert sampled("c.png", "--draws")[0] != usual
    assert sampled("a.npy") == sampled("b.npy", "--draws")
    assert command(main, "--bundle", tiny_bundle, "sample", "-o", tmp_path / "d.png").err == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["sample", "-o", "x"], "output of an unknown kind: x; "),
        (["reconstruct", "readings.npy", "-o", "folder"], "output of an unknown kind: folder"),
        (["elbo", "digit.png"], "not a table or array: digit.png; give CSV in UTF-8, .npy or .npz"),
        (["elbo", "wide.npy"], "array of shape [4, 7]: wide.npy; this model takes [n, 6]"),
        (["elbo", "words.npy"], "array of type <U1: words.npy; give numbers"),
        (["elbo", "nan.npy"], "missing value (NaN): nan.npy[2], column 4; "),
    ],
)
def test_what_is_no_row_is_refused(command, rows: Path, call: list[str], words: str):
    """Pictures out and in, other widths, words and NaN end in one line that names the file, and the place in it."""
    np.save("wide.npy", np.zeros((4, 7)))
    np.save("words.npy", np.full((4, 6), "a"))
    holes = np.zeros((4, 6))
    holes[2, 4] = np.nan
    np.save("nan.npy", holes)
    Path("digit.png").write_bytes(next((Path(__file__).parents[2] / "examples/digits").glob("*.png")).read_bytes())
    result = command(main, "--bundle", rows, *call)
    assert result.code == (2 if "output" in words else 4)
    assert words in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("shape", "bad", "place"), [((6,), (1, 4), "column 4"), ((2, 5), (1, 1, 3), "channel 1, step 3")]
)
def test_what_is_no_number_is_named_by_its_place(forge: Forge, tmp_path: Path, shape, bad, place: str):
    """NaN, and what is too large for float32, are refused by row and column, or by window, channel and step."""
    vae = VAE.load(bundles.linear(forge, "gaussian", shape))
    for value, words in ((np.nan, r"missing value \(NaN\)"), (1e300, "value too large for float32")):
        x = np.zeros((3, *shape))
        x[bad] = value
        np.save(tmp_path / "x.npy", x)
        with pytest.raises(InputError, match=rf"{words}: .*x\.npy\[1\], {place}; "):
            vae.read(tmp_path / "x.npy").load()


def test_rows_that_are_equal_are_equal_bytes(rows: Path):
    """-0.0 is read as 0.0: equal rows have one index, and lie on one side of a split."""
    np.save("x.npy", np.array([[0.0] * 6, [-0.0] * 6]))
    x = VAE.load(rows).read("x.npy").load().x
    assert x[0].tobytes() == x[1].tobytes()


def test_only_probabilities_are_drawn_as_binary(rows: Path):
    """P(1) = x means nothing of values outside of [0, 1]."""
    with pytest.raises(ArgumentError, match="no probabilities"):
        VAE.load(rows).binarise(np.zeros((1, 6)))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, np.bool_])
def test_numbers_of_any_type_are_taken_as_they_are(rows: Path, dtype: type):
    """No level is divided by 255 where values have no range: a row is its numbers, as float32."""
    values = np.random.default_rng(0).integers(0, 2, (5, 6)).astype(dtype)
    np.save("x.npy", values)
    np.testing.assert_array_equal(VAE.load(rows).read(["x.npy"]).load().x, values.astype(np.float32))
    np.testing.assert_array_equal(VAE.load(rows).read("x.npy").load().x, values.astype(np.float32))


def test_a_walk_says_which_rows_it_joins(command, rows: Path):
    """Where a file holds several rows, the walk goes from the first, and says so."""
    result = command(main, "--bundle", rows, "interpolate", "readings.npy", "readings.npy")
    assert result.err.splitlines() == ["vae-infer: note: readings.npy[0] is taken, the first of 12 rows"] * 2


def test_a_closed_model_of_rows_says_so(rows: Path):
    """What is closed is closed for every kind."""
    with VAE.load(rows) as vae:
        vae.sample(1)
    with pytest.raises(ArgumentError, match="closed VAE"):
        vae.sample(1)
