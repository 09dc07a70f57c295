"""Programs that tests start as a person does, and that must leave nothing running."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Program:
    """A running program in a process group of its own, as a terminal's shell starts it."""

    process: subprocess.Popen[bytes]

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, stdout and stderr. Nothing of its process group may be left."""
        out, err = self.process.communicate(timeout=600)
        latest = time.monotonic() + 600
        while left := self.running():
            assert time.monotonic() < latest, left
            time.sleep(0.05)
        return self.process.returncode, out.decode(), err.decode()

    def interrupt(self) -> tuple[int, str, str]:
        """Press Ctrl-C, which the whole process group hears, and wait for the end."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()

    def running(self) -> list[psutil.Process]:
        """The processes of its group that have not ended."""
        found = []
        for process in psutil.process_iter(["status"]):
            try:
                if os.getpgid(process.pid) == self.process.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except ProcessLookupError:
                pass
        return found


Start = Callable[..., Program]


@contextmanager
def starting(*first: object) -> Iterator[Start]:
    """Start programs whose command begins with `first`, in the current folder; what still runs at the end is killed."""
    started: list[Program] = []

    def call(*words: object) -> Program:
        pipe = subprocess.PIPE
        command = list(map(str, [*first, *words]))
        started.append(Program(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)))
        return started[-1]

    yield call
    for program in started:
        if program.running():
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.communicate()
