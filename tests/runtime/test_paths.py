"""Paths between any two points of latent space against closed forms in float64."""

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vae_runtime import latents

EXAMPLES = settings(max_examples=150, derandomize=True, deadline=None, database=None)
SEEDS = st.integers(0, 2**32 - 1)
DIMENSIONS = st.sampled_from([2, 3, 4, 32])


def draw(seed: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Two points as the prior draws them, float32 [dim]."""
    a, b = np.random.default_rng(seed).standard_normal((2, dim)).astype(np.float32)
    return a, b


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """The angle between two vectors, by the chord between their directions, in float64."""
    a, b = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for v in (a, b))
    return 2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b)))


def turned(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Where a rotation by t times the angle from a to b takes a, its length going from |a| to |b| on the way.

    In the basis of a and what of b is perpendicular to it, both of the same length, in float64.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    along = a / np.linalg.norm(a)
    across = b - (b @ along) * along
    across /= np.linalg.norm(across)
    turn = angle(a, b)
    return np.linalg.norm(a) * (math.cos(t * turn) * along + math.sin(t * turn) * across)


@EXAMPLES
@given(seed=SEEDS, dim=DIMENSIONS, steps=st.integers(2, 30), radius=st.floats(0.01, 100))
def test_the_spherical_path_turns_evenly(seed: int, dim: int, steps: int, radius: float):
    """Between ends of the same length: every point has that length, every step the same angle, and point i is a
    rotation of a by i / (steps - 1) of the whole angle, in the plane of both ends.
    """
    a, b = (np.float32(radius) * v / np.linalg.norm(v) for v in draw(seed, dim))
    whole = angle(a, b)
    assume(0.01 < whole < math.pi - 0.01)
    z = latents.path(a, b, steps)
    assert z.shape == (steps, dim)
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z.astype(np.float64), axis=1), radius, rtol=1e-5)
    for first, second in itertools.pairwise(z):
        assert angle(first, second) == pytest.approx(whole / (steps - 1), rel=1e-3, abs=1e-5)
    for i, point in enumerate(z):
        np.testing.assert_allclose(point, turned(a, b, i / (steps - 1)), rtol=0, atol=2e-5 * radius)


@EXAMPLES
@given(seed=SEEDS, dim=DIMENSIONS, steps=st.integers(2, 30), linear=st.booleans())
def test_the_ends_are_the_ends(seed: int, dim: int, steps: int, linear: bool):
    """The first point is a and the last is b, bit for bit in float32, and backwards is the same way."""
    a, b = draw(seed, dim)
    z = latents.path(a, b, steps, linear)
    np.testing.assert_array_equal(z[0], a)
    np.testing.assert_array_equal(z[-1], b)
    np.testing.assert_allclose(latents.path(b, a, steps, linear)[::-1], z, rtol=0, atol=1e-5)


@EXAMPLES
@given(seed=SEEDS, dim=DIMENSIONS, steps=st.integers(2, 30))
def test_the_linear_path_is_straight(seed: int, dim: int, steps: int):
    """Point i is a + i (b - a) / (steps - 1), computed in float64."""
    a, b = draw(seed, dim)
    expected = [a.astype(np.float64) + i * (b.astype(np.float64) - a) / (steps - 1) for i in range(steps)]
    np.testing.assert_allclose(latents.path(a, b, steps, linear=True), expected, rtol=1e-6, atol=1e-6)
