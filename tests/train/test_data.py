"""The image sets: the literature's fixed draw, dynamic binarisation, and what happens to missing or damaged files."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_runtime.errors import InputError
from vae_train import data

FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("dataset", "digest", "first"),
    [("mnist", "a700b0d972959b58", "7"), ("fashion-mnist", "33bc86729d1a5fab", "Ankle boot")],
)
def test_real_sets_and_their_fixed_test_draw(data_root: Path, dataset: str, digest: str, first: str) -> None:
    """The real sets have 60,000 and 10,000 images, and the fixed test draw is the published one, bit for bit."""
    images = data.load(dataset, data_root, download=False)
    assert images.train.shape == (60_000, 1, 28, 28)
    assert images.test.shape == (10_000, 1, 28, 28)
    assert images.train.dtype == images.test.dtype == torch.uint8
    assert images.test_labels.shape == (10_000,)
    assert images.names[images.test_labels[0]] == first
    bits = data.fixed_test_draw(images)
    assert bits.dtype == torch.uint8
    assert bits.shape == images.test.shape
    assert hashlib.sha256(bits.numpy().tobytes()).hexdigest().startswith(digest)


def test_fixed_draw_is_binary_and_repeats(digits_root: Path) -> None:
    """The fixed draw of any set is 0 or 1, keeps black and white, and is the same every time."""
    images = data.load("mnist", digits_root, download=False)
    bits = data.fixed_test_draw(images)
    assert set(bits.unique().tolist()) == {0, 1}
    assert not bits[images.test == 0].any()
    assert bits[images.test == 255].all()
    assert torch.equal(bits, data.fixed_test_draw(images))


def test_binarise_keeps_black_and_white() -> None:
    """Level 0 is always 0 and level 255 always 1, in float32 of the same shape."""
    grey = torch.zeros(4, 1, 500, 500, dtype=torch.uint8)
    grey[2:] = 255
    bits = data.binarise(grey, generator())
    assert bits.dtype == torch.float32
    assert bits.shape == grey.shape
    assert not bits[:2].any()
    assert bits[2:].all()


def test_binarise_draws_each_level_with_its_probability() -> None:
    """Every grey level v is drawn as 1 with frequency v / 255, within five standard errors."""
    n = 60_000
    grey = torch.arange(256, dtype=torch.uint8).repeat(n, 1)  # [n, 256]
    frequency = data.binarise(grey, generator()).double().mean(dim=0)
    p = torch.arange(256).double() / 255
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_binarise_draws_pixels_independently() -> None:
    """Pixels beside each other, which share random words, are uncorrelated."""
    n = 100_000
    bits = data.binarise(torch.full((n, 8), 128, dtype=torch.uint8), generator()).double()
    correlation = torch.corrcoef(bits.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / n**0.5


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 5, 7), (2, 1, 28, 28)])
def test_binarise_is_new_at_each_call_and_repeats_with_its_seed(shape: tuple[int, ...]) -> None:
    """A generator moves on from call to call; the same seed gives the same sequence of draws."""
    grey = torch.full(shape, 128, dtype=torch.uint8)
    a, b = generator(7), generator(7)
    first, again = ([data.binarise(grey, g) for _ in range(20)] for g in (a, b))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert any(not torch.equal(first[0], later) for later in first[1:])


def test_missing_data_names_the_folder_and_its_four_files(tmp_path: Path) -> None:
    """Without data and without download the error names the folder and the files to put there."""
    with pytest.raises(InputError) as caught:
        data.load("fashion-mnist", tmp_path, download=False)
    message = str(caught.value)
    assert str(tmp_path / "FashionMNIST" / "raw") in message
    assert [name for name in FILES if name not in message] == []
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 6, 0.5], ids=["empty", "in the header", "half"])
def test_truncated_files_are_called_damaged(
    digits_root: Path, tmp_path: Path, name: str, keep: float, download: bool
) -> None:
    """A file that was cut short ends in an InputError that says damaged, not missing, and names the folder."""
    shutil.copytree(digits_root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "MNIST" / "raw" / name
    raw = file.read_bytes()
    file.write_bytes(raw[: keep if isinstance(keep, int) else int(keep * len(raw))])
    with pytest.raises(InputError, match="damaged") as caught:
        data.load("mnist", tmp_path, download)
    assert str(file.parent) in str(caught.value)


def test_labels_that_do_not_fit_the_images_are_called_damaged(digits_root: Path, tmp_path: Path) -> None:
    """Test labels of another number than test images end in an InputError."""
    shutil.copytree(digits_root, tmp_path, dirs_exist_ok=True)
    raw = tmp_path / "MNIST" / "raw"
    shutil.copy(raw / "train-labels-idx1-ubyte", raw / "t10k-labels-idx1-ubyte")
    with pytest.raises(InputError, match="damaged"):
        data.load("mnist", tmp_path, download=False)


def test_bytes_of_another_kind_are_called_damaged(digits_root: Path, tmp_path: Path) -> None:
    """A file with random content ends in an InputError that says damaged."""
    shutil.copytree(digits_root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(InputError, match="damaged"):
        data.load("mnist", tmp_path, download=False)
