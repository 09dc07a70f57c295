"""Windows of rows in order of time, cut as the rows come: none crosses a gap in time, or rows that are left out."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vae_runtime.tables import Block

_OTHER_RATE = 0.1  # of the interval between rows, by which it may differ on average
TOLERANCE = 1.5  # times the usual interval, or one part in it, by which that between two rows may differ


def usual_stride(length: int) -> int:
    """How far apart windows of so many rows begin where nothing says it: each row is in four of them."""
    return max(1, length // 4)


class Cut(NamedTuple):
    """Some windows: the number of the first row of each, [n], and a view of their values [n, columns, length]."""

    starts: NDArray[np.int64]
    values: NDArray[Any]


class Gap(NamedTuple):
    """Where two rows do not follow each other: the number of the second, and what lies between their times."""

    row: int
    interval: float


class Cutter:
    """Cuts the rows of one file or stream into windows of `length` rows, one from every `stride`th row on.

    interval: what usually lies between the times of two rows; None where times are not looked at. Windows begin anew
    where it is another by more than TOLERANCE, and where rows are missing. gaps: how many in time there were; first:
    the first one.
    """

    def __init__(self, length: int, stride: int, interval: float | None = None) -> None:
        self.length, self.stride, self.interval = length, stride, interval
        self.gaps = 0
        self.first: Gap | None = None
        self._held: NDArray[Any] | None = None  # rows of which not all windows are cut
        self._start = 0  # the number of the first of them
        self._skip = 0  # rows to leave out before the next window, where the stride is longer than a window
        self._last: tuple[int, float] | None = None  # number and time of the last row
        self._covered = self._end = 0  # up to which row of this stretch windows reach, and rows have come
        self._lost = 0  # rows of the stretches before that are in no window
        self._between = [0.0, 0]  # times that lie between rows of one stretch: their sum, and how many

    @property
    def mean_interval(self) -> float | None:
        """What lies between two rows on average, gaps apart; None where no times are known."""
        total, count = self._between
        return total / count if count else None

    @property
    def uncovered(self) -> int:
        """How many rows at the ends of stretches lie in no window."""
        return self._lost + self._end - self._covered

    def said(self, ended: bool = False) -> dict[str, str]:
        """What is to be said of the rows so far, by its kind; `ended`: no more of them come."""
        said = {}
        if self.first is not None:
            gaps = f"{self.gaps} gaps" if self.gaps > 1 else "a gap"
            first = f"row {self.first.row} is {self.first.interval:g} after the row before, usually {self.interval:g}"
            which = f"the first: {first}" if self.gaps > 1 else first
            said["gaps"] = f"{gaps} in time ({which}), which no window crosses"
        mean = self.mean_interval if ended or self._between[1] >= self.length else None  # one late row is no rate
        if self.interval is not None and mean is not None and abs(mean / self.interval - 1) > _OTHER_RATE:
            said["rate"] = f"rows are {mean:g} apart in time, and those of the training {self.interval:g}"
        if ended and self.uncovered:
            rows = "rows are" if self.uncovered > 1 else "row is"
            said["uncovered"] = f"{self.uncovered} {rows} in no window, since no whole one begins there"
        return said

    def needed(self) -> str:
        """What to do where there is no window."""
        apart = "" if self.interval is None else f", {self.interval:g} apart in time as in training"
        found = f"; row {self.first.row} is {self.first.interval:g} after the row before" if self.first else ""
        return f"give {self.length} or more, one after the other{apart}{found}"

    def feed(self, block: Block) -> Iterator[Cut]:
        """The windows that are complete with these rows."""
        if not len(block.rows):
            return
        begins = self._begins(block)
        for start, end in zip([0, *begins], [*begins, len(block.rows)], strict=True):
            if start < end:
                if start in begins or self._held is None:
                    self._begin(int(block.rows[start]), block.values[:0])
                yield from self._cut(block.rows[start:end], block.values[start:end])

    def _begins(self, block: Block) -> list[int]:
        """Where in a block a new stretch begins."""
        last, time = self._last or (int(block.rows[0]) - 1, np.nan)
        apart = np.diff(block.rows, prepend=last) != 1
        times = np.full(len(block.rows), np.nan) if block.times is None else block.times
        between = np.diff(times, prepend=time)
        if self.interval is not None:
            gap = (between > TOLERANCE * self.interval) | (between < self.interval / TOLERANCE)  # NaN is neither
            gap &= ~apart
            if gap.any():
                i = int(np.argmax(gap))
                self.first = self.first or Gap(int(block.rows[i]), float(between[i]))
                self.gaps += int(gap.sum())
            apart |= gap
        whole = between[~apart & np.isfinite(between)]
        self._between = [self._between[0] + float(whole.sum()), self._between[1] + len(whole)]
        self._last = int(block.rows[-1]), float(times[-1])
        return np.flatnonzero(apart).tolist()

    def _begin(self, row: int, nothing: NDArray[Any]) -> None:
        self._lost += self._end - self._covered
        self._held, self._start, self._skip = nothing, row, 0
        self._covered = self._end = row

    def _cut(self, rows: NDArray[np.int64], values: NDArray[Any]) -> Iterator[Cut]:
        """The windows of one stretch that end in these rows of it."""
        self._end = int(rows[-1]) + 1
        skipped = min(self._skip, len(values))
        self._skip -= skipped
        self._start += skipped
        assert self._held is not None
        held = np.concatenate([self._held, values[skipped:]])
        count = max(0, (len(held) - self.length) // self.stride + 1)
        if count:
            seen = sliding_window_view(held, self.length, axis=0)[:: self.stride][:count]
            starts = self._start + self.stride * np.arange(count)
            yield Cut(starts, seen)
            done = min(count * self.stride, len(held))
            self._skip = count * self.stride - done
            self._start += done
            held = held[done:]
            self._covered = int(starts[-1]) + self.length
        self._held = held


def cut(blocks: Iterable[Block], cutter: Cutter) -> Iterator[Cut]:
    """The windows of the rows that these blocks have."""
    for block in blocks:
        yield from cutter.feed(block)


class Starts:
    """Where windows that come in order begin, told by the rows that each one shares with the one before.

    Rows of few different values, as of one binary channel, may be equal by chance, and then seem shared.
    """

    def __init__(self) -> None:
        self._last: NDArray[Any] | None = None
        self._start = 0

    def of(self, x: NDArray[Any]) -> NDArray[np.int64]:
        """At which row of all that came each of the next windows [n, C, T] begins, [n]: the first one at 0."""
        last = x[:1] if self._last is None else self._last
        further = _further(np.concatenate([last, x[:-1]]), x)
        if self._last is None:
            further[:1] = 0
        starts = self._start + np.cumsum(further)
        if len(x):
            self._last, self._start = x[-1:], int(starts[-1])
        return starts


def _further(before: NDArray[Any], x: NDArray[Any]) -> NDArray[np.int64]:
    """By how many rows each window of x [n, C, T] begins after that of `before`; T where they share none."""
    length = x.shape[2]
    further = np.full(len(x), length)
    for by in range(1, length):
        some = np.flatnonzero((further == length) & (x[:, :, 0] == before[:, :, by]).all(axis=1))
        some = some[(x[some][:, :, :-by] == before[some][:, :, by:]).all(axis=(1, 2))]
        further[some] = by
    return further


def separate(starts: NDArray[np.int64], length: int) -> int:
    """How many windows of so many rows that begin at these rows share none, if as many as can be are chosen."""
    count, end = 0, None
    for start in np.sort(starts).tolist():
        if end is None or start >= end:
            count, end = count + 1, start + length
    return count


def usual_interval(files: Iterable[Block]) -> tuple[float | None, float]:
    """The median of what lies between the times of rows that follow each other, and the share that is another.

    None where there are no times, or where the median is not above 0.
    """
    timed = [(file.rows, file.times) for file in files if file.times is not None]
    between = [np.diff(times)[np.diff(rows) == 1] for rows, times in timed]
    joined = np.concatenate([np.zeros(0), *between])
    if not len(joined) or not (median := float(np.median(joined))) > 0:
        return None, 0.0
    off = (joined > TOLERANCE * median) | (joined < median / TOLERANCE)
    return median, float(off.mean())
