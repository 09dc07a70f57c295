"""Watching: each observation is judged as it comes, and what happens is told as events that go on.

Example:
    for event in watch(Detector.load(vae), "photos/"):
        print(event.json())
"""

import os
import statistics
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vae_runtime import keep as keeping
from vae_runtime.detector import Detector, Verdict
from vae_runtime.drift import Drift, apart
from vae_runtime.errors import ArgumentError, BundleError, InputError, VaeError
from vae_runtime.follow import Came, Follower, Following, Frames, Stream, follow
from vae_runtime.watch_clock import Clock
from vae_runtime.watch_events import NORMAL, ODD, Changed, Event, Heartbeat, Observed
from vae_runtime.watch_notes import Notes

IN_A_ROW = 3  # odd ones of a stream that make an alarm
_AT_ONCE = 0.05  # seconds of work at a time where much has come
_MOST_AT_ONCE = 1024
_LONGEST_WAIT = 60.0  # seconds, and then what is to be said is said
_LATENCIES = 1000  # of the last observations, of which the median is taken


class Alarm:
    """The state of a watch, "normal" at first.

    in_a_row: how many observations, all odd, make it odd, and all normal, normal again. lasting: for how many seconds
    these must have gone on. cooldown: seconds from one change to "odd" to the next, at the least; what is odd still
    then makes it odd then. Raises ArgumentError where one is negative, or `in_a_row` is 0.
    """

    def __init__(self, in_a_row: int = 1, lasting: float = 0, cooldown: float = 0) -> None:
        for name, value, least in (("in_a_row", in_a_row, 1), ("lasting", lasting, 0), ("cooldown", cooldown, 0)):
            if not value >= least:
                raise ArgumentError(f"{name} out of range", value, f"give {least} or more")
        self.in_a_row, self.lasting, self.cooldown = in_a_row, lasting, cooldown
        self.state = NORMAL
        self._run, self._since = 0, 0.0  # in a row for the other state, and since when
        self._quiet = float("-inf")  # until when there is no second alarm

    def see(self, odd: bool, time: float) -> bool:
        """Whether the state changes with this observation; time: when it came, seconds of any clock."""
        if odd == (self.state == ODD):
            self._run = 0
            return False
        if not self._run:
            self._since = time
        self._run += 1
        settled = self._run >= self.in_a_row and time - self._since >= self.lasting
        if not settled or (odd and time < self._quiet):
            return False
        self._run, self.state = 0, ODD if odd else NORMAL
        if odd:
            self._quiet = time + self.cooldown
        return True


def watch(
    detector: Detector,
    source: "str | os.PathLike[str] | Stream",
    *,
    frames: Frames | None = None,
    stride: int | None = None,
    from_start: bool = False,
    in_a_row: int | None = None,
    lasting: float = 0,
    cooldown: float = 0,
    heartbeat: float = 60,
    keep: str | os.PathLike[str] | None = None,
    keep_bytes: int = keeping.MOST,
    note: Callable[[str], None] = lambda text: None,
    renew: Callable[[], Detector | None] = lambda: None,
    clock: Clock | None = None,
) -> Generator[Event, None, None]:
    """Judge what comes from `source`, until it ends or the `clock` is stopped: events as they happen.

    source: a folder that fills; a table in a file that grows; or "-", standard input, a named pipe, a device such as a
    serial port, or a stream with a descriptor: of raw `frames` (None: of the model's own size and colour) for a model
    of images, else of a table's lines. stride: of series, as `VAE.read` takes it. from_start: whether what is in a
    folder or a file already is judged too. in_a_row, lasting, cooldown: of the alarm, as `Alarm` says; in_a_row None:
    3, and 1 for a folder, whose files stand for themselves. heartbeat: seconds from one to the next; the first is at
    once, and the last at the end; 0 for these alone. keep: folder for the oddest of the odd ones, of at most
    `keep_bytes`, as `keep.Keep` says. note: is told what is to be said, such as what could not be read, which ends
    nothing. renew: is asked between observations whether there is another detector to go on with; one for other
    observations is not taken. clock: the time, and what stops the watch.

    Raises InputError and ArgumentError at once for a source that is not there or none for this model, and InputError
    later where the first lines of a pipe are no table for it.
    """
    if not heartbeat >= 0:
        raise ArgumentError("heartbeat out of range", heartbeat, "give seconds, or 0 for none")
    keeper = None if keep is None else _keep(Path(keep), keep_bytes, source)
    alarm = Alarm(IN_A_ROW if in_a_row is None else in_a_row, lasting, cooldown)
    watching = _Watching(detector, stride, note, alarm, clock)
    how = Following(detector.vae, watching.clock, watching.notes, watching.broken, from_start, stride)
    try:
        follower = follow(source, frames, how)
    except VaeError:
        if clock is None:
            watching.clock.close()
        raise
    if in_a_row is None and follower.single:
        alarm.in_a_row = 1
    return watching.events(follower, heartbeat, keeper, renew)


class _Watching:
    """A watch as it stands: the detector in force, the state, and what the heartbeats tell."""

    def __init__(
        self, detector: Detector, stride: int | None, note: Callable[[str], None], alarm: Alarm, given: Clock | None
    ) -> None:
        self._own, self.clock = given is None, given or Clock()  # one of its own is closed in the end
        self.detector, self.notes = detector, Notes(note, self.clock)
        self._stride, self._before = stride, 0  # how many were judged before this calibration was read
        self._drift = Drift(detector.calibration, every=apart(detector.vae, stride))
        self.alarm = alarm
        self._begun = self._changed = self.clock.monotonic()
        self._seen = self._odd = self._alarms = self._skipped = 0
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._highest = 0.0

    def events(
        self, follower: Follower, heartbeat: float, keep: keeping.Keep | None, renew: Callable[[], Detector | None]
    ) -> Generator[Event, None, None]:
        """What happens until the source ends or the clock is stopped."""
        every = heartbeat or float("inf")
        with closing(follower), closing(self.clock) if self._own else nullcontext():
            yield self._heartbeat()
            due, at_once = self._begun + every, 1
            while not (follower.ended or self.clock.stopped):
                if (other := renew()) is not None:
                    yield from self._go_on_with(other, follower, keep)
                follower.wait(min(due - self.clock.monotonic(), _LONGEST_WAIT))
                begun = self.clock.monotonic()
                came = follower.read(at_once)
                judged = [] if came is None else self._judged(came)
                took = self.clock.monotonic() - begun
                if took > 2 * _AT_ONCE:
                    at_once = max(1, at_once // 2)
                elif came is not None and took < _AT_ONCE and len(came.names) == at_once:
                    at_once = min(2 * at_once, self._most())  # one is judged at once, and much together
                for one, verdict in judged:
                    yield from self._told(one, verdict, keep)
                self.notes.catch_up()
                if self.clock.monotonic() >= due:
                    yield self._heartbeat()
                    due = self.clock.monotonic() + every
            self.notes.catch_up(ended=True)
            if follower.ended and not self._seen + self._skipped:
                noun = self.detector.vae.observation.noun
                self.notes.say(f"nothing came: the source ended before a whole {noun}; check what writes into it")
            yield self._heartbeat(last=True)

    def _most(self) -> int:
        """How many observations at a time there is memory for."""
        vae = self.detector.vae
        return max(1, min(_MOST_AT_ONCE, vae.memory // (8 * vae.observation.size)))

    def broken(self, error: InputError) -> None:
        """Count an input that cannot be read, and say so."""
        self._skipped += 1
        self.notes.often("broken", f"left out: {error.what}: {error.which}")

    def _go_on_with(self, other: Detector, follower: Follower, keep: keeping.Keep | None) -> Iterator[Event]:
        """Take another detector, if it is for what comes; what was read for the one before is judged by that first."""
        old, new = self.detector.vae, other.vae
        try:
            if new.observation.kind != old.observation.kind:
                which = f"a model of {new.observation.noun}s, not {old.observation.noun}s"
                raise BundleError("bundle for other observations", which, "start another watch for it")
            left = [] if new is old else follower.renew(new)
        except VaeError as error:
            self.notes.say(f"the calibration and bundle from before stay in force: {error}")
            return
        for came in left:
            for one, verdict in self._judged(came):
                yield from self._told(one, verdict, keep)
        self.detector = other
        self._drift, self._before = Drift(other.calibration, every=apart(new, self._stride)), self._seen
        if new is not old:
            old.close()
        self.notes.say("calibration and bundle are read anew")

    def _judged(self, came: Came) -> list[tuple[Came, Verdict]]:
        """The verdicts; where the model refuses one of several, one by one."""
        try:
            traits = self.detector.traits(came.x)  # [batch, traits]
        except InputError as error:
            if len(came.names) == 1:
                which = f"{came.names[0]} ({error.which})"
                self.broken(InputError(error.what, which, error.todo))
                return []
        else:
            verdict = self.detector.judged(traits)
            self._drift.add(verdict.score, traits)
            return [(came, verdict)]
        rows = range(len(came.names))
        return [each for i in rows for each in self._judged(Came([came.names[i]], came.x[i : i + 1], came.time))]

    def _told(self, came: Came, verdict: Verdict, keep: keeping.Keep | None) -> Iterator[Event]:
        """The events of some observations."""
        now = self.clock.now()
        figures = (verdict.score, verdict.p, verdict.odd, verdict.oddest, verdict.deviation)
        rows = zip(came.names, came.x, *(figure.tolist() for figure in figures), strict=True)
        for name, x, score, p, odd, oddest, deviation in rows:
            lasted = came.time - self._changed
            changed = self.alarm.see(odd, came.time)
            seen = Observed(now, name, self._seen, score, p, odd, oddest, deviation, self.alarm.state)
            self._seen += 1
            self._odd += odd
            self._note_latency(self.clock.monotonic() - came.time)
            yield seen
            if changed:
                self._changed = came.time
                self._alarms += self.alarm.state == ODD
                yield Changed(now, self.alarm.state, lasted, name, seen.number, score, p, oddest, deviation)
            if odd and keep is not None:
                self._keep(keep, x, seen)

    def _keep(self, keep: keeping.Keep, x: NDArray[Any], seen: Observed) -> None:
        try:
            keep.offer(x, seen, self.detector.vae.names)
            self.notes.over("keep", "odd ones are kept again")
        except VaeError as error:
            self.notes.once("keep", f"odd ones are not kept now: {error}")

    def _note_latency(self, seconds: float) -> None:
        self._latencies.append(seconds)
        self._highest = max(self._highest, seconds)

    def _heartbeat(self, last: bool = False) -> Heartbeat:
        """How it stands; latencies are counted anew from here."""
        median = statistics.median(self._latencies) if self._latencies else None
        moved = self._drift.moved
        beat = Heartbeat(
            self.clock.now(), self.alarm.state, self.clock.monotonic() - self._begun,
            self._seen, self._odd, self._alarms, self._skipped,
            self.detector.false_alarms,
            median, None if median is None else self._highest, _resident(), last,
            None if moved is None else str(moved), None if moved is None else self._before + moved.began,
            self._drift.evidence,
        )  # fmt: skip
        self._latencies.clear()
        self._highest = 0.0
        return beat


def _keep(folder: Path, most: int, source: "str | os.PathLike[str] | Stream") -> keeping.Keep:
    """What keeps odd ones. Raises ArgumentError where they would be watched themselves."""
    if isinstance(source, str | os.PathLike) and folder.resolve().is_relative_to(Path(source).resolve()):
        raise ArgumentError("folder for odd ones in the watched one", folder, "name one outside of it")
    return keeping.Keep(folder, most)


def _resident() -> int | None:
    """Bytes of this process that are in memory; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
