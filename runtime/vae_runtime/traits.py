"""What a detector looks at: figures of an observation under the model, and of the observation by itself, in NumPy.

The ELBO alone takes what is smooth, blurred or flat for ordinary (Nalisnick et al. 2019, arXiv:1810.09136). Several
figures, of which each may be too high or too low, tell (Morningstar et al. 2021, arXiv:2006.09273).
"""

import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vae_runtime import likelihoods, noise, threads
from vae_runtime.draws import Block, Model, add, binary, blocks
from vae_runtime.observation import IMAGE, SERIES, Observation

NUM_SAMPLES = 8  # draws of z, and of binary pixels, of each observation

RECONSTRUCTION, KL, VALUES = "log p(x|z)", "KL", "nats of single values"
_OF_MODEL = (RECONSTRUCTION, KL, "entropy", "log squared error", "log spread of nats")
_OF_POSTERIOR = ("log |mu|^2", "sum of logsigma")  # of images, of which there are many
_OF_IMAGE = ("entropy of levels", "entropy of edges", "brightness", "log contrast")
_OF_CHANNEL = ("log spread", "log roughness")
_LEVELS = 256
_TINY = 1e-6  # beside a number of which the logarithm is taken, where 1 is a large one

T = TypeVar("T", bound=np.generic)
Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


def names(observation: Observation, channels: list[str]) -> list[str]:
    """What the traits of such observations are called; channels: what those of a series are."""
    if observation.kind == IMAGE:
        return [*_OF_MODEL, *_OF_POSTERIOR, *_OF_IMAGE]
    if observation.kind == SERIES:
        return [*_OF_MODEL, *(f"{trait} of {channel}" for channel in channels for trait in _OF_CHANNEL)]
    return [*_OF_MODEL, VALUES] if observation.range is None else [*_OF_MODEL]


def traits(model: Model, block: Block, num_samples: int, seed: int, shortfall: Doubles | None = None) -> Doubles:
    """The traits of observations x [rows, *shape], as the networks take them: float64 [rows, traits].

    Means over `num_samples` draws of z, and of binary x where it is grey; nats, but for squares and what is called
    otherwise. Equal observations have equal ones for one seed. shortfall: [rows, *shape], to which the mean over the
    draws of `Likelihood.shortfall` of each value is added, and of rows of numbers the nats of each value by itself.
    """
    of_model = _of_model(model, block, num_samples, seed, shortfall)
    if shortfall is not None and VALUES in names(model.observation, []):
        shortfall += _alone(block.x)
    return np.concatenate([of_model, own(block.x, model.observation)], axis=1)


def own(x: Floats, observation: Observation) -> Doubles:
    """The traits of observations x [rows, *shape] by themselves, float64 [rows, traits]; none of binary rows."""
    if observation.kind == IMAGE:
        return _of_images(x)
    if observation.kind == SERIES:
        return _of_series(x)
    return _of_rows(x) if observation.range is None else np.zeros((len(x), 0))


@np.errstate(all="ignore")  # what is not finite is refused by the detector, with its number
def _of_model(model: Model, block: Block, num_samples: int, seed: int, shortfall: Doubles | None) -> Doubles:
    x, latents = block.x, math.prod(model.prior.shape)
    index = noise.index(x)
    total = np.zeros((len(x), len(_OF_MODEL) + len(_OF_POSTERIOR) * (model.observation.kind == IMAGE)))
    grey = model.likelihood.binary & likelihoods.outside(model.likelihood, x)
    encoded = None if grey.any() else model.networks.encode(x)
    for i, k in blocks(len(x), num_samples, model.most_observed):
        threads.go_on()
        draws = k.stop - k.start
        again = np.repeat(x[i], draws, axis=0)  # [rows * draws, *shape]
        observed = again if encoded else _drawn(x[i], grey[i], index[i], seed, k)
        mu, logsigma = (np.repeat(e[i], draws, axis=0) for e in encoded) if encoded else model.networks.encode(observed)
        eps = noise.normal(seed, noise.POSTERIOR, index[i], draws * latents, start=k.start * latents).reshape(mu.shape)
        z = (mu + np.exp(logsigma) * eps).astype(np.float32, copy=False)
        parameters = model.networks.decode(z)
        figures = np.stack(list(_of_draw(model, again, observed, mu, logsigma, z, eps, parameters)), axis=1)
        add(total[i], figures)
        if shortfall is not None:
            add(shortfall[i], model.likelihood.shortfall(again, parameters) / num_samples)
    return total / num_samples


def _of_draw(
    model: Model, x: Floats, observed: Floats, mu: Floats, logsigma: Floats, z: Floats, eps: Floats, parameters: Floats
) -> Iterator[Doubles]:
    """Each of _OF_MODEL [rows] of one draw of z, and of images of _OF_POSTERIOR."""
    likelihood = model.likelihood
    nats = _flat(likelihood.log_prob_of_each(observed, parameters))
    kl = model.prior.kl(mu, logsigma)
    error = _flat(x - likelihood.mean(parameters))
    yield nats.sum(axis=1)
    yield -model.prior.log_ratio(z, eps, logsigma) if kl is None else _flat(kl).sum(axis=1)
    yield likelihood.entropy(parameters)
    yield np.log(np.square(error).mean(axis=1, dtype=np.float64) + _TINY)
    yield np.log(nats.std(axis=1) + _TINY)
    if model.observation.kind == IMAGE:
        yield np.log(np.square(_flat(mu)).mean(axis=1, dtype=np.float64) + _TINY)
        yield _flat(logsigma).sum(axis=1, dtype=np.float64)


def _drawn(x: Floats, grey: NDArray[np.bool_], index: NDArray[np.uint64], seed: int, k: slice) -> Floats:
    """Binary draws `k` of each of x, of which some are `grey`; the others as they are: [rows * draws, *shape]."""
    drawn = np.where(grey.reshape(-1, *[1] * x.ndim), binary(x, index, seed, k), x[:, None])
    return drawn.astype(np.float32).reshape(-1, *x.shape[1:])


def _of_images(x: Floats) -> Doubles:
    """Of images [rows, C, H, W] in [0, 1]; entropies in nats, of histograms of 8-bit levels and of their steps."""
    levels = np.rint(x * np.float32(_LEVELS - 1)).astype(np.int32)
    steps = [np.diff(levels, axis=axis).reshape(len(x), -1) + _LEVELS - 1 for axis in (2, 3)]
    flat = _flat(x).astype(np.float64)
    return np.stack(
        [
            _entropy(_flat(levels), _LEVELS),
            _entropy(np.concatenate(steps, axis=1), 2 * _LEVELS - 1),
            flat.mean(axis=1),
            np.log(flat.std(axis=1) + 1 / _LEVELS),
        ],
        axis=1,
    )


def _of_series(x: Floats) -> Doubles:
    """Of windows [rows, C, T], two of each channel: how far it spreads, and how far a step goes."""
    wide = x.astype(np.float64)
    steps = np.diff(wide, axis=2)  # none in a window of one
    spread, steps = wide.std(axis=2), np.sqrt(np.square(steps).sum(axis=2) / max(1, steps.shape[2]))
    return _flat(np.log(np.stack([spread, steps], axis=2) + 1e-3))


def _of_rows(x: Floats) -> Doubles:
    """Of rows [rows, D], -log density of each value by itself, summed, nats but for a constant."""
    nats: Doubles = _alone(x).sum(axis=1, keepdims=True)
    return nats


def _alone(x: Floats) -> Doubles:
    """-log density of each value of rows [rows, D] by itself, under Student's t of three degrees of freedom.

    Its tails are those of columns with a few extreme values. Nats, 0 in the middle.
    """
    nats: Doubles = 2 * np.log1p(np.square(x, dtype=np.float64) / 3)
    return nats


def _entropy(values: NDArray[np.int32], count: int) -> Doubles:
    """The entropy of the histogram of each row of integers 0..count - 1, nats, [rows]."""
    rows, size = values.shape
    cells = (values + count * np.arange(rows)[:, None]).ravel()
    share = np.bincount(cells, minlength=rows * count).reshape(rows, count) / max(1, size)
    entropy: Doubles = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)
    return entropy


def _flat(values: NDArray[T]) -> NDArray[T]:
    return values.reshape(len(values), -1)
