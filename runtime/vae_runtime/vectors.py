"""Rows of numbers as a model takes them: what their columns may hold, and how that becomes float32."""

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
    """An array's rows start.. [n, D] as float32.

    Raises InputError for what is no number and, with row and column, for what is not finite.
    """
    check(values.dtype, name)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = values.astype(np.float32)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0].tolist()
        which = f"{name}[{start + row}], column {column}"
        raise InputError("NaN or infinite values", which, "clean the data, or leave that row out")
    return x
