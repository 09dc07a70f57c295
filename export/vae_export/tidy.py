"""Make a graph that torch wrote one that people can read and old runtimes load: short, named, without small weights."""

import ast
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import defs, helper
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import expand_before_binary_op_rules

from vae_export import onnx_graph
from vae_runtime.errors import BundleError

_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch keeps a node's module
_SMALLEST = np.finfo(np.float32).tiny  # 2**-126; below are denormals, slow or flushed to 0 on many devices


def tidy(model: ir.Model, weights: set[str], opset: int) -> onnx.ModelProto:
    """The graph at this opset, as short and readable as it gets.

    model: as torch.onnx.export made it, at this opset or a newer one. weights: the names of the network's parameters
    and buffers, which they keep. Raises BundleError where ONNX, or an older opset, has no such operators.
    """
    if foreign := sorted({f"{node.domain}::{node.op_type}" for node in model.graph if node.domain}):
        todo = "write it with operators that ONNX has instead"
        raise BundleError("network has operators outside of ONNX", ", ".join(foreign), todo)
    ShapeInferencePass()(model)  # torch's own optimisation leaves shapes that are computed because they are not known
    rewriter.rewrite(model, pattern_rewrite_rules=expand_before_binary_op_rules)
    optimizer.optimize(model)
    _name_nodes(model)
    _to_older(model, opset)
    _name_constants(model, weights)
    for node in model.graph:
        _drop_allowzero(node)
    for value in model.graph.initializers.values():
        _flush(value)
    RemoveUnusedNodesPass()(model)
    NameFixPass()(model)
    return strip(ir.to_proto(model))


def _name_nodes(model: ir.Model) -> None:
    """Name each node, and what it returns, after its module, which torch keeps in the metadata: `body.0/Gemm`.

    The second of a module is `body.0/Gemm_2`. `/Add` is in no module but the network itself.
    """
    seen: Counter[str] = Counter()
    outputs = set(model.graph.outputs)
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1]  # of modules; the last is the operator's
        module = next((scope for scope in reversed(scopes) if not scope.startswith("_")), "")
        name = f"{module}/{node.op_type}"
        seen[name] += 1
        node.name = f"{name}_{seen[name]}" if seen[name] > 1 else name
        for i, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"{node.name}.{i}" if len(node.outputs) > 1 else node.name


def _to_older(model: ir.Model, opset: int) -> None:
    """Write each operator as this opset has it, if it is older. Raises BundleError where it has none of that meaning.

    onnx.version_converter knows no way down for Split. Here, what is newer must be missing or have its default.
    """
    written = model.opset_imports[""]
    for node in model.graph if opset < written else ():
        new = defs.get_schema(node.op_type, written)
        try:
            old = defs.get_schema(node.op_type, opset)
        except defs.SchemaError:
            raise _newer(node.op_type, opset) from None
        if "axes" in old.attributes and len(node.inputs) > old.max_input:  # ReduceMean and its like
            axes = _constant(node.inputs[-1])
            if axes is not None:
                node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())
                node.resize_inputs(old.max_input)
        for name in sorted(set(node.attributes) - set(old.attributes)):
            default = ir.to_proto(node.attributes[name]) == new.attributes[name].default_value
            if not default and name != "num_outputs":  # a Split's outputs say so too
                raise _newer(f"{node.op_type} with {name}", opset)
            del node.attributes[name]
        if len(node.inputs) > old.max_input:
            raise _newer(f"{node.op_type} with {new.inputs[old.max_input].name}", opset)
    model.opset_imports[""] = opset


def _newer(operator: str, opset: int) -> BundleError:
    which = f"{operator} is not in opset {opset}"
    return BundleError("network has an operator newer than its opset", which, onnx_graph.NEWER)


def _name_constants(model: ir.Model, weights: set[str]) -> None:
    """Call a constant `<node>.<what the operator calls this input>`, by the first node that it is for."""
    constants = {value for name, value in model.graph.initializers.items() if name not in weights}
    for node in model.graph:
        inputs = defs.get_schema(node.op_type, model.opset_imports[""]).inputs
        for i, value in enumerate(node.inputs):
            if value in constants:
                constants.remove(value)
                name = f"{node.name}.{inputs[min(i, len(inputs) - 1)].name}"
                value.name = f"{name}.{i}" if name in model.graph.initializers else name


def _drop_allowzero(node: ir.Node) -> None:
    """Drop `allowzero` from a Reshape to constant sizes without 0: it means nothing there."""
    if node.op_type == "Reshape" and (sizes := _constant(node.inputs[1])) is not None and 0 not in sizes:
        node.attributes.pop("allowzero", None)


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """What a node's input always is, where that is known."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def _flush(value: ir.Value) -> None:
    """Replace the denormals of a float32 weight by 0."""
    assert value.const_value is not None
    if value.const_value.dtype == ir.DataType.FLOAT:
        value.const_value = ir.tensor(flushed(value.const_value.numpy()), name=value.name)


def flushed(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weight, with 0 in the place of denormals."""
    return np.where(np.abs(weight) < _SMALLEST, np.float32(0), weight)


def strip(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what only the exporter's debugging needs, and let old runtimes load the file."""
    proto.ir_version = helper.find_min_ir_version_for(list(proto.opset_import))
    graph = proto.graph
    made = {name for node in graph.node for name in node.output}
    shapes = [value for value in graph.value_info if value.name in made]  # the others are of weights, which have theirs
    del proto.metadata_props[:], graph.value_info[:]
    graph.value_info.extend(shapes)
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        node.attribute.sort(key=lambda attribute: attribute.name)
    return proto
