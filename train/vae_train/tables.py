"""A person's own table, CSV or its like, one row an observation; the runtime reads it, and columns are chosen here."""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vae_runtime import indicators
from vae_runtime.array_files import header, opener, reading
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.indicators import Indicator
from vae_runtime.observation import VECTOR, Observation
from vae_runtime.sources import files_in
from vae_runtime.tables import TODO, Block, Table, as_label, as_time, is_number
from vae_train import rows, series
from vae_train.config import Config, DataConfig
from vae_train.data import Data, apart, silent

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
_INSTEAD = dict.fromkeys(["time", "no name"], "--columns names those to train on")
_INSTEAD["text"] = "--encode makes columns of 0 and 1 of such"
_MOST_VALUES = 100  # of a column that is encoded: each is a column
_MANY = 50_000  # rows, from which a bar shows how far reading is
_DATE = re.compile(r"\s*(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])\s*")
_FEW_RISING = 20  # rows, which may rise by chance
_LEAVE_OUT = "it is trained on; --columns names those that are to be"
_TIMES = {"time", "timestamp", "date", "datetime", "zeit", "datum"}


def observation(data: DataConfig) -> Observation:
    """Kind and shape of a table's rows, told from its first lines; constant columns count here. Raises InputError."""
    tables = _open(data)
    columns = _encoded(tables, _chosen(tables[0], data, silent), data)
    if data.window is not None:
        return series.observation(len(columns), data.window, "gaussian")
    return rows.observation(columns, "gaussian")


def count(data: DataConfig) -> int:
    """About how many rows of a table, or of a folder of tables, are trained on."""
    found = sum(map(len, _open(data)[: -len(_files(data.test)) or None]))
    if data.window is not None:
        return found // (data.stride or series.stride_of(data.window, found))
    return found // (1 if data.normal is None else 2)


def load(config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
    """The rows of the table that `config.data` names, or of the tables in a folder.

    `say` is told how they are read and what is left out; nothing is lost that `warn` would be told.

    Raises InputError where a value is missing or no number, and for too few rows; ArgumentError where settings do not
    go with the table.
    """
    data = config.data
    tables = _open(data, say)
    _say_how(tables, data.window, say)
    columns = _encoded(tables, _chosen(tables[0], data, say), data)
    if data.window is not None:
        return _series(config, tables, columns, say)
    total = sum(map(len, tables))
    values = np.empty((total, len(columns)))  # float64: nothing is lost before it is scaled
    labels: list[str] = []
    known: dict[str, str] = {}  # labels are few, and rows many
    count, border = 0, len(tables) - len(_files(data.test))
    tested = np.zeros(total, np.bool_)
    with tqdm(
        desc="reading",
        total=total,
        unit=" rows",
        leave=False,
        disable=None if total > _MANY and say is not silent else True,
    ) as bar:
        for number, table in enumerate(tables):
            for block, _ in indicators.Columns(columns).blocks(table, data.missing == "drop", label=data.label):
                values[count : count + len(block.rows)] = block.values
                tested[count : count + len(block.rows)] = number >= border
                count += len(block.rows)
                if data.label is not None:
                    labels += [known.setdefault(text, text) for text in block.texts[data.label]]
                bar.update(len(block.rows))
    if not count:
        raise InputError("no row has all values", data.dataset, "name columns that have them with --columns")
    if count < total:
        say(f"{total - count:,} of {total:,} rows have a missing value and are left out")
    values.resize((count, len(columns)), refcheck=False)
    values += 0.0  # 0.0 for -0.0: equal rows are equal bytes
    _say_odd(tables[0], data, columns, [values], say)
    taken = None if data.label is None else labels_of(labels, tables[0].layout.decimal, say)
    return rows.prepared(config, data.dataset, columns, values, taken, say, tested[:count] if data.test else None)


def _series(config: Config, tables: list[Table], columns: list[str | Indicator], say: Callable[[str], None]) -> Data:
    """The windows of the tables' rows; none crosses a row that is left out, for a missing value or another label."""
    data, time = config.data, _time(tables[0], columns)
    if time is None and (named := [name for name in tables[0].layout.names if name.strip().lower() in _TIMES]):
        say(f"times in column {named[0]} are not understood, so that gaps are not looked for")
    if data.label is not None and data.normal is None:
        say(f"column {data.label} is left out: windows have no labels; --normal trains on rows of one of them")
    files = {}
    for table in tables:
        if not len(table):
            say(f"{table.name} has no rows")
            continue
        parts = indicators.Columns(columns).blocks(table, data.missing == "drop", time, data.label)
        blocks = [block if data.normal is None else _of_label(block, data, table) for block, _ in parts]
        some, values = (np.concatenate([block[i] for block in blocks]) for i in (0, 1))
        times = None if time is None else np.concatenate([block.times for block in blocks])
        files[table.name] = Block(some, values + 0.0, times)
    if left_out := sum(map(len, tables)) - sum(len(file.rows) for file in files.values()):
        why = "a missing value" if data.normal is None else f"a missing value or another label than {data.normal}"
        say(f"{left_out:,} of {sum(map(len, tables)):,} rows have {why} and are left out, and no window crosses them")
    if data.normal is not None and not any(len(file.rows) for file in files.values()):
        _refuse_other_labels(tables, data)
    _say_odd(tables[0], data, columns, [file.values for file in files.values()], say)
    if data.test is None:
        return series.prepared(config, data.dataset, columns, files, time, say)
    chosen = {name: files.pop(name) for name in _files(data.test) if name in files}
    return series.prepared(config, data.dataset, columns, files, time, say, chosen)


def _say_odd(
    table: Table,
    data: DataConfig,
    columns: list[str | Indicator],
    files: list[rows.Doubles],
    say: Callable[[str], None],
) -> None:
    """Say which columns are taken as numbers and may be no measurements, where nobody named them: dates, and counters.

    files: the values [n, columns] of each.
    """
    if data.columns:
        return
    first = table.first()
    dates = [name for name in map(str, columns) if name in first and all(map(_DATE.fullmatch, first[name]))]
    if dates:
        which = f"{dates[0]} holds" if len(dates) == 1 else f"{', '.join(dates)} hold"
        say(f"column{'s' * (len(dates) > 1)} {which} numbers that look like dates, as 20240131; {_LEAVE_OUT}")
    for i, column in enumerate(columns):
        rising = all((np.diff(values[:, i]) > 0).all() for values in files)
        if str(column) not in dates and rising and max(map(len, files), default=0) > _FEW_RISING:
            say(f"column {column} rises from row to row, as a counter or a time does; {_LEAVE_OUT}")


def _of_label(block: Block, data: DataConfig, table: Table) -> Block:
    """The rows that have the label which is normal."""
    if data.label is None:
        raise ArgumentError("--normal without labels", data.dataset, "name their column with --label")
    decimal = table.layout.decimal
    keep = labels_of(block.texts[data.label], decimal) == as_label(str(data.normal), decimal)
    return Block(block.rows[keep], block.values[keep], None if block.times is None else block.times[keep])


def _refuse_other_labels(tables: list[Table], data: DataConfig) -> None:
    """Raise InputError where no row has the label which is normal, whatever values it lacks."""
    found: set[str] = set()
    for table in tables:
        found |= {as_label(text, table.layout.decimal) for text in indicators.values_of(table, str(data.label))}
    if as_label(str(data.normal), tables[0].layout.decimal) not in found:
        todo = f"name one of its labels: {', '.join(sorted(found)[:9])}"
        raise InputError(f"no row is labelled {data.normal}", data.dataset, todo)


def _time(table: Table, columns: Sequence[str | Indicator]) -> str | None:
    """The first column of times; None where there is none that can be understood."""
    texts = table.first()
    kinds = {name: _kind(name, some, table.layout.decimal) for name, some in texts.items()}
    named = (name for name in table.layout.names if kinds[name] == "time" and name not in columns)
    return next((name for name in named if all(map(_is_clock, texts[name]))), None)


def _is_clock(text: str) -> bool:
    try:
        as_time(text)
    except ValueError:
        return False
    return True


def labels_of(texts: Sequence[str], decimal: str = ".", say: Callable[[str], None] = silent) -> NDArray[np.str_]:
    """The label of each row; of numbers the shortest form, so that 0, 0.0 and 0.00 are one, which `say` is told."""
    written = {text: as_label(text, decimal) for text in dict.fromkeys(texts)}
    for label in dict.fromkeys(written.values()):
        if len(forms := [text for text, taken in written.items() if taken == label]) > 1:
            say(f"labels {', '.join(forms)} are taken as one: {label}")
    return np.array([written[text] for text in texts])


def _say_how(tables: list[Table], window: int | None, say: Callable[[str], None]) -> None:
    """Say what was found where a table is not written with commas and points, and what is no row."""
    layout = tables[0].layout
    if (layout.delimiter, layout.decimal) != (",", "."):
        between, mark = _DELIMITERS[layout.delimiter], "comma" if layout.decimal == "," else "point"
        say(f"columns are read as parted by {between}, numbers with a decimal {mark}")
    if len(tables) > 1:
        read = "read as one" if window is None else "recordings of their own"
        say(f"{len(tables)} tables are {read}, in the order of their names")
    if blank := sum(table.count.blank for table in tables):
        say(f"{blank:,} blank line{'s are' if blank > 1 else ' is'} skipped")


def _files(path: str | None) -> list[str]:
    """The table, or those in the folder, by name; of no path none."""
    if path is None:
        return []
    return list(map(str, files_in(Path(path), VECTOR))) if Path(path).is_dir() else [path]


def _open(data: DataConfig, say: Callable[[str], None] = silent) -> list[Table]:
    """The tables to train on, by name, and after them those to test on; `say` is told of any that are both.

    Raises InputError where one has other columns than the first, or lacks one of those that are named.
    """
    if data.image_size or data.channels or data.levels:
        todo = "leave out --image-size, --channels and --levels"
        raise ArgumentError("a table has no images", data.dataset, todo)
    tested = _files(data.test)
    files = [*map(str, apart([*map(Path, _files(data.dataset))], [*map(Path, tested)], say)), *tested]
    tables = [_table(file, (found := Path(file).stat()).st_size, found.st_mtime_ns) for file in files]
    first = tables[0]
    named = {*(data.columns or ()), *(data.encode or ()), *filter(None, [data.label])}
    for table in tables[1:]:
        if data.columns and (missing := sorted(named - set(table.layout.names))):
            raise InputError(f"no column {missing[0]}", table.name, f"it has {', '.join(table.layout.names)[:200]}")
        if not data.columns and (other := sorted(set(first.layout.names) ^ set(table.layout.names))):
            which = f"column {other[0]} of {first.name} and {table.name}"
            todo = "give all the same, or name those that all have with --columns"
            raise InputError("tables of different columns in a folder", which, todo)
    return tables


@lru_cache(maxsize=16)
def _table(path: str, size: int, changed: int) -> Table:
    """The table in a file of this size, changed then: a training looks at it, and loads it when that is done."""
    return Table(*opener(path))


def _chosen(table: Table, data: DataConfig, say: Callable[[str], None]) -> list[str]:
    """The columns to train on: those that are named, or all that hold numbers and are neither label nor time.

    Raises InputError where one is not there, or none is left.
    """
    names = table.layout.names
    encode = data.encode or ()
    for name in (*(data.columns or ()), *encode, *filter(None, [data.label])):
        if name not in names:
            raise InputError(f"no column {name}", table.name, f"it has {', '.join(names)[:200]}")
    for given in (data.columns or (), encode):
        if len(set(given)) < len(given) or data.label in given:
            todo = "name each once in --columns and in --encode, and no label"
            raise ArgumentError("a column twice", ", ".join(given), todo)
    if data.columns:
        return [*data.columns, *(name for name in encode if name not in data.columns)]
    if table.layout.header and (numbers := [name for name in names if is_number(name, table.layout.decimal)]):
        say(f"the first line is taken as the header, though it holds {numbers[0]}; give the table one if it has none")
    first = table.first()
    kinds = {name: _kind(name, texts, table.layout.decimal) for name, texts in first.items()}
    kinds |= dict.fromkeys(table.layout.unnamed, "no name") | dict.fromkeys(encode, "numbers")
    taken = {data.label, None if data.window is None else _time(table, ())}
    for kind in ("text", "time", "no name"):
        if left := [name for name in names if kinds[name] == kind and name not in taken]:
            are = f"columns of {kind} are left out" if len(left) > 1 else f"a column of {kind} is left out"
            say(f"{are}: {', '.join(left)}; {_INSTEAD[kind]}")
    for name in (name for name in names if kinds[name] == "text" and name not in taken):
        odd = [(i, text) for i, text in enumerate(first[name]) if not is_number(text, table.layout.decimal)]
        if 2 * len(odd) < len(first[name]):
            row, text = odd[0]
            say(f"column {name} is one of text for {text[:20]!r} in row {row}, beside numbers: mend it to train on it")
    chosen = [name for name in names if kinds[name] == "numbers" and name != data.label]
    if not chosen:
        raise InputError("no column of numbers", table.name, "check its delimiter and header")
    return chosen


def _kind(name: str, texts: list[str], decimal: str) -> str:
    """What a column holds, by its name and its first fields: "numbers", "time" or "text"."""
    if name.strip().lower() in _TIMES:
        return "time"
    if all(is_number(text, decimal) for text in texts):
        return "numbers"
    return "time" if all(map(_is_time, texts)) else "text"


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text.strip())
    except ValueError:
        return False
    return True


def _encoded(tables: list[Table], columns: list[str], data: DataConfig) -> list[str | Indicator]:
    """The columns, with one of 0 and 1 for each value of those that are to be encoded.

    Raises InputError where one has too many values to be a text column of kinds.
    """
    found: list[str | Indicator] = []
    for column in columns:
        if column not in (data.encode or ()):
            found.append(column)
            continue
        values: set[str] = set()
        for table in tables:
            values |= indicators.values_of(table, column)
        if len(values) > _MOST_VALUES:
            which = f"column {column} has {len(values):,}"
            raise InputError("too many values to encode", which, f"encode columns of {_MOST_VALUES} values at most")
        found += [Indicator(column, value) for value in sorted(values)]
    if several := sorted(name for name in map(str, found) if list(map(str, found)).count(name) > 1):
        raise InputError(f"column {several[0]} comes twice", tables[0].name, "give each column a name of its own")
    return found


def is_table(path: Path) -> bool:
    """Whether a file holds a table: text, gzipped or not, and no array."""
    if path.suffix in (".npy", ".npz"):
        return False
    with reading(str(path), TODO), path.open("rb") as file:
        return header(file) is None
