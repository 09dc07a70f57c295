"""Convolutions over time, from PyTorch to the runtime: the same numbers at the oldest opset and the newest."""

from pathlib import Path

import numpy as np
import pytest
import torch

import vae_export
from vae_export import onnx_graph
from vae_runtime import VAE
from vae_runtime.bundle import read
from vae_runtime.observation import Observation
from vae_runtime.verify import verify
from vae_train import networks
from vae_train.config import series


@pytest.mark.parametrize(
    ("opset", "precision"),
    [
        (onnx_graph.OLDEST_OPSET, "fp32"),
        (onnx_graph.newest_opset(), "fp32"),
        pytest.param(onnx_graph.OLDEST_OPSET, "int8", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_windows_have_pytorchs_numbers(tmp_path: Path, opset: int, precision: str) -> None:
    """Of a length that does not halve; the bundle verifies, and gives the posterior and the means."""
    shape = (3, 30)
    torch.manual_seed(0)
    vae = networks.build(series(shape, 1000).replace(hidden=(8, 16), dense=16, latent_dim=4), shape)
    waves = np.sin(np.arange(30) / 3 + np.random.default_rng(0).normal(size=(200, 3, 1)) * 2).astype(np.float32)
    observation = Observation("series", shape, None)
    vae_export.export_vae(vae, observation, waves, tmp_path / "bundle", opset=opset, precision=precision)
    assert all(row.passed for row in verify(read(tmp_path / "bundle")))
    if precision == "fp32":
        loaded = VAE.load(tmp_path / "bundle")
        mu, logsigma = vae.encoder(torch.from_numpy(waves))
        np.testing.assert_allclose(loaded.encode(waves), [mu, logsigma], atol=1e-5)
        np.testing.assert_allclose(loaded.reconstruct(waves), vae.decoder(mu), atol=1e-5)
