"""The Dask example, on real clusters of two worker processes: its figures, its errors and how it ends."""

import csv
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import Command
from vae_runtime import VAE, outputs
from vae_runtime.cli import main

CLUSTER = """
import sys
from dask.distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that runs by itself, with another working folder."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cluster.py").write_text(CLUSTER)
    command = [sys.executable, "cluster.py"]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.communicate(timeout=600)


@pytest.fixture
def folder(tmp_path: Path, examples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """46 images, grey and of two sizes, in the folder `images` of the current folder."""
    monkeypatch.chdir(tmp_path)
    vae = VAE.load()
    outputs.write(Path("images"), 40, vae.observation.shape, vae.sample_batches(40, seed=3, mean=True))
    for file in (examples / "digits").iterdir():
        Path("images", file.name).write_bytes(file.read_bytes())
    return Path("images")


def rows(table: str) -> list[list[str]]:
    """Name and figures of each image of a CSV, as text."""
    return [list(row.values()) for row in csv.DictReader(table.splitlines())]


def count_odd(rows: list[list[str]]) -> int:
    """How many of them are odd."""
    return sum(row[-1] == "1" for row in rows)


def scored(command: Command, folder: Path, *words: object) -> list[list[str]]:
    """The rows of `vae-infer elbo`, and beside them score, p and odd of `vae-infer detect`."""
    figures = rows(command(main, "elbo", folder, *words, "--format", "csv").out)
    judged = rows(command(main, "detect", folder, "--format", "csv").out)
    return [[*row, *verdict[1:4]] for row, verdict in zip(figures, judged, strict=True)]


@pytest.mark.parametrize("part", [1, 7, 1000])
def test_figures_do_not_depend_on_the_parts(start, command, cluster: str, folder: Path, part: int):
    """On a running cluster every part size gives the figures of `vae-infer elbo` and `detect`, each digit."""
    words = ("--scheduler", cluster, "--part", part, "--samples", 3)
    expected = scored(command, folder, "--samples", 3)
    assert start("batch.py", folder, "-o", "scores.csv", *words).end() == (
        0,
        f"scores.csv: scores of 46 of 46 images, {count_odd(expected)} odd\n",
        "",
    )
    assert rows(Path("scores.csv").read_text()) == expected
    assert len(expected) == 46


@pytest.mark.slow
def test_it_brings_its_own_cluster(start, command, folder: Path):
    """Without a scheduler two workers are started, give the same table, and are gone at the end."""
    code, out, err = start("batch.py", folder, "-o", "scores.csv", "--workers", 2, "--part", 10).end()
    expected = scored(command, folder)
    assert (code, out, err) == (0, f"scores.csv: scores of 46 of 46 images, {count_odd(expected)} odd\n", "")
    assert rows(Path("scores.csv").read_text()) == expected


def test_an_unreadable_image_does_not_stop_the_others(start, command, cluster: str, folder: Path):
    """It is named on stderr and left out, the exit code is 4, and the others keep their figures."""
    expected = scored(command, folder)
    damaged = [folder / "05.png", folder / "two.png"]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:100])
    code, out, err = start("batch.py", folder, "-o", "scores.csv", "--scheduler", cluster, "--part", 4).end()
    names = {str(file) for file in damaged}
    left = [row for row in expected if row[0] not in names]
    assert (code, out) == (4, f"scores.csv: scores of 44 of 46 images, {count_odd(left)} odd\n")
    assert all(f"{file.absolute()};" in line for file, line in zip(damaged, err.splitlines(), strict=True))
    assert rows(Path("scores.csv").read_text()) == left


@pytest.mark.slow
def test_ctrl_c_ends_it_and_its_workers(start, folder: Path):
    """Ctrl-C in the middle of the work ends all processes, with its line and exit code 130, and writes nothing."""
    batch = start("batch.py", folder, "-o", "scores.csv", "--workers", 2, "--part", 1, "--samples", 100_000)
    busy: list[float] = []
    while len(busy) < 2:  # workers past their start, which takes a quarter of this
        time.sleep(0.1)
        assert batch.process.poll() is None
        workers = [process for process in batch.running() if "spawn_main" in " ".join(process.cmdline())]
        busy = [seconds for process in workers if (seconds := process.cpu_times().user) > 1]
    code, out, err = batch.interrupt()
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "batch.py: interrupted"  # before it a worker's C++ threads may have had a word
    assert not Path("scores.csv").exists()


@pytest.mark.parametrize(
    ("words", "expected", "message"),
    [
        (["images", "-o", "scores.csv", "--part", "0"], 2, "--part, --workers and --samples take 1 or more"),
        (["images", "-o", "nowhere/scores.csv"], 2, "output folder not found: nowhere"),
        (["nowhere", "-o", "scores.csv"], 4, "no images in the folder: nowhere"),
        (["images", "-o", "scores.csv", "--bundle", "nowhere"], 3, "bundle not found: "),
    ],
)
def test_wrong_arguments_are_refused(start, folder: Path, words: list[str], expected: int, message: str):
    """What cannot be done is said in one line, before a cluster is started."""
    code, out, err = start("batch.py", *words).end()
    assert (code, out) == (expected, "")
    assert f"batch.py: error: {message}" in err.splitlines()[-1]
