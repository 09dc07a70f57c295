"""Flips and shifts of what is trained on: what they do to a batch, and that they are a function of the seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_runtime.errors import ArgumentError
from vae_train import data, distributed, loop, train
from vae_train.augment import augmented
from vae_train.config import PRESETS
from vae_train.state import TrainingState

pytestmark = pytest.mark.usefixtures("one_thread")
WAYS = ("flips", "upside-down", "shifts")
SMALL = PRESETS["tutorial"].replace(dataset="digits", hidden=(8,), latent_dim=2, epochs=1)


def generator(seed: int = 0) -> torch.Generator:
    """Seeded."""
    return torch.Generator().manual_seed(seed)


def images(batch: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """The same image of noise many times, 16x24 in two channels."""
    levels = torch.randint(0, 256, (1, 2, 16, 24), generator=generator(1)).expand(batch, -1, -1, -1)
    return levels.to(dtype) if dtype == torch.uint8 else levels.to(dtype) / 255


def possible(image: Tensor, ways: tuple[str, ...]) -> list[Tensor]:
    """All that may come of an image [C, H, W], by padding and cutting."""
    found = [image]
    if "flips" in ways:
        found += [x.flip(-1) for x in found]
    if "upside-down" in ways:
        found += [x.flip(-2) for x in found]
    if "shifts" in ways:
        padded = [torch.nn.functional.pad(x.float()[None], (3, 3, 2, 2), mode="reflect")[0] for x in found]
        found = [x[:, y : y + 16, z : z + 24].to(image.dtype) for x in padded for y in range(5) for z in range(7)]
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("ways", [WAYS[:1], WAYS[1:2], WAYS[2:], WAYS, WAYS[::-1]], ids=",".join)
def test_each_image_becomes_one_of_those_that_it_may(ways: tuple[str, ...], dtype: torch.dtype) -> None:
    """Mirrored at an axis, moved by up to an eighth of each side with its own mirror image behind the edge, or as it
    was: every one of these occurs, about as often as the others, and nothing else.
    """
    batch = images(4000, dtype)
    before = batch.clone()
    known = [bytes(x.numpy().tobytes()) for x in possible(batch[0], ways)]
    assert len(set(known)) == len(known) == {1: 2, 3: 140}.get(len(ways), 0) + 33 * (ways == WAYS[2:])
    found = [bytes(x.numpy().tobytes()) for x in augmented(batch, ways, generator()).contiguous()]
    counts = [found.count(image) for image in known]
    assert sum(counts) == 4000
    expected = 4000 / len(known)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts)
    assert torch.equal(batch, before)


def test_they_are_a_function_of_the_seed() -> None:
    """Equal seeds give equal images, other seeds others, and one generator new ones at each call."""
    batch, same = images(64), generator(7)
    first = augmented(batch, WAYS, same)
    assert torch.equal(first, augmented(batch, WAYS, generator(7)))
    assert not torch.equal(first, augmented(batch, WAYS, generator(8)))
    assert not torch.equal(first, augmented(batch, WAYS, same))


def begin(**settings: Any) -> tuple[TrainingState, data.Data]:
    """A training of digits that has not taken a step."""
    config = SMALL.replace(**settings)
    digits = data.load(config, Path("absent"), download=False)
    return train._prepare(config, digits, torch.device("cpu"), None), digits


def test_a_training_takes_augmented_batches() -> None:
    """What the likelihood sees, its levels as they are, are the levels so changed by the training's own generator."""
    training, digits = begin(augment=("flips", "shifts"), likelihood="gaussian")
    x, _ = loop.batch(training, digits.train[:50])
    expected = augmented(digits.train[:50], ("shifts", "flips"), generator(0))
    assert torch.equal(x, expected / 255)
    assert not torch.equal(expected, digits.train[:50])


def test_test_images_stay_as_they_are() -> None:
    """Both, those to test on and the images that are stored, and so what a run keeps of them."""
    (_, plain), (_, digits) = begin(), begin(augment=WAYS)
    assert digits.digest() == plain.digest()
    assert torch.equal(digits.observed_test(binary=True), plain.observed_test(binary=True))


def test_several_processes_see_the_images_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draws for the whole batch and keeps its part."""
    training, digits = begin(augment=WAYS)
    alone, eps = loop.batch(training, digits.train[:31])
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "size", lambda: 3)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        training.generator.manual_seed(0)
        parts.append(loop.batch(training, digits.train[:31]))
    assert torch.equal(torch.cat([x for x, _ in parts]), alone)
    assert torch.equal(torch.cat([noise for _, noise in parts], dim=1), eps)


def test_a_way_that_is_none_is_refused() -> None:
    """By its name, with those that there are; and so are rows of numbers."""
    with pytest.raises(ArgumentError, match=r"augment not known: turns; give some of flips,upside-down,shifts"):
        SMALL.replace(augment=("flips", "turns"))


def test_rows_of_numbers_are_not_augmented(tmp_path: Path) -> None:
    """Wrong usage, before anything is read."""
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(ArgumentError, match="--augment is for images"):
        data.fitted(PRESETS["vector"].replace(dataset=str(tmp_path / "rows.csv"), augment=("flips",)))
