"""Columns of text as columns of 0 and 1, one for each value, beside those of numbers of the same table."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vae_runtime.errors import InputError
from vae_runtime.tables import Block, Doubles, Table, as_label, is_missing
from vae_runtime.vectors import LEAVE_OUT


class Indicator(NamedTuple):
    """A column of 0 and 1: 1 where the column of which it is made has this value, written as `as_label` does.

    As text it is its name.
    """

    of: str
    value: str

    def __str__(self) -> str:
        return f"{self.of}={self.value}"


class Unseen(NamedTuple):
    """A field that no indicator of its column is for, all of which are 0 then, and its row."""

    row: int
    column: str
    text: str


class Columns:
    """Columns of a table that are wanted, numbers and indicators: what is to be read, and how they are made of it.

    numbers: those of numbers. texts: those of which indicators are made.
    """

    def __init__(self, wanted: Sequence[str | Indicator]) -> None:
        self.numbers = [column for column in wanted if isinstance(column, str)]
        self._made = [column for column in wanted if isinstance(column, Indicator)]
        self.texts = list(dict.fromkeys(indicator.of for indicator in self._made))
        places = {column: i for i, column in enumerate([*self.numbers, *self._made])}
        self._order = [places[column] for column in wanted]

    def blocks(
        self, table: Table, drop_missing: bool = False, time: str | None = None, label: str | None = None
    ) -> Iterator[tuple[Block, list[Unseen]]]:
        """The rows of a table as `Table.blocks` gives them, with these columns; label: another one of text."""
        texts = [*self.texts, *(() if label is None or label in self.texts else (label,))]
        for block in table.blocks(self.numbers, drop_missing, time, texts):
            yield self.of(block, table, drop_missing)

    def of(self, block: Block, table: Table, drop_missing: bool = False) -> tuple[Block, list[Unseen]]:
        """A block of the numbers and texts with these columns in their place, and the fields for which there is none.

        Raises InputError, naming row and column, for missing text, unless such rows are to be dropped.
        """
        if not self._made:
            return block, []
        block = self._without_missing(block, table, drop_missing)
        made = np.empty((len(block.rows), len(self._made)))
        unseen = []
        for column in self.texts:
            places = {indicator.value: i for i, indicator in enumerate(self._made) if indicator.of == column}
            fields = block.texts[column]
            written = {text: places.get(as_label(text, table.layout.decimal), -1) for text in set(fields)}
            found = np.array([written[text] for text in fields], np.int64)
            made[:, list(places.values())] = found[:, None] == list(places.values())
            unseen += [Unseen(int(block.rows[i]), column, fields[i]) for i in np.flatnonzero(found < 0).tolist()]
        values: Doubles = np.hstack([block.values, made])[:, self._order]
        return block._replace(values=values), unseen

    def _without_missing(self, block: Block, table: Table, drop_missing: bool) -> Block:
        """The rows that have a value in each column of which indicators are made."""
        kept = np.ones(len(block.rows), np.bool_)
        for column in self.texts:
            kept &= np.array([not is_missing(text) for text in block.texts[column]], np.bool_)
            if not (kept.all() or drop_missing):
                raise InputError("missing value", table.place(int(block.rows[np.argmin(kept)]), column), LEAVE_OUT)
        if kept.all():
            return block
        texts = {name: [fields[i] for i in np.flatnonzero(kept)] for name, fields in block.texts.items()}
        times = None if block.times is None else block.times[kept]
        return Block(block.rows[kept], block.values[kept], times, texts)


def values_of(table: Table, column: str) -> set[str]:
    """The values of a column, as `as_label` writes them; missing ones are none."""
    found: set[str] = set()
    for block in table.blocks([], texts=[column]):
        found.update(block.texts[column])
    return {as_label(text, table.layout.decimal) for text in found if not is_missing(text)}
