"""Windows of rows in order: which rows each covers, wherever blocks end, and what none of them crosses."""

from collections.abc import Sequence

import numpy as np
import pytest

from vae_runtime.tables import Block
from vae_runtime.windows import Cut, Cutter, Gap, Starts, cut, separate, usual_interval

VALUES = np.random.default_rng(0).normal(size=(100, 3))


def blocks(sizes: Sequence[int], rows: np.ndarray | None = None, times: np.ndarray | None = None) -> list[Block]:
    """The first rows of VALUES, or those of these numbers, in blocks of these sizes."""
    rows = np.arange(sum(sizes)) if rows is None else rows
    ends = np.cumsum(sizes)[:-1]
    timed = [None] * len(sizes) if times is None else np.split(times, ends)
    return [Block(part, VALUES[part], time) for part, time in zip(np.split(rows, ends), timed, strict=True)]


def joined(cuts: list[Cut]) -> Cut:
    """All of them as one."""
    return Cut(np.concatenate([c.starts for c in cuts]), np.concatenate([c.values for c in cuts]))


@pytest.mark.parametrize(("length", "stride"), [(4, 1), (4, 3), (4, 4), (4, 9), (1, 1), (60, 2)])
@pytest.mark.parametrize("sizes", [[60], [1] * 60, [5, 0, 3, 52], [59, 1]])
def test_windows_are_the_same_however_rows_come(length: int, stride: int, sizes: list[int]):
    """Window i covers the rows from i * stride on, channels before steps."""
    cutter = Cutter(length, stride)
    found = joined(list(cut(blocks(sizes), cutter)))
    expected = list(range(0, 60 - length + 1, stride))
    assert found.starts.tolist() == expected
    for start, values in zip(expected, found.values, strict=True):
        np.testing.assert_array_equal(values, VALUES[start : start + length].T)
    assert cutter.uncovered == 60 - expected[-1] - length


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [7, 5]])
def test_no_window_crosses_rows_that_are_left_out(sizes: list[int]):
    """Rows 7 and 8 are not there: windows begin anew at row 9."""
    rows = np.array([*range(7), *range(9, 14)])
    cutter = Cutter(3, 2)
    found = joined(list(cut(blocks(sizes, rows), cutter)))
    assert found.starts.tolist() == [0, 2, 4, 9, 11]
    np.testing.assert_array_equal(found.values[3], VALUES[9:12].T)
    assert (cutter.uncovered, cutter.gaps) == (0, 0)


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [6, 6], [7, 5]])
@pytest.mark.parametrize("jump", [5.0, -3.0, 0.1])
def test_no_window_crosses_a_gap_in_time(sizes: list[int], jump: float):
    """Neither one that is too long, nor one that goes back, nor one that is far too short."""
    times = np.arange(12.0)
    times[7:] += jump - 1
    cutter = Cutter(3, 2, interval=1.0)
    found = joined(list(cut(blocks(sizes, times=times), cutter)))
    assert found.starts.tolist() == [0, 2, 4, 7, 9]
    assert cutter.first is not None
    assert (cutter.gaps, cutter.first.row, cutter.first.interval) == (1, 7, pytest.approx(jump))
    assert cutter.mean_interval == pytest.approx(1.0)
    whole = Cutter(3, 2)  # where no interval is known, times are not looked at
    assert joined(list(cut(blocks(sizes, times=times), whole))).starts.tolist() == [0, 2, 4, 6, 8]


def test_a_changed_sampling_rate_leaves_no_window():
    """All rows are a gap apart from each other; the first one is kept."""
    cutter = Cutter(3, 1, interval=1.0)
    assert list(cut(blocks([10], times=2 * np.arange(10.0)), cutter)) == []
    assert (cutter.gaps, cutter.first, cutter.uncovered) == (9, Gap(1, 2.0), 10)


def test_rows_that_are_left_out_hide_no_gap():
    """Where rows are missing between two, their times lie apart, and that is no gap in time."""
    rows = np.array([0, 1, 2, 5, 6, 7])
    cutter = Cutter(3, 1, interval=1.0)
    assert joined(list(cut(blocks([6], rows, rows.astype(float)), cutter))).starts.tolist() == [0, 5]
    assert cutter.gaps == 0


def test_the_usual_interval_is_the_median():
    """Of all files together, and with the share of those that are others."""
    files = [np.array([0.0, 1, 2, 3]), np.array([10.0, 11, 14, 15])]
    assert usual_interval(blocks([4], times=times)[0] for times in files) == (1.0, pytest.approx(1 / 6))
    assert usual_interval(blocks([3, 4])) == (None, 0.0)
    assert usual_interval(blocks([3], times=np.array([3.0, 2, 1]))) == (None, 0.0)
    dropped = blocks([4], np.array([0, 1, 5, 6]), np.array([0.0, 1, 5, 6]))
    assert usual_interval(dropped) == (1.0, 0.0)


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [0, 7, 5]])
def test_windows_tell_where_they_begin(sizes: list[int]) -> None:
    """By the rows that they share with the one before, however they come; those that share none lie side by side."""
    begin = np.array([3, 4, 5, 9, 10, 16, 17, 40, 44, 46, 47, 80])  # of windows of five rows
    x = np.stack([VALUES[start : start + 5].T for start in begin])
    starts, ends = Starts(), np.cumsum(sizes)[:-1]
    found = np.concatenate([starts.of(part) for part in np.split(x, ends)])
    assert np.diff(found).tolist() == np.minimum(np.diff(begin), 5).tolist()
    assert found[0] == 0
    assert separate(np.random.default_rng(0).permutation(found), 5) == 6  # those that begin at 3, 9, 16, 40, 46 and 80
    assert separate(found[:0], 5) == 0
