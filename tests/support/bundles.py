"""The tiny bundle, and bundles forged from it whose hashes are valid."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support import graphs
from vae_runtime import VAE, likelihoods
from vae_runtime import manifest as manifests
from vae_runtime.bundle import FILES, PRIOR
from vae_runtime.manifest import Contract, Named
from vae_runtime.observation import IMAGE, SERIES, VECTOR, Observation, Shape

TINY = Path(__file__).parent / "tiny"  # made by make_tiny.py
LOGSIGMA = -1.2
LIKELIHOODS = {
    "bernoulli": Named("bernoulli"),
    "gaussian": Named("gaussian", {"logsigma": LOGSIGMA}),
    "logistic": Named("discretised-logistic"),
}
Forge = Callable[..., Path]


@dataclass(frozen=True)
class Loaded:
    """A bundle's folder, the VAE loaded from it, and 130 binary images (its own samples, and plain noise)."""

    path: Path
    vae: VAE
    x: NDArray[np.float32]


def forge(
    bundle: Path,
    out: Path,
    files: Mapping[str, bytes] | None = None,
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Copy a bundle, replace files and change the manifest, and make every hash in it valid again."""
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "manifest.json").read_bytes())
    del manifest["sha256"]
    for name, data in (files or {}).items():
        (out / name).write_bytes(data)
    for name in (*FILES, PRIOR) if (out / PRIOR).exists() else FILES:
        data = (out / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if change:
        change(manifest)
    (out / "manifest.json").write_bytes(manifests.dump(manifest))
    return out


def changed(folder: Path, **parts: object) -> Path:
    """The bundle in this folder, with other parts of its manifest."""
    manifest = {**json.loads((folder / "manifest.json").read_bytes()), **parts}
    del manifest["sha256"]
    (folder / "manifest.json").write_bytes(manifests.dump(manifest))
    return folder


def normal(vae: VAE, count: int, seed: int = 0) -> NDArray[Any]:
    """Samples of the model, in its range."""
    return vae.observation.clip(vae.sample(count, seed))


def linear(
    forge: Forge,
    likelihood: str,
    shape: Shape,
    latent_shape: Shape = (3,),
    scale: float = 1.0,
    flow: graphs.Affine | None = None,
) -> Path:
    """Forge a bundle of linear graphs: images [C, H, W], rows [D] or series [C, T] under a likelihood of choice.

    flow: of its prior, where that is not N(0, I).
    """
    named = LIKELIHOODS[likelihood]
    limits = None if named.name == "gaussian" and len(shape) < 3 else (0.0, 1.0)
    observation = Observation({1: VECTOR, 2: SERIES, 3: IMAGE}[len(shape)], shape, limits)
    kind = likelihoods.make(named, observation)
    parameters = [*likelihoods.parameter_shape(kind, shape)]
    generator = np.random.default_rng(7)
    pixels, outputs, latent_dim = math.prod(shape), math.prod(parameters), math.prod(latent_shape)
    sizes: dict[str, tuple[int | tuple[int, int], float]] = {
        "mu": ((pixels, latent_dim), 0.3),
        "logsigma": ((pixels, latent_dim), 0.02),
        kind.output: ((latent_dim, outputs), 0.2 * scale),
        "mu bias": (latent_dim, 0.5),
        "logsigma bias": (latent_dim, 0.5),
        f"{kind.output} bias": (outputs, 0.1),
    }
    weights = {
        name: (size * generator.standard_normal(count)).astype(np.float32) for name, (count, size) in sizes.items()
    }
    encoded = {"mu": [*latent_shape], "logsigma": [*latent_shape]}
    prior = Named("standard-normal" if flow is None else "flow")
    contract = Contract("linear", observation, latent_shape, prior, named).json()
    files = {
        "encoder.onnx": graphs.linear("encoder", {"x": list(shape)}, encoded, weights, contract),
        "decoder.onnx": graphs.linear("decoder", {"z": [*latent_shape]}, {kind.output: parameters}, weights, contract),
    }
    if flow is not None:
        files[PRIOR] = graphs.affine_flow(flow, latent_shape, contract)
    return forge(files, lambda manifest: manifest.update(contract=contract))
