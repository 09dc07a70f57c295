"""Make a bundle of a run: graphs, golden vectors and manifest, judged before they are published."""

import hashlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vae_export import failing, gate, golden, graphs, publish, requirements
from vae_runtime.bundle import FORMAT, MANIFEST, dump_manifest
from vae_runtime.errors import BundleError
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train.checkpoint import Run


def export(
    run: Run, out: Path, opset: int, judge: Callable[[list[gate.Row]], None], keep_failing: Path | None = None
) -> None:
    """Export `run`, compare it with PyTorch, and publish it as the folder `out` if `judge` does not raise.

    A failed or killed export leaves what was at `out` as it was. keep_failing: a new folder for what repeats the
    failure, where `judge` raises BundleError.
    """
    graphs.check_opset(opset)
    if keep_failing:
        failing.check_new(keep_failing)
    out = out.resolve()  # a link is followed, so that its target is replaced
    publish.check_target(out)
    contract, encoder, decoder = build(run, opset)
    files = {
        "encoder.onnx": graphs.stamp(encoder, contract, "encoder"),
        "decoder.onnx": graphs.stamp(decoder, contract, "decoder"),
        "golden.npz": golden.archive(run.vae, run.image_shape),
    }
    manifest = {
        "contract": contract,
        "files": {name: _fingerprint(data) for name, data in files.items()},
        "onnx": requirements.describe(encoder, decoder),
        "parameters": sum(weight.numel() for weight in run.vae.parameters()),
        "provenance": {**run.provenance, **_versions("vae-edge", "onnx", "onnxscript", "onnxruntime")},
        "settings": {**asdict(run.config), "dataset": run.evaluation.get("dataset")},  # without the folders above it
        "preprocessing": run.settings.preprocessing,
        "evaluation": run.evaluation,
    }
    with publish.staging(out) as staging:
        publish.write(staging, {**files, MANIFEST: dump_manifest(manifest)})
        rows = gate.compare(run.vae, RuntimeVAE.load(staging), run.probe)
        try:
            judge(rows)
        except BundleError:
            if keep_failing:
                failing.keep(keep_failing, staging, rows)
            raise
        publish.write(staging, {MANIFEST: dump_manifest({**manifest, "parity": gate.report(rows)})})
        publish.swap(staging, out)
    publish.remove_leftovers(out)


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


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
