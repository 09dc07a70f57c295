"""The shipped runtime against PyTorch on real images, in nats per image."""

from pathlib import Path

import numpy as np
import torch

from vae_runtime import noise
from vae_runtime.vae import VAE
from vae_train import data, pixels, run_folder
from vae_train.config import PRESETS

N, SEED = 1000, 3


def observed(data_root: Path, number: int) -> torch.Tensor:
    """The first binary test images of MNIST, float32 [number, 1, 28, 28]."""
    levels = data.load(PRESETS["tutorial"], data_root, download=False).observed_test(binary=True)
    return pixels.unit(levels[:number])


@torch.no_grad()
def test_elbo_of_real_images_agrees_with_pytorch(data_root: Path, tiny_run: Path, run_bundle: Path) -> None:
    """For 1,000 MNIST test images and the same noise, NumPy's ELBO is PyTorch's to 0.001 nats for every image."""
    bits = observed(data_root, N)
    trained, runtime = run_folder.load(tiny_run).vae, VAE.load(run_bundle, threads=1)
    eps = noise.normal(SEED, noise.POSTERIOR, noise.index(bits.numpy()), trained.latent_dim)
    expected = trained.terms(bits, torch.from_numpy(eps))
    got = runtime.terms(bits.numpy(), seed=SEED)
    for a, b in (
        (got.elbo, expected.elbo),
        (got.reconstruction, expected.reconstruction),
        (got.kl, expected.kl),
        (runtime.elbo(bits.numpy(), seed=SEED), expected.elbo),
    ):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-3)
    other = runtime.elbo(bits.numpy(), seed=SEED + 1)
    assert np.abs(other - expected.elbo.numpy()).max() > 0.1  # the noise matters at this precision


@torch.no_grad()
def test_importance_weighted_bound_agrees_with_pytorch(data_root: Path, tiny_run: Path, run_bundle: Path) -> None:
    """The bounds of both sides, each with its own noise at K = 200, have the same mean within their spread."""
    bits = observed(data_root, 50)
    trained, runtime = run_folder.load(tiny_run).vae, VAE.load(run_bundle, threads=1)
    weights = trained.log_weights(bits, 200, torch.Generator().manual_seed(0)).double()
    bound = (torch.logsumexp(weights, dim=0) - np.log(200)).numpy()
    error = ((weights - torch.from_numpy(bound)).exp().std(dim=0) / 200**0.5).numpy()  # delta method, per image
    difference = runtime.log_likelihood(bits.numpy(), 200, seed=SEED) - bound
    assert abs(difference.mean()) < 5 * np.sqrt(2 * (error**2).sum()) / 50
