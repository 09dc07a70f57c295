"""Rows and windows of numbers as a model takes them: what columns may hold, how they are scaled, and become float32."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import BundleError, InputError
from vae_runtime.manifest import Column
from vae_runtime.observation import Observation

LEAVE_OUT = "fill it in, or leave such rows out with --missing drop"

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Scaling(NamedTuple):
    """From what is measured to what networks take, and back; mean and scale are of each column, [D], or [C, 1]."""

    mean: Doubles
    scale: Doubles

    @classmethod
    def of(cls, columns: Sequence[Column], observation: Observation) -> "Scaling | None":
        """That of a model's columns; None where it has none. Raises BundleError where they are not as many."""
        if not columns:
            return None
        if len(columns) != observation.shape[0]:
            which = f"{len(columns)} columns of {observation.noun}s of shape {list(observation.shape)}"
            raise BundleError("bundle's columns do not fit", which, "export it again")
        shape = (-1, *[1] * (len(observation.shape) - 1))
        return cls(*(np.array([getattr(c, name) for c in columns]).reshape(shape) for name in ("mean", "scale")))

    def standardise(self, values: NDArray[Any]) -> Floats:
        """(values - mean) / scale in float64, then float32 [n, *shape]; 0.0 for -0.0: equal ones are equal bytes."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused
            scaled: Floats = ((values.astype(np.float64) - self.mean) / self.scale).astype(np.float32) + np.float32(0)
        return scaled

    def restore(self, x: Floats) -> Doubles:
        """What is measured where the networks speak of x [n, *shape], float64."""
        restored: Doubles = x * self.scale + self.mean
        return restored


def check(dtype: np.dtype[Any], name: str) -> None:
    """Raise InputError, with the array's name, unless its columns hold numbers or booleans."""
    if dtype.kind not in "fbiu":
        raise InputError(f"array of type {dtype}", name, "give numbers")


def from_numbers(values: NDArray[Any], name: str, numbers: Sequence[int]) -> Floats:
    """An array's rows [n, D], or windows [n, C, T], as float32; 0.0 for -0.0: equal ones are equal bytes.

    numbers: those of the n in the file.
    Raises InputError for what is no number and, with its place, for what is not finite or too large for float32.
    """
    check(values.dtype, name)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = values.astype(np.float32) + np.float32(0)
    refuse_infinite(x, values, name, numbers)
    return x


def refuse_infinite(
    x: NDArray[Any], values: NDArray[Any], name: str, numbers: Sequence[int], columns: Sequence[str] = ()
) -> None:
    """Raise InputError, with its place, where a number of x [n, *shape] is not finite; values are what x was before.

    numbers: those of the n in the file.
    """
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, *place = bad[0].tolist()
        column = columns[place[0]] if columns else place[0]
        where = f"column {column}" if len(place) == 1 else f"channel {column}, step {place[1]}"
        value = float(values[tuple(bad[0])])
        if math.isnan(value):
            raise InputError("missing value (NaN)", f"{name}[{numbers[row]}], {where}", LEAVE_OUT)
        what = "infinite value" if math.isinf(value) else "value too large for float32"
        raise InputError(what, f"{name}[{numbers[row]}], {where}", "clean the data, or leave that one out")
