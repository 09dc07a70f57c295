"""Rows and windows of numbers as a model takes them: what columns may hold, and how that becomes float32."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError

Floats = NDArray[np.float32]


def check(dtype: np.dtype[Any], name: str) -> None:
    """Raise InputError, with the array's name, unless its columns hold numbers or booleans."""
    if dtype.kind not in "fbiu":
        raise InputError(f"array of type {dtype}", name, "give numbers")


def from_numbers(values: NDArray[Any], name: str, start: int) -> Floats:
    """An array's rows start.. [n, D], or windows [n, C, T], as float32; 0.0 for -0.0: equal ones are equal bytes.

    Raises InputError for what is no number and, with its place, for what is not finite or too large for float32.
    """
    check(values.dtype, name)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = values.astype(np.float32) + np.float32(0)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, *place = bad[0].tolist()
        where = f"column {place[0]}" if len(place) == 1 else f"channel {place[0]}, step {place[1]}"
        large = bool(np.isfinite(values[tuple(bad[0])]))
        what = "value too large for float32" if large else "NaN or infinite values"
        raise InputError(what, f"{name}[{start + row}], {where}", "clean the data, or leave that one out")
    return x
