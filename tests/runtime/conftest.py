"""Fixtures of the runtime's tests: a loaded bundle of each kind, and a way to forge bundles whose hashes match."""

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vae_runtime import VAE, noise
from vae_runtime.bundle import FILES, dump_manifest, shipped


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


@pytest.fixture
def forge(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the tiny bundle, replace files and change the manifest, and make every hash in it valid again."""

    def make(files: dict[str, bytes] | None = None, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        out = tmp_path / "forged"
        shutil.copytree(tiny_bundle, out)
        manifest = json.loads((out / "manifest.json").read_bytes())
        del manifest["sha256"]
        for name, data in (files or {}).items():
            (out / name).write_bytes(data)
        for name in FILES:
            data = (out / name).read_bytes()
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if change:
            change(manifest)
        (out / "manifest.json").write_bytes(dump_manifest(manifest))
        return out

    return make
