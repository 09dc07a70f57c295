"""Processor time and peak memory of reading a large table of numbers, each side a process of its own, in turns.

    python benchmarks/reading.py [--rows 1000000] [--columns 20] [--rounds 5] [--others PYTHON]

The runtime's reader goes through the table block by block, as scoring does; training keeps it as float32. PYTHON: an
interpreter that has pandas and polars, which read the table whole and do nothing else; without it they are left out.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from processes import PEAK

TIMED = """
import time
begun = time.process_time()
{code}
pathlib.Path("seconds").write_text(str(time.process_time() - begun))
"""
IMPORTS = {  # not timed
    "runtime, block by block": "from pathlib import Path\nfrom functools import partial\n"
    "from vae_runtime.tables import Table",
    "training, to float32": "from pathlib import Path\nfrom vae_train import data, tables\n"
    "from vae_train.config import PRESETS",
    "numpy.loadtxt": "import numpy",
    "pandas.read_csv": "import pandas",
    "polars.read_csv": "import polars",
}
CODE = {
    "runtime, block by block": "table = Table('t.csv', partial(Path('t.csv').open, 'rb'))\n"
    "for block in table.blocks(table.layout.names): pass",
    "training, to float32": "data.load(PRESETS['vector'].replace(dataset='t.csv'), Path())",
    "numpy.loadtxt": "numpy.loadtxt('t.csv', delimiter=',', skiprows=1)",
    "pandas.read_csv": "pandas.read_csv('t.csv')",
    "polars.read_csv": "polars.read_csv('t.csv')",
}
OTHERS = ("pandas.read_csv", "polars.read_csv")


def main() -> None:
    """Print a line for each side: seconds and MiB, and both as multiples of the first's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", default="")
    given = parser.parse_args()
    sides = [name for name in CODE if name not in OTHERS or given.others]
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "t.csv", given.rows, given.columns)
        size = (Path(folder) / "t.csv").stat().st_size / 1e6
        for _ in range(given.rounds):
            for name in sides:
                python = given.others if name in OTHERS else sys.executable
                measured[name].append(read(name, python, Path(folder)))
    print(f"{given.rows:,} rows of {given.columns} columns, {size:.0f} MB; medians of {given.rounds}")
    print(f"{'':26}{'reading':>11}{'':9}{'memory':>9}{'imports alone':>19}")
    first = statistics.median(seconds for seconds, *_ in measured[sides[0]])
    for name, figures in measured.items():
        seconds, peak, before = map(statistics.median, zip(*figures, strict=True))
        print(f"  {name:24}{seconds:9.2f} s {seconds / first:7.2f}x {peak:8.0f} MiB {before:14.0f} MiB")


def write(path: Path, rows: int, columns: int) -> None:
    """A table of normal numbers with six digits behind the point, a few at a time."""
    random = np.random.default_rng(0)
    with path.open("w") as file:
        file.write(",".join(f"column_{i}" for i in range(columns)) + "\n")
        for start in range(0, rows, 10_000):
            np.savetxt(file, random.normal(size=(min(10_000, rows - start), columns)), "%.6f", ",")


def read(name: str, python: str, folder: Path) -> tuple[float, float, float]:
    """Seconds of one side's reading, the MiB of its process at most, and those of a process that reads nothing."""
    peaks = []
    for code in (TIMED.format(code=CODE[name]), ""):
        subprocess.run([python, "-c", f"{PEAK}{IMPORTS[name]}\n{code}"], cwd=folder, check=True)
        peaks.append(int((folder / "peak").read_text()) / 1024)
    return float((folder / "seconds").read_text()), peaks[0], peaks[1]


if __name__ == "__main__":
    main()
