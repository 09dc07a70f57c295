"""The image sets, in memory as uint8 tensors, and their binarisation."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor

from vae_runtime.errors import InputError

_CLASSES = {"mnist": torchvision.datasets.MNIST, "fashion-mnist": torchvision.datasets.FashionMNIST}
_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
VALIDATION_START = 50_000  # the literature's split: the last 10,000 training images were its validation set


@dataclass(frozen=True)
class Images:
    """One image set: `train` and `test` are uint8 [n, C, H, W] grey levels, labels int64 [n], `names` the classes'."""

    train: Tensor
    test: Tensor
    test_labels: Tensor
    names: list[str]


def load(dataset: str, root: Path, download: bool = True) -> Images:
    """Read an image set in torchvision's layout under `root`; download it when it is missing and `download` is true.

    Raises InputError when the files are missing and cannot be had, or are damaged.
    """
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
            reason = str(error).splitlines()[0]
            raise InputError(f"data not found, and its download failed ({reason})", folder, todo) from None
    try:
        train, test = (cls(str(root), train=part) for part in (True, False))
        if any(p.data.ndim != 3 or len(p.data) != len(p.targets) or len(p.data) == 0 for p in (train, test)):
            raise ValueError("as many labels as images are needed")
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise InputError(f"data damaged ({error})", folder, "remove the files and fetch them again") from None
    names = [name.split(" - ")[0] for name in train.classes]
    return Images(train.data.unsqueeze(1), test.data.unsqueeze(1), test.targets, names)


def binarise(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Draw binary pixels with P(1) = grey / 255 to within 2^-16: float32 {0, 1} of the same shape, new at each call."""
    words = torch.empty(grey.numel() // 4 + 1, dtype=torch.int64, device=grey.device)
    words.random_(-(2**63), None, generator=generator)  # whole words cost a tenth of one bounded draw per pixel
    draws = words.view(torch.int16)[: grey.numel()].view(grey.shape).clamp(max=2**15 - 2)
    threshold = grey.short() * 257 - 2**15  # level 0 is never reached, level 255 always
    return (draws < threshold).float()


def fixed_test_draw(images: Images) -> Tensor:
    """The literature's one binary draw of the test images, uint8 {0, 1} [n, C, H, W].

    NumPy's legacy generator with seed 777 draws the validation images first, then the test images.
    """
    state = np.random.RandomState(777)
    state.binomial(1, images.train[VALIDATION_START:].numpy() / 255)
    return torch.from_numpy(state.binomial(1, images.test.numpy() / 255).astype(np.uint8))
