"""A person's own arrays: images [n, C, H, W], rows of numbers [n, D] or series [n, C, T]; the runtime reads the files.

An .npz may hold the classes `y` of its observations `x`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import array_files, sources, vectors
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import IMAGE, SERIES, VECTOR, Observation
from vae_runtime.tables import as_label
from vae_train import levels, rows, series
from vae_train.config import Config, DataConfig
from vae_train.data import Data, refuse_options, split


def observation(data: DataConfig) -> Observation:
    """Kind and shape of an array's observations, from its header alone; rows of numbers have no range.

    Raises InputError for an array of another shape; ArgumentError where it would need resizing.
    """
    path = Path(data.dataset)
    if data.image_size or data.channels:
        raise ArgumentError("an array's observations are not resized", path, "leave out --image-size and --channels")
    found = array_files.array_shape(str(path), "x")
    what = f"array of shape {list(found)}"
    if data.window is not None:
        if len(found) == 3 and found[2] == data.window:
            return series.observation(found[1], data.window, "gaussian")
        if len(found) not in (1, 2):
            todo = f"give rows in order [n, C], or windows [n, C, {data.window}]"
            raise InputError(what, path, todo)
        return series.observation(found[1] if len(found) == 2 else 1, data.window, "gaussian")
    if len(found) == 2:
        return Observation(VECTOR, found[1:], None)
    if len(found) not in (3, 4):
        raise InputError(what, path, "give images [n, C, H, W] or [n, H, W], or rows of numbers [n, D]")
    channels = found[1] if len(found) == 4 else 1
    if channels not in (1, 3) and found[3] in (1, 3):
        raise InputError(what, path, "put the channels first: x.transpose(0, 3, 1, 2)")
    if channels not in (1, 3):
        raise InputError(what, path, "give images of 1 (grey) or 3 (RGB) channels")
    return Observation.image((channels, *found[-2:]))


def count(data: DataConfig) -> int:
    """How many observations an array has; of rows about how many windows are trained on."""
    found = array_files.array_shape(data.dataset, "x")
    if data.window is None or len(found) == 3:
        return found[0]
    return found[0] // (data.stride or series.stride_of(data.window, found[0]))


def load(config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
    """The observations of the array that `config.data` names; `warn` is told what is lost, `say` what is noticed.

    Raises InputError where they cannot be read, are no numbers or are too few; ArgumentError where the likelihood is
    not one of such values.
    """
    path, kind = Path(config.data.dataset), observation(config.data)
    own = {VECTOR: ("normal", "held_out", "missing"), SERIES: ("window", "stride", "missing", "held_out"), IMAGE: ()}
    refuse_options(config.data, own[kind.kind])
    if kind.kind == SERIES:
        return _series(config, kind, say)
    if kind.kind == VECTOR:
        return _rows(config, kind, say)
    read = sources.Observations([path], kind, Preprocessing(config.data.levels))
    pixels = levels.joined([levels.kept(x) for x in read.batches(1024)])
    x, rounded = levels.observed(pixels, config.network.likelihood, warn)
    preprocessing: dict[str, Any] = {"levels": "as they are", **rounded}
    preprocessing |= {"full_scale": config.data.levels} if config.data.levels else {}
    labels = _labels(path, len(x), kind.noun)
    if labels is None:
        return split(x, np.zeros(len(x), np.int64), ["all"], kind, preprocessing)
    classes, numbers = np.unique(labels, return_inverse=True)
    return split(x, numbers.astype(np.int64), classes.tolist(), kind, preprocessing)


def _series(config: Config, kind: Observation, say: Callable[[str], None]) -> Data:
    """Series of rows in order, or of windows that are cut already."""
    name, values = array_files.read_array(config.data.dataset, "x")
    vectors.check(values.dtype, name)
    doubles = values.astype(np.float64) + 0.0
    drop = config.data.missing == "drop"
    if drop and values.ndim == 3:
        doubles = doubles[~np.isnan(doubles).any(axis=(1, 2))]
    file = None if values.ndim == 3 else series.as_file(doubles, drop)
    whole = doubles if file is None else file.values
    vectors.refuse_infinite(whole, whole, name, range(len(whole)) if file is None else file.rows.tolist())
    if left_out := len(values) - len(whole):
        noun = kind.noun if file is None else "row"
        say(f"{left_out:,} of {len(values):,} {noun}s have a missing value and are left out")
    if file is None:
        return series.of_windows(config, name, doubles, say)
    channels = [f"column {i}" for i in range(kind.shape[0])]
    return series.prepared(config, name, channels, {name: file}, None, say)


def _rows(config: Config, kind: Observation, say: Callable[[str], None]) -> Data:
    """Rows of numbers, in float64 until they are scaled."""
    name, read = array_files.read_array(config.data.dataset, "x")
    vectors.check(read.dtype, name)
    values = read.astype(np.float64, order="C")
    del read  # there may be millions
    values += 0.0  # 0.0 for -0.0: equal rows are equal bytes
    labels = _labels(Path(config.data.dataset), len(values), kind.noun)
    numbers: Sequence[int] = range(len(values))
    missing = np.logical_or.reduce(np.isnan(values), axis=1)
    if config.data.missing == "drop" and missing.any():
        say(f"{missing.sum():,} of {len(missing):,} rows have a missing value and are left out")
        numbers = np.flatnonzero(~missing).tolist()
        rows.keep(values, ~missing)
        labels = None if labels is None else labels[~missing]
    vectors.refuse_infinite(values, values, name, numbers)
    return rows.prepared(config, name, [f"column {i}" for i in range(kind.size)], values, labels, say)


def _labels(path: Path, observations: int, noun: str) -> NDArray[np.str_] | None:
    """The label of each observation, where an .npz has them. Raises InputError where they are not as many."""
    labelled = False
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            labelled = "y" in archive.files
    if not labelled:
        return None
    y = array_files.read_array(str(path), "y")[1]
    if y.shape != (observations,):
        todo = f"give one for each of its {observations:,} {noun}s"
        raise InputError(f"labels y of shape {list(y.shape)}", path, todo)
    return np.array([as_label(label) for label in y.astype(str).tolist()])
