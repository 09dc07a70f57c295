"""The runtime's scores of files against torch.distributions in float64."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from support import bundles
from support.bundles import LOGSIGMA, Forge
from vae_runtime import VAE, noise, sources
from vae_runtime import manifest as manifests
from vae_runtime.bundle import MANIFEST
from vae_runtime.scores import score
from vae_train import data, levels, pixels
from vae_train.config import PRESETS


def cut(x: np.ndarray, *sizes: int) -> Iterator[np.ndarray]:
    """The images in batches of these sizes, the last one of what is left."""
    yield from np.split(x, np.cumsum(sizes))


def test_kl_per_latent_sums_to_the_mean_kl(tiny_bundle: Path) -> None:
    """KL per latent is that of torch.distributions in float64, averaged over the images; its sum is the mean KL."""
    vae = VAE.load(tiny_bundle)
    x = vae.sample(130, seed=5)
    scores = score(vae, cut(x, 50), 2)
    mu, logsigma = (torch.from_numpy(array.astype(np.float64)) for array in vae.encode(x))
    kl = kl_divergence(Normal(mu, logsigma.exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    np.testing.assert_allclose(scores.kl_per_dimension, kl.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scores.kl_per_dimension.sum(), scores.kl.mean(), rtol=1e-12)
    np.testing.assert_allclose(scores.elbo, scores.reconstruction - scores.kl, rtol=1e-12)


def test_gaussian_scores_are_torchs(forge: Forge) -> None:
    """Under a Gaussian likelihood ELBO and terms are those of torch.distributions in float64 from the same noise."""
    vae, k, seed = VAE.load(bundles.linear(forge, "gaussian", (2, 5, 6))), 4, 9
    x = (np.random.default_rng(0).integers(0, 256, (25, 2, 5, 6)) / 255).astype(np.float32)
    scores = score(vae, cut(x, 3, 11), k, seed)
    mu, logsigma = (torch.from_numpy(array.astype(np.float64)) for array in vae.encode(x))
    eps = noise.normal(seed, noise.POSTERIOR, noise.index(x), k * 3).reshape(25, k, 3)
    z = mu[:, None] + logsigma.exp()[:, None] * torch.from_numpy(eps.astype(np.float64))
    loc = torch.from_numpy(vae.parameters(z.reshape(-1, 3).numpy()).astype(np.float64)).reshape(
        25, k, *vae.observation.shape
    )
    pixels = Independent(Normal(loc, math.exp(LOGSIGMA)), 3)
    log_prob = pixels.log_prob(torch.from_numpy(x.astype(np.float64))[:, None])
    kl = kl_divergence(Normal(mu, logsigma.exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
    np.testing.assert_allclose(scores.reconstruction, log_prob.mean(1), rtol=1e-5)
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-5)
    np.testing.assert_allclose(scores.elbo, log_prob.mean(1) - kl, rtol=1e-5)
    np.testing.assert_allclose(scores.standard_error, log_prob.std(1, correction=1) / math.sqrt(k), rtol=1e-3)


def test_a_device_divides_levels_as_training_did(forge: Forge, tmp_path: Path) -> None:
    """The full scale that training told from its files is in the bundle, and the device needs no option."""
    np.save(tmp_path / "train.npy", np.random.default_rng(1).integers(0, 1800, (90, 1, 5, 6), dtype=np.uint16))
    config = PRESETS["tutorial"].replace(dataset=str(tmp_path / "train.npy"), likelihood="gaussian")
    images = data.load(data.fitted(config), tmp_path, download=False)
    folder = bundles.linear(forge, "gaussian", (1, 5, 6))
    manifest = json.loads((folder / MANIFEST).read_bytes()) | {"preprocessing": images.preprocessing}
    (folder / MANIFEST).write_bytes(manifests.dump({name: manifest[name] for name in manifest if name != "sha256"}))
    vae = VAE.load(folder)
    (read,) = vae.read([tmp_path / "train.npy"]).batches(100)
    assert vae.manifest.preprocessing.full_scale == 4095
    np.testing.assert_array_equal(read[data.in_test(read)], images.test)


@pytest.mark.parametrize("likelihood", bundles.LIKELIHOODS)
def test_a_device_observes_a_trained_file_as_training_did(forge: Forge, tmp_path: Path, likelihood: str) -> None:
    """An array of floats scores on the device as what training made of it: kept, rounded, or drawn with P(1) = x."""
    x = np.random.default_rng(1).random((90, 1, 5, 6), np.float32)
    np.save(tmp_path / "train.npy", x)
    name = "discretised-logistic" if likelihood == "logistic" else likelihood
    config = PRESETS["tutorial"].replace(dataset=str(tmp_path / "train.npy"), likelihood=name)
    images = data.load(config, tmp_path, download=False)
    vae = VAE.load(bundles.linear(forge, likelihood, (1, 5, 6)))
    (read,) = sources.Observations([tmp_path / "train.npy"], vae.observation).batches(100)
    test = data.in_test(read if likelihood != "logistic" else levels.to_levels(read))
    seen = pixels.unit(images.train).numpy()
    if likelihood == "bernoulli":
        drawn = np.mean([vae.observe(read[~test], seed) for seed in range(400)], axis=0)
        assert np.abs(drawn - seen).max() < 6 * 0.5 / math.sqrt(400)
    else:
        np.testing.assert_array_equal(vae.observe(read[~test]), seen)


@pytest.mark.parametrize("kind", ["float64.npy", "int16.npy", "float32.npz"])
def test_a_device_reads_rows_as_training_did(forge: Forge, tmp_path: Path, kind: str) -> None:
    """Rows of numbers from one file are the same bits on both sides, and have the ELBO of the rows in memory."""
    dtype, suffix = kind.split(".")
    x = (np.random.default_rng(2).normal(20, 9, (90, 6))).astype(dtype)
    path = tmp_path / f"train.{suffix}"
    if suffix == "npy":
        np.save(path, x)
    else:
        np.savez(path, x=x, y=np.arange(90))
    config = PRESETS["vector"].replace(dataset=str(path))
    rows = data.load(config, tmp_path, download=False)
    folder = bundles.linear(forge, "gaussian", (6,))
    manifest = json.loads((folder / MANIFEST).read_bytes()) | {"preprocessing": rows.preprocessing}
    (folder / MANIFEST).write_bytes(manifests.dump({name: manifest[name] for name in manifest if name != "sha256"}))
    vae = VAE.load(folder)
    (read,) = vae.read(path).batches(100)
    test = data.in_test(read)
    np.testing.assert_array_equal(vae.standardise(read)[test], rows.test)
    np.testing.assert_array_equal(vae.standardise(read)[~test], rows.train)
    np.testing.assert_array_equal(score(vae, read, 3).elbo, score(vae, x, 3).elbo)
    standardised = VAE.load(folder, standardised=True)
    np.testing.assert_array_equal(standardised.elbo(rows.test.numpy(), 3), vae.elbo(read[test], 3))
