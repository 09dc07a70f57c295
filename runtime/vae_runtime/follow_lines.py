"""Lines of a table that come one by one, through a pipe or in a file that grows: its rows or windows, once whole."""

import os
from pathlib import Path
from typing import Protocol

from vae_runtime.errors import InputError
from vae_runtime.follow import POLL, Came, Following, Pending
from vae_runtime.streams import Rows, needed
from vae_runtime.tables import is_row
from vae_runtime.vae import VAE
from vae_runtime.watch_clock import Clock

_PIECE = 1 << 16  # bytes
_PASSED = 1 << 20  # bytes at a time of those that are passed over
_LONGEST = 1 << 20  # bytes of a line
_LOOKED_AT = 50  # lines, from which the layout is told


class Bytes(Protocol):
    """Where lines come from. ended: nothing more comes. anew: what comes next begins another file."""

    name: str
    ended: bool
    anew: bool

    def wait(self, seconds: float) -> bool:
        """For so long, or less: whether there is something to read."""

    def read(self, size: int = _PIECE) -> bytes:
        """What there is, at most so much."""

    def close(self) -> None:
        """Leave it."""


class Pipe:
    """A pipe, by its descriptor, which is closed in the end; or whatever else can be waited for."""

    anew = False

    def __init__(self, descriptor: int, name: str, clock: Clock) -> None:
        self._descriptor, self.name, self._clock = descriptor, name, clock
        self.ended = False

    def wait(self, seconds: float) -> bool:
        """Until something can be read, or it has ended."""
        return self._clock.wait(seconds, self._descriptor)

    def read(self, size: int = _PIECE) -> bytes:
        """What there is."""
        piece = os.read(self._descriptor, size)
        self.ended = not piece
        return piece

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class Growing:
    """A file that grows, as `tail -F` follows it: after a rotation its successor, when truncated its new content."""

    ended = False

    def __init__(self, path: Path, how: Following) -> None:
        self._path, self._clock, self._notes = path, how.clock, how.notes
        self.name = str(path)
        self.anew = False
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"file cannot be read ({error.strerror})", path, "check its permissions") from None

    def wait(self, seconds: float) -> bool:
        """Look whether it has grown, and if not wait a while."""
        if self._grown():
            return True
        self._clock.wait(min(seconds, POLL))
        return self._grown()

    def read(self, size: int = _PIECE) -> bytes:
        """What was added; nothing where the disk has left meanwhile."""
        self.anew = False
        try:
            return self._file.read(size) or b""
        except OSError as error:
            self._gone(error)
            return b""

    def skip(self) -> tuple[list[str], int]:
        """Pass over the lines that are whole: the first ones, in which the layout shows, and how many there are.

        Where there are not two of them, a header and a row, they are not passed over, and told.
        """
        first: list[str] = []
        count, rest, position = 0, b"", 0
        while piece := self._file.read(_PASSED):
            *whole, rest = (rest + piece).split(b"\n")
            position += len(piece)
            for line in whole:
                if is_row(text := line.decode("utf-8-sig", "replace")):
                    count += 1
                    if count <= _LOOKED_AT:
                        first.append(text)
        if count < 2:
            first, position = [], 0
        self._file.seek(position - (len(rest) if first else 0))
        return first, count

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def _grown(self) -> bool:
        """Whether there is something to read, in the file or in what has taken its place."""
        try:
            there, here = self._path.stat(), os.fstat(self._file.fileno())
            if there.st_size and here.st_size == self._file.tell() and not os.path.samestat(there, here):
                # what has taken its place has content, so whoever writes has left the old file
                successor = self._path.open("rb", buffering=0)
                self._file.close()
                self._file, self.anew, here = successor, True, there
        except OSError as error:
            self._gone(error)
            return False
        self._notes.over("gone", f"{self.name} is back")
        if here.st_size < self._file.tell():
            self._notes.often("truncated", f"{self.name} was truncated; it is read from its start")
            self._file.seek(0)
            self.anew = True
        return here.st_size > self._file.tell()

    def _gone(self, error: OSError) -> None:
        self._notes.once("gone", f"{self.name} is gone ({error.strerror}); waiting until it is back")


class Lines:
    """Follows lines. A line that is no row is left out and told; another file of them has its own header, or the same.

    Raises InputError, from `wait` or at once, where the first lines are no table for this model.
    """

    single = False

    def __init__(self, source: Bytes, how: Following) -> None:
        self._source, self._how, self._vae = source, how, how.vae
        self._pending = Pending()
        self._rest, self._overlong = b"", False
        self._first: list[str] = []  # lines, until there are enough to tell the layout, and then those
        self._rows: Rows | None = None
        self._head, self._understood = "", False  # the header of this file, or of the last one; whether one was a table
        self._refused = False  # whether this file is no table for this model
        if isinstance(source, Growing) and not how.from_start:
            self._first, count = source.skip()
            if self._first:
                self._rows = self._begun(self._vae)
                self._rows.skip(there := count - self._rows.header)
                are = f"{there:,} rows are" if there > 1 else "1 row is"
                which = f"{are} in {source.name} already and not judged"
                how.notes.once("there", f"{which}; --from-start judges what is there too")

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self._source.ended and not self._pending

    def wait(self, seconds: float) -> None:
        """Until lines have come; what they are is read then."""
        if not self._pending and not self._source.ended and self._source.wait(seconds):
            self._take()

    def read(self, most: int) -> Came | None:
        """The rows or windows that are whole."""
        return self._pending.take(most)

    def renew(self, vae: VAE) -> list[Came]:
        """Read on for another model; windows begin anew."""
        if self._rows is not None:
            rows = self._begun(vae)
            rows.skip(self._rows.row)
            self._rows = rows
        self._vae = vae
        return self._pending.leave()

    def close(self) -> None:
        """Leave the source."""
        self._source.close()

    def _take(self) -> None:
        """Read some lines, and what they are."""
        anew = self._source.anew
        piece = self._source.read()
        if anew:
            self._leave()
        *whole, self._rest = (self._rest + piece).split(b"\n")
        if whole and self._overlong:  # the end of a line that was told already
            whole, self._overlong = whole[1:], False
        if self._source.ended:
            whole, self._rest = [*whole, self._rest], b""
        if len(self._rest) > _LONGEST:
            self._rest = b""
            if not self._overlong:
                self._how.broken(InputError("line without an end", self._source.name, "check what writes it"))
            self._overlong = True
        self._feed([text for line in whole if is_row(text := line.decode("utf-8-sig", "replace"))])
        if self._source.ended and self._rows is not None:
            self._rows.end()

    def _leave(self) -> None:
        """Go to the beginning of another file."""
        if is_row(self._rest.decode("utf-8", "replace")):
            self._how.broken(InputError("part of a line at the end", self._source.name, "check what writes it"))
        self._rest, self._overlong, self._refused = b"", False, False
        self._first, self._rows = [], None

    def _feed(self, lines: list[str]) -> None:
        if self._refused:
            return
        if self._rows is None:
            self._first += lines
            least = 1 if self._source.ended else needed(self._vae.observation)
            if len(self._first) < least:
                return
            try:
                self._rows = self._begun(self._vae)
            except InputError as error:
                if not self._understood:
                    raise
                self._refused = True
                self._how.broken(error)
                return
            lines, self._first = self._first, self._first[:_LOOKED_AT]
        time = self._how.clock.monotonic()
        lines = [line for line in lines if line != self._head]  # some write it again when they begin again
        for names, x in self._rows.feed(lines):
            self._pending.add(Came(names, x, time))

    def _begun(self, vae: VAE) -> Rows:
        """What reads the lines that begin with the first ones; where these have no header, it is the last file's."""
        try:
            return self._rows_of(self._first, vae)
        except InputError:
            if not self._head or self._first[0] == self._head:
                raise
            return self._rows_of([self._head, *self._first], vae)

    def _rows_of(self, first: list[str], vae: VAE) -> Rows:
        notes, preprocessing = self._how.notes, vae.manifest.preprocessing
        rows = Rows(
            self._source.name, first, vae.observation, preprocessing, self._how.stride,
            lambda text: notes.once(text, text), broken=self._how.broken,
        )  # fmt: skip
        self._head, self._understood = first[0] if rows.header else "", True
        return rows
