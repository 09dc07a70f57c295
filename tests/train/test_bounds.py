"""Figures of a trained VAE: against closed forms, torch.distributions in float64 and NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.runs import OF_PIXELS
from vae_train import bounds, likelihoods, networks
from vae_train.config import PRESETS
from vae_train.vae import VAE, Terms

LEVELS = torch.randint(0, 256, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def untrained(likelihood: str = "bernoulli") -> VAE:
    """A small VAE with seeded weights."""
    torch.manual_seed(0)
    config = PRESETS["tutorial"].replace(likelihood=likelihood, hidden=(8,), latent_dim=3)
    vae = networks.build(config, (1, 4, 4))
    networks.start_at_constant(vae, torch.full((1, 4, 4), 0.4), torch.full((1, 4, 4), 0.3))
    return vae


class Linear(nn.Module):
    """A linear Gaussian model's networks: loc = W z + b, and its exact posterior, or one that is too wide."""

    def __init__(self, widen: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        basis, _ = torch.linalg.qr(torch.randn(16, 2))
        self.weight = nn.Parameter(basis * torch.tensor([0.9, 0.4]))  # orthogonal: the posterior is diagonal
        self.bias = nn.Parameter(torch.full((16,), 0.5))
        self.sigma, self.widen = 0.3, widen

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log sigma of p(z|x)."""
        precision = 1 + self.weight.square().sum(dim=0) / self.sigma**2
        mu = (x.flatten(1) - self.bias) @ self.weight / self.sigma**2 / precision
        return mu, (-0.5 * precision.log() + math.log(self.widen)).expand_as(mu)

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z)."""
        return (z @ self.weight.T + self.bias).unflatten(1, (1, 4, 4))

    def vae(self) -> VAE:
        """As a VAE."""
        encoder, decoder = nn.Module(), nn.Module()
        encoder.forward, decoder.forward = self.encode, self.decode  # type: ignore[method-assign]
        decoder.weight = self.weight
        gaussian = likelihoods.Gaussian()
        with torch.no_grad():
            gaussian.logsigma.fill_(math.log(self.sigma))
        return VAE(encoder, decoder, 2, gaussian)

    def log_prob(self, levels: Tensor) -> Tensor:
        """The exact log p(x) = log N(b, W W^T + sigma^2 I), float64."""
        weight = self.weight.detach().double()
        covariance = weight @ weight.T + self.sigma**2 * torch.eye(16).double()
        marginal = torch.distributions.MultivariateNormal(self.bias.detach().double(), covariance)
        return marginal.log_prob(levels.flatten(1).double() / 255)


def reference(vae: VAE, x: Tensor, parameters: Tensor) -> Tensor:
    """log p(x|z) in float64, pixel by pixel: [n]."""
    parameters = parameters.double()
    if isinstance(vae.likelihood, likelihoods.Bernoulli):
        values = torch.distributions.Bernoulli(logits=parameters).log_prob(x.round())
    elif isinstance(vae.likelihood, likelihoods.Gaussian):
        values = torch.distributions.Normal(parameters, vae.likelihood.logsigma.double().exp()).log_prob(x)
    else:
        loc, scale = parameters[:, :1], parameters[:, 1:].exp()
        above = torch.where(x == 1, 1.0, torch.sigmoid((x + 1 / 510 - loc) / scale))
        below = torch.where(x == 0, 0.0, torch.sigmoid((x - 1 / 510 - loc) / scale))
        values = (above - below).log()
    return values.sum(dim=(1, 2, 3))


@torch.no_grad()
@pytest.mark.parametrize("likelihood", OF_PIXELS)
def test_measured_terms_are_those_of_each_image(likelihood: str) -> None:
    """One draw of z from a seeded generator, log p(x|z) and the KL in closed form, for every likelihood."""
    vae = untrained(likelihood)
    levels = (LEVELS >= 128).to(torch.uint8) * 255 if likelihood == "bernoulli" else LEVELS
    x = levels.double() / 255
    measured = bounds.measure(vae, levels, seed=4)
    mu, logsigma = vae.encoder(x.float())
    assert torch.equal(measured.mu, mu)
    z = mu + logsigma.exp() * torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(4))[0]
    expected = reference(vae, x, vae.decoder(z))
    torch.testing.assert_close(measured.terms.reconstruction.double(), expected, rtol=1e-4, atol=1e-3)
    q = torch.distributions.Normal(mu.double(), logsigma.double().exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(measured.terms.kl.double(), kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(measured.kl.sum(dim=1), measured.terms.kl, rtol=1e-6, atol=1e-6)


def test_the_seed_decides_the_draw() -> None:
    """Equal seeds give equal figures, whatever PyTorch's own generator did; another seed gives others."""
    vae = untrained("gaussian")
    first, again, other = (bounds.measure(vae, LEVELS, seed).terms.elbo for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    found = [bounds.log_likelihood(vae, LEVELS, 5, seed, quiet=True) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("pixels", [1, 70, 10**6], ids=["one image at a time", "four", "all"])
@pytest.mark.parametrize("num_samples", [1, 2, 9])
def test_the_bound_is_exact_under_the_exact_posterior(
    monkeypatch: pytest.MonkeyPatch, num_samples: int, pixels: int
) -> None:
    """A linear Gaussian model has log p(x) in closed form; so does the ELBO, and any K, in whatever pieces."""
    monkeypatch.setattr(bounds, "_PIXELS", pixels)
    model = Linear()
    exact = model.log_prob(LEVELS)
    bound = bounds.log_likelihood(model.vae(), LEVELS, num_samples, quiet=True)
    assert bound.dtype == torch.float64
    torch.testing.assert_close(bound, exact, rtol=1e-5, atol=1e-3)


def test_measured_in_pieces_the_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """mu and KL of image i stand in row i, however many images are decoded at once."""
    vae = untrained("gaussian")
    whole = bounds.measure(vae, LEVELS)
    monkeypatch.setattr(bounds, "_PIXELS", 70)
    pieces = bounds.measure(vae, LEVELS)
    torch.testing.assert_close(pieces.mu, whole.mu)
    torch.testing.assert_close(pieces.kl, whole.kl)
    assert pieces.terms.elbo.shape == (30,)


def test_more_samples_tighten_the_bound() -> None:
    """Under a posterior that is too wide the mean bound rises with K towards log p(x), which it does not pass."""
    model = Linear(widen=2.0)
    exact = model.log_prob(LEVELS).mean().item()
    found = [bounds.log_likelihood(model.vae(), LEVELS, k, quiet=True).mean().item() for k in (1, 10, 1000)]
    elbo = bounds.measure(model.vae(), LEVELS).terms.elbo.mean().item()
    assert elbo < exact - 0.3
    assert found[0] < found[1] < found[2]
    assert found[2] == pytest.approx(exact, abs=0.02)


def test_a_figure_is_mean_and_standard_error() -> None:
    """As NumPy gives them in float64; of one image the error is not known: neither 0 nor NaN."""
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) - 1e4
    expected = values.double().numpy()
    assert bounds.figure(values) == {
        "mean": pytest.approx(expected.mean(), rel=1e-12),
        "standard_error": pytest.approx(expected.std(ddof=1) / 500**0.5, rel=1e-9),
    }
    assert bounds.figure(torch.tensor([-3.0])) == {"mean": -3.0, "standard_error": None}


def test_a_summary_has_figures_quantiles_and_the_kl_by_dimension() -> None:
    """Each as NumPy computes it; the dimensions' KLs add up to the mean KL."""
    measured = bounds.measure(untrained("gaussian"), LEVELS)
    summary = bounds.summary(measured)
    terms: Terms = measured.terms
    for name, values in {"elbo": terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl}.items():
        assert summary["figures"][name] == bounds.figure(values)
        expected = np.quantile(values.double().numpy(), summary["quantiles"]["levels"])
        np.testing.assert_allclose(summary["quantiles"][name], expected, rtol=1e-12)
    assert len(summary["kl_per_dimension"]) == 3
    assert sum(summary["kl_per_dimension"]) == pytest.approx(terms.kl.mean().item(), rel=1e-5)


@pytest.mark.parametrize("dimensions", [1, 3 * 32 * 32])
def test_bits_per_dimension_of_uniform_levels_are_eight(dimensions: int) -> None:
    """p(x) = 256^-dimensions has 8 bits for each, and a likelihood of 1 has none."""
    assert bounds.bits_per_dimension(-dimensions * math.log(256), dimensions) == pytest.approx(8)
    assert bounds.bits_per_dimension(0.0, dimensions) == 0


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_nothing(training: bool) -> None:
    """Dropout is off and batch statistics are kept while a person's networks are measured, and as before afterwards."""
    vae = untrained("gaussian")
    vae.encoder = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), vae.encoder)
    vae.train(training)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    first, again = (bounds.measure(vae, LEVELS).terms.elbo for _ in range(2))
    found = [bounds.log_likelihood(vae, LEVELS, 3, quiet=True) for _ in range(2)]
    assert torch.equal(first, again)
    assert torch.equal(found[0], found[1])
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(module.training is training for module in vae.modules())
