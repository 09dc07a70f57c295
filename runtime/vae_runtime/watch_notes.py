"""What a watch says of what goes wrong: a line at the first time, and how often since, once a minute at most."""

from collections.abc import Callable
from dataclasses import dataclass

from vae_runtime.watch_clock import Clock

_EVERY = 60.0  # seconds


@dataclass
class _Held:
    """Of one kind: when something was said, how many there were since, and the last one."""

    said: float
    count: int = 0
    last: str = ""


class Notes:
    """Says what it is told to `say`, a line each, and of what comes again and again few."""

    def __init__(self, say: Callable[[str], None], clock: Clock) -> None:
        self.say, self._clock = say, clock
        self._once: set[str] = set()
        self._often: dict[str, _Held] = {}

    def once(self, kind: str, text: str) -> None:
        """Say it, unless something of its kind was said before and not taken back since."""
        if kind not in self._once:
            self._once.add(kind)
            self.say(text)

    def over(self, kind: str, text: str) -> None:
        """Say, where something of its kind was said `once`, that this is over."""
        if kind in self._once:
            self._once.remove(kind)
            self.say(text)

    def often(self, kind: str, text: str) -> None:
        """Say the first of its kind at once, and later ones together."""
        held = self._often.get(kind)
        if held is None:
            self._often[kind] = _Held(self._clock.monotonic())
            self.say(text)
        else:
            held.count, held.last = held.count + 1, text

    def catch_up(self, ended: bool = False) -> None:
        """Say how many there were of each kind since; to be called now and then, and at the end."""
        now = self._clock.monotonic()
        for kind, held in list(self._often.items()):
            if not ended and now - held.said < _EVERY:
                continue
            if held.count:
                self.say(held.last if held.count == 1 else f"{held.count:,} more such, the last: {held.last}")
                self._often[kind] = _Held(now)
            else:
                del self._often[kind]
