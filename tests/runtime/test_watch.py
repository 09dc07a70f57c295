"""watch: what comes is judged as it comes, alarms do not flicker, and nothing that fails ends it."""

import json

import pytest

from vae_runtime.errors import ArgumentError
from vae_runtime.watch_alarm import Alarm
from vae_runtime.watch_events import Changed, Heartbeat, Observed, iso


def states(alarm: Alarm, verdicts: str, seconds: float = 1) -> str:
    """The state after each of these verdicts, `o` for odd and `.` for normal, so many seconds apart."""
    letters = []
    for i, verdict in enumerate(verdicts):
        alarm.see(verdict == "o", i * seconds)
        letters.append("O" if alarm.state == "odd" else ".")
    return "".join(letters)


@pytest.mark.parametrize(
    ("alarm", "verdicts", "expected"),
    [
        (Alarm(), "..o.oo.", "..O.OO."),
        (Alarm(3), "oo.ooo..o...o", ".....OOOOOO.."),
        (Alarm(lasting=3), "oo.ooooo.....", "......OOOOO.."),
        (Alarm(cooldown=5), "o.o.o.o.", "O.....O."),
        (Alarm(cooldown=5), "o.oooo.", "O....O."),
        (Alarm(2, cooldown=4), "oo..oooo", ".OO..OOO"),
    ],
)
def test_the_state_changes_after_several_in_a_row_and_not_too_soon(alarm: Alarm, verdicts: str, expected: str) -> None:
    """Both ways; what is odd still when the cooldown ends raises the alarm then."""
    assert states(alarm, verdicts) == expected


@pytest.mark.parametrize("settings", [{"in_a_row": 0}, {"lasting": -1}, {"cooldown": -1}, {"cooldown": float("nan")}])
def test_an_alarm_of_no_sense_is_refused(settings: dict[str, float]) -> None:
    """With the name of what is wrong."""
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        Alarm(**settings)  # type: ignore[arg-type]


def test_events_are_lines_of_json() -> None:
    """Each says what it is, and its time in UTC."""
    seen = Observed(1.5, "a.png", 7, 12.25, 0.01, True, "KL", 4.5, "odd")
    assert json.loads(seen.json()) == {
        "event": "observation", "time": "1970-01-01T00:00:01.500Z", "name": "a.png", "number": 7, "score": 12.25,
        "p": 0.01, "odd": True, "oddest": "KL", "deviation": 4.5, "state": "odd",
    }  # fmt: skip
    changed = json.loads(Changed(0, "odd", 60.0, "a.png", 7, 12.25, 0.01, "KL", 4.5).json())
    assert (changed["event"], changed["state"], changed["lasted"]) == ("state", "odd", 60.0)
    beat = json.loads(Heartbeat(0, "normal", 60.0, 100, 1, 0, 2, 0.01, 0.002, 0.01, None).json())
    assert (beat["event"], beat["skipped"], beat["memory"], beat["last"]) == ("heartbeat", 2, None, False)
    assert "\n" not in seen.json()
    assert iso(1_700_000_000) == "2023-11-14T22:13:20.000Z"
