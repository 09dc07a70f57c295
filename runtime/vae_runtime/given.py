"""Observations as a person holds them: arrays, files, Pillow images and 8-bit levels become what a model takes."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.errors import InputError
from vae_runtime.observation import IMAGE, Shape

if TYPE_CHECKING:
    from PIL import Image

    from vae_runtime.sources import Source
    from vae_runtime.vae import VAE

Given: TypeAlias = Union[ArrayLike, "os.PathLike[str]", "Sequence[os.PathLike[str]]", "Image.Image"]

_COLOURS = (1, 3, 4)  # the last axis of 8-bit levels: grey, RGB or RGBA


class FittedWarning(UserWarning):
    """How observations were changed to fit a model: a picture that was resized, say."""


def batches(vae: "VAE", x: Given | Iterator[Given]) -> Iterator[Any]:
    """Batches of x, of which `array` makes arrays: an iterator's own, a few of files at a time, or x as it is.

    Warns with FittedWarning of what is changed in files.
    """
    if isinstance(x, Iterator):
        yield from x
    elif (sources := _sources(x)) is not None:
        found = vae.read(sources)
        yield from found.batches(vae.rows)
        for note in found.notes:
            _warn(note)
        _warn_of([f"{name}: fitted {change}" for name, change in found.fitted.items()])
    else:
        yield x


def array(vae: "VAE", x: Given) -> Any:
    """x as one array of observations, or whatever else it is, for `arguments.observations` to judge.

    Paths and lists of them are read as `VAE.read` does it. Of a model of images, a Pillow image, a list of these, and
    uint8 levels [H, W], [H, W, C] or [n, H, W, C], C of 1, 3 or 4, are fitted as files are: levels / 255, cut and
    resized where they are of another size. Arrays [n, *shape] are taken as they are, whatever their type. Warns with
    FittedWarning of what is changed.
    """
    if _sources(x) is not None:
        return np.concatenate(list(batches(vae, x)))
    pictures = _pictures(x, vae.observation.shape) if vae.observation.kind == IMAGE else None
    if pictures is not None:
        return _fitted(vae, pictures)
    if _is_picture(x):
        raise InputError(f"picture for a model of {vae.observation.noun}s", type(x).__name__, "give numbers or a table")
    return x


def _sources(x: object) -> "list[Source] | None":
    """The sources that x names, one or several; None where it names none."""
    given: list[Any] = list(x) if isinstance(x, list | tuple) and x else [x]
    if not all(isinstance(each, str | bytes | os.PathLike) for each in given):
        return None
    return [each if isinstance(each, str | bytes) else Path(each) for each in given]


def _pictures(x: object, shape: Shape) -> "list[Image.Image] | None":
    """The pictures that x is or holds: Pillow images, or levels; None where it holds none."""
    given: list[Any] = list(x) if isinstance(x, list | tuple) and x else [x]
    if all(map(_is_picture, given)):
        return given
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape[1:] == shape or not _of_levels(x.shape):
        return None
    from PIL import Image

    if x.size and x.max() == 1:
        _warn("uint8 values of 0 and 1 taken as 8-bit levels, which are nearly black; for 0 and 1 give [n, C, H, W]")
    levels = x if x.ndim == 4 else x[None]
    return [Image.fromarray(each[..., 0] if each.ndim == 3 and each.shape[2] == 1 else each) for each in levels]


def _of_levels(shape: Shape) -> bool:
    return len(shape) == 2 or (len(shape) in (3, 4) and shape[-1] in _COLOURS)


def _is_picture(x: object) -> bool:
    """Whether x is a Pillow image; it need not be imported to know."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(x).__mro__)


def _fitted(vae: "VAE", pictures: "list[Image.Image]") -> NDArray[np.float32]:
    from vae_runtime.images import fit

    shape, preprocessing = vae.observation.shape, vae.manifest.preprocessing
    fitted = [fit(picture, shape, preprocessing, f"image {i}") for i, picture in enumerate(pictures)]
    _warn_of([f"image {i}: fitted {change}" for i, (_, change) in enumerate(fitted) if change])
    return np.stack([pixels for pixels, _ in fitted]) if fitted else np.zeros((0, *shape), np.float32)


def _warn_of(changes: list[str]) -> None:
    if changes:
        _warn(changes[0] + (f", and {len(changes) - 1} more" if len(changes) > 1 else ""))


def _warn(text: str) -> None:
    """Warn at the line of whoever called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("vae_"):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, FittedWarning, level)
