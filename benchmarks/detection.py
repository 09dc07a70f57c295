"""Odd or not on every set: six scores of a VAE, beside detectors of scikit-learn and PyOD and two others' VAEs.

    python benchmarks/detection.py [--sets WORDS] [--cache FOLDER] [--data-root FOLDER] [--packages FOLDER]

The sets are those of benchmarks/detection_sets.py, or those whose names hold one of WORDS, with commas between. A VAE
is trained on each and exported, unless FOLDER of the cache has the bundle from before. Printed, as Markdown, are AUROC,
the average precision, and the share of false alarms at 95% caught, and how many normal observations the Detector calls
odd at 1%; where several sets have the same name, as splits of one table have, the mean. The model's scores: -ELBO, as
`percentile` ranks; -bound, of 16 draws; the squared error; LPath, a Gaussian fit to squared error, KL and sum of
logsigma (Huang, He and Lui 2024, arXiv:2401.04933); DoSE, one kernel density for each trait of the model (Morningstar
et al. 2021, arXiv:2006.09273); and the runtime's Detector. The others are fitted to 5,000 training observations at
most: those of scikit-learn and ECOD to 50 principal components of pixels, or to the values; PyOD's VAE, by its
reconstruction error, and pythae's, by its loss, to the values, for 30 epochs each.
FOLDER of packages: where `pip install --target FOLDER` has put pyod, pythae and scikit-image, and may be several, with
colons between; what is missing is left out, which is said.
"""

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from anomaly import others
from detection_sets import MANY, SETS, Array, Parts, Set, windows
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import vae_export
import vae_train
from vae_runtime import VAE, Detector
from vae_runtime.density import Density
from vae_runtime.doctor import describe
from vae_runtime.errors import InputError

OURS = "Detector"
FITTED, COMPONENTS, BOUND, EPOCHS = 5_000, 50, 16, 30
MODEL = (
    "log p(x|z)", "KL", "entropy", "log squared error", "log spread of nats", "log |mu|^2", "sum of logsigma"
)  # fmt: skip
VERSIONS = ("numpy", "onnxruntime", "torch", "scikit-learn", "scikit-image", "pyod", "pythae")

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Scores = dict[str, Doubles]  # of observations, by the name of what scores them
Figures = dict[str, dict[str, float]]


def late(odd: NDArray[np.bool_], scores: Doubles) -> float:
    """The share of false alarms where 95% of the odd ones are caught."""
    alarms, caught, _ = roc_curve(odd, scores)
    return float(alarms[np.argmax(caught >= 0.95)])


FIGURES: dict[str, Callable[[NDArray[np.bool_], Doubles], float]] = {
    "AUROC": roc_auc_score,
    "average precision": average_precision_score,
    "false alarms at 95% caught": late,
}


def main() -> None:
    """Print what was found of each kind, how many normal ones are called odd, and all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("VAE_EDGE_DATA", "data")))
    parser.add_argument("--packages", default="")
    given = parser.parse_args()
    sys.path.extend(filter(None, given.packages.split(":")))
    found: dict[str, dict[str, list[Figures]]] = {}  # by table and kind
    called = []
    with tempfile.TemporaryDirectory() as folder:
        for one in (one for one in SETS if any(word in one.name for word in given.sets.split(","))):
            try:
                parts = one.parts(given.data_root)
            except (InputError, OSError, RuntimeError) as error:
                print(f"{one.name} is left out: {error}", file=sys.stderr)
                continue
            detector = Detector.fit(bundled(one, parts, given.cache or Path(folder)), as_taken(parts.usual))
            normal, odd = scored(detector, parts)
            called.append((one.name, *alarms(detector, normal[OURS])))
            for kind, scores in odd.items():
                found.setdefault(one.table, {}).setdefault(kind or one.name, []).append(figures(normal, scores))
    tables = {title: {kind: mean(each) for kind, each in kinds.items()} for title, kinds in found.items()}
    print(machine())
    show_best(tables)
    show("Normal ones", ["set", "to calibrate by", "normal", "called odd", "at", "97.5% of counts are"], called)
    for title, kinds in tables.items():
        for figure in FIGURES:
            show_figure(f"{title}: {figure}", {kind: of[figure] for kind, of in kinds.items()})


def machine() -> str:
    """The date, this machine, and the versions that matter."""
    facts = describe()
    found = []
    for name in VERSIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"{datetime.date.today()}, {facts['machine']}, Python {facts['python']}, {', '.join(found)}"


def bundled(one: Set, parts: Parts, cache: Path) -> VAE:
    """The VAE of a set: what ships, what lies in the cache, or one that is trained and exported to there."""
    folder = cache / one.folder
    if not one.ships and not folder.exists():
        rows = parts.train.ndim == 2 and "window" not in one.settings  # of which there may be none to spare
        run = vae_train.fit(parts.train, parts.usual if rows else None, progress=False, **one.settings)
        vae_export.export_run(run, folder)
    return VAE.load(one.ships or folder)


def as_taken(x: Array) -> Array:
    """Observations as the runtime takes them: levels in [0, 1], others as they are."""
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x


def scored(detector: Detector, parts: Parts) -> tuple[Scores, dict[str, Scores]]:
    """The scores of the normal observations, and of each kind of odd ones, by what gives them; higher is odder."""
    kinds = [parts.normal, *parts.odd.values()]
    every, ends = np.concatenate(kinds), np.cumsum([len(x) for x in kinds])[:-1]
    found = {**by_model(detector, parts.usual[:MANY], every), **by_others(parts.train, every)}
    normal, *odd = (
        {name: of[i] for name, of in split.items()}
        for split in [{name: np.split(scores, ends) for name, scores in found.items()}]
        for i in range(len(kinds))
    )
    return normal, dict(zip(parts.odd, odd, strict=True))


def by_model(detector: Detector, usual: Array, x: Array) -> Scores:
    """Six scores of the model."""
    vae, names = detector.vae, list(detector.calibration.traits)
    known, seen = (detector.traits(as_taken(some)) for some in (usual, x))
    model = [names.index(name) for name in MODEL if name in names]
    path = [
        np.column_stack([traits[:, [names.index("log squared error"), names.index("KL")]], widths(vae, some)])
        for traits, some in ((known, usual), (seen, x))
    ]
    off, inverse = path[1] - path[0].mean(axis=0), np.linalg.pinv(np.cov(path[0].T))
    return {
        "-ELBO": seen[:, names.index("KL")] - seen[:, names.index("log p(x|z)")],
        "-bound": -vae.log_likelihood(vae.observe(as_taken(x)), BOUND),
        "squared error": seen[:, names.index("log squared error")],
        "LPath": np.einsum("ij,jk,ik->i", off, inverse, off),
        "DoSE": np.sum([Density.of(known[:, [i]]).surprise(seen[:, [i]]) for i in model], axis=0),
        OURS: detector.judged(seen).score,
    }


def widths(vae: VAE, x: Array) -> Doubles:
    """The sum of logsigma of each observation [n]."""
    return vae.encode(vae.observe(as_taken(x)))[1].reshape(len(x), -1).sum(axis=1, dtype=np.float64)


def by_others(train: Array, x: Array) -> Scores:
    """Scores of detectors that do without our VAE, fitted to `train`."""
    fitted = windows(train) if x.ndim == 3 else train
    chosen = np.random.default_rng(0).permutation(len(fitted))[:FITTED]
    known, seen = (as_taken(some).reshape(len(some), -1).astype(np.float64) for some in (fitted[chosen], x))
    if x.ndim == 4:
        components = PCA(min(COMPONENTS, len(known) - 1), whiten=True, random_state=0).fit(known)
        features = [components.transform(some) for some in (known, seen)]
    else:
        mean, scale = known.mean(axis=0), known.std(axis=0)
        features = [(some - mean) / np.where(scale > 0, scale, 1) for some in (known, seen)]
    found = {name: scorer(features[0], features[1], 0) for name, scorer in others().items()}
    for name, scorer in (("PyOD's VAE", pyod), ("pythae's VAE", pythae)):
        try:
            found[name] = scorer(known, seen)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def pyod(known: Doubles, seen: Doubles) -> Doubles:
    """The reconstruction error of PyOD's VAE, with its own settings."""
    from pyod.models.vae import VAE as Other

    few = min(32, len(known))  # its batches are of 32, and smaller ones are left out
    model = Other(epoch_num=EPOCHS, batch_size=few, verbose=0, random_state=0, device=torch.device("cpu"))
    return model.fit(known).decision_function(seen)


def pythae(known: Doubles, seen: Doubles) -> Doubles:
    """The loss of pythae's VAE at the mean of its posterior; values are scaled to [0, 1], which its decoder gives."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as Other
    from pythae.models import VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    low, high = known.min(axis=0), known.max(axis=0)
    x, y = (torch.from_numpy((some - low) / np.where(high > low, high - low, 1)).float() for some in (known, seen))
    model = Other(VAEConfig(input_dim=(x.shape[1],)))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(output_dir=folder, num_epochs=EPOCHS, learning_rate=1e-3, no_cuda=True)
        BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=config).train()
    with torch.no_grad():
        given = model.eval().encoder(y)
        mu, log_var = given.embedding, given.log_covariance
        error = torch.square(model.decoder(mu).reconstruction - y).sum(dim=1)
        return ((error + (mu**2 + log_var.exp() - 1 - log_var).sum(dim=1)) / 2).double().numpy()


def alarms(detector: Detector, normal: Doubles) -> tuple[str, ...]:
    """How many there are to calibrate by, normal ones, and called odd; at what share, and how many that makes."""
    share, count = detector.false_alarms, len(normal)
    least, most = binom.ppf([0.0125, 0.9875], count, share).astype(int)
    odd = int((detector.p(normal) <= share).sum())
    known = detector.calibration.observations
    return f"{known:,}", f"{count:,}", f"{odd}", f"{share:.1%}", f"{least} to {most}"


def figures(normal: Scores, odd: Scores) -> Figures:
    """Each figure of each score, by the name of the figure and of the score."""
    found: Figures = {figure: {} for figure in FIGURES}
    for name, usual in normal.items():
        scores = np.nan_to_num(np.concatenate([usual, odd[name]]), posinf=np.finfo(np.float64).max)
        for figure, of in FIGURES.items():
            found[figure][name] = float(of(np.arange(len(scores)) >= len(usual), scores))
    return found


def mean(each: list[Figures]) -> Figures:
    """The mean of figures of several sets."""
    return {
        figure: {name: float(np.mean([one[figure][name] for one in each])) for name in each[0][figure]}
        for figure in FIGURES
    }


def show_best(tables: dict[str, dict[str, Figures]]) -> None:
    """Of each kind the Detector's figures, beside the AUROC of -ELBO and that of the best other score."""
    auroc, precision, late = FIGURES
    rows = []
    for title, kinds in tables.items():
        for kind, of in kinds.items():
            best = max((value, name) for name, value in of[auroc].items() if name != OURS)
            ours = [of[figure][OURS] for figure in (auroc, precision, late)]
            rows.append((title, kind, *(f"{value:.3f}" for value in (of[auroc]["-ELBO"], *ours, best[0])), best[1]))
    show("Odd ones", ["set", "odd", "-ELBO", OURS, *list(FIGURES)[1:], "best other", ""], rows)


def show_figure(title: str, kinds: dict[str, dict[str, float]]) -> None:
    """A figure: a row for each score, a column for each kind, and the mean over these; the best ones are bold."""
    best = min if "alarms" in title else max
    names = list(next(iter(kinds.values())))
    columns = [[*of.values()] for of in kinds.values()]
    columns.append(np.mean(columns, axis=0).tolist())
    rounded = [[f"{value:.3f}" for value in column] for column in columns]
    rows = [
        (name, *(f"**{column[i]}**" if column[i] == best(column) else column[i] for column in rounded))
        for i, name in enumerate(names)
    ]
    show(title, ["score", *kinds, "mean"], rows)


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}:\n")
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
