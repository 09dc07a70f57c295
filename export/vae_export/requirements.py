"""What a bundle's graphs ask of a runtime: opset, IR version, operators, the oldest onnxruntime, and memory."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference

# The first onnxruntime of each opset and IR version: onnxruntime.ai/docs/reference/compatibility up to 1.20. From there
# on, and for opset 19, whose Reshape 1.15 lacks, as measured with graphs of this package:
# tests/export/test_requirements.py.
_OPSETS = {17: (1, 12), 18: (1, 14), 19: (1, 16), 20: (1, 17), 21: (1, 18), 22: (1, 21), 23: (1, 23)}
_IR_VERSIONS = {8: (1, 9), 9: (1, 16), 10: (1, 18), 11: (1, 23)}
_FIRST_FOR_PYTHON = (1, 15)  # of the oldest Python that vae-edge runs on, 3.11
NEWEST_OPSET = max(_OPSETS)


def describe(models: Mapping[str, onnx.ModelProto]) -> dict[str, Any]:
    """The entry `onnx` of a bundle's manifest, of its graphs by role; docs/bundle.md has its fields."""
    opset = max(entry.version for model in models.values() for entry in model.opset_import)
    ir_version = max(model.ir_version for model in models.values())
    oldest = max(_OPSETS[opset], _IR_VERSIONS[ir_version], _FIRST_FOR_PYTHON)
    return {
        "opset": opset,
        "ir_version": ir_version,
        "min_onnxruntime": ".".join(map(str, (*oldest, 0))),
        "operators": {
            role: dict(sorted(Counter(node.op_type for node in _nodes(model.graph)).items()))
            for role, model in models.items()
        },
        "working_bytes": {role: working_bytes(model) for role, model in models.items()},
    }


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and of the bodies of its Scans."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _nodes(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def working_bytes(model: onnx.ModelProto) -> int:
    """What the values between a graph's layers take for each observation, at the most at a time, in bytes.

    By the shapes that ONNX infers, each value from the node that makes it to the last one that takes it. What is made
    of weights alone, such as those of float16 in float32, is there once and not counted. A runtime that computes in
    place, or copies into another layout, has less or more.
    """
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return _most(graph, {value.name for value in graph.input} - {weight.name for weight in graph.initializer})


def _most(graph: onnx.GraphProto, given: set[str]) -> int:
    """The same of a graph with the shapes of its values, of which the inputs `given` are of observations."""
    sizes = {value.name: _bytes(value.type.tensor_type) for value in (*graph.value_info, *graph.input, *graph.output)}
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    alive, of_observations, most = set(given), set(given), 0
    for i, node in enumerate(graph.node):
        if of_observations.isdisjoint(node.input):
            continue
        alive.update(node.output)
        of_observations.update(node.output)
        within = 0
        for body in _bodies(node):
            taken = zip(body.input, node.input, strict=True)
            within += _most(body, {inner.name for inner, outer in taken if outer in of_observations})
        most = max(most, within + sum(sizes.get(name, 0) for name in alive))
        alive -= {name for name in node.input if last[name] == i}
    return most


def _bytes(tensor: onnx.TypeProto.Tensor) -> int:
    """The size of a tensor of one observation: a batch of no fixed size counts as 1, and so does what is not known."""
    values = math.prod(size.dim_value or 1 for size in tensor.shape.dim)
    return int(values * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize)
