"""The camera example: its figures, the frames that it flags, and how it ends."""

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from support.commands import Command
from vae_runtime import VAE
from vae_runtime.bundle import shipped
from vae_runtime.cli import main


def verdicts(command: Command, *sources: Path) -> list[list[str]]:
    """What the camera prints of each image, by `vae-infer detect`."""
    table = command(main, "detect", *sources, "--format", "csv").out
    return [
        [row["image"], f"score {float(row['score']):.2f}", f"p {float(row['p']):.4f}"]
        + [f"ODD: {row['oddest']}"] * int(row["odd"])
        for row in csv.DictReader(table.splitlines())
    ]


def test_a_folder_is_watched_in_order(start, command, examples: Path):
    """A line per image with the verdict of `vae-infer detect`; the drawing that is no digit is the odd one."""
    code, out, err = start("camera.py", examples / "digits").end()
    *lines, last = [line.split("  ") for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines == verdicts(command, examples / "digits")
    assert [Path(line[0]).name for line in lines if len(line) > 3] == ["not-a-digit.png"]
    assert last == ["6 frames, 1 odd"]


def test_a_calibration_decides_what_is_odd(start, command, examples: Path, tmp_path: Path):
    """One that says so calls every frame odd; another model's is refused."""
    np.save(tmp_path / "normal.npy", VAE.load().sample(40, seed=1))
    site = tmp_path / "site.json"
    command(main, "calibrate", tmp_path / "normal.npy", "--threshold", "-100", "-o", site)
    _, out, _ = start("camera.py", examples / "digits", "--calibration", site).end()
    assert out.count("  ODD: ") == 6
    words = ("--bundle", shipped().with_name("fashion-mnist"), "--calibration", site)
    code, out, err = start("camera.py", examples / "digits", *words).end()
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert err.startswith("camera.py: error: calibration of another model")


def test_a_damaged_frame_is_passed_over(start, examples: Path, tmp_path: Path):
    """A frame that cannot be read is named on stderr, and the next one is watched."""
    (tmp_path / "1.png").write_bytes((examples / "digits" / "two.png").read_bytes()[:300])
    Image.open(examples / "digits" / "two.png").save(tmp_path / "2.png")
    code, out, err = start("camera.py", tmp_path).end()
    assert code == 0
    assert out.startswith(f"{tmp_path / '2.png'}  ")
    assert err.startswith("camera.py: file cannot be read")
    assert err.count("\n") == 1
    assert str(tmp_path / "1.png") in err


def test_a_stream_is_watched_until_ctrl_c(start, command, tmp_path: Path):
    """Frames from standard input get the verdicts of the same levels in an array; Ctrl-C ends with the summary."""
    levels = np.rint(VAE.load().sample(5, seed=3, mean=True) * 255).astype(np.uint8)  # [5, 1, 28, 28]
    np.save(tmp_path / "frames.npy", levels)
    camera = start("camera.py", "-")
    camera.process.stdin.write(levels.tobytes())
    camera.process.stdin.flush()
    lines = [camera.process.stdout.readline().decode().rstrip("\n").split("  ") for _ in levels]
    code, out, err = camera.interrupt()
    expected = verdicts(command, tmp_path / "frames.npy")
    assert [line[1:] for line in lines] == [row[1:] for row in expected]
    assert [line[0] for line in lines] == [f"frame {i}" for i in range(1, 6)]
    assert (code, err) == (0, "")
    assert out == f"5 frames, {sum(len(row) > 3 for row in expected)} odd\n"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream(start):
    """The process is no larger after 1,500 frames than after 200, but for a megabyte of noise."""
    camera = start("camera.py", "-")
    digit = np.rint(255 * VAE.load().sample(1, seed=1, mean=True)).astype(np.uint8).tobytes()
    memory = []
    for frames in (200, 1300):
        for _ in range(frames):
            camera.process.stdin.write(digit)
            camera.process.stdin.flush()
            camera.process.stdout.readline()
        memory.append(psutil.Process(camera.process.pid).memory_info().rss)
    code, out, _ = camera.end()
    assert code == 0
    assert out.startswith("1500 frames, ")
    assert memory[1] - memory[0] < 1 << 20


def test_a_stream_that_ends_within_a_frame_is_refused(start):
    """Half a frame, as of another camera's size, ends in one line that names it, and exit code 4."""
    camera = start("camera.py", "-")
    camera.process.stdin.write(bytes(784 + 300))
    code, out, err = camera.end()
    assert (code, out.count("\n")) == (4, 1)
    assert err == "camera.py: error: stream ends within a frame: frame 2; send 28x28, 784 bytes\n"


def test_without_the_package_it_says_how_to_install_it(examples: Path):
    """In a Python that has neither NumPy nor the package: one line, exit code 6, and a command that works here."""
    command = [sys.executable, "-I", "-S", str(examples / "camera.py"), "digits"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (6, "", 1)
    assert done.stderr.startswith("camera.py: error: No module named ")
    *_, program, m, pip, install, source = shlex.split(done.stderr)
    assert [program, m, pip, install] == [sys.executable, "-m", "pip", "install"]
    assert (Path(source) / "pyproject.toml").exists()


@pytest.mark.parametrize(
    ("words", "expected", "message"),
    [(["nowhere"], 4, "no images in the folder"), (["nowhere", "--bundle", "nowhere"], 3, "bundle not found")],
)
def test_wrong_arguments_end_in_one_line(start, words: list[str], expected: int, message: str):
    """A folder or bundle that is not there is named in one line, with the runtime's exit codes."""
    code, out, err = start("camera.py", *words).end()
    assert (code, out, err.count("\n")) == (expected, "", 1)
    assert err.startswith(f"camera.py: error: {message}")
