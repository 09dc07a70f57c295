"""Write a file in one step: readers see the old content or the new, never a part of it."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vae_runtime.errors import ArgumentError, ResourceError, VaeError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises ArgumentError where `path` cannot be written, ResourceError where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(error, path) from None
    finally:
        with suppress(OSError):  # where it could not be made, as in a folder that is a file, it cannot be removed
            temporary.unlink()


def write_error(error: OSError, path: Path) -> VaeError:
    """The VaeError that says why `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError("disk full", path, "free some space and try again")
    return ArgumentError("cannot write", f"{path} ({error.strerror})", "choose another output")
