"""What defines a training run: one frozen dataclass, and the named presets that fill it."""

import math
from dataclasses import dataclass, fields
from typing import Any

from vae_runtime.errors import ArgumentError

DATASETS = ("mnist", "fashion-mnist")
_LARGEST = 1_000_000


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises ArgumentError for what cannot be.

    hidden: the encoder's layer widths, mirrored in the decoder. lr: the peak of the one-cycle schedule.
    """

    preset: str
    dataset: str = "mnist"
    hidden: tuple[int, ...] = (400,)
    activation: str = "relu"
    latent_dim: int = 20
    epochs: int = 5
    batch_size: int = 128
    lr: float = 7e-3
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {"latent_dim": self.latent_dim, "epochs": self.epochs, "batch_size": self.batch_size}
        widths = {f"hidden layer {i}": width for i, width in enumerate(self.hidden)}
        for name, size in {**sizes, **widths}.items():
            if not 1 <= size <= _LARGEST:
                raise ArgumentError(f"{name} out of range", size, f"give 1 to {_LARGEST:,}")
        if not self.hidden:
            raise ArgumentError("no hidden layers", self.hidden, "give at least one width")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ArgumentError("learning rate out of range", self.lr, "give a positive --lr")

    def replace(self, **given: Any) -> "Config":
        """A copy with those settings in `given` that are not None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Config(**{**values, **{name: value for name, value in given.items() if value is not None}})


PRESETS = {
    "tutorial": Config("tutorial"),
    "deep": Config("deep", hidden=(512, 512), activation="silu", latent_dim=32, batch_size=64, lr=3e-3),
}
