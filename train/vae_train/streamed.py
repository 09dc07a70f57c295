"""Observations that are read as they are trained on, and never held as a whole: of a Dataset, or of batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime.errors import InputError

SAMPLE = 2000  # observations of what is trained on that are held, from all over it
_MIXED = 10_000  # observations of batches that are held to be mixed
_AT_A_TIME = 256  # items

Prepare = Callable[[NDArray[Any]], NDArray[Any]]  # from items [batch, ...] to what networks are trained on


class Streamed:
    """What is trained on, where a tensor [n, *shape] would hold it all. `sample`: up to SAMPLE of them, held.

    prepare: brings items to the networks' shape and scale.
    """

    def __init__(self, count: int, sample: Tensor, prepare: Prepare) -> None:
        self.sample, self._count, self._prepare = sample, count, prepare
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return self._count

    @property
    def dtype(self) -> torch.dtype:
        """Of each observation: uint8 levels, or float32."""
        return self.sample.dtype

    def to(self, device: torch.device) -> "Streamed":
        """Give observations on this device from now on, as `Tensor.to` would."""
        self._device = device
        return self

    def _ready(self, items: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._prepare(items))).to(self._device)


class Items(Streamed):
    """Those of a map-style Dataset, by the numbers of its items in `rows`; in the order that a training asks for."""

    def __init__(self, dataset: Any, rows: NDArray[np.int64], prepare: Prepare) -> None:
        self._dataset, self._rows = dataset, rows
        spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)]
        sample = np.concatenate([prepare(items) for items, _ in read(dataset, spread)])
        super().__init__(len(rows), torch.from_numpy(sample), prepare)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Those of these numbers, [len(rows), *shape], as `Tensor.index_select` gives them along the first axis."""
        assert dim == 0
        chosen = self._rows[rows.cpu().numpy()]
        return torch.cat([self._ready(items) for items, _ in read(self._dataset, chosen)])


class Batches(Streamed):
    """Those of batches that come in an order of their own; some thousands at a time are mixed, as a seed says."""

    def __init__(self, batches: Iterable[Any], count: int, sample: Tensor, prepare: Prepare) -> None:
        self._batches = batches
        super().__init__(count, sample, prepare)

    def mixed(self, size: int, seed: tuple[int, ...]) -> Iterator[Tensor]:
        """All of them once, `size` at a time. Raises InputError where they are not as many as before."""
        generator, seen = np.random.default_rng(seed), 0
        held: list[NDArray[Any]] = []
        waiting = 0

        def given() -> Iterator[NDArray[Any]]:
            """The held ones in random order; those that make no whole batch are held until the last."""
            items = np.concatenate(held)[generator.permutation(waiting)]
            whole = waiting if seen == self._count else waiting - waiting % size
            held[:] = [items[whole:]]
            yield from (items[i : i + size] for i in range(0, whole, size))

        for items, _ in batches_of(self._batches):
            held.append(items)
            waiting, seen = waiting + len(items), seen + len(items)
            if waiting >= max(_MIXED, size) and seen < self._count:
                yield from map(self._ready, given())
                waiting = len(held[0])
        if seen != self._count:
            which = f"{seen:,} observations, and {self._count:,} before"
            raise InputError("batches are others than before", which, "give what can be iterated over again")
        yield from map(self._ready, given())


def read(dataset: Any, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], list[Any] | None]]:
    """The items of a Dataset of these numbers, [at most _AT_A_TIME, ...] at a time, and their labels if they have any.

    Raises InputError for items that are no arrays of numbers, or of different shapes.
    """
    for start in range(0, len(rows), _AT_A_TIME):
        yield _stacked(dataset, rows[start : start + _AT_A_TIME].tolist())


def _stacked(dataset: Any, rows: list[int]) -> tuple[NDArray[Any], list[Any] | None]:
    """Items of these numbers in one array, after which nothing holds them, and their labels."""
    found = dataset.__getitems__(rows) if hasattr(dataset, "__getitems__") else [dataset[i] for i in rows]
    pairs = [item if isinstance(item, tuple | list) else (item,) for item in found]
    arrays = [_numbers(pair[0], f"item {i}") for i, pair in zip(rows, pairs, strict=True)]
    if odd := [i for i, array in zip(rows, arrays, strict=True) if array.shape != arrays[0].shape]:
        which = f"item {odd[0]}, and {list(arrays[0].shape)} of item {rows[0]}"
        raise InputError("items of different shapes", which, "give all of one shape")
    return np.stack(arrays), [pair[1] for pair in pairs] if all(len(pair) > 1 for pair in pairs) else None


def batches_of(batches: Iterable[Any]) -> Iterator[tuple[NDArray[Any], list[Any] | None]]:
    """The batches [batch, ...], and their labels if they have any. Raises InputError for what is none."""
    for number, batch in enumerate(batches):
        pair = batch if isinstance(batch, tuple | list) else (batch,)
        x = _numbers(pair[0], f"batch {number}")
        if x.ndim < 2:
            todo = "give batches [batch, ...], as a DataLoader does"
            raise InputError(f"a batch of shape {list(x.shape)}", f"batch {number}", todo)
        yield x, list(pair[1]) if len(pair) > 1 else None


def _numbers(values: Any, name: str) -> NDArray[Any]:
    x = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if not (isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "fbiu"):
        todo = "give arrays or tensors, or pairs of one and a label; torchvision's ToTensor makes them of images"
        raise InputError(f"{type(values).__name__} is no array of numbers", name, todo)
    return np.asarray(x)
