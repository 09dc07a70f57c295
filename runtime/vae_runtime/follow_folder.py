"""A folder that fills, and the folders in it: its files, new or written anew, when they are whole, in order of time."""

import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
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
_ASKED = 200  # files at a look, in turn, whether they were written anew
_ROWS = 256  # of a table at a time


_State = tuple[int, int]  # a file's size and mtime
_NONE = (-1, 0)


@dataclass
class _Inside:
    """What is in a folder: names of files and how they were, paths of folders, and its mtime if that shows changes."""

    files: dict[str, _State] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    mtime: int | None = None


@dataclass
class _Growing:
    """A file that may not be whole yet, as it is since a time, and not whole since another; refused: it was read."""

    state: _State
    since: float
    begun: float
    refused: bool = False


class Folder:
    """Follows a folder: files of new names, and known ones that have another size or mtime than before.

    A look costs little where nothing happens: a folder whose mtime is as it was is not looked into, and of many files
    some are asked at a time. What has left the folder is forgotten.
    """

    ended, single = False, True

    def __init__(self, path: Path, how: Following) -> None:
        self._path, self._how, self._vae = str(path), how, how.vae
        self._inside: dict[str, _Inside] = {}
        self._asked: Iterator[str] = iter(())
        self._growing: dict[str, _Growing] = {}
        self._ready: deque[tuple[str, _Growing, float]] = deque()  # with the time when it was seen to be whole
        self._pending = Pending()
        self._took = 0.0  # seconds of the processor for the last look
        # a part of an image cannot be read, and is waited for; a part of a table can
        self._quiet = 0.0 if how.vae.observation.kind == IMAGE else _QUIET
        self._device: int | None = None
        self._gone = False
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
            self._wait_for(self._written_anew())
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
        with suppress(OSError):  # what has changed since it was whole is read now, and not once more
            self._remember(path, _state(Path(path).stat()))
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
        now = self._how.clock.monotonic()
        self._growing.update((path, _Growing(_NONE, now, now)) for path in paths)

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
            if (state := _state(status)) != known.state:
                known = self._growing[path] = _Growing(state, now, known.begun)
                if time.time() - status.st_mtime < _QUIET:  # else it was moved here
                    if now - known.begun > _PATIENCE:
                        what = f"{path} is written to without a pause, and is judged when there is one"
                        self._how.notes.once("busy", what)
                    continue
            wanted = _PATIENCE if known.refused or not status.st_size else self._quiet
            if now - known.since >= wanted:
                whole.append((status.st_mtime_ns, path, known))
                del self._growing[path]
                self._remember(path, state)
        whole.sort(key=lambda each: each[:2])
        self._ready.extend((path, known, now) for _, path, known in whole)

    def _remember(self, path: str, state: _State) -> None:
        folder, _, name = path.rpartition("/")
        if folder in self._inside:
            self._inside[folder].files[name] = state

    def _written_anew(self) -> list[str]:
        """Those of the next known files, of few of all, that are not as they were."""
        found, paths = [], list(islice(self._asked, _ASKED))
        if len(paths) < _ASKED:
            self._asked = (f"{path}/{name}" for path, inside in [*self._inside.items()] for name in [*inside.files])
        for path in paths:
            folder, _, name = path.rpartition("/")
            known = self._inside[folder].files.get(name) if folder in self._inside else None
            if known is None or path in self._growing:
                continue
            try:
                status = Path(path).stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and _state(status) != known:
                found.append(path)
        if found and self._vae.observation.kind != IMAGE:
            what = f"{found[0]} was written to, and all of it is judged, rows that were there before too"
            self._how.notes.once("anew", f"{what}; to judge rows as they come, watch the file itself")
        return found

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
                if back or inside.mtime != status.st_mtime_ns:
                    quiet = time.time() - status.st_mtime >= _QUIET  # else a change to come may have the same mtime
                    before, inside = inside, self._scanned(path, inside.files)
                    inside.mtime = status.st_mtime_ns if quiet else None
                    found += [f"{path}/{name}" for name in inside.files if name not in before.files]
            except OSError as error:
                if isinstance(error, FileNotFoundError) and path != self._path:
                    continue
                self._how.notes.once(f"folder {path}", f"{path} cannot be read ({error.strerror})")
                inside = replace(self._inside.get(path, _Inside()), mtime=None)  # what was in it is not new later
            seen[path] = inside
            todo += inside.folders
        self._inside, self._took = seen, time.thread_time() - begun
        return found

    def _back(self) -> bool:
        """Whether the folder was gone and is back. Raises OSError where it is gone."""
        device = Path(self._path).stat().st_dev
        if self._device not in (None, device):
            inside = self._scanned(self._path, {})
            if not (inside.files or inside.folders):  # where a disk was mounted
                raise OSError
        back = self._gone
        if back:
            self._how.notes.over("gone", f"{self._path} is back")
        self._device, self._gone = device, False
        return back

    def _scanned(self, path: str, known: dict[str, _State]) -> _Inside:
        """What is in a folder; of names that are known nothing more is asked."""
        inside = _Inside()
        suffixes = tuple(SUFFIXES) if self._vae.observation.kind == IMAGE else TABLES
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name in known:
                    inside.files[entry.name] = known[entry.name]
                elif entry.name.startswith("."):
                    continue
                elif entry.name.lower().endswith(suffixes) and not entry.is_dir():
                    with suppress(OSError):  # a link to nothing, or gone already
                        inside.files[entry.name] = _NONE
                        inside.files[entry.name] = _state(entry.stat())
                elif entry.is_dir():
                    inside.folders.append(entry.path)
        return inside


def _state(status: os.stat_result) -> _State:
    return status.st_size, status.st_mtime_ns


def _joined(parts: list[Came]) -> list[Came]:
    """Images of several files as one part, whose time is that of the first one."""
    import numpy as np

    if not parts:
        return []
    names = [name for part in parts for name in part.names]
    return [Came(names, np.concatenate([part.x for part in parts]), parts[0].time)]
