"""Each likelihood from PyTorch to the device: exported through the numeric gate, and the same numbers on both sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.runs import make_vae
from vae_export import exporter
from vae_runtime import VAE, noise
from vae_runtime.bundle import read
from vae_runtime.observation import SERIES, Observation
from vae_runtime.verify import verify
from vae_train.vae import VAE as TorchVAE

SMALL = {"hidden": (24,), "latent_dim": 3}


@torch.no_grad()
def assert_the_device_agrees(vae: TorchVAE, device: VAE, x: NDArray[np.float32]) -> None:
    """Golden vectors pass; terms of the ELBO and means are PyTorch's, and draws lie in the support."""
    assert all(row.passed for row in verify(read(device.path)))
    eps = noise.normal(3, noise.POSTERIOR, noise.index(x), vae.latent_dim)
    expected, got = vae.terms(torch.from_numpy(x), torch.from_numpy(eps)), device.terms(x, seed=3)
    for name in ("elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name).numpy(), rtol=1e-5, atol=1e-3)
    means = vae.likelihood.mean(vae.decoder(vae.encoder(torch.from_numpy(x))[0]))
    np.testing.assert_allclose(device.reconstruct(x), means.numpy(), rtol=1e-4, atol=1e-4)
    assert device.likelihood.supports(device.sample(50, seed=1).astype(np.float32)).all()


def exported(vae: TorchVAE, observation: Observation, x: NDArray[Any], out: Path) -> VAE:
    """The VAE on the device, through the gate."""
    exporter.export(vae, observation, x, out)
    return VAE.load(out, threads=1)


@pytest.mark.parametrize("sigma", ["one", "column", "value"])
def test_values_share_a_sigma(sigma: str, tmp_path: Path) -> None:
    """Of images and of series: the contract has as many numbers as there are sigmas, and the device as many again."""
    for shape in ((3, 4, 5), (3, 6)):
        vae, levels = make_vae("tutorial", "gaussian", shape, sigma=sigma, **SMALL)
        observation = Observation.image(shape) if len(shape) == 3 else Observation(SERIES, shape, None)
        x = levels.numpy() if len(shape) == 3 else levels.float().numpy() / 255
        device = exported(vae, observation, x, tmp_path / str(len(shape)))
        settings = device.manifest.contract.likelihood.settings
        many = {"one": (), "column": (3, *[1] * (len(shape) - 1)), "value": shape}[sigma]
        assert vae.likelihood.logsigma.shape == device.likelihood.logsigma.shape == many
        np.testing.assert_array_equal(np.ravel(settings["logsigma"]), device.likelihood.logsigma.ravel())
        assert_the_device_agrees(vae, device, (levels.float() / 255).numpy())
