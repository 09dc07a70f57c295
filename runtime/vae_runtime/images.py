"""From Pillow images to a model's images and back to levels, with the precision that the images came with."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError
from vae_runtime.manifest import Preprocessing, Step
from vae_runtime.observation import Shape

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]
_DEEP = ("I;16", "I;16B", "I;16L", "I")  # Pillow's modes of 16-bit levels
READ_AS_8_BITS = "of 16 bits, read as 8"  # Pillow has no colours of 16 bits
FULL_SCALE = 65535  # the 16-bit level that is 1.0 where a model does not say another
SIZE = re.compile(r"\d+x\d+")  # in what `fit` says was changed
MOST_PIXELS = 64_000_000  # of one image: more is a mistake, or an attack on the memory
PICTURED = (1, 3)  # channels that a picture has: grey, and RGB
_USUAL = Preprocessing()


def fit(
    image: "Image.Image", shape: Shape, preprocessing: Preprocessing = _USUAL, name: str = "image"
) -> tuple[Floats, str]:
    """Bring a Pillow image to float32 [C, H, W] in [0, 1]; the string says what was changed, empty for nothing.

    Upright by its EXIF tag; transparency over black; grey or RGB as `shape` asks; then the steps of `preprocessing`,
    and without any cut at the centre to the wanted aspect ratio and resized (bicubic, antialiased). 8-bit levels are
    resized as such, and divided by 255; 16-bit levels are divided by its `full_scale` (None: 65535), and floats kept,
    both resized without being rounded.
    Raises InputError, with `name`, for levels above the full scale and floats outside [0, 1], and where `shape` has
    other channels than grey and RGB.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    if channels not in PICTURED:
        todo = f"give an .npy or .npz array [n, {channels}, {height}, {width}]"
        raise InputError(f"a picture, and this model takes {channels} channels", name, todo)
    full_scale = preprocessing.full_scale
    before = f"{image.width}x{image.height} {image.mode}"
    if _read_as_8_bits(image):
        before += f" {READ_AS_8_BITS},"
    if (frames := getattr(image, "n_frames", 1)) > 1:
        before += f", the first of {frames} frames,"
    if image.getexif().get(0x0112, 1) != 1:
        before += " turned"
    mode = "L" if channels == 1 else "RGB"
    after = f"{width}x{height} {mode}"
    own_scale = 1 if image.mode == "F" else _own_scale(image)
    image = ImageOps.exif_transpose(image)
    if image.mode in (*_DEEP, "F"):
        scale = own_scale or full_scale or FULL_SCALE
        if not (own_scale or full_scale):
            before += f", levels / {scale},"
        elif channels == 1:
            before = before.replace(image.mode, mode)  # nothing of it is lost
        plane = Image.fromarray(_unit(np.asarray(image), scale, name))
        sized = _sized(plane, (height, width), preprocessing.steps, name)
        pixels = np.repeat(np.clip(np.asarray(sized, np.float32), 0, 1)[None], channels, axis=0)
        return pixels, "" if before == after and sized is plane else f"from {before} to {after}"
    if image.has_transparency_data:
        before += " with transparency" if image.mode not in ("LA", "PA", "RGBA") else ""
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    if preprocessing.grey and mode == "RGB" and image.mode != "L":
        image, after = image.convert("L"), f"{after}, colours dropped"
    elif mode == "L" and _has_colours(image):
        after += ", colours dropped"
    image = image.convert(mode)
    sized = _sized(image, (height, width), preprocessing.steps, name)
    pixels = np.asarray(sized, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray(pixels), "" if before == after and sized is image else f"from {before} to {after}"


def _has_colours(image: "Image.Image") -> bool:
    """Whether any pixel is not grey."""
    from PIL import Image, ImageChops

    if Image.getmodebase(image.mode) == "L":
        return False
    red, *others = image.convert("RGB").split()
    return any(ImageChops.difference(red, other).getbbox() for other in others)


def _sized(image: "Image.Image", size: tuple[int, int], steps: tuple[Step, ...], name: str) -> "Image.Image":
    """The image with height and width `size`: by the steps, which end there, or cut and resized; itself if it has."""
    from PIL import Image, ImageOps

    if not steps and (image.height, image.width) != size:
        return ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    for step in steps:
        height, width = step.crop or _resized(image, step.resize)
        if height * width > MOST_PIXELS:
            raise InputError(f"image of {width:,}x{height:,} pixels on its way", name, "make its sides more alike")
        if (image.height, image.width) == (height, width):
            continue
        if step.resize:
            image = image.resize((width, height), Image.Resampling[step.filter.upper()])
        else:
            image = _cropped(image, height, width)
    return image


def _resized(image: "Image.Image", resize: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width that a step asks for; of the longer side, as torchvision does it, rounded down."""
    if len(resize) == 2:
        return resize
    shorter = min(image.size)
    return tuple(resize[0] * side // shorter for side in (image.height, image.width))


def _cropped(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """The centre, as torchvision finds it; Pillow makes black what lies outside of the image."""
    spare = (image.width - width, image.height - height)
    left, top = (round(s / 2) if s >= 0 else -(-s // 2) for s in spare)
    return image.crop((left, top, left + width, top + height))


def from_levels(levels: NDArray[Any], full_scale: int | None, name: str, start: int) -> tuple[Floats, str]:
    """An array's images start.. [n, C, H, W] as float32 in [0, 1]; the string says what was guessed, empty for nothing.

    uint8 is divided by 255, uint16 by `full_scale` (None: 65535); booleans and floats are kept. Raises InputError, with
    the image's number, for levels above the full scale and floats outside [0, 1].
    """
    scale, note = 255 if levels.dtype == np.uint8 else 1, ""
    if levels.dtype.name == "uint16":
        scale = full_scale or FULL_SCALE
        tops = levels.reshape(len(levels), -1).max(axis=1)
        if (top := int(tops.max())) > scale:
            raise above(top, scale, f"{name}[{start + int(np.argmax(tops))}]")
        note = "" if full_scale else f"as levels / {scale}"
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        x = levels.astype(np.float32) / np.float32(scale)
    good = ((x >= 0) & (x <= 1)).reshape(len(x), -1).all(axis=1)  # False for NaN
    if not good.all():
        which = f"{name}[{start + int(np.argmin(good))}]"
        todo = "give floats in [0, 1], or levels as uint8; of pixels in [-1, 1] give (x + 1) / 2"
        raise InputError("pixels outside [0, 1] or NaN", which, todo)
    return x, note


def deepest(image: "Image.Image") -> int | None:
    """The largest level of a picture whose levels `fit` divides by `full_scale`; None of any other."""
    largest = int(np.asarray(image).max()) if image.mode in _DEEP and not _own_scale(image) else -1
    return largest if largest >= 0 else None  # `fit` refuses negative ones


def above(level: int, full_scale: int, name: str) -> InputError:
    """The error for a level that is above the full scale."""
    return InputError(
        f"level {level} above the full scale",
        name,
        f"give levels up to {full_scale}, as in training, or train with more --levels",
    )


def _unit(values: NDArray[Any], scale: int, name: str) -> Floats:
    """Levels / scale, or floats as they are: float32 in [0, 1]."""
    low, high = values.min(), values.max()
    if values.dtype.kind != "f" and high > scale:
        raise above(int(high), scale, name)
    if not (low >= 0 and high <= scale):  # False for NaN
        raise InputError("pixels outside [0, 1] or NaN", name, "give floats in [0, 1], or levels of 8 or 16 bits")
    return values.astype(np.float32) / np.float32(scale)


def _raw(image: "Image.Image") -> tuple[str, str, int]:
    """How Pillow will read a file: codec, raw mode, and the largest level that a PPM names; of no use once it has."""
    tile = (getattr(image, "tile", None) or [None])[0]
    if tile is None:
        return "", "", 0
    args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    return tile[0], str(args[0]), args[1] if tile[0].startswith("ppm") and len(args) > 1 else 0


def _read_as_8_bits(image: "Image.Image") -> bool:
    """Whether the file has 16 bits for each colour, of which Pillow takes the upper ones."""
    _, raw_mode, largest = _raw(image)
    return image.mode not in _DEEP and (";16" in raw_mode or largest > 255)


def _own_scale(image: "Image.Image") -> int | None:
    """65535 for a PGM that names another largest level, since Pillow stretches its levels to that."""
    return FULL_SCALE if _raw(image)[2] > 255 else None


def levels(images: Floats) -> NDArray[np.uint8]:
    """Images [n, C, H, W] in [0, 1] as 8-bit levels of a picture [n, H, W, C]; what lies outside is cut off.

    C is 1 or 3: of other channels it is their mean, in grey.
    """
    if images.shape[1] not in PICTURED:
        images = images.mean(axis=1, keepdims=True)
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


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
