"""The rank of an ELBO among those of the model's test images, no finer than these are many."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vae_runtime.elbo import Nats
from vae_runtime.errors import BundleError

_FEWEST = 3  # of fewer images every ELBO would have the same rank
_TENTHS = 100  # images, from which on a rank has tenths of a percent
_FINE = 1000  # images, from which on the quantiles that a manifest keeps are coarser than the images' number


@dataclass(frozen=True)
class Ranks:
    """Quantiles of the ELBO of `images` test images, of one draw of z each: levels in percent, elbo in nats."""

    images: int
    levels: Nats
    elbo: Nats

    @classmethod
    def read(cls, manifest: dict[str, Any]) -> "Ranks":
        """The ranks that a bundle's manifest keeps. Raises BundleError where it keeps none, or of too few images."""
        try:
            evaluation = manifest["evaluation"]
            levels, elbo = (np.asarray(evaluation["quantiles"][name], np.float64) for name in ("levels", "elbo"))
            images = int(evaluation["images"])
            if levels.ndim != 1 or levels.shape != elbo.shape or not len(levels):
                raise ValueError("as many levels as quantiles are needed")
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise BundleError("bundle's manifest lacks the test images' quantiles", error, "export it again") from None
        if images < _FEWEST:
            raise BundleError("too few test images to rank among", images, f"measure the model on {_FEWEST} or more")
        return cls(images, 100 * levels, elbo)

    @property
    def lowest(self) -> float:
        """Percent: no rank is below it, since one of n images is 100/n percent of them."""
        return max(100 / self.images, float(self.levels[0]))

    @property
    def highest(self) -> float:
        """Percent: no rank is above it."""
        return min(100 - 100 / self.images, float(self.levels[-1]))

    def percentile(self, elbo: ArrayLike) -> Nats:
        """How many percent of the test images have a lower ELBO: float64 of elbo's shape, from `lowest` to `highest`.

        Interpolated between the quantiles; the two ends stand for all beyond them.
        """
        interpolated = np.interp(np.asarray(elbo, np.float64), self.elbo, self.levels)
        percentile: Nats = np.clip(interpolated, self.lowest, self.highest)
        return percentile

    def describe(self, percentile: float) -> str:
        """A percentile for people: marked at the two ends, there with the number of images where that sets them."""
        sign = "<" if percentile <= self.lowest else ">" if percentile >= self.highest else ""
        if self.images >= _FINE:
            return f"{sign}{percentile:.1f}%"
        if sign:
            return f"{sign}{percentile:.3g}%, of {self.images} images"
        return f"{percentile:.{0 if self.images < _TENTHS else 1}f}%"
