"""When a watch's state changes: after several odd observations in a row, and not again too soon."""

from vae_runtime.errors import ArgumentError
from vae_runtime.watch_events import NORMAL, ODD


class Alarm:
    """The state of a watch, "normal" at first.

    in_a_row: how many observations, all odd, make it odd, and all normal, normal again. lasting: for how many seconds
    these must have gone on. cooldown: seconds from one change to "odd" to the next, at the least; what is odd still
    then makes it odd then. Raises ArgumentError where one is negative, or `in_a_row` is 0.
    """

    def __init__(self, in_a_row: int = 1, lasting: float = 0, cooldown: float = 0) -> None:
        for name, value, least in (("in_a_row", in_a_row, 1), ("lasting", lasting, 0), ("cooldown", cooldown, 0)):
            if not value >= least:
                raise ArgumentError(f"{name} out of range", value, f"give {least} or more")
        self.in_a_row, self.lasting, self.cooldown = in_a_row, lasting, cooldown
        self.state = NORMAL
        self._run, self._since = 0, 0.0  # in a row for the other state, and since when
        self._quiet = float("-inf")  # until when there is no second alarm

    def see(self, odd: bool, time: float) -> bool:
        """Whether the state changes with this observation; time: when it came, seconds of any clock."""
        if odd == (self.state == ODD):
            self._run = 0
            return False
        if not self._run:
            self._since = time
        self._run += 1
        settled = self._run >= self.in_a_row and time - self._since >= self.lasting
        if not settled or (odd and time < self._quiet):
            return False
        self._run, self.state = 0, ODD if odd else NORMAL
        if odd:
            self._quiet = time + self.cooldown
        return True
