"""Observations in: files, folders, patterns, arrays and standard input, fitted to a model, a batch at a time."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import array_files, vectors
from vae_runtime.array_files import Array, header, reading
from vae_runtime.errors import InputError
from vae_runtime.images import Floats, deepest, fit, from_levels
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import IMAGE, VECTOR, Observation
from vae_runtime.tables import Table

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")  # which a folder may hold; a file that is named may be called anything
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # Pillow knows more, and starts programs for some
MOST_PIXELS = 64_000_000  # of one image file: more is a mistake, or an attack on the memory
_LEVELS = ("uint8", "uint16")
_AS_THEY_ARE = Preprocessing()
_TODO = "give a table, CSV or its like, or an .npy or .npz array"

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
    where there is one channel: 8- or 16-bit levels, booleans or floats in [0, 1]; or rows [n, D], or one [D], of
    numbers. An .npz has one, or one named x. Rows come from tables too, CSV or its like, by the names of the columns.
    preprocessing: of the model's own, as its manifest has it.
    Raises InputError, naming the file, where one is missing, unreadable, empty or cannot be fitted.
    """

    def __init__(
        self, sources: Iterable[Source], observation: Observation, preprocessing: Preprocessing = _AS_THEY_ARE
    ) -> None:
        self.observation, self.preprocessing = observation, preprocessing
        self._columns = [column.name for column in preprocessing.columns]
        self.fitted: dict[str, str] = {}  # filled while batches are read
        paths = (path for source in sources for path in _paths(source, observation))
        self._files = [_examine(path, observation, self._columns) for path in paths]
        if not self._files:
            named = "image files, folders or arrays" if observation.kind == IMAGE else "tables or arrays"
            raise InputError(f"no {observation.noun}s", "none named", f"name {named}")

    def __len__(self) -> int:
        return sum(file.rows or 1 for file in self._files)

    def names(self) -> Iterator[str]:
        """A name for each: its file's, with its number where the file is an array."""
        for file in self._files:
            yield from [file.name] if file.rows is None else (f"{file.name}[{i}]" for i in range(file.rows))

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
            columns = columns_of(file.table, self._columns, self.observation.shape[0])
            with reading(file.name, _TODO):
                for block in file.table.blocks(columns):
                    yield self._numbers(block.values, file.name, int(block.rows[0]))
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
        if array is None or _count(array, file.name, self.observation) != file.rows:
            raise ValueError("it has changed since it was looked at")
        start = 0
        for values in array_files.blocks(array, file.rows, self.observation.shape, rows):
            if self.observation.kind == IMAGE:
                x, note = from_levels(values, self.preprocessing.full_scale, file.name, start)
                if note:
                    self.fitted[file.name] = note
                yield x
            else:
                yield self._numbers(values, file.name, start)
            start += len(values)

    def _numbers(self, values: NDArray[Any], name: str, start: int) -> NDArray[Any]:
        """Rows or windows start.. of a file, as they are where they will be scaled."""
        if not self._columns:
            return vectors.from_numbers(values, name, start)
        vectors.check(values.dtype, name)
        vectors.refuse_infinite(values, values, name, start, self._columns)
        return values.astype(np.float64)

    def _image(self, stream: IO[bytes], name: str) -> tuple[Floats, str]:
        """The image of a file, [1, C, H, W], and what was changed."""
        with _picture(stream, name) as image:
            pixels, note = fit(image, self.observation.shape, self.preprocessing.full_scale, name)
        return pixels[None], note


@dataclass(frozen=True)
class _File:
    """One file: `rows` is None for an image, and the number of observations for an array or a table."""

    name: str
    rows: int | None
    open: Callable[[], IO[bytes]]
    table: Table | None = None


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


def _examine(source: str | bytes, observation: Observation, columns: list[str]) -> _File:
    """Look at a file's first bytes, for an array at its shape, and for a table at its columns."""
    name, opener = array_files.opener(source)
    with reading(name, "give images, arrays or tables"), opener() as stream:
        if (array := header(stream)) is not None:
            return _File(name, _count(array, name, observation), opener)
        if observation.kind == IMAGE:
            return _File(name, None, opener)
        if observation.kind != VECTOR:
            todo = f"this model takes {observation.batch_shape}; give an .npy or .npz array"
            raise InputError("not an array", name, todo)
    with reading(name, _TODO):
        table = Table(name, opener)
        columns_of(table, columns, observation.shape[0])
        if not (rows := len(table)):
            raise InputError("no rows", name, "give one or more below the header")
        return _File(name, rows, opener, table)


def columns_of(table: Table, known: list[str], count: int) -> list[str]:
    """The columns of a table that a model takes, in its order: those of its names, or all where it knows none.

    Raises InputError, naming it, for one that is missing, or where there are more or fewer than `count`.
    """
    names = list(table.layout.names)
    if known and all(name in names for name in known):
        return known
    if known not in ([], [f"column {i}" for i in range(count)]):
        if not table.layout.header:
            raise InputError("table without a header", table.name, f"name its columns: {', '.join(known)[:200]}")
        missing = next(name for name in known if name not in names)
        raise InputError(f"no column {missing}", table.name, f"it has {', '.join(names)[:200]}")
    if len(names) != count:
        raise InputError(f"table of {len(names)} columns", table.name, f"this model takes {count}, which have no names")
    return names


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
        raise InputError("not an image or array", name, "give a PNG, JPEG, .npy, .npz or IDX file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow has a limit of its own
        raise too_large from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise too_large
        yield image
