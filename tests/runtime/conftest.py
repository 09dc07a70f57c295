"""Fixtures of the runtime's tests: a loaded bundle of each kind, and how much memory a call needs."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vae_runtime import VAE, noise
from vae_runtime.bundle import shipped


@dataclass(frozen=True)
class Loaded:
    """A bundle's folder, the VAE loaded from it, and 130 binary images (its own samples, and plain noise)."""

    path: Path
    vae: VAE
    x: np.ndarray


@pytest.fixture(scope="session", params=["tiny", "shipped"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    """The tiny bundle and the one that ships, each loaded once."""
    path = request.getfixturevalue("tiny_bundle") if request.param == "tiny" else shipped()
    vae = VAE.load(path)
    samples = vae.sample(100, seed=5)
    pixels = noise.uniform(6, noise.PIXELS, np.arange(30), samples[0].size).reshape(30, *vae.image_shape)
    return Loaded(path, vae, np.concatenate([samples, (pixels < 0.2).astype(np.float32)]))


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], object]], int]:
    """The most bytes that Python and NumPy hold at a time during a call, beyond those held before."""

    def measure(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure
