"""The time, and waiting: for a while, until something can be read, or until the watch is to stop."""

import os
import select
import sys
import time

from vae_runtime.errors import EnvironmentUnfit


class Clock:
    """What tells a watch the time and waits for it; a clock of one's own makes a test of hours short."""

    def __init__(self) -> None:
        """Raises EnvironmentUnfit where the system does not wait for pipes."""
        self._read, self._write = os.pipe()
        self.stopped = False
        if sys.platform == "win32":
            raise EnvironmentUnfit("a watch needs a POSIX system", sys.platform, "use Linux, or macOS")
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment, by a clock that is never set."""
        return time.monotonic()

    def wait(self, seconds: float, descriptor: int | None = None) -> bool:
        """Wait some `seconds`, less where `descriptor` can be read or `wake` or `stop` is called: whether it can be."""
        watched = [self._read] if descriptor is None else [self._read, descriptor]
        ready, _, _ = select.select(watched, [], [], 0 if self.stopped else max(0.0, seconds))
        if self._read in ready:
            os.read(self._read, 1024)
        return descriptor in ready

    def wake(self) -> None:
        """End the waiting: there is something to do. May be called from a signal's handler, and from any thread."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:  # a thousand calls wait to be heard
            return

    def stop(self) -> None:
        """End the watch, as soon as what it has read is judged. May be called as `wake` may."""
        self.stopped = True
        self.wake()

    def close(self) -> None:
        """Give back what waiting needs."""
        os.close(self._read)
        os.close(self._write)
