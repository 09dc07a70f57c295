"""The VAE inside a larger program: pickled, shared by threads, forked, closed, fed by iterators."""

import copy
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_runtime import VAE, ArgumentError, BundleError, noise


def test_pickles_and_copies_give_the_same_numbers(loaded):
    """A VAE from a pickle or a deep copy has the same path, threads, samples and ELBOs, to the last bit."""
    for twin in (pickle.loads(pickle.dumps(loaded.vae)), copy.deepcopy(loaded.vae)):
        assert (twin.path, twin.threads, twin.info) == (loaded.vae.path, loaded.vae.threads, loaded.vae.info)
        np.testing.assert_array_equal(twin.sample(5, seed=1), loaded.vae.sample(5, seed=1))
        np.testing.assert_array_equal(twin.elbo(loaded.x), loaded.vae.elbo(loaded.x))


def test_a_pickle_of_a_changed_bundle_is_refused(tiny_bundle: Path, tmp_path: Path, forge: Callable[..., Path]):
    """Unpickling raises BundleError where the bundle's folder now holds another valid bundle, or none."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    pickled = pickle.dumps(VAE.load(path))
    shutil.rmtree(path)
    with pytest.raises(BundleError):
        pickle.loads(pickled)
    forge(change=lambda manifest: manifest["provenance"].update(command="another")).rename(path)
    VAE.load(path).close()
    with pytest.raises(BundleError, match="bundle changed since it was loaded"):
        pickle.loads(pickled)


def test_eight_threads_share_a_vae(loaded):
    """Eight threads that use one VAE at once get the bits that each call gives alone."""

    def work(seed: int) -> list[np.ndarray]:
        vae, x = loaded.vae, loaded.x
        return [vae.sample(40, seed=seed), vae.elbo(x, seed=seed), vae.log_likelihood(x[:20], 30, seed), *vae.encode(x)]

    alone = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for expected, got in zip(alone, pool.map(work, range(8)), strict=True):
            for a, b in zip(expected, got, strict=True):
                np.testing.assert_array_equal(a, b)


FORK = """
import os, sys
from vae_runtime import VAE
vae = VAE.load(sys.argv[1], threads=2)
def show():
    print(vae.sample(600, seed=3).sum(), vae.elbo(vae.sample(300)).tolist(), flush=True)
show()
child = os.fork()
if not child:
    show()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
show()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_vae_works_after_a_fork(loaded):
    """Child and parent of a fork both compute what the parent computed before it."""
    arguments = [sys.executable, "-c", FORK, str(loaded.path)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    before, child, parent = result.stdout.splitlines()
    assert before == child == parent


def test_a_vae_travels_to_a_spawned_process(loaded):
    """A process that multiprocessing spawns computes the same bits with the VAE that it is sent."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(loaded.vae.elbo, loaded.x[:9]).result(timeout=60)
    np.testing.assert_array_equal(there, loaded.vae.elbo(loaded.x[:9]))


def test_a_closed_vae_is_refused(tiny_bundle: Path):
    """The context manager closes; use after that raises ArgumentError that names the bundle; closing twice is fine."""
    with VAE.load(tiny_bundle) as vae:
        x = vae.sample(2)
    vae.close()
    for use in (lambda: vae.sample(2), lambda: vae.encode(x), lambda: vae.elbo(x), lambda: next(vae.sample_batches(2))):
        with pytest.raises(ArgumentError, match=f"closed VAE: {tiny_bundle}; load it again"):
            use()


@pytest.mark.parametrize("start", [0, 1, 255, 1000])
@pytest.mark.parametrize("mean", [False, True])
def test_batches_and_offsets_are_parts_of_one_sample(loaded, start: int, mean: bool):
    """`start` skips rows of the same seed's samples, and `sample_batches` cuts them up, bit for bit."""
    whole = loaded.vae.sample(start + 600, seed=7, mean=mean)[start:]
    np.testing.assert_array_equal(loaded.vae.sample(600, seed=7, mean=mean, start=start), whole)
    batches = list(loaded.vae.sample_batches(600, seed=7, mean=mean, start=start))
    assert len(batches) > 1
    np.testing.assert_array_equal(np.concatenate(batches), whole)


@pytest.mark.parametrize("num_samples", [1, 3, 300])
def test_an_iterator_is_scored_as_one_batch(loaded, num_samples: int):
    """The ELBO and the bound of an iterator over batches equal those of the whole array, bit for bit."""
    x = loaded.x[:40]
    for score in (loaded.vae.elbo, loaded.vae.log_likelihood):
        whole = score(x, num_samples, seed=2)
        np.testing.assert_array_equal(score(iter([x[:17], x[17:18], x[18:]]), num_samples, seed=2), whole)
        assert score(iter([]), num_samples).shape == (0,)


@pytest.mark.parametrize("num_samples", [1, 2, 300])
def test_terms_carry_their_standard_error(loaded, num_samples: int):
    """KL is the sum over dimensions; the error is the sample deviation of log p(x|z_k) / sqrt(K), NaN for K = 1."""
    x, k = loaded.x[:6], num_samples
    terms = loaded.vae.terms(x, k, seed=4)
    assert terms.kl_per_dimension.shape == (6, loaded.vae.latent_dim)
    np.testing.assert_array_equal(terms.kl, terms.kl_per_dimension.sum(axis=1))
    np.testing.assert_array_equal(terms.elbo, terms.reconstruction - terms.kl)
    if k == 1:
        assert np.isnan(terms.standard_error).all()
        return
    mu, logsigma = loaded.vae.encode(x)
    eps = noise.normal(4, noise.POSTERIOR, np.arange(6), k * mu.shape[1]).reshape(6, k, -1)
    z = mu[:, None] + np.exp(logsigma)[:, None] * eps
    logits = torch.from_numpy(loaded.vae.parameters(z.reshape(6 * k, -1)).reshape(6, k, *x.shape[1:])).double()
    pixels = torch.distributions.Bernoulli(logits=logits).log_prob(torch.from_numpy(x[:, None]).double())
    expected = pixels.sum((2, 3, 4)).std(dim=1, correction=1) / math.sqrt(k)
    np.testing.assert_allclose(terms.standard_error, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("sample", {"n": 2, "seed": 1.5}, "seed out of range: 1.5"),
        ("sample", {"n": 2.5}, "number of samples out of range: 2.5"),
        ("sample", {"n": 2, "start": -1}, "start out of range: -1"),
        ("sample", {"n": 2, "start": 0.5}, "start out of range: 0.5"),
        ("sample_batches", {"n": 2.5}, "number of samples out of range: 2.5"),
        ("elbo", {"x": [], "num_samples": 10**30}, f"num_samples out of range: {10**30}"),
        ("log_likelihood", {"x": [], "num_samples": 2.5}, "num_samples out of range: 2.5"),
        ("terms", {"x": [], "seed": "1"}, "seed out of range: 1"),
    ],
)
def test_wrong_arguments_are_refused(loaded, verb: str, arguments: dict, words: str):
    """Fractions, negative offsets and absurd counts raise ArgumentError with the value, before any work is done."""
    with pytest.raises(ArgumentError, match=words):
        getattr(loaded.vae, verb)(**arguments)


def test_nothing_is_printed(loaded, capfd: pytest.CaptureFixture[str]):
    """Loading, sampling and scoring write nothing to stdout or stderr, not even from native code."""
    with VAE.load(loaded.path) as vae:
        vae.reconstruct(vae.sample(3))
        vae.log_likelihood(loaded.x[:3])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", " 2", "²", "1025", "9" * 5000])
def test_a_bad_thread_variable_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: str):
    """VAE_EDGE_THREADS that is no number from 1 to 1024 raises ArgumentError."""
    monkeypatch.setenv("VAE_EDGE_THREADS", value)
    with pytest.raises(ArgumentError):
        VAE.load(tiny_bundle)


@pytest.mark.parametrize("value", [0, -1, 1025, 1.5, "2"])
def test_a_bad_thread_argument_is_refused(tiny_bundle: Path, value):
    """A number of threads that is no integer from 1 to 1024 raises ArgumentError."""
    with pytest.raises(ArgumentError):
        VAE.load(tiny_bundle, threads=value)


def test_the_thread_argument_wins(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """VAE_EDGE_THREADS decides where no argument is given, and only there, even where it is bad."""
    monkeypatch.setenv("VAE_EDGE_THREADS", "3")
    assert VAE.load(tiny_bundle).threads == 3
    assert VAE.load(tiny_bundle, threads=2).threads == 2
    monkeypatch.setenv("VAE_EDGE_THREADS", "bad")
    assert VAE.load(tiny_bundle, threads=2).threads == 2
