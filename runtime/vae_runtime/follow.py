"""A source that goes on: a folder that fills, a table that grows, a pipe of frames or rows; what has come, as it comes.

Each is a `Follower`, which waits, reads what there is, and survives what may happen to it.
"""

import os
import stat
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from vae_runtime.errors import ArgumentError, InputError, VaeError
from vae_runtime.observation import IMAGE, SERIES
from vae_runtime.vae import VAE
from vae_runtime.watch_clock import Clock
from vae_runtime.watch_notes import Notes

POLL = 0.2  # seconds between two looks at a folder or a file
STDIN = "standard input"
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)


class Came(NamedTuple):
    """Observations x [n, *shape] with a name each, and when they came, by the clock's `monotonic`."""

    names: list[str]
    x: NDArray[Any]
    time: float


class Pending:
    """What has come and is not taken yet, in order."""

    def __init__(self) -> None:
        self._parts: deque[Came] = deque()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, came: Came) -> None:
        """Put it last."""
        self._parts.append(came)

    def take(self, most: int) -> Came | None:
        """The first ones, at most so many; None where there are none."""
        if not self._parts:
            return None
        names, x, time = self._parts.popleft()
        if len(names) > most:
            self._parts.appendleft(Came(names[most:], x[most:], time))
        return Came(names[:most], x[:most], time)

    def leave(self) -> list[Came]:
        """All of it."""
        parts = list(self._parts)
        self._parts.clear()
        return parts


class Follower(Protocol):
    """A source that is followed. single: whether each observation stands by itself, or they follow one another."""

    single: bool

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""

    def wait(self, seconds: float) -> None:
        """Until something has come, the clock was woken, or so long, or less."""

    def read(self, most: int) -> Came | None:
        """What has come, at most so many, without waiting; None where nothing has."""

    def renew(self, vae: VAE) -> list[Came]:
        """Read on for another model of the same kind: what was read for the one before and is not taken yet.

        Raises VaeError where that fails, and reads on as before.
        """

    def close(self) -> None:
        """Leave the source."""


class Frames(NamedTuple):
    """How raw frames are written: width and height, and their pixels as FFmpeg calls them: gray, rgb24, yuv420p."""

    width: int
    height: int
    pixels: str


class Following(NamedTuple):
    """What a follower needs besides its source.

    broken: is told of each input that cannot be read. from_start: whether what is there already has come too.
    stride: of series, as `VAE.read` takes it.
    """

    vae: VAE
    clock: Clock
    notes: Notes
    broken: Callable[[InputError], None]
    from_start: bool
    stride: int | None


class Stream(Protocol):
    """What has a file descriptor."""

    def fileno(self) -> int:
        """Its number."""


def follow(source: "str | os.PathLike[str] | Stream", frames: Frames | None, how: Following) -> Follower:
    """Follow a folder, a table in a file, or "-", a pipe, a device such as a serial port, or another stream.

    Streams are of frames for a model of images, else of a table's lines.

    Raises InputError where the source is not there, or is none for this model, and ArgumentError for what does not go
    with it.
    """
    from vae_runtime.follow_folder import Folder
    from vae_runtime.follow_frames import RawFrames
    from vae_runtime.follow_lines import Growing, Lines, Pipe

    images = how.vae.observation.kind == IMAGE
    if how.stride is not None and how.vae.observation.kind != SERIES:
        raise ArgumentError("stride for a model of no series", how.stride, "leave it out")
    path = Path(os.fspath(source)) if isinstance(source, str | os.PathLike) else None
    mode = _mode(path) if path is not None and str(path) != "-" else 0
    streams = path is None or str(path) == "-" or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
    if frames is not None and not (images and streams):
        raise ArgumentError("frames of raw pixels", source, "give their size and pixels for a pipe of images alone")
    if path is not None and stat.S_ISDIR(mode):
        return Folder(path, how)
    if not streams and path is not None:
        if images:
            raise InputError("no folder", path, "a model of images watches a folder, or - for raw frames")
        return Lines(Growing(path, how), how)
    pipe = Pipe(_descriptor(source, path), str(path) if mode else STDIN, how.clock)
    try:
        return RawFrames(pipe, frames, how) if images else Lines(pipe, how)
    except VaeError:
        pipe.close()
        raise


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise InputError("file not found", path, "check the path") from None
    except OSError as error:
        raise _unreadable(error, path) from None


def _unreadable(error: OSError, path: "str | os.PathLike[str]") -> InputError:
    return InputError(f"file cannot be read ({error.strerror})", path, "check its permissions")


def _descriptor(source: "str | os.PathLike[str] | Stream", path: Path | None) -> int:
    """A descriptor of its own for a stream."""
    if not isinstance(source, str | os.PathLike):
        return os.dup(source.fileno())
    if str(path) == "-":
        return os.dup(sys.stdin.fileno())
    try:
        descriptor = os.open(source, os.O_RDONLY | _NO_WAITING)  # a named pipe that nobody has begun to write
    except OSError as error:
        raise _unreadable(error, source) from None
    if sys.platform != "win32":
        os.set_blocking(descriptor, True)
    return descriptor
