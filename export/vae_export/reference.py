"""Graphs as ONNX's own evaluator runs them, operator by operator in NumPy: slow, and written apart from onnxruntime."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_KNOWS_EVALUATION = 14  # the oldest opset of which the evaluator knows BatchNormalization as it is after training
_KNOWS_QUANTISING = 19  # the oldest opset of which the evaluator knows the quantising operators

Arrays = list[NDArray[Any]]


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph, which may be changed, in words that the evaluator understands."""
    opset = model.opset_import[0].version
    for node in model.graph.node if opset < _KNOWS_EVALUATION else ():
        if node.op_type == "BatchNormalization":  # it mixes in the batch's own statistics, by 1 - momentum
            kept = [attribute for attribute in node.attribute if attribute.name != "momentum"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("momentum", 1.0)])
    _forwards(model.graph)
    if opset < _KNOWS_QUANTISING and any("Quantize" in node.op_type for node in model.graph.node):
        return onnx.version_converter.convert_version(model, _KNOWS_QUANTISING)
    return model


def _forwards(graph: onnx.GraphProto) -> None:
    """Turn what a Scan takes from the last row to the first upside down: the evaluator takes the first one first."""
    numbers = {"starts": -1, "ends": np.iinfo(np.int64).min, "axes": 0, "steps": -1}
    backwards = [numpy_helper.from_array(np.array([it]), f"backwards.{name}") for name, it in numbers.items()]
    turned = set()
    for scan in [node for node in graph.node if node.op_type == "Scan"]:
        for attribute in [it for it in scan.attribute if it.name == "scan_input_directions"]:
            for i in (i - len(attribute.ints) for i, last_first in enumerate(attribute.ints) if last_first):
                name, scan.input[i] = scan.input[i], f"{scan.input[i]}.turned"
                if name not in turned:
                    turned.add(name)
                    turn = helper.make_node("Slice", [name, *(it.name for it in backwards)], [scan.input[i]])
                    graph.node.insert(list(graph.node).index(scan), turn)
            scan.attribute.remove(attribute)
    graph.initializer.extend(backwards if turned else [])


@np.errstate(all="ignore")  # the sigmoid of a large number, say
def run(model: onnx.ModelProto, inputs: NDArray[Any], given: str | None = None) -> Arrays:
    """The outputs of a readable graph, of the type of the inputs. Raises whatever a rare operator raises.

    given: which of its inputs they are, where it has several; the others have no rows.
    """
    evaluator = ReferenceEvaluator(model)
    given = given or evaluator.input_names[0]
    return list(evaluator.run(None, {name: inputs if name == given else inputs[:0] for name in evaluator.input_names}))
