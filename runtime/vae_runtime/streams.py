"""A table that comes line by line, as from a sensor: its rows or windows as soon as they are whole."""

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vae_runtime import sources
from vae_runtime.array_files import reading
from vae_runtime.errors import InputError
from vae_runtime.indicators import Columns
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import SERIES, Observation
from vae_runtime.tables import Block, Table, is_row
from vae_runtime.windows import Cutter

NAME = "standard input"
_PIECE = 1 << 16  # bytes
_AT_ONCE = 256  # windows
_LOOKED_AT = 50  # lines at most, from which the layout is told
_TODO = "give a table, CSV or its like, with a header"


class Bytes(Protocol):
    """What gives bytes as they come."""

    def read1(self, size: int, /) -> bytes:
        """Those that there are, one at least; none at the end."""


class Part(NamedTuple):
    """Observations that have just come, [n, *shape], with a name each."""

    names: list[str]
    x: NDArray[Any]


def observations(
    stream: Bytes,
    observation: Observation,
    preprocessing: Preprocessing,
    stride: int | None = None,
    note: Callable[[str], None] = lambda text: None,
    drop_missing: bool = False,
) -> Iterator[Part]:
    """The rows of a table, or the windows that end in them, as they come; memory is constant.

    preprocessing: of the model's own, as its manifest has it. stride and drop_missing as in `sources.Observations`.
    note: is told what is to be said of the rows. Raises InputError as `sources.Observations` does, when it comes to it.
    """
    with reading(NAME, _TODO):
        lines = _lines(stream)
        first = _first(lines, 2 if observation.kind != SERIES else min(observation.shape[-1] + 1, _LOOKED_AT))
        table = Table(NAME, lambda: io.BytesIO("\n".join(first).encode()))  # its layout shows in these lines
        columns = Columns(sources.columns_of(table, preprocessing.columns, observation.shape[0]))
        cut = sources.windowing(observation, preprocessing, stride)
        time = cut.time if cut.time in table.layout.names else None
        if time is None and cut.interval is not None:
            note(sources.no_times(NAME, cut))
        cutter, row = Cutter(observation.shape[-1], cut.stride, cut.interval), 0
        told: dict[str, str] = {}
        none, left_out = True, 0
        for some in _then(first[table.layout.header :], lines):
            if table.look(some) and "decimal" not in told:
                told["decimal"] = f"numbers are read with a decimal comma: {NAME}"
                note(told["decimal"])
            parsed = table.parse(some, columns.numbers, row, drop_missing, time, columns.texts)
            block, unseen = columns.of(parsed, table, drop_missing)
            row += len(some)
            left_out += len(some) - len(block.rows)
            for each in unseen:
                if each.column not in told:  # once: there may be no end of others
                    told[each.column] = sources.not_seen(f"{NAME}[{each.row}]", each.column, each.text)
                    note(told[each.column])
            for part in _whole(block, observation, cutter):
                none = False
                yield part
            for kind, text in cutter.said().items():
                if kind not in told:  # once while rows come, for there may be no end of them
                    told[kind] = text
                    note(f"{NAME}: {text}")
        for kind, text in cutter.said(ended=True).items():
            if told.get(kind) != text:
                note(f"{NAME}: {text}")
        if left_out:
            note(f"{left_out:,} of {row:,} rows have a missing value and are left out")
        if none:
            what = f"no window of {cutter.length} rows" if observation.kind == SERIES else "no rows"
            raise InputError(what, NAME, cutter.needed() if observation.kind == SERIES else _TODO)


def _whole(block: Block, observation: Observation, cutter: Cutter) -> Iterator[Part]:
    """What is whole with these rows."""
    if observation.kind != SERIES:
        if len(block.rows):
            yield Part([f"{NAME}[{i}]" for i in block.rows.tolist()], block.values)
        return
    for starts, values in cutter.feed(block):
        for i in range(0, len(values), _AT_ONCE):
            names = [sources.window(NAME, start, observation) for start in starts[i : i + _AT_ONCE].tolist()]
            yield Part(names, np.ascontiguousarray(values[i : i + _AT_ONCE]))


def _first(lines: Iterator[list[str]], least: int) -> list[str]:
    """The first lines, so many at least where there are: a header and a row, or all of the first window's."""
    first: list[str] = []
    for some in lines:
        first += some
        if len(first) >= least:
            break
    return first


def _then(first: list[str], lines: Iterator[list[str]]) -> Iterator[list[str]]:
    if first:
        yield first
    yield from lines


def _lines(stream: Bytes) -> Iterator[list[str]]:
    """The lines that have come since the last ones were taken, but for those in which nothing stands."""
    rest = b""
    while piece := stream.read1(_PIECE):
        *whole, rest = (rest + piece).split(b"\n")
        if some := [text for line in whole if is_row(text := line.decode("utf-8-sig"))]:
            yield some
    if is_row(text := rest.decode("utf-8-sig")):
        yield [text]
