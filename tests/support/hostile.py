"""A bundle to damage, and what is asked of the errors that follow."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_runtime import VaeError, bundle
from vae_runtime.bundle import FILES
from vae_runtime.verify import verify

ALL = (*FILES, "manifest.json")
ZEROS = "0" * 64
LONGEST = 2500  # characters of an error's text, beside the path in it


class Bench:
    """A copy of the tiny bundle, its files' bytes, and its manifest, not yet sealed, its long lists cut short."""

    def __init__(self, path: Path) -> None:  # no dataclass: hypothesis would print all of it
        self.path = path
        self.files = {name: (path / name).read_bytes() for name in ALL}
        self.manifest: dict[str, Any] = {**json.loads(self.files["manifest.json"]), "sha256": ZEROS}
        parity, quantiles = self.manifest["parity"], self.manifest["evaluation"]["quantiles"]
        parity["rows"] = [row for row in parity["rows"] if row["tensor"] == "ELBO"][:2]
        quantiles.update({name: values[:2] for name, values in quantiles.items()})

    @contextmanager
    def holding(self, changes: Mapping[str, bytes | None]) -> Iterator[Path]:
        """The folder with some files changed or, for None, missing; whole again afterwards."""
        try:
            for name, data in changes.items():
                if data is None:
                    (self.path / name).unlink()
                else:
                    (self.path / name).write_bytes(data)
            yield self.path
        finally:
            for name in changes:
                (self.path / name).write_bytes(self.files[name])

    def sealed(self, old: str, new: str) -> bytes:
        """The manifest's text with one thing replaced, and its own sha256 valid."""
        text = json.dumps(self.manifest, indent=1)
        assert text.count(old) == 1
        return seal(text.replace(old, new).encode())


def seal(raw: bytes) -> bytes:
    """A manifest's text with its sha256 in the place of the first 64 zeros."""
    return raw.replace(ZEROS.encode(), hashlib.sha256(raw).hexdigest().encode(), 1)


def one_line(error: VaeError) -> str:
    """The text of the error, which is one line of printable characters, and not endless."""
    assert str(error).isprintable(), str(error)[:200]
    assert len(str(error)) < LONGEST
    return str(error)


def verified(read: bundle.Bundle, raw: bytes) -> None:
    """`verify` with these golden vectors gives rows, or raises VaeError, without a warning."""
    try:
        assert verify(read._replace(files={**read.files, "golden.npz": raw}))
    except VaeError as error:
        one_line(error)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON tree."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    below = [place for _, inner in items if isinstance(inner, dict | list) for place in places(inner)]
    return [*((value, key) for key, _ in items), *below]


def swapped(data: bytes, a: int, b: int, size: int) -> bytes:
    """The data with two ranges of `size` bytes exchanged, or as they are where the ranges overlap."""
    a, b = sorted((a, b))
    if a + size > b or b + size > len(data):
        return data
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


DAMAGES: dict[str, Callable[[bytes, int, int, int], bytes]] = {
    "bit": lambda data, a, b, byte: data[:a] + bytes([data[a] ^ 1 << byte % 8]) + data[a + 1 :],
    "byte": lambda data, a, b, byte: data[:a] + bytes([byte]) + data[a + 1 :],
    "truncate": lambda data, a, b, byte: data[:a],
    "append": lambda data, a, b, byte: data + bytes([byte]) * (1 + b % 5),
    "duplicate": lambda data, a, b, byte: data[:a] + data[a : a + 1 + byte] * 2 + data[a + 1 + byte :],
    "remove": lambda data, a, b, byte: data[:a] + data[a + 1 + byte :],
    "exchange": lambda data, a, b, byte: swapped(data, a, b, 1 + byte),
}
