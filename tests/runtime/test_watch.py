"""watch: what comes is judged as it comes, alarms do not flicker, and nothing that fails ends it."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support import bundles
from support.bundles import Forge, changed, linear
from support.commands import Command
from vae_runtime import VAE, Clock, Detector, follow_folder, watch
from vae_runtime.cli import main
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.follow import Frames
from vae_runtime.images import fit
from vae_runtime.keep import Keep
from vae_runtime.outputs import png
from vae_runtime.watch_cli import _Output
from vae_runtime.watch_events import Changed, Event, Heartbeat, Observed, iso
from vae_runtime.watching import Alarm


def states(alarm: Alarm, verdicts: str, seconds: float = 1) -> str:
    """The state after each of these verdicts, `o` for odd and `.` for normal, so many seconds apart."""
    letters = []
    for i, verdict in enumerate(verdicts):
        alarm.see(verdict == "o", i * seconds)
        letters.append("O" if alarm.state == "odd" else ".")
    return "".join(letters)


@pytest.mark.parametrize(
    ("alarm", "verdicts", "expected"),
    [
        (Alarm(), "..o.oo.", "..O.OO."),
        (Alarm(3), "oo.ooo..o...o", ".....OOOOOO.."),
        (Alarm(lasting=3), "oo.ooooo.....", "......OOOOO.."),
        (Alarm(cooldown=5), "o.o.o.o.", "O.....O."),
        (Alarm(cooldown=5), "o.oooo.", "O....O."),
        (Alarm(2, cooldown=4), "oo..oooo", ".OO..OOO"),
    ],
)
def test_the_state_changes_after_several_in_a_row_and_not_too_soon(alarm: Alarm, verdicts: str, expected: str) -> None:
    """Both ways; what is odd still when the cooldown ends raises the alarm then."""
    assert states(alarm, verdicts) == expected


@pytest.mark.parametrize("settings", [{"in_a_row": 0}, {"lasting": -1}, {"cooldown": -1}, {"cooldown": float("nan")}])
def test_an_alarm_of_no_sense_is_refused(settings: dict[str, float]) -> None:
    """With the name of what is wrong."""
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        Alarm(**settings)  # type: ignore[arg-type]


def test_events_are_lines_of_json() -> None:
    """Each says what it is, and its time in UTC."""
    seen = Observed(1.5, "a.png", 7, 12.25, 0.01, True, "KL", 4.5, "odd")
    assert json.loads(seen.json()) == {
        "event": "observation", "time": "1970-01-01T00:00:01.500Z", "name": "a.png", "number": 7, "score": 12.25,
        "p": 0.01, "odd": True, "oddest": "KL", "deviation": 4.5, "state": "odd",
    }  # fmt: skip
    changed = json.loads(Changed(0, "odd", 60.0, "a.png", 7, 12.25, 0.01, "KL", 4.5).json())
    assert (changed["event"], changed["state"], changed["lasted"]) == ("state", "odd", 60.0)
    beat = json.loads(Heartbeat(0, "normal", 60.0, 100, 1, 0, 2, 0.01, 0.002, 0.01, None).json())
    assert (beat["event"], beat["skipped"], beat["memory"], beat["last"]) == ("heartbeat", 2, None, False)
    assert "\n" not in seen.json()
    assert iso(1_700_000_000) == "2023-11-14T22:13:20.000Z"


class Script(Clock):
    """A clock whose time passes in waiting alone, and then something happens: a call, or so many seconds of nothing.

    When there is nothing left, the watch is stopped.
    """

    def __init__(self, *steps: Callable[[], object] | float) -> None:
        super().__init__()
        self._steps, self._time, self._until = list(steps), 0.0, 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        return 1_700_000_000 + self._time

    def monotonic(self) -> float:
        """Seconds waited so far."""
        return self._time

    def wait(self, seconds: float, descriptor: int | None = None) -> bool:
        """Let time pass, and then do what is next."""
        if super().wait(0, descriptor):
            return True
        self._time += min(seconds, max(self._until - self._time, 0.2))
        if self._time < self._until:
            return False
        if not self._steps:
            self.stop()
        elif callable(step := self._steps.pop(0)):
            step()
        else:
            self._until = self._time + step
        return super().wait(0, descriptor)


@dataclass
class Watched:
    """What a watch told."""

    events: list[Event]
    notes: list[str]

    @property
    def seen(self) -> list[Observed]:
        """The observations."""
        return [event for event in self.events if isinstance(event, Observed)]

    @property
    def names(self) -> list[str]:
        """What they are called, without their folders."""
        return [Path(seen.name).name for seen in self.seen]

    @property
    def beats(self) -> list[Heartbeat]:
        """The heartbeats."""
        return [event for event in self.events if isinstance(event, Heartbeat)]


def watched(detector: Detector, source: Any, *steps: Callable[[], object] | float, **settings: Any) -> Watched:
    """What a watch tells while these things happen."""
    notes: list[str] = []
    clock = Script(*steps)
    events = list(watch(detector, source, note=notes.append, clock=clock, **settings))
    clock.close()
    return Watched(events, notes)


@pytest.fixture(scope="module")
def images(tiny_bundle: Path) -> Detector:
    """A detector of the tiny model's images."""
    vae = VAE.load(tiny_bundle)
    return Detector.fit(vae, vae.sample(100, 1), num_samples=1)


@pytest.fixture
def rows(tmp_path: Path) -> Detector:
    """A detector of rows of the columns a and b, or what else they are called."""
    normal = np.random.default_rng(1).normal(size=(100, 2))
    return Detector.fit(VAE.load(tables(tmp_path / "rows", (2,))), normal, num_samples=1)


@pytest.fixture
def series(tmp_path: Path) -> Detector:
    """A detector of windows of four rows of the columns a and b."""
    normal = np.random.default_rng(1).normal(size=(100, 2, 4))
    return Detector.fit(VAE.load(tables(tmp_path / "series", (2, 4))), normal, num_samples=1)


def tables(out: Path, shape: tuple[int, ...], names: str = "ab") -> Path:
    """A bundle for observations of these columns, of one letter each, which are not scaled."""
    forge: Forge = partial(bundles.forge, bundles.TINY, out)
    columns = [{"name": name, "mean": 0.0, "scale": 1.0} for name in names]
    bundle = linear(forge, "gaussian", shape)
    before = json.loads((bundle / "manifest.json").read_bytes())["preprocessing"]
    return changed(bundle, preprocessing={**before, "columns": columns})


def put(folder: Path, name: str, levels: NDArray[np.uint8]) -> Path:
    """An image file."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(png(levels[..., None], scale=1))
    return folder / name


def aged(path: Path, mtime: float) -> Path:
    """The file, with that time of change, seconds since 1970, however coarse the disk's clock is."""
    os.utime(path, (mtime, mtime))
    return path


LEVELS = np.random.default_rng(3).integers(0, 2, (6, 28, 28)).astype(np.uint8) * 255


def test_a_folder_that_fills(images: Detector, tmp_path: Path) -> None:
    """New images are judged in the order of their times, as `detect` judges them, and others are left alone."""
    put(tmp_path, "before.png", LEVELS[0])

    def some() -> None:
        for i, name in enumerate(("b.png", "a.png", "new/c.png", ".hidden.png", "notes.txt")):
            os.utime(put(tmp_path, name, LEVELS[i]), (2000 + i, 2000 + i))

    ran = watched(images, tmp_path, some, 1, lambda: put(tmp_path, "d.png", LEVELS[5]), 1)
    assert ran.names == ["b.png", "a.png", "c.png", "d.png"]
    expected = images.verdict(LEVELS[[0, 1, 2, 5], None] / 255)
    assert np.allclose([seen.score for seen in ran.seen], expected.score, rtol=1e-9)
    assert [(seen.p, seen.odd, seen.oddest) for seen in ran.seen] == list(
        zip(expected.p.tolist(), expected.odd.tolist(), expected.oddest.tolist(), strict=True)
    )
    assert [seen.number for seen in ran.seen] == [0, 1, 2, 3]
    assert ran.notes == [f"1 image is in {tmp_path} already and not judged; --from-start judges what is there too"]
    assert watched(images, tmp_path, 1, from_start=True).names == ["b.png", "a.png", "c.png", "before.png", "d.png"]


def test_a_file_that_is_written_is_waited_for(images: Detector, tmp_path: Path) -> None:
    """Until it is whole; one that never will be is left out, and of many that is said in two lines."""
    whole = png(LEVELS[0][..., None], scale=1)

    def half(name: str) -> None:
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])

    def many() -> None:
        for i in range(5):
            half(f"broken{i}.png")

    ran = watched(
        images, tmp_path, lambda: half("slow.png"), 3, lambda: (tmp_path / "slow.png").write_bytes(whole), 2,
        lambda: (tmp_path / "empty.png").touch(), many, 15,
    )  # fmt: skip
    assert ran.names == ["slow.png"]
    assert ran.beats[-1].skipped == 6
    assert len(ran.notes) == 2
    assert ran.notes[0].startswith("left out: ")
    assert ran.notes[1].startswith("5 more such, the last: left out: ")


def test_a_file_that_is_written_anew_is_judged_again(images: Detector, tmp_path: Path) -> None:
    """In place or by another file of its name, as cameras write their latest picture; what stays as it is, is not."""
    latest, other = (aged(put(tmp_path, name, LEVELS[0]), 8) for name in ("latest.png", "other.png"))
    ran = watched(
        images, tmp_path, 1, lambda: put(tmp_path, "latest.png", LEVELS[1]), 3,
        lambda: aged(put(tmp_path, ".new.png", LEVELS[2]), 7).replace(latest), 3, lambda: aged(latest, 9), 3,
    )  # fmt: skip
    assert ran.names == ["latest.png"] * 3
    expected = images.verdict(LEVELS[[1, 2, 2], None] / 255).score
    assert np.allclose([seen.score for seen in ran.seen], expected, rtol=1e-9)

    away = tmp_path / ".away.png"
    ran = watched(images, tmp_path, lambda: other.rename(away), 3, lambda: away.rename(other), 3)
    assert ran.names == ["other.png"], "what has left the folder is remembered"


def test_of_many_files_each_is_asked_in_turn(images: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was written anew."""
    monkeypatch.setattr(follow_folder, "_ASKED", 2)
    for i in range(6):
        aged(put(tmp_path, f"{i}.png", LEVELS[0]), 8)
    ran = watched(images, tmp_path, lambda: [put(tmp_path, f"{i}.png", LEVELS[i]) for i in range(6)], 5)
    assert sorted(ran.names) == [f"{i}.png" for i in range(6)]


def test_a_file_that_never_rests_is_told(images: Detector, tmp_path: Path) -> None:
    """Once, and judged when it rests."""

    def write(seconds: float) -> None:
        aged(put(tmp_path, "latest.png", LEVELS[0]), seconds)

    ran = watched(images, tmp_path, *(partial(write, time.time() + i) for i in range(60)), 3)
    assert ran.notes == [f"{tmp_path}/latest.png is written to without a pause, and is judged when there is one"]
    assert ran.names == ["latest.png"]


def test_a_table_that_is_written_to_after_it_was_judged_is_judged_again(rows: Detector, tmp_path: Path) -> None:
    """As a whole, and a line says what follows its rows one by one."""
    folder = tmp_path / "tables"
    folder.mkdir()
    table = folder / "a.csv"
    ran = watched(
        rows, folder, lambda: table.write_text("a,b\n1,2\n"), 5, lambda: table.write_text("a,b\n1,2\n3,4\n"), 5
    )
    assert ran.names == ["a.csv[0]", "a.csv[0]", "a.csv[1]"]
    assert ran.notes == [
        f"{table} was written to, and all of it is judged, rows that were there before too; "
        "to judge rows as they come, watch the file itself"
    ]


def test_a_table_in_a_folder_is_waited_for(rows: Detector, tmp_path: Path) -> None:
    """A part of it could be read, and what is written a second later belongs to it."""
    folder = tmp_path / "tables"
    folder.mkdir()

    def add(text: str) -> None:
        with (folder / "a.csv").open("a") as file:
            file.write(text)

    ran = watched(rows, folder, lambda: add("a,b\n1,2\n"), 1, lambda: add("3,4\n"), 1, lambda: add("5,6\n"), 5)
    assert ran.names == [f"a.csv[{i}]" for i in range(3)]


def test_a_pipe_in_a_folder_is_left_out(images: Detector, tmp_path: Path) -> None:
    """To open it would be to wait without an end."""
    ran = watched(
        images, tmp_path, lambda: os.mkfifo(tmp_path / "a.png"), 1, lambda: put(tmp_path, "b.png", LEVELS[0]), 1
    )
    assert ran.names == ["b.png"]
    assert ran.notes == [f"left out: no regular file: {tmp_path}/a.png"]


def test_a_folder_that_vanishes_is_waited_for(images: Detector, tmp_path: Path) -> None:
    """And said, once; what was judged before is not judged again when it is back, and what is new is."""
    folder, away = tmp_path / "photos", tmp_path / "away"
    os.utime(put(folder, "a.png", LEVELS[0]), (1000, 1000))
    ran = watched(
        images, folder, lambda: os.utime(put(folder, "b.png", LEVELS[1]), (1000, 1000)), 1,
        lambda: folder.rename(away), 30, lambda: put(away, "c.png", LEVELS[2]), lambda: away.rename(folder), 1,
    )  # fmt: skip
    assert ran.names == ["b.png", "c.png"]
    assert [note.partition(" (")[0] for note in ran.notes[1:]] == [f"{folder} is gone", f"{folder} is back"]
    ran = watched(
        images, folder, lambda: shutil.rmtree(folder), 1, lambda: put(folder, "a.png", LEVELS[0]), 1
    )  # made anew
    assert ran.names == ["a.png"]


def test_a_folder_where_nothing_happens_is_not_read(
    images: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files it has, a look at it is one at its time of change."""
    put(tmp_path, "a.png", LEVELS[0])
    os.utime(tmp_path, (1000, 1000))
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(path) or scandir(path))
    assert watched(images, tmp_path, 100).names == []
    assert len(looks) == 1


@contextmanager
def piped() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Both ends of a pipe; the second one is written to at once."""
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as reader, os.fdopen(write, "wb", buffering=0) as writer:
        yield reader, writer


def test_a_pipe_that_ends_with_nothing_is_told(images: Detector, rows: Detector) -> None:
    """A camera that did not start, say."""
    for detector, noun in ((images, "image"), (rows, "row")):
        with piped() as (reader, writer):
            ran = watched(detector, reader, writer.close)
        assert ran.notes == [f"nothing came: the source ended before a whole {noun}; check what writes into it"]


@pytest.mark.parametrize("pixels", ["gray", "rgb24", "yuv420p"])
def test_frames_of_a_pipe(images: Detector, pixels: str) -> None:
    """Each is judged when it is whole, in whatever pieces it comes; the rest at the end is told."""
    grey = np.repeat(np.repeat(LEVELS, 2, axis=1), 2, axis=2)  # [6, 56, 56]
    frames = {
        "gray": grey.tobytes(),
        "rgb24": np.repeat(grey[..., None], 3, axis=3).tobytes(),
        "yuv420p": b"".join(frame.tobytes() + bytes([128]) * (2 * 28 * 28) for frame in grey),
    }[pixels]
    with piped() as (reader, writer):
        pieces = [frames[i : i + 5000] for i in range(0, len(frames), 5000)]
        ran = watched(
            images, reader, *(partial(writer.write, piece) for piece in pieces), lambda: writer.write(b"abc"),
            writer.close, frames=Frames(56, 56, pixels),
        )  # fmt: skip
    assert ran.names == [f"standard input[{i}]" for i in range(6)]
    found = np.stack([fit(Image.fromarray(frame), (1, 28, 28))[0] for frame in grey])
    assert np.allclose([seen.score for seen in ran.seen], images.verdict(found).score, rtol=1e-9)
    assert "fitted from 56x56" in ran.notes[0]
    assert ran.notes[1].startswith("left out: part of a frame at the end: standard input (3 of ")
    assert (ran.beats[-1].last, ran.beats[-1].seen, ran.beats[-1].skipped) == (True, 6, 1)


def test_frames_of_colour(forge: Forge) -> None:
    """As JPEG converts them, within what rounding does."""
    vae = VAE.load(linear(forge, "gaussian", (3, 4, 4)))
    detector = Detector.fit(vae, np.random.default_rng(1).random((50, 3, 4, 4)))
    colour = Image.new("RGB", (4, 4), (200, 100, 50))
    planes = colour.convert("YCbCr").split()
    raw = planes[0].tobytes() + b"".join(plane.resize((2, 2)).tobytes() for plane in planes[1:])
    with piped() as (reader, writer):
        ran = watched(detector, reader, lambda: writer.write(raw), writer.close, frames=Frames(4, 4, "yuv420p"))
    assert np.isclose(ran.seen[0].score, detector.score(fit(colour, (3, 4, 4))[0][None])[0], rtol=0.02)


def test_rows_of_a_pipe(rows: Detector) -> None:
    """By the names of their columns; a line that is none is left out, and what comes late is judged when it comes."""
    values = np.random.default_rng(2).normal(size=(6, 2))
    lines = [f"{b!r},x,{a!r}\n".encode() for a, b in values.tolist()]
    with piped() as (reader, writer):
        ran = watched(
            rows, reader, lambda: writer.write(b"b,other,a\n" + lines[0]), lambda: writer.write(b"1,x\n" + lines[1]),
            lambda: writer.write(b"1,x,much\n,x,2\n\n"), 30, lambda: writer.write(lines[2][:5]), 30,
            lambda: writer.write(lines[2][5:] + lines[3] + lines[4] + lines[5].strip()), writer.close,
        )  # fmt: skip
    assert ran.names == [f"standard input[{i}]" for i in (0, 2, 5, 6, 7, 8)]
    assert np.allclose([seen.score for seen in ran.seen], rows.score(values), rtol=1e-9)
    assert [round(seen.time) - 1_700_000_000 for seen in ran.seen] == pytest.approx([0, 0, 61, 61, 61, 61], abs=3)
    assert ran.notes[0] == "left out: line of 2 fields: standard input, row 1"
    assert ran.notes[1].startswith("2 more such, the last: left out: missing value: standard input, row 4")


def test_lines_that_csv_cannot_read_are_left_out(rows: Detector) -> None:
    """A stray CR, a quote that is not closed; a port may end its lines with LF and CR."""
    lines = [b"a,b\n\r1.0,2\n\r", b"1.0,2\r.0\n", b'1,"2\n3,4\n', b'5,"6"\n\r7,8\n\r']
    with piped() as (reader, writer):
        ran = watched(rows, reader, *(partial(writer.write, line) for line in lines), writer.close)
    assert ran.names == [f"standard input[{i}]" for i in (0, 3, 4, 5)]
    assert np.allclose([seen.score for seen in ran.seen], rows.score([[1, 2], [3, 4], [5, 6], [7, 8]]), rtol=1e-9)
    assert ran.beats[-1].skipped == 2


def test_a_quote_amid_whole_numbers_ends_no_watch(forge: Forge) -> None:
    """Where nothing has shown yet how decimals are written, either."""
    vae = VAE.load(linear(forge, "gaussian", (3,)))
    detector = Detector.fit(vae, np.random.default_rng(1).normal(size=(50, 3)), num_samples=1)
    for mark in ",;":
        lines = [line.replace(",", mark) for line in ("1,2,3\n4,5,6\n", '1,"2,3\n4,5,6\n')]
        with piped() as (reader, writer):
            ran = watched(detector, reader, *(partial(writer.write, line.encode()) for line in lines), writer.close)
        assert ran.names == [f"standard input[{i}]" for i in (0, 1, 3)]


def test_a_pipe_that_is_no_table_of_the_model_ends_the_watch(rows: Detector) -> None:
    """As `detect` refuses it; but a pipe that ends before it begins is none."""
    with piped() as (reader, writer), pytest.raises(InputError, match="no column a"):
        watched(rows, reader, lambda: writer.write(b"x,y\n1,2\n"))
    with piped() as (reader, writer):
        assert [beat.last for beat in watched(rows, reader, writer.close).beats] == [False, True]


def test_rows_of_a_named_pipe(rows: Detector, tmp_path: Path) -> None:
    """Which is waited for until somebody writes, and ends when nobody does any more."""
    os.mkfifo(tmp_path / "fifo")
    ran = watched(rows, tmp_path / "fifo", 100, lambda: (tmp_path / "fifo").write_text("a,b\n1,2\n"), 100)
    assert ran.names == ["fifo[0]"]
    assert ran.beats[-1].uptime < 180


def test_rows_of_a_serial_port(rows: Detector) -> None:
    """Or of another device of characters, which is read as a pipe is."""
    there, here = os.openpty()
    try:
        ran = watched(
            rows, os.ttyname(here), lambda: os.write(there, b"a,b\n1,2\n"), 1, lambda: os.write(there, b"3,4\n"), 1
        )
    finally:
        os.close(there)
        os.close(here)
    assert np.allclose([seen.score for seen in ran.seen], rows.score([[1, 2], [3, 4]]), rtol=1e-9)


def test_windows_of_a_pipe(series: Detector) -> None:
    """One from every second row on, but for those across a row that is no row."""
    values = np.random.default_rng(2).normal(size=(14, 2))
    lines = ["a,b", *(f"{a!r},{b!r}" for a, b in values.tolist())]
    lines[7] = "1,"
    with piped() as (reader, writer):
        ran = watched(
            series, reader, *(partial(writer.write, f"{line}\n".encode()) for line in lines), writer.close, stride=2
        )
    assert ran.names == [f"standard input[{i}:{i + 4}]" for i in (0, 2, 7, 9)]
    expected = series.score(np.stack([values[i : i + 4].T for i in (0, 2, 7, 9)]))
    assert np.allclose([seen.score for seen in ran.seen], expected, rtol=1e-9)


def test_a_table_that_grows(rows: Detector, tmp_path: Path) -> None:
    """What is there is passed over; lines count when they are whole; rotated and cut files are followed."""
    path = tmp_path / "readings.csv"
    path.write_text("a,b\n1,2\n3,4\n5,")

    def add(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    def rotate(text: str) -> None:
        path.rename(tmp_path / "readings.csv.1")
        path.write_text(text)

    ran = watched(
        rows, path, lambda: add("6\n"), 1, lambda: add("7,8\n9"), 1, lambda: rotate("b,a\n0.5,0.25\n"), 1,
        lambda: add("1.5,1.25\n"), 1, lambda: path.write_text("b,a\n"), 1, lambda: add("2.5,2.25\n"), 1,
        path.unlink, 100, lambda: path.write_text("3.5,3.25\n4.5,4.25\n"), 1,
    )  # fmt: skip
    assert ran.names == [f"readings.csv[{i}]" for i in (2, 3, 0, 1, 0, 0, 1)]
    expected = [[5, 6], [7, 8], [0.25, 0.5], [1.25, 1.5], [2.25, 2.5], [3.25, 3.5], [4.25, 4.5]]
    assert np.allclose([seen.score for seen in ran.seen], rows.score(expected), rtol=1e-9)
    assert [note.replace(str(path), "FILE") for note in ran.notes] == [
        "2 rows are in FILE already and not judged; --from-start judges what is there too",
        "left out: part of a line at the end: FILE",
        "FILE was truncated; it is read from its start",
        "FILE is gone (No such file or directory); waiting until it is back",
        "FILE is back",
    ]
    path.write_text("a,b\n1,2\n")
    assert watched(rows, path, 1, from_start=True).names == ["readings.csv[0]"]


def test_alarms_and_heartbeats_by_the_clock(rows: Detector) -> None:
    """Three odd ones in a row make an alarm, in the time that they take; heartbeats come whatever else does."""
    far = b"1000,1000\n"
    with piped() as (reader, writer):
        steps = [lambda: writer.write(b"a,b\n0,0\n"), *([lambda: writer.write(far), 10] * 4), 100]
        ran = watched(rows, reader, *steps, writer.close, heartbeat=50, cooldown=1000)
    (changed,) = [event for event in ran.events if isinstance(event, Changed)]
    assert (changed.state, changed.number, changed.name) == ("odd", 3, "standard input[3]")
    assert changed.lasted == pytest.approx(20, abs=2)
    assert [seen.state for seen in ran.seen] == ["normal"] * 3 + ["odd"] * 2
    at = [beat.uptime for beat in ran.beats]
    assert at[:-1] == pytest.approx([0, 50, 100], abs=2)
    last = ran.beats[-1]
    assert (last.last, last.state, last.seen, last.odd, last.alarms) == (True, "odd", 5, 4, 1)
    assert (last.false_alarms, ran.beats[0].latency_median) == (rows.false_alarms, None)
    assert ran.beats[1].latency_highest is not None
    assert last.memory is None or last.memory > 1_000_000


def test_another_detector_takes_over_whole_or_not_at_all(rows: Detector, series: Detector) -> None:
    """What comes after is judged by it; one for other observations is refused, and said to be."""
    other = Detector(rows.vae, replace(rows.calibration, threshold=-1e9))
    coming: list[Detector] = []
    with piped() as (reader, writer):
        ran = watched(
            rows, reader, lambda: writer.write(b"a,b\n0,0\n"), 1, lambda: coming.append(series), 1,
            lambda: writer.write(b"0,0\n"), 1, lambda: coming.append(other), 1, lambda: writer.write(b"0,0\n"), 1,
            writer.close, renew=lambda: coming.pop() if coming else None,
        )  # fmt: skip
    assert [seen.odd for seen in ran.seen] == [False, False, True]
    assert "stay in force: bundle for other observations: a model of windows, not rows" in ran.notes[0]
    assert ran.notes[1:] == ["calibration and bundle are read anew"]
    assert (ran.beats[0].false_alarms, ran.beats[-1].false_alarms) == (rows.false_alarms, 1.0)


def test_heartbeats_tell_of_a_drift(rows: Detector) -> None:
    """What has moved and since when, by a number of this watch; a calibration that is read anew begins anew."""
    normal, moved = (np.random.default_rng(2).normal(size=(60, 2)) + shift for shift in (0, 4))
    coming: list[Detector] = []

    def lines(values: NDArray[np.float64]) -> bytes:
        return b"".join(b"%f,%f\n" % tuple(row) for row in values)

    with piped() as (reader, writer):
        ran = watched(
            rows, reader, lambda: writer.write(b"a,b\n" + lines(normal)), 60, lambda: coming.append(rows), 60,
            lambda: writer.write(lines(normal[:9])), 60, lambda: writer.write(lines(moved)), 60,
            lambda: coming.append(rows), 60, writer.close, renew=lambda: coming.pop() if coming else None,
        )  # fmt: skip
    drifts = [(beat.seen, beat.drift, beat.drift_began) for beat in ran.beats]
    assert drifts[0] == (0, None, None)
    assert drifts[1][:2] == (60, None)
    told = [drift for drift in drifts if drift[1] is not None]
    assert {seen for seen, _, _ in told} == {129}
    assert all("than usual" in str(words) and began is not None and 60 < began < 75 for _, words, began in told)
    assert drifts[-1] == (129, None, None)
    assert json.loads(ran.beats[-1].json())["drift_evidence"] < 0


def kept(folder: Path) -> list[float]:
    """The scores of what a folder keeps, in order."""
    return sorted(float(path.stem.rpartition("score")[2]) for path in folder.iterdir())


def odd(score: float) -> Observed:
    """An odd observation of such a score."""
    return Observed(score, "a.png", 0, score, 0.001, True, "KL", 3.0, "odd")


def test_the_oddest_are_kept_in_a_folder_that_stays_small(tmp_path: Path) -> None:
    """Never more than its bytes, across restarts and with what a killed process left; equal ones once."""
    folder, x = tmp_path / "odd" / "ones", LEVELS[0, None] / np.float32(255)
    keep = Keep(folder, 3 * 4096)
    assert [keep.offer(x, odd(score)) for score in (5, 2, 5, 9, 1, 7, -3, 2)] == [
        True, True, False, True, False, True, False, False,
    ]  # fmt: skip
    assert kept(folder) == [5, 7, 9]
    (half := next(folder.iterdir())).with_name(f".{half.name}.123.0123abcd").touch()
    (folder / "mine.txt").touch()
    keep = Keep(folder, 3 * 4096)
    assert (keep.offer(x, odd(6)), keep.offer(x, odd(5))) == (True, False)
    (folder / "mine.txt").unlink()  # which counts for nothing, and stays
    assert kept(folder) == [6, 7, 9]
    Keep(folder, 2 * 4096)
    assert kept(folder) == [7, 9]
    assert Keep(folder, 4096).offer(np.random.default_rng(1).random((3, 64, 64)), odd(10)) is False  # too large alone
    with pytest.raises(ArgumentError, match="too few bytes"):
        Keep(folder, 100)
    with pytest.raises(ArgumentError, match="cannot write"):
        Keep(tmp_path / "odd" / "ones" / kept_name(folder), 4096)


def test_what_is_taken_out_of_the_folder_makes_room(tmp_path: Path) -> None:
    """By whoever has looked at it, one by one or with the folder."""
    folder, x = tmp_path / "odd", LEVELS[0, None] / np.float32(255)
    keep = Keep(folder, 2 * 4096)
    assert [keep.offer(x, odd(score)) for score in (5, 9, 2)] == [True, True, False]
    for path in folder.iterdir():
        path.unlink()
    os.utime(folder, (1, 1))  # later than the last one was kept, however coarse the disk's clock
    assert [keep.offer(x, odd(score)) for score in (2, 9)] == [True, True]
    shutil.rmtree(folder)
    assert keep.offer(x, odd(1))
    assert kept(folder) == [1]


def kept_name(folder: Path) -> str:
    """The name of a file that is kept."""
    return next(folder.iterdir()).name


def test_what_is_kept_has_its_figures(tmp_path: Path) -> None:
    """Images as PNG files with them as text, rows and windows as tables."""
    keep = Keep(tmp_path, 1 << 20)
    for x, names in ((LEVELS[0, None] / np.float32(255), ""), (np.array([0.1, 2.5]), "ab"), (np.eye(2, 3), "ab")):
        assert keep.offer(x, odd(10.0 + x.ndim), names)
    row, window, image = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    with Image.open(io.BytesIO(image)) as picture:
        assert np.array_equal(np.asarray(picture), LEVELS[0])
        figures = json.loads(picture.text["vae-edge"])
    assert figures == {
        "time": "1970-01-01T00:00:13.000Z", "name": "a.png", "score": 13.0, "p": 0.001, "oddest": "KL", "deviation": 3.0
    }  # fmt: skip
    assert row.decode() == (
        "a,b,time,name,score,p,oddest,deviation\n0.1,2.5,1970-01-01T00:00:11.000Z,a.png,11.0,0.001,KL,3.0\n"
    )
    steps = [line.partition(",1970")[0] for line in window.decode().splitlines()[1:]]
    assert steps == ["1.0,0.0", "0.0,1.0", "0.0,0.0"]


def test_an_image_of_two_channels_is_kept_as_their_mean(tmp_path: Path) -> None:
    """Which a picture can show."""
    x = np.random.default_rng(1).uniform(size=(2, 5, 6)).astype(np.float32)
    assert Keep(tmp_path / "two").offer(x, odd(10.0))
    assert Keep(tmp_path / "mean").offer(x.mean(axis=0, keepdims=True), odd(10.0))
    two, mean = (next((tmp_path / name).iterdir()).read_bytes() for name in ("two", "mean"))
    assert two == mean


def test_frames_are_none_of_a_model_of_two_channels(forge: Forge) -> None:
    """Which is said before the first one is waited for."""
    vae = VAE.load(linear(forge, "gaussian", (2, 4, 4)))
    detector = Detector.fit(vae, np.random.default_rng(1).random((50, 2, 4, 4)), num_samples=1)
    with piped() as (reader, _), pytest.raises(InputError, match="raw frames, and this model takes 2 channels"):
        watched(detector, reader)


def test_a_full_disk_ends_no_watch(images: Detector, tmp_path: Path) -> None:
    """What cannot be kept is judged all the same; that is said once, and when it works again."""
    folder = tmp_path / "odd"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    with piped() as (reader, writer):
        try:
            ran = watched(
                images, reader, lambda: full(10), *(partial(writer.write, frame.tobytes()) for frame in LEVELS[:3]), 1,
                lambda: full(before[0]), lambda: writer.write(LEVELS[3].tobytes()), writer.close, keep=folder,
            )  # fmt: skip
        finally:
            full(before[0])
    assert [seen.odd for seen in ran.seen] == [True] * 4
    assert [note.partition(":")[0] for note in ran.notes] == ["odd ones are not kept now", "odd ones are kept again"]
    assert "disk full" in ran.notes[0]
    assert kept(folder) == [pytest.approx(ran.seen[3].score, abs=1e-4)]


def test_a_line_after_a_full_disk_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was torn stands on a line of its own, and how many are lost is said in the end."""
    path, before = tmp_path / "events.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("wb", buffering=0) as file:
        output = _Output(file.fileno())
        output.write("first")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
            output.write("second")
            output.write("third")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        output.write("fourth")
        output.write("fifth")
    assert path.read_text() == "first\nseco\nfourth\nfifth\n"
    lost, again = capsys.readouterr().err.splitlines()
    assert "events are lost: standard output" in lost
    assert "2 events could not be written" in again


@contextmanager
def running(*words: object, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of `vae-infer`, that is killed in the end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    command = [sys.executable, "-m", "vae_runtime", *map(str, words)]
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_resident_process(images: Detector, tmp_path: Path) -> None:
    """It reads a new calibration with SIGHUP, or keeps the old one; with SIGTERM come the last heartbeat and code 0."""
    folder, site = tmp_path / "photos", tmp_path / "site.json"
    folder.mkdir()
    images.save(site)
    words = ("--bundle", images.vae.path, "watch", folder, "--calibration", site, "--heartbeat", 0)
    with running(*words) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["event"] == "heartbeat"
        put(folder, "a.png", LEVELS[0])
        seen = json.loads(process.stdout.readline())
        assert (seen["event"], seen["name"], seen["odd"]) == ("observation", str(folder / "a.png"), True)
        assert json.loads(process.stdout.readline())["event"] == "state"
        site.write_text("{}")
        process.send_signal(signal.SIGHUP)
        assert "from before stay in force: not a calibration" in process.stderr.readline()
        Detector(images.vae, replace(images.calibration, threshold=1e9)).save(site)
        process.send_signal(signal.SIGHUP)
        assert "read anew" in process.stderr.readline()
        put(folder, "b.png", LEVELS[1])
        assert json.loads(process.stdout.readline())["odd"] is False
        assert json.loads(process.stdout.readline())["state"] == "normal"
        process.send_signal(signal.SIGTERM)
        last, rest = process.communicate()
        beat = json.loads(last)
    assert (process.returncode, rest) == (0, "")
    assert (beat["event"], beat["last"], beat["seen"], beat["odd"]) == ("heartbeat", True, 2, 1)


def test_a_model_whose_samples_leave_the_range_is_watched(forge: Forge, tmp_path: Path) -> None:
    """A Gaussian's draws go below 0 and above 1: what the watch tries the model with is cut off there."""
    vae = VAE.load(linear(forge, "gaussian", (3, 4, 4)))
    assert vae.sample(1).max() > 1
    Detector.fit(vae, np.random.default_rng(1).random((100, 3, 4, 4)), num_samples=1).save(tmp_path / "site.json")
    with running(
        "--bundle", vae.path, "watch", "-", "--calibration", tmp_path / "site.json", stdin=subprocess.DEVNULL
    ) as process:
        out, err = process.communicate()
    assert (process.returncode, json.loads(out.splitlines()[-1])["last"]) == (0, True), err


def test_few_normal_ones_are_said_to_be_few(images: Detector, tmp_path: Path) -> None:
    """A watch says at its start where its calibration cannot tell as finely as it was asked to, as `detect` does."""
    Detector.fit(images.vae, images.vae.sample(30, 1), num_samples=1).save(tmp_path / "site.json")
    words = ("--bundle", images.vae.path, "watch", "-", "--calibration", tmp_path / "site.json")
    with running(*words) as process:
        _, said = process.communicate("\0" * 28 * 28)
    assert process.returncode == 0
    assert "of 30 normal ones no p is below 3.23%: " in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_behind_the_output(images: Detector, tmp_path: Path) -> None:
    """Is said once, and the watch goes on to its end."""
    images.save(tmp_path / "site.json")
    words = ("--bundle", images.vae.path, "watch", "-", "--calibration", tmp_path / "site.json")
    with Path("/dev/full").open("w") as full, running(*words, stdout=full) as process:
        _, said = process.communicate("\0" * 28 * 28 * 3)
    assert process.returncode == 0
    assert said.count("\n") == 1
    assert "events are lost: standard output (No space left on device)" in said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("absent",), 4, "file not found: absent"),
        (("a.png",), 4, "no folder: a.png; a model of images watches a folder"),
        ((".", "--debounce", "0"), 2, "'0' is neither a number, such as 3, nor a time, such as 10s"),
        ((".", "--debounce", "3min"), 2, "'3min' is neither"),
        ((".", "--stride", "2"), 2, "stride for a model of no series"),
        ((".", "--size", "64x64"), 2, "frames of raw pixels: ."),
        (("-", "--size", "64"), 2, "'64' is no size, such as 640x480"),
        (("-", "--size", "63x64", "--pixels", "yuv420p"), 2, "those of yuv420p have even sides"),
        (("-", "--keep", "a.png"), 2, "cannot write: a.png"),
        ((".", "--keep", "odd"), 2, "folder for odd ones in the watched one: odd"),
        ((".", "--keep-size", "nan"), 2, "--keep-size"),
        ((".", "--cooldown", "-1"), 2, "--cooldown"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    images: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, words: tuple[str, ...],
    code: int, message: str,
) -> None:  # fmt: skip
    """In a line, with its exit code, and before anything is judged."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a.png", LEVELS[0])
    images.save("site.json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.FileIO(os.open(os.devnull, os.O_RDONLY))))
    ran = command(main, "--bundle", images.vae.path, "watch", *words, "--calibration", "site.json")
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    assert message in ran.err


def test_a_refused_watch_leaves_no_file_open(images: Detector, tmp_path: Path) -> None:
    """Neither what it waits with nor its source."""

    def next_descriptor() -> int:
        os.close(number := os.dup(0))
        return number

    before = next_descriptor()
    with pytest.raises(InputError, match="file not found"):
        watch(images, tmp_path / "absent")
    with pytest.raises(ArgumentError, match="in_a_row"):
        watch(images, tmp_path, in_a_row=0)
    assert next_descriptor() == before
    with piped() as (reader, _), pytest.raises(ArgumentError, match="even sides"):
        watch(images, reader, frames=Frames(3, 3, "yuv420p"))
    assert next_descriptor() == before


def test_a_bundle_of_other_columns_reads_on(tmp_path: Path) -> None:
    """What has come is judged by the old bundle, and what comes after by the new one, each with its own columns."""
    first, second = (VAE.load(tables(tmp_path / names, (2,), names)) for names in ("ab", "ca"))
    detectors = [
        Detector.fit(vae, np.random.default_rng(1).normal(size=(50, 2)), num_samples=1) for vae in (first, second)
    ]
    expected = [detector.score([row])[0] for detector, row in zip(detectors, ([1, 2], [6, 4]), strict=True)]
    coming: list[Detector] = []
    with piped() as (reader, writer):
        ran = watched(
            detectors[0], reader, lambda: writer.write(b"a,b,c\n1,2,3\n"), 1, lambda: coming.append(detectors[1]), 1,
            lambda: writer.write(b"4,5,6\n"), writer.close, renew=lambda: coming.pop() if coming else None,
        )  # fmt: skip
    assert np.allclose([seen.score for seen in ran.seen], expected, rtol=1e-9)
    assert ran.notes == ["calibration and bundle are read anew"]
