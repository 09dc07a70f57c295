"""A folder that fills, and the folders in it: its new files, each when it is whole, in the order in which they came."""

import os
import re
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from vae_runtime.errors import InputError
from vae_runtime.follow import POLL, Came, Following, Pending
from vae_runtime.observation import IMAGE
from vae_runtime.sources import SUFFIXES, TABLES
from vae_runtime.vae import VAE

_QUIET = 2.0  # seconds without a change, after which a file is whole, and a folder holds what was seen in it
_PATIENCE = 10.0  # seconds without a change, after which a file that cannot be read never will be
_SHARE = 10  # times as long as a look into the folders took is waited until the next one
_ROWS = 256  # of a table at a time
_SIZE = re.compile(r"\d+x\d+")


@dataclass
class _Inside:
    """What was in a folder: its files with their inodes, its folders, and its mtime if that shows later changes."""

    files: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    mtime: int | None = None


@dataclass
class _Growing:
    """A file that may not be whole yet: its size and mtime, since when it has them, and whether it could be read."""

    size: int
    mtime: int
    since: float
    refused: bool = False


class Folder:
    """Follows a folder. A file that takes another's name by being moved there is a new one.

    A look costs little where nothing happens: a folder whose mtime is as it was is not looked into.
    """

    ended, single = False, True

    def __init__(self, path: Path, how: Following) -> None:
        self._path, self._how, self._vae = str(path), how, how.vae
        self._inside: dict[str, _Inside] = {}
        self._growing: dict[str, _Growing] = {}
        self._ready: deque[tuple[str, float]] = deque()  # with the time when it was seen to be whole
        self._pending = Pending()
        self._took = 0.0  # seconds of the last look
        there = self._look()
        if how.from_start:
            self._wait_for(there)
        elif there:
            noun = "image" if self._vae.observation.kind == IMAGE else "table"
            are = f"{len(there):,} {noun}s are" if len(there) > 1 else f"1 {noun} is"
            how.notes.once("there", f"{are} in {path} already and not judged; --from-start judges what is there too")

    def wait(self, seconds: float) -> None:
        """Look into the folder, and where nothing has come wait a while."""
        if self._pending or self._ready:
            return
        self._wait_for(self._look())
        self._settle()
        if not self._ready:
            self._how.clock.wait(min(seconds, max(POLL, _SHARE * self._took)))

    def read(self, most: int) -> Came | None:
        """What the files hold that are whole, of images at most so many files."""
        parts: list[Came] = []
        while not self._pending and self._ready and len(parts) < most:
            parts += self._opened(*self._ready.popleft())
        for part in _joined(parts) if self._vae.observation.kind == IMAGE else parts:
            self._pending.add(part)
        return self._pending.take(most)

    def renew(self, vae: VAE) -> None:
        """Read on for another model."""
        self._vae = vae

    def close(self) -> None:
        """There is nothing to leave."""

    def _opened(self, path: str, came: float) -> list[Came]:
        """What a file holds; where it cannot be read it is waited for, and in the end told."""
        try:
            found = self._vae.read([path], self._how.stride)
            batches = list(found.batches(_ROWS))
        except InputError as error:
            self._refuse(path, error)
            return []
        for text in found.notes:
            self._how.notes.often("table", text)
        for name, change in found.fitted.items():
            self._how.notes.once(f"fitted {_SIZE.sub('', change)}", f"{name} fitted {change}; others of its kind too")
        names = found.names()
        return [Came([name for _, name in zip(x, names)], x, came) for x in batches]  # noqa: B905

    def _refuse(self, path: str, error: InputError) -> None:
        try:
            status = Path(path).stat()
        except OSError:  # it is gone
            self._how.broken(error)
            return
        age = max(0.0, time.time() - status.st_mtime)
        if age >= _PATIENCE:
            self._how.broken(error)
        else:
            since = self._how.clock.monotonic() - age
            self._growing[path] = _Growing(status.st_size, status.st_mtime_ns, since, refused=True)

    def _wait_for(self, paths: list[str]) -> None:
        self._growing.update((path, _Growing(-1, 0, 0.0)) for path in paths)

    def _settle(self) -> None:
        """Move files to those that are whole, in order of their mtimes, which have not changed for long enough."""
        now, whole = self._how.clock.monotonic(), []
        for path, known in list(self._growing.items()):
            try:
                status = Path(path).stat()
            except OSError:  # moved away before it was whole
                del self._growing[path]
                continue
            if (status.st_size, status.st_mtime_ns) != (known.size, known.mtime):
                known = self._growing[path] = _Growing(status.st_size, status.st_mtime_ns, now)
                if time.time() - status.st_mtime < _QUIET:  # else it was moved here
                    continue
            wanted = _PATIENCE if known.refused or not known.size else 0
            if now - known.since >= wanted:
                whole.append((known.mtime, path))
                del self._growing[path]
        self._ready.extend((path, now) for _, path in sorted(whole))

    def _look(self) -> list[str]:
        """The files that were not there at the last look."""
        begun, found, seen = time.monotonic(), [], {}
        todo, visited = [self._path], set()
        while todo:
            path = todo.pop()
            try:
                status = Path(path).stat()
                if (place := (status.st_dev, status.st_ino)) in visited:  # links that lead in a circle
                    continue
                visited.add(place)
                inside = self._inside.get(path, _Inside())
                if inside.mtime != status.st_mtime_ns:
                    quiet = time.time() - status.st_mtime >= _QUIET  # else a change to come may have the same mtime
                    before, inside = inside, self._scanned(path)
                    inside.mtime = status.st_mtime_ns if quiet else None
                    new = (name for name, inode in inside.files.items() if before.files.get(name) != inode)
                    found += [f"{path}/{name}" for name in new]
            except OSError as error:
                if path == self._path:
                    self._how.notes.once("gone", f"{path} is gone ({error.strerror}); waiting until it is back")
                    return []
                continue
            seen[path] = inside
            todo += inside.folders
        self._how.notes.over("gone", f"{self._path} is back")
        self._inside, self._took = seen, time.monotonic() - begun
        return found

    def _scanned(self, path: str) -> _Inside:
        inside = _Inside()
        suffixes = tuple(SUFFIXES) if self._vae.observation.kind == IMAGE else TABLES
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(suffixes) and not entry.is_dir():
                    inside.files[entry.name] = entry.inode()
                elif entry.is_dir():
                    inside.folders.append(entry.path)
        return inside


def _joined(parts: list[Came]) -> list[Came]:
    """Images of several files as one part, whose time is that of the first one."""
    import numpy as np

    if not parts:
        return []
    names = [name for part in parts for name in part.names]
    return [Came(names, np.concatenate([part.x for part in parts]), parts[0].time)]
