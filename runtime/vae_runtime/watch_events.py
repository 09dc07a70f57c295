"""The events of a watch, each of which is one JSON line: an observation, a change of state, a heartbeat."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

NORMAL, ODD = "normal", "odd"  # the states of a watch


@dataclass(frozen=True, slots=True)
class Observed:
    """An observation, judged.

    time: when it was judged, seconds since 1970. name: its file, or its place in a table or a stream. number: how many
    this watch judged before it. score, p, odd, oddest, deviation: as in `Verdict`. state: the watch's, "normal" or
    "odd", with this observation.
    """

    time: float
    name: str
    number: int
    score: float
    p: float
    odd: bool
    oddest: str
    deviation: float
    state: str

    def json(self) -> str:
        """One line of JSON, of the event "observation"."""
        return _line("observation", self.time, {name: getattr(self, name) for name in self.__slots__[1:]})


@dataclass(frozen=True, slots=True)
class Changed:
    """The state has changed: to "odd", which is an alarm, or back to "normal".

    time: seconds since 1970. state: the new one. lasted: seconds in the state before. name, number, score, p,
    oddest, deviation: of the observation with which it changed.
    """

    time: float
    state: str
    lasted: float
    name: str
    number: int
    score: float
    p: float
    oddest: str
    deviation: float

    def json(self) -> str:
        """One line of JSON, of the event "state"."""
        figures = {name: getattr(self, name) for name in self.__slots__[1:]}
        return _line("state", self.time, {**figures, "lasted": round(self.lasted, 3)})


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The watch is alive; with the first one it has begun, and with the `last` one it has ended.

    time: seconds since 1970. state: "normal" or "odd". uptime: seconds since the watch began. seen, odd, alarms,
    skipped: since then, observations that were judged, those that were odd, changes to "odd", and inputs that could
    not be read. false_alarms: the share of normal observations that are called odd, as calibrated. latency_median,
    latency_highest: seconds from an observation's coming to its event, since the last heartbeat; the median is of the
    last 1,000; None where there were none. memory: resident bytes of this process; None where the system does not tell.
    drift: what has moved, in words, None where no drift was noticed since the calibration was read; drift_began: about
    with which number. drift_evidence: log of the test's e-value, nats; one is noticed at 6.9 (`Drift`).
    """

    time: float
    state: str
    uptime: float
    seen: int
    odd: int
    alarms: int
    skipped: int
    false_alarms: float
    latency_median: float | None
    latency_highest: float | None
    memory: int | None
    last: bool = False
    drift: str | None = None
    drift_began: int | None = None
    drift_evidence: float | None = None

    def json(self) -> str:
        """One line of JSON, of the event "heartbeat"."""
        figures = asdict(self)
        seconds = {name: _rounded(figures[name]) for name in ("uptime", "latency_median", "latency_highest")}
        return _line("heartbeat", figures.pop("time"), {**figures, **seconds})


Event = Observed | Changed | Heartbeat


def _line(event: str, time: float, figures: dict[str, Any]) -> str:
    return json.dumps({"event": event, "time": iso(time), **figures})


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def iso(time: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
