"""What a service takes on: how much a request may hold, how long it may compute, and how many do so at a time."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vae_runtime.draws import chunks
from vae_runtime.errors import ResourceError
from vae_runtime.threads import available_cores

T = TypeVar("T")
A = TypeVar("A", bound=np.generic)
_MOST_CLIENTS = 4096  # whose rates are known; of more, those that were silent longest are forgotten


@dataclass(frozen=True)
class Limits:
    """What a service takes on, for all clients but where it says for one.

    bytes: of a body; json: bytes of one that is JSON, and unpacked: of a gzipped file or of an .npz. values: numbers in
    the observations of a request or of an answer. observations, draws: of a request. pixels: of all pictures in a
    request, before they are resized. seconds: that a request may compute, once it has begun. at_once: requests that
    compute at a time, by default as many as there are cores. waiting: requests that wait for that, each for `patience`
    seconds at most. rate: requests of one client in a second, over some time, and burst: at once.
    """

    bytes: int = 8 << 20
    json: int = 2 << 20
    values: int = 4 << 20
    observations: int = 256
    draws: int = 1000
    pixels: int = 25_000_000
    unpacked: int = 16 << 20
    seconds: float = 20.0
    at_once: int = field(default_factory=available_cores)
    waiting: int = 16
    patience: float = 2.0
    rate: float = 30.0
    burst: int = 60


class Refused(ResourceError):
    """A request that is too much: the HTTP status that says so, and in how many seconds to come again, or 0."""

    def __init__(self, what: str, which: object, todo: str, status: int, after: int) -> None:
        super().__init__(what, which, todo)
        self.status, self.after = status, after


class Deadline:
    """When a request must have ended."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._latest = seconds, time.monotonic() + seconds

    def within(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, as long as there is time. Raises Refused where there is none left."""
        for batch in batches:
            self.check()
            yield batch

    def parts(self, rows: NDArray[A], size: int) -> Iterator[NDArray[A]]:
        """The rows, so many at a time, as long as there is time. Raises Refused where there is none left."""
        return self.within(rows[i] for i in chunks(len(rows), size))

    def check(self) -> None:
        """Raise Refused where there is no time left."""
        if time.monotonic() > self._latest:
            todo = "send less at a time, or ask for fewer draws"
            raise Refused("request takes too long", f"over {self._seconds:g} seconds", todo, 503, 0)


@dataclass(eq=False)
class _Ticket:
    """A request that waits: told, and whether it may go in."""

    told: threading.Event = field(default_factory=threading.Event)
    admitted: bool = False


class Gate:
    """Lets requests in: not too many of one client, only as many at a time as compute side by side, and in fair turns.

    Clients that wait take turns, each with its oldest request. Where the places to wait are all taken, a client with
    few requests there gets that of the one with most. Whoever sends many at a time may compute on all cores as long as
    a request may, and has no turn before the others after that.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._inside = 0
        self._waiting: OrderedDict[str, deque[_Ticket]] = OrderedDict()  # of each client, in the order of their turns
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # of each client: how many more, and when

    @contextmanager
    def enter(self, client: str) -> Iterator[Deadline]:
        """A request's time to compute. Raises Refused, with 429 or 503, where it has none."""
        self._count(client)
        self._wait(client)
        try:
            yield Deadline(self.limits.seconds)
        finally:
            self._leave()

    def _count(self, client: str) -> None:
        """Take one of what a client may ask for (a token bucket: `burst` deep, filled at `rate`)."""
        limits, now = self.limits, time.monotonic()
        with self._lock:
            left, then = self._left.pop(client, (float(limits.burst), now))
            left = min(limits.burst, left + (now - then) * limits.rate)
            self._left[client] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > _MOST_CLIENTS:
                self._left.popitem(last=False)
        if left < 1:
            todo = "ask again in a second"
            raise Refused("too many requests", f"over {limits.rate:g} in a second", todo, 429, 1)

    def _wait(self, client: str) -> None:
        """Go in, at once or in turn. Raises Refused where that takes too long, or too many wait."""
        busy = Refused("service busy", f"{self.limits.at_once} requests at a time", "ask again in a second", 503, 1)
        with self._lock:
            if self._inside < self.limits.at_once:
                self._inside += 1
                return
            own = self._waiting.get(client, ())
            if sum(map(len, self._waiting.values())) >= self.limits.waiting:
                greediest = max(self._waiting, key=lambda each: len(self._waiting[each]), default=client)
                if len(own) + 1 >= len(self._waiting.get(greediest, ())):
                    raise busy
                self._forget(greediest, self._waiting[greediest][-1])
            ticket = _Ticket()
            self._waiting.setdefault(client, deque()).append(ticket)
        ticket.told.wait(self.limits.patience)
        with self._lock:
            if ticket.admitted:
                return
            self._forget(client, ticket)
        raise busy

    def _forget(self, client: str, ticket: _Ticket) -> None:
        """Take a ticket out of those that wait, if it is still there; it may not go in."""
        tickets = self._waiting.get(client, deque())
        if ticket in tickets:
            tickets.remove(ticket)
            ticket.told.set()
        if not tickets:
            self._waiting.pop(client, None)

    def _leave(self) -> None:
        """Give the place to the client whose turn it is, or to whoever comes."""
        with self._lock:
            if not self._waiting:
                self._inside -= 1
                return
            client, tickets = self._waiting.popitem(last=False)
            ticket = tickets.popleft()
            if tickets:
                self._waiting[client] = tickets  # at the end of the turns
            ticket.admitted = True
            ticket.told.set()
