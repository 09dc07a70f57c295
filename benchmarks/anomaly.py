"""Odd rows of a table by -ELBO, beside five detectors of scikit-learn and PyOD: AUROC on rows that none has seen.

    python benchmarks/anomaly.py TABLE --label COLUMN --normal LABEL [--seeds 0,1,2] [--epochs N] [--pyod FOLDER]

TABLE: CSV, as vae-train takes it, or breast_cancer or wine, scikit-learn's own, whose label is `target`. All sides are
fitted to the half of the normal rows that `vae-train --normal` trains on, scaled by it, and score the other half and
all rows with other labels. The VAE is trained with its default preset, or with as many
epochs of it, exported, and scored by the runtime.
FOLDER: where `pip install --target FOLDER --no-deps pyod` has put PyOD, for ECOD; without it ECOD is left out.
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from side_by_side import machine
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

import vae_export
from vae_runtime import VAE, score
from vae_runtime.tables import Table, as_label
from vae_train import data, run_folder, train
from vae_train.config import Config, DataConfig, Place, preset
from vae_train.tables import labels_of

OFFLINE = {"breast_cancer": load_breast_cancer, "wine": load_wine}
DRAWS = 16  # of z for each score
NEIGHBOURS = 5
MOST = 10_000  # rows that the support vector machine is fitted to: its time grows with their square

Rows = NDArray[np.float32]
Scorer = Callable[[Rows, Rows, int], NDArray[np.float64]]


def main() -> None:
    """Print a table of AUROC, a row for each side and a column for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("--label", default="target")
    parser.add_argument("--normal", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pyod", type=Path)
    given = parser.parse_args()
    if given.pyod:
        sys.path.append(str(given.pyod))
    with tempfile.TemporaryDirectory() as folder:
        table = as_table(given.table, Path(folder)) if given.table in OFFLINE else Path(given.table)
        config = DataConfig(str(table), label=given.label, normal=given.normal)
        compare(config, [int(seed) for seed in given.seeds.split(",")], given.epochs)


def compare(config: DataConfig, seeds: list[int], epochs: int | None) -> None:
    """Fit all sides for each seed, and print what they find."""
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            vae = trained(settings(config, seed, epochs), Path(folder))
            took = time.monotonic() - begun
            fit, rest, odd = parts(vae, settings(config, seed, epochs))
            y = np.concatenate([rest, odd])
            labels = np.arange(len(y)) >= len(rest)
            note(found, seconds, "-ELBO", float(roc_auc_score(labels, -score(vae, y, DRAWS).elbo)), took)
        for name, scorer in others().items():
            begun = time.monotonic()
            scores = scorer(fit, y, seed)
            note(found, seconds, name, float(roc_auc_score(labels, scores)), time.monotonic() - begun)
    print(machine())
    scored = f"{len(rest):,} others and {len(odd):,} odd ones scored"
    print(f"{Path(config.dataset).name}: {len(fit):,} normal rows to fit, {scored}")
    print(f"{'AUROC':16}" + "".join(f"  seed {seed:<3}" for seed in seeds) + "    seconds")
    for name, values in found.items():
        print(f"{name:16}" + "".join(f"{value:10.5f}" for value in values) + f"{np.median(seconds[name]):11.1f}")


def as_table(name: str, folder: Path) -> Path:
    """One of scikit-learn's tables as CSV, with its classes as the column `target`."""
    bunch = OFFLINE[name]()
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*bunch.feature_names, "target"])
        writer.writerows([*row, label] for row, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True))
    return folder / f"{name}.csv"


def note(found: dict[str, list[float]], seconds: dict[str, list[float]], name: str, value: float, took: float) -> None:
    """Keep a side's figure."""
    found.setdefault(name, []).append(value)
    seconds.setdefault(name, []).append(took)


def settings(config: DataConfig, seed: int, epochs: int | None) -> Config:
    """The default preset for these rows; epochs: how many passes are made, None for as many as it makes."""
    return preset("vector", *data.look(config)).replace(
        dataset=config.dataset, label=config.label, normal=config.normal, seed=seed, epochs=epochs
    )


def trained(config: Config, folder: Path) -> VAE:
    """A VAE that was trained on half of the normal rows and exported; it takes rows as the networks do."""
    train.train(config, folder / "run", Place(Path(), False, "cpu"), "benchmarks/anomaly.py")
    exported = vae_export.export_run(run_folder.load(folder / "run"), folder / "bundle")
    return VAE.load(exported.path, standardised=True)


def parts(vae: VAE, config: Config) -> tuple[Rows, Rows, Rows]:
    """The rows that were trained on, the other normal ones, and the odd ones, scaled as the networks take them."""
    rows = data.load(config, Path(), download=False)
    assert config.data.label is not None
    table = Table(config.data.dataset, partial(Path(config.data.dataset).open, "rb"))
    blocks = list(table.blocks(vae.names, texts=[config.data.label]))
    labels = labels_of([text for block in blocks for text in block.texts[str(config.data.label)]])
    odd = labels != as_label(str(config.data.normal))
    measured = np.concatenate([block.values for block in blocks])
    return rows.train.numpy(), rows.test.numpy(), VAE.load(vae.path).standardise(measured[odd])


def others() -> dict[str, Scorer]:
    """Detectors of odd rows: scores of the second rows, higher is odder, by what is usual in the first."""

    def forest(x: Rows, y: Rows, seed: int) -> NDArray[np.float64]:
        return -np.asarray(IsolationForest(n_estimators=200, random_state=seed).fit(x).score_samples(y))

    def neighbours(x: Rows, y: Rows, seed: int) -> NDArray[np.float64]:
        return np.asarray(NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x).kneighbors(y)[0].mean(axis=1))

    def machine_of_one_class(x: Rows, y: Rows, seed: int) -> NDArray[np.float64]:
        some = np.random.default_rng(seed).permutation(len(x))[:MOST]
        return -np.asarray(OneClassSVM(nu=0.01, gamma="scale").fit(x[some]).score_samples(y))

    def components(x: Rows, y: Rows, seed: int) -> NDArray[np.float64]:
        fitted = PCA(n_components=max(1, x.shape[1] // 2), random_state=seed).fit(x)
        return np.square(y - fitted.inverse_transform(fitted.transform(y))).sum(axis=1)

    named: dict[str, Scorer] = {
        "isolation forest": forest, "5 neighbours": neighbours, "one-class SVM": machine_of_one_class, "PCA": components
    }  # fmt: skip
    try:
        from pyod.models.ecod import ECOD
    except ImportError:
        return named

    def tails(x: Rows, y: Rows, seed: int) -> NDArray[np.float64]:
        fitted = ECOD().fit(x)  # it counts the rows that it scores among the usual ones: a few at a time, then
        few = np.array_split(y, -(-len(y) // max(1, len(x) // 100)))
        return np.concatenate([fitted.decision_function(some) for some in few])

    return {**named, "ECOD": tails}


if __name__ == "__main__":
    main()
