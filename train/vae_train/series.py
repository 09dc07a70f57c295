"""Series to train on: rows in order of time, each channel scaled, cut into windows by the runtime's own code."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.indicators import Indicator
from vae_runtime.manifest import Column, Windows
from vae_runtime.observation import SERIES, Observation
from vae_runtime.tables import Block
from vae_runtime.vectors import Scaling
from vae_runtime.windows import Cutter, Starts, cut, usual_interval, usual_stride
from vae_train import rows
from vae_train.config import Config
from vae_train.data import TEST_SHARE, Data, too_few

_MANY = 20_000  # windows: where there are more, fewer overlap
_FEW = 200  # windows, below which figures mean little
_BLOCK = 2  # windows' lengths, of the blocks of rows that are kept for testing
_GOLDEN = (5**0.5 - 1) / 2
_IRREGULAR = 0.1  # share of the intervals between rows, above which their times are no clock

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
_Named = tuple[str, Block]  # a file's name, and its rows


def observation(channels: int, window: int, likelihood: str) -> Observation:
    """What windows of so many channels are under a likelihood: of 0 and 1, or of any real numbers."""
    return Observation(SERIES, (channels, window), (0.0, 1.0) if likelihood == "bernoulli" else None)


def stride_of(window: int, count: int) -> int:
    """At how many rows' distance windows begin where so many rows are trained on and no stride is given."""
    return max(1, min(usual_stride(window), math.ceil(count / _MANY)))


def prepared(
    config: Config,
    name: str,
    channels: Sequence[str | Indicator],
    files: Mapping[str, Block],
    time: str | None,
    say: Callable[[str], None],
    chosen: Mapping[str, Block] | None = None,
) -> Data:
    """The data of a training from the rows of files, in order of time; windows cross neither files nor gaps.

    A tenth of all rows is kept for testing, in blocks from all over or the last one, or the files `chosen`. Channels
    that are constant in the others are left out, and each one is scaled to mean 0 and spread 1 by these. name: of the
    source, for errors. files: by their names. time: the column of times.

    Raises InputError where there are too few rows for windows; ArgumentError for a likelihood of other observations.
    """
    window, likelihood = config.data.window, config.network.likelihood
    assert window is not None
    if not any(len(file.rows) for file in files.values()):
        raise InputError("no row has all values", name, "give rows that have them, or name columns with --columns")
    last = config.data.held_out == "last"
    train, test = _split(files, window, last) if chosen is None else (list(files.items()), list(chosen.items()))
    files = {**files, **(chosen or {})}
    rows.refuse_levels(likelihood, name)
    interval = _interval(list(files.values()), time, say)
    values = np.concatenate([np.zeros((0, len(channels))), *(file.values for _, file in train)])
    if len(values) < window:
        raise InputError(f"too few rows for windows of {window}", name, "give more, or a smaller --window")
    alive = rows.alive(channels, values, np.ones(len(values), bool), name, say)
    if likelihood == "bernoulli":
        for file in files.values():
            rows.refuse_others(file.values, channels, alive, name, file.rows)
    flags = [all(rows.holds_flags(file.values[:, i]) for file in files.values()) for i in alive]
    known = _columns(likelihood, channels, values, alive, flags)
    kind = observation(len(known), window, likelihood)
    stride = config.data.stride or stride_of(window, len(values))
    cutters = [(file, Cutter(window, stride, interval)) for file, _ in (*train, *test)]
    x, kept = (
        np.concatenate([
            np.zeros((0, *kind.shape), np.float32),
            *(_windows(*file, alive, known, cutter) for file, (_, cutter) in zip(part, some, strict=True)),
        ])
        for part, some in ((train, cutters[: len(train)]), (test, cutters[len(train) :]))
    )  # fmt: skip
    if not len(x) or not len(kept):
        raise InputError(f"too few rows for windows of {window}", name, "give more, or a smaller --window")
    _describe(cutters, len(x), say)
    on_device = Windows(config.data.stride or usual_stride(window), time if interval else None, interval)
    how = {
        "columns": [rows.written(column) for column in known],
        "windows": asdict(on_device),
        "split": _how(files, test, window, last) if chosen is None else "given",
        "overlap": max(1.0, window / stride),
    }
    labels = torch.zeros(len(kept), dtype=torch.int64)
    return Data(torch.from_numpy(x), torch.from_numpy(kept), labels, ["all"], how, kind)


def of_windows(
    config: Config,
    name: str,
    channels: Sequence[str],
    values: Doubles,
    say: Callable[[str], None],
    kept: int | None = None,
) -> Data:
    """The data of a training from windows [n, C, T]; the last tenth is kept, since neighbours may overlap.

    Those that share rows with one to test on are not trained on. kept: how many, the last ones, are for testing, where
    somebody has chosen them. Raises as `prepared` does.
    """
    likelihood = config.network.likelihood
    by_row = values.transpose(0, 2, 1)  # [n, T, C], as rows of files lie
    rows.refuse_levels(likelihood, name)
    if len(values) < 2:
        raise too_few(values, "window")
    border, length = len(values) - (kept or max(1, round(TEST_SHARE * len(values)))), values.shape[2]
    starts = Starts().of(values)
    trained = int(np.searchsorted(starts[:border], starts[border] - length, side="right"))
    if not trained:
        raise InputError(f"too few windows of {length} rows", name, "all share rows with those to test on: give more")
    if shared := border - trained:
        say(f"{shared:,} of {border:,} windows share rows with those to test on, and are not trained on")
    _say_few(trained, say)
    train = by_row[:trained].reshape(-1, len(channels))
    alive = rows.alive(channels, train, np.ones(len(train), bool), name, say)
    if likelihood == "bernoulli":
        every = by_row.reshape(-1, len(channels))
        rows.refuse_others(every, channels, alive, name, np.arange(len(every)) // by_row.shape[1])
    known = _columns(likelihood, channels, train, alive, [rows.holds_flags(by_row[..., i].ravel()) for i in alive])
    kind = observation(len(known), length, likelihood)
    scaling = Scaling.of(known, kind)
    assert scaling is not None
    x = _finite(scaling.standardise(values[:, alive]), name)
    split = "given" if kept else "the last tenth of the windows"
    stride = float(np.median(np.diff(starts[border:]))) if len(values) - border > 1 else length
    how = {"columns": [rows.written(column) for column in known], "split": split, "overlap": length / stride}
    labels = torch.zeros(len(values) - border, dtype=torch.int64)
    return Data(torch.from_numpy(x[:trained]), torch.from_numpy(x[border:]), labels, ["all"], how, kind)


def _columns(
    likelihood: str, channels: Sequence[str | Indicator], values: Doubles, alive: list[int], flags: list[bool]
) -> list[Column]:
    """Each channel with mean and spread of its values [n, C]; as they are where the likelihood knows them as binary.

    flags: which of those alive hold only 0 and 1, in the test part too.
    """
    binary = [likelihood == "bernoulli" or (likelihood == "mixed" and flag) for flag in flags]
    return [rows.column(channels[i], values[:, i], not flag) for i, flag in zip(alive, binary, strict=True)]


def _how(files: Mapping[str, Block], test: list[_Named], window: int, last: bool) -> str:
    """How the rows of files were split, in words."""
    kept, total = (sum(len(file.rows) for file in some) for some in ((file for _, file in test), files.values()))
    if last:
        return f"the last {kept:,} of {total:,} rows"
    return f"{kept:,} of {total:,} rows, in blocks of {_least(total, window)} from all over"


def _least(total: int, window: int) -> int:
    """How many rows are kept at least of so many, and how many a block of them has."""
    return min(_BLOCK * window, total // 3)


def _split(files: Mapping[str, Block], window: int, last: bool) -> tuple[list[_Named], list[_Named]]:
    """What is trained on, and a tenth of all rows, but two windows at least where there are so many."""
    total = sum(len(file.rows) for file in files.values())
    least = _least(total, window)
    kept = np.arange(total) >= total - max(round(TEST_SHARE * total), least) if last else blocks(total, least)
    train, test, before = [], [], 0
    for name, file in files.items():
        here = kept[before : before + len(file.rows)]
        before += len(file.rows)
        train += [(name, _part(file, ~here))] if not here.all() else []
        test += [(name, _part(file, here))] if here.any() else []
    return train, test


def blocks(total: int, length: int) -> NDArray[np.bool_]:
    """Which of so many rows are kept for testing: a tenth of them, bool [total], in blocks of `length` rows.

    They are two at least where a quarter of the rows is enough for that, and else one. Each lies in a stretch of its
    own, of which all are equally long, at a place that the golden ratio gives: however long a day or a week is, blocks
    lie at all of its hours, and do not meet the same one again and again.
    """
    fewest = 2 if 8 * length <= total else 1
    count = max(fewest, round(TEST_SHARE * total / max(1, length)))
    places = (np.arange(count) + np.arange(1, count + 1) * _GOLDEN % 1 * (1 - length * count / total)) * total / count
    kept = np.zeros(total, bool)
    kept[(places.astype(np.int64)[:, None] + np.arange(length)).ravel()] = True
    return kept


def _part(file: Block, some: NDArray[np.bool_]) -> Block:
    return Block(file.rows[some], file.values[some], None if file.times is None else file.times[some])


def _interval(files: Sequence[Block], time: str | None, say: Callable[[str], None]) -> float | None:
    """What usually lies between two rows; None where there are no times, or they are no clock."""
    interval, off = usual_interval(files)
    if time is not None and (interval is None or off > _IRREGULAR):
        say(f"times in column {time} are irregular, so that gaps are not looked for")
        return None
    if time is not None:
        say(f"column {time} has the rows' times, which are usually {interval:g} apart")
    return interval


def _windows(name: str, file: Block, alive: list[int], known: list[Column], cutter: Cutter) -> Floats:
    """The windows of a file's rows, [n, C, T], as the networks take them."""
    mean, scale = (np.array([getattr(column, part) for column in known]) for part in ("mean", "scale"))
    scaled = _finite(Scaling(mean, scale).standardise(file.values[:, alive]), f"{name}, row {file.rows[0]} or after it")
    parts = [found.values for found in cut([file._replace(values=scaled)], cutter)]
    return np.concatenate([np.zeros((0, len(known), cutter.length), np.float32), *parts])


def _finite(x: Floats, which: str) -> Floats:
    if not np.isfinite(x).all():
        raise InputError("value too far from all others", which, "clean the data, or leave it out")
    return x


def _describe(cutters: list[tuple[str, Cutter]], count: int, say: Callable[[str], None]) -> None:
    """Say how the rows of files became windows, and what no window covers."""
    some = cutters[0][1]
    if some.stride > 1:
        say(f"a window of {some.length} rows begins every {some.stride} rows")
    if gaps := sum(cutter.gaps for _, cutter in cutters):
        name, first = next((name, cutter.first) for name, cutter in cutters if cutter.first)
        where = f"before {name}[{first.row}]: {first.interval:g}, usually {some.interval:g}"
        say(f"{gaps} gap{'s' if gaps > 1 else ''} in time, which no window crosses; the first {where}")
    if uncovered := sum(cutter.uncovered for _, cutter in cutters):
        say(f"{uncovered:,} rows are in no window, since no whole one begins there")
    _say_few(count, say)


def _say_few(count: int, say: Callable[[str], None]) -> None:
    if count < _FEW:
        say(f"{count} windows to train on are few: some hundreds make figures that mean something")


def as_file(values: NDArray[Any], drop_missing: bool) -> Block:
    """Rows in order [n, C], or the values of one channel [n], as those of a file, without those that lack a value."""
    of_channels = values.reshape(len(values), -1)
    kept = ~np.isnan(of_channels).any(axis=1) if drop_missing else np.ones(len(values), bool)
    return Block(np.flatnonzero(kept), of_channels[kept])
