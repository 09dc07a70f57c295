"""A person's own table, CSV or its like, one row an observation; the runtime reads it, and columns are chosen here."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_runtime.array_files import header, opener, reading
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import VECTOR, Observation
from vae_runtime.sources import files_in
from vae_runtime.tables import Block, Table, is_number
from vae_train import rows
from vae_train.config import Config, DataConfig
from vae_train.data import Data

_TIMES = {"time", "timestamp", "date", "datetime", "zeit", "datum"}
_TODO = "give a table, CSV or its like, or an .npy or .npz array"


def observation(data: DataConfig) -> Observation:
    """Kind and shape of a table's rows, told from its first lines; constant columns count here. Raises InputError."""
    table = _open(data)[0]
    return rows.observation(_chosen(table, data, lambda text: None), "gaussian")


def count(data: DataConfig) -> int:
    """About how many rows of a table, or of a folder of tables, are trained on."""
    found = 0
    for table in _open(data):
        with reading(table.name, _TODO):
            found += len(table)
    return found // (1 if data.normal is None else 2)


def load(config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
    """The rows of the table that `config.data` names, or of the tables in a folder; `say` is told what is left out.

    Nothing is lost that `warn` would be told.

    Raises InputError where a value is missing or no number, and for too few rows; ArgumentError where settings do not
    go with the table.
    """
    data = config.data
    tables = _open(data)
    columns = _chosen(tables[0], data, say)
    if len(tables) > 1:
        say(f"{len(tables)} tables are read as one, in the order of their names")
    total = sum(map(len, tables))
    values = np.empty((total, len(columns)))  # float64: nothing is lost before it is scaled
    labels: list[NDArray[np.str_]] = []
    count = 0
    for table in tables:
        kept = [np.empty(0, np.int64)]
        with reading(table.name, _TODO):
            for block in table.blocks(columns, drop_missing=data.missing == "drop"):
                _refuse_infinite(block, table, columns)
                values[count : count + len(block.rows)] = block.values
                count += len(block.rows)
                kept.append(block.rows)
            if data.label is not None:
                labels.append(labels_of(table, data.label)[np.concatenate(kept)])
    if not count:
        raise InputError("no row has all values", data.dataset, "name columns that have them with --columns")
    if count < total:
        say(f"{total - count:,} of {total:,} rows have a missing value and are left out")
    values = values[:count]
    values += 0.0  # 0.0 for -0.0: equal rows are equal bytes
    return rows.prepared(config, data.dataset, columns, values, np.concatenate(labels) if labels else None, say)


def _refuse_infinite(block: Block, table: Table, columns: list[str]) -> None:
    if len(bad := np.argwhere(~np.isfinite(block.values))):
        row, column = bad[0].tolist()
        which = f"{table.name}[{block.rows[row]}], column {columns[column]}"
        raise InputError("infinite value", which, "clean the data")


def _open(data: DataConfig) -> list[Table]:
    """The table, or those in the folder, by name. Raises InputError where one has other columns than the first."""
    if data.image_size or data.channels or data.levels:
        todo = "leave out --image-size, --channels and --levels"
        raise ArgumentError("a table has no images", data.dataset, todo)
    path, tables = Path(data.dataset), []
    for file in map(str, files_in(path, VECTOR)) if path.is_dir() else [data.dataset]:
        name, open_ = opener(file)
        with reading(name, _TODO):
            tables.append(Table(name, open_))
    first = tables[0]
    for table in tables[1:]:
        if other := sorted(set(first.layout.names) ^ set(table.layout.names)):
            which = f"column {other[0]} of {first.name} and {table.name}"
            raise InputError("tables of different columns in a folder", which, "give all the same")
    return tables


def _chosen(table: Table, data: DataConfig, say: Callable[[str], None]) -> list[str]:
    """The columns to train on: those that are named, or all that hold numbers and are neither label nor time.

    Raises InputError where one is not there, or none is left.
    """
    names = table.layout.names
    for name in (*(data.columns or ()), *filter(None, [data.label])):
        if name not in names:
            raise InputError(f"no column {name}", table.name, f"it has {', '.join(names)[:200]}")
    if data.columns:
        if len(set(data.columns)) < len(data.columns) or data.label in data.columns:
            raise ArgumentError("a column twice", ", ".join(data.columns), "name each once in --columns, and no label")
        return list(data.columns)
    if table.layout.header and (numbers := [name for name in names if is_number(name, table.layout.decimal)]):
        say(f"the first line is taken as the header, though it holds {numbers[0]}; give the table one if it has none")
    with reading(table.name, _TODO):
        first = table.first()
    kinds = {name: _kind(name, texts, table.layout.decimal) for name, texts in first.items()}
    kinds |= dict.fromkeys(table.layout.unnamed, "no name")
    for kind in ("text", "time", "no name"):
        if left := [name for name in names if kinds[name] == kind and name != data.label]:
            are = f"columns of {kind} are left out" if len(left) > 1 else f"a column of {kind} is left out"
            say(f"{are}: {', '.join(left)}; --columns names those to train on")
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


def labels_of(table: Table, column: str) -> NDArray[np.str_]:
    """The label of each row; of numbers the shortest form, so that 0, 0.0 and 0.00 are one."""
    return np.array([rows.as_label(text) for text in table.texts(column)])


def is_table(path: Path) -> bool:
    """Whether a file holds a table: text, gzipped or not, and no array."""
    if path.suffix in (".npy", ".npz"):
        return False
    with reading(str(path), _TODO), path.open("rb") as file:
        return header(file) is None
