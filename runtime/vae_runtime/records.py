"""From JSON to typed, frozen dataclasses: every value is checked against the type that its field declares."""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
OTHERS = {"others": True}  # metadata of a field, a dict, which takes what no other field is called

_hints = cache(get_type_hints)
_WORDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "an integer", float: "a number"}


def parse(cls: type[T], value: Any, where: str = "") -> T:
    """The dataclass `cls` from a JSON object: its fields by name; what else it holds is left aside.

    Fields may be of int, float, str, bool, Any, other dataclasses, tuple[X, ...], tuple[X, Y], dict[str, X] and
    X | None. A field that is missing takes its default; one with the metadata OTHERS takes what no field is called.
    Raises ValueError, naming the field by its path, where one is missing or of another type, and for numbers that are
    not finite.
    """
    return cast(T, _record(cls, value, where))


def _record(cls: Any, value: Any, where: str) -> Any:
    given = _expect(dict, value, where)
    found, hints = {}, _hints(cls)
    for field in fields(cls):
        path = f"{where}.{field.name}" if where else field.name
        if field.metadata == OTHERS:
            names = {other.name for other in fields(cls) if other is not field}
            others = {name: item for name, item in given.items() if name not in names}
            found[field.name] = _value(hints[field.name], others, where)
        elif field.name in given:
            found[field.name] = _value(hints[field.name], given[field.name], path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{path} is missing")
    try:
        return cls(**found)
    except ValueError as error:  # what the dataclass itself refuses
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _value(declared: Any, value: Any, where: str) -> Any:
    """A JSON value as the type that is declared for it."""
    origin, arguments = get_origin(declared), get_args(declared)
    if declared is Any:
        return value
    if is_dataclass(declared):
        return _record(declared, value, where)
    if origin in (Union, types.UnionType):
        return _either(arguments, value, where)
    if origin is tuple:
        items = _expect(list, value, where)
        kinds = [arguments[0]] * len(items) if arguments[1:] == (...,) else list(arguments)
        if len(kinds) != len(items):
            raise ValueError(f"{where} has {len(items)} values, not {len(kinds)}")
        pairs = zip(kinds, items, strict=True)
        return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))
    if origin in (dict, Mapping):
        items = _expect(dict, value, where)
        return {name: _value(arguments[1], item, f"{where}.{name}") for name, item in items.items()}
    return _expect(declared, value, where)


def _either(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """None where that is allowed, else the first of the kinds that the value is."""
    if value is None and types.NoneType in kinds:
        return None
    reasons = []
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return _value(kind, value, where)
            except ValueError as error:
                reasons.append(str(error))
    raise ValueError(reasons[0])


def _expect(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)  # JSON does not tell 1 from 1.0
    if type(value) is not kind:
        raise ValueError(f"{where or 'it'} is {repr(value)[:40]}, not {_WORDS[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    return value
