"""JSON to typed records: what fits becomes objects, and what does not is named by its path."""

import json
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import pytest

from vae_runtime import records


@dataclass(frozen=True)
class Inner:
    """A record inside another."""

    size: int
    name: str = "x"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size is negative")


@dataclass(frozen=True)
class Outer:
    """One field of every kind."""

    flag: bool
    number: float
    inner: Inner
    pair: tuple[int, float]
    several: tuple[Inner, ...] = ()
    named: dict[str, float] = field(default_factory=dict)
    maybe: int | None = None
    either: float | str = 0.0
    anything: Any = None


WHOLE = {
    "flag": True, "number": 1.5, "inner": {"size": 1}, "pair": [1, 2], "several": [{"size": 2, "name": "b"}],
    "named": {"a": 1}, "maybe": 3, "either": "words", "anything": [{"k": None}], "unknown": [1],
}  # fmt: skip


def test_every_kind_of_field_is_read():
    """Objects, numbers, lists and what is left out; integers are numbers, and what is not known is left aside."""
    expected = Outer(True, 1.5, Inner(1), (1, 2.0), (Inner(2, "b"),), {"a": 1.0}, 3, "words", [{"k": None}])
    read = records.parse(Outer, json.loads(json.dumps(WHOLE)))
    assert read == expected
    assert (type(read.pair[1]), type(read.named["a"])) == (float, float)
    short = {key: WHOLE[key] for key in ("flag", "number", "inner", "pair")}
    assert records.parse(Outer, short) == Outer(True, 1.5, Inner(1), (1, 2.0))
    assert records.parse(Outer, {**short, "maybe": None}).maybe is None
    with pytest.raises(FrozenInstanceError):
        read.flag = False


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"flag": 1}, "flag"), ({"flag": None}, "flag"), ({"number": "1"}, "number"), ({"number": True}, "number"),
        ({"number": float("nan")}, "number"), ({"number": float("inf")}, "number"), ({"number": 10**400}, "number"),
        ({"inner": {}}, "inner.size"), ({"inner": []}, "inner"), ({"inner": {"size": 1.0}}, "inner.size"),
        ({"inner": {"size": -1}}, "inner: size is negative"), ({"inner": {"size": 1, "name": 2}}, "inner.name"),
        ({"pair": [1]}, "pair"), ({"pair": [1, 2, 3]}, "pair"), ({"pair": ["1", 2]}, r"pair\[0\]"),
        ({"several": [{"size": 1}, {}]}, r"several\[1\]\.size"), ({"several": {}}, "several"),
        ({"named": {"a": "b"}}, r"named\.a"), ({"named": []}, "named"), ({"maybe": "3"}, "maybe"),
        ({"maybe": True}, "maybe"), ({"either": None}, "either"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_by_its_path(change: dict[str, Any], path: str):
    """The one field that is of another type, missing, not finite or refused by its record is in the error."""
    with pytest.raises(ValueError, match=rf"^{path}(?!\w)"):
        records.parse(Outer, {**WHOLE, **change})


@pytest.mark.parametrize("value", [None, [], 3, "text", True])
def test_what_is_no_object_is_no_record(value: Any):
    """Anything but an object is refused."""
    with pytest.raises(ValueError, match="not an object"):
        records.parse(Inner, value)
    with pytest.raises(ValueError, match=r"^there is .* not an object"):
        records.parse(Inner, value, "there")


@dataclass(frozen=True)
class Open:
    """A record of one known field, and of others."""

    command: str | None = None
    others: dict[str, str | int] = field(default_factory=dict, metadata=records.OTHERS)


def test_what_no_field_is_called_goes_where_others_go():
    """By name and checked too; a field's own name is none of them."""
    assert records.parse(Open, {"command": "c", "a": 1, "b": "x"}) == Open("c", {"a": 1, "b": "x"})
    assert records.parse(Open, {}) == Open()
    with pytest.raises(ValueError, match=r"a\.b is 1\.5"):
        records.parse(Open, {"b": 1.5}, "a")
