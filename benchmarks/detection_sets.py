"""The sets that benchmarks/detection.py tells odd observations from normal ones on, each a record of how it is had.

What they need beside the package: MNIST, FashionMNIST and sensors/ in the data folder (docs/benchmarks.md says where
they come from), and scikit-image's pictures. KMNIST is not among them: in its place stand glyphs of a few strokes.
"""

import csv
import gzip
import importlib.util
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiles
import torchvision
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_breast_cancer, load_wine

from vae_runtime.detector import FEWEST
from vae_runtime.errors import InputError
from vae_train import data

HEATING = Path(__file__).parents[1] / "examples" / "heating"
TILES = {"tissue": "ihc", "brick": "brick", "grass": "grass", "gravel": "gravel", "fur": "chelsea"}
SIDE, WINDOW = 32, 64
MANY, SOME = 1000, 200  # observations of a kind, and of tiles, which overlap

Array = NDArray[Any]
Levels = NDArray[np.uint8]


@dataclass(frozen=True)
class Parts:
    """The observations of a set: levels uint8 [n, C, H, W], rows [n, D], or windows [n, C, T], in their own units.

    train: what all detectors are fitted to, of series the rows in order. usual: normal ones to calibrate by; normal:
    others; odd: by kind, which has no name where there is one.
    """

    train: Array
    usual: Array
    normal: Array
    odd: dict[str, Array]


@dataclass(frozen=True)
class Set:
    """A column or more of a table, one for each kind of odd ones; those of sets with the same name are averaged.

    parts: its observations, given the data folder. settings: those of `vae_train.fit`, or a bundle that ships.
    """

    table: str
    name: str
    parts: Callable[[Path], Parts]
    settings: dict[str, Any] = field(default_factory=dict)
    ships: str | None = None

    @property
    def folder(self) -> str:
        """What its bundle is called."""
        return "-".join([*self.name.split(), *([str(self.settings["seed"])] if "seed" in self.settings else [])])


def windows(rows: Array, stride: int = 1) -> Array:
    """Windows [n, C, T] of rows in order [m, C]."""
    return sliding_window_view(rows, WINDOW, axis=0)[::stride]


def fashion(root: Path) -> Parts:
    """Clothes, by the bundle that ships, against digits, glyphs, and clothes that were spoilt in some way."""
    test = images(torchvision.datasets.FashionMNIST, root, train=False)[0]
    half = len(test) // 2
    digits = images(torchvision.datasets.MNIST, root, train=False)[0]
    odd = {"digits": digits[:MANY], "glyphs": glyphs(MANY), **spoilt(test[half + MANY :][:MANY])}
    train = images(torchvision.datasets.FashionMNIST, root, train=True)[0]
    return Parts(train, test[:half], test[half:][:MANY], odd)


def digits(left_out: int, root: Path) -> Parts:
    """Nine digits, against the tenth."""
    (train, known), (test, labels) = (images(torchvision.datasets.MNIST, root, train=part) for part in (True, False))
    others, odd = test[labels != left_out], test[labels == left_out]
    return Parts(train[known != left_out], others[: 2 * MANY], others[2 * MANY :][:MANY], {"": odd})


def texture(name: str, _: Path) -> Parts:
    """Tiles of a picture, those to train on from its left, against spoilt ones and tiles of other pictures."""
    picture = _picture(name, grey=None)
    grey = picture.shape[2] == 1
    noise = np.random.default_rng(1)
    usual, normal, base = (right(picture, count, noise) for count in (MANY, MANY, SOME))
    odd = {kind: x for kind, x in spoilt(base).items() if kind in ("blurred", "dimmed", "scratched", "constant")}
    odd["white"] = np.clip(245 + noise.normal(0, 3, base.shape), 0, 255).astype(np.uint8)
    for other in TILES.keys() - {name}:
        odd[other] = anywhere(_picture(other, grey), SOME, noise)
    return Parts(tiles.cut(picture), usual, normal, dict(sorted(odd.items())))


def heating(_: Path) -> Parts:
    """Readings of eight sensors, against windows with a planted fault; more nights are simulated as the first was."""
    simulate = runpy.run_path(str(HEATING / "simulate.py"))
    rows, _ = readings(HEATING / "normal.csv", simulate["CHANNELS"])
    more = [simulate["readings"](len(rows), np.random.default_rng(seed)) for seed in range(10)]
    written = [
        np.stack([night[:, i].round(digits) for i, digits in enumerate(simulate["DIGITS"])], 1) for night in more
    ]
    nights = [windows(night, WINDOW // 4) for night in written]
    faulty, labels = readings(HEATING / "faults.csv", simulate["CHANNELS"], "fault")
    kinds = [set(some) - {"none"} for some in sliding_window_view(labels, WINDOW)]
    every = windows(faulty)
    odd = {kind: every[[found == {kind} for found in kinds]] for kind in simulate["LASTS"]}
    return Parts(rows, np.concatenate(nights[:5])[:MANY], np.concatenate(nights[5:])[:MANY], odd)


def blood_pressure(root: Path) -> Parts:
    """A heart's beats, against windows with 12 odd readings; every other stretch of four windows' length calibrates."""
    rows, _ = readings(root / "sensors" / "internal-bleeding-train.csv", ["value"])
    later, labels = readings(root / "sensors" / "internal-bleeding-test.csv", ["value"], "is_anomaly")
    every, ill = windows(later), sliding_window_view(labels == "1", WINDOW).any(axis=1)
    stretch, end = ((np.arange(len(every)) + offset) // (4 * WINDOW) for offset in (0, WINDOW - 1))
    well = ~ill & (stretch == end) & (np.arange(len(every)) >= len(rows))  # the table begins with what is trained on
    return Parts(rows, every[well & (stretch % 2 == 0)], every[well & (stretch % 2 == 1)], {"": every[ill]})


def shuttle(root: Path) -> Parts:
    """Sensors of a space shuttle, half of the normal rows to train on."""
    with gzip.open(root / "sensors" / "shuttle.csv.gz", "rt", newline="") as file:
        table = np.array(list(csv.reader(file))[1:])
    return halved(table[:, :-1].astype(np.float64), table[:, -1] != "0")


def one_class(load: Callable[[], Any], normal: int, kept: float, split: int, _: Path) -> Parts:
    """One class of scikit-learn's tables, against the others; kept: the share of its rows that is not trained on."""
    bunch = load()
    return halved(bunch.data, bunch.target != normal, split, kept)


def halved(rows: Array, odd: NDArray[np.bool_], split: int = 0, kept: float = 0.5) -> Parts:
    """Some normal rows to train on, as `vae-train --normal` takes half of them; half of the others to calibrate by."""
    normal = rows[~odd]
    rest = data.in_test(normal, kept, split)
    others = np.random.default_rng(split).permutation(normal[rest])
    half = max(FEWEST, len(others) // 2)
    return Parts(normal[~rest], others[:half], others[half:], {"": rows[odd]})


def spoilt(x: Levels, seed: int = 0) -> dict[str, Levels]:
    """Images [n, C, H, W] in ten ways, and noise."""
    noise, flat, (height, width) = np.random.default_rng(seed), np.empty_like(x), x.shape[2:]
    flat[:] = noise.integers(0, 256, (*x.shape[:2], 1, 1))
    scratched = x.copy()
    for image in scratched:
        first, last = noise.integers(0, width, 2)
        image[:, np.arange(height), np.linspace(first, last, height).round().astype(int)] = 255
    planes = [Image.fromarray(plane) for plane in x.reshape(-1, height, width)]
    return {
        "noise": noise.integers(0, 256, x.shape).astype(np.uint8),
        "constant": flat,
        "inverted": 255 - x,
        "mirrored": np.ascontiguousarray(x[..., ::-1]),
        "upside": np.ascontiguousarray(x[..., ::-1, :]),
        "shifted": np.roll(x, (4, 4), axis=(2, 3)),
        "blurred": np.stack([plane.filter(ImageFilter.GaussianBlur(1.5)) for plane in planes]).reshape(x.shape),
        "turned": np.stack([plane.rotate(30, Image.Resampling.BILINEAR) for plane in planes]).reshape(x.shape),
        "scratched": scratched,
        "dimmed": (0.6 * x).astype(np.uint8),
    }


def glyphs(count: int, side: int = 28, seed: int = 0) -> Levels:
    """Characters of no script, two to five bent strokes of a brush each: levels [count, 1, side, side]."""
    noise, finer = np.random.default_rng(seed), 4
    found = np.empty((count, 1, side, side), np.uint8)
    for glyph in found[:, 0]:
        image = Image.new("L", (finer * side, finer * side))
        draw = ImageDraw.Draw(image)
        for _ in range(noise.integers(2, 6)):
            start, bend, end = finer * side * noise.uniform(0.1, 0.9, (3, 2))
            t = np.linspace(0, 1, 24)[:, None]
            radius = finer * noise.uniform(0.8, 1.6)
            for x, y in (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        glyph[:] = image.resize((side, side), Image.Resampling.BOX)
    return found


def right(picture: Levels, count: int, noise: np.random.Generator) -> Levels:
    """Tiles of the fifth of a picture [H, W, C] that benchmarks/tiles.py cuts none from to train on."""
    return anywhere(picture[:, picture.shape[1] * 4 // 5 :], count, noise)


def anywhere(picture: Levels, count: int, noise: np.random.Generator) -> Levels:
    """Tiles [count, C, 32, 32] at random places of a picture [H, W, C]."""
    places = zip(*(noise.integers(length - SIDE + 1, size=count) for length in picture.shape[:2]), strict=True)
    return np.stack([picture[y : y + SIDE, x : x + SIDE].transpose(2, 0, 1) for y, x in places])


def _picture(name: str, grey: bool | None) -> Levels:
    """One of scikit-image's [H, W, C], in grey or in colour where that is said."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise InputError("scikit-image is not installed", name, "pip install it, and name its folder with --packages")
    with Image.open(Path(found.origin).parent / "data" / f"{TILES[name]}.png") as image:
        grey = image.mode in ("1", "L") if grey is None else grey
        levels = np.asarray(image.convert("L" if grey else "RGB"))
    return levels.reshape(*levels.shape[:2], -1)


def images(cls: Any, root: Path, train: bool) -> tuple[Levels, NDArray[np.int64]]:
    """One part of a set of torchvision's, [n, 1, 28, 28], and the label of each."""
    found = cls(str(root), train=train)
    return found.data.numpy()[:, None], found.targets.numpy()


def readings(path: Path, channels: Sequence[str], label: str = "") -> tuple[Array, NDArray[np.str_]]:
    """The rows of a table in order, [n, C], and the label of each where one is named."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[name]) for name in channels] for row in rows]), np.array(
        [row.get(label) for row in rows]
    )


TEXTURES = {"preset": "resnet-colour", "augment": ("flips", "upside-down", "shifts"), "epochs": 200}
SERIES = {"preset": "series", "window": WINDOW, "held_out": "last"}
SMALL = {"breast cancer": (load_breast_cancer, 1, 0.5), **{f"wine {i}": (load_wine, i, 0.6) for i in range(3)}}
SETS = [
    Set("Clothes", "fashion", fashion, ships="fashion-mnist"),
    *(Set("Digits, one left out", f"digit {i}", partial(digits, i), {"preset": "tutorial"}) for i in range(10)),
    *(Set(f"Tiles of {name}", name, partial(texture, name), TEXTURES) for name in TILES if name != "fur"),
    Set("Heating", "heating", heating, {**SERIES, "epochs": 40}),
    Set("Blood pressure", "blood pressure", blood_pressure, SERIES),
    Set("Rows", "shuttle", shuttle, {"preset": "vector"}),
    *(
        Set("Rows", name, partial(one_class, *which, split), {"preset": "vector", "seed": split})
        for name, which in SMALL.items()
        for split in range(3)
    ),
]
