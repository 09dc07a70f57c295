"""What a likelihood sees of stored levels: dynamic binarisation, the literature's fixed draw, levels / 255, moments."""

import hashlib

import numpy as np
import pytest
import torch

from vae_train import pixels


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def random_levels(*shape: int) -> torch.Tensor:
    """Random levels, black and white among them."""
    levels = torch.randint(-40, 296, shape, generator=generator(1))
    return levels.clamp(0, 255).to(torch.uint8)


def test_binarise_keeps_black_and_white() -> None:
    """Level 0 is always 0 and level 255 always 1, in float32 of the same shape."""
    grey = torch.zeros(4, 1, 500, 500, dtype=torch.uint8)
    grey[2:] = 255
    bits = pixels.binarise(grey, generator())
    assert bits.dtype == torch.float32
    assert bits.shape == grey.shape
    assert not bits[:2].any()
    assert bits[2:].all()


def test_binarise_draws_each_level_with_its_probability() -> None:
    """Every grey level v is drawn as 1 with frequency v / 255, within five standard errors."""
    n = 60_000
    grey = torch.arange(256, dtype=torch.uint8).repeat(n, 1)  # [n, 256]
    frequency = pixels.binarise(grey, generator()).double().mean(dim=0)
    p = torch.arange(256).double() / 255
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_binarise_draws_floats_with_their_own_probability() -> None:
    """A value between two levels is drawn as 1 with its own frequency, not a level's; 0 and 1 stay."""
    n, p = 200_000, torch.tensor([0.0, 0.0021, 0.5017, 0.998, 1.0])
    frequency = pixels.binarise(p.repeat(n, 1), generator()).double().mean(dim=0)
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()
    drawn = pixels.fixed_draw(p.repeat(n, 1))
    assert drawn.dtype == torch.uint8
    assert ((drawn.double().mean(dim=0) / 255 - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_floats_are_seen_as_they_are() -> None:
    """float32 values pass on to the last bit, and their moments are their own."""
    x = torch.rand(500, 1, 3, 4, generator=generator())
    assert pixels.unit(x) is x
    mean, std = pixels.moments(x)
    torch.testing.assert_close(mean.double(), x.double().mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(std.double(), x.double().std(dim=0, correction=0), rtol=0, atol=1e-4)


def test_binarise_draws_pixels_independently() -> None:
    """Pixels beside each other, which share random words, are uncorrelated."""
    n = 100_000
    bits = pixels.binarise(torch.full((n, 8), 128, dtype=torch.uint8), generator()).double()
    correlation = torch.corrcoef(bits.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / n**0.5


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 5, 7), (2, 3, 28, 28)])
def test_binarise_is_new_at_each_call_and_repeats_with_its_seed(shape: tuple[int, ...]) -> None:
    """A generator moves on from call to call; the same seed gives the same sequence of draws."""
    grey = torch.full(shape, 128, dtype=torch.uint8)
    a, b = generator(7), generator(7)
    first, again = ([pixels.binarise(grey, g) for _ in range(20)] for g in (a, b))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert any(not torch.equal(first[0], later) for later in first[1:])


def test_the_literature_draws_the_validation_images_first() -> None:
    """The test draw is what NumPy's RandomState(777) gives after the last 10,000 of 60,000 training images."""
    train, test = random_levels(60_000, 1, 2, 3), random_levels(100, 1, 2, 3)
    state = np.random.RandomState(777)
    drawn = [state.binomial(1, levels.numpy() / 255) for levels in (train[50_000:], test)]
    draw = pixels.fixed_draw(test, pixels.drawn_before(len(train)))
    assert draw.dtype == torch.uint8
    np.testing.assert_array_equal(draw.numpy(), drawn[1] * 255)
    assert not torch.equal(draw, pixels.fixed_draw(test))


def test_a_fixed_draw_is_binary_keeps_black_and_white_and_repeats() -> None:
    """Levels 0 and 255 only, black and white as they were, and the same every time."""
    levels = random_levels(50, 3, 7, 5)
    draw = pixels.fixed_draw(levels)
    assert draw.shape == levels.shape
    assert set(draw.unique().tolist()) == {0, 255}
    assert not draw[levels == 0].any()
    assert (draw[levels == 255] == 255).all()
    assert torch.equal(draw, pixels.fixed_draw(levels))


def test_unit_gives_every_level_back() -> None:
    """Levels / 255 in float32: 0 and 1 exactly, every level the nearest float32, none lost in rounding back."""
    levels = torch.arange(256, dtype=torch.uint8)
    x = pixels.unit(levels)
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(x.numpy(), (np.arange(256) / 255).astype(np.float32))
    assert torch.equal((x * 255).round().to(torch.uint8), levels)


@pytest.mark.parametrize("n", [1, 999, 1000, 2500])
def test_moments_are_those_of_float64(n: int) -> None:
    """Mean and standard deviation of each pixel, over however many pieces the images are read in."""
    levels = random_levels(n, 3, 4, 2)
    x = levels.double() / 255
    mean, std = pixels.moments(levels)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean.double(), x.mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(std.double(), x.std(dim=0, correction=0), rtol=0, atol=1e-4)


def test_digest_is_of_zeros_and_ones_for_binary_images() -> None:
    """sha256 of 0 and 1 for binary images, of the levels for grey ones."""
    binary, levels = pixels.fixed_draw(random_levels(9, 1, 4, 4)), random_levels(9, 1, 4, 4)
    assert pixels.digest(binary) == hashlib.sha256((binary // 255).numpy().tobytes()).hexdigest()
    assert pixels.digest(levels) == hashlib.sha256(levels.numpy().tobytes()).hexdigest()
