"""Priors p(z) in NumPy: draws of z, and log-probabilities in nats. The trainer has their twins."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import noise
from vae_runtime.errors import BundleError
from vae_runtime.manifest import Named
from vae_runtime.observation import Shape

_MOST_ROWS = 512  # of a learned prior's graph at once

Floats = NDArray[np.float32]
Nats = NDArray[np.float64]


class Prior(Protocol):
    """What every prior offers. A latent z has the `shape` of a prior; leading axes are free."""

    name: str
    shape: Shape

    def sample(self, seed: int, index: ArrayLike) -> Floats:
        """z ~ p(z), float32 [len(index), *shape], of this seed's noise of the stream `noise.PRIOR`."""

    def from_noise(self, noise: Floats) -> Floats:
        """z ~ p(z) that standard normal noise becomes, both float32 [..., *shape]."""

    def to_noise(self, z: Floats) -> Floats:
        """The noise that becomes z, both float32 [..., *shape]."""

    def log_prob(self, z: Floats) -> Nats:
        """log p(z), nats, float64 [...], from z [..., *shape]."""

    def log_ratio(self, z: Floats, eps: Floats, logsigma: Floats) -> Nats:
        """log p(z) - log q(z|x) of z = mu + sigma * eps, nats, float64 [...], from arrays [..., *shape]."""

    def kl(self, mu: Floats, logsigma: Floats) -> Nats | None:
        """KL(N(mu, sigma^2) || p(z)) of each latent, nats, float64 [batch, *shape]; None without a closed form."""


class Graph(Protocol):
    """A learned prior's graph, of as many rows as it is given at once."""

    def from_noise(self, noise: Floats) -> Floats:
        """z of noise, both float32 [rows, *shape]."""

    def to_noise(self, z: Floats) -> tuple[Floats, Floats]:
        """The noise that becomes z, float32 [rows, *shape], and log p(z), float32 [rows]."""


class StandardNormal:
    """p(z) = N(0, I)."""

    name = "standard-normal"

    def __init__(self, shape: Shape, graph: Graph | None = None) -> None:
        """graph: a bundle's, of which this prior needs none."""
        self.shape = shape
        self._axes = tuple(range(-len(shape), 0))

    def sample(self, seed: int, index: ArrayLike) -> Floats:
        """Standard normal draws, float32 [len(index), *shape]."""
        return standard_normal(self.shape, seed, index)

    def from_noise(self, noise: Floats) -> Floats:
        """The noise itself."""
        return noise

    def to_noise(self, z: Floats) -> Floats:
        """z itself."""
        return z

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


class Flow:
    """p(z) as the density of what a normalising flow, a bundle's `graph`, makes of standard normal noise."""

    name = "flow"

    def __init__(self, shape: Shape, graph: Graph) -> None:
        self.shape = shape
        self._graph = graph
        self._axes = tuple(range(-len(shape), 0))

    def sample(self, seed: int, index: ArrayLike) -> Floats:
        """What standard normal draws become, float32 [len(index), *shape]."""
        return self.from_noise(standard_normal(self.shape, seed, index))

    def from_noise(self, noise: Floats) -> Floats:
        """z of noise, both float32 [..., *shape]."""
        return self._by_rows(lambda rows: [self._graph.from_noise(rows)], noise)[0]

    def to_noise(self, z: Floats) -> Floats:
        """The noise that becomes z, both float32 [..., *shape]."""
        return self._by_rows(self._graph.to_noise, z)[0]

    def log_prob(self, z: Floats) -> Nats:
        """log N(noise; 0, I) + log |d noise / d z| of the noise that becomes z, nats, float64 [...].

        Dinh, Sohl-Dickstein and Bengio (2017, arXiv:1605.08803), eq. 3.
        """
        return self._by_rows(self._graph.to_noise, z)[1].astype(np.float64)

    def log_ratio(self, z: Floats, eps: Floats, logsigma: Floats) -> Nats:
        """log p(z) + the sum of 1/2 (eps^2 + log 2 pi) + logsigma."""
        of_q: Nats = (0.5 * (eps**2 + math.log(2 * math.pi)) + logsigma).sum(axis=self._axes, dtype=np.float64)
        return self.log_prob(z) + of_q

    def kl(self, mu: Floats, logsigma: Floats) -> None:
        """It has no closed form."""

    def _by_rows(self, run: Callable[[Floats], Sequence[Floats]], values: Floats) -> list[Floats]:
        """What the graph gives of values [..., *shape], each with these leading axes."""
        lead = values.shape[: values.ndim - len(self.shape)]
        rows = np.asarray(values, np.float32).reshape(-1, *self.shape)
        parts = [run(rows[i : i + _MOST_ROWS]) for i in range(0, max(1, len(rows)), _MOST_ROWS)]
        outputs = [np.concatenate(each) for each in zip(*parts, strict=True)]
        return [output.reshape(*lead, *output.shape[1:]) for output in outputs]


KNOWN: dict[str, Callable[..., Prior]] = {StandardNormal.name: StandardNormal, Flow.name: Flow}


def standard_normal(shape: Shape, seed: int, index: ArrayLike) -> Floats:
    """The noise that samples are made of, float32 [len(index), *shape]: that of the stream `noise.PRIOR`."""
    return noise.normal(seed, noise.PRIOR, index, math.prod(shape)).reshape(-1, *shape)


def kl_of_draw(prior: Prior, mu: NDArray[Any], logsigma: NDArray[Any], eps: Floats) -> Nats:
    """KL(q(z|x) || p(z)), nats, float64 [batch], from arrays [batch, *shape].

    In closed form where the prior has one; else as one draw z = mu + sigma * eps estimates it, log q(z|x) - log p(z).
    """
    of_each = prior.kl(mu, logsigma)
    if of_each is None:
        return -prior.log_ratio(mu + np.exp(logsigma) * eps, eps, logsigma)
    kl: Nats = of_each.reshape(len(mu), -1).sum(axis=1)
    return kl


def make(named: Named, shape: Shape, graph: Graph | None = None) -> Prior:
    """The prior that a contract names, of latents of this shape; graph: the bundle's, which a learned one needs.

    Raises BundleError for one that is not known.
    """
    try:
        return KNOWN[named.name](shape, graph, **named.settings)
    except (KeyError, TypeError, ValueError):
        which = f"{named.name!r} {named.settings or ''}".strip()[:120]
        raise BundleError("unknown prior", which, "use a newer release of vae-edge, or export again") from None
