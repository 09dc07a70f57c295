"""A Gaussian VAE of rows of numbers, from memory to the device: exported, gated, verified, checked and read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vae_export
from vae_export import candidate, check, gate, quantise, tradeoff
from vae_export.exporter import Exported
from vae_runtime import VAE
from vae_runtime.bundle import read
from vae_runtime.errors import BundleError, InputError
from vae_runtime.observation import VECTOR, Observation
from vae_runtime.verify import verify
from vae_train import likelihoods
from vae_train.vae import VAE as TorchVAE

ROWS = Observation(VECTOR, (6,), range=None)
LATENTS = 3


class Encoder(nn.Module):
    """A perceptron with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2 * LATENTS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [batch, 6] to mu and logsigma, both [batch, 3]."""
        mu, logsigma = self.body(x).chunk(2, dim=1)
        return mu, logsigma.clamp(-6, 2)


def readings(n: int, seed: int) -> NDArray[np.float32]:
    """Rows of six sensors that two hidden causes drive; their values are far from [0, 1]."""
    generator = np.random.default_rng(seed)
    causes = generator.standard_normal((n, 2)) @ generator.standard_normal((2, 6))
    return (5 * causes + 0.5 * generator.standard_normal((n, 6)) + [0, 20, -20, 3, 0, 100]).astype(np.float32)


@pytest.fixture(scope="module")
def vae() -> TorchVAE:
    """A small VAE after 200 steps on such rows, standardised by its own first layer."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(LATENTS, 32), nn.Tanh(), nn.Linear(32, 6))
    vae = TorchVAE(Encoder(), decoder, LATENTS, likelihoods.Gaussian(axes=1))
    x = torch.from_numpy(readings(256, 1))
    with torch.no_grad():
        vae.encoder.body[0].weight /= x.std(dim=0)
        vae.encoder.body[0].bias -= vae.encoder.body[0].weight @ x.mean(dim=0)
        decoder[2].bias.copy_(x.mean(dim=0))
        vae.likelihood.logsigma.fill_(float(np.log(5)))
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        loss = -vae.elbo(x).mean()
        loss.backward()
        optimiser.step()
    return vae.eval()


@pytest.fixture(scope="module")
def exported(vae: TorchVAE, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Its bundle, gated on rows of its own."""
    return vae_export.export_vae(vae, ROWS, readings(64, 2), tmp_path_factory.mktemp("vectors") / "bundle")


def test_the_gate_has_all_its_rows(exported: Exported) -> None:
    """As many comparisons as for images, on real rows, on rows far out and on made-up ones; all pass."""
    assert len(exported.comparisons) == 40
    assert all(comparison.passed for comparison in exported.comparisons)
    kinds = {comparison.inputs for comparison in exported.comparisons}
    assert kinds == {"real rows", "extremes", "patterns", "golden", "prior z", "posterior z", "far z"}
    assert "; ELBO of real rows within " in gate.brief(exported.comparisons)


def test_extremes_lie_far_out_by_the_rows_own_spread(vae: TorchVAE) -> None:
    """Where there is no range, 0 and 1 would be in the midst of the values: six standard deviations are not."""
    real = readings(64, 2)
    cases = {case.kind: case for case in gate.expect(vae, ROWS, real) if "mu" in case.expected}
    extremes, patterns = (cases[kind].inputs["x"] for kind in (gate.EXTREMES, gate.PATTERNS))
    low, high = real.mean(axis=0) - 6 * real.std(axis=0), real.mean(axis=0) + 6 * real.std(axis=0)
    np.testing.assert_allclose(extremes[:2], [low, high], rtol=1e-5)
    assert (low < real.min(axis=0)).all()
    assert (high > real.max(axis=0)).all()
    np.testing.assert_allclose(patterns[::2], 2 * real.mean(axis=0) - real[:32:2], rtol=1e-4, atol=1e-4)
    assert np.isin(patterns[1::2].round(3), np.stack([low, high]).round(3)).mean() > 0.99


def test_the_contract_says_what_the_rows_are(exported: Exported) -> None:
    """Kind, shape, no range, latents, prior and likelihood, in the manifest as in both graphs."""
    contract = read(exported.path).manifest.raw["contract"]
    assert contract.pop("pair")
    sigma = contract["likelihood"].pop("settings")
    assert sigma.keys() == {"logsigma"}
    assert contract == {
        "format": 2,
        "observation": {"kind": "vector", "shape": [6], "range": None},
        "latent_shape": [3],
        "prior": {"name": "standard-normal"},
        "likelihood": {"name": "gaussian"},
    }


@torch.no_grad()
def test_the_device_gives_pytorchs_numbers(vae: TorchVAE, exported: Exported) -> None:
    """Posterior, parameters and mean ELBO of new rows; golden vectors; and the check without a run."""
    bundle = read(exported.path)
    assert all(row.passed for row in verify(bundle))
    assert all(row.passed for row in check.alone(bundle))
    device, x = VAE.load(exported.path), readings(200, 3)
    for got, expected in zip(device.encode(x), vae.encoder(torch.from_numpy(x)), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
    z = np.random.default_rng(0).standard_normal((9, LATENTS), np.float32)
    np.testing.assert_allclose(device.parameters(z), vae.decoder(torch.from_numpy(z)), rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    many = torch.stack([vae.elbo(torch.from_numpy(x)) for _ in range(200)]).double()
    got = device.terms(x, num_samples=200, seed=1).elbo
    error = float(many.std(dim=0).mean() / np.sqrt(200 * 200))
    assert abs(got.mean() - float(many.mean())) < 8 * error
    assert device.sample(4, seed=1).shape == (4, 6)


def test_eight_bits_are_weighed_on_rows(vae: TorchVAE) -> None:
    """8-bit products pass their gate, and their cost is told per row."""
    plain, x = candidate.fp32(vae, ROWS, 17), readings(200, 2)
    made = quantise.int8(plain, x, max_nats=50)
    assert all(row.passed for row in gate.compare(made.vae, made.runtime(), x[:64]))
    cost = tradeoff.weigh(made, plain, x)
    assert cost.observations == 200
    assert "nats per row, mean of 200 test rows" in cost.table()


def test_bytes_of_binary_rows_are_0_and_1(tmp_path: Path) -> None:
    """Levels are of images alone: rows in uint8 are compared as the same rows in float32 are."""
    torch.manual_seed(0)
    binary = TorchVAE(Encoder(), nn.Linear(LATENTS, 6), LATENTS, likelihoods.Bernoulli()).eval()
    rows = (readings(64, 2) > 0).astype(np.uint8)
    both = [
        vae_export.export_vae(binary, Observation(VECTOR, (6,), (0.0, 1.0)), x, tmp_path / str(x.dtype)).comparisons
        for x in (rows, rows.astype(np.float32))
    ]
    assert both[0] == both[1]


def test_another_graph_is_refused(vae: TorchVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tanh that became a hard one, which rows near the mean hardly show, is found on those far out."""
    real = vae_export.exporter.onnx_graph.to_onnx

    def other(*given: object) -> object:
        model = real(*given)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("0.bias"))
        values = np.frombuffer(bias.raw_data, np.float32) * np.float32(1 + 1e-4)
        bias.raw_data = values.tobytes()
        return model

    monkeypatch.setattr(vae_export.exporter.onnx_graph, "to_onnx", other)
    with pytest.raises(vae_export.GateFailed):
        vae_export.export_vae(vae, ROWS, readings(64, 2), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (readings(8, 0)[:, :5], "rows of the wrong shape: [8, 5]; this model takes [batch, 6]"),
        (readings(0, 0), "no rows: an empty array; give real ones, 64 for the whole gate"),
        (np.full((8, 6), np.nan, np.float32), "NaN or infinite values: row 0; clean the data"),
    ],
)
def test_rows_that_are_none_are_named(vae: TorchVAE, tmp_path: Path, x: NDArray[np.float32], words: str) -> None:
    """Another number of columns, no rows and NaN, before any work."""
    with pytest.raises(InputError) as caught:
        vae_export.export_vae(vae, ROWS, x, tmp_path / "bundle")
    assert str(caught.value) == words


def test_a_likelihood_of_pixels_is_not_one_of_any_numbers(vae: TorchVAE, tmp_path: Path) -> None:
    """Bernoulli values lie in [0, 1]."""
    other = TorchVAE(vae.encoder, vae.decoder, LATENTS, likelihoods.Bernoulli(axes=1))
    with pytest.raises(BundleError, match="bernoulli"):
        vae_export.export_vae(other, ROWS, readings(8, 0), tmp_path / "bundle")
