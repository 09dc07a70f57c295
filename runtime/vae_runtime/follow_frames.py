"""Raw frames of a pipe, as rpicam-vid and `ffmpeg -f rawvideo` write them: each an image, when it is whole."""

from typing import TYPE_CHECKING

import numpy as np

from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.follow import Came, Following, Frames
from vae_runtime.follow_lines import Pipe
from vae_runtime.images import MOST_PIXELS, PICTURED, fit
from vae_runtime.vae import VAE

if TYPE_CHECKING:
    from PIL import Image

PIXELS = ("gray", "rgb24", "yuv420p")
_HELD = 1 << 23  # bytes that are read ahead, and one frame at the least


class RawFrames:
    """Follows a pipe of frames; of those of half the chroma, yuv420p, a model of grey images takes the luma.

    Raises InputError for a model of other channels than grey and RGB.
    """

    single = False

    def __init__(self, pipe: Pipe, frames: Frames | None, how: Following) -> None:
        channels, height, width = how.vae.observation.shape
        if channels not in PICTURED:
            what = f"raw frames, and this model takes {channels} channels"
            raise InputError(what, pipe.name, "give its images as arrays to `detect`")
        self._frames = frames or Frames(width, height, "gray" if channels == 1 else "rgb24")
        self._bytes = _bytes(self._frames)
        self._pipe, self._how, self._vae = pipe, how, how.vae
        self._held = bytearray()
        self._number = 0
        self._time = 0.0  # when the last bytes came

    @property
    def ended(self) -> bool:
        """Whether the pipe has, and no whole frame is left."""
        return self._pipe.ended and len(self._held) < self._bytes

    def wait(self, seconds: float) -> None:
        """Until something of a frame has come."""
        if len(self._held) < self._bytes and not self._pipe.ended and self._pipe.wait(seconds):
            self._take()

    def read(self, most: int) -> Came | None:
        """The frames that there are."""
        wanted = max(self._bytes, min(most * self._bytes, _HELD))
        while len(self._held) < wanted and not self._pipe.ended and self._pipe.wait(0):
            self._take()
        names, x = [], []
        shape, preprocessing = self._vae.observation.shape, self._vae.manifest.preprocessing
        for i in range(min(most, len(self._held) // self._bytes)):
            name = f"{self._pipe.name}[{self._number}]"
            self._number += 1
            raw = bytes(self._held[i * self._bytes : (i + 1) * self._bytes])
            pixels, change = fit(_image(raw, self._frames, shape[0] == 1), shape, preprocessing, name)
            if change:
                self._how.notes.once("fitted", f"{name} fitted {change}; the frames that follow too")
            names.append(name)
            x.append(pixels)
        del self._held[: len(names) * self._bytes]
        return Came(names, np.stack(x), self._time) if names else None

    def renew(self, vae: VAE) -> list[Came]:
        """Read on for another model: the frames stay of the size that they have."""
        self._vae = vae
        return []

    def close(self) -> None:
        """Leave the pipe."""
        self._pipe.close()

    def _take(self) -> None:
        piece = self._pipe.read(max(1 << 16, self._bytes))
        self._time = self._how.clock.monotonic()
        self._held += piece
        left = len(self._held) % self._bytes
        if self._pipe.ended and left:
            of = f"{left:,} of {self._bytes:,} bytes"
            todo = "check the frames' size and pixels"
            self._how.broken(InputError("part of a frame at the end", f"{self._pipe.name} ({of})", todo))


def _bytes(frames: Frames) -> int:
    """How many bytes a frame has. Raises ArgumentError where there are no such frames."""
    width, height, pixels = frames
    if pixels not in PIXELS:
        raise ArgumentError("unknown pixels of frames", pixels, f"name one of {', '.join(PIXELS)}")
    if not (width > 0 and height > 0 and width * height <= MOST_PIXELS):
        raise ArgumentError("frames of no such size", f"{width}x{height}", "give width x height, such as 640x480")
    if pixels == "yuv420p" and (width % 2 or height % 2):
        raise ArgumentError("frames of no such size", f"{width}x{height}", "those of yuv420p have even sides")
    return width * height * {"gray": 2, "rgb24": 6, "yuv420p": 3}[pixels] // 2


def _image(raw: bytes, frames: Frames, grey: bool) -> "Image.Image":
    """The frame of these bytes; YCbCr as JPEG has it (BT.601, full range)."""
    from PIL import Image

    width, height, pixels = frames
    if pixels != "yuv420p":
        return Image.frombytes("L" if pixels == "gray" else "RGB", (width, height), raw)
    size, quarter = width * height, width * height // 4
    luma = Image.frombytes("L", (width, height), raw[:size])
    if grey:
        return luma
    half = (width // 2, height // 2)
    chroma = [Image.frombytes("L", half, raw[i : i + quarter]) for i in (size, size + quarter)]
    return Image.merge("YCbCr", [luma, *(plane.resize((width, height)) for plane in chroma)]).convert("RGB")
