"""The image sets, in memory with the precision that they came with: named ones, and a person's own."""

import contextlib
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor

from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.likelihoods import DiscretisedLogistic as RuntimeDiscretisedLogistic
from vae_train import own_images, pixels
from vae_train.config import DATASETS, FULL_SCALE, Config, Place
from vae_train.likelihoods import DiscretisedLogistic
from vae_train.run_folder import Settings

_CLASSES = {
    "mnist": torchvision.datasets.MNIST,
    "fashion-mnist": torchvision.datasets.FashionMNIST,
    "kmnist": torchvision.datasets.KMNIST,
}
_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))

_NAME_THEM = "name with --dataset where the images are that the run was trained on"


@dataclass(frozen=True)
class Images:
    """One image set: `train` and `test` [n, C, H, W], labels int64 [n], `names` the classes'.

    Pixels are uint8 levels, or float32 in [0, 1] where they are no 8-bit levels; a likelihood of such levels has them
    rounded. preprocessing: how files became these pixels, for the run and the bundle.
    """

    train: Tensor
    test: Tensor
    test_labels: Tensor
    names: list[str]
    preprocessing: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def digest(self) -> str:
        """sha256 of all training and test images' bytes."""
        sha256 = hashlib.sha256()
        for part in (self.train, self.test):
            sha256.update(part.numpy().tobytes())
        return sha256.hexdigest()

    def observed_test(self, binary: bool) -> Tensor:
        """The test images as a likelihood sees them: as they are, or the literature's binary draw, levels 0 and 255."""
        return self._drawn_test if binary else self.test

    @cached_property
    def _drawn_test(self) -> Tensor:
        return pixels.literature_draw(self.train, self.test)

    def observed_train(self, binary: bool) -> Tensor:
        """As many training images, as a likelihood sees them; from all over, since files lie in order of class."""
        some = self.train[:: max(1, len(self.train) // len(self.test))][: len(self.test)]
        return pixels.fixed_draw(some) if binary else some


def load(
    config: Config,
    root: Path,
    download: bool = True,
    warn: Callable[[str], None] = lambda text: None,
    say: Callable[[str], None] = lambda text: None,
) -> Images:
    """The images of `config.data`; named sets lie under `root`, and may be downloaded where missing.

    warn is told what is left out or lost, say how a folder's images were fitted.
    Raises InputError when files are missing and cannot be had, or are damaged.
    """
    return _named(config, root, download) if config.data.dataset in DATASETS else _own(config, warn, say)


def fitted(config: Config, say: Callable[[str], None] = lambda text: None) -> Config:
    """The settings with what their images are read with, where it was not given.

    Those are a folder's size and channels, and the full scale of 16-bit levels, told from the largest one, which `say`
    is told. Raises ArgumentError where levels are given and no file has 16 bits.
    """
    path = Path(config.data.dataset)
    if config.data.dataset in DATASETS or not path.exists():
        return config
    if path.is_dir():
        channels, height, width = own_images.shape(path, config.data.image_size, config.data.channels)
        config = config.replace(image_size=(height, width), channels=channels)
    if (largest := own_images.largest_level(path, torch.get_num_threads())) is None:
        if config.data.levels:
            raise ArgumentError("no 16-bit levels, which --levels is for", config.data.dataset, "leave it out")
        return config
    if config.data.levels is None:
        scale = own_images.full_scale(largest)
        config = config.replace(levels=scale)
        if scale < FULL_SCALE:
            taken = f"taken as {scale.bit_length()}-bit, x = level / {scale}"
            say(f"levels up to {largest:,} in 16-bit files are {taken}; --levels {FULL_SCALE} says otherwise")
    return config


def is_grey(images: Images) -> bool:
    """Whether any pixel is neither black nor white."""
    parts = (images.train, images.test)
    return any(bool(((part > 0) & (part < (255 if part.dtype == torch.uint8 else 1))).any()) for part in parts)


def located(settings: Settings, folder: Path, place: Place) -> Config:
    """The settings of the run in `folder` with its own images' path as it is now, for `load`.

    That is `place.dataset`, or the first that exists: the path as it was then, as it was typed, and seen from the run's
    folder or one above it, for what was moved or copied together. Raises InputError where none does; ArgumentError
    where a named set is given a path.
    """
    config, given = settings.config, place.dataset
    if config.data.dataset in DATASETS:
        if given is not None:
            todo = "leave out --dataset; --data-root names the folder of such sets"
            raise ArgumentError("the run's images are a named set", config.data.dataset, todo)
        return config
    typed = Path(config.data.dataset)
    beside = (parent / typed for parent in folder.absolute().parents)
    tried = (Path(settings.dataset_path or typed), typed, *beside) if given is None else (given,)
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise InputError("data not found", tried[0], _NAME_THEM)
    return config.replace(dataset=str(found))


def origin(config: Config, root: Path) -> tuple[object, str]:
    """Where images come from that are not those of a run, and what to do: the end of an error message."""
    if config.data.dataset in _CLASSES:
        return root, "name the --data-root that the run was trained on"
    todo = "install the scikit-learn that the run used" if config.data.dataset in DATASETS else _NAME_THEM
    return config.data.dataset, todo


def _named(config: Config, root: Path, download: bool) -> Images:
    if config.data.image_size or config.data.channels or config.data.levels:
        todo = "leave out --image-size, --channels and --levels"
        raise ArgumentError("images of a fixed size and levels", config.data.dataset, todo)
    if config.data.dataset == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8]
        names = [str(name) for name in digits.target_names]
        return _split(
            own_images.Found(levels, digits.target.astype(np.int64), names, 0),
            {"levels": "scikit-learn's 17 levels as 8-bit levels"},
        )
    return _torchvision(config.data.dataset, root, download)


def _torchvision(dataset: str, root: Path, download: bool) -> Images:
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
    return Images(train.data.unsqueeze(1), test.data.unsqueeze(1), test.targets, names, preprocessing)


def _own(config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Images:
    path = Path(config.data.dataset)
    if not config.data.dataset or not path.exists():
        which = config.data.dataset or "an empty name"
        raise InputError("data not found", which, f"name {', '.join(DATASETS)}, a folder of images, or an array's file")
    shape = own_images.shape(path, config.data.image_size, config.data.channels)
    found = own_images.load(path, shape, warn, torch.get_num_threads(), config.data.levels, say)
    if found.pixels.dtype == np.uint8 and found.pixels.max() == 1:
        warn("no level above 1 of 255: nearly black images; where 1 means white, save booleans or levels 0 and 255")
    fitted = "upright, transparency over black, {} channels, cut at the centre and resized to {}x{} (bicubic)"
    read: dict[str, Any] = {"levels": fitted.format(*shape) if path.is_dir() else "as they are"}
    if config.data.levels:
        read["full_scale"] = config.data.levels
    if config.network.likelihood != DiscretisedLogistic.name or found.pixels.dtype == np.uint8:
        return _split(found, read)
    rounded = own_images.to_levels(found.pixels)
    if RuntimeDiscretisedLogistic(3).supports(found.pixels).all():  # levels but for what float32 rounds
        return _split(found._replace(pixels=rounded), read)
    left = f"{len(np.unique(rounded)):,} of {len(np.unique(found.pixels)):,} distinct values left"
    warn(f"{DiscretisedLogistic.name}: pixels are rounded to its 8-bit levels, {left}; --likelihood gaussian keeps all")
    return _split(found._replace(pixels=rounded), {**read, "rounded": f"to 8-bit levels, {left}"})


def _split(found: own_images.Found, preprocessing: dict[str, Any]) -> Images:
    """Keep the tenth that `own_images.in_test` chooses for testing."""
    test = own_images.in_test(found.pixels)
    if test.all() or not test.any():
        distinct = len({image.tobytes() for image in found.pixels})
        what = "too few images" if distinct == len(test) else "too few different images"
        which = f"{len(test)} of them" if distinct == len(test) else f"of {len(test)}, {distinct} differ"
        which = which if distinct > 1 or len(test) == 1 else f"all {len(test)} are equal"
        raise InputError(f"{what} to keep a tenth for testing", which, "give some dozens")
    split = "a tenth, by the sha256 of the pixels"
    preprocessing = {**preprocessing, "split": split, "unreadable": found.unreadable}
    train, kept = (torch.from_numpy(found.pixels[part]) for part in (~test, test))
    return Images(train, kept, torch.from_numpy(found.labels[test]), found.names, preprocessing)
