"""The rank of an ELBO among those of the model's test observations, no finer than these are many."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from vae_runtime.draws import Nats
from vae_runtime.errors import BundleError

if TYPE_CHECKING:
    from vae_runtime.measured import Evaluation

_FEWEST = 3  # of fewer observations every ELBO would have the same rank
_TENTHS = 100  # observations, from which on a rank has tenths of a percent
_FINE = 1000  # observations, from which on the quantiles that a manifest keeps are coarser than their number


@dataclass(frozen=True)
class Ranks:
    """Quantiles of the ELBO of test observations, of one draw of z each: levels in percent, elbo in nats."""

    observations: int
    levels: Nats
    elbo: Nats

    @classmethod
    def of(cls, evaluation: "Evaluation | None") -> "Ranks":
        """The ranks that a bundle's evaluation keeps. Raises BundleError where it keeps none, or of too few."""
        if evaluation is None or evaluation.quantiles is None:
            lacks = "evaluation" if evaluation is None else "evaluation.quantiles"
            todo = "measure the model on test observations, and export it with these figures"
            raise BundleError("bundle lacks the test observations' quantiles", lacks, todo)
        if (count := evaluation.observations) < _FEWEST:
            todo = f"measure the model on {_FEWEST} or more"
            raise BundleError("too few test observations to rank among", count, todo)
        levels, elbo = (np.array(values) for values in (evaluation.quantiles.levels, evaluation.quantiles.elbo))
        return cls(count, 100 * levels, elbo)

    @property
    def lowest(self) -> float:
        """Percent: no rank is below it, since one of n observations is 100/n percent of them."""
        return max(100 / self.observations, float(self.levels[0]))

    @property
    def highest(self) -> float:
        """Percent: no rank is above it."""
        return min(100 - 100 / self.observations, float(self.levels[-1]))

    def percentile(self, elbo: ArrayLike) -> Nats:
        """How many percent of the test observations have a lower ELBO: float64 of elbo's shape.

        From `lowest` to `highest`, interpolated between the quantiles; the two ends stand for all beyond them.
        """
        interpolated = np.interp(np.asarray(elbo, np.float64), self.elbo, self.levels)
        percentile: Nats = np.clip(interpolated, self.lowest, self.highest)
        return percentile

    @property
    def coarse(self) -> bool:
        """Whether the number of observations, and not that of the quantiles, sets `lowest` and `highest`."""
        return self.observations < _FINE

    def describe(self, percentile: float) -> str:
        """A percentile for people, marked at the two ends."""
        sign = "<" if percentile <= self.lowest else ">" if percentile >= self.highest else ""
        if sign:
            return f"{sign}{percentile:.3g}%"
        return f"{percentile:.{0 if self.observations < _TENTHS else 1}f}%"
