"""What a service takes on: how much a request may hold, how long it may compute, and how many do so at a time."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from vae_runtime.errors import ResourceError
from vae_runtime.threads import available_cores

T = TypeVar("T")
_MOST_CLIENTS = 4096  # whose rates are known; of more, those that were silent longest are forgotten


@dataclass(frozen=True)
class Limits:
    """What a service takes on, for all clients but where it says for one.

    bytes: of a body, and values: of the observations in a request or an answer, 4 bytes each. pixels: of all pictures
    in a request, before they are resized. unpacked: bytes of a gzipped file or of an .npz. seconds: that a request may
    compute, once it has begun. at_once: requests that compute at a time, by default as many as there are cores.
    waiting: requests that wait for that, each for `patience` seconds at most. rate: requests of one client in a second,
    over some time, and burst: at once.
    """

    bytes: int = 8 << 20
    values: int = 4 << 20
    observations: int = 256
    draws: int = 1000
    pixels: int = 25_000_000
    unpacked: int = 64 << 20
    seconds: float = 20.0
    at_once: int = field(default_factory=available_cores)
    waiting: int = 16
    patience: float = 2.0
    rate: float = 30.0
    burst: int = 60


class Refused(ResourceError):
    """A request that comes at a bad time: the HTTP status that says so, and in how many seconds to come again."""

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
            if time.monotonic() > self._latest:
                todo = "send less at a time, or ask for fewer draws"
                raise Refused("request takes too long", f"over {self._seconds:g} seconds", todo, 503, 5)
            yield batch


class Gate:
    """Lets requests in: not too many of one client, and only as many at a time as compute side by side."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._free = threading.Semaphore(limits.at_once)
        self._lock = threading.Lock()
        self._waiting = 0
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # of each client: how many more, and when

    @contextmanager
    def enter(self, client: str) -> Iterator[Deadline]:
        """A request's time to compute. Raises Refused, with 429 or 503, where it has none."""
        self._count(client)
        self._wait()
        try:
            yield Deadline(self.limits.seconds)
        finally:
            self._free.release()

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

    def _wait(self) -> None:
        if self._free.acquire(blocking=False):
            return
        busy = Refused("service busy", f"{self.limits.at_once} requests at a time", "ask again in a second", 503, 1)
        with self._lock:
            if self._waiting >= self.limits.waiting:
                raise busy
            self._waiting += 1
        try:
            if not self._free.acquire(timeout=self.limits.patience):
                raise busy
        finally:
            with self._lock:
                self._waiting -= 1
