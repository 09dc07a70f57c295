"""The named image sets: torchvision's MNIST and its like, in its layout, and scikit-learn's digits."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torchvision.datasets

from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import Observation
from vae_train.config import DataConfig
from vae_train.data import Data, split

_CLASSES = {
    "mnist": torchvision.datasets.MNIST,
    "fashion-mnist": torchvision.datasets.FashionMNIST,
    "kmnist": torchvision.datasets.KMNIST,
}
_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def load(data: DataConfig, root: Path, download: bool) -> Data:
    """The images of the set that `data` names; under `root`, if it is one of torchvision's.

    Raises InputError when files are missing and cannot be had, or are damaged; ArgumentError for other sizes.
    """
    if data.image_size or data.channels or data.levels:
        todo = "leave out --image-size, --channels and --levels"
        raise ArgumentError("images of a fixed size and levels", data.dataset, todo)
    return _digits() if data.dataset == "digits" else _torchvision(data.dataset, root, download)


def _digits() -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8]
    names = [str(name) for name in digits.target_names]
    preprocessing = {"levels": "scikit-learn's 17 levels as 8-bit levels"}
    return split(levels, digits.target.astype(np.int64), names, Observation.image((1, 8, 8)), preprocessing)


def _torchvision(dataset: str, root: Path, download: bool) -> Data:
    cls = _CLASSES[dataset]
    folder = root / cls.__name__ / "raw"
    if not all((folder / name).exists() for name in _FILES):
        todo = f"put {', '.join(_FILES)} there, or name their folder with --data-root or VAE_EDGE_DATA"
        if not download:
            raise InputError("data not found", folder, f"{todo}, or allow the download")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # torchvision reports its downloads with print
                cls(str(root), download=True)
        except (RuntimeError, OSError) as error:
            first, *rest = str(error).strip().splitlines()  # torchvision's last line has the reason
            reason = " ".join([first, *rest[-1:]])
            todo += "; or begin with --dataset digits, which needs no files"
            raise InputError(f"data not found, and its download failed ({reason})", folder, todo) from None
    try:
        train, test = (cls(str(root), train=part) for part in (True, False))
        if any(p.data.ndim != 3 or len(p.data) != len(p.targets) or len(p.data) == 0 for p in (train, test)):
            raise ValueError("as many labels as images are needed")
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise InputError(f"data damaged ({error})", folder, "remove the files and fetch them again") from None
    names = [name.split(" - ")[0] for name in train.classes]
    preprocessing = {"levels": "as they are", "split": "the set's own"}
    kind = Observation.image((1, *train.data.shape[1:]))
    return Data(train.data.unsqueeze(1), test.data.unsqueeze(1), test.targets, names, preprocessing, kind)
