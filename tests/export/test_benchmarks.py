"""What the benchmarks measure is made as users make it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vae_runtime.bundle import read
from vae_runtime.verify import verify

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPIN = "GOMP_SPINCOUNT"


def test_the_benchmarks_bundle_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks that latency, throughput and memory are measured on can be exported, and give their numbers."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    side_by_side = importlib.import_module("side_by_side")
    assert all(row.passed for row in verify(read(side_by_side.exported())))


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "side_by_side"))
def test_every_benchmark_explains_itself(name: str) -> None:
    """`--help` of each script imports all that it measures, and shows how to call it."""
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{name}.py" in done.stdout


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_threads_that_wait_spin_briefly(given: str | None, expected: str) -> None:
    """vae-train says so to libgomp before torch is imported, unless the person has said something else."""
    code = (
        "import os, sys\n"
        "from vae_train import cli\n"
        "sys.argv = ['vae-train', '--version']\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit:\n"
        f"    print(os.environ['{SPIN}'], 'torch' in sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != SPIN} | ({SPIN: given} if given else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{expected} False"
