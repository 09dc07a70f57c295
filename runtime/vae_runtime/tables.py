"""Tables in text files, CSV and its like: delimiter and decimal mark are found, and columns are read by name."""

import csv
import gzip
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}  # in lower case
_DELIMITERS = "\t;|,"
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
_DECIMAL_POINT = re.compile(r"\s*[+-]?\d*\.\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
_LOOKED_AT = 50  # lines, from which the layout is told
_LINES = 4096  # parsed at once
_SHOWN = 12  # columns in an error message

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """How a table is written: the names of its columns, its delimiter, its decimal mark, and whether it has a header.

    Columns without a header are called "column 0" and so on; `unnamed` are those for which the header has no word.
    """

    names: tuple[str, ...]
    delimiter: str
    decimal: str
    header: bool
    unnamed: tuple[str, ...] = ()


class Block(NamedTuple):
    """Some rows of a table: their numbers, counted from 0 below the header, and their values [n, columns].

    times: [n], of the column of times if one was asked for: its numbers, or of dates the seconds since 1970.
    """

    rows: NDArray[np.int64]
    values: Doubles
    times: Doubles | None = None


class Table:
    """A table in a file, opened anew each time that it is read. Raises InputError, naming it, where it is none.

    name: what to call it. open: gives its bytes, gzipped or not.
    """

    def __init__(self, name: str, open_: Callable[[], IO[bytes]]) -> None:
        self.name, self._open = name, open_
        with self._lines() as lines:
            self.layout = _layout(list(islice(lines, _LOOKED_AT)), name)

    def __len__(self) -> int:
        """How many rows there are below the header; lines of nothing at the end are none."""
        with self._lines() as lines:
            return sum(1 for _ in lines) - self.layout.header

    def blocks(self, columns: Sequence[str], drop_missing: bool = False, time: str | None = None) -> Iterator[Block]:
        """The numbers of these columns, some thousand rows at a time, in float64, and the times in the column `time`.

        Raises InputError, naming row and column, for a column that there is not, for what is no number and, unless such
        rows are to be dropped, for a missing value.
        """
        with self._lines() as lines:
            below = islice(lines, int(self.layout.header), None)
            row = 0
            while some := list(islice(below, _LINES)):
                yield self.parse(some, columns, row, drop_missing, time)
                row += len(some)

    def parse(
        self, lines: list[str], columns: Sequence[str], row: int, drop_missing: bool = False, time: str | None = None
    ) -> Block:
        """The block that these lines of such a table are, the first of which is row `row`. Raises as `blocks` does."""
        wanted = [self._index(column) for column in columns]
        when = None if time is None else self._index(time)
        block = self._fast(lines, wanted, row, when)
        return block if block is not None else self._slow(lines, wanted, row, drop_missing, when)

    def first(self) -> dict[str, list[str]]:
        """The fields of the first rows as they are written, by column, but for rows with more or fewer."""
        names = self.layout.names
        with self._lines() as lines:
            some = list(islice(lines, int(self.layout.header), _LOOKED_AT))
        rows = [row for row in self._records(some) if len(row) == len(names)]
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def texts(self, column: str) -> list[str]:
        """A column as it is written."""
        index, header = self._index(column), int(self.layout.header)
        with self._lines() as lines:
            return [row[index].strip() for row in self._records(islice(lines, header, None)) if row]

    def _index(self, column: str) -> int:
        names = self.layout.names
        if column not in names:
            there = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise InputError(f"no column {column}", self.name, f"it has {there}")
        return names.index(column)

    def _fast(self, lines: list[str], wanted: list[int], row: int, time: int | None) -> Block | None:
        """The block as NumPy's own parser reads it; None where a line needs a closer look."""
        if not lines:
            return None
        delimiters = len(self.layout.names) - 1
        if any(line.count(self.layout.delimiter) != delimiters or line.isspace() for line in lines):
            return None
        if self.layout.decimal == ",":
            if any("." in line for line in lines):
                return None
            lines = [line.replace(",", ".") for line in lines]
        columns = wanted if time is None else [*wanted, time]
        converters: dict[int | str, Callable[[str], float]] | None = None if time is None else {time: as_time}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = np.loadtxt(
                    lines, delimiter=self.layout.delimiter, usecols=columns, ndmin=2, comments=None,
                    converters=converters, encoding=None,
                )  # fmt: skip
        except ValueError:
            return None
        if len(values) != len(lines) or np.isnan(values).any():
            return None
        return _block(np.arange(row, row + len(values)), values, time)

    def _slow(self, lines: list[str], wanted: list[int], row: int, drop_missing: bool, time: int | None) -> Block:
        """The same, field by field: quotes, missing values, and words on what is wrong."""
        rows, kept = [], []
        columns = wanted if time is None else [*wanted, time]
        for i, fields in enumerate(self._records(lines), start=row):
            where = f"{self.name}, row {i} (line {self.layout.header + i + 1})"
            if len(fields) != len(self.layout.names):
                expected = f"{len(self.layout.names)} fields, as above, or in quotes"
                raise InputError(f"line of {len(fields)} fields", where, f"give {expected}")
            numbers = [self._number(fields[index], f"{where}, column {self.layout.names[index]}") for index in wanted]
            if time is not None:
                numbers.append(self._time(fields[time], f"{where}, column {self.layout.names[time]}"))
            missing = [index for index, number in zip(columns, numbers, strict=True) if math.isnan(number)]
            if missing and not drop_missing:
                which = f"{where}, column {self.layout.names[missing[0]]}"
                raise InputError("missing value", which, "fill it in, or leave such rows out: --missing drop trains so")
            if not missing:
                rows.append(numbers)
                kept.append(i)
        return _block(np.array(kept, np.int64), np.array(rows, np.float64).reshape(-1, len(columns)), time)

    def _number(self, text: str, where: str) -> float:
        if text.strip().lower() in MISSING:
            return math.nan
        try:
            if self.layout.decimal == ",":
                if "." in text:
                    raise ValueError("a thousands separator, or another decimal mark than elsewhere")
                text = text.replace(",", ".")
            return float(text)
        except ValueError:
            raise InputError(f"no number: {text.strip()[:40]!r}", where, "give one, or name other columns") from None

    def _time(self, text: str, where: str) -> float:
        try:
            point = text.replace(",", ".") if self.layout.decimal == "," else text
            return math.nan if text.strip().lower() in MISSING else as_time(point)
        except ValueError:
            raise InputError(f"no time: {text.strip()[:40]!r}", where, "give a number or an ISO 8601 date") from None

    def _records(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The fields of each line. Raises InputError where a line break stands in quotes: rows are lines here."""
        reader = csv.reader(lines, delimiter=self.layout.delimiter)
        for number, fields in enumerate(reader, start=1):
            if reader.line_num != number:
                which = f"{self.name}, in the field that begins {fields[-1][:20]!r}"
                raise InputError("line break within quotes", which, "take it out")
            yield fields

    @contextmanager
    def _lines(self) -> "Iterator[Iterator[str]]":
        with self._open() as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            try:
                with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
                    yield _but_the_last_empty(text)
            except UnicodeDecodeError:
                raise InputError("not a table or array", self.name, "give CSV in UTF-8, .npy or .npz") from None


def as_time(text: str) -> float:
    """A number as it is, or the seconds since 1970 of a date as ISO 8601 writes it. Raises ValueError for others."""
    try:
        return float(text)
    except ValueError:
        when = datetime.fromisoformat(text.strip())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _block(rows: NDArray[np.int64], values: Doubles, time: int | None) -> Block:
    """A block, whose last column is that of times where there is one."""
    return Block(rows, values) if time is None else Block(rows, values[:, :-1], values[:, -1])


def _but_the_last_empty(lines: Iterable[str]) -> Iterator[str]:
    """The lines, without those at the end in which nothing stands."""
    held: list[str] = []
    for line in lines:
        if line.isspace():
            held.append(line)
        else:
            yield from held
            held.clear()
            yield line


def _layout(lines: list[str], name: str) -> Layout:
    """How the table that begins with these lines is written."""
    if not lines:
        raise InputError("empty table", name, "give a header and rows")
    delimiter = next((mark for mark in _DELIMITERS if _is_delimiter(mark, lines)), ",")
    fields = list(csv.reader(lines, delimiter=delimiter))
    below = [field for row in fields[1:] or fields for field in row]
    commas, points = (any(map(mark.fullmatch, below)) for mark in (_DECIMAL_COMMA, _DECIMAL_POINT))
    decimal = "," if delimiter != "," and (commas or (delimiter == ";" and not points)) else "."
    names = [field.strip() for field in fields[0]]
    header = any(not field or not is_number(field, decimal) for field in names)
    if header and (several := sorted({field for field in names if field and names.count(field) > 1})):
        raise InputError(f"column {several[0]} comes twice", name, "give each column a name of its own")
    taken = tuple(field if header and field else f"column {i}" for i, field in enumerate(names))
    unnamed = tuple(f"column {i}" for i, field in enumerate(names) if header and not field)
    return Layout(taken, delimiter, decimal, header, unnamed)


def _is_delimiter(mark: str, lines: list[str]) -> bool:
    """Whether it cuts all lines into as many fields, two or more."""
    counts = {len(row) for row in csv.reader(lines, delimiter=mark)}
    return len(counts) == 1 and counts != {1}


def is_number(text: str, decimal: str) -> bool:
    """Whether a field may be a value of a column of numbers, be it a missing one."""
    text = text.strip()
    try:
        float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return text.lower() in MISSING
    return True
