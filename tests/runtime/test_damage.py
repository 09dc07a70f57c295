"""Bundles damaged at random: hashes notice it; under valid hashes what is read is refused or of use."""

import codecs
import copy
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.hostile import ALL, DAMAGES, ZEROS, Bench, one_line, places, seal, verified
from vae_runtime import VAE, BundleError, VaeError, bundle


def examples(number: int) -> settings:
    """So many examples, the same ones in every run."""
    return settings(max_examples=number, derandomize=True, deadline=None, database=None)


# Damage: whatever happens to the files' bytes, hashes notice it.


def damage_is_refused_by_name(bench: Bench, kind: str, name: str, seed: int):
    """Changes of a file's bytes, deletions and swaps of two files raise BundleError that names the file."""
    good, generator = bench.files[name], random.Random(seed)  # the same chance for every byte of the file
    bad: dict[str, bytes | None] = {name: None}
    if kind == "files":
        other = generator.choice(ALL)
        bad = {name: bench.files[other], other: good}
    elif kind != "delete":
        a, b = (generator.randrange(len(good)) for _ in range(2))
        bad = {name: DAMAGES[kind](good, a, b, generator.randrange(256))}
    assume(any(changed != bench.files[file] for file, changed in bad.items()))
    with bench.holding(bad) as path, pytest.raises(BundleError) as caught:
        bundle.read(path)
    said = one_line(caught.value)
    assert any(str(path / file) in said or f"{path} (no {file} in it)" in said for file in bad)


any_damage = given(
    kind=st.sampled_from([*DAMAGES] * 10 + ["files", "delete"]),
    name=st.sampled_from(ALL),
    seed=st.integers(0, 2**64 - 1),
)


@examples(200)
@any_damage
def test_damage_is_refused_by_name(bench: Bench, kind: str, name: str, seed: int):
    """Two hundred changes of a file's bytes, deletions and swaps of two files."""
    damage_is_refused_by_name(bench, kind, name, seed)


@pytest.mark.slow
@examples(10_000)
@any_damage
def test_ten_thousand_damages_are_refused_by_name(bench: Bench, kind: str, name: str, seed: int):
    """As many more."""
    damage_is_refused_by_name(bench, kind, name, seed)


def test_the_bench_is_whole_again(bench: Bench):
    """The files that the examples damaged and restored load, so that what they saw was their own damage."""
    assert {name: (bench.path / name).read_bytes() for name in ALL} == bench.files
    VAE.load(bench.path).sample(1)


# Manifests: valid hashes over anything at all.


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6),
    st.sampled_from([
        0, -1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), float("-inf"), "", ZEROS, "encoder.onnx",
        "../../../../etc/passwd", "/etc/passwd", "\x1b[2J\n\r\0", "\ud800", "\u202e", "A" * 10_000,
        "@[80@", "@[400@", "@[930@", "@[100000@", "@9000@", "@-4200@",
    ]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "set", "delete", "rename", "add", "escape"]), st.integers(0, 2**16), VALUES
    ),
    max_size=3,
)
TEXTS = st.lists(
    st.tuples(
        st.sampled_from(["repeat", "bom", "utf-16", "byte", "pad", "huge", "cut"]), st.integers(0, 2**16)
    ),
    max_size=1,
)  # fmt: skip


def edit(manifest: dict[str, Any], kind: str, where: int, value: Any) -> None:
    """One change somewhere in the tree."""
    container, key = random.Random(where).choice(places(manifest))
    if kind == "escape":
        entries = manifest.get("files")
        if isinstance(entries, dict):
            manifest["files"] = {**{f"../../{name}": {"size": 10} for name in entries}, **entries, "/etc/passwd": {}}
    elif kind == "set":
        container[key] = value
    elif kind == "add" and isinstance(container, dict):
        container[str(value)[:20]] = value
    elif kind == "rename" and isinstance(container, dict):
        container[f"{key} "] = container.pop(key)
    elif kind == "delete":
        del container[key]


def forged(manifest: dict[str, Any], edits: list[Any], texts: list[Any], sealed: bool) -> bytes:
    """The manifest after the edits of its tree, then those of its text, with its own sha256 valid again if `sealed`."""
    tree = json.loads(json.dumps(manifest))
    for kind, where, value in edits:
        if tree:
            edit(tree, kind, where, copy.deepcopy(value))
    text = json.dumps(tree, indent=1)
    text = re.sub(r'"@\[(\d+)@"', lambda m: "[" * int(m[1]) + "]" * int(m[1]), text)  # nesting
    text = re.sub(r'"@(-?)(\d+)@"', lambda m: m[1] + "9" * int(m[2]), text)  # digits
    raw = text.encode()
    for kind, where in texts:
        lines = raw.split(b"\n")
        position = where % len(raw)
        if kind == "repeat":
            line = lines[where % len(lines)]
            lines.insert(where % len(lines), line if line.endswith(b",") else line + b",")
            raw = b"\n".join(lines)
        elif kind == "byte":
            raw = raw[:position] + bytes([128 + where % 128]) + raw[position:]
        elif kind == "cut":
            raw = raw[:position]
        else:
            raw = {
                "bom": b"\xef\xbb\xbf" + raw,
                "utf-16": raw.decode().encode("utf-16"),
                "pad": raw + b" " * (1 << 19),
                "huge": raw + b"\n" * (4 << 20),
            }[kind]
    return seal(raw) if sealed else raw


_opened: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else "")


@pytest.fixture(scope="module")
def opened() -> Callable[[], Any]:
    """`with opened() as paths:` lists the files that Python opens in the block."""
    sys.addaudithook(_hear)  # there is no way to remove one
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        codecs.lookup(encoding)  # which Python imports when it is first used

    @contextmanager
    def watch() -> Iterator[list[str]]:
        global _opened
        _opened = paths = []
        try:
            yield paths
        finally:
            _opened = None

    return watch


@examples(200)
@given(edits=EDITS, texts=TEXTS, sealed=st.sampled_from([True] * 9 + [False]))
def test_a_hostile_manifest_is_refused_or_loads(bench: Bench, opened: Any, edits: Any, texts: Any, sealed: bool):
    """200 manifests with anything in them, most with valid hashes: VaeError, or a VAE of the graphs' contract.

    Never another exception, a warning, or a file outside the bundle's folder that is opened.
    """
    with bench.holding({"manifest.json": forged(bench.manifest, edits, texts, sealed)}) as path, opened() as paths:
        try:
            with VAE.load(path, threads=1) as vae:
                assert vae.manifest.contract.json() == bench.manifest["contract"]
        except VaeError as error:
            one_line(error)
        assert str(path / "manifest.json") in paths
        assert set(paths) <= {str(path / name) for name in ALL}


@examples(100)
@given(
    kinds=st.lists(st.sampled_from(list(DAMAGES)), min_size=1, max_size=3),
    seed=st.integers(0, 2**64 - 1),
)
def test_damaged_golden_vectors_give_rows_or_an_error(bench: Bench, kinds: list[str], seed: int):
    """100 random damages of golden vectors whose hashes were then made valid: rows or VaeError, nothing else."""
    raw, generator = bench.files["golden.npz"], random.Random(seed)
    for kind in kinds:
        a, b = (generator.randrange(len(raw)) if raw else 0 for _ in range(2))
        raw = DAMAGES[kind](raw, a, b, generator.randrange(256)) if raw else raw
    verified(bundle.read(bench.path), raw)
