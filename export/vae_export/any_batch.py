"""Whether code that asks how many observations there are does the same for any number of them."""

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

_RANGES = 8  # of batch sizes that are told apart, at most
_COPIES = ("aten.contiguous", "aten.clone", "aten.alias")

Trace = Callable[..., ExportedProgram]  # of an example, and what its first axis is: any, if that is left out


def same_for_any(trace: Trace, example: Tensor) -> ExportedProgram | None:
    """A network traced for few observations, if for more of them it is, operator by operator, the same.

    Code such as `if x.shape[0] >= 64: x = x.contiguous()` has an end of what a trace holds for, and beyond it another
    trace holds: all are made. None where two differ. Raises what tracing raises.
    """
    first = trace(example, Dim.DYNAMIC)
    program = first
    for _ in range(_RANGES):
        (sizes,) = program.range_constraints.values()
        if not str(sizes.upper).isdigit():
            return first
        beyond = torch.empty(int(sizes.upper) + 1, *example.shape[1:])  # nothing is written there: it takes no memory
        program = trace(beyond, Dim.DYNAMIC)
        if _steps(program) != _steps(first):
            return None
    return None


def _steps(program: ExportedProgram) -> list[str]:
    """The operators of a traced network in order, each with what it takes; without those that only copy."""
    names: dict[fx.Node, str] = {}
    steps: list[str] = []
    for node in program.graph.nodes:
        if str(node.target).startswith(_COPIES):
            names[node] = names[node.args[0]]
            continue
        names[node] = f"%{len(steps)}"
        steps.append(f"{node.target} {fx.map_arg((node.args, node.kwargs), names.__getitem__)}")
    return steps
