"""Images in: files, folders, patterns, arrays, IDX files and standard input, fitted to a model, a batch at a time."""

import glob
import gzip
import io
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, VaeError
from vae_runtime.images import FULL_SCALE, Floats, Shape, above, deepest, fit

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST_FORTRAN = 1 << 28  # bytes
_PIECE = 1 << 20  # bytes: a header may claim more than there is
_LEVELS = ("uint8", "uint16")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # Pillow knows more, and starts programs for some
MOST_PIXELS = 64_000_000  # of one image file: more is a mistake, or an attack on the memory


Source = str | Path | bytes


@dataclass(frozen=True)
class Batch:
    """Images x float32 [n, C, H, W] in [0, 1] with a name each; `fitted` says by name which were changed, and how."""

    names: list[str]
    x: Floats
    fitted: dict[str, str]


def load(sources: Iterable[Source], shape: Shape, full_scale: int | None = None) -> Batch:
    """All images of the sources at once; `Images` says which sources there are, and what is raised."""
    images = Images(sources, shape, full_scale)
    x = np.concatenate(list(images.batches(256)))
    return Batch(list(images.names()), x, images.fitted)


class Images:
    """The images of image files, folders, patterns, .npy, .npz and IDX files (gzipped too).

    "-" is standard input, and bytes are the content of a file.

    What a file is shows in its first bytes, not in its name. Arrays hold images [n, C, H, W], or [n, H, W] and [H, W]
    where the model has one channel: 8- or 16-bit levels, booleans or floats in [0, 1]. An .npz has one, or one named x.
    full_scale: the 16-bit level that is 1.0, such as 4095 of a 12-bit camera; None for 65535.
    Raises InputError, naming the file, where one is missing, unreadable, empty or cannot be fitted.
    """

    def __init__(self, sources: Iterable[Source], shape: Shape, full_scale: int | None = None) -> None:
        self.shape = shape
        self.full_scale = full_scale
        self.fitted: dict[str, str] = {}  # filled while batches are read
        self._files = [_examine(path, shape) for source in sources for path in _paths(source)]
        if not self._files:
            raise InputError("no images", "none named", "name image files, folders or arrays")

    def __len__(self) -> int:
        return sum(file.rows or 1 for file in self._files)

    def names(self) -> Iterator[str]:
        """A name for each image: its file's, with its number where the file is an array."""
        for file in self._files:
            yield from [file.name] if file.rows is None else (f"{file.name}[{i}]" for i in range(file.rows))

    def batches(self, rows: int) -> Iterator[Floats]:
        """The images, float32 [about `rows`, C, H, W] in [0, 1] at a time."""
        parts: list[Floats] = []
        held = 0
        for part in (part for file in self._files for part in self._read(file, rows)):
            parts.append(part)
            held += len(part)
            if held >= rows:
                yield np.concatenate(parts)
                parts, held = [], 0
        if parts:
            yield np.concatenate(parts)

    def _read(self, file: "_File", rows: int) -> Iterator[Floats]:
        with _reading(file.name), file.open() as stream:
            if file.rows is not None:
                yield from self._array(stream, file, rows)
                return
            x, note = self._image(stream, file.name)
            if note:
                self.fitted[file.name] = note
            yield x

    def _array(self, stream: IO[bytes], file: "_File", rows: int) -> Iterator[Floats]:
        """The images of an array, at most `rows` at a time."""
        scale, start = 1, 0
        for levels in _rows(stream, file, self.shape, rows):
            if levels.dtype == np.uint8:
                scale = 255
            elif levels.dtype.name == "uint16":
                scale = self.full_scale or FULL_SCALE
                tops = levels.reshape(len(levels), -1).max(axis=1)
                if (top := int(tops.max())) > scale:
                    raise above(top, scale, f"{file.name}[{start + int(np.argmax(tops))}]")
                if not self.full_scale:
                    self.fitted[file.name] = f"as levels / {scale}"
            with np.errstate(over="ignore"):  # what becomes infinite is refused
                x = levels.astype(np.float32) / np.float32(scale)
            good = ((x >= 0) & (x <= 1)).reshape(len(x), -1).all(axis=1)  # False for NaN
            if not good.all():
                which = f"{file.name}[{start + int(np.argmin(good))}]"
                raise InputError("pixels outside [0, 1] or NaN", which, "give floats in [0, 1], or levels as uint8")
            yield x
            start += len(x)

    def _image(self, stream: IO[bytes], name: str) -> tuple[Floats, str]:
        """The image of a file, [1, C, H, W], and what was changed."""
        with _picture(stream, name) as image:
            pixels, note = fit(image, self.shape, self.full_scale, name)
        return pixels[None], note


@dataclass(frozen=True)
class _File:
    """One file: `rows` is None for an image, and the number of images for an array."""

    name: str
    rows: int | None
    open: Callable[[], IO[bytes]]


class _Array(NamedTuple):
    """An array's shape and type, and the stream that gives its values next."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    values: IO[bytes]


def _paths(source: Source) -> Iterable[str | bytes]:
    """The files behind a source: a folder stands for the images in it and in the folders inside, as in training.

    A pattern stands for its matches; both are sorted by name.
    """
    if isinstance(source, bytes):
        return [source]
    source, path = str(source), Path(source)
    if not source:
        raise InputError("file not found", "an empty name", "name a file")
    with _reading(source):
        if source != "-" and path.is_dir():
            inside = sorted(p for p in walk(path) if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise InputError("no images in the folder", path, f"put {', '.join(sorted(SUFFIXES))} files there")
            return map(str, inside)
        if glob.has_magic(source) and not path.exists():
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207, Path.glob takes no absolute pattern
            if not matches:
                raise InputError("no file matches", source, "check the pattern")
            return matches
    return [source]


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
    """The largest level in a file of 16-bit levels; None of one that has others. Raises InputError as `Images` does."""
    name = str(path)
    with _reading(name), path.open("rb") as stream:
        if (array := _header(stream)) is not None:
            if array.dtype.name != "uint16":
                return None
            size = math.prod(array.shape)
            pieces = (_exactly(array, min(_PIECE, size - i)) for i in range(0, size, _PIECE))
            return max(int(np.frombuffer(piece, array.dtype).max()) for piece in pieces)
        with _picture(stream, name) as image:
            return deepest(image)


def read_array(source: str, *names: str) -> tuple[str, NDArray[Any]]:
    """What to call a source, and its whole array: of an .npy or .npz file, or of standard input ("-").

    Of an .npz, the array that has the first of `names`, or its only one.

    Raises InputError, naming the file.
    """
    name, opener = _opener(source)
    with _reading(name, "give an .npy or .npz array"), opener() as stream:
        if (array := _header(stream, names)) is None:
            raise ValueError("it is no array")
        if array.dtype.hasobject:
            which = f"{name} ({' or '.join(names)})"
            raise InputError(
                "array of Python objects, which are not read", which, "save numbers or text: y.astype(str)"
            )
        values = np.frombuffer(_exactly(array, math.prod(array.shape)), array.dtype)
        _to_the_end(array.values)
        return name, values.reshape(array.shape, order="F" if array.fortran else "C")


def array_shape(source: str, *names: str) -> tuple[int, ...]:
    """The shape of the array that `read_array` reads, from its header alone. Raises InputError, naming the file."""
    name, opener = _opener(source)
    with _reading(name, "give an .npy or .npz array"), opener() as stream:
        if (array := _header(stream, names)) is None:
            raise ValueError("it is no array")
        return array.shape


def _examine(source: str | bytes, shape: Shape) -> _File:
    """Look at a file's first bytes, and for an array at its shape."""
    name, opener = _opener(source)
    with _reading(name), opener() as stream:
        array = _header(stream)
        return _File(name, None if array is None else _count(array, name, shape), opener)


def _opener(source: str | bytes) -> tuple[str, Callable[[], IO[bytes]]]:
    """What to call a source, and how to open it."""
    if source == "-":
        return "standard input", partial(io.BytesIO, sys.stdin.buffer.read())
    if isinstance(source, bytes):
        return "bytes", partial(io.BytesIO, source)
    return source, partial(_open, source)


def _open(path: str) -> IO[bytes]:
    return Path(path).open("rb")


@contextmanager
def _reading(name: str, todo: str = "save it again as PNG, or with numpy.save") -> Iterator[None]:
    """Turn what reading a file raises into an InputError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("file not found", name, "check the path") from None
    except (VaeError, MemoryError):
        raise
    except Exception as error:  # Pillow, NumPy and the archives raise many kinds for damaged files
        reason = str(getattr(error, "strerror", None) or error)[:200]
        raise InputError(f"file cannot be read ({reason})", name, todo) from None


def _header(stream: IO[bytes], names: Sequence[str] = ("x",)) -> _Array | None:
    """The array that a stream holds, or None where it holds something else."""
    magic = stream.read(4)
    stream.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return _header(cast(IO[bytes], gzip.GzipFile(fileobj=stream)), names)
    if magic == b"PK\x03\x04":
        return _header(_member(zipfile.ZipFile(stream), names), names)
    if magic == b"\x93NUM":
        version = np.lib.format.read_magic(stream)
        if version not in _NPY_HEADERS:
            raise ValueError(f"its format is {version[0]}.{version[1]}")
        shape, fortran, dtype = _NPY_HEADERS[version](stream)
        return _Array(shape, dtype, fortran, stream)
    if magic.startswith(b"\0\0\x08"):  # IDX, the format of MNIST: unsigned bytes, then the number of axes
        sizes = stream.read(4 + 4 * magic[3])[4:]
        return _Array(tuple(np.frombuffer(sizes, ">u4").tolist()), np.dtype(np.uint8), False, stream)
    return None


def _member(archive: zipfile.ZipFile, names: Sequence[str]) -> IO[bytes]:
    """The array of an .npz archive that has the first of `names`, or its only one."""
    held = [name.removesuffix(".npy") for name in archive.namelist()]
    wanted = next((name for name in names if name in held), None)
    if wanted is None and len(held) != 1:
        raise ValueError(f"it holds {', '.join(held) or 'nothing'}, and none is named {' or '.join(names)}")
    return archive.open(archive.namelist()[held.index(wanted) if wanted else 0])


def _count(array: _Array, name: str, shape: Shape) -> int:
    """How many images an array holds. Raises InputError where its shape or type is not that of images."""
    if array.dtype.name not in _LEVELS and array.dtype.kind not in "fb":
        raise InputError(f"array of type {array.dtype}", name, "give uint8 levels or floats in [0, 1]")
    grey = shape[0] == 1 and len(array.shape) in (2, 3) and array.shape[-2:] == shape[1:]
    if not (grey or (len(array.shape) == 4 and array.shape[1:] == shape)) or min(array.shape) < 1:
        expected = "[n, {}, {}, {}]".format(*shape)
        raise InputError(f"array of shape {list(array.shape)}", name, f"this model takes {expected}")
    return array.shape[0] if len(array.shape) > 2 else 1


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


def _rows(stream: IO[bytes], file: _File, shape: Shape, rows: int) -> Iterator[NDArray[Any]]:
    """The values of an array, [at most `rows`, C, H, W] at a time."""
    array = _header(stream)
    if array is None or (count := _count(array, file.name, shape)) != file.rows:
        raise ValueError("it has changed since it was looked at")
    size, compressed = math.prod(shape), array.values
    if array.fortran:  # no part of it lies together: read it whole
        if count * size * array.dtype.itemsize > _MOST_FORTRAN:
            raise ValueError("it is large and in Fortran's order; save it in C's, with numpy.ascontiguousarray")
        values = np.frombuffer(_exactly(array, count * size), array.dtype).reshape(array.shape, order="F")
        array = array._replace(values=io.BytesIO(values.tobytes()))
    for start in range(0, count, rows):
        n = min(rows, count - start)
        yield np.frombuffer(_exactly(array, n * size), array.dtype).reshape(n, *shape)
    _to_the_end(compressed)


def _exactly(array: _Array, count: int) -> bytearray:
    """The next `count` values."""
    wanted, data = count * array.dtype.itemsize, bytearray()
    while len(data) < wanted:
        if not (piece := array.values.read(min(wanted - len(data), _PIECE))):
            raise ValueError(f"it ends before its {array.shape[0]} rows do")
        data += piece
    return data


def _to_the_end(stream: IO[bytes]) -> None:
    """Read what is left: where a file is compressed, its checksum stands at its end."""
    while stream.read(_PIECE):
        pass
