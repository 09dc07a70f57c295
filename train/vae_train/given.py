"""Observations in memory, as a person gives them to `fit`: arrays, tensors and data frames become a training's data."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vae_runtime import arguments, images, records, vectors
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.manifest import Column, Preprocessing
from vae_runtime.observation import IMAGE, SERIES, VECTOR, Observation
from vae_runtime.tables import as_label
from vae_runtime.vectors import Scaling
from vae_runtime.windows import Cutter, cut
from vae_train import arrays, levels, series
from vae_train.config import FULL_SCALE, Config, DataConfig
from vae_train.data import USUAL_WINDOW, Data, refuse_options, silent
from vae_train.run import Run
from vae_train.run_folder import Settings

_AT_A_TIME = 1024  # images
_FRAME = ("columns", "to_numpy")  # what makes a data frame, of pandas or polars


class Arrays:
    """Observations to train on, and those to test on where they are given apart; what `train` takes as `given`.

    x: [n, *shape], images [n, C, H, W] or [n, H, W], rows [n, D], rows in order [n, C] or windows [n, C, T]; a data
    frame has its columns' names. labels: the class of each, of any type. columns: the names of those of an array, or
    which of a data frame's are trained on. label: a data frame's column of classes.

    Raises InputError for what is no array of numbers, and where test and training observations differ in shape.
    """

    def __init__(
        self,
        train: Any,
        test: Any = None,
        labels: ArrayLike | None = None,
        test_labels: ArrayLike | None = None,
        columns: Sequence[str] | None = None,
        label: str | None = None,
    ) -> None:
        self.columns: tuple[str, ...] | None = None
        framed = is_frame(train)
        if framed:
            train, self.columns, found = _of_frame(train, columns, label, "train")
            labels = found if labels is None else labels
            if test is not None:
                test, _, found = _of_frame(test, self.columns, label, "test")
                test_labels = found if test_labels is None else test_labels
        elif label is not None:
            raise ArgumentError("a column of labels without column names", label, "give labels, or a data frame")
        self.x = _array(train, "train")
        self.test = None if test is None else _array(test, "test")
        if columns is not None and not framed:
            self.columns = tuple(columns)
            if self.x.ndim not in (1, 2, 3) or len(self.columns) != (self.x.shape[1] if self.x.ndim > 1 else 1):
                which = f"{len(self.columns)} for train of shape {list(self.x.shape)}"
                raise ArgumentError("names of columns do not fit", which, "give one for each, in their order")
        if self.test is not None and (self.test.shape[1:] != self.x.shape[1:] or not len(self.test)):
            which = f"train {list(self.x.shape)}, test {list(self.test.shape)}"
            raise InputError("test observations of another shape", which, "give both of one shape")
        self._of_both = labels is not None and (test is None or test_labels is not None)
        self._labels = _joined(_labels(labels, self.x, "labels"), _labels(test_labels, self.test, "test_labels"), self)

        self.loaded: Data | None = None

    def observation(self, data: DataConfig) -> Observation:
        """Kind and shape of the observations. Raises what `arrays.observation` does."""
        return arrays.observation_of(self.x.shape, data)

    def count(self, data: DataConfig) -> int:
        """How many observations are given to train on; of rows in order about how many windows."""
        return arrays.count_of(self.x.shape, data)

    once = False  # what `Streams` may be

    def usual_window(self) -> int:
        """How many rows are a window where nothing says it: of windows [n, C, T] T, of rows 64."""
        return self.x.shape[2] if self.x.ndim == 3 else USUAL_WINDOW

    def fitted(self, config: Config, say: Callable[[str], None]) -> Config:
        """The settings with the full scale of 16-bit levels, where it was not given, told from the largest one."""
        kind = self.observation(config.data)
        refuse_options(config.data, (*arrays.OWN[kind.kind], "label"))
        if config.data.augment and kind.kind != IMAGE:
            raise ArgumentError("augment is for images", config.data.dataset, "leave it out")
        deep = [part for part in (self.x, self.test) if part is not None and part.dtype.name == "uint16"]
        if kind.kind != IMAGE or not deep:
            if config.data.levels:
                raise ArgumentError("no 16-bit levels, which levels is for", config.data.dataset, "leave it out")
            return config
        return levels.scaled(config, max(int(part.max()) for part in deep), say)

    def load(self, config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
        """The data of a training from them, which `loaded` has then. Raises what `arrays.load` does."""
        self.loaded = self._load(config, warn, say)
        return self.loaded

    def _load(self, config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
        kind, name = self.observation(config.data), config.data.dataset
        columns = self.columns or [f"column {i}" for i in range(kind.shape[0])]
        if kind.kind == SERIES:
            return arrays.of_series(config, name, columns, self.x, say, self.test)
        if kind.kind == VECTOR:
            labels = self._labels if config.data.normal is None or self._of_both else None
            parts = [self.x] if self.test is None else [self.x, self.test]
            test = None if self.test is None else np.repeat([False, True], [len(self.x), len(self.test)])
            values = np.ascontiguousarray(np.concatenate(parts, dtype=np.float64))
            return arrays.of_rows(config, name, columns, values, labels, say, test)
        parts = [part for part in (self.x, self.test) if part is not None]
        vectors.check(np.result_type(*(part.dtype for part in parts)), name)
        pixels = levels.joined([each for part in parts for each in _pixels(part, kind, config.data.levels, name)])
        return arrays.of_images(config, kind, pixels, self._labels, warn, 0 if self.test is None else len(self.test))


def of_run(settings: Settings) -> dict[str, Any]:
    """What `Arrays` takes besides a data frame, so that it becomes the data of a run: its columns and label."""
    columns = records.parse(Preprocessing, settings.preprocessing).columns
    return {"columns": [column.name for column in columns], "label": settings.config.data.label}


def given_to(run: Run, test: Any) -> Data:
    """Test observations, given in memory, as those of a run, its columns scaled as they were; nothing to train on.

    Raises InputError where they are not such as the run's VAE takes.
    """
    kind, settings, name = run.observation, run.settings, "test"
    columns = records.parse(Preprocessing, settings.preprocessing).columns
    scaling = Scaling.of(columns, kind)
    if is_frame(test):
        test = _of_frame(test, [column.name for column in columns], None, name)[0]
    values = _array(test, name)
    if kind.kind == IMAGE:
        pixels = levels.joined(_pixels(values, kind, settings.config.data.levels, name))
        x = levels.observed(pixels, run.config.network.likelihood, silent)[0]
    else:
        if kind.kind == SERIES and values.ndim < 3:
            values = _cut_again(values, settings, name)
        if values.ndim > 1 and values.shape[1] > len(columns):  # with those that were constant
            values = values[:, _positions(columns, values.shape[1])]
        x = arguments.observations(values, kind, scaling=scaling)
    labels = torch.zeros(len(x), dtype=torch.int64)
    kept = torch.from_numpy(x)
    return Data(kept[:0], kept, labels, ["all"], settings.preprocessing, kind, before=settings.drawn_before)


def _cut_again(values: NDArray[Any], settings: Settings, name: str) -> NDArray[np.float64]:
    """The windows [n, C, T] of rows in order [n, C], or [n] of one channel, as a run's were cut."""
    data, length = settings.config.data, settings.observation.shape[1]
    overlap = settings.preprocessing.get("overlap", 1.0)  # without a stride of one's own it says what was taken
    vectors.check(values.dtype, name)
    rows = series.as_file(values.astype(np.float64) + 0.0, data.missing == "drop")
    found = [some.values for some in cut([rows], Cutter(length, data.stride or round(length / overlap)))]
    if not found:
        raise InputError(f"too few rows for windows of {length}", f"{name} of shape {list(values.shape)}", "give more")
    return np.concatenate(found)


def _positions(columns: Sequence[Column], count: int) -> list[int]:
    """Where the columns of a run lie in an array of so many: by their numbers, where they have no other names."""
    names = [f"column {i}" for i in range(count)]
    if unknown := [column.name for column in columns if column.name not in names]:
        todo = f"give its {len(columns)} columns: {', '.join(column.name for column in columns)[:200]}"
        raise InputError(f"{count} columns, and the run has {len(columns)}", unknown[0], todo)
    return [names.index(column.name) for column in columns]


def _pixels(values: NDArray[Any], kind: Observation, full_scale: int | None, name: str) -> list[levels.Pixels]:
    """Images [n, C, H, W] or [n, H, W] with the precision that they came with, some at a time."""
    if values.dtype.kind not in "bf" and values.dtype.name not in ("uint8", "uint16"):
        todo = "give uint8 or uint16 levels, booleans or floats in [0, 1]"
        raise InputError(f"images of type {values.dtype}", name, todo)
    values = values.reshape(-1, *kind.shape)
    starts = range(0, len(values), _AT_A_TIME)
    scale = full_scale or FULL_SCALE
    return [levels.kept(images.from_levels(values[i : i + _AT_A_TIME], scale, name, i)[0]) for i in starts]


def _array(values: Any, name: str) -> NDArray[Any]:
    """The values as an array of numbers. Raises InputError for what is none, or empty."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError("observations of different shapes", name, "give one array") from None
    if array.ndim == 0 or array.dtype.kind not in "fbiu":
        raise InputError(f"{type(values).__name__} is no array of numbers", name, "give an array, a tensor or a path")
    if not array.size:
        raise InputError("no observations", f"{name} of shape {list(array.shape)}", "give some dozens")
    return array


def is_frame(values: Any) -> bool:
    """Whether these are a data frame, with columns that have names."""
    return all(hasattr(values, name) for name in _FRAME)


def _of_frame(
    frame: Any, columns: Sequence[str] | None, label: str | None, name: str
) -> tuple[NDArray[Any], tuple[str, ...], Any]:
    """A data frame's numbers [n, D], their columns' names, and its labels if it has any.

    Raises InputError where a column is not there, or one to train on holds no numbers.
    """
    names = [str(column) for column in frame.columns]
    chosen = list(columns) if columns is not None else [column for column in names if column != label]
    if absent := [column for column in (*chosen, *filter(None, [label])) if column not in names]:
        raise InputError(f"no column {absent[0]}", name, f"it has {', '.join(names)[:200]}")
    arrays_of = [np.asarray(frame[frame.columns[names.index(column)]]) for column in chosen]
    for column, values in zip(chosen, arrays_of, strict=True):
        if values.dtype.kind not in "fbiu":
            todo = "leave it out of columns, or make numbers of it"
            raise InputError(f"column {column} holds no numbers", f"{name} ({values.dtype})", todo)
    labels = None if label is None else np.asarray(frame[frame.columns[names.index(label)]])
    return np.stack(arrays_of, axis=1), tuple(chosen), labels


def _labels(labels: Any, x: NDArray[Any] | None, name: str) -> list[str] | None:
    """The label of each observation as text; numbers in their shortest form. Raises InputError for others."""
    if labels is None:
        return None
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu()
    found = np.asarray(labels)
    if x is None or found.shape != (len(x),):
        todo = f"give one for each of {0 if x is None else len(x):,}"
        raise InputError(f"{name} of shape {list(found.shape)}", "they do not fit the observations", todo)
    return [as_label(label) for label in found.astype(str).tolist()]


def _joined(train: list[str] | None, test: list[str] | None, given: Arrays) -> NDArray[np.str_] | None:
    """The labels of both parts; where those of one part are not known they are nothing, so that the others count."""
    if train is None and (test is None or given.test is None):
        return None
    if given.test is None:
        return np.array(train)
    if test is None:
        return None  # those to train on show nowhere
    return np.array([*(test[:1] * len(given.x) if train is None else train), *test])
