"""Odd images by the shipped fashion-mnist: six scores of the model, beside five detectors of scikit-learn and PyOD.

    python benchmarks/detection.py [--data-root FOLDER] [--images N] [--pyod FOLDER]

Half of Fashion-MNIST's test images is what the scores are calibrated by, N others are normal, and N of MNIST, of noise
and of ten ways to spoil the normal ones are odd. Printed are AUROC, the average precision, and the share of false
alarms at 95% caught. The model's scores: -ELBO, as `percentile` ranks; -bound, of 64 draws; the squared error; LPath, a
Gaussian fit to squared error, KL and sum of logsigma (Huang, He and Lui 2024, arXiv:2401.04933); DoSE, one kernel
density for each trait of the model (Morningstar et al. 2021, arXiv:2006.09273); and the runtime's Detector. The others
see 50 principal components of the pixels of the training images.
FOLDER of PyOD: as for benchmarks/anomaly.py.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from anomaly import others
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from side_by_side import machine
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from vae_runtime import VAE, Detector
from vae_runtime.density import Density
from vae_train import data
from vae_train.config import PRESETS

FITTED, COMPONENTS, BOUND = 10_000, 50, 64
Levels = NDArray[np.uint8]
Doubles = NDArray[np.float64]
Scorer = Callable[[Levels], Doubles]


def main() -> None:
    """Print a table for each figure: a row for each score, a column for each kind of odd images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("VAE_EDGE_DATA", "data")))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pyod", type=Path)
    given = parser.parse_args()
    if given.pyod:
        sys.path.append(str(given.pyod))
    fashion, digits = (images(name, given.data_root) for name in ("fashion-mnist", "mnist"))
    test = fashion[1]
    half = len(test) // 2
    normal = test[half : half + given.images]
    odd = {"mnist": digits[1][: given.images], **spoiled(test[half + given.images :][: given.images])}
    print(machine())
    print(f"{half:,} images to calibrate by, {len(normal):,} normal, {given.images:,} of each odd kind")
    found = {
        name: (scorer(normal), {kind: scorer(x) for kind, x in odd.items()})
        for name, scorer in {**of_model(test[:half]), **of_pixels(fashion[0][:FITTED])}.items()
    }
    for title, figure in {"AUROC": roc_auc_score, "average precision": average_precision_score, "alarms": late}.items():
        print(f"\n{title:18}" + "".join(f"{kind:>11}" for kind in odd))
        for name, (usual, scores) in found.items():
            pairs = ((np.repeat([0, 1], [len(usual), len(s)]), np.concatenate([usual, s])) for s in scores.values())
            print(f"{name:18}" + "".join(f"{figure(*pair):11.3f}" for pair in pairs))
    detector = Detector.fit(VAE.load("fashion-mnist"), unit(test[:half]))
    alarms = int((detector.p(found["Detector"][0]) <= detector.false_alarms).sum())
    print(f"\nof {len(normal):,} normal images {alarms} are called odd, at {detector.false_alarms:.0%} of false alarms")


def images(name: str, root: Path) -> tuple[Levels, Levels]:
    """Those to train on and those to test on, uint8 [n, 1, 28, 28]."""
    found = data.load(PRESETS["tutorial"].replace(dataset=name), root, download=False)
    return found.train.numpy(), found.test.numpy()


def spoiled(x: Levels, seed: int = 0) -> dict[str, Levels]:
    """Images [n, 1, 28, 28] in ten ways, and noise."""
    noise, flat = np.random.default_rng(seed), np.empty_like(x)
    flat[:] = noise.integers(0, 256, (len(x), 1, 1, 1))
    scratched = x.copy()
    for image in scratched[:, 0]:
        first, last = noise.integers(0, 28, 2)
        image[np.arange(28), np.linspace(first, last, 28).round().astype(int)] = 255
    pillow = [Image.fromarray(image) for image in x[:, 0]]
    return {
        "noise": noise.integers(0, 256, x.shape).astype(np.uint8),
        "constant": flat,
        "inverted": 255 - x,
        "mirrored": np.ascontiguousarray(x[..., ::-1]),
        "upside": np.ascontiguousarray(x[..., ::-1, :]),
        "shifted": np.roll(x, (4, 4), axis=(2, 3)),
        "blurred": np.stack([image.filter(ImageFilter.GaussianBlur(1.5)) for image in pillow])[:, None],
        "turned": np.stack([image.rotate(30, Image.Resampling.BILINEAR) for image in pillow])[:, None],
        "scratched": scratched,
        "dimmed": (0.6 * x).astype(np.uint8),
    }


def of_model(calibrated_by: Levels) -> dict[str, Scorer]:
    """Scores of the shipped model; higher is odder."""
    vae = VAE.load("fashion-mnist")
    detector = Detector.fit(vae, unit(calibrated_by))
    known = detector.traits(unit(calibrated_by))
    at = {name: i for i, name in enumerate(detector.calibration.traits)}
    path = known[:, [at["log squared error"], at["KL"], at["sum of logsigma"]]]
    mean, inverse = path.mean(axis=0), np.linalg.inv(np.cov(path.T))
    model = list(range(7))
    alone = [Density.of(known[:, [i]]) for i in model]

    def lpath(x: Levels) -> Doubles:
        off = detector.traits(unit(x))[:, [at["log squared error"], at["KL"], at["sum of logsigma"]]] - mean
        return np.einsum("ij,jk,ik->i", off, inverse, off)

    def dose(x: Levels) -> Doubles:
        traits = detector.traits(unit(x))
        return np.sum([one.surprise(traits[:, [i]]) for i, one in zip(model, alone, strict=True)], axis=0)

    return {
        "-ELBO": lambda x: -vae.terms(unit(x), detector.calibration.num_samples, observe=True).elbo,
        "-bound": lambda x: -vae.log_likelihood(vae.observe(unit(x)), BOUND),
        "squared error": lambda x: detector.traits(unit(x))[:, at["log squared error"]],
        "LPath": lpath,
        "DoSE": dose,
        "Detector": lambda x: detector.score(unit(x)),
    }


def of_pixels(train: Levels) -> dict[str, Scorer]:
    """Detectors without a network, on principal components of the pixels."""
    flat = unit(train).reshape(len(train), -1)
    components = PCA(n_components=COMPONENTS, whiten=True, random_state=0).fit(flat)
    x = components.transform(flat).astype(np.float32)

    def scorer(of: Callable[..., Doubles]) -> Scorer:
        return lambda y: of(x, components.transform(unit(y).reshape(len(y), -1)).astype(np.float32), 0)

    return {name: scorer(of) for name, of in others().items()}


def unit(levels: Levels) -> NDArray[np.float32]:
    """Levels / 255."""
    return levels.astype(np.float32) / np.float32(255)


def late(odd: NDArray[np.int64], scores: Doubles) -> float:
    """The share of false alarms where 95% of the odd ones are caught."""
    alarms, caught, _ = roc_curve(odd, scores)
    return float(alarms[np.argmax(caught >= 0.95)])


if __name__ == "__main__":
    main()
