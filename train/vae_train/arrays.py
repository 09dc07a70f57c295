"""A person's own arrays: images [n, C, H, W], rows of numbers [n, D] or series [n, C, T]; the runtime reads the files.

An .npz may hold the classes `y` of its observations `x`.
"""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import array_files, sources, vectors
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import IMAGE, SERIES, VECTOR, Observation, Shape
from vae_runtime.tables import as_label
from vae_train import levels, rows, series
from vae_train.config import Config, DataConfig
from vae_train.data import Data, apart, refuse_options, split

OWN = {VECTOR: ("normal", "held_out", "missing"), SERIES: ("window", "stride", "missing", "held_out"), IMAGE: ()}


def observation(data: DataConfig) -> Observation:
    """Kind and shape of an array's observations, from its header alone; rows of numbers have no range.

    Raises InputError for an array of another shape; ArgumentError where it would need resizing.
    """
    return observation_of(array_files.array_shape(data.dataset, "x"), data)


def observation_of(found: Shape, data: DataConfig) -> Observation:
    """Kind and shape of the observations of an array of the shape `found`. Raises as `observation` does."""
    name = data.dataset
    if data.image_size or data.channels:
        raise ArgumentError("an array's observations are not resized", name, "leave out --image-size and --channels")
    what = f"array of shape {list(found)}"
    if 0 in found:
        raise InputError(what, name, "it holds no value: give some dozens of observations")
    if data.window is not None:
        if len(found) == 3 and found[2] == data.window:
            return series.observation(found[1], data.window, "gaussian")
        if len(found) not in (1, 2):
            todo = f"give rows in order [n, C], or windows [n, C, {data.window}]"
            raise InputError(what, name, todo)
        return series.observation(found[1] if len(found) == 2 else 1, data.window, "gaussian")
    if len(found) == 2:
        return Observation(VECTOR, found[1:], None)
    if len(found) not in (3, 4):
        raise InputError(what, name, "give images [n, C, H, W] or [n, H, W], or rows of numbers [n, D]")
    channels = found[1] if len(found) == 4 else 1
    if channels not in (1, 3) and found[3] in (1, 3):
        raise InputError(what, name, "put the channels first: x.transpose(0, 3, 1, 2)")
    if channels not in (1, 3):
        raise InputError(what, name, "give images of 1 (grey) or 3 (RGB) channels")
    return Observation.image((channels, *found[-2:]))


def count(data: DataConfig) -> int:
    """How many observations an array has; of rows about how many windows are trained on."""
    return count_of(array_files.array_shape(data.dataset, "x"), data)


def count_of(found: Shape, data: DataConfig) -> int:
    """How many observations an array of the shape `found` has; of rows about how many windows are trained on."""
    if data.window is None or len(found) == 3:
        return found[0]
    return found[0] // (data.stride or series.stride_of(data.window, found[0]))


def load(config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
    """The observations of the array that `config.data` names; `warn` is told what is lost, `say` what is noticed.

    Raises InputError where they cannot be read, are no numbers or are too few; ArgumentError where the likelihood is
    not one of such values.
    """
    path, kind = Path(config.data.dataset), observation(config.data)
    refuse_options(config.data, (*OWN[kind.kind], "test"))
    other = config.data.test
    apart([path], [] if other is None else [Path(other)])
    if kind.kind != IMAGE:
        name, read = array_files.read_array(config.data.dataset, "x")
        kept = None if other is None else array_files.read_array(other, "x")[1]
        if kept is not None and (kept.shape[1:] != read.shape[1:] or not len(kept)):
            raise InputError(f"array of shape {list(kept.shape)}", other, f"give one as {path}, {list(read.shape)}")
        vectors.check(read.dtype, name)
        columns = [f"column {i}" for i in range(kind.shape[0])]
        if kind.kind == SERIES:
            return of_series(config, name, columns, read, say, kept)
        values, test = read.astype(np.float64, order="C"), None
        if kept is not None:
            vectors.check(kept.dtype, str(other))
            values, test = np.concatenate([values, kept]), np.repeat([False, True], [len(read), len(kept)])
        del read, kept  # there may be millions
        return of_rows(config, name, columns, values, _labels_of_both(config.data, kind.noun), say, test)
    files = [config.data.dataset] if other is None else [config.data.dataset, other]
    images = sources.Observations(files, kind, Preprocessing(config.data.levels))
    pixels = levels.joined([levels.kept(x) for x in images.batches(1024)])
    tested = 0 if other is None else array_files.array_shape(other, "x")[0]
    return of_images(config, kind, pixels, _labels_of_both(config.data, kind.noun), warn, tested)


def of_images(
    config: Config,
    kind: Observation,
    pixels: levels.Pixels,
    labels: NDArray[np.str_] | None,
    warn: Callable[[str], None],
    kept: int = 0,
) -> Data:
    """The data of a training from images [n, C, H, W], and a label for each if there are any.

    kept: how many, the last ones, are for testing, where that is said; 0 for a tenth.
    """
    x, rounded = levels.observed(pixels, config.network.likelihood, warn)
    preprocessing: dict[str, Any] = {"levels": "as they are", **rounded}
    preprocessing |= {"full_scale": config.data.levels} if config.data.levels else {}
    names, numbers = ["all"], np.zeros(len(x), np.int64)
    if labels is not None:
        classes, found = np.unique(labels, return_inverse=True)
        names, numbers = classes.tolist(), found.astype(np.int64)
    return split(x, numbers, names, kind, preprocessing, kept=kept)


def of_rows(
    config: Config,
    name: str,
    columns: Sequence[str],
    values: NDArray[np.float64],
    labels: NDArray[np.str_] | None,
    say: Callable[[str], None],
    test: NDArray[np.bool_] | None = None,
) -> Data:
    """The data of a training from rows [n, D], which are used up, and a label for each if there are any.

    test: which are kept for testing, bool [n], where somebody has chosen them. name: of the source, for errors.
    """
    values += 0.0  # 0.0 for -0.0: equal rows are equal bytes
    numbers: Sequence[int] = range(len(values))
    missing = np.logical_or.reduce(np.isnan(values), axis=1)
    if config.data.missing == "drop" and missing.any():
        say(f"{missing.sum():,} of {len(missing):,} rows have a missing value and are left out")
        numbers = np.flatnonzero(~missing).tolist()
        rows.keep(values, ~missing)
        labels = None if labels is None else labels[~missing]
        test = None if test is None else test[~missing]
    vectors.refuse_infinite(values, values, name, numbers)
    return rows.prepared(config, name, columns, values, labels, say, test)


def of_series(
    config: Config,
    name: str,
    channels: Sequence[str],
    values: NDArray[Any],
    say: Callable[[str], None],
    kept: NDArray[Any] | None,
) -> Data:
    """The data of a training from rows in order [n, C], or [n] of one channel, or windows [n, C, T].

    kept: others of them, for testing; None for a part of these. name: of the source, for errors.
    """
    cut = values.ndim == 3
    parts = [_whole(config, name, part, say) for part in (values, kept) if part is not None]
    if cut:
        whole = np.concatenate([np.asarray(part) for part in parts])
        return series.of_windows(config, name, channels, whole, say, None if kept is None else len(parts[1]))
    files = {name: parts[0]}
    test = None if kept is None else {f"{name} to test": parts[1]}
    return series.prepared(config, name, channels, files, None, say, test)


def _whole(config: Config, name: str, values: NDArray[Any], say: Callable[[str], None]) -> Any:
    """Rows in order as those of a file, or windows [n, C, T] in float64, without those that are to be left out."""
    vectors.check(values.dtype, name)
    doubles = values.astype(np.float64) + 0.0
    drop = config.data.missing == "drop"
    if values.ndim == 3:
        whole = doubles[~np.isnan(doubles).any(axis=(1, 2))] if drop else doubles
        vectors.refuse_infinite(whole, whole, name, range(len(whole)))
    else:
        file = series.as_file(doubles, drop)
        whole = file.values
        vectors.refuse_infinite(whole, whole, name, file.rows.tolist())
    if left_out := len(values) - len(whole):
        noun = "window" if values.ndim == 3 else "row"
        say(f"{left_out:,} of {len(values):,} {noun}s have a missing value and are left out")
    return whole if values.ndim == 3 else file


def _labels_of_both(data: DataConfig, noun: str) -> NDArray[np.str_] | None:
    """The labels of what is trained on and of what lies apart to be tested on, where all have them."""
    parts = [_labels(Path(path), noun) for path in (data.dataset, data.test) if path is not None]
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _labels(path: Path, noun: str) -> NDArray[np.str_] | None:
    """The label of each observation, where an .npz has them. Raises InputError where they are not as many."""
    labelled = False
    if path.suffix == ".npz" and zipfile.is_zipfile(path):  # it may be an .npy by another name
        with np.load(path, allow_pickle=False) as archive:
            labelled = "y" in archive.files
    if not labelled:
        return None
    y, observations = array_files.read_array(str(path), "y")[1], array_files.array_shape(str(path), "x")[0]
    if y.shape != (observations,):
        todo = f"give one for each of its {observations:,} {noun}s"
        raise InputError(f"labels y of shape {list(y.shape)}", path, todo)
    return np.array([as_label(label) for label in y.astype(str).tolist()])
