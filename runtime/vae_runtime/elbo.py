"""The ELBO, its terms and the importance-weighted bound, from draws of z that are weighed by the model."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Nats = NDArray[np.float64]


@dataclass(frozen=True)
class Terms:
    """The two terms of the ELBO per image, nats: elbo = reconstruction - kl.

    reconstruction, kl: float64 [batch]. kl_per_dimension: float64 [batch, latent_dim], its sum is kl.
    standard_error: float64 [batch], of the ELBO over the draws; NaN for one draw.
    """

    reconstruction: Nats
    kl_per_dimension: Nats
    standard_error: Nats

    @property
    def kl(self) -> Nats:
        """KL(q(z|x) || p(z)), nats, [batch]."""
        total: Nats = self.kl_per_dimension.sum(axis=1)
        return total

    @property
    def elbo(self) -> Nats:
        """E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, [batch]; higher is better."""
        return self.reconstruction - self.kl

    @classmethod
    def mean(cls, log_likelihood: Nats, kl: Nats, kl_per_dimension: Nats) -> "Terms":
        """The terms averaged over draws, log_likelihood [batch, num_samples] of them; kl is as many, or one for all."""
        images, num_samples = log_likelihood.shape
        elbo = log_likelihood - kl
        deviation = elbo.std(axis=1, ddof=1) if num_samples > 1 else np.full(images, np.nan)
        return cls(log_likelihood.mean(axis=1), kl_per_dimension, deviation / math.sqrt(num_samples))


class Draws(NamedTuple):
    """For a few images: log p(x|z_k) and log p(z_k) - log q(z_k|x), [images, num_samples], KL [images, latent_dim]."""

    log_likelihood: Nats
    log_ratio: Nats
    kl: Nats

    def terms(self) -> Terms:
        """Both terms of the ELBO, the reconstruction averaged over the draws."""
        return Terms.mean(self.log_likelihood, self.kl.sum(axis=1)[:, None], self.kl)

    def bound(self) -> Nats:
        """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), nats, [images]."""
        log_weights = self.log_likelihood + self.log_ratio
        top = log_weights.max(axis=1)
        bound: Nats = top + np.log(np.exp(log_weights - top[:, None]).mean(axis=1))
        return bound


def kl_per_dimension(mu: Floats, logsigma: Floats) -> Nats:
    """KL(N(mu, sigma^2) || N(0, 1)) = 1/2 (sigma^2 + mu^2 - 2 logsigma - 1) per dimension, nats, float64.

    Kingma and Welling (2014, arXiv:1312.6114), appendix B. mu, logsigma and the result: [batch, latent_dim].
    """
    mu64, logsigma64 = mu.astype(np.float64), logsigma.astype(np.float64)
    per_dimension: Nats = 0.5 * (np.exp(2 * logsigma64) + mu64**2 - 2 * logsigma64 - 1)
    return per_dimension


def log_ratio(z: Floats, eps: Floats, logsigma: Floats) -> Nats:
    """log p(z) - log q(z|x) for z = mu + sigma * eps, nats, float64 [...], from arrays [..., latent_dim]."""
    # the 2 pi terms cancel
    ratio: Nats = (0.5 * (eps**2 - z**2) + logsigma).sum(axis=-1, dtype=np.float64)
    return ratio
