"""The prior against closed forms and sums in float64, for latents of any shape."""

import math

import numpy as np
import pytest

from vae_runtime import BundleError, noise
from vae_runtime.manifest import Named
from vae_runtime.prior import StandardNormal, make

SHAPES = [(6,), (1,), (2, 3, 4)]


def draw(seed: int, rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """Seeded normals, float32 [rows, *shape]."""
    return np.random.default_rng(seed).standard_normal((rows, *shape), np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_the_noise_of_their_index(shape: tuple[int, ...]):
    """A latent has the draws of its own index, in C order, whatever is drawn beside it."""
    prior, size = StandardNormal(shape), math.prod(shape)
    z = prior.sample(3, np.arange(5))
    assert (z.shape, z.dtype) == ((5, *shape), np.float32)
    np.testing.assert_array_equal(z.reshape(5, -1), noise.normal(3, noise.PRIOR, np.arange(5), size))
    np.testing.assert_array_equal(prior.sample(3, [4]), z[4:])


@pytest.mark.parametrize("shape", SHAPES)
def test_densities_are_the_normals(shape: tuple[int, ...]):
    """log p(z), log p(z) - log q(z|x) and KL are those of independent normals, written out in float64."""
    prior = StandardNormal(shape)
    mu, logsigma, eps = draw(1, 40, shape), 0.5 * draw(2, 40, shape) - 1, draw(3, 40, shape)
    z = mu + np.exp(logsigma) * eps

    def log_normal(x: np.ndarray, mean: np.ndarray | float, logsigma: np.ndarray | float) -> np.ndarray:
        x, mean, logsigma = np.float64(x), np.float64(mean), np.float64(logsigma)
        terms = -0.5 * ((x - mean) / np.exp(logsigma)) ** 2 - logsigma - 0.5 * math.log(2 * math.pi)
        return terms.reshape(len(x), -1).sum(axis=1)

    np.testing.assert_allclose(prior.log_prob(z), log_normal(z, 0, 0), rtol=1e-9)
    expected = log_normal(z, 0, 0) - log_normal(z, mu, logsigma)
    np.testing.assert_allclose(prior.log_ratio(z, eps, logsigma), expected, rtol=1e-4, atol=1e-4)
    sigma2 = np.exp(2 * logsigma.astype(np.float64))
    kl = 0.5 * (sigma2 + mu.astype(np.float64) ** 2 - 1) - logsigma
    np.testing.assert_allclose(prior.kl(mu, logsigma), kl, rtol=1e-6, atol=1e-9)
    assert prior.log_prob(z[:, None]).shape == (40, 1)  # leading axes are free


def test_the_kl_is_the_mean_of_the_log_ratio():
    """Over 200,000 draws of z, log q(z|x) - log p(z) has the closed-form KL as its mean, to 5 standard errors."""
    mu, logsigma = np.float32([0.5, -1, 2]), np.float32([-1, 0.3, 0])
    eps = draw(5, 200_000, (3,))
    ratio = StandardNormal((3,)).log_ratio(mu + np.exp(logsigma) * eps, eps, logsigma)
    kl = StandardNormal((3,)).kl(mu[None], logsigma[None]).sum()
    assert abs(-ratio.mean() - kl) < 5 * ratio.std() / math.sqrt(len(eps))


def test_unknown_priors_are_refused():
    """A contract names a prior that this release knows, or a newer one is needed."""
    assert make(Named("standard-normal"), (4,)).shape == (4,)
    with pytest.raises(BundleError, match="unknown prior: 'vamp'; use a newer release"):
        make(Named("vamp"), (4,))
