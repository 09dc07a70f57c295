"""Observations in: files, folders, patterns, arrays and standard input, fitted to a model, a batch at a time."""

import collections
import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import array_files, indicators, vectors
from vae_runtime.array_files import Array, header, reading
from vae_runtime.errors import InputError
from vae_runtime.images import MOST_PIXELS, Floats, deepest, fit, from_levels
from vae_runtime.indicators import Indicator, Unseen
from vae_runtime.manifest import Column, Preprocessing, Windows
from vae_runtime.observation import IMAGE, SERIES, Observation
from vae_runtime.outputs import STEPS
from vae_runtime.tables import Block, Table
from vae_runtime.windows import Cutter, usual_stride

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")  # which a folder may hold; a file that is named may be called anything
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # Pillow knows more, and starts programs for some
_LEVELS = ("uint8", "uint16")
_AS_THEY_ARE = Preprocessing()
_AT_ONCE = 4096  # rows that are looked at for missing values
_CHANGED = "it has changed since it was looked at"

Source = str | Path | bytes


@dataclass(frozen=True)
class Batch:
    """Observations x [n, *shape] with a name each; `fitted` says by name which were changed, and how."""

    names: list[str]
    x: NDArray[Any]
    fitted: dict[str, str]


class Observations:
    """The observations of image files, folders, patterns, .npy, .npz and IDX files (gzipped too), fitted to a model.

    "-" is standard input, and bytes are the content of a file.

    What a file is shows in its first bytes, not in its name. Arrays hold images [n, C, H, W], or [n, H, W] and [H, W]
    where there is one channel: 8- or 16-bit levels, booleans or floats in [0, 1]; rows [n, D], or one [D], of numbers;
    or windows [n, C, T]. An .npz has one, or one named x. Rows come from tables too, CSV or its like, by the names of
    the columns. Of a model of series, the rows of a table or of an array [n, C] are cut into windows.
    preprocessing: of the model's own, as its manifest has it. stride: rows from a window's start to the next one's;
    None for the model's own. drop_missing: whether rows with a missing value, in an array NaN, are left out; else they
    are refused.
    Raises InputError, naming the file, where one is missing, unreadable, empty or cannot be fitted.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        observation: Observation,
        preprocessing: Preprocessing = _AS_THEY_ARE,
        stride: int | None = None,
        drop_missing: bool = False,
    ) -> None:
        self.observation, self.preprocessing, self._drop_missing = observation, preprocessing, drop_missing
        self._columns = [column.name for column in preprocessing.columns]
        self._cut = windowing(observation, preprocessing, stride)
        self.fitted: dict[str, str] = {}  # filled while batches are read
        self._said: list[str] = []
        self._unseen: dict[tuple[str, str], tuple[str, int]] = {}  # filled then too: the first row, and how many
        paths = (path for source in sources for path in _paths(source, observation))
        self._needed = ""  # where a file has no window: what one takes
        self._files = [self._examine(path) for path in paths]
        if self._files and all(file.rows == 0 for file in self._files):
            raise InputError(f"no window of {observation.shape[-1]} rows", self._files[0].name, self._needed)
        if not self._files:
            named = "image files, folders or arrays" if observation.kind == IMAGE else "tables or arrays"
            raise InputError(f"no {observation.noun}s", "none named", f"name {named}")

    @property
    def notes(self) -> list[str]:
        """What is to be said of the files, a line each: how they are read and, once they are, what is not known."""
        tables = [file.table for file in self._files if file.table is not None]
        notes = []
        if commas := [table.name for table in tables if table.layout.decimal == ","]:
            more = f" and {len(commas) - 1} more" if len(commas) > 1 else ""
            notes.append(f"numbers are read with a decimal comma: {commas[0]}{more}")
        if blank := sum(table.count.blank for table in tables):
            notes.append(f"{blank:,} blank line{'s are' if blank > 1 else ' is'} skipped")
        kept = [file.kept for file in self._files if file.kept is not None]
        total = sum(map(len, kept))
        if left_out := total - sum(int(each.sum()) for each in kept):
            notes.append(f"{left_out:,} of {total:,} rows have a missing value and are left out")
        unseen = [not_seen(first, column, text, n) for (column, text), (first, n) in self._unseen.items()]
        return [*notes, *self._said, *unseen]

    def __repr__(self) -> str:
        files = self._files[0].name if len(self._files) == 1 else f"{len(self._files):,} files"
        noun = self.observation.noun + "s" * (len(self) != 1)
        return f"<vae_runtime.sources.Observations: {len(self):,} {noun} of {files}>"

    def __len__(self) -> int:
        return sum(1 if file.rows is None else file.rows for file in self._files)

    def names(self) -> Iterator[str]:
        """A name for each: its file's, with its number in an array or a table, or the rows that a window covers."""
        for file in self._files:
            if file.starts is not None:
                yield from (window(file.name, start, self.observation) for start in file.starts.tolist())
            elif file.rows is None:
                yield file.name
            else:
                numbers = range(file.rows) if file.kept is None else compress(range(len(file.kept)), file.kept)
                yield from (f"{file.name}[{i}]" for i in numbers)

    def batches(self, rows: int) -> Iterator[NDArray[Any]]:
        """The observations, float32 [about `rows`, *shape] at a time; float64 where the model scales its columns."""
        parts: list[NDArray[Any]] = []
        held = 0
        for part in (part for file in self._files for part in self._read(file, rows)):
            parts.append(part)
            held += len(part)
            if held >= rows:
                yield np.concatenate(parts)
                parts, held = [], 0
        if parts:
            yield np.concatenate(parts)

    def load(self) -> Batch:
        """All of them at once."""
        x = np.concatenate(list(self.batches(256)))
        return Batch(list(self.names()), x, self.fitted)

    def _read(self, file: "_File", rows: int) -> Iterator[NDArray[Any]]:
        if file.table is not None:
            yield from self._rows(file, self._table_blocks(file.table, note=True), rows)
            return
        with reading(file.name), file.open() as stream:
            if file.rows is not None:
                yield from self._array(stream, file, rows)
                return
            x, note = self._image(stream, file.name)
            if note:
                self.fitted[file.name] = note
            yield x

    def _array(self, stream: IO[bytes], file: "_File", rows: int) -> Iterator[NDArray[Any]]:
        """The observations of an array, at most `rows` at a time."""
        array = header(stream)
        if array is None or array.shape != file.shape:
            raise ValueError(_CHANGED)
        if self.observation.kind == IMAGE:
            start = 0
            for values in array_files.blocks(array, file.rows or 0, self.observation.shape, rows):
                x, note = from_levels(values, self.preprocessing.full_scale, file.name, start)
                if note:
                    self.fitted[file.name] = note
                yield x
                start += len(values)
            return
        yield from self._rows(file, self._array_blocks(array, rows), rows)

    def _table_blocks(self, table: Table, note: bool = False) -> Iterator[Block]:
        """The rows of a table, without those left out; `note` keeps what training did not see of their text."""
        columns = indicators.Columns(columns_of(table, self.preprocessing.columns, self.observation.shape[0]))
        for block, unseen in columns.blocks(table, self._drop_missing, self._time(table)):
            if note:
                self._note(unseen, table.name)
            yield block

    def _array_blocks(self, array: Array, rows: int) -> Iterator[Block]:
        """The rows or windows of an array with their numbers, without those that are left out."""
        shape, start = self.observation.shape, 0
        one = array.shape == shape
        count, shape = (1, shape) if one else (array.shape[0], array.shape[1:])
        for values in array_files.blocks(array, count, shape, rows):
            kept = slice(None) if not self._drop_missing else ~_missing(values)
            yield Block(np.arange(start, start + len(values))[kept], values[kept])
            start += len(values)

    def _rows(self, file: "_File", blocks: Iterator[Block], rows: int) -> Iterator[NDArray[Any]]:
        """Rows as observations, or the windows of which each is a part, at most `rows` at a time."""
        cutter = self._cutter(file.table)
        for block in blocks:
            values = self._numbers(block.values, file.name, block.rows)
            if file.starts is None:
                if len(values):
                    yield values
                continue
            for cut in cutter.feed(block._replace(values=values)):
                for i in range(0, len(cut.values), rows):
                    yield np.ascontiguousarray(cut.values[i : i + rows])

    def _note(self, unseen: Iterable[Unseen], name: str) -> None:
        for row, column, text in unseen:
            first, count = self._unseen.get((column, text), (f"{name}[{row}]", 0))
            self._unseen[column, text] = first, count + 1

    def _cutter(self, table: Table | None) -> Cutter:
        written = table is not None and self._is_written(table)
        return Cutter(self.observation.shape[-1], self._cut.stride, 1.0 if written else self._cut.interval)

    def _time(self, table: Table) -> str | None:
        """The column of a table that has the rows' times, where the model is one of series and the table has it.

        Of windows that were written as rows it is that of their steps, which begin anew in each.
        """
        if self._is_written(table):
            return STEPS[1]
        return self._cut.time if self._cut.time in table.layout.names else None

    def _is_written(self, table: Table) -> bool:
        """Whether a table is one of windows, as `outputs` writes them."""
        series = self.observation.kind == SERIES and not set(STEPS) & {*self._columns, self._cut.time}
        return series and table.layout.names[:2] == STEPS

    def _numbers(self, values: NDArray[Any], name: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Rows or windows of a file, as they are where they will be scaled; numbers: theirs."""
        if not self._columns:
            return vectors.from_numbers(values, name, numbers.tolist())
        vectors.check(values.dtype, name)
        vectors.refuse_infinite(values, values, name, numbers.tolist(), self._columns)
        return values.astype(np.float64)

    def _image(self, stream: IO[bytes], name: str) -> tuple[Floats, str]:
        """The image of a file, [1, C, H, W], and what was changed."""
        with _picture(stream, name) as image:
            pixels, note = fit(image, self.observation.shape, self.preprocessing, name)
        return pixels[None], note

    def _examine(self, source: str | bytes) -> "_File":
        """Look at a file's first bytes, for an array at its shape, and for a table at its columns."""
        kind = self.observation
        name, opener = array_files.opener(source)
        with reading(name, "give images, arrays or tables"), opener() as stream:
            if (array := header(stream)) is not None:
                cut = kind.kind == SERIES and len(array.shape) == 2 and array.shape != kind.shape
                if cut and array.shape[1] != kind.shape[0]:
                    todo = f"this model takes rows of {kind.shape[0]} channels, or {kind.batch_shape}"
                    raise InputError(f"array of shape {list(array.shape)}", name, todo)
                if cut:
                    vectors.check(array.dtype, name)
                count = array.shape[0] if cut else _count(array, name, kind)
                file = _File(name, count, opener, shape=array.shape)
                if kind.kind == IMAGE:
                    return file
                return self._counted(file, cut, self._array_blocks(array, _AT_ONCE) if self._drop_missing else None)
            if kind.kind == IMAGE:
                return _File(name, None, opener)
        table = Table(name, opener)
        columns_of(table, self.preprocessing.columns, kind.shape[0])
        if not (rows := len(table)):
            raise InputError("no rows", name, "give one or more below the header")
        time = self._time(table)
        if time is None and self._cut.interval is not None:
            self._said.append(no_times(name, self._cut))
        timed = None if time is None else table.blocks([], time=time)
        blocks = self._table_blocks(table) if self._drop_missing else timed
        return self._counted(_File(name, rows, opener, table), kind.kind == SERIES, blocks)

    def _counted(self, file: "_File", cut: bool, blocks: Iterator[Block] | None) -> "_File":
        """The file, whose rows are `cut` into windows or are observations, with which these are.

        blocks: its rows without those to be left out; None for all, the values of which are not looked at.
        """
        count = file.rows or 0
        if blocks is None:
            if not cut:
                return file
            starts = self._starts(file, _numbered(count))
            return replace(file, rows=len(starts), starts=starts)
        kept = np.zeros(count, np.bool_)

        def seen() -> Iterator[Block]:
            for block in blocks:
                kept[block.rows] = True
                yield block

        if cut:
            starts = self._starts(file, seen())
            file = replace(file, rows=len(starts), starts=starts)
        else:
            collections.deque(seen(), maxlen=0)
            file = replace(file, rows=int(kept.sum()))
        if not kept.any():
            raise InputError("no row has all values", file.name, "fill them in")
        return file if kept.all() else replace(file, kept=kept)

    def _starts(self, file: "_File", blocks: Iterator[Block]) -> NDArray[np.int64]:
        """The first row of each window of a file, int64 [n]; what is to be said of its rows goes to `notes`."""
        cutter = self._cutter(file.table)
        starts = [cut.starts for block in blocks for cut in cutter.feed(block)]
        if file.table is None or not self._is_written(file.table):
            self._said += [f"{file.name}: {said}" for said in cutter.said(ended=True).values()]
        if not starts:
            self._needed = cutter.needed()
        return np.concatenate([np.zeros(0, np.int64), *starts])


def windowing(observation: Observation, preprocessing: Preprocessing, stride: int | None) -> Windows:
    """How a model's rows are cut into windows, with this stride if one is given."""
    known = preprocessing.windows or Windows(usual_stride(observation.shape[-1]))
    return known if stride is None else replace(known, stride=stride)


def no_times(name: str, windows: Windows) -> str:
    """What to say of a table without the column of times that training saw."""
    return f"{name}: no column {windows.time}, so that gaps in time are not looked for"


def window(name: str, start: int, observation: Observation) -> str:
    """What to call a window by the rows that it covers, as Python writes a slice of them."""
    return f"{name}[{start}:{start + observation.shape[-1]}]"


def not_seen(row: str, column: str, text: str, count: int = 1) -> str:
    """What to say of text that training did not see, in a row and so many in all."""
    more = f" and {count - 1:,} more row{'s' * (count > 2)} have" if count > 1 else " has"
    return f"{row}{more} {text!r} in column {column}, which training did not see: 0 in all columns of it"


@dataclass(frozen=True)
class _File:
    """One file: `rows` is None for an image, and the number of observations for an array or a table.

    starts: of windows that are cut from rows, the first row of each. shape: an array's. kept: which of the rows have
    all values, bool [rows in the file]; None where all are read.
    """

    name: str
    rows: int | None
    open: Callable[[], IO[bytes]]
    table: Table | None = None
    starts: NDArray[np.int64] | None = None
    shape: tuple[int, ...] = ()
    kept: NDArray[np.bool_] | None = None


def _numbered(count: int) -> Iterator[Block]:
    """The numbers of so many rows, without their values."""
    for start in range(0, count, _AT_ONCE):
        numbers = np.arange(start, min(start + _AT_ONCE, count))
        yield Block(numbers, np.empty((len(numbers), 0)))


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows or windows [n, ...] hold NaN, bool [n]."""
    if values.dtype.kind != "f":
        return np.zeros(len(values), np.bool_)
    missing: NDArray[np.bool_] = np.isnan(values).reshape(len(values), -1).any(axis=1)
    return missing


def _paths(source: Source, observation: Observation) -> Iterable[str | bytes]:
    """The files behind a source: a folder stands for the images or tables in it, as in training.

    A pattern stands for its matches; both are sorted by name.
    """
    if isinstance(source, bytes):
        return [source]
    source, path = str(source), Path(source)
    if not source:
        raise InputError("file not found", "an empty name", "name a file")
    with reading(source):
        if source != "-" and path.is_dir():
            if not (inside := files_in(path, observation.kind)):
                images = observation.kind == IMAGE
                what, suffixes = ("images", sorted(SUFFIXES)) if images else ("tables", TABLES)
                raise InputError(f"no {what} in the folder", path, f"put {', '.join(suffixes)} files there")
            return map(str, inside)
        if glob.has_magic(source) and not path.exists():
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207, Path.glob takes no absolute pattern
            if not matches:
                raise InputError("no file matches", source, "check the pattern")
            return matches
    return [source]


def files_in(path: Path, kind: str) -> list[Path]:
    """The files in a folder and the folders inside that hold observations of a kind, by name: images, or tables."""
    if kind == IMAGE:
        return sorted(p for p in walk(path) if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in walk(path) if p.name.lower().endswith(TABLES))


def walk(path: Path) -> Iterator[Path]:
    """The files in a folder and the folders inside, but hidden ones; links are followed, each folder is read once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"folder cannot be read ({error.strerror})", error.filename, "check its permissions")

    seen = set()
    for folder, inside, names in os.walk(path, onerror=refuse, followlinks=True):
        inside.sort()
        if (real := Path(folder).resolve()) in seen:
            inside.clear()
            continue
        seen.add(real)
        found = (Path(folder, name) for name in names if not name.startswith("."))
        yield from (p for p in found if p.is_file() or not p.exists())  # a broken link is a file that cannot be read


def largest_level(path: Path) -> int | None:
    """The largest level in a file of 16-bit levels; None of one that has others. Raises what `Observations` does."""
    name = str(path)
    with reading(name), path.open("rb") as stream:
        if (array := header(stream)) is not None:
            return array_files.largest(array) if array.dtype.name == "uint16" else None
        with _picture(stream, name) as image:
            return deepest(image)


def picture_header(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width of a file's picture when it is upright, and its Pillow mode, without decoding it.

    Raises InputError where it is none.
    """
    name = str(path)
    with reading(name), path.open("rb") as stream, _picture(stream, name) as image:
        known = image.format != "PNG" or "exif" in image.info  # Pillow decodes a PNG to look for it behind the pixels
        turned = known and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width), image.mode


def columns_of(table: Table, known: Sequence[Column], count: int) -> list[str | Indicator]:
    """The columns of a table that a model takes, in its order: those of its names, or all where it knows none.

    A column of 0 and 1 that is made of another is taken as it is where the table has it, as in what `sample` writes.
    Raises InputError, naming it, for one that is missing, or where there are more or fewer than `count`.
    """
    names = dict.fromkeys(table.layout.names)  # quick to look into, however many
    found = [_column_of(column, names) for column in known]
    if known and None not in found:
        return [column for column in found if column is not None]
    if [column.name for column in known] not in ([], [f"column {i}" for i in range(count)]):
        called = ", ".join(dict.fromkeys(column.of or column.name for column in known))[:200]
        if not table.layout.header:
            raise InputError("table without a header", table.name, f"name its columns: {called}")
        missing = known[found.index(None)]
        todo = f"it has {', '.join(names)[:200]}, and the model takes {called}"
        raise InputError(f"no column {missing.of or missing.name}", table.name, todo)
    if len(names) != count:
        raise InputError(f"table of {len(names)} columns", table.name, f"this model takes {count}, which have no names")
    return [*names]


def _column_of(column: Column, names: Collection[str]) -> str | Indicator | None:
    if column.name in names:
        return column.name
    made = column.of in names and column.value is not None
    return Indicator(str(column.of), str(column.value)) if made else None


def _count(array: Array, name: str, observation: Observation) -> int:
    """How many observations an array holds. Raises InputError where its shape or type is not that of the model."""
    shape, images = observation.shape, observation.kind == IMAGE
    if not images:
        vectors.check(array.dtype, name)
    elif array.dtype.name not in _LEVELS and array.dtype.kind not in "fb":
        raise InputError(f"array of type {array.dtype}", name, "give uint8 levels or floats in [0, 1]")
    taken = [shape, shape[1:]] if images and shape[0] == 1 else [shape]
    one = array.shape in taken and len(array.shape) < 3  # [1, H, W] is one image of a batch
    if not (one or array.shape[1:] in taken) or min(array.shape) < 1:
        expected = f"[n, {', '.join(map(str, shape))}]"
        raise InputError(f"array of shape {list(array.shape)}", name, f"this model takes {expected}")
    return 1 if one else array.shape[0]


@contextmanager
def _picture(stream: IO[bytes], name: str) -> "Iterator[Image.Image]":
    """The picture that a stream holds, not decoded yet. Raises InputError where it is none, or too large."""
    from PIL import Image, UnidentifiedImageError

    too_large = InputError("image too large", name, f"make it smaller, {MOST_PIXELS:,} pixels at most")
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        todo = (
            "give a PNG, JPEG, .npy, .npz or IDX file; a table is for a model of rows, which vae-train --dataset makes"
        )
        raise InputError("not an image or array", name, todo) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow has a limit of its own
        raise too_large from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise too_large
        yield image
