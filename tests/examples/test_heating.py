"""The simulated heating system: its files are what its script writes, and its faults lie where the labels say."""

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest

CHANNELS = ["current", "vibration", "flow", "pressure", "supply", "return", "room", "outside"]


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    """The readings, float64 [rows, 8], and the fault of each row."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[name]) for name in CHANNELS] for row in rows]), [
        row.get("fault", "none") for row in rows
    ]


@pytest.mark.parametrize("name", ["normal.csv", "faults.csv"])
def test_the_files_are_what_the_script_writes(examples: Path, tmp_path: Path, name: str) -> None:
    """Times and faults to the letter, readings to their last digit but one: another machine's sine may round away."""
    runpy.run_path(str(examples / "heating/simulate.py"))["main"](tmp_path)
    made, kept = read(tmp_path / name), read(examples / "heating" / name)
    np.testing.assert_allclose(made[0], kept[0], atol=0.011)
    assert made[1] == kept[1]


def test_faults_lie_where_the_labels_say(examples: Path) -> None:
    """A dropout is 0, a stuck sensor repeats its reading, and where all are flat nothing moves."""
    values, faults = read(examples / "heating/faults.csv")
    kinds = {kind: np.flatnonzero(np.array(faults) == kind) for kind in set(faults)}
    assert {kind: len(rows) for kind, rows in kinds.items()} == {
        "none": 2000 - 565, "spike": 5, "dropout": 48, "stuck": 256, "flat": 256,
    }  # fmt: skip
    still = np.diff(values, axis=0) == 0
    assert all((values[row] == 0).sum() == 1 for row in kinds["dropout"])
    assert all(still[row - 1].any() for row in kinds["stuck"])
    assert all(still[row - 1].all() for row in kinds["flat"])
