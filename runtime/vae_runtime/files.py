"""Write a file in one step: readers see the old content or the new, never a part of it."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vae_runtime.errors import ArgumentError, ResourceError, VaeError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises ArgumentError where `path` cannot be written, ResourceError where the disk is full.
    """
    temporary = _beside(path)
    try:
        with write_errors(path):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # where it could not be made, as in a folder that is a file, it cannot be removed
            temporary.unlink()


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder next to `path`, on the same file system, that is removed at the end if it is still there.

    Raises ArgumentError or ResourceError where it cannot be made.
    """
    import shutil  # with modules for archives, of which a file has no need

    temporary = _beside(path)  # named before it is made, so that a signal in between leaves nothing
    try:
        with write_errors(path):
            temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name for what will take the place of `path`, hidden, unlike any other, in the same folder."""
    path = path.absolute()  # even "." has a name then
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text in one step."""
    with replacing(path) as file:
        file.writelines(f"{line}\n".encode(errors="surrogateescape") for line in lines)  # names of any bytes


def check_output(path: Path, *kinds: str) -> None:
    """Raise ArgumentError unless `path` can become an output of one of these kinds: suffixes, or "" for a folder."""
    if path.suffix not in kinds or path.name == "-":
        named = " or ".join(kind or "no suffix (a folder)" for kind in kinds)
        raise ArgumentError("output of an unknown kind", path, f"end its name in {named}")
    if not path.parent.is_dir():
        raise ArgumentError("output folder not found", path.parent, "make it first")
    try:
        folder, used = path.is_dir(), path.exists() and not (path.is_dir() and not any(path.iterdir()))
    except OSError as error:  # a name that is too long
        raise write_error(error, path) from None
    if path.suffix and folder:
        raise ArgumentError("output is a folder", path, "name a file")
    if not path.suffix and used:
        raise ArgumentError("output exists and is no empty folder", path, "name a new folder")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the OSErrors of writing `path` into the VaeError that says why."""
    try:
        yield
    except OSError as error:
        raise write_error(error, path) from None


def write_error(error: OSError, path: Path) -> VaeError:
    """The VaeError that says why `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError("disk full", path, "free some space and try again")
    return ArgumentError("cannot write", f"{path} ({error.strerror})", "choose another output")
