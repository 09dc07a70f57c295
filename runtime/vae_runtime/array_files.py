"""Arrays in files: .npy and .npz as NumPy writes them and IDX as MNIST has it, gzipped or not, a few rows at a time."""

import gzip
import io
import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError, VaeError
from vae_runtime.observation import Shape

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_OTHERS = {b"PAR1": "Parquet", b"ARRO": "Arrow", b"FEA1": "Feather", b"\xd0\xcf\x11\xe0": "an old workbook of sheets"}
_MOST_FORTRAN = 1 << 28  # bytes
_PIECE = 1 << 20  # bytes: a header may claim more than there is


class Array(NamedTuple):
    """An array's shape and type, and the stream that gives its values next."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    values: IO[bytes]


def read_array(source: str, *names: str) -> tuple[str, NDArray[Any]]:
    """What to call a source, and its whole array: of an .npy or .npz file, or of standard input ("-").

    Of an .npz, the array that has the first of `names`, or its only one.

    Raises InputError, naming the file.
    """
    name, open_ = opener(source)
    with reading(name, "give an .npy or .npz array"), open_() as stream:
        if (array := header(stream, names)) is None:
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
    name, open_ = opener(source)
    with reading(name, "give an .npy or .npz array"), open_() as stream:
        if (array := header(stream, names)) is None:
            raise ValueError("it is no array")
        return array.shape


def blocks(array: Array, count: int, shape: Shape, rows: int) -> Iterator[NDArray[Any]]:
    """The values of an array that holds `count` times `shape`: [at most `rows`, *shape] at a time.

    Raises ValueError where the file ends before them, or is damaged behind them.
    """
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


def largest(array: Array) -> int:
    """The largest value of an array of integers, read a piece at a time."""
    size = math.prod(array.shape)
    pieces = (_exactly(array, min(_PIECE, size - i)) for i in range(0, size, _PIECE))
    return max(int(np.frombuffer(piece, array.dtype).max()) for piece in pieces)


def opener(source: str | bytes) -> tuple[str, Callable[[], IO[bytes]]]:
    """What to call a source, and how to open it."""
    if source == "-":
        return "standard input", partial(io.BytesIO, sys.stdin.buffer.read())
    if isinstance(source, bytes):
        return "bytes", partial(io.BytesIO, source)
    return source, partial(_open, source)


def _open(path: str) -> IO[bytes]:
    return Path(path).open("rb")


@contextmanager
def reading(name: str, todo: str = "save it again as PNG, or with numpy.save") -> Iterator[None]:
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


def is_array(head: bytes) -> bool:
    """Whether a file that begins with these bytes, four of them, holds an array, or is packed."""
    return head.startswith((b"\x93NUM", b"PK\x03\x04", b"\x1f\x8b", b"\0\0\x08"))


def header(stream: IO[bytes], names: Sequence[str] = ("x",)) -> Array | None:
    """The array that a stream holds, of an .npz the one of these names, or None where it holds something else."""
    magic = stream.read(4)
    stream.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return header(cast(IO[bytes], gzip.GzipFile(fileobj=stream)), names)
    if magic == b"PK\x03\x04":
        return header(_member(zipfile.ZipFile(stream), names), names)
    if magic in _OTHERS:
        raise ValueError(f"it is {_OTHERS[magic]}; save it as CSV")
    if magic == b"\x93NUM":
        version = np.lib.format.read_magic(stream)
        if version not in _NPY_HEADERS:
            raise ValueError(f"its format is {version[0]}.{version[1]}")
        shape, fortran, dtype = _NPY_HEADERS[version](stream)
        return Array(shape, dtype, fortran, stream)
    if magic.startswith(b"\0\0\x08"):  # IDX, the format of MNIST: unsigned bytes, then the number of axes
        sizes = stream.read(4 + 4 * magic[3])[4:]
        return Array(tuple(np.frombuffer(sizes, ">u4").tolist()), np.dtype(np.uint8), False, stream)
    return None


def _member(archive: zipfile.ZipFile, names: Sequence[str]) -> IO[bytes]:
    """The array of an .npz archive that has the first of `names`, or its only one."""
    if any(name.startswith("xl/") or name == "content.xml" for name in archive.namelist()):
        raise ValueError("it is a workbook of sheets; save one of them as CSV")
    held = [name.removesuffix(".npy") for name in archive.namelist()]
    wanted = next((name for name in names if name in held), None)
    if wanted is None and len(held) != 1:
        raise ValueError(f"it holds {', '.join(held) or 'nothing'}, and none is named {' or '.join(names)}")
    return archive.open(archive.namelist()[held.index(wanted) if wanted else 0])


def _exactly(array: Array, count: int) -> bytearray:
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
