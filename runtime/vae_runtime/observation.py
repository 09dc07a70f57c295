"""What an observation of a model is: its kind, its shape and the range of its values."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `vae-infer --help` does without NumPy
    import numpy as np
    from numpy.typing import NDArray

Shape = tuple[int, ...]  # the batch aside

IMAGE, VECTOR, SERIES = "image", "vector", "series"
AXES = {IMAGE: ("C", "H", "W"), VECTOR: ("D",), SERIES: ("C", "T")}
_NOUNS = {IMAGE: ("image", "pixels"), VECTOR: ("row", "values"), SERIES: ("window", "values")}


@dataclass(frozen=True)
class Observation:
    """What a model calls x, the batch aside.

    kind: "image", of shape (C, H, W), "vector", (D,), or "series", (C, T). range: the least and the largest value that
    there is; None where every real number is one. Raises ValueError where these do not fit together.
    """

    kind: str
    shape: Shape
    range: tuple[float, float] | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))  # lists and NumPy's integers too
        if self.kind not in AXES:
            raise ValueError(f"kind is {self.kind!r}, and none of {', '.join(AXES)}")
        if len(self.shape) != len(AXES[self.kind]) or not all(0 < size < 2**31 for size in self.shape):
            raise ValueError(f"shape of {self.kind} is {list(self.shape)}, and not {', '.join(AXES[self.kind])}")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range is {list(self.range)}, which is empty")

    @classmethod
    def image(cls, shape: Shape) -> "Observation":
        """Images [C, H, W] with values in [0, 1]."""
        return cls(IMAGE, shape, (0.0, 1.0))

    @property
    def noun(self) -> str:
        """What one of them is called in a sentence."""
        return _NOUNS[self.kind][0]

    @property
    def parts(self) -> str:
        """What its numbers are called in a sentence."""
        return _NOUNS[self.kind][1]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def batch_shape(self) -> str:
        """The shape of an array of them, for people: [batch, 1, 28, 28], say."""
        return f"[batch, {', '.join(map(str, self.shape))}]"

    def clip(self, x: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """x with what lies outside of the range cut off, as a Gaussian likelihood's samples may."""
        return x if self.range is None else x.clip(*self.range)
