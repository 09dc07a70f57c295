"""What `vae-infer` shows on a terminal, and does not show elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pty = pytest.importorskip("pty", reason="needs pseudo-terminals, as POSIX has them")


def on_terminal(folder: Path, *arguments: object, stdout: int | None = None) -> tuple[int, str]:
    """The exit code of `vae-infer` and what it shows on a terminal, its standard error there, its output too or not."""
    master, slave = pty.openpty()
    call = [sys.executable, "-m", "vae_runtime", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80", "TERM": "xterm"}
    where = slave if stdout is None else stdout
    with subprocess.Popen(call, stdout=where, stderr=slave, cwd=folder, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 4096):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(master)
    return process.returncode, shown.decode()


@pytest.mark.parametrize(("words", "shown"), [([], True), (["-o", "two.png"], False)])
def test_samples_are_drawn_on_a_terminal(tmp_path: Path, words: list[str], shown: bool):
    """On a terminal, samples are drawn with block characters above the last line; not so where -o names a file."""
    code, shown_text = on_terminal(tmp_path, "sample", "-n", "2", "--seed", "1", *words)
    *picture, last = shown_text.splitlines()
    assert code == 0
    assert last == f"{words[-1] if words else 'samples.png'}: 2 samples, seed 1"
    assert len(picture) == (7 if shown else 0)  # 28 rows at half size, two to a character
    assert bool(set("▄▀█") & set("".join(picture))) is shown
    assert [path.name for path in tmp_path.iterdir()] == [last.split(":")[0]]


VERBS = [
    ["sample", "-n", "300", "--seed", "1", "-o", "out.npy"],
    ["reconstruct", "images.npy", "-o", "out.npy"],
    ["elbo", "images.npy", "-o", "out.csv"],
    ["encode", "images.npy", "-o", "out.npz"],
    ["decode", "z.npy", "-o", "out.npy"],
]
SMALL = ["--threads", "1", "--memory", "1"]  # so that 300 images take several runs


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with 300 images and 300 latents of the shipped model."""
    np.save(tmp_path / "images.npy", np.zeros((300, 28, 28), np.uint8))
    np.save(tmp_path / "z.npy", np.zeros((300, 40), np.float32))
    return tmp_path


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_long_work_shows_a_bar_on_a_terminal(many: Path, verb: list[str]):
    """On a terminal, work of several runs draws one bar on standard error that ends at 100%; the result's line is last
    on standard output, which holds nothing else.
    """
    with (many / "stdout").open("wb") as stdout:
        code, shown = on_terminal(many, *SMALL, *verb, stdout=stdout.fileno())
    assert code == 0
    assert "images" in shown
    assert "100%" in shown
    assert shown.index("0%") < shown.index("100%")
    assert shown.count("\n") == 1
    said = (many / "stdout").read_text()
    assert said.startswith(f"{verb[-1]}: ")
    assert len(said.splitlines()) == 1


def test_short_work_shows_no_bar(many: Path):
    """Work that takes a few runs only shows no bar on a terminal either."""
    np.save(many / "few.npy", np.zeros((20, 28, 28), np.uint8))
    code, shown = on_terminal(many, *SMALL, "reconstruct", "few.npy", "-o", "out.npy")
    assert (code, shown) == (0, "out.npy: 20 reconstructions\r\n")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_no_bar_where_nobody_looks(many: Path, verb: list[str]):
    """Where standard error is a pipe it stays empty, though standard output is a terminal, and the other way round."""
    call = [sys.executable, "-m", "vae_runtime", *SMALL, *verb]
    done = subprocess.run(call, capture_output=True, text=True, cwd=many, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    master, slave = pty.openpty()
    done = subprocess.run(call, stdout=slave, stderr=subprocess.PIPE, text=True, cwd=many, check=False)
    os.close(slave)
    os.close(master)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_below_a_bar_is_a_line_of_its_own(many: Path):
    """When the work fails under way, the error starts on a new line, and no output is left."""
    x = np.zeros((300, 28, 28), np.float32)
    x[250] = np.nan
    np.save(many / "images.npy", x)
    code, shown = on_terminal(many, *SMALL, "reconstruct", "images.npy", "-o", "out.npy")
    assert code == 4
    *_, bar, error, end = shown.split("\r\n")
    assert "100%" not in bar
    assert error.startswith("vae-infer: error: pixels outside [0, 1] or NaN: images.npy[250]; ")
    assert end == ""
    assert not (many / "out.npy").exists()
