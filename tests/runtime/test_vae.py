"""The VAE's API: shapes, graphs, figures in nats, independence of batching, randomness, and what it refuses."""

import json
import math
import threading

import numpy as np
import pytest

from support import bundles
from vae_runtime import VAE, ArgumentError, BundleError, InputError, noise, score
from vae_runtime.bundle import read, shipped

SEED = 17


def test_shapes_and_types(loaded):
    """Images are float32 [n, C, H, W], latents float32 [n, latent_dim], nats float64 [n]."""
    vae, x = loaded.vae, loaded.x[:5]
    image, latent = (5, *vae.observation.shape), (5, vae.latent_dim)
    mu, logsigma = vae.encode(x)
    for array, shape, kind in (
        (mu, latent, np.float32),
        (logsigma, latent, np.float32),
        (vae.decode(mu), image, np.float32),
        (vae.parameters(mu), image, np.float32),
        (vae.reconstruct(x), image, np.float32),
        (vae.sample(5), image, np.float32),
        (vae.sample(5, mean=True), image, np.float32),
        (vae.binarise(x), image, np.float32),
        (vae.elbo(x), (5,), np.float64),
        (vae.log_likelihood(x, 2), (5,), np.float64),
        (vae.terms(x).kl, (5,), np.float64),
    ):
        assert array.shape == shape
        assert array.dtype == kind
        assert np.isfinite(array).all()


def test_no_images_give_no_rows(loaded):
    """A batch of 0 images is a valid batch: every result has 0 rows."""
    vae = loaded.vae
    none = np.zeros((0, *vae.observation.shape), np.float32)
    assert vae.encode(none)[0].shape == (0, vae.latent_dim)
    assert vae.reconstruct(none).shape == none.shape
    assert vae.elbo(none).shape == (0,)
    assert vae.log_likelihood(none, 3).shape == (0,)


def test_the_bound_starts_at_the_elbo_and_rises_with_more_samples(loaded):
    """K = 1 has the ELBO as its expectation; the mean over images rises from K = 1 to 8 to 64."""
    vae, x = loaded.vae, loaded.x[:60]
    singles = np.stack([vae.log_likelihood(x, 1, seed) for seed in range(20)])  # [seeds, images]
    elbo = vae.elbo(x, 20, SEED)
    difference = singles.mean(axis=0) - elbo
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / math.sqrt(len(x))
    means = [singles.mean(), vae.log_likelihood(x, 8, SEED).mean(), vae.log_likelihood(x, 64, SEED).mean()]
    assert means == sorted(means)
    assert means[-1] > elbo.mean() + 0.1


def test_more_samples_reduce_the_elbos_variance(loaded):
    """With 16 draws of z per image the ELBO varies over seeds about a quarter as much as with one."""
    x = loaded.x[:10]
    spread = {k: np.std([loaded.vae.elbo(x, k, seed) for seed in range(12)], axis=0).mean() for k in (1, 16)}
    assert 0.15 < spread[16] / spread[1] < 0.4


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65])
def test_rows_do_not_depend_on_how_many(loaded, n: int):
    """Row i of every result is the same bits among n images as among 130, on both sides of a chunk's end."""
    vae, x = loaded.vae, loaded.x
    calls = {
        "mu": lambda x: vae.encode(x)[0],
        "logsigma": lambda x: vae.encode(x)[1],
        "theta": lambda x: vae.decode(x.reshape(len(x), -1)[:, : vae.latent_dim]),
        "reconstruction": vae.reconstruct,
        "binary": lambda x: vae.binarise(0.5 * x, SEED),
        "elbo": lambda x: vae.elbo(x, 1, SEED),
        "elbo of 3": lambda x: vae.elbo(x, 3, SEED),
        "bound": lambda x: vae.log_likelihood(x, 5, SEED),
        "samples": lambda x: vae.sample(len(x), SEED),
        "means": lambda x: vae.sample(len(x), SEED, mean=True),
    }
    for name, call in calls.items():
        np.testing.assert_array_equal(call(x[:n]), call(x)[:n], err_msg=name)


def test_equal_images_have_equal_figures(loaded):
    """In any order, repeated, among others or alone, in any number of threads, an image has the same bits, also where
    it is -0.0 that stands for 0.0.
    """
    x, generator = loaded.x[:24], np.random.default_rng(3)
    calls = {
        "binary": lambda vae, x: vae.observe(0.6 * x, SEED),
        "elbo": lambda vae, x: vae.elbo(x, 3, SEED),
        "error": lambda vae, x: vae.terms(x, 3, SEED).standard_error,
        "bound": lambda vae, x: vae.log_likelihood(x, 4, SEED),
    }
    alone = {
        name: np.concatenate([call(loaded.vae, x[i : i + 1]) for i in range(len(x))]) for name, call in calls.items()
    }
    for threads, memory in ((1, None), (1, 1), (2, 100_000), (3, None)):
        vae = VAE.load(loaded.path, threads, memory)
        which = generator.integers(0, len(x), 40)  # some of them twice, some not at all
        for name, call in calls.items():
            np.testing.assert_array_equal(call(vae, x[which]), alone[name][which], err_msg=name)
            np.testing.assert_array_equal(call(vae, np.where(x == 0, -x, x)[which]), alone[name][which], err_msg=name)


def test_different_images_have_different_noise(loaded):
    """One pixel more gives other noise: images are not all drawn by the same numbers."""
    grey = np.full((2, *loaded.vae.observation.shape), 0.5, np.float32)
    grey[1, 0, 0, 0] = 0.25
    first, second = loaded.vae.observe(grey, SEED)
    assert 0.4 < (first != second).mean() < 0.6


def test_results_do_not_depend_on_threads_or_sessions(loaded):
    """One thread or two, one session or another, alone or from four threads at once: the same bits."""
    x = loaded.x
    expected = loaded.vae.elbo(x, 2, SEED)
    for threads in (1, 2):
        np.testing.assert_array_equal(VAE.load(loaded.path, threads).elbo(x, 2, SEED), expected)
    results: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: results.append(loaded.vae.elbo(x, 2, SEED))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_seed_decides_all_randomness(loaded):
    """The same seed gives the same result, another seed another one; the default seed is 0."""
    vae, x = loaded.vae, loaded.x[:8]
    for call in (
        lambda **seed: vae.sample(8, **seed),
        lambda **seed: vae.sample(8, mean=True, **seed),
        lambda **seed: vae.binarise(np.full_like(x, 0.5), **seed),
        lambda **seed: vae.elbo(x, **seed),
        lambda **seed: vae.log_likelihood(x, 4, **seed),
    ):
        np.testing.assert_array_equal(call(seed=0), call())
        assert (call(seed=2**64 - 1) != call(seed=0)).any()


def test_samples_are_draws_around_their_means(loaded):
    """Samples are binary; given z their pixels have the means that `mean=True` returns for the same seed."""
    samples, means = loaded.vae.sample(400, SEED), loaded.vae.sample(400, SEED, mean=True).astype(np.float64)
    assert set(np.unique(samples)) == {0, 1}
    errors = (samples - means).sum(axis=0)
    deviations = np.sqrt((means * (1 - means)).sum(axis=0))
    assert (np.abs(errors) <= 5.5 * deviations + 1).all()
    assert abs(errors.sum()) < 4 * math.sqrt((means * (1 - means)).sum())


def test_means_come_from_the_prior(loaded):
    """`mean=True` decodes the prior's noise, and decoding other latents gives other images."""
    z = noise.normal(SEED, noise.PRIOR, np.arange(5), loaded.vae.latent_dim)
    np.testing.assert_array_equal(loaded.vae.sample(5, SEED, mean=True), loaded.vae.decode(z))
    assert (loaded.vae.decode(z) != loaded.vae.decode(z[::-1])).any()


def test_binarise_draws_with_the_grey_level_as_probability(loaded):
    """Binary images stay as they are; grey ones become binary with mean x, pixel by pixel."""
    vae = loaded.vae
    np.testing.assert_array_equal(vae.binarise(loaded.x, SEED), loaded.x)
    n, pixels = 1000, math.prod(vae.observation.shape)
    levels = np.linspace(0, 1, pixels, dtype=np.float32).reshape(1, *vae.observation.shape)
    binary = np.concatenate([vae.binarise(levels, seed) for seed in range(n)])
    assert set(np.unique(binary)) == {0, 1}
    errors = np.abs(binary.mean(axis=0) - levels[0])
    assert (errors <= 4.5 * np.sqrt(levels[0] * (1 - levels[0]) / n)).all()


def test_a_black_pixel_stays_black_at_the_smallest_draw(loaded):
    """Seed 68519 draws exactly 0 for pixel 92 of the black image; a pixel of level 0 stays 0 there too."""
    black = np.zeros((1, 1, 28, 28), np.float32)
    assert noise.uniform(68519, noise.BINARISATION, noise.index(black), 784)[0, 92] == 0
    np.testing.assert_array_equal(loaded.vae.binarise(black, 68519), 0)


def test_percentiles_are_those_of_the_bundles_quantiles(loaded):
    """An ELBO that is a quantile has its level; between two it is interpolated; the ends stand for all beyond them."""
    evaluation = loaded.vae.manifest.evaluation
    levels, elbo = np.array(evaluation.quantiles.levels), np.array(evaluation.quantiles.elbo)
    ends = max(0.1, 100 / evaluation.observations), min(99.9, 100 - 100 / evaluation.observations)
    assert (np.diff(elbo) > 0).all()
    percentile = loaded.vae.percentile
    np.testing.assert_allclose(percentile(elbo), np.clip(100 * levels, *ends), rtol=1e-9)
    weight = np.random.default_rng(0).random(len(levels) - 1)
    between = elbo[:-1] + weight * np.diff(elbo)
    expected = np.clip(100 * (levels[:-1] + weight * np.diff(levels)), *ends)
    np.testing.assert_allclose(percentile(between), expected, rtol=1e-6)
    np.testing.assert_allclose(percentile([-1e9, -math.inf, 0, math.inf]), np.repeat(ends, 2), rtol=1e-9)
    assert (np.diff(percentile(np.linspace(elbo[0] - 9, elbo[-1] + 9, 500))) >= 0).all()


def test_percentiles_keep_the_shape(loaded):
    """Numbers, lists and arrays of any shape and type give float64 of the same shape."""
    for elbo in (-100, [-100.0, -90], np.full((2, 3), -95, np.float32), np.zeros(0), loaded.vae.elbo(loaded.x[:4])):
        percentile = loaded.vae.percentile(elbo)
        assert np.shape(percentile) == np.shape(elbo)
        assert np.asarray(percentile).dtype == np.float64


def test_a_bundle_without_quantiles_says_so(forge):
    """Where the manifest keeps no quantiles, `percentile` raises BundleError, and everything else works."""
    vae = VAE.load(forge(change=lambda manifest: manifest["evaluation"].pop("quantiles")))
    with pytest.raises(BundleError, match=r"lacks the test observations' quantiles: evaluation\.quantiles; "):
        vae.percentile([-100.0])
    assert np.isfinite(vae.elbo(vae.sample(2))).all()


@pytest.mark.parametrize(
    "quantiles", [{}, [], 3, {"elbo": [], "levels": []}, {"elbo": [1, 2], "levels": [0.5]}, {"elbo": "ab"}]
)
def test_quantiles_that_are_none_are_refused(forge, quantiles: object):
    """A part that a manifest may lack must be what it says it is where it is there: who asks for it gets its path."""
    vae = VAE.load(forge(change=lambda manifest: manifest["evaluation"].update(quantiles=quantiles)))
    with pytest.raises(BundleError, match=r"manifest not understood: .*evaluation\.quantiles"):
        vae.percentile([-100.0])
    with pytest.raises(BundleError, match=r"evaluation\.quantiles"):
        score(vae, vae.sample(2))


def test_the_manifest_is_the_one_on_disk(loaded):
    """Its typed parts hold what its JSON says."""
    manifest, written = loaded.vae.manifest, json.loads((loaded.path / "manifest.json").read_bytes())
    assert manifest.raw == written
    assert manifest.contract.json() == written["contract"]
    assert manifest.onnx.opset == written["onnx"]["opset"]
    assert manifest.evaluation.figures["elbo"].mean == written["evaluation"]["figures"]["elbo"]["mean"]
    assert [row.nats for row in manifest.parity.rows] == [row["nats"] for row in written["parity"]["rows"]]


def test_golden_vectors_are_reproduced(loaded):
    """On this machine the bundle gives the encodings, logits and ELBOs that PyTorch gave when it was exported."""
    vae, golden = loaded.vae, read(loaded.path).golden()
    assert set(golden) == {"seed", "z", "eps", "x", "mu", "logsigma", "logits", "elbo"}
    mu, logsigma = vae.encode(golden["x"])
    np.testing.assert_allclose(mu, golden["mu"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logsigma, golden["logsigma"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(vae.parameters(golden["z"]), golden["logits"], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(noise.normal(1, noise.PRIOR, [0, 1], vae.latent_dim), golden["z"])
    np.testing.assert_array_equal(noise.normal(1, noise.POSTERIOR, [0, 1], vae.latent_dim), golden["eps"])
    np.testing.assert_array_equal(vae.sample(2, seed=1), golden["x"])
    z = mu + np.exp(logsigma) * golden["eps"]
    elbo = vae.likelihood.log_prob(golden["x"], vae.parameters(z)) - vae.terms(golden["x"]).kl
    np.testing.assert_allclose(elbo, golden["elbo"], rtol=1e-6, atol=1e-3)


IMAGES = "[batch, 1, 28, 28]"
TAKE_IMAGES = ("encode", "reconstruct", "binarise", "terms", "elbo", "log_likelihood")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 28, 28)), f"images of the wrong shape: [2, 28, 28]; this model takes {IMAGES}"),
        (np.zeros((1, 28, 28)), f"images of the wrong shape: [1, 28, 28]; this model takes {IMAGES}"),
        (np.zeros((2, 3, 28, 28)), f"images of the wrong shape: [2, 3, 28, 28]; this model takes {IMAGES}"),
        (np.zeros((2, 784)), f"images of the wrong shape: [2, 784]; this model takes {IMAGES}"),
        (0.5, "images of the wrong shape: "),
        ("digits.png", "file not found: digits.png"),
        (np.array("digits.png"), "images of the wrong type: <U10; give numbers"),
        (None, "images of the wrong type: object; give numbers"),
        (np.zeros((2, 1, 28, 28), complex), "images of the wrong type: complex128; give numbers"),
        ([[0.0], [0.0, 1.0]], "images"),
    ],
    ids=["no channel", "one image", "colour", "flat", "number", "text", "text array", "none", "complex", "ragged"],
)
def test_what_is_not_a_batch_of_images_is_refused(loaded, x, words: str):
    """Wrong shapes and types raise InputError that says what came and what the model takes, whatever the call."""
    for verb in TAKE_IMAGES:
        with pytest.raises(InputError) as caught:
            getattr(loaded.vae, verb)(x)
        assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (np.nan, "NaN or infinite pixels: image 3; clean the data"),
        (np.inf, "NaN or infinite pixels: image 3; clean the data"),
        (-np.inf, "NaN or infinite pixels: image 3; clean the data"),
        (254.0, "pixels outside [0, 1]: image 3; divide 8-bit levels by 255"),
        (1.5, "pixels outside [0, 1]: image 3; give x.clip(0, 1), or undo what was subtracted"),
        (-0.01, "pixels outside [0, 1]: image 3; give x.clip(0, 1), or undo what was subtracted"),
        (1e300, "image 3"),
    ],
)
def test_a_bad_pixel_is_refused_with_its_image(loaded, level: float, words: str):
    """NaN, infinite, negative and large pixels raise InputError, and no warning, with the first image that has one."""
    x = loaded.x[:6].astype(np.float64)
    x[3:5, 0, 27, 27] = level
    for verb in TAKE_IMAGES:
        with pytest.raises(InputError) as caught:
            getattr(loaded.vae, verb)(x)
        assert words in str(caught.value)


def test_levels_of_8_bits_are_refused(loaded):
    """uint8 images of 0..255 raise InputError that says to divide by 255."""
    x = (loaded.x[:2] * 255).astype(np.uint8)
    with pytest.raises(InputError, match="divide 8-bit levels by 255"):
        loaded.vae.reconstruct(x)


@pytest.mark.parametrize("verb", ["elbo", "log_likelihood", "terms"])
def test_grey_pixels_have_no_bernoulli_likelihood(loaded, verb: str):
    """Scoring a grey image raises InputError that names the image, by its place in a stream too, and `observe`."""
    x = loaded.x[:70].copy()
    x[66, 0, 5, 5] = 0.5
    words = r"grey values under a Bernoulli likelihood: image 66; use observe\(x, seed\) first"
    for images in (x, iter([x]), iter([x[:30], x[30:66], x[66:]])):
        with pytest.raises(InputError, match=words):
            getattr(loaded.vae, verb)(images)
    with pytest.raises(InputError, match="image 1066; "):
        getattr(loaded.vae, verb)(x, start=1000)


@pytest.mark.parametrize("verb", ["elbo", "log_likelihood", "terms"])
def test_a_bad_pixel_in_a_stream_is_named_by_its_place(loaded, verb: str):
    """NaN in the second batch of an iterator is told by its place in the whole stream, counted from `start`."""
    x = loaded.x[:20].copy()
    x[13, 0, 0, 0] = np.nan
    for start in (0, 500):
        with pytest.raises(InputError, match=f"NaN or infinite pixels: image {start + 13}; "):
            getattr(loaded.vae, verb)(iter([x[:9], x[9:]]), start=start)


def test_observe_makes_images_ready_to_be_scored(loaded):
    """Under a Bernoulli likelihood `observe` is `binarise`, with seed and start, and what it gives can be scored."""
    grey = 0.6 * loaded.x[:30]
    for seed, start in ((0, 0), (5, 0), (5, 17)):
        observed = loaded.vae.observe(grey, seed, start)
        np.testing.assert_array_equal(observed, loaded.vae.binarise(grey, seed, start))
        assert np.isfinite(loaded.vae.elbo(observed)).all()
    with pytest.raises(InputError, match="pixels outside"):
        loaded.vae.observe(2 * loaded.x[:1])


def test_bad_latents_are_refused(loaded):
    """Latents of the wrong shape or type, and NaN, raise InputError that says what the model takes."""
    vae, dim = loaded.vae, loaded.vae.latent_dim
    for verb in (vae.decode, vae.parameters):
        for shape in ((2, dim + 1), (dim,), (2, dim, 1)):
            with pytest.raises(InputError) as caught:
                verb(np.zeros(shape, np.float32))
            assert str(caught.value) == f"latents of the wrong shape: {list(shape)}; this model takes [batch, {dim}]"
        for value in (np.nan, np.inf, 1e300):
            z = np.zeros((4, dim))
            z[2, 1] = value
            with pytest.raises(InputError, match="NaN or infinite latents: row 2; clean the data"):
                verb(z)
        with pytest.raises(InputError, match="latents of the wrong type: <U1; give numbers"):
            verb("z")


@pytest.mark.parametrize("n", [0, -1])
def test_counts_below_one_are_refused(loaded, n: int):
    """0 or -1 images, draws or threads raise ArgumentError, a ValueError too, with the number and what to give."""
    words = rf"number of samples out of range: {n}; give an integer from 1 to 2\^63 - 1"
    with pytest.raises(ArgumentError, match=words):
        loaded.vae.sample(n)
    for verb in (loaded.vae.elbo, loaded.vae.log_likelihood, loaded.vae.terms):
        with pytest.raises(ArgumentError, match=rf"num_samples out of range: {n}; give an integer from 1 to 1,000,000"):
            verb(loaded.x[:1], n)
        with pytest.raises(ValueError, match="num_samples out of range"):
            verb(loaded.x[:0], n)
    with pytest.raises(ArgumentError, match=rf"threads out of range: {n}; give an integer from 1 to 1024"):
        VAE.load(loaded.path, threads=n)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(loaded, seed: int):
    """A seed outside 0..2^64 - 1 raises ArgumentError wherever a seed is taken."""
    vae, x = loaded.vae, loaded.x[:1]
    for call in (lambda: vae.sample(1, seed), lambda: vae.binarise(x, seed), lambda: vae.elbo(x, 1, seed)):
        with pytest.raises(ArgumentError, match="seed out of range"):
            call()


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.uint8),
        lambda x: x.astype(">i4"),
        lambda x: x.astype(bool),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=3)[..., ::2],
        lambda x: x[::-1, :, ::-1][::-1, :, ::-1],
        lambda x: x.tolist(),
    ],
    ids=[
        "big-endian",
        "f64",
        "big-endian f64",
        "f16",
        "u8",
        "big-endian i4",
        "bool",
        "F",
        "strided",
        "reversed",
        "list",
    ],
)
def test_any_layout_of_the_same_images_gives_the_same_bits(loaded, convert):
    """Byte order, width, integer types and memory layout do not matter; the caller's array is not changed."""
    x = loaded.x[:5]
    other = convert(x.copy())
    before = np.array(other)
    for verb in (loaded.vae.elbo, loaded.vae.reconstruct, loaded.vae.binarise):
        np.testing.assert_array_equal(verb(other), verb(x))
    np.testing.assert_array_equal(np.array(other), before)
    for latents in (">f4", np.float64, ">f8"):
        z = loaded.vae.encode(x)[0]
        np.testing.assert_array_equal(loaded.vae.decode(z.astype(latents)), loaded.vae.decode(z))


def test_load_takes_text_and_paths_and_ships_a_default(loaded):
    """`VAE.load` takes a str or a path; without one it loads the shipped bundle; a missing folder is a BundleError."""
    x = loaded.x[:2]
    np.testing.assert_array_equal(VAE.load(str(loaded.path)).elbo(x), loaded.vae.elbo(x))
    assert VAE.load().manifest == VAE.load(shipped()).manifest
    with pytest.raises(BundleError, match=r"bundle not found: .*missing \(not in .*; name a folder"):
        VAE.load(loaded.path / "missing")


def test_a_vae_shows_itself(tiny_bundle, forge):
    """In a line: what it is of, under which likelihood, and its latents; so does what it reads."""
    vae = VAE.load(tiny_bundle)
    assert repr(vae) == "<vae_runtime.VAE 'tiny': images [1, 28, 28], bernoulli; latents [4], standard-normal>"
    rows = VAE.load(bundles.linear(forge, "gaussian", (5,), (2, 3)))
    assert repr(rows) == "<vae_runtime.VAE 'forged': rows [5], gaussian; latents [2, 3], standard-normal>"
    table = b"a,b,c,d,e\n1,2,3,4,5\n6,7,8,9,0\n"
    assert repr(rows.read(table)) == "<vae_runtime.sources.Observations: 2 rows of bytes>"
