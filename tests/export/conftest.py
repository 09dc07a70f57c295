"""Fixtures of the export tests: the real exporter, run once per graph of the tiny run, and faults put in after it."""

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from vae_export import graphs

Mutation = Callable[[onnx.ModelProto], None]

_GRAPH_OF = {"mu": "encoder", "logits": "decoder"}  # by first output


@pytest.fixture(scope="session")
def exported() -> dict[str, bytes]:
    """What the real exporter made of each graph of the tiny run at opset 17, kept so that each is exported once."""
    return {}


@pytest.fixture
def after_export(exported: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`after_export("encoder", mutation)` lets a mutation loose on that graph between exporter and gate.

    Without arguments nothing is changed: only the exporter's time is saved. For the tiny run at opset 17 only.
    """
    real = graphs.to_onnx

    def apply(role: str = "", mutation: Mutation | None = None) -> None:
        def to_onnx(module: Any, example: Any, input_name: str, output_names: list[str], opset: int) -> Any:
            assert opset == 17
            graph = _GRAPH_OF[output_names[0]]
            if graph not in exported:
                exported[graph] = real(module, example, input_name, output_names, opset).SerializeToString()
            model = onnx.load_from_string(exported[graph])
            if graph == role and mutation is not None:
                mutation(model)
                assert model.SerializeToString() != exported[graph]
            return model

        monkeypatch.setattr(graphs, "to_onnx", to_onnx)

    return apply
