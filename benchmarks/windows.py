"""Odd stretches of a series by -ELBO, beside five detectors of scikit-learn and PyOD: AUROC of its windows.

    python benchmarks/windows.py NORMAL TABLE --label COLUMN --normal LABEL [--window 64] [--seeds 0,1] [--pyod FOLDER]

NORMAL, TABLE: CSV, as vae-train takes it, of rows in order of time. All sides are fitted to the windows of NORMAL that
`vae-train --window` trains on, scaled by it, and score every window of TABLE; one is odd where a row of it has another
label than the normal one, and each such label has figures of its own. The VAE is trained with the preset `series`,
exported, and scored by the runtime. The rows of the window with the lowest ELBO are named beside the odd rows.
FOLDER: as for benchmarks/anomaly.py.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from anomaly import DRAWS, note, others
from numpy.typing import NDArray
from side_by_side import machine
from sklearn.metrics import roc_auc_score

import vae_export
from vae_runtime import VAE, score
from vae_runtime.tables import Table, as_label
from vae_train import data, run_folder, train
from vae_train.config import Config, DataConfig, Place, preset

_MIXED = ""  # the label of windows with odd rows of several labels


def main() -> None:
    """Print a table of AUROC for each label, a row for each side and a column for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("usual")
    parser.add_argument("table")
    parser.add_argument("--label", required=True)
    parser.add_argument("--normal", required=True)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--pyod", type=Path)
    given = parser.parse_args()
    if given.pyod:
        sys.path.append(str(given.pyod))
    odd = labels_of(given.table, given.label)
    found: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    lowest = []
    for seed in [int(seed) for seed in given.seeds.split(",")]:
        config = settings(given.usual, given.window, seed)
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            train.train(config, Path(folder) / "run", Place(Path(), False, "cpu"), "benchmarks/windows.py")
            exported = vae_export.export_run(run_folder.load(Path(folder) / "run"), Path(folder) / "bundle")
            vae = VAE.load(exported.path)
            took = time.monotonic() - begun
            read = vae.read(given.table, stride=1)
            names, measured = list(read.names()), read.load().x
            of_windows = windows_of(odd, [int(name.rpartition("[")[2].partition(":")[0]) for name in names], given)
            elbo = score(vae, measured, DRAWS, seed).elbo
            lowest.append(f"seed {seed}: {names[int(np.argmin(elbo))].rpartition('/')[2]}")
            y = vae.standardise(measured).reshape(len(measured), -1)
        normal = as_label(given.normal)
        keep(found, seconds, of_windows, normal, "-ELBO", -elbo, took)
        x = data.load(config, Path(), download=False).train.flatten(1).numpy()
        for name, scorer in others().items():
            begun = time.monotonic()
            keep(found, seconds, of_windows, normal, name, scorer(x, y, seed), time.monotonic() - begun)
    print(machine())
    print(f"{len(x):,} windows of {given.window} rows to fit, {len(y):,} scored")
    for kind, sides in found.items():
        print(f"\nAUROC, {given.label} {kind}: {np.sum(of_windows == kind):,} windows")
        for name, values in sides.items():
            print(f"{name:16}" + "".join(f"{value:10.5f}" for value in values) + f"{np.median(seconds[name]):11.1f} s")
    rows = np.flatnonzero(odd != as_label(given.normal))
    print(f"\nodd rows: {len(rows)}, from {rows[0]} to {rows[-1]}; lowest ELBO at {', '.join(lowest)}")


def settings(usual: str, window: int, seed: int) -> Config:
    """The preset of series for these windows."""
    config = DataConfig(usual, window=window)
    chosen = preset("series", *data.look(config))
    return chosen.replace(dataset=usual, window=window, held_out="last", seed=seed)


def labels_of(path: str, column: str) -> NDArray[np.str_]:
    """The label of each row of a table."""
    table = Table(path, partial(Path(path).open, "rb"))
    return np.array([as_label(text) for block in table.blocks([], texts=[column]) for text in block.texts[column]])


def windows_of(labels: NDArray[np.str_], starts: list[int], given: argparse.Namespace) -> NDArray[np.str_]:
    """The label of each window: the normal one, that of its odd rows, or none where these have several."""
    normal = as_label(given.normal)
    kinds = [set(labels[start : start + given.window]) - {normal} for start in starts]
    return np.array([normal if not kind else kind.pop() if len(kind) == 1 else _MIXED for kind in kinds])


def keep(
    found: dict[str, dict[str, list[float]]],
    seconds: dict[str, list[float]],
    labels: NDArray[np.str_],
    normal: str,
    side: str,
    scores: NDArray[np.float64],
    took: float,
) -> None:
    """Keep a side's figures for each label, beside the windows of the normal one."""
    for kind in np.unique(labels):
        if kind not in (normal, _MIXED):
            some = np.isin(labels, [normal, kind])
            value = float(roc_auc_score(labels[some] == kind, scores[some]))
            note(found.setdefault(str(kind), {}), seconds, side, value, took)


if __name__ == "__main__":
    main()
