"""Run the examples as a person does, each a process of its own, and see to it that they leave nothing running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Program:
    """A running example in a process group of its own, as a terminal's shell starts it."""

    process: subprocess.Popen

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


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the examples."""
    return EXAMPLES


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Program]]:
    """Start an example, `start("camera.py", "examples/digits")`, in the current folder; what still runs is killed."""
    started: list[Program] = []

    def call(*words: object) -> Program:
        command = [sys.executable, EXAMPLES / words[0], *map(str, words[1:])]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        started.append(Program(process))
        return started[-1]

    yield call
    for program in started:
        if program.running():
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.communicate()
