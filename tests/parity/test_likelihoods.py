"""The runtime's likelihoods against torch.distributions in float64."""

import math

import numpy as np
import pytest
import torch

from vae_runtime import noise
from vae_runtime.likelihoods import Bernoulli, DiscretisedLogistic, Gaussian

BERNOULLI = Bernoulli(3)
LOGISTIC = DiscretisedLogistic(3)


def draw_logits(rows: int, *shape: int, scale: float = 4) -> np.ndarray:
    """Seeded logits of about `scale`, float32 [rows, *shape]."""
    return scale * noise.normal(9, noise.PRIOR, np.arange(rows), math.prod(shape)).reshape(rows, *shape)


def torch_bernoulli(logits: np.ndarray) -> torch.distributions.Bernoulli:
    """PyTorch's Bernoulli in float64."""
    return torch.distributions.Bernoulli(logits=torch.from_numpy(logits.astype(np.float64)))


def test_mean_is_torchs():
    """theta agrees with torch.distributions to float32's precision, small thetas to relative precision."""
    logits = draw_logits(50, 1, 7, 5, scale=10)
    theta = BERNOULLI.mean(logits)
    assert theta.dtype == np.float32
    assert theta.shape == logits.shape
    np.testing.assert_allclose(theta, torch_bernoulli(logits).mean.numpy(), rtol=1e-6, atol=0)


def test_log_prob_is_torchs():
    """log p(x|z) in nats agrees with torch.distributions, summed over all pixels of an image."""
    logits = draw_logits(50, 2, 7, 5)
    x = (noise.uniform(1, noise.PIXELS, np.arange(50), 70).reshape(logits.shape) < 0.5).astype(np.float32)
    expected = torch_bernoulli(logits).log_prob(torch.from_numpy(x.astype(np.float64))).sum((1, 2, 3)).numpy()
    got = BERNOULLI.log_prob(x, logits)
    assert got.dtype == np.float64
    assert got.shape == (50,)
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("logsigma", [-3.0, 0.0, 1.5])
def test_gaussian_is_torchs(logsigma: float):
    """Mean and log-density of N(loc, sigma^2) agree with torch.distributions, summed over all pixels of an image."""
    loc, x = draw_logits(20, 2, 3, 5, scale=0.5), draw_logits(20, 2, 3, 5, scale=1)[::-1]
    normal = torch.distributions.Normal(torch.from_numpy(loc.astype(np.float64)), math.exp(logsigma))
    expected = normal.log_prob(torch.from_numpy(x.astype(np.float64))).sum((1, 2, 3)).numpy()
    got = Gaussian(3, logsigma).log_prob(x, loc)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(Gaussian(3, logsigma).mean(loc), loc)


def level_probabilities(loc: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
    """P(level) for the 256 levels, last axis, by differences of the logistic's distribution function in float64."""
    loc, log_scale = (torch.as_tensor(v, dtype=torch.float64)[..., None] for v in (loc, log_scale))
    transforms = torch.distributions.transforms
    logistic = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros((), dtype=torch.float64), 1),
        [transforms.SigmoidTransform().inv, transforms.AffineTransform(loc, log_scale.clamp(-7, 7).exp())],
        validate_args=False,
    )
    inner = logistic.cdf((torch.arange(255, dtype=torch.float64) + 0.5) / 255)  # at the edges between the 256 bins
    ends = torch.zeros_like(inner[..., :1])
    return torch.diff(torch.cat([ends, inner, ends + 1], dim=-1)).numpy()


def test_logistic_log_prob_is_torchs():
    """Log-probabilities of levels agree with differences of torch's logistic cdf, the tails given to 0 and 255."""
    loc = 0.5 + draw_logits(40, 2, 3, 5, scale=0.3).clip(-0.6, 0.6)
    log_scale = -1.5 + draw_logits(40, 2, 3, 5, scale=0.5)[::-1].clip(-1, 1)
    levels = np.arange(40 * 30).reshape(loc.shape) % 256
    p = np.take_along_axis(level_probabilities(loc, log_scale), levels[..., None], axis=-1)
    got = LOGISTIC.log_prob((levels / 255).astype(np.float32), np.concatenate([loc, log_scale], axis=1))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, np.log(p).sum((1, 2, 3, 4)), rtol=1e-5)
