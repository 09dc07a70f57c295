"""Latents in space, [C, h, w], of a small convolutional VAE: through the gate, the golden vectors and every verb."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vae_export
from support.runs import smooth_images
from vae_export import candidate, check, gate, quantise, tradeoff
from vae_export.exporter import Exported
from vae_runtime import VAE
from vae_runtime.bundle import read
from vae_runtime.observation import Observation
from vae_runtime.verify import verify
from vae_train import fingerprint
from vae_train.vae import VAE as TorchVAE

IMAGES = Observation.image((1, 16, 12))
LATENTS = (2, 4, 3)


class Encoder(nn.Module):
    """Convolutions to a grid of latents."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 4, stride=2, padding=1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images to mu and logsigma, both [batch, 2, 4, 3]."""
        mu, logsigma = self.body(x).chunk(2, dim=1)
        return mu, logsigma.clamp(-6, 2)


@pytest.fixture(scope="module")
def vae() -> TorchVAE:
    """Such a VAE of binary images, untrained."""
    torch.manual_seed(0)
    decoder = nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1), nn.SiLU(), nn.PixelShuffle(2), nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2)
    )
    return TorchVAE(Encoder(), decoder, LATENTS).eval()


@pytest.fixture(scope="module")
def exported(vae: TorchVAE, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Its bundle."""
    levels = smooth_images(64, IMAGES.shape).numpy()
    kept = fingerprint.compute(vae, levels)
    out = tmp_path_factory.mktemp("spatial") / "bundle"
    return vae_export.export_vae(vae, IMAGES, levels, out, fingerprint=kept)


def test_the_gate_goes_along_every_latent(vae: TorchVAE, exported: Exported) -> None:
    """All comparisons pass; far z are one for each of the 24 numbers of a latent."""
    assert len(exported.comparisons) == 40
    assert all(comparison.passed for comparison in exported.comparisons)
    assert next(one.batch for one in exported.comparisons if one.inputs == gate.FAR) == 24
    cases = gate.expect(vae, IMAGES, smooth_images(2, IMAGES.shape).numpy())
    far = next(case for case in cases if case.kind == gate.FAR)
    assert far.inputs["z"].shape == (24, *LATENTS)
    assert (far.inputs["z"].reshape(24, -1).argmax(axis=1) == np.arange(24)).all()


def test_far_z_of_large_latents_are_some(vae: TorchVAE) -> None:
    """Of 4,096 axes, 256 from all over, each once."""
    far = gate._far((4, 32, 32))
    assert far.shape == (256, 4, 32, 32)
    axes = far.reshape(256, -1).argmax(axis=1)
    assert len(set(axes)) == 256
    assert (axes.min(), axes.max()) == (0, 4095)


def test_the_contract_has_the_latents_shape(exported: Exported) -> None:
    """And the graphs and golden vectors have it."""
    bundle = read(exported.path)
    assert bundle.manifest.raw["contract"]["latent_shape"] == [2, 4, 3]
    golden = bundle.golden()
    assert {golden[name].shape for name in ("z", "eps", "mu", "logsigma")} == {(2, *LATENTS)}


@torch.no_grad()
def test_the_device_gives_pytorchs_numbers(vae: TorchVAE, exported: Exported) -> None:
    """Posterior, logits, the terms of the ELBO with the device's own noise; golden vectors; the check without a run."""
    bundle = read(exported.path)
    assert all(row.passed for row in verify(bundle))
    assert all(row.passed for row in check.alone(bundle))
    device = VAE.load(exported.path)
    assert (device.latent_shape, device.latent_dim) == (LATENTS, 24)
    x = device.sample(50, seed=3)
    for got, expected in zip(device.encode(x), vae.encoder(torch.from_numpy(x)), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
    z = np.random.default_rng(0).standard_normal((9, *LATENTS), np.float32)
    np.testing.assert_allclose(device.parameters(z), vae.decoder(torch.from_numpy(z)), rtol=1e-4, atol=1e-5)
    weights = vae.log_weights(torch.from_numpy(x), 500, torch.Generator().manual_seed(0)).double()
    bound = torch.logsumexp(weights, dim=0) - np.log(500)
    error = ((weights - bound).exp().std(dim=0) / np.sqrt(500)).square().sum().sqrt().item() / len(x)
    got = device.log_likelihood(x, 500, seed=2)
    assert abs((got - bound.numpy()).mean()) < 5 * np.sqrt(2) * error


def test_eight_bits_are_calibrated_on_latents_in_space(vae: TorchVAE) -> None:
    """8-bit products pass their gate; float16 weights are a matter of weights alone."""
    levels = smooth_images(64, IMAGES.shape).numpy()
    made = quantise.int8(candidate.fp32(vae, IMAGES, 17), tradeoff.samples_of(vae, levels).train, max_nats=50)
    assert "QuantizeLinear" in {node.op_type for node in made.graphs["decoder"].graph.node}
    assert all(row.passed for row in gate.compare(made.vae, made.runtime(), levels))
