"""From PyTorch modules to ONNX graphs: named, checked, with embedded weights and a dynamic batch."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from vae_runtime.bundle import METADATA_KEY
from vae_runtime.errors import ArgumentError, BundleError, VaeError
from vae_runtime.session import Session

if TYPE_CHECKING:  # a bundle is checked without PyTorch
    from torch import Tensor, nn

OLDEST_OPSET = 17
_SPLIT_HAS_NUM_OUTPUTS = 18
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


def newest_opset() -> int:
    """The newest opset that the installed torch can write and the installed onnx and onnxruntime can read."""
    import torch.onnx._constants

    newest = min(torch.onnx._constants.ONNX_MAX_OPSET, onnx.defs.onnx_opset_version())
    while newest > OLDEST_OPSET and not _loads(newest):
        newest -= 1
    return newest


def check_opset(opset: int) -> None:
    """Raise ArgumentError, naming the range, where the opset cannot be written and run here."""
    newest = newest_opset()
    if not OLDEST_OPSET <= opset <= newest:
        raise ArgumentError("opset out of range", opset, f"give {OLDEST_OPSET} to {newest}")


def to_onnx(
    module: "nn.Module", example: "Tensor", input_name: str, output_names: list[str], opset: int
) -> onnx.ModelProto:
    """Export one module of one input; the first axis of inputs and outputs is the dynamic `batch`.

    Raises BundleError where the module cannot be exported, or the result is not what was asked for.
    """
    import torch.onnx

    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=output_names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        which = f"{input_name} to {', '.join(output_names)} ({reason})"
        todo = "use operators that torch.onnx.export takes, and no branches on values"
        raise BundleError("network cannot be exported", which, todo) from None
    assert program is not None  # it is None only when torch writes the file itself
    model = program.model_proto
    _tidy(model)
    if opset < _SPLIT_HAS_NUM_OUTPUTS:
        _count_parts_by_outputs(model)
    check(model, opset)
    return model


def stamp(model: onnx.ModelProto, contract: dict[str, Any], role: str) -> bytes:
    """Write the contract and the graph's role into its metadata, and serialise it."""
    helper.set_model_props(model, {METADATA_KEY: json.dumps({**contract, "role": role})})
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def check(model: onnx.ModelProto, opset: int) -> None:
    """Raise BundleError unless the graph is valid, deterministic, self-contained and of the opset asked for."""
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found != {"": opset}:
        versions = ", ".join(f"{domain or 'opset'} {version}" for domain, version in found.items())
        raise BundleError(f"exported {versions}", f"asked for {opset}", "choose a newer --opset")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError(
            "exported graph is not valid", f"opset {opset} ({reason})", "choose a newer --opset"
        ) from None
    if random := sorted(_RANDOM & {node.op_type for node in _nodes(model)}):
        raise BundleError("random operators in the graph", ", ".join(random), "return the distribution's parameters")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise BundleError("weights outside the graph", model.graph.name, "export with embedded weights")
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param != "batch":
            raise BundleError("batch size fixed in the graph", value.name, "keep the first axis free in the network")


def _tidy(model: onnx.ModelProto) -> None:
    """Drop what only the exporter's debugging needs, and let old runtimes load the file."""
    opsets = list(model.opset_import)
    model.ir_version = helper.find_min_ir_version_for(opsets)
    del model.metadata_props[:]
    model.graph.doc_string = ""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.value_info, model.graph):
        del part.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def _count_parts_by_outputs(model: onnx.ModelProto) -> None:
    """Drop what torch's conversion to an older opset leaves in Split: there the outputs say how many equal parts."""
    for node in _nodes(model):
        if node.op_type == "Split":
            kept = [attribute for attribute in node.attribute if attribute.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those inside branches, loops and local functions too."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            pending += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hear nothing for a while of what torch logs and prints: of conversions to older opsets, and before it raises."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _loads(opset: int) -> bool:
    """Whether the installed onnxruntime opens a graph of this opset."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [value])
    graph.output[0].name = "y"
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    try:
        Session(model.SerializeToString(), "probe")
    except VaeError:
        return False
    return True
