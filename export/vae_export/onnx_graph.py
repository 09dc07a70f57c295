"""From PyTorch modules to ONNX graphs: named, checked, with embedded weights and a dynamic batch."""

import importlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from vae_export import requirements
from vae_runtime import safety
from vae_runtime.bundle import METADATA_KEY
from vae_runtime.errors import ArgumentError, BundleError, VaeError
from vae_runtime.sessions import Session

if TYPE_CHECKING:  # a bundle is checked without PyTorch
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.export import ExportedProgram

OLDEST_OPSET = 17
NEWER = "choose a newer --opset"  # `to_onnx` says which
_WRITTEN_FROM = 18  # torch.onnx.export writes this opset and newer ones; it would convert down too, without names


def newest_opset() -> int:
    """The newest opset that the installed torch can write and the installed onnx and onnxruntime can read."""
    newest = min(requirements.NEWEST_OPSET, onnx.defs.onnx_opset_version(), _newest_of_torch())
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
    from vae_export import capture

    names = f"{input_name} to {', '.join(output_names)}"
    program = capture.capture(module.eval(), example, names)

    def write(opset: int) -> onnx.ModelProto:
        return _write(program, module, names, input_name, output_names, opset)

    try:
        model = write(opset)
    except BundleError as error:
        if error.todo != NEWER:
            raise
        newer = next((newer for newer in range(opset + 1, newest_opset() + 1) if _writes(write, newer)), None)
        todo = f"choose --opset {newer}, or newer" if newer else "write it with older operators of ONNX instead"
        raise BundleError(error.what, error.which, todo) from None
    try:
        Session(model.SerializeToString(), names).run(output_names, example.numpy())
    except BundleError as error:
        raise capture.not_run(error, program, module, names) from None
    return model


def _write(
    program: "ExportedProgram", module: "nn.Module", names: str, input_name: str, output_names: list[str], opset: int
) -> onnx.ModelProto:
    """The graph of a traced network."""
    import torch.onnx

    from vae_export import capture, tidy

    try:
        with capture.quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(opset, _WRITTEN_FROM),
                input_names=[input_name],
                output_names=output_names,
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise capture.untranslated(error, module, names) from None
    assert exported is not None  # it is None only when torch writes the file itself
    weights = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    tidied = tidy.tidy(exported.model, weights, opset)
    check(tidied, opset)
    return tidied


def _writes(write: "Callable[[int], onnx.ModelProto]", opset: int) -> bool:
    """Whether a network can be written at an opset."""
    try:
        write(opset)
    except BundleError:
        return False
    return True


def stamp(model: onnx.ModelProto, contract: dict[str, Any], role: str) -> bytes:
    """Write the contract and the graph's role into its metadata, call it after its role, and serialise it."""
    model.graph.name = role
    helper.set_model_props(model, {METADATA_KEY: json.dumps({**contract, "role": role})})
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def check(model: onnx.ModelProto, opset: int, scans: bool = False) -> None:
    """Raise BundleError unless the graph is valid, deterministic, self-contained and of the opset asked for.

    scans: whether it may hold a Scan.
    """
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found != {"": opset}:
        versions = ", ".join(f"{domain or 'opset'} {version}" for domain, version in found.items())
        raise BundleError(f"exported {versions}", f"asked for {opset}", NEWER)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError("exported graph is not valid", f"opset {opset} ({reason})", NEWER) from None
    names = " to ".join(", ".join(v.name for v in values) for values in (model.graph.input, model.graph.output))
    safety.check(model.SerializeToString(), names, scans)  # what the runtime refuses: random operators, other files
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise BundleError("batch size fixed in the graph", value.name, "keep the first axis free in the network")


def _newest_of_torch() -> int:
    """The newest opset that torch.onnx.export takes. That has no public name; without it, what it surely takes."""
    with suppress(ImportError, AttributeError):
        return int(importlib.import_module("torch.onnx._constants").ONNX_MAX_OPSET)
    return _WRITTEN_FROM


def _loads(opset: int) -> bool:
    """Whether the installed onnxruntime opens a graph of this opset."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    identity = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [value])
    identity.output[0].name = "y"
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(identity, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    try:
        Session(model.SerializeToString(), "probe")
    except VaeError:
        return False
    return True
