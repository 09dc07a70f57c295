"""Write a bundle beside its target, judge it there, and swap it in as a whole."""

import ctypes
import hashlib
import importlib.metadata
import io
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_export import gate, graphs
from vae_runtime import noise
from vae_runtime.bundle import FILES, FORMAT, dump_manifest
from vae_runtime.errors import ArgumentError
from vae_runtime.files import folder_beside, write_errors
from vae_runtime.likelihoods import from_contract
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train.checkpoint import Run

_GOLDEN_IMAGES, _GOLDEN_SEED = 2, 1


def export(run: Run, out: Path, opset: int, judge: Callable[[list[gate.Row]], None]) -> None:
    """Export `run`, compare it with PyTorch, and publish it as the folder `out` if `judge` does not raise.

    A failed or killed export leaves what was at `out` as it was.
    """
    graphs.check_opset(opset)
    out = out.resolve()  # a link is followed, so that its target is replaced
    check_target(out)
    contract, encoder, decoder = build(run, opset)
    files = {
        "encoder.onnx": graphs.stamp(encoder, contract, "encoder"),
        "decoder.onnx": graphs.stamp(decoder, contract, "decoder"),
        "golden.npz": golden(run),
    }
    manifest = {
        "contract": contract,
        "files": {name: _fingerprint(data) for name, data in files.items()},
        "onnx": {"opset": opset, "ir_version": encoder.ir_version},
        "parameters": sum(weight.numel() for weight in run.vae.parameters()),
        "provenance": {**run.provenance, **_versions("vae-edge", "onnx", "onnxscript", "onnxruntime")},
        "preprocessing": run.settings.preprocessing,
        "evaluation": run.evaluation,
    }
    with folder_beside(out) as staging:
        _write(staging, {**files, "manifest.json": dump_manifest(manifest)})
        rows = gate.compare(run.vae, RuntimeVAE.load(staging), run.probe)
        judge(rows)
        _write(staging, {"manifest.json": dump_manifest({**manifest, "parity": gate.report(rows)})})
        swap(staging, out)


def build(run: Run, opset: int) -> tuple[dict[str, Any], Any, Any]:
    """The contract and both graphs, not yet stamped with it."""
    channels, height, width = run.image_shape
    z = torch.zeros(2, run.vae.latent_dim)
    x = torch.zeros(2, channels, height, width)
    encoder = graphs.to_onnx(run.vae.encoder, x, "x", ["mu", "logsigma"], opset)
    decoder = graphs.to_onnx(run.vae.decoder, z, "z", [run.vae.likelihood.output], opset)
    pair = hashlib.sha256(b"".join(m.SerializeToString(deterministic=True) for m in (encoder, decoder))).hexdigest()
    contract = {
        "format": FORMAT,
        "pair": pair[:16],
        "image": {"channels": channels, "height": height, "width": width, "range": [0, 1]},
        "latent_dim": run.vae.latent_dim,
        "prior": "standard-normal",
        "likelihood": run.vae.likelihood.contract(),
    }
    return contract, encoder, decoder


@torch.no_grad()
def golden(run: Run) -> bytes:
    """Inputs from the model's own prior and seeded noise, and PyTorch's outputs for them, as the bytes of an .npz."""
    rows = np.arange(_GOLDEN_IMAGES)
    z = noise.normal(_GOLDEN_SEED, noise.PRIOR, rows, run.vae.latent_dim)
    parameters = run.vae.decoder(torch.from_numpy(z))
    likelihood = from_contract(run.vae.likelihood.contract())
    draw = noise.uniform if likelihood.noise == "uniform" else noise.normal
    noise_of_pixels = draw(_GOLDEN_SEED, noise.PIXELS, rows, math.prod(run.image_shape))
    drawn = likelihood.sample(parameters.numpy(), noise_of_pixels.reshape(-1, *run.image_shape))
    x = torch.from_numpy(drawn).clamp(0, 1)  # Gaussian pixels may leave the range that the runtime takes
    eps = noise.normal(_GOLDEN_SEED, noise.POSTERIOR, rows, run.vae.latent_dim)
    mu, logsigma = run.vae.encoder(x)
    elbo = run.vae.elbo(x, torch.from_numpy(eps))
    buffer = io.BytesIO()
    arrays = {"seed": np.array(_GOLDEN_SEED, np.uint64), "z": z, "eps": eps}
    tensors = {"x": x, "mu": mu, "logsigma": logsigma, likelihood.output: parameters, "elbo": elbo}
    arrays |= {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def check_target(out: Path) -> None:
    """Make the folder for `out`; raise ArgumentError where `out` is not a bundle, so that nothing else is replaced."""
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - {*FILES, "manifest.json"}):
        raise ArgumentError("output exists and is not a bundle", out, "choose another with --out")
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)


def swap(staging: Path, out: Path) -> None:
    """Put the folder `staging` in the place of `out` in one step; what was there is left in `staging`, if anywhere."""
    with write_errors(out):
        _swap(staging, out)


def _swap(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
    elif not _exchange(staging, out):
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.old.") as old:
            kept = out.rename(Path(old) / out.name)
            try:
                staging.rename(out)
            except OSError:
                kept.rename(out)
                raise
    _fsync(out.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically with Linux's renameat2(RENAME_EXCHANGE); False where the system has none."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    at_cwd, exchange = -100, 2
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def _write(folder: Path, files: dict[str, bytes]) -> None:
    with write_errors(folder):
        for name, data in files.items():
            with (folder / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _fsync(folder)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
