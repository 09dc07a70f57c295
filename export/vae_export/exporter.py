"""Make a bundle of a run: graphs, golden vectors and manifest, judged before they are published."""

import hashlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vae_export import candidate, failing, gate, onnx_graph, publish, requirements, trained
from vae_export.candidate import Candidate
from vae_export.tradeoff import Tradeoff
from vae_runtime.bundle import MANIFEST, dump_manifest
from vae_runtime.errors import BundleError
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train.run_folder import Run

Judge = Callable[[list[gate.Comparison], str], None]
Pick = Callable[[Candidate], tuple[Candidate, Tradeoff | None]]


def export(
    run: Run, out: Path, opset: int, judge: Judge, keep_failing: Path | None = None, pick: Pick | None = None
) -> str:
    """Export `run`, compare it with PyTorch, publish it as the folder `out` if `judge` does not raise; its precision.

    Raises BundleError where the network is not the one that was trained, or not one that a bundle can hold.
    A failed or killed export leaves what was at `out` as it was. judge: is given the comparisons and a heading.
    keep_failing: a new folder for what repeats the failure, where `judge` raises BundleError. pick: returns what is
    published in place of the float32 graphs, which are judged first, and what it costs; it is judged too.
    """
    onnx_graph.check_opset(opset)
    if keep_failing:
        failing.check_new(keep_failing)
    out = out.resolve()  # a link is followed, so that its target is replaced
    publish.check_target(out)
    made, cost = candidate.fp32(run.vae, run.image_shape, opset), None
    trained.check(run)
    with publish.staging(out) as staging:
        manifest = _stage(staging, run, made, judge, keep_failing)
        if pick:
            plain = made
            made, cost = pick(plain)
            if made is not plain:
                manifest = _stage(staging, run, made, judge, keep_failing)
        if cost:
            publish.write(staging, {MANIFEST: dump_manifest({**manifest, "precision": cost.report()})})
        publish.swap(staging, out)
    publish.remove_leftovers(out)
    return made.precision


def _stage(staging: Path, run: Run, made: Candidate, judge: Judge, keep_failing: Path | None) -> dict[str, Any]:
    """Write the candidate's bundle into the folder `staging`, judge it there, and return its manifest."""
    manifest = describe(run, made)
    publish.write(staging, {**made.files, MANIFEST: dump_manifest(manifest)})
    rows = gate.compare(made.vae, RuntimeVAE.load(staging), run.probe)
    try:
        judge(rows, f"{made.precision} in onnxruntime against {made.reference}")
    except BundleError:
        if keep_failing:
            failing.keep(keep_failing, staging, rows)
        raise
    manifest["parity"] = gate.report(rows, made.reference)
    publish.write(staging, {MANIFEST: dump_manifest(manifest)})
    return manifest


def describe(run: Run, made: Candidate) -> dict[str, Any]:
    """The manifest of a candidate, but for what the gate has to say; docs/bundle.md has its fields."""
    return {
        "contract": made.contract,
        "files": {name: _fingerprint(data) for name, data in made.files.items()},
        "onnx": requirements.describe(made.encoder, made.decoder),
        "parameters": sum(weight.numel() for weight in run.vae.parameters()),
        "provenance": {**run.provenance, **_versions("vae-edge", "onnx", "onnxscript", "onnxruntime")},
        "settings": asdict(run.config.replace(dataset=Path(run.config.data.dataset).name)),  # without the folders above
        "preprocessing": run.settings.preprocessing,
        "evaluation": run.evaluation,
    }


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
