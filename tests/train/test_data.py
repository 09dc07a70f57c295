"""The image sets: named ones, how likelihoods see them, and what happens to missing or damaged files."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vae_runtime.errors import ArgumentError, InputError
from vae_train import data, pixels
from vae_train.config import PRESETS, Config

FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def config(dataset: object, **settings: object) -> Config:
    """Settings that name these images."""
    return PRESETS["tutorial"].replace(dataset=str(dataset), **settings)


def load(dataset: object, root: Path, **settings: object) -> data.Data:
    """The images, without a network."""
    return data.load(config(dataset, **settings), root, download=False)


@pytest.mark.parametrize(
    ("dataset", "digest", "first"),
    [("mnist", "a700b0d972959b58", "7"), ("fashion-mnist", "33bc86729d1a5fab", "Ankle boot")],
)
def test_real_sets_and_their_fixed_test_draw(data_root: Path, dataset: str, digest: str, first: str) -> None:
    """The real sets have 60,000 and 10,000 images, and the fixed test draw is the published one, bit for bit."""
    images = load(dataset, data_root)
    assert images.train.shape == (60_000, 1, 28, 28)
    assert images.test.shape == (10_000, 1, 28, 28)
    assert images.train.dtype == images.test.dtype == torch.uint8
    assert images.test_labels.shape == (10_000,)
    assert images.names[images.test_labels[0]] == first
    levels = images.observed_test(binary=True)
    assert levels.dtype == torch.uint8
    assert levels.shape == images.test.shape
    assert set(levels.unique().tolist()) == {0, 255}
    assert hashlib.sha256((levels // 255).numpy().tobytes()).hexdigest().startswith(digest)
    assert pixels.digest(levels).startswith(digest)


def test_a_likelihood_sees_binary_draws_or_the_levels(digits_root: Path) -> None:
    """Binary, 0 and 255 in the literature's draw, the same every time; else the images as they are."""
    images = load("mnist", digits_root)
    drawn = images.observed_test(binary=True)
    assert torch.equal(drawn, pixels.fixed_draw(images.test, pixels.drawn_before(len(images.train))))
    assert torch.equal(drawn, load("mnist", digits_root).observed_test(binary=True))
    assert torch.equal(images.observed_test(binary=False), images.test)
    assert images.observed_test(binary=True) is drawn  # MNIST's takes a second, and a command asks several times


def test_as_many_training_images_are_measured_from_all_over(digits_root: Path) -> None:
    """As many as test images, evenly from the whole training set, where files may lie in the order of their class."""
    images = load("mnist", digits_root)
    levels = images.observed_train(binary=False)
    assert levels.shape == images.test.shape
    places = [int(torch.where((images.train == x).flatten(1).all(dim=1))[0][0]) for x in levels]
    assert places == list(range(0, 5 * len(images.test), 5))
    assert set(images.observed_train(binary=True).unique().tolist()) == {0, 255}
    few = data.Data(images.train[:7], images.test[:5], images.test_labels[:5], images.names, {}, images.observation)
    assert torch.equal(few.observed_train(binary=False), images.train[:5])


def test_the_digest_is_of_all_images(digits_root: Path) -> None:
    """One changed pixel anywhere changes it; reading the files again does not."""
    images = load("mnist", digits_root)
    before = images.digest()
    assert before == hashlib.sha256(images.train.numpy().tobytes() + images.test.numpy().tobytes()).hexdigest()
    assert load("mnist", digits_root).digest() == before
    for part in (images.train, images.test):
        part[-1, 0, 14, 14] ^= 1
        assert images.digest() != before
        part[-1, 0, 14, 14] ^= 1


def test_digits_need_neither_network_nor_files(tmp_path: Path) -> None:
    """scikit-learn's 1,797 digits, their 17 levels spread over 8 bits, a tenth of them kept for testing."""
    images = load("digits", tmp_path / "absent")
    assert images.observation.shape == (1, 8, 8)
    assert len(images.train) + len(images.test) == 1797
    assert 0.05 < len(images.test) / 1797 < 0.15
    assert images.names == list("0123456789")
    digits, labels = load_digits(return_X_y=True)  # [1797, 64], 0 to 16
    levels = np.rint(digits * (255 / 16)).astype(np.uint8)
    expected = {x.tobytes(): label for x, label in zip(levels, labels.tolist(), strict=True)}
    assert {x.numpy().tobytes() for x in (*images.train, *images.test)} == set(expected)
    assert [expected[x.numpy().tobytes()] for x in images.test] == images.test_labels.tolist()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("dataset", "folder", "first"), [("kmnist", "KMNIST", "o"), ("fashion-mnist", "FashionMNIST", "T-shirt/top")]
)
def test_sets_of_mnists_layout(digits_root: Path, tmp_path: Path, dataset: str, folder: str, first: str) -> None:
    """Their files, put in torchvision's folders by hand, load without a network, each with the set's own names."""
    shutil.copytree(digits_root / "MNIST", tmp_path / folder)
    images, digits = load(dataset, tmp_path), load("mnist", digits_root)
    assert torch.equal(images.train, digits.train)
    assert torch.equal(images.test, digits.test)
    assert torch.equal(images.test_labels, digits.test_labels)
    assert len(images.names) == 10
    assert images.names[0] == first
    assert digits.names == list("0123456789")


@pytest.mark.parametrize("dataset", ["mnist", "digits"])
@pytest.mark.parametrize("setting", [{"image_size": (28, 28)}, {"channels": 1}])
def test_named_sets_have_their_own_shape(digits_root: Path, dataset: str, setting: dict[str, Any]) -> None:
    """A size or channels for a named set are refused, even its own: they would be ignored."""
    with pytest.raises(ArgumentError) as caught:
        load(dataset, digits_root, **setting)
    assert caught.value.which == dataset
    assert "--image-size, --channels and --levels" in caught.value.todo


def test_missing_data_names_the_folder_and_its_four_files(tmp_path: Path) -> None:
    """Without data and without download the error names the folder and the files to put there."""
    with pytest.raises(InputError) as caught:
        load("fashion-mnist", tmp_path)
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
        data.load(config("mnist"), tmp_path, download)
    assert str(file.parent) in str(caught.value)


def test_labels_that_do_not_fit_the_images_are_called_damaged(digits_root: Path, tmp_path: Path) -> None:
    """Test labels of another number than test images end in an InputError."""
    shutil.copytree(digits_root, tmp_path, dirs_exist_ok=True)
    raw = tmp_path / "MNIST" / "raw"
    shutil.copy(raw / "train-labels-idx1-ubyte", raw / "t10k-labels-idx1-ubyte")
    with pytest.raises(InputError, match="damaged"):
        load("mnist", tmp_path)


def test_bytes_of_another_kind_are_called_damaged(digits_root: Path, tmp_path: Path) -> None:
    """A file with random content ends in an InputError that says damaged."""
    shutil.copytree(digits_root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(InputError, match="damaged"):
        load("mnist", tmp_path)
