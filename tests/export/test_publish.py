"""Publishing: readers and kills find the old bundle or the new one, whole, and a later export clears up."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vae_export import publish
from vae_export.cli import main
from vae_runtime.bundle import read
from vae_runtime.errors import ArgumentError

Files = dict[str, bytes]


def contents(folder: Path) -> Files:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(files: Files, out: Path) -> None:
    """Publish files as an export does."""
    with publish.staging(out) as staging:
        publish.write(staging, files)
        publish.swap(staging, out)
    publish.remove_leftovers(out)


@pytest.mark.parametrize("words", [["a-run"], ["check", "mnist", "a-run"]])
def test_where_files_have_no_locks(command: Any, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """On a system without fcntl, such as Windows: exit code 6 and one line; a card needs no locks."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    result = command(main, *words)
    assert (result.code, result.out, result.err.count("\n")) == (6, "", 1)
    assert "export needs a POSIX system" in result.err
    assert command(main, "card", "mnist").code == 0


@pytest.fixture
def both(tiny_bundle: Path, other_bundle: Path) -> tuple[Files, Files]:
    """The files of both bundles."""
    return contents(tiny_bundle), contents(other_bundle)


@pytest.fixture
def out(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle where it may be replaced."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
def test_swap_puts_a_folder_in_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    """With the atomic exchange and without it, the new folder stands where the old one was."""
    if not exchange:
        monkeypatch.setattr(publish, "_exchange", lambda a, b: False)
    new, out = tmp_path / "new", tmp_path / "out"
    for folder in (new, out):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    publish.swap(new, out)
    assert (out / "name").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "new"}
    assert not new.exists() or (new / "name").read_text() == "out"


def test_a_bundle_may_go_into_an_empty_folder(tmp_path: Path) -> None:
    """An empty folder, a bundle or nothing at all are fine targets."""
    publish.check_target(tmp_path)
    publish.check_target(tmp_path / "absent")
    (tmp_path / "manifest.json").write_text('{"contract": {}, "files": {}}')
    publish.check_target(tmp_path)


def test_graphs_of_ones_own_are_not_replaced(tmp_path: Path) -> None:
    """Without a manifest a folder is no bundle, though its files are called as one's are."""
    (tmp_path / "encoder.onnx").touch()
    with pytest.raises(ArgumentError, match="output exists and is not a bundle"):
        publish.check_target(tmp_path)


def test_a_signal_amid_two_renames_keeps_the_old_bundle(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folders cannot be exchanged, Ctrl-C between the two renames puts the old bundle back, alone."""
    before, rename = contents(out), Path.rename
    monkeypatch.setattr(publish, "_exchange", lambda a, b: False)

    def interrupted(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        if path == out:
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put({"manifest.json": b"new"}, out)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_killed_exports_left_goes_and_all_else_stays(both: tuple[Files, Files], out: Path, tmp_path: Path) -> None:
    """A later export removes folders of a bundle's files that no export holds: not one at work, nor a person's."""
    for name, files in {
        ".bundle.1.0123abcd": both[0],
        ".bundle.2.0123abcd": {"golden.npz": b"half"},
        ".bundle.3.0123abcd": {"cat.jpg": b"cat", "manifest.json": b""},
        ".bundle.old": both[0],
        ".bundle2.4.0123abcd": both[0],
        "bundle.5.0123abcd": both[0],
    }.items():
        (tmp_path / name).mkdir()
        publish.write(tmp_path / name, files)
    with publish.staging(out) as at_work:
        publish.write(at_work, both[0])
        put(both[1], out)
        assert contents(at_work) == both[0]
        kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {
        "bundle",
        at_work.name,
        ".bundle.3.0123abcd",
        ".bundle.old",
        ".bundle2.4.0123abcd",
        "bundle.5.0123abcd",
    }
    assert contents(out) == both[1]
    assert not at_work.exists()


def test_an_export_clears_up_after_a_killed_one(
    command: Callable[..., Any], tiny_run: Path, both: tuple[Files, Files], out: Path, after_export: Callable[..., None]
) -> None:
    """`vae-export RUN --out OLD` leaves the new bundle alone in the folder, whatever a killed export left there."""
    (out.parent / ".bundle.1.0123abcd").mkdir()
    publish.write(out.parent / ".bundle.1.0123abcd", both[1])
    after_export()
    assert command(main, tiny_run, "--out", out).code == 0
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


READER = """
import json, os, sys
from pathlib import Path
import numpy as np
from vae_runtime import VAE
from vae_runtime.bundle import FILES, read

out, stop, met, *known = map(Path, sys.argv[1:])
x, z = np.zeros((1, 1, 28, 28), np.float32), np.ones((1, 4), np.float32)
figures = lambda vae: (vae.encode(x)[0].tobytes(), vae.decode(z).tobytes())
files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in known]
numbers = [figures(VAE.load(folder)) for folder in known]
assert numbers[0][0] != numbers[1][0] and numbers[0][1] != numbers[1][1]
seen = {"reads": [0, 0], "loads": [0, 0]}
print("ready", flush=True)
while not stop.exists():
    bundle = read(out)
    manifest = files[0]["manifest.json"] if bundle.manifest.raw == json.loads(files[0]["manifest.json"]) else b""
    which = 0 if manifest else 1
    assert bundle.manifest.raw == json.loads(files[which]["manifest.json"])
    assert bundle.files == {name: files[which][name] for name in FILES}
    seen["reads"][which] += 1
    seen["loads"][numbers.index(figures(VAE.load(out, threads=1)))] += 1
    if all(map(all, seen.values())):
        (met / str(os.getpid())).touch()
print(json.dumps(seen))
"""


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
@pytest.mark.parametrize("swaps", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_readers_see_one_bundle_or_the_other(
    both: tuple[Files, Files],
    tiny_bundle: Path,
    other_bundle: Path,
    out: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    swaps: int,
    exchange: bool,
) -> None:
    """Four processes that read and load a bundle while it is replaced all the time never fail and see no mixed pair."""
    stop, met = out.parent / "stop", tmp_path_factory.mktemp("met")
    call = [sys.executable, "-c", READER, *map(str, (out, stop, met, tiny_bundle, other_bundle))]
    readers = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        if not exchange:
            monkeypatch.setattr(publish, "_exchange", lambda a, b: False)
        for i in itertools.count():  # as many as it takes on a busy machine, until each reader has met both
            if i >= swaps and (len([*met.iterdir()]) == 4 or any(reader.poll() is not None for reader in readers)):
                break
            put(both[(i + 1) % 2], out)
    finally:
        stop.touch()
        ends = [reader.communicate(timeout=600) for reader in readers]
    seen = [json.loads(end) for end, error in ends if not error]
    assert len(seen) == 4, [error for _, error in ends]
    print(swaps, "swaps; seen by each reader:", *seen)
    assert min(count for one in seen for counts in one.values() for count in counts) > 0
    assert {path.name for path in out.parent.iterdir()} == {"bundle", "stop"}


PUBLISHER = """
import os, signal, sys
from pathlib import Path
from vae_export import publish

out, new, exchange, last = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True", int(sys.argv[4])
files = {path.name: path.read_bytes() for path in new.iterdir()}
if not exchange:
    publish._exchange = lambda a, b: False
steps = []

def hear(event, arguments):
    steps.append(event)
    if len(steps) == last:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hear)
with publish.staging(out) as staging:
    publish.write(staging, files)
    publish.swap(staging, out)
publish.remove_leftovers(out)
print(len(steps))
"""


def whole(out: Path, both: tuple[Files, Files]) -> int:
    """Which of the two bundles is at `out`; it is read as the runtime does, and is that one byte for byte."""
    read(out)
    return both.index(contents(out))


def beside(out: Path) -> list[Path]:
    """What else lies in the folder of `out`, empty folders aside, which a kill may leave."""
    return [path for path in out.parent.iterdir() if path != out and any(path.iterdir())]


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
def test_a_kill_at_any_step_leaves_one_bundle_or_the_other(
    both: tuple[Files, Files], tiny_bundle: Path, other_bundle: Path, out: Path, exchange: bool
) -> None:
    """Killed before each thing that it does with files, one after the other, publishing leaves the old or the new.

    Without an exchange of folders, one kill, between two renames, may leave the old one under another name.
    """

    def publisher(step: int) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-c", PUBLISHER, *map(str, (out, other_bundle, exchange, step))]
        return subprocess.run(call, capture_output=True, text=True, check=False)

    steps = int(publisher(0).stdout)
    put(both[0], out)
    left, found = 0, Counter[int]()
    for step in range(1, steps + 1):
        assert publisher(step).returncode == -signal.SIGKILL
        if not exchange and not out.exists():
            found[-1] += 1
            assert both[0] in map(contents, beside(out))
        else:
            found[whole(out, both)] += 1
        left += bool(beside(out))
        put(both[0], out)
        assert (whole(out, both), beside(out)) == (0, [])
    assert min(steps, left, found[0], found[1]) > 5
    assert found[-1] == (0 if exchange else 1)


@pytest.mark.slow
def test_a_hundred_killed_exports_leave_one_bundle_or_the_other(
    both: tuple[Files, Files], tiny_run: Path, out: Path
) -> None:
    """Killed at any time, most often while they write, judge and publish, 100 exports leave the old bundle or the new.

    The one after them works and clears up.
    """
    call = [sys.executable, "-m", "vae_export", str(tiny_run), "--out", str(out)]
    pairs = [json.loads(files["manifest.json"])["contract"]["pair"] for files in both]
    judged = 0.9 * len(both[0]["manifest.json"])  # bytes: the one that is written before lacks the gate's report

    def staged(size: float) -> bool:
        with suppress(FileNotFoundError):
            return any(path.stat().st_size > size for path in out.parent.glob(".bundle.*/manifest.json"))
        return False

    def until(size: float) -> float:
        while process.poll() is None and not staged(size):
            time.sleep(0.0002)
        return time.perf_counter()

    def wait(least: float, most: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(least, most))

    start = time.perf_counter()
    with subprocess.Popen(call, stdout=subprocess.DEVNULL) as process:
        seconds = [until(-1) - start, until(judged) - start, process.wait(), time.perf_counter() - start]
    assert seconds.pop(2) == 0
    generator, found, left = random.Random(0), Counter[int](), 0
    for kill in range(100):
        put(both[1], out)
        with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            if kill % 5 == 0:
                wait(0, seconds[2])
            elif kill % 5 < 3:
                until(-1)
                wait(0, seconds[2] - seconds[0])
            else:
                until(judged)
                wait(0, 0.02)
            process.kill()
        found[pairs.index(read(out).manifest.contract.pair)] += 1
        left += bool(beside(out))
    print(
        "100 kills:",
        found[1],
        "before the swap and",
        found[0],
        "after it;",
        left,
        "left a folder beside; seconds",
        seconds,
    )
    assert subprocess.run(call, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert read(out).manifest.contract.pair == pairs[0]
    assert beside(out) == []
    assert min(found[0], found[1], left) > 5
