"""A table that comes line by line, as from a sensor: its rows or windows as soon as they are whole."""

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vae_runtime import sources
from vae_runtime.array_files import reading
from vae_runtime.errors import InputError
from vae_runtime.indicators import Columns, Unseen
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
        first = _first(lines, needed(observation))
        rows = Rows(NAME, first, observation, preprocessing, stride, note, drop_missing)
        none = True
        for some in _then(first[rows.header :], lines):
            for part in rows.feed(some):
                none = False
                yield part
        rows.end()
        if none:
            what = f"no window of {rows.cutter.length} rows" if observation.kind == SERIES else "no rows"
            raise InputError(what, NAME, rows.cutter.needed() if observation.kind == SERIES else _TODO)


def needed(observation: Observation) -> int:
    """How many lines show how a table is written: a header and a row, or all of the first window's."""
    return 2 if observation.kind != SERIES else min(observation.shape[-1] + 1, _LOOKED_AT)


class Rows:
    """The rows of a table, or its windows, of lines that come one after the other.

    name: what to call it. first: its first lines, in which its layout shows; `header` is how many of them are no rows.
    row: the number of the next row. broken: is told of a line that is no row, which is left out; None where the first
    one is raised. The others as in `observations`.
    """

    def __init__(
        self,
        name: str,
        first: list[str],
        observation: Observation,
        preprocessing: Preprocessing,
        stride: int | None = None,
        note: Callable[[str], None] = lambda text: None,
        drop_missing: bool = False,
        broken: Callable[[InputError], None] | None = None,
    ) -> None:
        self._name, self._observation, self._note = name, observation, note
        self._drop_missing, self._broken = drop_missing, broken
        self._table = Table(name, lambda: io.BytesIO("\n".join(first).encode()))  # its layout shows in these lines
        self._columns = Columns(sources.columns_of(self._table, preprocessing.columns, observation.shape[0]))
        self.header = int(self._table.layout.header)
        cut = sources.windowing(observation, preprocessing, stride)
        self._time = cut.time if cut.time in self._table.layout.names else None
        if self._time is None and cut.interval is not None:
            note(sources.no_times(name, cut))
        self.cutter = Cutter(observation.shape[-1], cut.stride, cut.interval)
        self._told: dict[str, str] = {}
        self.row = self._begun = self._left_out = 0

    def skip(self, rows: int) -> None:
        """Pass over so many rows, which nobody reads."""
        self.row = self._begun = rows

    def feed(self, lines: list[str]) -> Iterator[Part]:
        """The observations that are whole with these lines."""
        for block, unseen in self._blocks(lines):
            if self._table.has_decimal_commas:
                self._tell("decimal", f"numbers are read with a decimal comma: {self._name}")
            for each in unseen:  # of each column the first: there may be no end of others
                self._tell(
                    f"column {each.column}", sources.not_seen(f"{self._name}[{each.row}]", each.column, each.text)
                )
            yield from self._whole(block)
            for kind, text in self.cutter.said().items():  # of each kind the first while rows come
                self._tell(kind, f"{self._name}: {text}")

    def end(self) -> None:
        """Say what is to be said at the end."""
        for kind, text in self.cutter.said(ended=True).items():
            if self._told.get(kind) != f"{self._name}: {text}":
                self._note(f"{self._name}: {text}")
        if self._left_out:
            rows = self.row - self._begun
            self._note(f"{self._left_out:,} of {rows:,} rows have a missing value and are left out")

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told[kind] = text
            self._note(text)

    def _blocks(self, lines: list[str]) -> Iterator[tuple[Block, list[Unseen]]]:
        """The rows that these lines are; where one is none and that is not raised, line by line."""
        try:
            read = self._block(lines, self.row)
        except InputError:
            if self._broken is None:
                raise
        else:
            self._count(lines, read[0])
            yield read
            return
        for line in lines:
            try:
                read = self._block([line], self.row)
            except InputError as error:
                self._broken(error)
                self.row += 1
            else:
                self._count([line], read[0])
                yield read

    def _block(self, lines: list[str], row: int) -> tuple[Block, list[Unseen]]:
        columns = self._columns
        block = self._table.parse(lines, columns.numbers, row, self._drop_missing, self._time, columns.texts)
        return columns.of(block, self._table, self._drop_missing)

    def _count(self, lines: list[str], block: Block) -> None:
        self.row += len(lines)
        self._left_out += len(lines) - len(block.rows)

    def _whole(self, block: Block) -> Iterator[Part]:
        """What is whole with these rows."""
        if self._observation.kind != SERIES:
            if len(block.rows):
                yield Part([f"{self._name}[{i}]" for i in block.rows.tolist()], block.values)
            return
        for starts, values in self.cutter.feed(block):
            for i in range(0, len(values), _AT_ONCE):
                chunk = starts[i : i + _AT_ONCE].tolist()
                names = [sources.window(self._name, start, self._observation) for start in chunk]
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
