"""Pixels with the precision that they came with: 8-bit levels where that loses nothing, else values in [0, 1]."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import sources, threads
from vae_runtime.errors import InputError
from vae_runtime.likelihoods import DiscretisedLogistic
from vae_runtime.observation import AXES, IMAGE
from vae_train.config import FULL_SCALE, Config

_MAY_BE_DEEP = {".png", ".tif", ".tiff", ".pgm"}  # formats that have 16-bit levels
_FULL_SCALES = tuple(2**bits - 1 for bits in (10, 12, 14, 16))

Pixels = NDArray[Any]  # uint8 levels, or float32 in [0, 1]


def largest(path: Path, workers: int = 1) -> int | None:
    """The largest level in the files of 16-bit levels, a folder's or the array itself; None where there are none."""
    files = [path]
    if path.is_dir():
        files = [p for p in sources.walk(path) if p.suffix.lower() in _MAY_BE_DEEP]

    def read(file: Path) -> int | None:
        try:
            return sources.largest_level(file)
        except InputError:  # `load` names it
            return None

    return max((top for top in threads.ordered_map(workers, read, files) if top is not None), default=None)


def full_scale(largest: int) -> int:
    """The level that is 1.0, told from the largest one of a set: that of 10, 12, 14 or 16 bits."""
    return next((scale for scale in _FULL_SCALES if largest <= scale), _FULL_SCALES[-1])  # more is refused when read


def scaled(config: Config, largest: int, say: Callable[[str], None]) -> Config:
    """The settings with the full scale of 16-bit levels, the largest of which is given; `say` is told a guess."""
    if config.data.levels is not None:
        return config
    scale = full_scale(largest)
    if scale < FULL_SCALE:
        taken = f"taken as {scale.bit_length()}-bit, x = level / {scale}"
        say(f"levels up to {largest:,} in 16-bit files are {taken}; --levels {FULL_SCALE} says otherwise")
    return config.replace(levels=scale)


def kept(x: NDArray[np.float32]) -> Pixels:
    """Values in [0, 1] as uint8 levels where each is such a level / 255, else as they are: nothing is lost."""
    levels = to_levels(x)
    return levels if np.array_equal(levels / np.float32(255), x) else x + np.float32(0)  # 0.0 for -0.0: equal bytes


def to_levels(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values in [0, 1] rounded to 8-bit levels."""
    levels: NDArray[np.uint8] = np.rint(x * np.float32(255)).astype(np.uint8)
    return levels


def joined(parts: list[Pixels]) -> Pixels:
    """Parts of a set [n, C, H, W] in one array: of levels, or of floats where one of them has floats."""
    if any(part.dtype != np.uint8 for part in parts):
        parts = [part / np.float32(255) if part.dtype == np.uint8 else part for part in parts]
    whole: Pixels = np.concatenate(parts)
    return whole


def observed(pixels: Pixels, likelihood: str, warn: Callable[[str], None]) -> tuple[Pixels, dict[str, str]]:
    """Pixels as a likelihood takes them, rounded for one of 8-bit levels; and what `warn` was told, to be kept."""
    if pixels.dtype == np.uint8:
        if pixels.max() == 1:
            todo = "where 1 means white, save booleans or levels 0 and 255"
            warn(f"no level above 1 of 255: nearly black images; {todo}")
        return pixels, {}
    if likelihood != DiscretisedLogistic.name:
        return pixels, {}
    rounded = to_levels(pixels)
    if DiscretisedLogistic(len(AXES[IMAGE])).supports(pixels).all():  # levels but for what float32 rounds
        return rounded, {}
    left = f"{len(np.unique(rounded)):,} of {len(np.unique(pixels)):,} distinct values left"
    warn(f"{likelihood}: pixels are rounded to its 8-bit levels, {left}; --likelihood gaussian keeps them all")
    return rounded, {"rounded": f"to 8-bit levels, {left}"}
