"""In which operator a traced network ends, shape aside; and the same network without its last Sigmoid."""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from vae_export import capture

_MOVES = frozenset(
    """view reshape _unsafe_view unflatten flatten squeeze unsqueeze permute transpose t clone contiguous alias detach
    flip slice select expand _to_copy to""".split()  # noqa: SIM905
)
_CLAMPS = frozenset({"clamp", "clamp_min", "clamp_max"})


def of(module: nn.Module, example: Tensor, names: str) -> list[str]:
    """By the name that torch has for it, the operator that made each of a network's outputs: "sigmoid", say.

    Raises BundleError where the network cannot be traced.
    """
    program = capture.capture(module, example, names)
    return [operator(_behind(node)[0]) for node in _outputs(program.graph_module)]


def without_sigmoid(module: nn.Module, example: Tensor, names: str) -> nn.Module | None:
    """The network of one output whose last Sigmoid gives what it took: logits, exactly, and nothing is inverted.

    Where theta was clamped after it, the logits are, to the ends' own: the sigmoid never falls. None where the network
    does not end in one. Raises BundleError where it cannot be traced.
    """
    cut = _unlifted(capture.capture(module, example, names))
    (end,) = _outputs(cut)
    sigmoid, moves = _behind(end)
    if operator(sigmoid) != "sigmoid":
        return None
    (returned,) = cut.graph.find_nodes(op="output")
    (moves[-1] if moves else returned).replace_input_with(sigmoid, sigmoid.all_input_nodes[0])
    if not sigmoid.users:  # what writes in its place would stay otherwise, and write there
        cut.graph.erase_node(sigmoid)
    for node in moves:
        if operator(node) in _CLAMPS:
            _clamp_logits(node)
    cut.graph.eliminate_dead_code()
    return fx.GraphModule(cut, cut.graph)  # a plain one, which can be set to evaluation mode


def operator(node: fx.Node) -> str:
    """The name of a node's operator in torch."""
    return str(getattr(node.target, "_schema", node).name).rpartition("::")[2].rstrip("_")


def _outputs(module: fx.GraphModule) -> list[fx.Node]:
    (returned,) = module.graph.find_nodes(op="output")
    return [node for node in torch.utils._pytree.tree_leaves(returned.args) if isinstance(node, fx.Node)]


def _behind(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The node that computed what `node` moves and clamps, and what moves and clamps it, the last one first."""
    moves = []
    while node.all_input_nodes and (operator(node) in _MOVES or _clamps_to_numbers(node)):
        moves.append(node)
        node = node.all_input_nodes[0]
    return node, moves


def _clamps_to_numbers(node: fx.Node) -> bool:
    return operator(node) in _CLAMPS and len(node.all_input_nodes) == 1


def _clamp_logits(node: fx.Node) -> None:
    """Clamp to the logits of what theta is clamped to."""

    def logit(end: Any) -> Any:
        return math.log(end / (1 - end)) if end is not None and 0 < end < 1 else None

    x, *ends = node.args
    low, high = {"clamp": (*ends, None, None)[:2], "clamp_min": (*ends[:1], None), "clamp_max": (None, *ends[:1])}[
        operator(node)
    ]
    low, high = logit(node.kwargs.get("min", low)), logit(node.kwargs.get("max", high))
    if low is None and high is None:
        node.replace_all_uses_with(node.all_input_nodes[0])
        node.graph.erase_node(node)
        return
    node.target, node.args, node.kwargs = torch.ops.aten.clamp.default, (x, low, high), {}


def _unlifted(program: ExportedProgram) -> fx.GraphModule:
    """The traced network as a module, with its weights, and without checks of types, which hold in float32 alone."""
    module = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if operator(node) in ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"):
            module.graph.erase_node(node)
    return module
