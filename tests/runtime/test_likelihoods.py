"""The Bernoulli likelihood against torch.distributions in float64, and by summing over every image."""

import itertools
import math

import numpy as np
import pytest
import torch

from vae_runtime import InputError, noise
from vae_runtime.likelihoods import Bernoulli

BERNOULLI = Bernoulli()


def draw_logits(rows: int, *shape: int, scale: float = 4) -> np.ndarray:
    """Seeded logits of about `scale`, float32 [rows, *shape]."""
    return scale * noise.normal(9, noise.PRIOR, np.arange(rows), math.prod(shape)).reshape(rows, *shape)


def torch_bernoulli(logits: np.ndarray) -> torch.distributions.Bernoulli:
    """PyTorch's Bernoulli in float64."""
    return torch.distributions.Bernoulli(logits=torch.from_numpy(logits.astype(np.float64)))


def test_mean_is_torchs():
    """theta agrees with torch.distributions to float32's precision, small thetas to relative precision."""
    logits = draw_logits(50, 1, 7, 5, scale=10)
    theta = BERNOULLI.mean(logits)
    assert theta.dtype == np.float32
    assert theta.shape == logits.shape
    np.testing.assert_allclose(theta, torch_bernoulli(logits).mean.numpy(), rtol=1e-6, atol=0)


def test_log_prob_is_torchs():
    """log p(x|z) in nats agrees with torch.distributions, summed over all pixels of an image."""
    logits = draw_logits(50, 2, 7, 5)
    x = (noise.uniform(1, noise.PIXELS, np.arange(50), 70).reshape(logits.shape) < 0.5).astype(np.float32)
    expected = torch_bernoulli(logits).log_prob(torch.from_numpy(x.astype(np.float64))).sum((1, 2, 3)).numpy()
    got = BERNOULLI.log_prob(x, logits)
    assert got.dtype == np.float64
    assert got.shape == (50,)
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("logit", [1e4, -1e4, 100.0, -100.0, 0.0])
def test_extreme_logits_stay_finite(logit: float):
    """At logits of +-10,000 means stay in [0, 1] and log-probabilities finite, without a warning."""
    logits = np.full((2, 1, 2, 2), logit, np.float32)
    x = np.stack([np.zeros((1, 2, 2)), np.ones((1, 2, 2))]).astype(np.float32)
    theta = BERNOULLI.mean(logits)
    assert ((theta >= 0) & (theta <= 1)).all()
    expected = -4 * np.logaddexp(0, [logit, -logit])
    np.testing.assert_allclose(BERNOULLI.log_prob(x, logits), expected, rtol=1e-6, atol=1e-30)


def test_probabilities_of_all_images_sum_to_one():
    """The 2^10 binary images of 10 pixels have a total probability of 1: log_prob is a normalised log-probability."""
    images = np.array(list(itertools.product([0, 1], repeat=10)), np.float32).reshape(-1, 1, 2, 5)
    for logits in draw_logits(5, 1, 2, 5, scale=2):
        log_prob = BERNOULLI.log_prob(images, np.repeat(logits[None], len(images), axis=0))
        assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-6)


def test_sample_frequencies_are_theta():
    """Over 20,000 draws every pixel is 1 as often as theta says, to within 4.5 standard errors."""
    n = 20_000
    logits = draw_logits(1, 1, 4, 5, scale=2)
    uniforms = noise.uniform(3, noise.PIXELS, np.arange(n), 20).reshape(n, 1, 4, 5)
    x = BERNOULLI.sample(np.repeat(logits, n, axis=0), uniforms)
    assert x.dtype == np.float32
    assert set(np.unique(x)) == {0, 1}
    theta = torch_bernoulli(logits).mean.numpy()[0]
    assert (np.abs(x.mean(axis=0) - theta) < 4.5 * np.sqrt(theta * (1 - theta) / n)).all()


def test_certain_pixels_are_never_drawn_otherwise():
    """theta = 1 gives 1 and theta = 0 gives 0 for every uniform in [0, 1), the smallest and the largest too."""
    uniforms = np.array([[0, 2**-24, 0.5, 1 - 2**-24]], np.float32)
    np.testing.assert_array_equal(BERNOULLI.sample(np.full((1, 4), 1e4, np.float32), uniforms), 1)
    np.testing.assert_array_equal(BERNOULLI.sample(np.full((1, 4), -1e4, np.float32), uniforms), 0)


@pytest.mark.parametrize("row", [0, 3, 9])
def test_check_names_the_first_grey_image(row: int):
    """A grey pixel raises InputError with the index of its image and the way out."""
    x = np.zeros((10, 1, 3, 3), np.float32)
    BERNOULLI.check(x)
    BERNOULLI.check(1 - x)
    x[row:, 0, 2, 2] = 0.5
    with pytest.raises(InputError, match=rf"grey pixels under a Bernoulli likelihood: image {row}; use binarise"):
        BERNOULLI.check(x)
