"""A person's own images: a folder of image files, or an array, read as the runtime reads them.

A tenth is kept for testing, chosen by each image's own bytes: equal images are on one side, and an image stays on its
side when others come or go.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_runtime import arrays, images, sources, threads
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import IMAGE, Observation, Shape

DEFAULT_SIZE, DEFAULT_CHANNELS = 32, 3
_TEST_SHARE = 0.1
_MAY_BE_DEEP = {".png", ".tif", ".tiff", ".pgm"}  # formats that have 16-bit levels
_FULL_SCALES = tuple(2**bits - 1 for bits in (10, 12, 14, 16))

Pixels = NDArray[Any]  # uint8 levels, or float32 in [0, 1]


class Found(NamedTuple):
    """Images [n, C, H, W], labels int64 [n], the classes' names, and how many files could not be read.

    The images are uint8 levels where that loses nothing, else float32 in [0, 1].
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    names: list[str]
    unreadable: int


def shape(path: Path, image_size: tuple[int, ...] | None, channels: int | None) -> Shape:
    """The images' shape (C, H, W): as asked for where `path` is a folder, as it is where it is an array.

    Raises InputError where there is nothing, or no images; ArgumentError where an array would need resizing.
    """
    if path.is_dir():
        height, width = image_size or (DEFAULT_SIZE, DEFAULT_SIZE)
        return (channels or DEFAULT_CHANNELS, height, width)
    if image_size or channels:
        raise ArgumentError("an array's images are not resized", path, "leave out --image-size and --channels")
    found = arrays.array_shape(str(path), "x")
    what = f"array of shape {list(found)}"
    if len(found) not in (3, 4):
        raise InputError(what, path, "give images [n, C, H, W] or [n, H, W]")
    channels = found[1] if len(found) == 4 else 1
    if channels not in (1, 3) and found[3] in (1, 3):
        raise InputError(what, path, "put the channels first: x.transpose(0, 3, 1, 2)")
    if channels not in (1, 3):
        raise InputError(what, path, "give images of 1 (grey) or 3 (RGB) channels")
    height, width = found[-2:]
    return (channels, height, width)


def largest_level(path: Path, workers: int = 1) -> int | None:
    """The largest level in the files of 16-bit levels, a folder's or the array itself; None where there are none."""
    files = [path]
    if path.is_dir():
        files = [p for p in sources.walk(path) if p.suffix.lower() in _MAY_BE_DEEP]

    def read(file: Path) -> int | None:
        try:
            return sources.largest_level(file)
        except InputError:  # `load` names it
            return None

    return max((top for top in threads.ordered_map(workers, read, files) if top is not None), default=None)


def full_scale(largest: int) -> int:
    """The level that is 1.0, told from the largest one of a set: that of 10, 12, 14 or 16 bits."""
    return next((scale for scale in _FULL_SCALES if largest <= scale), _FULL_SCALES[-1])  # `load` refuses what is above


def load(
    path: Path,
    wanted: Shape,
    warn: Callable[[str], None],
    workers: int = 1,
    full_scale: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Read all images at the shape `wanted`; `warn` is told which files could not be read, and how many.

    full_scale: the 16-bit level that is 1.0; None for 65535. say: is told how many of a folder's images were fitted.
    Raises InputError where none can be read.
    """
    if path.is_dir():
        return _folder(path, wanted, warn, workers, full_scale, say)
    return _array(path, wanted, full_scale)


def in_test(pixels: Pixels) -> NDArray[np.bool_]:
    """Which images [n, C, H, W] are kept for testing: bool [n]."""
    firsts = [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "big") for image in pixels]
    return np.array(firsts, np.uint32) < np.uint32(_TEST_SHARE * 2**32)


def _array(path: Path, wanted: Shape, full_scale: int | None) -> Found:
    pixels = _joined(
        [
            kept(x)
            for x in sources.Observations([path], Observation(IMAGE, wanted), Preprocessing(full_scale)).batches(1024)
        ]
    )
    labels = np.zeros(len(pixels), np.int64)
    names = ["all"]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            labelled = "y" in archive.files
        if labelled:
            labels, names = _classes(arrays.read_array(str(path), "y")[1], len(pixels), path)
    return Found(pixels, labels, names, 0)


def _classes(y: NDArray[Any], images: int, path: Path) -> tuple[NDArray[np.int64], list[str]]:
    if y.shape != (images,):
        raise InputError(f"labels y of shape {list(y.shape)}", path, f"give one for each of its {images:,} images")
    found, labels = np.unique(y, return_inverse=True)
    return labels.astype(np.int64), [str(name) for name in found]


def _folder(
    path: Path,
    wanted: Shape,
    warn: Callable[[str], None],
    workers: int,
    full_scale: int | None,
    say: Callable[[str], None],
) -> Found:
    """The images in a folder and the folders inside; the name of the first folder inside is the class."""
    everything = sorted(sources.walk(path))
    files = [p for p in everything if p.suffix.lower() in sources.SUFFIXES]
    others = Counter(p.suffix.lower() or "no suffix" for p in everything if p.suffix.lower() not in sources.SUFFIXES)
    if files and others:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common())
        warn(f"{others.total()} files of other kinds are not looked at: {kinds}")
    classes = [p.relative_to(path).parts[0] if p.parent != path else "all" for p in files]
    found, bad = [], []
    fitted: dict[Path, str] = {}

    def read(file: Path) -> tuple[Pixels, str] | InputError:
        try:
            batch = sources.Observations([file], Observation(IMAGE, wanted), Preprocessing(full_scale)).load()
        except InputError as error:
            return error
        return kept(batch.x), batch.fitted.get(str(file), "")

    for file, label, result in zip(files, classes, threads.ordered_map(workers, read, files), strict=True):
        if isinstance(result, InputError):
            bad.append(f"{file.relative_to(path)} ({result.what})")
        else:
            found.append((result[0], label))
            fitted[file] = result[1]
    if not found:
        which = f"{path} ({bad[0]})" if bad else path
        raise InputError("no image could be read", which, f"put {', '.join(sorted(sources.SUFFIXES))} files there")
    if bad:
        warn(f"{len(bad)} of {len(files)} image files cannot be read: {', '.join(bad)}; left out")
    if changed := [(file, change) for file, change in fitted.items() if change]:
        (first, change), ways = changed[0], len({change for _, change in changed})
        of = f" of {ways} sizes or modes" if ways > 1 else ""
        which = f"{len(changed):,} of {len(files):,} image files{of}, {first.relative_to(path)} first,"
        say(f"{which} fitted {change}, cut at the centre where needed; --image-size and --channels set another size")
    if halved := sum(images.READ_AS_8_BITS in change for change in fitted.values()):
        warn(f"{halved} of {len(files)} image files have colours of 16 bits, of which 8 are read")
    names = sorted({label for _, label in found})
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[label] for _, label in found], np.int64)
    return Found(_joined([image for image, _ in found]), labels, names, len(bad))


def kept(x: NDArray[np.float32]) -> Pixels:
    """Values in [0, 1] as uint8 levels where each is such a level / 255, else as they are: nothing is lost."""
    levels = to_levels(x)
    return levels if np.array_equal(levels / np.float32(255), x) else x + np.float32(0)  # 0.0 for -0.0: equal bytes


def to_levels(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values in [0, 1] rounded to 8-bit levels."""
    levels: NDArray[np.uint8] = np.rint(x * np.float32(255)).astype(np.uint8)
    return levels


def _joined(parts: list[Pixels]) -> Pixels:
    """Parts of a set [n, C, H, W] in one array: of levels, or of floats where one of them has floats."""
    if any(part.dtype != np.uint8 for part in parts):
        parts = [part / np.float32(255) if part.dtype == np.uint8 else part for part in parts]
    joined: Pixels = np.concatenate(parts)
    return joined
