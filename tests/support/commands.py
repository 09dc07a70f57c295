"""What a command left behind."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """Exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]
