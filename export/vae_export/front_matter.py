"""The YAML at the top of a model card, which model hubs read."""

import json
from collections.abc import Iterator
from typing import Any

from vae_export.facts import Facts
from vae_runtime.errors import printable

_HUB = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}  # names on the Hugging Face Hub
_TASK = "unconditional-image-generation"


def lines(facts: Facts) -> Iterator[str]:
    """YAML as https://github.com/huggingface/hub-docs/blob/main/modelcard.md has it. No licence: none is known here."""
    hub = _HUB.get(facts.dataset)
    data: dict[str, Any] = {
        "library_name": "vae-edge",
        "pipeline_tag": _TASK,
        "tags": ["variational-autoencoder", "vae", "onnx", "onnxruntime", facts.likelihood_name],
    }
    if smaller := facts.manifest.get("precision"):
        data["tags"].append(str(smaller["precision"]))
    if hub:
        data["datasets"] = [hub]
    results = []
    for figure in facts.figures:
        name = f"{figure.label}, nats per image{_error(figure.error, 2)}"
        results.append({"type": figure.kind, "value": round(figure.mean, 3), "name": name})
        if figure.bits:
            name = f"{figure.label}, bits per dimension{_error(figure.bits[1], 4)}"
            results.append({"type": "bits_per_dimension", "value": round(figure.bits[0], 4), "name": name})
    if results and facts.dataset:
        data["metrics"] = sorted({str(result["type"]) for result in results})
        dataset = {"type": hub or facts.dataset, "name": facts.dataset}
        dataset |= {"split": str(facts.evaluation["split"])} if "split" in facts.evaluation else {}
        entry = {"task": {"type": _TASK}, "dataset": dataset, "metrics": results}
        data["model-index"] = [{"name": f"vae-{facts.dataset}", "results": [entry]}]
    yield "---"
    yield from _yaml(data)
    yield "---"


def _error(error: float | None, places: int) -> str:
    return "" if error is None else f" (standard error {error:.{places}f})"


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lists and objects in YAML's block style; text and numbers as in JSON, which YAML understands."""
    pairs = [("-", it) for it in value] if isinstance(value, list) else [(f"{key}:", it) for key, it in value.items()]
    for head, it in pairs:
        if not isinstance(it, list | dict):
            yield f"{indent}{head} {json.dumps(printable(it) if isinstance(it, str) else it, ensure_ascii=False)}"
            continue
        first, *rest = _yaml(it, indent + "  ")
        if head == "-":
            yield f"{indent}- {first.lstrip()}"
        else:
            yield f"{indent}{head}"
            yield first
        yield from rest
