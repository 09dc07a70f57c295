"""Many comparisons in a line: how many passed, and the worst of them by its share of what is allowed."""

import math
from collections.abc import Sequence
from typing import Protocol


class Outcome(Protocol):
    """One comparison: what was compared, how far it is off and may be, and, if it was not possible, why."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def max_abs(self) -> float:
        """How far it is off."""
        ...

    @property
    def tolerance(self) -> float:
        """How far it may be."""
        ...

    @property
    def passed(self) -> bool:
        """Whether it is within."""
        ...

    @property
    def problem(self) -> str:
        """Why there are no figures, if so."""
        ...


def share(row: Outcome) -> float:
    """How far it is off as a fraction of its tolerance; infinite where that is no number."""
    if row.max_abs == 0:
        return 0.0
    fraction = row.max_abs / row.tolerance if row.tolerance else math.inf
    return math.inf if math.isnan(fraction) else fraction


def of_passed(rows: Sequence[Outcome]) -> str:
    """The line where all have passed."""
    worst = max(rows, key=share)
    return f"✓ {len(rows)} comparisons passed; the worst is {worst.name}, at {share(worst):.0%} of its tolerance"


def of_failed(rows: Sequence[Outcome]) -> str:
    """Which failed, for an error: counted, the worst by name; empty where none did."""
    failed = [row for row in rows if not row.passed]
    if not failed:
        return ""
    worst = max(failed, key=share)
    off = worst.problem or f"{worst.max_abs:.1e} off, {worst.tolerance:.1e} is allowed"
    others = f"{len(failed)} of {len(rows)} rows, the worst " if len(failed) > 1 else ""
    return f"{others}{worst.name} ({off})"
