"""The prior in float64 against torch.distributions, its gradients against autograd, for latents of any shape."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vae_train.prior import StandardNormal

SHAPES = [(7,), (2, 3, 4)]


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Seeded standard normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(mu: torch.Tensor, logsigma: torch.Tensor) -> tuple[Normal, Normal]:
    """q(z|x) and p(z)."""
    return Normal(mu, logsigma.exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_agrees_with_torch_distributions(shape: tuple[int, ...]) -> None:
    """One number for each latent of each observation."""
    mu, logsigma = 3 * normal(50, *shape, seed=0), normal(50, *shape, seed=1)
    kl = StandardNormal(shape).kl(mu, logsigma)
    assert kl.shape == (50, *shape)
    torch.testing.assert_close(kl, kl_divergence(*reference(mu, logsigma)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mu", "sigma", "expected"),
    [
        ([0.0, 0.0], [1.0, 1.0], 0.0),
        ([3.0, 0.0], [1.0, 1.0], 4.5),
        ([0.0, 0.0], [2.0, 1.0], 1.5 - math.log(2)),
        ([1.0, -2.0], [0.5, 3.0], 2.5 + (0.25 - 1) / 2 + math.log(2) + 4 - math.log(3)),
    ],
)
def test_kl_by_hand(mu: list[float], sigma: list[float], expected: float) -> None:
    """The KL equals values worked out by hand, zero at the prior."""
    kl = StandardNormal((2,)).kl(torch.tensor([mu]).double(), torch.tensor([sigma]).double().log())
    assert kl.sum().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_agree_with_torch_distributions(shape: tuple[int, ...]) -> None:
    """log p(z) and log p(z) - log q(z|x) of any z, K of them for each observation."""
    mu, logsigma, z = normal(5, *shape, seed=0), normal(5, *shape, seed=1), 3 * normal(4, 5, *shape, seed=2)
    q, p = (Independent(each, len(shape)) for each in reference(mu, logsigma))
    prior = StandardNormal(shape)
    torch.testing.assert_close(prior.log_prob(z), p.log_prob(z), rtol=1e-12, atol=1e-12)
    ratio = prior.log_ratio(mu, logsigma, z)
    assert ratio.shape == (4, 5)
    torch.testing.assert_close(ratio, p.log_prob(z) - q.log_prob(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_autograds(shape: tuple[int, ...]) -> None:
    """Of the KL in mu and logsigma, and of -log p(z) in z."""
    mu, logsigma = normal(5, *shape, seed=0).requires_grad_(), normal(5, *shape, seed=1).requires_grad_()
    prior, z = StandardNormal(shape), normal(4, 5, *shape, seed=2).requires_grad_()
    roots = [*prior.kl_roots(mu, logsigma, z), prior.root(z)]
    expected = torch.autograd.grad(prior.kl(mu, logsigma).sum() - prior.log_prob(z).sum(), (mu, logsigma, z))
    for (root, gradient), of, known in zip(roots, (mu, logsigma, z), expected, strict=True):
        assert root is of
        torch.testing.assert_close(gradient, known, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_are_standard_normal(shape: tuple[int, ...]) -> None:
    """Their mean and variance are within five standard errors of 0 and 1, in the type that is asked for."""
    torch.manual_seed(0)
    z = StandardNormal(shape).sample(2000, torch.zeros((), dtype=torch.float64))
    assert (z.shape, z.dtype) == ((2000, *shape), torch.float64)
    assert abs(z.mean()) < 5 * z.numel() ** -0.5
    assert abs(z.var() - 1) < 5 * (2 / z.numel()) ** 0.5
