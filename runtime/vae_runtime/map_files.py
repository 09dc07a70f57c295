"""Maps of where observations are odd, written: over the images, as a plot of rows or windows, or as numbers."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_runtime import files, maps, outputs
from vae_runtime.detector import Detector
from vae_runtime.observation import IMAGE, SERIES
from vae_runtime.outputs import STEPS
from vae_runtime.vae import VAE

_ARRAYS = (".npy", ".npz")
_PICTURES = (".png", "", *_ARRAYS)
_TABLES = (".csv", ".jsonl", ".png", *_ARRAYS)
_SIDE = 224  # pixels that an image of a folder has at least
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")  # in a file's name


class Mapped(NamedTuple):
    """Observations x [n, *shape], how odd each is, `Detector.score` [n], and where, `Detector.map`."""

    x: NDArray[Any]
    score: NDArray[np.float64]
    deviations: NDArray[np.float64]


Batches = Iterator[Mapped]


def check(path: Path, vae: VAE) -> None:
    """Raise ArgumentError where maps cannot be written to `path`, EnvironmentUnfit where a plot needs an extra."""
    image = vae.observation.kind == IMAGE
    files.check_output(path, *(_PICTURES if image else _TABLES))
    if path.suffix == ".png" and not image:
        from vae_runtime import plots

        plots.require()


def write(path: Path, detector: Detector, batches: Batches, names: Iterator[str], count: int) -> str:
    """Write the maps of `count` observations with a name each, and say what they show.

    Of images a .png has each beside its map, and a folder (no suffix) has one such file for each. Of rows a .csv and a
    .jsonl have a line for each, of windows for each step; a .png is a plot of the oddest ones. .npy and .npz hold the
    numbers, one for each place. All batches are read. Raises as `check` does.
    """
    vae = detector.vae
    check(path, vae)
    if path.suffix in _ARRAYS:
        shape = detector.map(np.zeros((0, *vae.observation.shape))).shape[1:]
        outputs.write(path, count, shape, (batch.deviations.astype(np.float32) for batch in batches))
        return "standard deviations from what is usual at each place"
    if vae.observation.kind == IMAGE:
        _write_pictures(path, detector, batches, names, count)
        return "red where an image fits the model less than is usual there, blue where it fits it more"
    if path.suffix == ".png":
        return _write_plot(path, detector, batches, names, count)
    lines = _jsonl(detector, batches, names) if path.suffix == ".jsonl" else _csv(detector, batches, names)
    files.write_lines(path, lines)
    return "standard deviations from what is usual of each value"


def _write_pictures(path: Path, detector: Detector, batches: Batches, names: Iterator[str], count: int) -> None:
    channels, height, width = detector.vae.observation.shape
    scale = 1 if path.suffix else -(-_SIDE // max(height, width))

    def pairs() -> Iterator[NDArray[np.float32]]:
        for x, _, deviations in batches:
            drawn = maps.overlay(x, deviations, detector.calibration.places)
            shown = x if channels == 3 else np.repeat(x.mean(axis=1, keepdims=True), 3, axis=1)
            pair = np.stack([shown, drawn], axis=1).reshape(-1, 3, height, width)  # x, map, x, ...
            yield pair if path.suffix else _beside(pair).repeat(scale, axis=2).repeat(scale, axis=3)

    if path.suffix:
        outputs.write(path, 2 * count, (3, height, width), pairs(), columns=min(8, 2 * count))
    else:
        outputs.write(path, count, (3, height, width), pairs(), names=list(map(_called, names)))


def _called(name: str) -> str:
    """What the file of an observation's map is called after: four of digits/four.png, more-19 of more.npy[19]."""
    number = name[name.rindex("[") : -1] if name.endswith("]") else ""
    return _UNUSUAL.sub("-", Path(name).stem + number)


def _beside(pairs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images [2 n, C, H, W], of which the odd ones come to lie right of the even ones: [n, C, H, 2 W]."""
    return np.concatenate([pairs[::2], pairs[1::2]], axis=3)


def _write_plot(path: Path, detector: Detector, batches: Batches, names: Iterator[str], count: int) -> str:
    from vae_runtime import plots

    shape, most = detector.vae.observation.shape, plots.mapped(detector.vae)
    shown, called = Mapped(np.zeros((0, *shape)), np.zeros(0), np.zeros((0, *shape))), np.zeros(0, object)
    for batch in batches:
        both = Mapped(*map(np.concatenate, zip(shown, batch, strict=True)))
        called = np.concatenate([called, np.array(list(islice(names, len(batch.x))), object)])
        oddest = np.argsort(-both.score, kind="stable")[:most]
        shown, called = Mapped(*(each[oddest] for each in both)), called[oddest]
    plots.maps(path, detector.vae, shown.x, shown.deviations, detector.calibration.places, called.tolist())
    which = f"the {len(called)} oddest of {count:,}, " if len(called) < count else ""
    return f"{which}red where a value fits the model less than is usual there, blue where it fits it more"


def _rows(detector: Detector, batches: Batches, names: Iterator[str]) -> Iterator[tuple[list[Any], list[float]]]:
    """What a line begins with, and its numbers: of rows one for each, of windows one for each step."""
    for batch in batches:
        for one, name in zip(batch.deviations, names, strict=False):
            if detector.vae.observation.kind == SERIES:
                yield from (([name, step], row) for step, row in enumerate(one.T.tolist()))
            else:
                yield [name], one.tolist()


def _head(vae: VAE) -> tuple[str, ...]:
    return STEPS if vae.observation.kind == SERIES else (vae.observation.noun,)


def _csv(detector: Detector, batches: Batches, names: Iterator[str]) -> Iterator[str]:
    from vae_runtime.reports import csv_line

    yield csv_line([*_head(detector.vae), *detector.vae.names])
    for begin, numbers in _rows(detector, batches, names):
        yield csv_line([*begin, *(f"{number:.4g}" for number in numbers)])


def _jsonl(detector: Detector, batches: Batches, names: Iterator[str]) -> Iterator[str]:
    for begin, numbers in _rows(detector, batches, names):
        of = dict(zip(detector.vae.names, (float(f"{number:.4g}") for number in numbers), strict=True))
        yield json.dumps({**dict(zip(_head(detector.vae), begin, strict=True)), "deviations": of})
