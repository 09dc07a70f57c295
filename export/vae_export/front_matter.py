"""The YAML at the top of a model card, which model hubs read."""

import json
from collections.abc import Iterator
from typing import Any

from vae_export.facts import CardFigure
from vae_runtime.errors import printable
from vae_runtime.manifest import Manifest
from vae_runtime.observation import IMAGE

_HUB = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}  # names on the Hugging Face Hub
_TASK = "unconditional-image-generation"  # hubs have no such task for other kinds


def lines(manifest: Manifest, figures: list[CardFigure]) -> Iterator[str]:
    """YAML as https://github.com/huggingface/hub-docs/blob/main/modelcard.md has it. No licence: none is known here.

    A line for each key, its value in JSON, which YAML understands.
    """
    observation, measured = manifest.contract.observation, manifest.evaluation
    dataset = printable(measured.dataset) if measured else ""
    task, hub = _TASK if observation.kind == IMAGE else "other", _HUB.get(dataset)
    data: dict[str, Any] = {"library_name": "vae-edge"}
    if task == _TASK:
        data["pipeline_tag"] = _TASK
    likelihood = printable(manifest.contract.likelihood.name)
    data["tags"] = ["variational-autoencoder", "vae", "onnx", "onnxruntime", likelihood]
    if manifest.precision:
        data["tags"].append(printable(manifest.precision.precision))
    if hub:
        data["datasets"] = [hub]
    results = []
    for figure in figures:
        name = f"{figure.label}, nats per {observation.noun}{_error(figure.error, 2)}"
        results.append({"type": figure.kind, "value": round(figure.mean, 3), "name": name})
        if figure.bits:
            name = f"{figure.label}, bits per dimension{_error(figure.bits[1], 4)}"
            results.append({"type": "bits_per_dimension", "value": round(figure.bits[0], 4), "name": name})
    if results and measured and dataset:
        data["metrics"] = sorted({str(result["type"]) for result in results})
        of = {"type": hub or dataset, "name": dataset}
        of |= {"split": printable(measured.split)} if measured.split else {}
        entry = {"task": {"type": task}, "dataset": of, "metrics": results}
        data["model-index"] = [{"name": f"vae-{dataset}", "results": [entry]}]
    yield "---"
    for key, value in data.items():
        yield f"{key}: {json.dumps(value, ensure_ascii=False)}"
    yield "---"


def _error(error: float | None, places: int) -> str:
    return "" if error is None else f" (standard error {error:.{places}f})"
