"""Draws of z, weighed by the model: the ELBO, its two terms, and the importance-weighted bound, in nats."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_runtime import likelihoods, noise, threads
from vae_runtime.errors import InputError
from vae_runtime.likelihoods import Likelihood
from vae_runtime.observation import Observation
from vae_runtime.prior import Prior
from vae_runtime.sessions import Sessions

_MOST_DRAWS = 1024  # of z whose noise is made at once: many short calls would keep threads from running side by side

Floats = NDArray[np.float32]
Nats = NDArray[np.float64]


class Terms(NamedTuple):
    """The two terms of the ELBO of each observation, nats: elbo = reconstruction - kl.

    reconstruction, kl: float64 [batch]; the KL is averaged over the draws where the prior has no closed form of it.
    standard_error: float64 [batch], of the ELBO over the draws; NaN for one draw. kl_per_dimension: float64 [batch,
    latent_dim], its sum is kl, and None without a closed form; latents of several axes are counted in C order.
    contributions: float64 [batch, *shape], what each value adds to the reconstruction, where that was asked for.
    """

    reconstruction: Nats
    kl: Nats
    standard_error: Nats
    kl_per_dimension: Nats | None
    contributions: Nats | None = None

    @property
    def elbo(self) -> Nats:
        """E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, [batch]; higher is better."""
        return self.reconstruction - self.kl

    @classmethod
    def mean(cls, log_likelihood: Nats, kl: Nats, kl_per_dimension: Nats | None, total: Nats | None = None) -> "Terms":
        """The terms averaged over draws, log_likelihood [batch, num_samples] of them; kl is as many, or one for all.

        total: the sum over the draws of log p of each value, [batch, *shape], if it is wanted.
        """
        rows, num_samples = log_likelihood.shape
        elbo = log_likelihood - kl
        deviation = elbo.std(axis=1, ddof=1) if num_samples > 1 else np.full(rows, np.nan)
        mean_kl = kl.mean(axis=1) if kl_per_dimension is None else kl_per_dimension.sum(axis=1)
        error = deviation / math.sqrt(num_samples)
        each = None if total is None else total / num_samples
        return cls(log_likelihood.mean(axis=1), mean_kl, error, kl_per_dimension, each)

    @classmethod
    def joined(cls, parts: Sequence["Terms"]) -> "Terms":
        """The terms of `parts`, one batch or more, one after the other."""
        figures: list[Any] = [
            None if any(part is None for part in each) else np.concatenate(each) for each in zip(*parts, strict=True)
        ]
        return cls(*figures)

    def rows(self, which: NDArray[np.intp]) -> "Terms":
        """The terms of the rows `which`, in their order."""
        figures: list[Any] = [None if each is None else each[which] for each in self]
        return Terms(*figures)


def no_terms(prior: Prior) -> Terms:
    """Those of no observation."""
    none = np.zeros((0, *prior.shape), np.float32)
    kl = prior.kl(none, none)
    return Terms(np.zeros(0), np.zeros(0), np.zeros(0), None if kl is None else kl.reshape(0, math.prod(prior.shape)))


class Model(NamedTuple):
    """What draws and weighs z: the networks, the likelihood, the prior, and what an observation is.

    most_draws: of z that are decoded at once. most_observed: binary draws of x that are weighed at once.
    """

    networks: Sessions
    likelihood: Likelihood
    prior: Prior
    observation: Observation
    most_draws: int
    most_observed: int


class Block(NamedTuple):
    """A few observations x [rows, *shape] and their numbers, uint64 [rows], for errors."""

    numbers: NDArray[np.uint64]
    x: Floats


def terms(model: Model, block: Block, num_samples: int, seed: int, contributions: bool = False) -> Terms:
    """Both terms of the ELBO of observations in the likelihood's support, the reconstruction averaged over draws.

    contributions: whether those of each value are wanted too.
    """
    total = np.zeros(block.x.shape) if contributions else None
    log_likelihood, log_ratio, kl = _weigh(model, block, num_samples, seed, total)
    return Terms.mean(log_likelihood, -log_ratio if kl is None else kl.sum(axis=1)[:, None], kl, total)


def bound(model: Model, block: Block, num_samples: int, seed: int) -> Nats:
    """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), nats, [rows]."""
    log_likelihood, log_ratio, _ = _weigh(model, block, num_samples, seed)
    log_weights = log_likelihood + log_ratio
    top = log_weights.max(axis=1)
    bound: Nats = top + np.log(np.exp(log_weights - top[:, None]).mean(axis=1))
    return bound


def averaged_terms(model: Model, block: Block, num_samples: int, seed: int, contributions: bool = False) -> Terms:
    """The terms of observations of which some may be grey under a likelihood of binary ones."""
    grey = likelihoods.outside(model.likelihood, block.x)
    parts = [
        work(model, Block(block.numbers[which], block.x[which]), num_samples, seed, contributions)
        for which, work in ((~grey, terms), (grey, _terms_of_grey))
        if which.any()
    ]
    back = np.argsort(np.argsort(grey, kind="stable"))  # from those in order of their kind to those as they were given
    return Terms.joined(parts).rows(back)


@np.errstate(all="ignore")  # what is not finite in the end is refused, with its number
def _weigh(
    model: Model, block: Block, num_samples: int, seed: int, total: Nats | None = None
) -> tuple[Nats, Nats, Nats | None]:
    """log p(x|z_k) and log p(z_k) - log q(z_k|x), [rows, num_samples] each, and the closed-form KL, [rows, latents].

    total: [rows, *shape], to which log p of each value is added, for each draw.
    """
    x, shape = block.x, model.prior.shape
    mu, logsigma = model.networks.encode(x)  # [rows, *shape]
    sigma, latents = np.exp(logsigma)[:, None], math.prod(shape)
    index = noise.index(x)
    log_likelihood, log_ratio = np.empty((2, len(x), num_samples))
    for k in chunks(num_samples, _MOST_DRAWS):
        draws = k.stop - k.start
        eps = noise.normal(seed, noise.POSTERIOR, index, draws * latents, start=k.start * latents)
        eps = eps.reshape(len(x), draws, *shape)
        z = (mu[:, None] + sigma * eps).astype(np.float32, copy=False)
        log_ratio[:, k] = model.prior.log_ratio(z, eps, logsigma[:, None])
        for i, j in blocks(len(x), draws, model.most_draws):
            threads.go_on()
            parameters = model.networks.decode(z[i, j].reshape(-1, *shape))
            parameters = parameters.reshape(*z[i, j].shape[:2], *parameters.shape[1:])
            log_likelihood[:, k][i, j] = model.likelihood.log_prob(x[i, None], parameters)
            if total is not None:
                total[i] += model.likelihood.log_prob_of_each(x[i, None], parameters).sum(axis=1)
    kl = model.prior.kl(mu, logsigma)
    kl = None if kl is None else kl.reshape(len(x), -1)
    _refuse_infinite(model, block, log_likelihood, log_ratio, *[] if kl is None else [kl])
    return log_likelihood, log_ratio, kl


@np.errstate(all="ignore")
def _terms_of_grey(model: Model, block: Block, num_samples: int, seed: int, contributions: bool) -> Terms:
    """Means over k of the terms of x_k ~ Bernoulli(x) with z_k ~ q(z|x_k)."""
    x, shape = block.x, model.observation.shape
    index, latents = noise.index(x), math.prod(model.prior.shape)
    log_likelihood, kl = np.empty((2, len(x), num_samples))
    total_kl: Nats | None = np.zeros((len(x), latents))  # of each latent
    total = np.zeros(x.shape) if contributions else None
    for i, k in blocks(len(x), num_samples, model.most_observed):
        threads.go_on()
        draws = k.stop - k.start
        observed = binary(x[i], index[i], seed, k).astype(np.float32).reshape(-1, *shape)  # [rows * draws, *shape]
        mu, logsigma = model.networks.encode(observed)
        eps = noise.normal(seed, noise.POSTERIOR, index[i], draws * latents, start=k.start * latents)
        eps = eps.reshape(mu.shape)
        z = (mu + np.exp(logsigma) * eps).astype(np.float32, copy=False)
        parameters = model.networks.decode(z)
        log_likelihood[i, k] = model.likelihood.log_prob(observed, parameters).reshape(-1, draws)
        if total is not None:
            total[i] += model.likelihood.log_prob_of_each(observed, parameters).reshape(-1, draws, *shape).sum(axis=1)
        of_each = model.prior.kl(mu, logsigma)
        if of_each is None or total_kl is None:
            kl[i, k], total_kl = -model.prior.log_ratio(z, eps, logsigma).reshape(-1, draws), None
            continue
        of_each = of_each.reshape(-1, latents)
        kl[i, k] = of_each.sum(axis=1).reshape(-1, draws)
        add(total_kl[i], of_each)
    _refuse_infinite(model, block, log_likelihood, kl)
    return Terms.mean(log_likelihood, kl, None if total_kl is None else total_kl / num_samples, total)


def binary(x: Floats, index: NDArray[np.uint64], seed: int, k: slice) -> NDArray[np.bool_]:
    """Binary draws number `k` of each of x [rows, *shape], P(1) = x, by its noise's index: [rows, draws, *shape]."""
    size, draws = math.prod(x.shape[1:]), k.stop - k.start
    uniforms = noise.uniform(seed, noise.BINARISATION, index, draws * size, start=k.start * size)
    drawn: NDArray[np.bool_] = uniforms.reshape(len(x), draws, *x.shape[1:]) < x[:, None]
    return drawn


def add(total: Nats, figures: Nats) -> None:
    """Add figures [rows * draws, ...] to total [rows, ...], draw by draw, so that no bit depends on the blocks."""
    of_each = figures.reshape(len(total), -1, *total.shape[1:])
    for draw in range(of_each.shape[1]):
        total += of_each[:, draw]


def _refuse_infinite(model: Model, block: Block, *figures: Nats) -> None:
    """Raise InputError, naming the first observation, where one of the figures [rows, ...] is NaN or infinite."""
    finite = np.all([np.isfinite(array).all(axis=1) for array in figures], axis=0)
    if not finite.all():
        noun = model.observation.noun
        which = f"{noun} {block.numbers[np.argmin(finite)]}"
        raise InputError("the model gives no finite figure", which, f"check the {noun} and the model")


def chunks(n: int, rows: int) -> Iterator[slice]:
    """Slices of at most `rows` rows that cover 0..n-1."""
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def blocks(rows: int, draws: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of their draws that cover all, with at most `most` draws each."""
    for i in chunks(rows, max(1, most // draws)):
        for j in chunks(draws, most):
            yield i, j
