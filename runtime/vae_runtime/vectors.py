"""Rows of numbers as a model takes them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError

Floats = NDArray[np.float32]


def from_numbers(values: NDArray[Any], name: str, start: int) -> Floats:
    """An array's rows start.. [n, D] as float32. Raises InputError, with row and column, for what is not finite."""
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = values.astype(np.float32)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0].tolist()
        which = f"{name}[{start + row}], column {column}"
        raise InputError("NaN or infinite values", which, "clean the data, or leave that row out")
    return x
