"""Priors p(z) in NumPy: draws of z, and log-probabilities in nats. The trainer has their twins."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import noise
from vae_runtime.errors import BundleError
from vae_runtime.manifest import Named
from vae_runtime.observation import Shape

Floats = NDArray[np.float32]
Nats = NDArray[np.float64]


class Prior(Protocol):
    """What every prior offers. A latent z has the `shape` of a prior; leading axes are free."""

    name: str
    shape: Shape

    def sample(self, seed: int, index: ArrayLike) -> Floats:
        """z ~ p(z), float32 [len(index), *shape], of this seed's noise of the stream `noise.PRIOR`."""

    def log_prob(self, z: Floats) -> Nats:
        """log p(z), nats, float64 [...], from z [..., *shape]."""

    def log_ratio(self, z: Floats, eps: Floats, logsigma: Floats) -> Nats:
        """log p(z) - log q(z|x) of z = mu + sigma * eps, nats, float64 [...], from arrays [..., *shape]."""

    def kl(self, mu: Floats, logsigma: Floats) -> Nats | None:
        """KL(N(mu, sigma^2) || p(z)) of each latent, nats, float64 [batch, *shape]; None without a closed form."""


class StandardNormal:
    """p(z) = N(0, I)."""

    name = "standard-normal"

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._axes = tuple(range(-len(shape), 0))

    def sample(self, seed: int, index: ArrayLike) -> Floats:
        """Standard normal draws, float32 [len(index), *shape]."""
        return noise.normal(seed, noise.PRIOR, index, math.prod(self.shape)).reshape(-1, *self.shape)

    def log_prob(self, z: Floats) -> Nats:
        """-1/2 sum(z^2 + log 2 pi), nats, float64 [...]."""
        squares: Nats = np.square(z.astype(np.float64)).sum(axis=self._axes)
        return -0.5 * (squares + math.prod(self.shape) * math.log(2 * math.pi))

    def log_ratio(self, z: Floats, eps: Floats, logsigma: Floats) -> Nats:
        """Sum of 1/2 (eps^2 - z^2) + logsigma: the 2 pi terms cancel."""
        ratio: Nats = (0.5 * (eps**2 - z**2) + logsigma).sum(axis=self._axes, dtype=np.float64)
        return ratio

    def kl(self, mu: Floats, logsigma: Floats) -> Nats:
        """1/2 (sigma^2 + mu^2 - 2 logsigma - 1) of each latent, nats, float64 [batch, *shape].

        Kingma and Welling (2014, arXiv:1312.6114), appendix B.
        """
        mu64, logsigma64 = mu.astype(np.float64), logsigma.astype(np.float64)
        kl: Nats = 0.5 * (np.exp(2 * logsigma64) + mu64**2 - 2 * logsigma64 - 1)
        return kl


KNOWN: dict[str, Callable[..., Prior]] = {StandardNormal.name: StandardNormal}


def kl_of_draw(prior: Prior, mu: NDArray[Any], logsigma: NDArray[Any], eps: Floats) -> Nats:
    """KL(q(z|x) || p(z)), nats, float64 [batch], from arrays [batch, *shape].

    In closed form where the prior has one; else as one draw z = mu + sigma * eps estimates it, log q(z|x) - log p(z).
    """
    of_each = prior.kl(mu, logsigma)
    if of_each is None:
        return -prior.log_ratio(mu + np.exp(logsigma) * eps, eps, logsigma)
    kl: Nats = of_each.reshape(len(mu), -1).sum(axis=1)
    return kl


def make(named: Named, shape: Shape) -> Prior:
    """The prior that a contract names, of latents of this shape. Raises BundleError for one that is not known."""
    try:
        return KNOWN[named.name](shape, **named.settings)
    except (KeyError, TypeError, ValueError):
        which = f"{named.name!r} {named.settings or ''}".strip()[:120]
        raise BundleError("unknown prior", which, "use a newer release of vae-edge, or export again") from None
