"""Scores of grey images, which average over their binary draws, and ranks, which are no finer than their sample."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vae_runtime import VAE, ArgumentError, BundleError, InputError, noise, score
from vae_runtime.ranks import Ranks
from vae_runtime.reports import format_scores

SEED = 23


def mixed(loaded) -> np.ndarray:
    """Forty images, every second one grey, and four of the grey ones nearly binary: of one grey pixel."""
    x = loaded.x[:40].copy()
    x[::2] *= 0.7
    x[:8:2] = loaded.x[:8:2]
    x[:8:2, 0, 14, 14] = 0.5
    return x


def test_a_grey_image_is_averaged_over_binary_draws(loaded):
    """ELBO, terms and standard error are those of K binary images, each with its own z, by the definitions."""
    vae, k = loaded.vae, 12
    x = mixed(loaded)[:6:2]
    index, pixels, dim = noise.index(x), x[0].size, vae.latent_dim
    uniforms = noise.uniform(SEED, noise.BINARISATION, index, k * pixels).reshape(3, k, *vae.observation.shape)
    eps = noise.normal(SEED, noise.POSTERIOR, index, k * dim).reshape(3, k, dim)
    drawn = np.array([[np.where(u < image, 1, 0) for u in us] for image, us in zip(x, uniforms, strict=True)])
    elbo, kl = np.empty((2, 3, k))
    for i in range(3):
        for j in range(k):
            binary = drawn[i, j][None].astype(np.float32)
            mu, logsigma = vae.encode(binary)
            logits = vae.parameters(mu + np.exp(logsigma) * eps[i, j]).astype(np.float64)
            kl[i, j] = vae.prior.kl(mu, logsigma).sum()
            elbo[i, j] = (binary * logits - np.logaddexp(0, logits)).sum() - kl[i, j]
    got = score(vae, x, k, SEED)
    np.testing.assert_allclose(got.elbo, elbo.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(got.kl, kl.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(got.standard_error, elbo.std(axis=1, ddof=1) / math.sqrt(k), rtol=1e-4)
    np.testing.assert_allclose(got.kl_per_dimension.sum(), kl.mean(), rtol=1e-6)
    assert got.off_support == 3
    assert len(np.unique(elbo)) == 3 * k  # each draw has its own z, also where the binary images are the same


def test_binary_images_keep_their_scores(loaded):
    """An image that is binary already has the figures of `terms`, to the last bit, and its KL no error."""
    terms, scores = loaded.vae.terms(loaded.x[:20], 5, SEED), score(loaded.vae, loaded.x[:20], 5, SEED)
    for name in ("elbo", "reconstruction", "kl", "standard_error"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(terms, name), err_msg=name)
    assert scores.off_support == 0


def test_the_standard_error_covers_the_binary_draws(loaded):
    """Scores of grey images by 60 seeds spread as widely as their standard error says, which z alone does not."""
    vae, x = loaded.vae, 0.6 * loaded.x[:4]
    by_seed = [score(vae, x, 8, seed) for seed in range(60)]
    spread = np.std([scores.elbo for scores in by_seed], axis=0, ddof=1)
    said = np.sqrt(np.mean([scores.standard_error**2 for scores in by_seed], axis=0))
    of_z_alone = vae.terms(vae.observe(x, SEED), 8, SEED).standard_error
    assert (abs(spread / said - 1) < 0.35).all()  # 60 seeds tell a deviation to 9 percent
    assert spread.mean() > 1.5 * of_z_alone.mean()


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, "2", None, 1_000_001])
def test_a_number_of_draws_that_is_none_is_refused(loaded, num_samples: object):
    """As `elbo` refuses it."""
    for call in (loaded.vae.elbo, partial(score, loaded.vae)):
        with pytest.raises(ArgumentError, match="num_samples out of range"):
            call(loaded.x[:2], num_samples)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (5.0, "wrong shape"),
        (np.float32(1), "wrong shape"),
        ([[0.0], [0.0, 1.0]], "different lengths"),
        (["a"], "not found"),
        (np.zeros(3), "wrong shape"),
        (None, "wrong type"),
    ],
)
def test_what_is_no_observation_is_refused(loaded, x: object, words: str):
    """In the words of an InputError, as `elbo` refuses it."""
    for call in (loaded.vae.elbo, loaded.vae.score):
        with pytest.raises(InputError, match=words):
            call(x)


def test_equal_images_have_equal_scores(loaded):
    """Whatever the order, repeats, neighbours, batches, threads and memory: to the last bit, the errors too."""
    x, generator = mixed(loaded), np.random.default_rng(1)
    alone = [score(loaded.vae, x[i : i + 1], 3, SEED) for i in range(len(x))]
    for threads, memory in ((1, None), (1, 1), (2, 300_000), (3, None)):
        vae = VAE.load(loaded.path, threads, memory)
        which = generator.integers(0, len(x), 50)
        cuts = np.sort(generator.integers(0, 50, 4))
        scores = score(vae, iter(np.split(x[which], cuts)), 3, SEED)
        for name in ("elbo", "standard_error", "reconstruction", "kl", "percentile"):
            expected = [getattr(alone[i], name)[0] for i in which]
            np.testing.assert_array_equal(getattr(scores, name), expected, err_msg=name)


def test_copies_say_nothing_new_of_the_mean(loaded):
    """Copies of all images leave the mean's standard error as it is; of copies of one image it is not known."""
    x = mixed(loaded)
    once, twice = score(loaded.vae, x, 2), score(loaded.vae, np.concatenate([x, x]), 2)
    assert once.error_of_mean == pytest.approx(once.elbo.std(ddof=1) / math.sqrt(len(x)))
    assert twice.error_of_mean == pytest.approx(once.error_of_mean)
    assert (once.different, twice.different) == (40, 40)
    assert score(loaded.vae, np.repeat(x[:1], 6, axis=0), 2).error_of_mean is None
    assert score(loaded.vae, iter([]), 2).error_of_mean is None


def test_many_draws_do_not_depend_on_memory(loaded):
    """More draws of a grey image than a run holds give the same bits as in little memory, the KL of each latent too."""
    x = 0.6 * loaded.x[:2]
    few, many = (score(VAE.load(loaded.path, 1, memory), x, 700, SEED) for memory in (200_000, 1 << 28))
    np.testing.assert_array_equal(few.elbo, many.elbo)
    np.testing.assert_array_equal(few.kl_per_dimension, many.kl_per_dimension)


@pytest.mark.parametrize("n", [1, 300])
def test_grey_images_keep_to_the_memory(loaded, peak_memory: Callable[[Callable[[], object]], int], n: int):
    """Scoring grey images takes about the memory that the VAE was given, however many they are and are drawn."""
    vae, x = VAE.load(loaded.path, 1, 4 << 20), 0.5 * loaded.x[:1]
    stream = (x for _ in range(n))
    score(vae, x, 2)  # opens the graphs
    assert peak_memory(lambda: score(vae, stream, 2000 // n)) < 6 << 20


def test_a_bad_image_is_named_by_its_number_among_grey_ones(loaded):
    """NaN is told by the image's place in the stream, counted from `start`."""
    x = mixed(loaded)
    x[33, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="image 1033; "):
        score(loaded.vae, iter([x[:30], x[30:]]), 2, start=1000)


@pytest.fixture
def ranked(forge: Callable[..., Path]) -> Callable[[int], VAE]:
    """The tiny bundle as if it had been measured on so many test images."""

    def make(images: int) -> VAE:
        return VAE.load(forge(change=lambda manifest: manifest["evaluation"].update(observations=images)))

    return make


@pytest.mark.parametrize(("images", "ends"), [(3, (100 / 3, 200 / 3)), (20, (5, 95)), (10_000, (0.1, 99.9))])
def test_a_rank_is_no_finer_than_its_sample(ranked: Callable[[int], VAE], images: int, ends: tuple[float, float]):
    """Of n test images no rank is below 100/n percent or above 100 - 100/n, in figures and in words."""
    vae = ranked(images)
    assert vae.percentile([-1e9, 1e9]).tolist() == pytest.approx(ends)
    lowest, highest = (vae.ranks.describe(rank) for rank in vae.percentile([-1e9, 1e9]))
    assert (lowest[0], highest[0]) == ("<", ">")
    assert float(lowest[1:].partition("%")[0]) == pytest.approx(ends[0], abs=0.05)
    assert vae.ranks.coarse is (images < 1000)
    words = "\n".join(format_scores(vae.score(vae.sample(1)), ["a"], "table", 16, 0, "image"))
    assert (f", percentiles of {images} test images\n" in words) is (images < 1000)
    middle = vae.percentile(vae.ranks.elbo[len(vae.ranks.elbo) // 2])
    assert vae.ranks.describe(float(middle)).startswith("50")


def test_a_percentile_of_few_images_says_so():
    """The table's words at the ends, as people read them."""
    ranks = Ranks(20, np.array([0.1, 50, 99.9]), np.array([-120.0, -100, -80]))
    shown = [ranks.describe(rank) for rank in ranks.percentile([-121, -119.9, -100, -80])]
    assert shown == ["<5%", "<5%", "50%", ">95%"]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_handful_of_test_images_ranks_nothing(ranked: Callable[[int], VAE], images: int):
    """Of one or two test images there are no percentiles: BundleError says how many there are; scores go on without."""
    vae = ranked(images)
    with pytest.raises(BundleError, match=f"too few test observations to rank among: {images};"):
        vae.percentile(-100.0)
    scores = score(vae, vae.sample(2))
    assert scores.percentile is None
    assert not {"percentile", "test_observations"} & set(scores.columns())
    json.dumps(scores.columns())


def test_what_values_contribute_comes_from_the_same_pass(loaded, monkeypatch: pytest.MonkeyPatch):
    """Of binary images and of grey ones they sum to the reconstruction; the terms keep their bits; each is encoded.

    Of a grey one each binary draw is encoded.
    """
    vae, k, x = loaded.vae, 5, mixed(loaded)
    expected = vae.terms(x, k, SEED, observe=True)
    encoded: list[int] = []
    encode = vae._sessions.encode
    monkeypatch.setattr(vae._sessions, "encode", lambda some: (encoded.append(len(some)), encode(some))[1])
    got = vae.terms(x, k, SEED, observe=True, contributions=True)
    grey = int(vae.off_support(x).sum())
    assert sum(encoded) == grey * k + len(x) - grey
    for name in ("elbo", "reconstruction", "kl", "standard_error"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    assert expected.contributions is None
    assert got.contributions.shape == x.shape
    np.testing.assert_allclose(got.contributions.sum(axis=(1, 2, 3)), got.reconstruction, rtol=1e-6)
