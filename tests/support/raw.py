"""Raw files as people have them, of each kind of observation, and runs that were trained on such: seconds in all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vae_train
from support import runs
from vae_train.listener import SILENT
from vae_train.run import Run

COUNTS = {"train": 200, "normal": 120, "new": 200}  # observations; every tenth of the new ones is odd
WINDOW = 16
NETWORKS: dict[str, dict[str, Any]] = {  # the settings of a training of seconds
    "image": {"preset": "tutorial", "hidden": (24,), "latent_dim": 4, "image_size": (12, 14), "channels": 1},
    "vector": {"hidden": (96, 96), "latent_dim": 2},
    "series": {"hidden": (8,), "dense": 96, "latent_dim": 3, "window": WINDOW, "stride": WINDOW},
}

Doubles = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Raw:
    """Files of one kind: what is trained on, other normal ones, and new ones, of which some are odd."""

    kind: str
    train: Path
    normal: Path
    new: Path


def write(kind: str, folder: Path) -> Raw:
    """Seeded ones: pictures of odd sizes and modes, rows in the units of a plant, or rows in order of time."""
    paths = []
    for seed, (name, count) in enumerate(COUNTS.items()):
        rng, odd = np.random.default_rng(seed), np.arange(count) % 10 == 9
        path = folder / (name if kind == "image" else f"{name}.csv")
        if kind == "image":
            _write_pictures(path, rng, odd & (name == "new"))
        else:
            table = _rows if kind == "vector" else _times
            path.write_text("\n".join(table(rng, odd & (name == "new"))) + "\n")
        paths.append(path)
    return Raw(kind, *paths)


def fit(raw: Raw, out: Path, **settings: Any) -> Run:
    """A training of an epoch or a few, whose test observations are the normal ones."""
    given = {"epochs": 2, "batch_size": 50, **NETWORKS[raw.kind], **settings}
    with runs.without_report():
        return vae_train.fit(raw.train, raw.normal, out=out, listener=SILENT, threads=1, **given)


def _write_pictures(folder: Path, rng: np.random.Generator, odd: np.ndarray) -> None:
    """A soft spot each, somewhere on a dark ground; odd ones are negatives of such."""
    folder.mkdir()
    for number, negative in enumerate(odd):
        height, width = rng.integers(15, 42, 2)
        rows, columns = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
        (y, x), size = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.25)
        light = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / size**2) + 0.02 * rng.normal(size=rows.shape)
        levels = np.clip(230 * (1 - light if negative else light), 0, 255).astype(np.uint8)
        picture = Image.fromarray(levels)
        picture.convert("RGB" if number % 3 == 0 else "L").save(folder / f"{number:03}.png", compress_level=1)


def _rows(rng: np.random.Generator, odd: np.ndarray) -> list[str]:
    """Temperature, pressure, flow and power, which belong together; of odd ones the pressure does not."""
    load, noise = rng.normal(size=len(odd)), rng.normal(size=(len(odd), 4)) * [0.3, 2, 0.05, 0.02]
    values = np.stack([21 + 3 * load, 1013 + 8 * load, 4 - load, 0.5 + 0.1 * load**2], axis=1) + noise
    values[odd, 1] = 1013 - 30 * load[odd]
    return ["temperature,pressure,flow,power", *(",".join(f"{value:.4f}" for value in row) for row in values)]


def _times(rng: np.random.Generator, odd: np.ndarray) -> list[str]:
    """A reading a minute of two sensors; in odd windows one is stuck."""
    t = np.arange(len(odd) * WINDOW)
    wave = np.sin(t / 5 + np.cumsum(rng.normal(0, 0.05, len(t))))
    values = np.stack([40 + 5 * wave, 2 - 0.3 * wave], axis=1) + rng.normal(size=(len(t), 2)) * [0.5, 0.02]
    values.reshape(len(odd), WINDOW, 2)[odd, :, 0] = 43
    minutes = np.datetime64("2026-01-01T00:00") + t
    return ["time,supply,flow", *(f"{time},{a:.3f},{b:.4f}" for time, (a, b) in zip(minutes, values, strict=True))]
