"""A density of few numbers, estimated from rows of them by Gaussian kernels, for dozens of rows as for thousands."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST = 1000  # rows that kernels are kept of
_CONSTANT = 1e-9  # of its mean: a column that spreads by less is the same in all rows
_TOLERANCE = 1e-3  # of its mean: the unit of such a column, beside which rounding is small
_AT_ONCE = 16  # rows: their distances to all kernels stay in a processor's cache

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Density:
    """Kernels around some of the usual rows, [m, d]; a surprise is -log density, nats, but for a constant.

    Columns are scaled, and their correlation is shrunk towards none (Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)
    00096-4), so that a few dozen rows are enough for a sensible distance; kernels have the width of Silverman (1986,
    eq. 4.14). Where a column is the same in all rows, another value is far from them. Rows are whitened by the inverse
    root of the correlation, so that each column keeps its name (Garthwaite and Koch 2016, doi:10.1111/anzs.12144).
    """

    mean: Doubles  # [d]
    scale: Doubles  # [d]
    whiten: Doubles  # [d, d]
    kernels: Doubles  # [m, d], whitened
    width: float

    @classmethod
    def of(cls, rows: Doubles) -> "Density":
        """That of rows [n, d]; kernels are kept of the first MOST. Raises ValueError for fewer than three."""
        if len(rows) < 3:
            raise ValueError(f"{len(rows)} rows")
        mean, spread = rows.mean(axis=0), rows.std(axis=0)
        size = 1 + np.abs(mean)
        same = spread <= _CONSTANT * size
        scale = np.where(same, _TOLERANCE * size, spread)
        scaled = (rows - mean) / scale
        correlation = _shrunk(scaled)
        correlation[same, same] = 1
        variances, axes = np.linalg.eigh(correlation)
        whiten = axes / np.sqrt(variances) @ axes.T
        d, n = int((~same).sum()), min(len(rows), MOST)
        width = (4 / (d + 2)) ** (1 / (d + 4)) * n ** (-1 / (d + 4))
        return cls(mean, scale, whiten, scaled[:MOST] @ whiten, float(width))

    def deviations(self, rows: Doubles) -> Doubles:
        """How far each of the rows [n, d] lies from the mean, [n, d]: of each column what the others do not say of it.

        In standard deviations, above or below; their squares sum to the squared Mahalanobis distance.
        """
        scaled = (rows - self.mean) / self.scale
        deviations = np.zeros_like(scaled)
        for column, weights in zip(scaled.T, self.whiten, strict=True):  # BLAS would round by how many rows there are
            deviations += column[:, None] * weights
        return deviations

    def surprise(self, rows: Doubles, without: NDArray[np.bool_] | None = None) -> Doubles:
        """-log of the mean of the kernels at each of the rows [n, d]: nats [n], the same for equal rows.

        without: which kernels do not count for which of the rows, [n, m].
        """
        blocks = (slice(i, i + _AT_ONCE) for i in range(0, len(rows), _AT_ONCE))
        parts = [self._surprise(rows[i], None if without is None else without[i]) for i in blocks]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _surprise(self, rows: Doubles, without: NDArray[np.bool_] | None) -> Doubles:
        squares, apart = np.zeros((2, len(rows), len(self.kernels)))
        for column, others in zip(self.deviations(rows).T, self.kernels.T, strict=True):
            np.subtract(column[:, None], others, out=apart)
            squares += np.square(apart, out=apart)
        exponents = squares / (-2 * self.width**2)
        if without is not None:
            exponents[without] = -np.inf
        top = exponents.max(axis=1)
        surprise: Doubles = -top - np.log(np.exp(exponents - top[:, None]).mean(axis=1))
        if without is not None:
            surprise += np.log1p(-without.mean(axis=1))  # the mean is of the others
        return surprise


def surprise_of_each(rows: Doubles, others: NDArray[np.bool_] | None = None) -> Doubles:
    """Of rows [n, d] the surprise of each under the density of the others, nats [n].

    Scale, correlation and kernels are those of the others: of few rows, one that took part in them looks less odd than
    any other, and a share of them would promise fewer false alarms than there are. others: which they are for each,
    [n, n]. Raises ValueError where a row has fewer than three.
    """
    others = ~np.eye(len(rows), dtype=bool) if others is None else others
    surprises = [Density.of(rows[others[i]]).surprise(rows[i : i + 1]) for i in range(len(rows))]
    return np.concatenate(surprises)


def _shrunk(scaled: Doubles) -> Doubles:
    """The correlation of scaled rows [n, d], mixed with the identity as much as few rows ask for."""
    n, d = scaled.shape
    sample = scaled.T @ scaled / n
    target = np.trace(sample) / d * np.eye(d)
    distance = np.square(sample - target).sum()
    error = (np.square(scaled).sum(axis=1) ** 2).mean() - np.square(sample).sum()
    share = 1.0 if distance == 0 else min(1.0, max(0.0, error / n / distance))
    shrunk: Doubles = (1 - share) * sample + share * target + 1e-6 * np.eye(d)
    return shrunk
