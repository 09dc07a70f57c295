"""`bench`: the figures are there, possible, and the same ones in each form of output; how large they are is no test."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from vae_runtime import BundleError, threads
from vae_runtime.bench import Measurement, _sweep, bench
from vae_runtime.cli import main

FIGURES = ("startup", "startup_memory", "encode_p50", "encode_p95", "decode_p50", "decode_p95")


@pytest.fixture(scope="module")
def found(tiny_bundle: Path) -> Measurement:
    """The tiny bundle, measured in a hurry."""
    return bench(tiny_bundle, seconds=0.05)


def test_every_figure_is_positive_and_finite(found: Measurement):
    """Times, bytes and rates are positive and finite, and in an order that can be: p50 at most p95, say."""
    figures = [getattr(found, name) for name in FIGURES] + [*found.sampled.values(), *found.scored.values()]
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert found.encode_p50 <= found.encode_p95
    assert found.decode_p50 <= found.decode_p95
    assert found.startup > found.encode_p50
    assert 10 << 20 < found.startup_memory < 4 << 30


def test_every_number_of_threads_is_measured(found: Measurement):
    """Both throughputs are there for 1 thread, for all cores that the process may use, and the powers of 2 between."""
    cores = threads.available_cores()
    expected = [2**i for i in range(20) if 2**i < cores] + [cores]
    assert list(found.sampled) == list(found.scored) == expected


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (64, [1, 2, 4, 8, 16, 32, 64])],
)
def test_the_sweep_doubles_up_to_all_cores(cores: int, expected: list[int]):
    """1, 2, 4, ... and last the number of cores, once."""
    assert _sweep(cores) == expected


def test_the_json_reads_back_to_the_tables_figures(found: Measurement):
    """The JSON holds every figure in seconds and bytes, to the last bit; the table shows the same, rounded."""
    read = json.loads(found.json())
    expected = asdict(found)
    for rates in ("sampled", "scored"):
        expected[rates] = {str(number): rate for number, rate in expected[rates].items()}
    assert read == expected
    start, encode, decode, *rates = found.table().splitlines()
    figures = [
        [float(text.replace(",", "")) for text in re.findall(r"[\d,.]*\d", line)] for line in found.table().splitlines()
    ]
    assert figures[0] == [round(1e3 * read["startup"], 1), round(read["startup_memory"] / 2**20, 1)]
    for row, line, name in ((figures[1], encode, "encode"), (figures[2], decode, "decode")):
        assert line.startswith(f"{name} 1 ")
        assert row == [1, round(1e3 * read[f"{name}_p50"], 3), 50, round(1e3 * read[f"{name}_p95"], 3), 95]
    assert start.startswith("start-up ")
    assert len(rates) == len(read["sampled"])
    for row, number in zip(figures[3:], read["sampled"], strict=True):
        assert row[0] == int(number)
        assert row[1:] == [pytest.approx(read[name][number], abs=0.5) for name in ("sampled", "scored")]


def test_the_command_prints_json_and_table(command, tiny_bundle: Path):
    """`bench --json` prints the same fields as the API; without it, as many lines as the table has; nothing else."""
    result = command(main, "--bundle", tiny_bundle, "bench", "--json", "--seconds", "0.05")
    assert (result.code, result.err) == (0, "")
    read = json.loads(result.out)
    assert set(read) == {*FIGURES, "sampled", "scored"}
    assert all(figure > 0 for figure in (*map(read.get, FIGURES), *read["sampled"].values(), *read["scored"].values()))
    result = command(main, "--bundle", tiny_bundle, "bench", "--seconds", "0.01")
    assert (result.code, result.err) == (0, "")
    assert len(result.out.splitlines()) == 3 + len(read["sampled"])


@pytest.mark.slow
def test_the_shipped_bundle_is_measured_by_default(command):
    """Without --bundle the shipped bundle is measured."""
    result = command(main, "bench", "--json", "--seconds", "0.01")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["startup"] > 0


def test_a_missing_bundle_is_a_bundle_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """A bundle that is not there raises BundleError, and no process of its own fails aloud."""
    with pytest.raises(BundleError, match="bundle not found"):
        bench(tmp_path / "missing", seconds=0.01)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_bound_to_one_core_measures_one_thread(tiny_bundle: Path, tmp_path: Path):
    """Only the cores that the process may use count."""
    script = (
        "import os, sys; from pathlib import Path; from vae_runtime.bench import bench\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(list(bench(Path(sys.argv[1]), seconds=0.01).sampled))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_bundle)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("[1]\n", "")
    assert list(tmp_path.iterdir()) == []
