"""Who hears what a training says while it runs: a command's reader, Python's warnings, or nobody."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from vae_train.state import Metrics


def silent(text: str) -> None:
    """Take what is to be said, and say nothing."""


def _ignored(row: Metrics) -> None:
    """Take the metrics of an epoch, and do nothing."""


@dataclass(frozen=True)
class Listener:
    """What is called with each line that a training has to say, and with its metrics; by default nobody hears.

    say: how it goes on. note: what was found in the data, chosen or left out. warn: what looks wrong. result: its
    figures, a line for each epoch that was measured and for the whole. epoch: the metrics of each such epoch. bar:
    whether a progress bar is shown, where there is a terminal or a notebook to show it.
    """

    say: Callable[[str], None] = silent
    note: Callable[[str], None] = silent
    warn: Callable[[str], None] = silent
    result: Callable[[str], None] = silent
    epoch: Callable[[Metrics], None] = _ignored
    bar: bool = False


SILENT = Listener()


def bar_hidden(bar: bool = True) -> bool | None:
    """What tqdm takes for `disable`: None hides a bar where there is no terminal, in which a notebook is none."""
    if not bar:
        return True
    return False if "ipykernel" in sys.modules else None
