"""SIGINT, SIGTERM and SIGHUP, kept until a training has finished its step and saved it."""

import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vae_runtime.command import Terminated, ending
from vae_runtime.errors import VaeError


def go_on(folder: Path, options: Sequence[str]) -> str:
    """What to do with a run that has not ended, with the options that name where it is at work."""
    return f"go on with: {shlex.join(['vae-train', '--resume', str(folder), *options])}"


class Stopped(VaeError):
    """A training was stopped by a signal, with its state saved; the exit code is 128 + the signal's number."""

    def __init__(self, number: int, folder: Path, options: Sequence[str]) -> None:
        super().__init__("training stopped, its state saved", folder, go_on(folder, options))
        self.number, self.folder, self.options = number, folder, options
        self.exit_code = 128 + number


@contextmanager
def told(folder: Path, options: Sequence[str]) -> Iterator[None]:
    """Let what SIGINT, SIGTERM or SIGHUP ends name the run folder `folder`, which has all that it takes to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, folder, options) from None
    except Terminated as ended:
        raise Stopped(ended.number, folder, options) from None


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list instead of stopping; a second one stops at once.

    A SIGHUP that is ignored, as by nohup, stays so. Only the main thread receives signals: elsewhere the list stays
    empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ending())}

    def keep(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for number in before:
            signal.signal(number, keep)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
