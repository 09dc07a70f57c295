"""From Pillow images to a model's images and back to levels. Pixels are levels / 255, as in training."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]
Shape = tuple[int, int, int]  # channels, height, width


def fit(image: "Image.Image", shape: Shape) -> tuple[Floats, str]:
    """Bring a Pillow image to float32 [C, H, W] in [0, 1]; the string says what was changed, empty for nothing.

    Upright by its EXIF tag; transparency over black; 16-bit levels to 8; grey or RGB as `shape` asks; cut at the centre
    to the wanted aspect ratio and resized (bicubic, antialiased).
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    before = f"{image.width}x{image.height} {image.mode}"
    if (frames := getattr(image, "n_frames", 1)) > 1:
        before += f", the first of {frames} frames,"
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


def levels(images: Floats) -> NDArray[np.uint8]:
    """Images [n, C, H, W] in [0, 1] as 8-bit levels [n, H, W, C]; what lies outside is cut off."""
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
