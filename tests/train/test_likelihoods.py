"""The Bernoulli log-likelihood against torch.distributions and against its NumPy twin in the runtime."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli

from vae_runtime import likelihoods
from vae_train.likelihoods import bernoulli_log_prob


def draws(*shape: int, scale: float = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeded binary images and logits in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, shape, generator=generator).double()
    return x, scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_agrees_with_torch_distributions() -> None:
    """The sum over pixels equals torch.distributions' in float64, one number per image."""
    x, logits = draws(6, 3, 5, 4)
    log_prob = bernoulli_log_prob(x, logits)
    assert log_prob.shape == (6,)
    expected = Bernoulli(logits=logits).log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)


def test_leading_axes_of_the_logits_are_kept() -> None:
    """Logits [K, batch, C, H, W] give [K, batch], each image against its own logits."""
    x, logits = draws(2, 1, 3, 3)
    many = torch.stack([logits, 2 * logits, -logits])
    expected = torch.stack([bernoulli_log_prob(x, row) for row in many])
    assert expected.shape == (3, 2)
    torch.testing.assert_close(bernoulli_log_prob(x, many), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("scale", [0.1, 5, 1000])
def test_agrees_with_the_runtime(dtype: type, tolerance: float, scale: float) -> None:
    """PyTorch and NumPy give the same nats for the same logits."""
    x, logits = (tensor.numpy().astype(dtype) for tensor in draws(6, 1, 28, 28, scale=scale))
    expected = bernoulli_log_prob(torch.from_numpy(x), torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(likelihoods.Bernoulli().log_prob(x, logits), expected, rtol=tolerance)


@pytest.mark.parametrize(
    ("x", "logit", "expected"),
    [(1, 0, -math.log(2)), (1, 1e4, 0), (0, -1e4, 0), (0, 1e4, -1e4), (1, -1e4, -1e4), (0, 3e38, -3e38)],
)
def test_known_values_at_the_extremes(x: float, logit: float, expected: float) -> None:
    """One pixel at extreme logits gives the limit, never NaN or infinity."""
    pixel, logits = torch.full((1, 1, 1, 1), float(x)), torch.full((1, 1, 1, 1), float(logit))
    assert bernoulli_log_prob(pixel, logits).item() == pytest.approx(expected, rel=1e-6)
