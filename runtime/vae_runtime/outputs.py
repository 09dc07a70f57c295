"""Observations out, as a stream of batches: an .npy or .npz array, or of images a PNG grid, a GIF or PNG files."""

import io
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import ResourceError
from vae_runtime.files import folder_beside, replacing, write_errors
from vae_runtime.images import PICTURED, Floats, levels
from vae_runtime.observation import Shape

STEPS = ("window", "step")  # the first columns of windows that are written as rows
_GAP = 2  # grey pixels between the images of a grid
GREY = 96
_SCALE = 3  # of pictures for people: digits of 28 pixels are small on a screen
_PNG_COLOURS = {1: 0, 3: 2}  # channels: PNG's colour type
_FRAME = 80  # milliseconds


def write(
    path: Path,
    count: int,
    shape: Shape,
    batches: Iterable[NDArray[Any]],
    columns: int | None = None,
    first: int = 0,
    names: Sequence[str] = (),
) -> None:
    """Write `count` observations of `shape` in one step, as what the suffix of `path` says.

    .png: a grid, row by row, `columns` wide. .gif: each column of that grid is a frame, forth and back. .npy: float32
    [count, *shape], or of the batches' own type where that is float64. .npz: the same, compressed, as `x`. .csv: rows
    below the `names` of their columns; of series [C, T] a row for each step, with the window's number. No suffix: a
    folder with one PNG per image, numbered from `first`, and called as `names` say after the number.
    Raises ArgumentError where `path` cannot be written, ResourceError where memory or disk are full.
    """
    if not path.suffix:
        _write_folder(path, count, batches, first, names)
        return
    if path.suffix == ".npy" and path.parent.is_dir():
        import shutil

        batches = iter(batches)
        head = next(batches)
        batches = chain([head], batches)
        size, free = count * math.prod(shape) * _kind(head).itemsize, shutil.disk_usage(path.parent).free
        if size > free:
            which = f"{path} needs {size / 1e9:,.1f} GB, of which {free / 1e9:,.1f} are free"
            raise ResourceError("disk too small", which, "ask for fewer, or choose another place")
    with replacing(path) as file:
        if path.suffix == ".npy":
            _write_npy(file, (count, *shape), batches)
        elif path.suffix == ".npz":
            import zipfile

            archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
            with archive, archive.open("x.npy", "w", force_zip64=True) as member:
                _write_npy(member, (count, *shape), batches)
        elif path.suffix == ".csv":
            _write_csv(file, names, batches, first if len(shape) > 1 else None)
        elif path.suffix == ".gif":
            _write_gif(file, count, shape, batches, columns or count)
        else:
            file.write(png(grid(count, shape, batches, columns)))


def write_arrays(path: Path, **arrays: Floats) -> None:
    """Write named arrays as a compressed .npz, in one step."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def grid(count: int, shape: Shape, batches: Iterable[Floats], columns: int | None = None) -> NDArray[np.uint8]:
    """Images [n, C, H, W] row by row with thin grey gaps: uint8 levels [height, width, C]. Near a square by default.

    Of other channels than grey and RGB it shows the mean, and C is 1.
    """
    channels, height, width = shape[0] if shape[0] in PICTURED else 1, *shape[1:]
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = -(-count // columns)
    try:
        canvas = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), GREY, np.uint8)
    except (MemoryError, ValueError, OverflowError):
        raise ResourceError("out of memory", f"a grid of {count} images", "ask for fewer, or for an array") from None
    places = iter(range(count))
    for batch in batches:
        for image, i in zip(levels(batch), places, strict=False):
            top, left = _GAP + i // columns * (height + _GAP), _GAP + i % columns * (width + _GAP)
            canvas[top : top + height, left : left + width] = image
    return canvas


def png(levels: NDArray[np.uint8], scale: int = _SCALE, text: str = "") -> bytes:
    """Levels [height, width, C] as a PNG (ISO/IEC 15948), each pixel `scale` times as large; C is 1 or 3.

    text: of ASCII, which the file holds under the keyword "vae-edge", where it is not empty.
    Pillow would do it too, but importing it takes longer than drawing the images.
    """
    height, width, channels = levels.shape
    rows = np.pad(
        _enlarge(levels, scale).reshape(height * scale, -1), ((0, 0), (1, 0))
    )  # before each row its filter: none
    header = struct.pack(">IIBBBBB", width * scale, height * scale, 8, _PNG_COLOURS[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes()))]
    chunks += [(b"tEXt", b"vae-edge\0" + text.encode("ascii"))] if text else []
    chunks.append((b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks
    )


def _enlarge(levels: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    return levels.repeat(scale, axis=0).repeat(scale, axis=1)


def _kind(batch: NDArray[Any]) -> np.dtype[Any]:
    """The type that the values of an array have in a file."""
    return np.dtype("<f8" if batch.dtype == np.float64 else "<f4")


def _write_npy(file: IO[bytes], shape: tuple[int, ...], batches: Iterable[NDArray[Any]]) -> None:
    batches = iter(batches)
    first = next(batches)
    kind = _kind(first)
    np.lib.format.write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": shape})
    file.write(first.astype(kind, copy=False).tobytes())
    for batch in batches:
        file.write(batch.astype(kind, copy=False).tobytes())


def _write_csv(
    file: IO[bytes], names: Sequence[str], batches: Iterable[NDArray[Any]], window: int | None = None
) -> None:
    """Rows with all digits that their type has, so that they are read again as they were.

    window: the number of the first one of series, whose rows are its steps; None where observations are rows.
    """
    import csv

    head = io.StringIO()
    csv.writer(head, lineterminator="\n").writerow([*([] if window is None else STEPS), *names])
    file.write(head.getvalue().encode())
    for batch in batches:
        words = repr if batch.dtype == np.float64 else "{:.9g}".format
        if window is None:
            file.writelines((",".join(map(words, row)) + "\n").encode() for row in batch.tolist())
            continue
        for i, steps in enumerate(batch.transpose(0, 2, 1).tolist(), start=window):
            file.writelines(f"{i},{t},{','.join(map(words, row))}\n".encode() for t, row in enumerate(steps))
        window += len(batch)


def _write_gif(file: IO[bytes], count: int, shape: Shape, batches: Iterable[Floats], columns: int) -> None:
    from PIL import Image

    images = np.concatenate(list(batches)).reshape(count // columns, columns, *shape)
    grids = (_enlarge(grid(len(images), shape, [images[:, i]]), _SCALE) for i in range(columns))
    frames = [Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels) for levels in grids]
    frames += frames[-2:0:-1]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=_FRAME, loop=0)


def _write_folder(path: Path, count: int, batches: Iterable[Floats], first: int, names: Sequence[str]) -> None:
    digits = len(str(first + count - 1))
    with write_errors(path), folder_beside(path) as folder:
        places = iter(range(first, first + count))
        for batch in batches:
            for image, i in zip(levels(batch), places, strict=False):
                called = f"-{names[i - first]}" if names else ""
                (folder / f"{i:0{digits}d}{called}.png").write_bytes(png(image, scale=1))
        with suppress(FileNotFoundError):
            path.rmdir()  # which is empty, and which Windows does not replace
        folder.replace(path)
