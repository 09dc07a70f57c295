"""What defines a training run: one frozen dataclass, and the named presets that fill it."""

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vae_runtime.errors import ArgumentError

DATASETS = ("mnist", "fashion-mnist", "kmnist", "digits")  # anything else is a path
NETWORKS = ("mlp", "resnet")
ACTIVATIONS = ("relu", "silu", "gated")
LIKELIHOODS = ("bernoulli", "gaussian", "discretised-logistic")
GRADIENTS = ("path", "total")
PRECISIONS = ("float32", "bfloat16", "auto")
_LARGEST = 1_000_000
FULL_SCALE = 65535  # of 16-bit levels


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises ArgumentError for what cannot be.

    dataset: one of DATASETS, or the path of a folder of images or of an array. image_size (a square's side, or height
    and width) and channels are for folders. levels: the 16-bit level that is 1.0, such as 4095 of a 12-bit camera.
    binarise: draw pixels as 0 or 1 with P(1) = level / 255, anew in every batch.
    network: "mlp" with layers `hidden` and `activation`, or "resnet" with `hidden` channels at each halving of the
    image, `blocks` residual blocks there, and a layer of width `dense`; the decoder mirrors the encoder.
    model: a person's own networks, "package.module:function".
    samples, gradient, beta, free_bits: see `vae_train.objectives`. warm_up: epochs in which beta grows from 0.
    lr: the peak of the one-cycle schedule. precision: in which products are computed; weights are always float32.
    "auto" is settled when a training begins, and a run records what it was.
    """

    preset: str
    dataset: str = "mnist"
    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    levels: int | None = None
    likelihood: str = "bernoulli"
    binarise: bool = True
    network: str = "mlp"
    hidden: tuple[int, ...] = (400,)
    activation: str = "relu"
    blocks: int = 1
    dense: int = 256
    model: str | None = None
    latent_dim: int = 20
    samples: int = 1
    gradient: str = "path"
    beta: float = 1.0
    warm_up: float = 0.0
    free_bits: float = 0.0
    epochs: int = 5
    batch_size: int = 128
    lr: float = 7e-3
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {
            name: getattr(self, name) for name in ("latent_dim", "samples", "blocks", "dense", "epochs", "batch_size")
        }
        if self.channels is not None:
            sizes["channels"] = self.channels
        if self.image_size is not None:
            sides = (self.image_size,) if isinstance(self.image_size, int) else self.image_size
            sizes |= {f"image_size {i}" if i else "image_size": side for i, side in enumerate(sides)}
        sizes |= {f"hidden layer {i}": width for i, width in enumerate(self.hidden)}
        for name, size in sizes.items():
            if not 1 <= size <= _LARGEST:
                raise ArgumentError(f"{name} out of range", size, f"give 1 to {_LARGEST:,}")
        if self.levels is not None and not 1 <= self.levels <= FULL_SCALE:
            raise ArgumentError("levels out of range", self.levels, f"give 1 to {FULL_SCALE}")
        if self.channels not in (None, 1, 3):
            raise ArgumentError("channels out of range", self.channels, "give 1 (grey) or 3 (RGB)")
        if not self.hidden:
            raise ArgumentError("no hidden layers", self.hidden, "give at least one width")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ArgumentError("learning rate out of range", self.lr, "give a positive --lr")
        for name in ("beta", "warm_up", "free_bits"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ArgumentError(f"{name} out of range", value, "give 0 or more")
        choices = {"network": NETWORKS, "activation": ACTIVATIONS, "likelihood": LIKELIHOODS}
        for name, known in (choices | {"gradient": GRADIENTS, "precision": PRECISIONS}).items():
            if getattr(self, name) not in known:
                raise ArgumentError(f"{name} not known", getattr(self, name), f"give one of {', '.join(known)}")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Raise ArgumentError for settings that contradict each other."""
        if self.binarise and self.likelihood != "bernoulli":
            todo = "leave --binarise out, or choose --likelihood bernoulli"
            raise ArgumentError("binary pixels under a likelihood of grey levels", self.likelihood, todo)
        if self.samples > 1 and (self.beta != 1 or self.warm_up or self.free_bits):
            todo = "leave out --beta, --warm-up and --free-bits, or --samples"
            raise ArgumentError("a weighted KL in the importance-weighted bound", f"--samples {self.samples}", todo)

    @property
    def made_by(self) -> str:
        """What made the networks: the preset, or a person's own function."""
        return f"networks {self.model}" if self.model else f"preset {self.preset}"

    def steps_per_epoch(self, images: int) -> int:
        """For so many training images; the last batch may be smaller."""
        return -(-images // self.batch_size)

    def replace(self, **given: Any) -> "Config":
        """A copy with those settings in `given` that are not None; pixels are binary where the likelihood's are."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {name: value for name, value in given.items() if value is not None}
        if "likelihood" in changed:
            values["binarise"] = changed["likelihood"] == "bernoulli"
        return Config(**{**values, **changed})


@dataclass(frozen=True)
class Place:
    """Where a command works; the same settings mean the same training at every place.

    data_root: folder of the named image sets. download: whether to use the network. device: "auto", "cpu" or "cuda".
    threads: on the CPU; None for the cores there are. trusted: the module of a run's own networks that may be imported.
    dataset: where a run's own images are now; None for where they were.
    """

    data_root: Path
    download: bool = True
    device: str = "auto"
    threads: int | None = None
    trusted: str | None = None
    dataset: Path | None = None

    @property
    def options(self) -> list[str]:
        """What names this place on a command line, but for what is so by default."""
        usual = (None, "auto", "data", os.environ.get("VAE_EDGE_DATA"))
        named = {
            "--model": self.trusted, "--dataset": self.dataset, "--data-root": str(self.data_root),
            "--device": self.device, "--threads": self.threads,
        }  # fmt: skip
        return [word for name, value in named.items() if value not in usual for word in (name, str(value))]


PRESETS = {
    "tutorial": Config("tutorial"),
    "deep": Config("deep", hidden=(512, 512), activation="silu", latent_dim=32, batch_size=64, lr=3e-3),
    "gated": Config("gated", hidden=(300, 300), activation="gated", latent_dim=40, batch_size=64, lr=3e-3),
    "resnet": Config("resnet", network="resnet", hidden=(32, 32), latent_dim=40, lr=2e-3, precision="auto"),
    "resnet-colour": Config(
        "resnet-colour",
        likelihood="discretised-logistic",
        binarise=False,
        network="resnet",
        hidden=(32, 64, 128),
        latent_dim=64,
        batch_size=64,
        lr=1e-3,
        epochs=20,
        precision="auto",
    ),
}


def default_preset(channels: int) -> str:
    """The preset for images of so many channels where none is named."""
    return "tutorial" if channels == 1 else "resnet-colour"
