"""Image files and arrays in, picture files out. Pixels are levels / 255, as in training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]
Shape = tuple[int, int, int]  # channels, height, width

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
ARRAYS = {".npy", ".npz"}


@dataclass(frozen=True)
class Batch:
    """Images x float32 [n, C, H, W] in [0, 1] with a name each; `fitted` says by name which were changed, and how."""

    names: list[str]
    x: Floats
    fitted: dict[str, str]


def load(sources: Iterable[str | Path], shape: Shape) -> Batch:
    """Read image files, folders of them, and .npy or .npz arrays, fitted to `shape`.

    Raises InputError, naming the file, where one is missing, unreadable, empty or of a shape that cannot be fitted.
    """
    names: list[str] = []
    arrays: list[Floats] = []
    fitted: dict[str, str] = {}
    for path in _files(sources):
        if path.suffix.lower() in ARRAYS:
            x = _read_array(path, shape)
            names += [f"{path}[{i}]" for i in range(len(x))]
        else:
            x, note = _read_image(path, shape)
            names.append(str(path))
            if note:
                fitted[str(path)] = note
        arrays.append(x)
    return Batch(names, np.concatenate(arrays), fitted)


def fit(image: "Image.Image", shape: Shape) -> tuple[Floats, str]:
    """Bring a Pillow image to float32 [C, H, W] in [0, 1]; the string says what was changed, empty for nothing.

    Upright by its EXIF tag; transparency over black; 16-bit levels to 8; grey or RGB as `shape` asks; cut at the centre
    to the wanted aspect ratio and resized (bicubic, antialiased).
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    before = f"{image.width}x{image.height} {image.mode}"
    if image.getexif().get(0x0112, 1) != 1:
        before += " turned"
    image = ImageOps.exif_transpose(image)
    mode = "L" if channels == 1 else "RGB"
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        levels = np.asarray(image, np.float64) / 257
        image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        before += " with transparency" if image.mode not in ("LA", "PA", "RGBA") else ""
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert(mode)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    after = f"{width}x{height} {mode}"
    pixels = np.asarray(image, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray(pixels), "" if before == after else f"from {before} to {after}"


def grid(images: Floats, columns: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """Arrange images [n, C, H, W] in [0, 1] row by row: uint8 [rows, columns, C] grey levels with thin grey gaps."""
    n, channels, height, width = images.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    rows = -(-n // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 96, np.uint8)
    for i, image in enumerate(images):
        top, left = (gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap))
        levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        canvas[top : top + height, left : left + width] = levels.transpose(1, 2, 0)
    return canvas


def save_grid(images: Floats, file: Any, columns: int | None = None, scale: int = 3) -> None:
    """Write `grid(images)` as a PNG, each pixel `scale` times as large, to a path or binary file."""
    from PIL import Image

    picture = Image.fromarray(grid(images, columns).squeeze())
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(file, "PNG")


def blocks(images: Floats, width: int) -> str:
    """Images [n, C, H, W] as lines of half-block characters, at half size, as many beside each other as fit `width`."""
    grey = images.mean(axis=1)[:, : images.shape[2] // 2 * 2, : images.shape[3] // 2 * 2]
    n, height, columns = len(grey), grey.shape[1] // 2, grey.shape[2] // 2
    small = grey.reshape(n, height, 2, columns, 2).mean(axis=(2, 4)) >= 0.5  # [n, height, columns]
    small = np.pad(small, ((0, 0), (0, height % 2), (0, 0)))
    drawn = [
        [
            "".join(" ▄▀█"[2 * top + bottom] for top, bottom in zip(*pair, strict=True))
            for pair in zip(i[::2], i[1::2], strict=True)
        ]
        for i in small.astype(int)
    ]
    beside = max(1, width // (columns + 2))
    rows = [drawn[i : i + beside] for i in range(0, n, beside)]
    return "\n".join("  ".join(line).rstrip() for row in rows for line in zip(*row, strict=True))


def _files(sources: Iterable[str | Path]) -> Sequence[Path]:
    """The files behind the sources: a folder stands for the images in it, sorted by name."""
    files: list[Path] = []
    for path in map(Path, sources):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise InputError("no images in the folder", path, f"put {', '.join(sorted(SUFFIXES))} files there")
            files += inside
        else:
            files.append(path)
    if not files:
        raise InputError("no images", "none named", "name image files, folders or arrays")
    return files


def _read_image(path: Path, shape: Shape) -> tuple[Floats, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels, note = fit(image, shape)
    except FileNotFoundError:
        raise InputError("image not found", path, "check the path") from None
    except UnidentifiedImageError:
        raise InputError("not an image", path, "give a PNG, JPEG or another format that Pillow reads") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image cannot be read ({error})", path, "save it again as PNG") from None
    return pixels[None], note


def _read_array(path: Path, shape: Shape) -> Floats:
    """Images [n, C, H, W], or [n, H, W] and [H, W] for one channel: 8- or 16-bit levels, booleans, floats in [0, 1]."""
    try:
        with path.open("rb") as file:  # np.load(path) leaves damaged archives open
            loaded = np.load(file, allow_pickle=False)
            array = loaded if isinstance(loaded, np.ndarray) else _only_array(loaded)
    except FileNotFoundError:
        raise InputError("array not found", path, "check the path") from None
    except Exception as error:  # NumPy raises many kinds for damaged archives
        raise InputError(f"array cannot be read ({error})", path, "save it again with numpy.save") from None
    scale = {"uint8": 255, "uint16": 65535}.get(array.dtype.name, 1)
    if array.dtype.kind not in "fb" and scale == 1:
        raise InputError(f"array of type {array.dtype}", path, "give uint8 levels or floats in [0, 1]")
    grey = shape[0] == 1 and array.ndim in (2, 3) and array.shape[-2:] == shape[1:]
    if not (grey or (array.ndim == 4 and array.shape[1:] == shape)) or array.size == 0:
        expected = "[n, {}, {}, {}]".format(*shape)
        raise InputError(f"array of shape {list(array.shape)}", path, f"this model takes {expected}")
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = np.ascontiguousarray(array.reshape(-1, *shape), np.float32) / np.float32(scale)
    good = ((x >= 0) & (x <= 1)).reshape(len(x), -1).all(axis=1)  # False for NaN
    if not good.all():
        raise InputError("pixels outside [0, 1] or NaN", f"{path}[{int(np.argmin(good))}]", "give floats in [0, 1]")
    return x


def _only_array(archive: Any) -> NDArray[Any]:
    """The array `x` of an .npz archive, or its only one."""
    name = "x" if "x" in archive.files else archive.files[0]
    if name != "x" and len(archive.files) > 1:
        raise ValueError(f"it holds {', '.join(archive.files)}, and none is named x")
    array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is no array")
    return array
