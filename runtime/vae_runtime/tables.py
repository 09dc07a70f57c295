"""Tables in text files, CSV and its like: delimiter and decimal mark are found, and columns are read by name."""

import csv
import gzip
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from types import MappingProxyType
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.array_files import reading
from vae_runtime.errors import InputError
from vae_runtime.vectors import LEAVE_OUT

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}  # in lower case
TODO = "give a table, CSV or its like, or an .npy or .npz array"
_DELIMITERS = "\t;|,"
_DECIMAL = re.compile(r"\s*[+-]?\d*[.,]\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
_GROUPED = re.compile(r"\s*[+-]?[1-9]\d{0,2}[.,]\d{3}\s*")  # or with three decimals
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
    texts: by column, the fields of those that were asked for as they are written.
    """

    rows: NDArray[np.int64]
    values: NDArray[Any]
    times: Doubles | None = None
    texts: Mapping[str, list[str]] = MappingProxyType({})


class Count(NamedTuple):
    """How many rows there are below the header, and how many lines of nothing stand between them."""

    rows: int
    blank: int


class Table:
    """A table in a file, opened anew each time that it is read. Raises InputError, naming it, where it is none.

    Lines of nothing are no rows. name: what to call it. open: gives its bytes, gzipped or not.
    """

    def __init__(self, name: str, open_: Callable[[], IO[bytes]]) -> None:
        self.name, self._open = name, open_
        with self._lines() as lines:
            self._first = list(islice(filter(is_row, lines), _LOOKED_AT))
        with reading(name, TODO):  # a field may be longer than csv takes
            self.layout = _layout(self._first, name)
        self._settled = self.layout.delimiter == ","  # whether something read depends on the decimal mark
        self._places = {column: i for i, column in enumerate(self.layout.names)}

    def __len__(self) -> int:
        return self.count.rows

    @cached_property
    def count(self) -> Count:
        """How many rows and blank lines there are, counted when it is first asked for."""
        rows = blank = held = 0
        with self._lines() as lines:
            for line in lines:
                if is_row(line):
                    rows, blank, held = rows + 1, blank + held, 0
                else:
                    held += rows > 0  # those before the first row or behind the last are nobody's mistake
        return Count(rows - self.layout.header, blank)

    def blocks(
        self, columns: Sequence[str], drop_missing: bool = False, time: str | None = None, texts: Sequence[str] = ()
    ) -> Iterator[Block]:
        """The numbers of these columns, some thousand rows at a time, in float64.

        time: the column of times. texts: columns that are wanted as they are written. Raises InputError, naming row and
        column, for a column that there is not, for what is no finite number and, unless such rows are to be dropped,
        for a missing number or time.
        """
        with self._lines() as lines:
            below = islice(filter(is_row, lines), int(self.layout.header), None)
            row = 0
            while some := list(islice(below, _LINES)):
                yield self.parse(some, columns, row, drop_missing, time, texts)
                row += len(some)

    def parse(
        self,
        lines: list[str],
        columns: Sequence[str],
        row: int,
        drop_missing: bool = False,
        time: str | None = None,
        texts: Sequence[str] = (),
    ) -> Block:
        """The block that these lines of such a table are, the first of which is row `row`. Raises as `blocks` does."""
        wanted = _Wanted(
            [self._index(column) for column in columns],
            None if time is None else self._index(time),
            {self._index(text): text for text in texts},
        )
        self._settle(lines, wanted, row)
        block = self._fast(lines, wanted, row)
        return block if block is not None else self._slow(lines, wanted, row, drop_missing)

    @property
    def has_decimal_commas(self) -> bool:
        """Whether something was read in which a comma is the decimal mark."""
        return self._settled and self.layout.decimal == ","

    def first(self) -> dict[str, list[str]]:
        """The fields of the first rows as they are written, by column, but for rows with more or fewer."""
        names = self.layout.names
        rows = [row for row in self._records(self._first[self.layout.header :]) if len(row) == len(names)]
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

    def place(self, row: int, column: str) -> str:
        """What to call a field in words, with its line, which is looked for: those of nothing count there."""
        return f"{self._line(row)}, column {column}"

    def _index(self, column: str) -> int:
        if column not in self._places:
            names = self.layout.names
            there = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise InputError(f"no column {column}", self.name, f"it has {there}")
        return self._places[column]

    def _settle(self, lines: list[str], wanted: "_Wanted", row: int) -> None:
        """Find the decimal mark of the wanted columns, as long as nothing was read that depends on it.

        1,234 may be a thousand or one, so that it does not go against what was found in the first lines.
        """
        if self._settled or not any("." in line or "," in line for line in lines):
            return
        rows = list(self._records(lines, row))
        numbers = _with_mark(rows, wanted.numbers if wanted.time is None else [*wanted.numbers, wanted.time])
        if sure := [field for field in numbers if not _GROUPED.fullmatch(field)]:
            self.layout = replace(self.layout, decimal="," if "," in "".join(sure) else ".")
        texts = _with_mark(rows, wanted.texts)  # of which labels are made: they depend on a comma, and do not find it
        self._settled = self.layout.decimal in "".join(numbers) or "," in "".join(texts)

    def _fast(self, lines: list[str], wanted: "_Wanted", row: int) -> Block | None:
        """The block as NumPy's own parser reads it; None where a line needs a closer look."""
        delimiter, columns = self.layout.delimiter, len(self.layout.names)
        if not lines or any('"' in line or line.count(delimiter) != columns - 1 for line in lines):
            return None
        numbers, times, texts = np.empty((len(lines), 0)), None, {}
        try:
            if wanted.texts or wanted.time is not None:
                fields = [line.split(delimiter) for line in lines]
                texts = {name: [row[i].strip() for row in fields] for i, name in wanted.texts.items()}
                if wanted.time is not None:
                    times = np.array([self._as_time(row[wanted.time]) for row in fields])
            if wanted.numbers:
                numbers = self._loaded(lines, wanted.numbers)
        except ValueError:
            return None
        finite = np.isfinite(numbers).all() and (times is None or np.isfinite(times).all())
        if len(numbers) != len(lines) or not finite:
            return None
        return Block(np.arange(row, row + len(lines)), numbers, times, texts)

    def _loaded(self, lines: list[str], columns: list[int]) -> Doubles:
        """The numbers in these columns [n, columns]. Raises ValueError where there are others."""
        if self.layout.decimal == ",":
            if any("." in line for line in lines):
                raise ValueError("a thousands separator, or another decimal mark than elsewhere")
            lines = [line.replace(",", ".") for line in lines]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.loadtxt(lines, delimiter=self.layout.delimiter, usecols=columns, ndmin=2, comments=None)

    def _slow(self, lines: list[str], wanted: "_Wanted", row: int, drop_missing: bool) -> Block:
        """The same, field by field: quotes, missing values, and words on what is wrong."""
        names = self.layout.names
        rows: list[int] = []
        values: list[list[float]] = []
        times: list[float] = []
        texts: dict[str, list[str]] = {name: [] for name in wanted.texts.values()}
        for i, fields in enumerate(self._records(lines, row), start=row):
            if len(fields) != len(names):
                expected = f"{len(names)} fields, as above, or in quotes"
                raise InputError(f"line of {len(fields)} fields", self._line(i), f"give {expected}")
            numbers = [self._number(fields[index], i, names[index]) for index in wanted.numbers]
            missing = [index for index, number in zip(wanted.numbers, numbers, strict=True) if math.isnan(number)]
            if wanted.time is not None:
                times.append(self._time(fields[wanted.time], i, names[wanted.time]))
                missing += [wanted.time] if math.isnan(times[-1]) else []
            if missing and not drop_missing:
                raise InputError("missing value", self.place(i, names[missing[0]]), LEAVE_OUT)
            if missing:
                times = times[: len(rows)]
                continue
            rows.append(i)
            values.append(numbers)
            for index, name in wanted.texts.items():
                texts[name].append(fields[index].strip())
        numbers_ = np.array(values, np.float64).reshape(len(rows), len(wanted.numbers))
        when = None if wanted.time is None else np.array(times, np.float64)
        return Block(np.array(rows, np.int64), numbers_, when, texts)

    def _line(self, row: int) -> str:
        with self._lines() as lines:
            numbers = (number for number, line in enumerate(lines, start=1) if is_row(line))
            line = next(islice(numbers, row + self.layout.header, None), None)
        return f"{self.name}, row {row}" + ("" if line is None else f" (line {line})")  # what streams by is not kept

    def _number(self, text: str, row: int, column: str) -> float:
        if is_missing(text):
            return math.nan
        try:
            if self.layout.decimal == "," and "." in text:
                raise ValueError("a thousands separator, or another decimal mark than elsewhere")
            number = _float(text, self.layout.decimal)
        except ValueError:
            what = f"no number: {text.strip()[:40]!r}"
            raise InputError(what, self.place(row, column), "give one, or name other columns") from None
        if math.isinf(number):
            raise InputError("infinite value", self.place(row, column), "clean the data")
        return number

    def _as_time(self, text: str) -> float:
        return as_time(text.replace(",", ".") if self.layout.decimal == "," else text)

    def _time(self, text: str, row: int, column: str) -> float:
        try:
            return math.nan if is_missing(text) else self._as_time(text)
        except ValueError:
            what = f"no time: {text.strip()[:40]!r}"
            raise InputError(what, self.place(row, column), "give a number or an ISO 8601 date") from None

    def _records(self, lines: Iterable[str], row: int = 0) -> Iterator[list[str]]:
        """The fields of each line, the first of which is row `row`.

        Raises InputError where a line break stands in quotes, since rows are lines here, and for what csv cannot read.
        """
        ended = chain((line.strip("\r\n") for line in lines), [""])  # quotes that are open at the end take that in
        reader = csv.reader(ended, delimiter=self.layout.delimiter)
        try:
            for number, fields in enumerate(reader, start=1):
                if reader.line_num != number:
                    which = f"{self.name}, in the field that begins {fields[-1][:20]!r}"
                    raise InputError("line break within quotes", which, "take it out")
                if fields:
                    yield fields
        except csv.Error as error:  # a stray CR, or a field longer than csv takes
            reason = str(error).partition(" - ")[0]
            which = self._line(row + reader.line_num - 1)
            raise InputError(f"line cannot be read ({reason})", which, "mend it") from None

    @contextmanager
    def _lines(self) -> "Iterator[Iterator[str]]":
        with reading(self.name, TODO), self._open() as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            try:
                with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
                    yield text
            except UnicodeDecodeError:
                raise InputError("not a table or array", self.name, "give CSV in UTF-8, .npy or .npz") from None


class _Wanted(NamedTuple):
    """Which fields of a line are wanted, by their places: numbers, a time, and texts by their names."""

    numbers: list[int]
    time: int | None
    texts: dict[int, str]


def as_time(text: str) -> float:
    """A number as it is, or the seconds since 1970 of a date as ISO 8601 writes it. Raises ValueError for others."""
    try:
        return _float(text)
    except ValueError:
        when = datetime.fromisoformat(text.strip())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def is_row(line: str) -> bool:
    """Whether anything stands in a line; tabs may be delimiters."""
    return bool(line.strip(" \r\n"))


def as_label(text: str, decimal: str = ".") -> str:
    """A label as it is written, but of a number its shortest form, so that 0, 0.0 and 0.00 are one."""
    try:
        number = _float(text, decimal)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def _layout(lines: list[str], name: str) -> Layout:
    """How the table that begins with these lines is written, as far as it shows in them."""
    if not lines:
        raise InputError("empty table", name, "give a header and rows")
    if re.match(r"\s*(\{|\[\s*([\[{]|$))", lines[0]):
        raise InputError("JSON, which is not read", name, "save it as CSV")
    delimiter = next((mark for mark in _DELIMITERS if _is_delimiter(mark, lines)), ",")
    fields = list(csv.reader(lines, delimiter=delimiter))
    decimal = _decimal(fields[1:] or fields, delimiter)
    names = [field.strip() for field in fields[0]]
    header = any(not field or not is_number(field, decimal) for field in names)
    if header and (several := sorted(field for field, times in Counter(names).items() if field and times > 1)):
        raise InputError(f"column {several[0]} comes twice", name, "give each column a name of its own")
    taken = tuple(field if header and field else f"column {i}" for i, field in enumerate(names))
    unnamed = tuple(f"column {i}" for i, field in enumerate(names) if header and not field)
    return Layout(taken, delimiter, decimal, header, unnamed)


def _decimal(rows: Iterable[list[str]], delimiter: str) -> str:
    """The decimal mark of numbers in these rows, or where all are whole the usual one beside this delimiter."""
    if delimiter == ",":
        return "."
    written = "".join(field for row in rows for field in _with_mark([row], range(len(row))))
    return "," if "," in written or (delimiter == ";" and not written) else "."


def _with_mark(rows: Iterable[list[str]], columns: Iterable[int]) -> list[str]:
    """The numbers in these columns that have a decimal mark, or one of thousands."""
    return [row[i] for row in rows for i in columns if i < len(row) and _DECIMAL.fullmatch(row[i])]


def _is_delimiter(mark: str, lines: list[str]) -> bool:
    """Whether it cuts all lines into as many fields, two or more."""
    if not all(mark in line for line in lines):  # a whole line may be longer than a field that csv takes
        return False
    counts = {len(row) for row in csv.reader(lines, delimiter=mark)}
    return len(counts) == 1 and counts != {1}


def is_missing(text: str) -> bool:
    """Whether a field stands for a value that is not there."""
    return text.strip().lower() in _MISSING


def is_number(text: str, decimal: str) -> bool:
    """Whether a field may be a value of a column of numbers, be it a missing one."""
    text = text.strip()
    try:
        _float(text, decimal)
    except ValueError:
        return is_missing(text)
    return True


def _float(text: str, decimal: str = ".") -> float:
    """A number with this decimal mark. Raises ValueError for others, and for Python's own way to write 1_000."""
    if "_" in text:
        raise ValueError("an underscore")
    return float(text.replace(",", ".") if decimal == "," else text)
