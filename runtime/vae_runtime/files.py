"""Write a file in one step: readers see the old content or the new, never a part of it."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vae_runtime.errors import ArgumentError, ResourceError, VaeError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises ArgumentError where `path` cannot be written, ResourceError where the disk is full.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would keep other users out
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise write_error(error, path) from None
    finally:
        if temporary is not None:
            os.unlink(temporary)


def write_error(error: OSError, path: Path) -> VaeError:
    """The VaeError that says why `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError("disk full", path, "free some space and try again")
    return ArgumentError("cannot write", f"{path} ({error.strerror})", "choose another output")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
