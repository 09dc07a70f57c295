"""VAEs from elsewhere are exported as they are: the runtime's ELBO is the one that their own code computes."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import vae_export
from support import elsewhere
from vae_runtime import VAE, noise

QUICK = ("tutorial", "tanh", "heads")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in elsewhere.ORIGINS]
)
@torch.no_grad()
def test_the_runtimes_elbo_is_the_origins_own(name: str, tmp_path: Path) -> None:
    """Within 1e-3 nats, of each observation, with the same noise; nothing is said against a right description."""
    origin = elsewhere.make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", vae_export.DescriptionWarning)
        exported = vae_export.export(**origin.given, out=tmp_path / "bundle")
    assert all(row.passed for row in exported.comparisons)
    assert re.fullmatch(r"<.*bundle': fp32, 40 comparisons passed, ELBO -?[\d.]+ nats per \w+>", repr(exported))
    vae = VAE.load(exported.path)
    eps = noise.normal(0, noise.POSTERIOR, noise.index(origin.x), vae.latent_dim).reshape(-1, *vae.latent_shape)
    expected = origin.elbo(origin.taken, torch.from_numpy(eps)).double() + origin.jacobian
    got = vae.elbo(origin.x)
    off = np.abs(got - expected.numpy()).max()
    print(f"{name}: {len(exported.comparisons)} rows, ELBO {got.mean():.2f}, off by {off:.1e} nats")
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=0)
