"""Run the examples as a person does, each a process of its own, and see to it that they leave nothing running."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.programs import Start, starting

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the examples."""
    return EXAMPLES


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start an example, `start("camera.py", "examples/digits")`, in the current folder; what still runs is killed."""
    with starting(sys.executable) as program:
        yield lambda name, *words: program(EXAMPLES / name, *words)
