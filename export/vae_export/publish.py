"""Publish a bundle: write it beside its target and swap it in as a whole, whenever the process may be killed."""

import ctypes
import fcntl
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vae_runtime.bundle import CALIBRATION, FILES, MANIFEST, PRIOR
from vae_runtime.errors import ArgumentError
from vae_runtime.files import folder_beside, write_errors

_ALL = {*FILES, PRIOR, CALIBRATION, MANIFEST}  # that a bundle may have
_BESIDE = re.compile(r"\.\d+\.[0-9a-f]{8}")  # what `folder_beside` adds to a name


def check_target(out: Path) -> None:
    """Make the folder for `out`; raise ArgumentError where `out` is not a bundle, so that nothing else is replaced."""
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if _has_manifest(out):
        if more := held - _ALL:
            which = f"output holds more than a bundle ({min(more)})"
            raise ArgumentError(which, out, "move that, or choose another --out")
    elif held or (out.exists() and not out.is_dir()):
        raise ArgumentError("output exists and is not a bundle", out, "choose another with --out")
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, removed at the end if it is still there, and by a later export if this one is killed.

    It is locked before it holds a file: so exports at work are told from killed ones.
    """
    with folder_beside(out) as folder, _descriptor(folder) as descriptor:
        with suppress(OSError):  # a file system without locks, where no export can remove what another left
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield folder


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder, and wait until they are on the disk."""
    with write_errors(folder):
        for name, data in files.items():
            with (folder / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _fsync(folder)


def swap(folder: Path, out: Path) -> None:
    """Put the bundle `folder` in the place of `out` in one step; what was there is left in `folder`, if anywhere.

    Where the file system cannot exchange two folders, as those of networks, it takes two steps, and a process killed
    between them leaves the old bundle hidden beside `out`.
    """
    with write_errors(out):
        if not out.exists():
            folder.rename(out)
        elif not _exchange(folder, out):
            with folder_beside(out) as old:
                try:
                    out.rename(old)
                    folder.rename(out)
                except BaseException:  # a signal too: the old bundle must not be removed with `old`
                    if not out.exists():
                        old.rename(out)
                    raise
        _fsync(out.parent)


def remove_leftovers(out: Path) -> None:
    """Remove what killed exports have left beside `out`: folders of a bundle's files that nobody has locked."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*"):
        if _BESIDE.fullmatch(left.name.removeprefix(f".{out.name}")):
            with suppress(OSError), _descriptor(left) as descriptor:
                held = {path.name for path in left.iterdir()}
                if held and held <= _ALL:  # an empty one may be new, and about to be locked
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)


def _has_manifest(folder: Path) -> bool:
    """Whether a folder has a bundle's manifest, damaged or not; other people call their graphs encoder.onnx too."""
    try:
        return {"contract", "files"} <= {*json.loads((folder / MANIFEST).read_bytes())}
    except (OSError, ValueError, TypeError):
        return False


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically with Linux's renameat2(RENAME_EXCHANGE); False where the system has none."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    at_cwd, exchange = -100, 2
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def _fsync(folder: Path) -> None:
    with _descriptor(folder) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
