"""What `vae-infer sample` shows on a terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")


@pytest.mark.parametrize(("words", "shown"), [([], True), (["-o", "two.png"], False)])
def test_samples_are_drawn_on_a_terminal(tmp_path: Path, words: list[str], shown: bool):
    """On a terminal, samples are drawn with block characters above the last line; not so where -o names a file."""
    master, slave = pty.openpty()
    arguments = [sys.executable, "-m", "vae_runtime", "sample", "-n", "2", "--seed", "1", *words]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"}
    with subprocess.Popen(arguments, stdout=slave, stderr=slave, cwd=tmp_path, env=environment) as process:
        os.close(slave)
        output = b""
        try:
            while part := os.read(master, 4096):
                output += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(master)
    *picture, last = output.decode().splitlines()
    assert process.returncode == 0
    assert last == f"{words[-1] if words else 'samples.png'}: 2 samples, seed 1"
    assert len(picture) == (7 if shown else 0)  # 28 rows at half size, two to a character
    assert bool(set("▄▀█") & set("".join(picture))) is shown
    assert [path.name for path in tmp_path.iterdir()] == [last.split(":")[0]]
