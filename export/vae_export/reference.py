"""Graphs as ONNX's own evaluator runs them, operator by operator in NumPy: slow, and written apart from onnxruntime."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

_KNOWS_QUANTISING = 19  # the oldest opset of which the evaluator knows the quantising operators

Arrays = list[NDArray[Any]]


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in an opset whose operators the evaluator knows."""
    old = model.opset_import[0].version < _KNOWS_QUANTISING
    if old and any("Quantize" in node.op_type for node in model.graph.node):
        return onnx.version_converter.convert_version(model, _KNOWS_QUANTISING)
    return model


@np.errstate(all="ignore")  # the sigmoid of a large number, say
def run(model: onnx.ModelProto, inputs: NDArray[Any]) -> Arrays:
    """The outputs of a readable graph of one input, of its type. Raises whatever a rare operator raises."""
    evaluator = ReferenceEvaluator(model)
    return list(evaluator.run(None, {evaluator.input_names[0]: inputs}))
