"""What defines a training run: one frozen dataclass, and the named presets that fill it."""

from dataclasses import dataclass, fields
from typing import Any

DATASETS = ("mnist", "fashion-mnist")


@dataclass(frozen=True)
class Config:
    """All settings of a run.

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

    def replace(self, **given: Any) -> "Config":
        """A copy with those settings in `given` that are not None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Config(**{**values, **{name: value for name, value in given.items() if value is not None}})


PRESETS = {
    "tutorial": Config("tutorial"),
    "deep": Config("deep", hidden=(512, 512), activation="silu", latent_dim=32, batch_size=64, lr=3e-3),
}
