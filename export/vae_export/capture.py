"""Trace a network with torch.export, and refuse by its line in a person's code what no bundle can hold."""

import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from vae_export import any_batch, code_lines, promises
from vae_export.code_lines import Line, Owns, refusal
from vae_runtime.errors import BundleError

_BRANCH = "write torch.where(condition, a, b), which computes both, instead of branches, loops and checks on values"
_BATCH = "write x.shape[0], without int or len, -1 or flatten(1) instead, and the whole batch at once"
_OTHER_WAY = "write it so that it does the same for any number of observations"
_FEWER_BITS = "leave autocast and 16-bit types out of the network; vae-train --precision bfloat16 has them in training"
_UNRUN = "change that layer, or take another that onnxruntime runs"
_OPERATOR = (
    "write it with operators that ONNX has instead, as (a[:, None] - b).square().sum(-1).sqrt() for torch.cdist(a, b)"
)
_TORCH = "write it with torch's operators on whole tensors instead"


def capture(module: nn.Module, example: Tensor, names: str) -> ExportedProgram:
    """Trace `module` for any batch size. names: of its input and outputs, for messages.

    Raises BundleError where that cannot be, or where the network breaks what a bundle promises.
    """
    owns = code_lines.owner(module)
    if (compiled := getattr(module, "_orig_mod", None)) is not None:
        reason = f"{type(compiled).__name__} as torch.compile made it"
        raise refusal(None, reason, "leave torch.compile out of what makes the networks", names)

    def trace(example: Tensor = example, batch: Any = None) -> ExportedProgram:
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch or Dim("batch")},))

    with quiet():
        try:
            program = _traced(trace, example)
            promises.check(program, owns, names)
        except (BundleError, MemoryError):
            raise
        except Exception as error:  # whatever the network or torch raises
            line, reason, todo = _explain(error, owns)
            if todo in (_BATCH, _OTHER_WAY):
                line = code_lines.of_fixed_size(module, trace, owns)
            raise refusal(line, reason, todo, names) from None
    return program


def _traced(trace: any_batch.Trace, example: Tensor) -> ExportedProgram:
    """The network traced for any batch size, even if its code asks how large one is and then does the same."""
    try:
        return trace(example)
    except Exception as error:
        failed = error
    if str(failed).count("Not all values of") == 1 and "Dim('batch', max=" in str(failed):  # and nothing else
        program = any_batch.same_for_any(trace, example)
        if program is not None:
            return program
    raise failed


def untranslated(error: torch.onnx.OnnxExporterError, module: nn.Module, names: str) -> BundleError:
    """The error for a traced network that torch.onnx.export cannot write, by the operator where it gave up."""
    reason = _lines(code_lines.chain(error)[-1])[0]
    if operator := re.search(r"OpOverload\(op='\w+\.(.+?)'", reason):
        reason = f"ONNX has no operator for {operator[1].strip('_')}"
    frames = [
        frame.f_locals.get("node") for e in code_lines.chain(error) for frame, _ in traceback.walk_tb(e.__traceback__)
    ]
    nodes = [node for node in frames if isinstance(node, fx.Node)]
    line = code_lines.of_node(nodes[-1], code_lines.owner(module)) if nodes else None
    return refusal(line, reason, _OPERATOR, names)


def not_run(error: BundleError, program: ExportedProgram, module: nn.Module, names: str) -> BundleError:
    """The error for a graph that onnxruntime does not open or run, with its reason and the line of the layer."""
    owns = code_lines.owner(module)
    parts = [part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)]
    nodes = [node for part in parts for node in part.graph.nodes]
    short = [node for node in nodes if getattr(node.meta.get("val"), "dtype", None) in (torch.bfloat16, torch.float16)]
    named = re.search(r"'([\w.]+)/\w+'", error.which)  # after its module, as `tidy` names nodes
    of_layer = [node for node in nodes if named and module_of(node) == named[1]]
    lines = filter(None, (code_lines.of_node(node, owns) for node in short or of_layer))
    return refusal(next(lines, None), f"{error.what}: {error.which}", _FEWER_BITS if short else _UNRUN, names)


def module_of(node: fx.Node) -> str:
    """The path of the module whose forward called the operator."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Hear nothing for a while of what torch and onnxruntime's quantiser log and print: advice that does not hold here.

    It is on conversions to older opsets, on what is raised a moment later, and on shapes that are known.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The tensor attribute")  # recurrent layers keep a list of theirs
            yield
    finally:
        logging.disable(level)


def _explain(error: Exception, owns: Owns) -> tuple[Line | None, str, str]:
    """Line, reason and what to do, of what torch.export raised."""
    kinds = {type(e).__name__ for e in code_lines.chain(error)}
    line = code_lines.of_error(error, owns)
    if "GuardOnDataDependentSymNode" in kinds:
        return line, "data-dependent: the way depends on a tensor's values", _BRANCH
    if "ConstraintViolationError" in kinds:
        if "specialized it to be a constant" in str(error):
            return line, "fixes the batch size", _BATCH
        reason = re.sub(r"L\['\w+'\]\.size\(\)\[0\]", "batch", _lines(error)[1].removeprefix("- "))
        reason = re.sub(r"^Not all values .* guard (.+?)\.?$", r"works for \1 only", reason)
        return line, reason, _OTHER_WAY if re.search("[<>]", reason) else _BATCH
    return line, _lines(error)[0], _TORCH


def _lines(error: BaseException) -> list[str]:
    """What an exception says."""
    return [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
