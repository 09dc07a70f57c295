"""Turn what callers pass into checked float32 arrays and integers, or say what is wrong with which row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import Observation, Shape
from vae_runtime.vectors import Scaling

Floats = NDArray[np.float32]


def observations(values: Any, observation: Observation, start: int = 0, scaling: Scaling | None = None) -> Floats:
    """Observations start.. of a model, scaled, float32 [batch, *shape] in their range.

    Raises InputError, naming the one.
    """
    noun, parts = observation.noun, observation.parts
    numbers = array(values, f"{noun}s")
    if numbers.shape[1:] != observation.shape:
        which = f"this model takes {observation.batch_shape}"
        raise InputError(f"{noun}s of the wrong shape", list(numbers.shape), which)
    x = _float32(numbers) if scaling is None else scaling.standardise(numbers)
    _refuse_rows(x, ~np.isfinite(x), f"NaN or infinite {parts}", noun, "clean the data", start)
    if observation.range is not None:
        low, high = observation.range
        outside, todo = (x < low) | (x > high), "scale them as in training"
        if (low, high) == (0, 1) and outside.any():
            near = x.min() >= -1 and x.max() <= 2  # samples of a Gaussian, or pixels that were scaled
            todo = "give x.clip(0, 1), or undo what was subtracted" if near else "divide 8-bit levels by 255"
        _refuse_rows(x, outside, f"{parts} outside [{low:g}, {high:g}]", noun, todo, start)
    return x


def latents(values: Any, shape: Shape) -> Floats:
    """Latents [batch, *shape]. Raises InputError, naming the row."""
    z = _float32(array(values, "latents"))
    if z.shape[1:] != shape:
        todo = f"this model takes [batch, {', '.join(map(str, shape))}]"
        raise InputError("latents of the wrong shape", list(z.shape), todo)
    _refuse_rows(z, ~np.isfinite(z), "NaN or infinite latents", "row", "clean the data")
    return z


def array(values: Any, what: str) -> NDArray[Any]:
    """An array of numbers with an axis for the batch. Raises InputError, which calls them `what`."""
    if hasattr(values, "batches"):  # what `VAE.read` gives
        raise InputError(f"{what} that are not loaded", type(values).__name__, "give its .load().x, or .batches(n)")
    try:
        numbers = np.asarray(values)
    except ValueError:
        raise InputError(f"{what} of different lengths", "a ragged list", "give one array") from None
    if numbers.dtype.kind not in "fbiu":
        raise InputError(f"{what} of the wrong type", numbers.dtype, "give numbers")
    if not numbers.ndim:
        raise InputError(f"{what} of the wrong shape", [], "give an array, with an axis for the batch")
    return numbers


def integer(value: Any, what: str, least: int, most: int) -> int:
    """An integer from `least` to `most`. Raises ArgumentError."""
    if not isinstance(value, int | np.integer) or not least <= value <= most:
        end = "2^63 - 1" if most == 2**63 - 1 else f"{most:,}"
        raise ArgumentError(f"{what} out of range", value, f"give an integer from {least} to {end}")
    return int(value)


def finite(outputs: Floats, unit: str, start: int) -> Floats:
    """What a graph gave for rows start.. of a batch. Raises InputError, naming the row, where it is not finite."""
    good = np.isfinite(outputs)
    if not good.all():
        which = f"{unit} {start + int(np.argmin(good.reshape(len(good), -1).all(axis=1)))}"
        raise InputError("the model gives no finite figure", which, f"check the {unit} and the model")
    return outputs


def _float32(array: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
        return np.ascontiguousarray(array, np.float32)


def _refuse_rows(array: Floats, bad: NDArray[np.bool_], what: str, unit: str, todo: str, start: int = 0) -> None:
    if bad.any():
        row = start + int(np.argmax(bad.reshape(len(array), -1).any(axis=1)))
        raise InputError(what, f"{unit} {row}", todo)
