"""Samples and scores of any part of a stream are those of the whole, for any memory, threads and start."""

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_runtime import VAE

EXAMPLES = settings(max_examples=40, derandomize=True, deadline=None, database=None)
SEEDS = st.sampled_from([0, 1, 17, 2**64 - 1])


@pytest.fixture(scope="module")
def variants(loaded) -> list[VAE]:
    """The same bundle with one to three threads and from one byte to 1 GiB of memory."""
    options = [(1, 1), (2, 1), (1, 100_000), (2, 400_000), (3, None), (1, 1 << 30)]
    return [VAE.load(loaded.path, threads, memory) for threads, memory in options]


def test_the_variants_differ(variants: list[VAE]):
    """Memory and threads do set how many rows a run takes, from 1 to 512."""
    assert [vae.rows for vae in variants][:2] == [1, 1]
    assert len({vae.rows for vae in variants}) >= 4
    assert max(vae.rows for vae in variants) == 512


@EXAMPLES
@given(which=st.integers(0, 5), start=st.integers(0, 39), n=st.integers(1, 60), seed=SEEDS, mean=st.booleans())
def test_samples_are_parts_of_one_sample(
    loaded, variants: list[VAE], which: int, start: int, n: int, seed: int, mean: bool
):
    """Images start..start+n-1 of a seed are the same bits alone, in batches, with any memory and threads."""
    whole = loaded.vae.sample(100, seed, mean)[start : start + n]
    vae = variants[which]
    np.testing.assert_array_equal(vae.sample(n, seed, mean, start), whole)
    batches = list(vae.sample_batches(n, seed, mean, start))
    assert max(map(len, batches)) <= vae.rows
    np.testing.assert_array_equal(np.concatenate(batches), whole)


@EXAMPLES
@given(which=st.integers(0, 5), start=st.integers(0, 11), n=st.integers(0, 12), seed=SEEDS, k=st.integers(1, 7))
def test_scores_are_parts_of_one_score(loaded, variants: list[VAE], which: int, start: int, n: int, seed: int, k: int):
    """ELBO, its terms and the bound of images start.. are the same bits alone, with any memory and threads."""
    x, vae = loaded.x[:24], variants[which]
    part = x[start : start + n]
    whole, got = loaded.vae.terms(x, k, seed), vae.terms(part, k, seed, start)
    for name in ("reconstruction", "kl_per_dimension", "standard_error", "kl", "elbo"):
        np.testing.assert_array_equal(getattr(got, name), getattr(whole, name)[start : start + n], err_msg=name)
    np.testing.assert_array_equal(vae.elbo(part, k, seed, start), whole.elbo[start : start + n])
    bound = loaded.vae.log_likelihood(x, k, seed)[start : start + n]
    np.testing.assert_array_equal(vae.log_likelihood(part, k, seed, start), bound)
    np.testing.assert_array_equal(vae.log_likelihood(iter([part[:1], part[1:]]), k, seed, start), bound)


@EXAMPLES
@given(which=st.integers(0, 5), start=st.integers(0, 59), n=st.integers(0, 60), seed=SEEDS)
def test_binary_draws_are_parts_of_one_draw(loaded, variants: list[VAE], which: int, start: int, n: int, seed: int):
    """The binary draw of images start.. is the same bits alone, with any memory and threads."""
    grey = np.random.default_rng(1).random((120, *loaded.vae.observation.shape), np.float32)
    whole = loaded.vae.binarise(grey, seed)[start : start + n]
    np.testing.assert_array_equal(variants[which].binarise(grey[start : start + n], seed, start), whole)


@EXAMPLES
@given(which=st.integers(0, 5), start=st.one_of(st.integers(0, 2**63 - 1), st.integers(2**63 - 9, 2**63 - 1)))
def test_a_seed_reaches_far(loaded, variants: list[VAE], which: int, start: int):
    """Up to image 2^63 - 1 and a few beyond, an image does not depend on where a call starts; scores on no start."""
    vae, x = variants[which], loaded.x[:3]
    later = [min(start + i, 2**63 - 1) for i in range(3)]  # where a call may start
    samples = vae.sample(3, 5, start=start)
    for i, first in enumerate(later):
        skip = start + i - first  # what lies beyond the last start
        np.testing.assert_array_equal(vae.sample(1 + skip, 5, start=first)[skip], samples[i])
    np.testing.assert_array_equal(vae.terms(x, 2, 5, start).elbo, vae.terms(x, 2, 5).elbo)
    np.testing.assert_array_equal(vae.binarise(0.5 * x, 5, start), vae.binarise(0.5 * x, 5))
