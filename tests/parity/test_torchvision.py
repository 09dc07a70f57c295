"""Files as torchvision's transforms make tensors of them, against the runtime with the same transforms translated."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from vae_export import preprocessing
from vae_runtime import records
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import Observation
from vae_runtime.sources import Observations

SIZES = [(40, 31), (31, 40), (64, 64), (9, 20), (300, 211), (16, 16), (17, 15)]  # width, height: upright, wide, small
FLOATS = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
EXACT = {
    "squeezed": v1.Compose([v1.Resize((16, 20)), v1.ToTensor()]),
    "shorter side, centre": v1.Compose([v1.Resize(24), v1.CenterCrop((16, 20)), v1.ToTensor()]),
    "centre, resized": v1.Compose([v1.CenterCrop(25), v1.Resize((16, 20)), v1.ToTensor()]),
    "centre alone": v1.Compose([v1.CenterCrop((16, 20)), v1.ToTensor()]),
    "three": v2.Compose([v2.Resize(50), v2.CenterCrop(33), v2.Resize((16, 20)), FLOATS]),
    "bicubic": v2.Compose([v2.Resize((16, 20), v2.InterpolationMode.BICUBIC), FLOATS]),
    "lanczos": v2.Compose([v2.Resize((16, 20), v2.InterpolationMode.LANCZOS), FLOATS]),
    "nearest": v1.Compose([v1.Resize((16, 20), v1.InterpolationMode.NEAREST), v1.ToTensor()]),
    "box": v1.Compose([v1.Resize((16, 20), v1.InterpolationMode.BOX), v1.ToTensor()]),
    "hamming": v1.Compose([v1.Resize((16, 20), v1.InterpolationMode.HAMMING), v1.ToTensor()]),
    "levels": v1.Compose([v1.Resize((16, 20)), v1.PILToTensor(), v1.ConvertImageDtype(torch.float32)]),
    "in a Sequential": torch.nn.Sequential(v2.Resize(24), v2.CenterCrop((16, 20)), FLOATS),
    "a list": [v1.Resize(24), v1.Compose([v1.CenterCrop((16, 20)), v1.ToTensor()])],
}


def pictures(folder: Path, mode: str, suffix: str) -> dict[str, Image.Image]:
    """Noise and edges in every size, written to files; by name as Pillow reads them."""
    generator = np.random.default_rng(5)
    for width, height in SIZES:
        shape = (height, width) if mode in ("L", "I;16") else (height, width, len(mode))
        levels = generator.integers(0, 256, shape) * (np.arange(width) // 5 % 2).reshape(-1, *[1] * (len(shape) - 2))
        image = Image.fromarray((levels * 257).astype(np.uint16) if mode == "I;16" else levels.astype(np.uint8))
        image.save(folder / f"{width}x{height}{suffix}", **({"quality": 90} if suffix == ".jpg" else {}))
    return {str(path): Image.open(path) for path in sorted(folder.iterdir())}


def by_runtime(folder: Path, transforms: Any, channels: int = 3) -> dict[str, np.ndarray]:
    """What the runtime makes of the files, with what the manifest would hold of the transforms."""
    observation = Observation.image((channels, 16, 20))
    entry = preprocessing.of(transforms).entry(observation)
    batch = Observations([folder], observation, records.parse(Preprocessing, entry)).load()
    return dict(zip(batch.names, batch.x, strict=True))


def apart(folder: Path, opened: dict[str, Image.Image], transforms: Any, channels: int = 3) -> float:
    """How far the two are from each other at most."""
    steps = [*transforms] if isinstance(transforms, list) else [transforms]
    found, worst = by_runtime(folder, transforms, channels), 0.0
    assert found.keys() == opened.keys()
    for name, image in opened.items():
        expected: Any = image
        for step in steps:
            expected = step(expected)
        assert found[name].shape == tuple(expected.shape)
        worst = max(worst, np.abs(found[name] - expected.numpy()).max())
    return worst


@pytest.mark.parametrize("transforms", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize(("mode", "suffix"), [("RGB", ".png"), ("RGB", ".jpg"), ("L", ".png")])
def test_files_become_what_the_transforms_make_of_them(transforms: Any, mode: str, suffix: str, tmp_path: Path):
    """Level by level: upright and wide pictures, enlarged and made smaller, in colour and grey, PNG and JPEG."""
    opened = {name: image.convert("RGB") for name, image in pictures(tmp_path, mode, suffix).items()}
    assert apart(tmp_path, opened, transforms) < 1e-7  # ToDtype multiplies by 1 / 255, and is the last bit off


@pytest.mark.parametrize("name", ["squeezed", "shorter side, centre", "centre, resized", "bicubic", "lanczos"])
def test_photographs_become_what_the_transforms_make_of_them(name: str, tmp_path: Path):
    """Of 640x427 pixels, JPEG, one of them on its side."""
    for file in (Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"):
        shutil.copy(file, tmp_path)
    with Image.open(tmp_path / "china.jpg") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "upright.jpg")
    opened = {str(path): Image.open(path) for path in sorted(tmp_path.iterdir())}
    assert [image.size for image in opened.values()] == [(640, 427), (640, 427), (427, 640)]
    assert apart(tmp_path, opened, EXACT[name]) < 1e-7


def test_sixteen_bits_are_kept(tmp_path: Path):
    """Within a level of 65,535: Pillow rounds while it resizes such pictures, and the runtime does not."""
    transforms = v2.Compose([v2.Resize(24), v2.CenterCrop((16, 20)), FLOATS])
    assert 0 < apart(tmp_path, pictures(tmp_path, "I;16", ".png"), transforms, channels=1) < 1.01 / 65535


def test_grey_of_colours(tmp_path: Path):
    """Grey before the resize is grey to the level, of one channel and of three; after it, it is rounded once more."""
    opened = pictures(tmp_path, "RGB", ".png")
    for channels in (1, 3):
        first = v1.Compose([v1.Grayscale(channels), v1.Resize((16, 20)), v1.ToTensor()])
        assert apart(tmp_path, opened, first, channels) == 0
        last = v1.Compose([v1.Resize((16, 20)), v1.Grayscale(channels), v1.ToTensor()])
        assert 0 < apart(tmp_path, opened, last, channels) < 1.01 / 255


@pytest.mark.parametrize(
    "transforms",
    [
        v2.Compose([v2.ToImage(), v2.Resize(24, antialias=True), v2.CenterCrop((16, 20)), FLOATS]),
        v1.Compose([v1.ToTensor(), v1.Resize(24, antialias=True), v1.CenterCrop((16, 20))]),
    ],
    ids=["levels", "floats"],
)
def test_resizes_of_tensors_are_a_level_off_at_most(transforms: Any, tmp_path: Path):
    """They round otherwise than Pillow, which rounds to levels after each of the two directions."""
    opened = pictures(tmp_path, "RGB", ".png")
    assert 0 < apart(tmp_path, opened, transforms) < 1.01 / 255


def test_transparency_lies_over_black(tmp_path: Path):
    """What is opaque is as in `convert("RGB")`; what is not lies over black, where that keeps the hidden colours."""
    opened = pictures(tmp_path, "RGBA", ".png")
    transforms = v1.Compose([v1.Resize((16, 20)), v1.ToTensor()])
    black = {
        name: Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
        for name, image in opened.items()
    }
    assert apart(tmp_path, black, transforms) == 0
    for name, image in opened.items():
        image.putalpha(255)
        image.save(name)
    assert apart(tmp_path, {name: image.convert("RGB") for name, image in opened.items()}, transforms) == 0
