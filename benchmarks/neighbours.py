"""What neighbours cost a training: epochs of vae-train alone, beside a busy process, and beside another training.

    python benchmarks/neighbours.py DATA [--preset tutorial] [--epochs 3]

DATA: folder of the image sets. Printed is the median of so many epochs, in seconds, of each training.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from side_by_side import machine

SIDES: dict[str, tuple[dict[str, str], list[str]]] = {  # environment, words
    "vae-train": ({}, []),
    "libgomp's own 300,000 turns": ({"GOMP_SPINCOUNT": "300000"}, []),
    "no turns": ({"GOMP_SPINCOUNT": "0"}, []),
    "one thread": ({}, ["--threads", "1"]),
}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
LOOP = [sys.executable, "-c", "while True: pass"]


def epochs(folder: Path) -> list[float]:
    """Seconds of each epoch that a training has finished."""
    file = folder / "metrics.jsonl"
    return [json.loads(line)["seconds"] for line in file.read_text().splitlines()] if file.exists() else []


def seconds(commands: list[list[str]], folders: list[Path], variables: dict[str, str], count: int) -> list[float]:
    """The median epoch of each training while all commands run, the first epoch left out."""
    with ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(command, env={**os.environ, **variables}, **QUIET)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        while min(len(epochs(folder)) for folder in folders) <= count:
            time.sleep(0.1)
            if any(process.poll() is not None for process in processes):
                raise SystemExit("a training ended; try its command by itself")
    return [statistics.median(epochs(folder)[1 : count + 1]) for folder in folders]


def main() -> None:
    """Print a row for each way to wait, a column for each neighbourhood."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="tutorial")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    print(machine())
    print(f"seconds of an epoch, preset {given.preset}, median of {given.epochs}")
    print(f"  {'':30}{'alone':>8}{'beside a loop':>16}{'two trainings':>18}")
    for name, (variables, words) in SIDES.items():
        cells = []
        for loops, others in (0, 0), (1, 0), (0, 1):
            with tempfile.TemporaryDirectory() as place:
                folders = [Path(place) / str(i) for i in range(1 + others)]
                train = [sys.executable, "-m", "vae_train", "--data-root", str(given.data), "--no-download", *words]
                train += ["--preset", given.preset, "--epochs", "1000", "--out"]
                commands = [[*train, str(folder)] for folder in folders] + [LOOP] * loops
                cells.append(" and ".join(f"{s:.2f}" for s in seconds(commands, folders, variables, given.epochs)))
        print(f"  {name:30}{cells[0]:>8}{cells[1]:>16}{cells[2]:>18}", flush=True)


if __name__ == "__main__":
    main()
