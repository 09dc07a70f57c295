"""The graph of a learned prior: from noise to z and from z to noise and log p(z), on the same weights."""

import onnx
import torch
from torch import Tensor, nn

from vae_export import onnx_graph
from vae_train.flow import Flow
from vae_train.prior import Prior

_WEIGHTS = "prior."  # before their names, in both modules below
_DRAWS = "draws"  # rows of noise; those of z are the batch


class _FromNoise(nn.Module):
    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, noise: Tensor) -> Tensor:
        """z of noise, both [draws, *shape]."""
        return self.prior.from_noise(noise)


class _ToNoise(nn.Module):
    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise of z, [batch, *shape] both, and log p(z), nats, [batch]."""
        return self.prior.to_noise(z)[0], self.prior.log_prob(z)


def to_onnx(prior: Prior, opset: int) -> onnx.ModelProto:
    """Inputs `noise` [draws, *shape] and `z` [batch, *shape] to `z_of_noise`, and to `noise_of_z` and `log_prob`.

    No output depends on both, so that either may have no rows. Raises BundleError where that cannot be exported.
    """
    prior = prior.folded() if isinstance(prior, Flow) else prior
    example = torch.zeros(2, *prior.shape)
    from_noise = onnx_graph.to_onnx(_FromNoise(prior), example, "noise", ["z_of_noise"], opset)
    to_noise = onnx_graph.to_onnx(_ToNoise(prior), example, "z", ["noise_of_z", "log_prob"], opset)
    for value in (*from_noise.graph.input, *from_noise.graph.output, *from_noise.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == "batch":  # one name for two sizes would let a runtime share memory between them
                size.dim_param = _DRAWS
    both = _joined(from_noise, to_noise)
    onnx_graph.check(both, opset)
    return both


def _joined(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """One model of both graphs; weights that they share are in it once."""
    weights = {tensor.name: tensor for tensor in first.graph.initializer}
    shared = {tensor.name for tensor in second.graph.initializer if weights.get(tensor.name) == tensor}
    joined = onnx.ModelProto()
    joined.CopyFrom(first)
    for field in ("node", "initializer", "input", "output", "value_info"):
        del getattr(joined.graph, field)[:]
    for model, direction in ((first, "from_noise"), (second, "to_noise")):
        graph = _named(model.graph, shared, direction)
        there = {tensor.name for tensor in joined.graph.initializer}
        joined.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name not in there)
        for field in ("node", "input", "output", "value_info"):
            getattr(joined.graph, field).extend(getattr(graph, field))
    return joined


def _named(graph: onnx.GraphProto, shared: set[str], direction: str) -> onnx.GraphProto:
    """The graph with names that no other direction has, but for inputs, outputs and what is shared."""
    graph, given = onnx.GraphProto(), graph
    graph.CopyFrom(given)
    kept = {value.name for value in (*graph.input, *graph.output)}

    def renamed(name: str) -> str:
        if name in kept or not name:
            return name
        plain = name.removeprefix(_WEIGHTS).removeprefix("/")
        return plain if name in shared else f"{direction}/{plain}"

    for part in (*graph.initializer, *graph.value_info):
        part.name = renamed(part.name)
    for node in graph.node:
        node.name = renamed(node.name)
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    return graph
