"""A folder that fills, and the folders in it: its new files, each when it is whole, in the order in which they came."""

import os
import stat
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from vae_runtime import images
from vae_runtime.errors import InputError
from vae_runtime.follow import POLL, Came, Following, Pending
from vae_runtime.observation import IMAGE
from vae_runtime.sources import SUFFIXES, TABLES
from vae_runtime.vae import VAE

_QUIET = 2.0  # seconds without a change, after which a table is whole, and a folder holds what was seen in it
_PATIENCE = 10.0  # seconds without a change, after which a file that cannot be read never will be
_SHARE = 10  # times as long as a look into the folders took is waited until the next one
_TICK = 0.1  # seconds by which a new file's mtime may lie back
_ROWS = 256  # of a table at a time


@dataclass
class _Inside:
    """What was in a folder: names of files, paths of folders, and its mtime if that shows later changes."""

    files: set[str] = field(default_factory=set)
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
    """Follows a folder. A file is new that has a new name: inodes tell no more on the disks of many cameras.

    A look costs little where nothing happens: a folder whose mtime is as it was is not looked into.
    """

    ended, single = False, True

    def __init__(self, path: Path, how: Following) -> None:
        self._path, self._how, self._vae = str(path), how, how.vae
        self._inside: dict[str, _Inside] = {}
        self._growing: dict[str, _Growing] = {}
        self._ready: deque[tuple[str, _Growing, float]] = deque()  # with the time when it was seen to be whole
        self._pending = Pending()
        self._took = 0.0  # seconds of the processor for the last look
        # a part of an image cannot be read, and is waited for; a part of a table can
        self._quiet = 0.0 if how.vae.observation.kind == IMAGE else _QUIET
        self._device: int | None = None
        self._gone, self._there = False, 0.0  # when it was there last, seconds since 1970
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
        if not self._gone:
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

    def renew(self, vae: VAE) -> list[Came]:
        """Read on for another model."""
        self._vae = vae
        return self._pending.leave()

    def close(self) -> None:
        """There is nothing to leave."""

    def _opened(self, path: str, known: _Growing, came: float) -> list[Came]:
        """What a file holds; where it cannot be read it is waited for, once, and then told."""
        try:
            found = self._vae.read([path], self._how.stride)
            batches = list(found.batches(_ROWS))
        except InputError as error:
            if known.refused:
                self._how.broken(error)
            else:
                self._growing[path] = replace(known, refused=True)
            return []
        for text in found.notes:
            self._how.notes.often("table", text)
        for name, change in found.fitted.items():
            self._how.notes.once(
                f"fitted {images.SIZE.sub('', change)}", f"{name} fitted {change}; others of its kind too"
            )
        names = found.names()
        return [Came([name for _, name in zip(x, names)], x, came) for x in batches]  # noqa: B905

    def _wait_for(self, paths: list[str]) -> None:
        self._growing.update((path, _Growing(-1, 0, 0.0)) for path in paths)

    def _settle(self) -> None:
        """Move files to those that are whole, in order of their mtimes, which have not changed for long enough."""
        now, whole = self._how.clock.monotonic(), []
        for path, known in list(self._growing.items()):
            try:
                status = Path(path).stat()
            except OSError:
                del self._growing[path]
                self._how.broken(InputError("gone before it was read", path, "leave it there for a while"))
                continue
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without an end
                del self._growing[path]
                self._how.broken(InputError("no regular file", path, "put files into the folder"))
                continue
            if (status.st_size, status.st_mtime_ns) != (known.size, known.mtime):
                known = self._growing[path] = _Growing(status.st_size, status.st_mtime_ns, now)
                if time.time() - status.st_mtime < _QUIET:  # else it was moved here
                    continue
            wanted = _PATIENCE if known.refused or not known.size else self._quiet
            if now - known.since >= wanted:
                whole.append((known.mtime, path, known))
                del self._growing[path]
        whole.sort(key=lambda each: each[:2])
        self._ready.extend((path, known, now) for _, path, known in whole)

    def _look(self) -> list[str]:
        """The files that were not there at the last look."""
        begun, found, seen = time.thread_time(), [], {}
        try:
            back = self._back()
        except OSError as error:
            why = error.strerror or "another disk, with nothing on it, is in its place"
            self._how.notes.once("gone", f"{self._path} is gone ({why}); waiting until it is back")
            self._gone = True
            return []
        todo, visited = [self._path], set()
        while todo:
            path = todo.pop()
            try:
                status = Path(path).stat()
                if (place := (status.st_dev, status.st_ino)) in visited:  # links that lead in a circle
                    continue
                visited.add(place)
                inside = self._inside.get(path, _Inside())
                if back is not None or inside.mtime != status.st_mtime_ns:
                    quiet = time.time() - status.st_mtime >= _QUIET  # else a change to come may have the same mtime
                    before, inside = inside, self._scanned(path, inside.files)
                    inside.mtime = status.st_mtime_ns if quiet else None
                    found += [f"{path}/{name}" for name in inside.files - before.files]
                    if back is not None:
                        known = (f"{path}/{name}" for name in inside.files & before.files)
                        found += [file for file in known if _changed(file, back)]
            except OSError as error:
                if isinstance(error, FileNotFoundError) and path != self._path:
                    continue
                self._how.notes.once(f"folder {path}", f"{path} cannot be read ({error.strerror})")
                inside = replace(self._inside.get(path, _Inside()), mtime=None)  # what was in it is not new later
            seen[path] = inside
            todo += inside.folders
        self._inside, self._took = seen, time.thread_time() - begun
        return found

    def _back(self) -> float | None:
        """None, or where the folder is back, until when it was there. Raises OSError where it is gone."""
        device = Path(self._path).stat().st_dev
        if self._device not in (None, device):
            inside = self._scanned(self._path, set())
            if not (inside.files or inside.folders):  # where a disk was mounted
                raise OSError
        back = self._there if self._gone else None
        if self._gone:
            self._how.notes.over("gone", f"{self._path} is back")
        self._device, self._gone, self._there = device, False, time.time()
        return back

    def _scanned(self, path: str, known: set[str]) -> _Inside:
        """What is in a folder; of names that are known nothing more is asked."""
        inside = _Inside()
        suffixes = tuple(SUFFIXES) if self._vae.observation.kind == IMAGE else TABLES
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name in known:
                    inside.files.add(entry.name)
                elif entry.name.startswith("."):
                    continue
                elif entry.name.lower().endswith(suffixes) and not entry.is_dir():
                    inside.files.add(entry.name)
                elif entry.is_dir():
                    inside.folders.append(entry.path)
        return inside


def _changed(path: str, since: float) -> bool:
    """Whether a file was changed since then, seconds since 1970."""
    try:
        return Path(path).stat().st_mtime > since - _TICK
    except OSError:
        return False


def _joined(parts: list[Came]) -> list[Came]:
    """Images of several files as one part, whose time is that of the first one."""
    import numpy as np

    if not parts:
        return []
    names = [name for part in parts for name in part.names]
    return [Came(names, np.concatenate([part.x for part in parts]), parts[0].time)]
