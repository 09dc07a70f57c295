"""What a bundle promises of its networks: no noise, nothing as in training, and each observation by itself."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from vae_export import code_lines
from vae_export.code_lines import Owns, refusal

_NOISE = "write the distribution's parameters as outputs instead; what samples draws the noise"
_TRAINING = "write training=self.training instead"
_STATISTICS = "write training=self.training instead, and give it running statistics"
_AXIS = "write what is done for each observation instead, so that the first axis of every output is the batch"
_EACH = "write what is done for each observation instead"
_ROUNDING = 1e-3  # of a tensor's largest value; another batch size rounds otherwise, by 1e-6 or so


def check(program: ExportedProgram, owns: Owns, names: str) -> None:
    """Raise BundleError for a traced network that breaks a promise. names: of its input and outputs, for messages."""
    output = program.graph.output_node()
    needed = set(_made_from(output))
    for node in program.graph.nodes:
        operator = isinstance(node.target, torch._ops.OpOverload)
        matters = operator and (node in needed or node.target._schema.is_mutable)
        if matters and (broken := _draws_or_trains(node)):
            raise refusal(code_lines.of_node(node, owns), *broken, names)
    (batch,) = (_sizes(node)[0] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    for node in output.all_input_nodes:
        if _sizes(node)[:1] != [batch]:
            reason = f"an output of shape [{', '.join(_sizes(node)).replace(batch, 'batch')}]"
            loses = (n for n in _made_from(node) if any(_sizes(of)[:1] == [batch] for of in n.all_input_nodes))
            raise refusal(code_lines.of_node(next(loses, node), owns), reason, _AXIS, names)
    if (mixed := _mixes(program)) is not None:
        inputs = {n: {size for of in n.all_input_nodes for size in _sizes(of)} for n in _made_from(mixed)}
        loses = (n for n, sizes in inputs.items() if batch in sizes and batch not in _sizes(n))
        reason = "an observation's numbers depend on the others of its batch"
        raise refusal(code_lines.of_node(next(loses, mixed), owns), reason, _EACH, names)


def _draws_or_trains(node: fx.Node) -> tuple[str, str] | None:
    """Reason and what to do, where an operator draws noise or works as in training."""
    operator: Any = node.target
    parameters = operator._schema.arguments
    arguments = {p.name: p.default_value for p in parameters if p.has_default_value()}
    arguments |= dict(zip((p.name for p in parameters), node.args, strict=False)) | node.kwargs
    name = operator._schema.name.partition("::")[2].strip("_")
    training = arguments.get("training", arguments.get("train"))
    if training is True:
        return f"{name} as in training", _STATISTICS if "norm" in name else _TRAINING
    seeded = torch.Tag.nondeterministic_seeded in operator.tags
    if seeded and training is None and arguments.get("dropout_p") != 0:
        return f"{name} is random", _NOISE
    return None


@torch.no_grad()
def _mixes(program: ExportedProgram) -> fx.Node | None:
    """The first operator, if any, that gives two rows other numbers when two more are in their batch; tried out."""
    module: Any = program.module()
    (shape,) = (value.shape[1:] for value in program.example_inputs[0])
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    alone, among = (fx.Interpreter(module, garbage_collect_values=False) for _ in range(2))
    alone.run(x[:2])
    among.run(x)
    needed = set(_made_from(module.graph.output_node()))
    nodes: list[fx.Node] = [node for node in module.graph.nodes if node in needed]
    for node in nodes:
        a, b = alone.env.get(node), among.env.get(node)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and b.shape == (4, *a.shape[1:]) and len(a) == 2:
            difference = (b[:2].double() - a.double()).abs()
            if (difference > _ROUNDING * a.double().abs().max()).any():
                return node
    return None


def _made_from(node: fx.Node) -> list[fx.Node]:
    """A node and all that it is made from, nearest first."""
    found = [node]
    for made in found:
        found += [of for of in made.all_input_nodes if of not in found]
    return found


def _sizes(node: fx.Node) -> list[str]:
    """A tensor's shape with symbols as text; empty for what is no tensor."""
    return [str(size) for size in getattr(node.meta.get("val"), "shape", ())]
