"""The oddest observations in a folder of bounded size: of each a picture or a table, with its figures."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import ArgumentError
from vae_runtime.files import replacing, write_errors
from vae_runtime.images import levels
from vae_runtime.outputs import png
from vae_runtime.watch_events import Observed, iso

MOST = 16 << 20  # bytes
_BLOCK = 4096  # bytes, of which files take whole ones on most disks
_NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z_score(-?[\d.]+(?:e[-+]\d+)?|inf)\.(?:png|csv)")
_HALF = re.compile(rf"\.{_NAME.pattern}\.\d+\.[0-9a-f]{{8}}")  # as `files.replacing` names what is not whole yet


class Keep:
    """Keeps the oddest observations in a folder, which never takes more than `most` bytes in blocks of 4 KiB.

    What is in the folder says what was kept before: the name of a file has its time and its score. Images are PNG files
    as the model sees them, with the figures as the text "vae-edge"; rows and windows are tables with the figures as
    columns of their own. What somebody takes out makes room. Of equal scores, which equal observations have, one is
    kept. Other files there stay as they are, and do not count. Raises ArgumentError where there can be no such folder.
    """

    def __init__(self, folder: Path, most: int = MOST) -> None:
        if most < _BLOCK:
            raise ArgumentError("folder of too few bytes", most, f"give {_BLOCK} or more")
        self._folder, self._most = folder, most
        self._kept: dict[float, tuple[Path, int]] = {}  # by score
        self._size = self._mtime = 0
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if _HALF.fullmatch(path.name):  # of a process that was killed
                    path.unlink(missing_ok=True)
            self._look()
        while self._size > most:
            self._forget(min(self._kept))

    def offer(self, x: NDArray[Any], seen: Observed, names: Sequence[str] = ()) -> bool:
        """Keep an observation x [*shape] if it is among the oddest: whether it is. names: of its columns or channels.

        Raises ResourceError where the disk is full, and ArgumentError where it cannot be written for another reason.
        """
        score = float(f"{seen.score:.10g}")
        with write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
            if self._folder.stat().st_mtime_ns != self._mtime:  # or taken some out
                self._look()
        if score in self._kept or (self._size + _BLOCK > self._most and score < min(self._kept)):
            return False
        content = _content(x, seen, names)
        size = _blocks(len(content))
        if not self._makes_way(score, size):
            return False
        time = re.sub("[-:]", "", iso(seen.time))
        path = self._folder / f"{time}_score{score:.10g}.{'png' if x.ndim == 3 else 'csv'}"
        with replacing(path) as file:
            file.write(content)
        self._kept[score] = path, size
        self._size += size
        with write_errors(self._folder):
            self._mtime = self._folder.stat().st_mtime_ns
        return True

    def _look(self) -> None:
        """See what is in the folder."""
        self._mtime = self._folder.stat().st_mtime_ns
        found = [(match, path) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        self._kept = {float(match[1]): (path, _blocks(path.lstat().st_size)) for match, path in found}
        self._size = sum(size for _, size in self._kept.values())

    def _makes_way(self, score: float, size: int) -> bool:
        """Remove what is less odd until there is room; whether there is."""
        less = sorted(each for each in self._kept if each < score)
        free, gone = self._most - self._size, []
        while free < size and less:
            gone.append(less.pop(0))
            free += self._kept[gone[-1]][1]
        if free < size:
            return False
        for each in gone:
            self._forget(each)
        return True

    def _forget(self, score: float) -> None:
        path, size = self._kept[score]
        with write_errors(path):
            path.unlink(missing_ok=True)
        del self._kept[score]
        self._size -= size


def _content(x: NDArray[Any], seen: Observed, names: Sequence[str]) -> bytes:
    """A file with an observation [C, H, W], [D] or [C, T], and its figures."""
    figures = {
        "time": iso(seen.time),
        "name": seen.name,
        "score": seen.score,
        "p": seen.p,
        "oddest": seen.oddest,
        "deviation": seen.deviation,
    }
    if x.ndim == 3:
        return png(levels(x[None])[0], scale=1, text=json.dumps(figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *figures])
    writer.writerows([*row, *figures.values()] for row in np.atleast_2d(x.T).tolist())
    return text.getvalue().encode(errors="surrogateescape")


def _blocks(size: int) -> int:
    return _BLOCK * math.ceil(size / _BLOCK)
