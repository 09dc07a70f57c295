"""A person's own Dataset, or batches that can be iterated over again, as the data of a training: read as it goes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime import images
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.likelihoods import DiscretisedLogistic
from vae_runtime.manifest import Column
from vae_runtime.observation import IMAGE, Observation
from vae_runtime.vectors import Scaling, refuse_infinite
from vae_train import arrays, levels, rows
from vae_train.config import AUTO, Config, DataConfig
from vae_train.data import TEST_SHARE, Data, refuse_options
from vae_train.given import Arrays
from vae_train.streamed import SAMPLE, Batches, Items, Streamed, batches_of, read

MOST_TESTED = 10_000  # observations that are chosen to test on
_PAIR = tuple[NDArray[Any], list[Any] | None]  # observations, and their labels


def is_stream(values: Any) -> bool:
    """Whether observations are to be read as they are trained on, and are no array. Raises InputError for iterators."""
    if isinstance(values, np.ndarray | torch.Tensor | list | tuple) or hasattr(values, "__array__"):
        return False
    if _is_map(values):
        return True
    if not hasattr(values, "__iter__") or hasattr(values, "to_numpy"):
        return False
    if isinstance(values, torch.utils.data.IterableDataset):
        todo = "give batches: torch.utils.data.DataLoader(dataset, batch_size=256)"
        raise InputError("a Dataset of single items that come in order", type(values).__name__, todo)
    if iter(values) is values:
        todo = "each epoch needs them again: give a DataLoader, or a class whose __iter__ begins anew"
        raise InputError("an iterator, which is spent after one pass", type(values).__name__, todo)
    return True


def _is_map(values: Any) -> bool:
    return isinstance(values, torch.utils.data.Dataset) and hasattr(values, "__len__")


class Moments:
    """Number, mean and sum of squared differences of columns, and what else their scales follow from, in one pass.

    Parts are merged as Chan, Golub and LeVeque (1983, The American Statistician 37) do. flags: whether a column holds
    0 and 1 alone.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(columns), np.zeros(columns)
        self.flags = np.ones(columns, np.bool_)
        self.low, self.high = np.full(columns, np.inf), np.full(columns, -np.inf)

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in rows [n, D]."""
        n, mean = len(values), values.mean(axis=0)
        off = mean - self.mean
        self.squares += np.square(values - mean).sum(axis=0) + off * off * (self.count * n / (self.count + n))
        self.mean += off * (n / (self.count + n))
        self.count += n
        self.flags &= ((values == 0) | (values == 1)).all(axis=0)
        self.low, self.high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation of each column."""
        return np.sqrt(self.squares / self.count)


class _Looked(NamedTuple):
    """What one pass over batches has found: how many observations, some of them, and of rows their moments."""

    total: int
    sample: NDArray[Any]
    moments: Moments | None


class Streams:
    """Observations of a Dataset or of batches; what `train` takes as `given`. Those to test on are held in memory.

    train: a map-style Dataset, items x or (x, label), or an iterable of batches x or (x, label) that can be iterated
    over again. x: images [C, H, W] or [H, W], uint8 levels or floats in [0, 1], or rows [D]. test: as `train`, or an
    array; None for up to MOST_TESTED of a Dataset, a tenth at most, which the seed chooses. columns: names of those of
    rows.

    Raises InputError for what is neither.
    """

    def __init__(
        self,
        train: Any,
        test: Any = None,
        labels: Any = None,
        test_labels: Any = None,
        columns: Any = None,
        label: Any = None,
    ) -> None:
        if labels is not None or label is not None:
            raise ArgumentError("labels beside a Dataset", "labels", "let its items be pairs (x, label)")
        if test is None and not _is_map(train):
            raise ArgumentError(
                "batches without test data", type(train).__name__, "give test too: an array, or batches"
            )
        self._train, self._map = train, _is_map(train)
        first, _ = next(read(train, np.zeros(1, np.int64)) if self._map else batches_of(train), (None, None))
        if first is None or (self._map and len(train) < 2):
            raise InputError("no observations", type(train).__name__, "give some hundreds")
        self._first = first[:1]  # [1, ...]
        self._columns = None if columns is None else tuple(columns)
        self._test: NDArray[Any] | None = None
        self._test_labels: list[Any] | None = None
        if test is not None:
            self._test, self._test_labels = _held(test, test_labels)
        if self._test is not None and self._test.shape[1:] != first.shape[1:]:
            which = f"train {list(first.shape[1:])}, test {list(self._test.shape[1:])}"
            raise InputError("test observations of another shape", which, "give both of one shape")
        self.loaded: Data | None = None

    @property
    def once(self) -> bool:
        """Whether their order is their own, so that a training cannot go on from within an epoch."""
        return not self._map

    def usual_window(self) -> int:
        """Raises ArgumentError: there are no windows of streams."""
        raise ArgumentError("series are not streamed", type(self._train).__name__, "give an array, or a path")

    def observation(self, data: DataConfig) -> Observation:
        """Kind and shape of the observations. Raises what `arrays.observation` does."""
        if data.window is not None:
            self.usual_window()
        return arrays.observation_of(self._first.shape, data)

    def count(self, data: DataConfig) -> int:
        """How many observations a Dataset has; of batches, which are not counted before they are read, 0."""
        return len(self._train) if self._map else 0

    def fitted(self, config: Config, say: Callable[[str], None]) -> Config:
        """The settings as they are. Raises ArgumentError where they do not go with streams."""
        kind = self.observation(config.data)
        refuse_options(config.data)
        if config.data.levels:
            raise ArgumentError("levels of 16 bits are not streamed", config.data.dataset, "give floats in [0, 1]")
        if config.data.augment and kind.kind != IMAGE:
            raise ArgumentError("augment is for images", config.data.dataset, "leave it out")
        return config

    def load(self, config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
        """The data of a training, which `loaded` has then; of batches, and of rows, after a pass over them.

        Raises InputError where they cannot be trained on; ArgumentError for a likelihood of other observations.
        """
        make = self._images if self.observation(config.data).kind == IMAGE else self._rows
        self.loaded = make(config, warn, say)
        return self.loaded

    def _images(self, config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
        kind, name, likelihood = self.observation(config.data), config.data.dataset, config.network.likelihood
        as_levels = self._first.dtype.kind in "ub" or likelihood == DiscretisedLogistic.name
        how = {"levels": "as they are"}
        if self._first.dtype.kind == "f" and as_levels:
            warn(f"{likelihood}: pixels are rounded to its 8-bit levels; --likelihood gaussian keeps them all")
            how["rounded"] = "to 8-bit levels"

        chosen, test, labels = self._split(config, say, how)
        if self._first.dtype.kind != test.dtype.kind and "f" in (self._first.dtype.kind, test.dtype.kind):
            which = f"train {self._first.dtype}, test {test.dtype}"
            raise InputError("levels and floats to train and to test on", which, "give both of one type")

        def prepare(items: NDArray[Any]) -> NDArray[Any]:
            pixels = _pixels(items, kind, name)
            return levels.to_levels(pixels) if as_levels else pixels

        train: Streamed
        if self._map:
            train = Items(self._train, chosen, prepare)
        else:
            looked = self._look(config, None)
            train = Batches(self._train, looked.total, torch.from_numpy(prepare(looked.sample)), prepare)
        return _data(train, prepare(test), labels, how, kind)

    def _rows(self, config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
        name, likelihood, size = config.data.dataset, config.network.likelihood, self._first.shape[1]
        columns = self._columns or tuple(f"column {i}" for i in range(size))
        if len(columns) != size:
            raise ArgumentError("names of columns do not fit", f"{len(columns)} for {size}", "give one for each")
        how: dict[str, Any] = {}
        chosen, test, labels = self._split(config, say, how)
        moments = Moments(size)
        looked = None
        if self._map:
            for items, _ in read(self._train, chosen):
                moments.add(_finite(items, size, name, chosen[moments.count : moments.count + len(items)]))
        else:
            looked = self._look(config, moments)
        tested = Moments(size)
        tested.add(_finite(test, size, "test"))
        flags = moments.flags & tested.flags
        rows.refuse_levels(likelihood, name)
        living = [i for i in range(size) if moments.low[i] < moments.high[i]]
        if not living:
            raise InputError("all columns are constant", name, "give columns that differ from row to row")
        if constant := [f"{columns[i]} ({moments.low[i]:g})" for i in range(size) if i not in living]:
            say(f"constant columns are left out: {', '.join(constant)}")
        if likelihood == "bernoulli" and (other := [columns[i] for i in living if not flags[i]]):
            what = "values other than 0 and 1 under a Bernoulli likelihood"
            raise InputError(what, f"{name}, column {other[0]}", "add --likelihood gaussian")
        if likelihood == AUTO:
            likelihood = rows.chosen([columns[i] for i in living if flags[i]], len(living), say)
        binary = [likelihood == "bernoulli" or (likelihood == "mixed" and bool(flags[i])) for i in living]
        known = [
            Column(columns[i])
            if as_it_is
            else rows.scaled_column(columns[i], float(moments.mean[i]), float(moments.spread[i]))
            for i, as_it_is in zip(living, binary, strict=True)
        ]
        kind = rows.observation([column.name for column in known], likelihood)
        scaling = Scaling.of(known, kind)
        assert scaling is not None

        def prepare(items: NDArray[Any]) -> NDArray[Any]:
            return scaling.standardise(_finite(items, size, name)[:, living])

        how = {"columns": [rows.written(column) for column in known], **how}
        train: Streamed
        if looked is None:
            train = Items(self._train, chosen, prepare)
        else:
            train = Batches(self._train, looked.total, torch.from_numpy(prepare(looked.sample)), prepare)
        return _data(train, prepare(test), labels, how, kind, likelihood)

    def _split(
        self, config: Config, say: Callable[[str], None], how: dict[str, Any]
    ) -> tuple[NDArray[np.int64], NDArray[Any], list[Any] | None]:
        """The numbers of the items to train on, those to test on, and the latter's labels; `how` is told which."""
        everything = np.arange(len(self._train) if self._map else 0)
        if self._test is not None:
            how["split"] = "given"
            return everything, self._test, self._test_labels
        count = max(1, min(MOST_TESTED, round(TEST_SHARE * len(everything))))
        order = np.random.default_rng(config.optimiser.seed).permutation(len(everything))
        kept, rest = np.sort(order[:count]), np.sort(order[count:])
        how["split"] = f"{count:,} of {len(everything):,}, by seed {config.optimiser.seed}"
        say(f"{count:,} of {len(everything):,} items are held in memory to test on, chosen by the seed")
        return rest, *_joined(read(self._train, kept))

    def _look(self, config: Config, moments: Moments | None) -> _Looked:
        """One pass over batches: how many observations there are, and some of them from all over (a reservoir)."""
        generator, count, sample = np.random.default_rng(config.optimiser.seed), 0, np.empty(0)
        for items, _ in batches_of(self._train):
            if items.shape[1:] != self._first.shape[1:]:
                which = f"{list(items.shape[1:])}, and {list(self._first.shape[1:])} before"
                raise InputError("batches of different shapes", which, "give all of one shape")
            if moments is not None:
                numbers = np.arange(count, count + len(items))
                moments.add(_finite(items, items.shape[1], config.data.dataset, numbers))
            room = max(0, SAMPLE - count)
            sample = items[:room].copy() if count == 0 else np.concatenate([sample, items[:room]]) if room else sample
            later = np.arange(count + len(items[:room]), count + len(items))
            places = generator.integers(0, later + 1)
            for place, item in zip(places.tolist(), items[room:], strict=True):
                if place < SAMPLE:
                    sample[place] = item
            count += len(items)
        return _Looked(count, sample, moments)


def gathered(values: Any) -> tuple[NDArray[Any], list[Any] | None]:
    """All observations of a Dataset or of batches in one array [n, ...], and their labels if they have any."""
    found = read(values, np.arange(len(values))) if _is_map(values) else batches_of(values)
    return _joined(found)


def _held(test: Any, labels: Any) -> tuple[NDArray[Any], list[Any] | None]:
    """Test observations as an array, and their labels."""
    if is_stream(test):
        x, own = gathered(test)
        return x, own if labels is None else list(labels)
    return Arrays(test).x, None if labels is None else list(labels)


def _joined(parts: Iterable[_PAIR]) -> tuple[NDArray[Any], list[Any] | None]:
    found = list(parts)
    if not found:
        raise InputError("no observations", "an empty part to test on", "give some dozens")
    labels = [label for _, some in found for label in some or ()]
    return np.concatenate([x for x, _ in found]), labels or None


def _pixels(items: NDArray[Any], kind: Observation, name: str) -> NDArray[np.float32]:
    """Images [n, C, H, W] in [0, 1]. Raises InputError for others."""
    if items.dtype.kind not in "bf" and items.dtype != np.uint8:
        raise InputError(f"images of type {items.dtype}", name, "give uint8 levels, booleans or floats in [0, 1]")
    if items.shape[1:] not in (kind.shape, kind.shape[1:]):
        raise InputError(f"images of shape {list(items.shape[1:])}", name, f"give all of shape {list(kind.shape)}")
    return images.from_levels(items.reshape(-1, *kind.shape), None, name, 0)[0]


def _finite(items: NDArray[Any], size: int, name: str, numbers: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Rows [n, D], of these numbers, in float64. Raises InputError for others, and for what is not finite."""
    if items.shape[1:] != (size,):
        raise InputError(f"rows of shape {list(items.shape[1:])}", name, f"give all of {size} numbers")
    values: NDArray[np.float64] = items.astype(np.float64) + 0.0
    refuse_infinite(values, values, name, range(len(values)) if numbers is None else numbers.tolist())
    return values


def _data(
    train: Streamed,
    test: NDArray[Any],
    labels: Sequence[Any] | None,
    how: dict[str, Any],
    kind: Observation,
    likelihood: str = "gaussian",
) -> Data:
    names, numbers = ["all"], np.zeros(len(test), np.int64)
    if labels is not None:
        texts = np.array([str(label.item() if isinstance(label, torch.Tensor) else label) for label in labels])
        classes, found = np.unique(texts, return_inverse=True)
        names, numbers = classes.tolist(), found.astype(np.int64)
    tested = torch.from_numpy(np.ascontiguousarray(test))
    return Data(train, tested, torch.from_numpy(numbers), names, how, kind, likelihood)
