"""Where an observation is odd: how far each of its places lies from what is usual there, in NumPy, and drawn."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_runtime.observation import IMAGE, SERIES, VECTOR, Observation, Shape

KEPT = 500  # normal observations whose places say what is usual
_CELLS = 4096  # of an image or a window: places of a larger one share them
_WINDOW = 5  # cells along an axis that a place is judged with
_LEAST = 1.0  # times the spread of all places, which is added to that of each: one that never changes tells little
_REACHED = 0.05  # of normal observations, in which some place is as far as `Places.high`
_DIGITS = 4
_ROWS = 50  # at a time

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Places:
    """What is usual at each place: mean and spread of its residual (`residuals`), of places in C order.

    high, low: standard deviations, above and below 0, that no place of 95% of the normal observations goes beyond.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    high: float
    low: float

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.spread) or not all(spread > 0 for spread in self.spread):
            raise ValueError("spread does not fit the mean")
        if not self.low < 0 < self.high:
            raise ValueError(f"high is {self.high:g} and low is {self.low:g}")

    @classmethod
    def of(cls, found: Floats) -> "Places":
        """Those of residuals [n, *cells] of two or more normal observations.

        How far one of them goes is measured by the mean and spread of the others.
        """
        n, flat = len(found), found.reshape(len(found), -1)
        mean = flat.mean(axis=0, dtype=np.float64)
        square = sum(np.square(rows.astype(np.float64) - mean).sum(axis=0) for rows in _split(flat)) / n
        least = _LEAST**2 * square.mean() + 1e-6
        tops, bottoms = [], []
        for rows in _split(flat):
            off = (rows - mean) * n / (n - 1)  # from the mean of the others
            without = (n * square - np.square(off) * (n - 1) / n) / (n - 1)
            deviations = off / np.sqrt(np.maximum(without, 0) + least)
            tops.append(deviations.max(axis=1))
            bottoms.append(deviations.min(axis=1))
        high, low = np.quantile(np.concatenate(tops), 1 - _REACHED), np.quantile(np.concatenate(bottoms), _REACHED)
        reached = _rounded(np.array([max(high, 1e-3), min(low, -1e-3)]))
        return cls(_rounded(mean), _rounded(np.sqrt(square + least)), *reached)

    def deviations(self, found: Floats) -> Doubles:
        """How far residuals [rows, *cells] are from what is usual, in standard deviations; below 0 where it is less."""
        shape = found.shape[1:]
        deviations: Doubles = (found - np.reshape(self.mean, shape)) / np.reshape(self.spread, shape)
        return deviations


def cells(observation: Observation) -> Shape:
    """How many cells there are along each axis: of an image [h, w], of a row [D], of a window [C, t]."""
    if observation.kind == VECTOR:
        return observation.shape
    first, *_ = observation.shape
    block = _block(observation)
    if observation.kind == SERIES:
        return (first, -(-observation.shape[1] // block))
    return tuple(-(-size // block) for size in observation.shape[1:])


def residuals(shortfall: Doubles, observation: Observation) -> Floats:
    """The root of twice the mean `Likelihood.shortfall` around each place, [rows, *cells], of [rows, *shape] in nats.

    Of a Gaussian's values that is how many sigma they are off (a deviance residual; McCullagh and Nelder 1989, section
    2.4). Around a place are the cells at most two away, of the same channel in a series; a pixel is the sum of its
    channels, and a row's columns stand for themselves.
    """
    places = shortfall.sum(axis=1) if observation.kind == IMAGE else shortfall
    for axis in _axes(observation):
        places = _windows(_blocks(places, axis, _block(observation)), axis)
    rooted: Floats = np.sqrt(2 * np.maximum(places, 0)).astype(np.float32)
    return rooted


def spread_out(values: Doubles, observation: Observation) -> Doubles:
    """From cells [rows, *cells] to places: of images [rows, H, W], of others [rows, *shape]."""
    for axis in _axes(observation):
        size = observation.shape[axis - values.ndim]
        values = values.repeat(_block(observation), axis=axis).take(np.arange(size), axis=axis)
    return values


def overlay(x: Floats, deviations: Doubles, places: Places) -> Floats:
    """Images [n, C, H, W] in grey with their maps [n, H, W] over them: [n, 3, H, W] in [0, 1].

    Red where a place is odder than usual, blue where it is more ordinary than usual. Colour begins at 60% of what is
    the most in 95% of normal images, and is full at 150%.
    """
    share = np.where(deviations > 0, deviations / places.high, deviations / places.low)
    opacity = (0.85 * np.clip((share - 0.6) / 0.9, 0, 1))[:, None]
    grey = 0.12 + 0.76 * x.mean(axis=1, keepdims=True)  # so that colours are seen on black and on white
    red, blue = np.array([1.0, 0.1, 0.1]), np.array([0.15, 0.45, 1.0])
    colour = np.where((deviations > 0)[:, None], red[:, None, None], blue[:, None, None])
    drawn: Floats = ((1 - opacity) * grey + opacity * colour).astype(np.float32)
    return drawn


def _block(observation: Observation) -> int:
    """How many pixels or steps along an axis share a cell."""
    if observation.kind == VECTOR:
        return 1
    most = _CELLS if observation.kind == IMAGE else max(1, _CELLS // observation.shape[0])
    size = math.prod(observation.shape[1:])
    return math.ceil(math.sqrt(size / most)) if observation.kind == IMAGE else -(-size // most)


def _axes(observation: Observation) -> tuple[int, ...]:
    """The axes of places [rows, ...] along which those beside each other belong together."""
    return {IMAGE: (1, 2), SERIES: (2,), VECTOR: ()}[observation.kind]


def _blocks(values: Doubles, axis: int, block: int) -> Doubles:
    """The means of blocks along an axis; the last one may be smaller."""
    if block == 1:
        return values
    starts = np.arange(0, values.shape[axis], block)
    counts = np.diff(np.append(starts, values.shape[axis]))
    sums: Doubles = np.add.reduceat(values, starts, axis=axis)
    return sums / counts.reshape(-1, *[1] * (values.ndim - axis - 1))


def _windows(values: Doubles, axis: int) -> Doubles:
    """The means of those at most _WINDOW // 2 away along an axis, as many as there are."""
    size, reach = values.shape[axis], _WINDOW // 2
    sums, counts = np.zeros_like(values), np.zeros(size)
    for shift in range(-min(reach, size - 1), min(reach, size - 1) + 1):
        to = [slice(None)] * values.ndim
        of = list(to)
        to[axis], of[axis] = slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size - max(0, -shift))
        sums[tuple(to)] += values[tuple(of)]
        counts[to[axis]] += 1
    return sums / counts.reshape(-1, *[1] * (values.ndim - axis - 1))


def _split(rows: Floats) -> Iterator[Floats]:
    return (rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS))


def _rounded(values: Doubles) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
