"""Smaller graphs of the same VAE: weights stored as float16, or products of 8-bit integers."""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vae_export import candidate, tidy
from vae_export import reference as onnx_reference
from vae_export.candidate import Candidate
from vae_export.capture import quiet
from vae_runtime import noise
from vae_runtime.bundle import Bundle
from vae_runtime.errors import BundleError
from vae_runtime.manifest import Manifest
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train.vae import VAE

_FEWEST = 64  # weights of a tensor for which a Cast is worth its bytes
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_OTHER_PRODUCTS = ("ConvTranspose",)  # onnxruntime's quantiser leaves them in float32
_PERCENTILE = 99.99  # of the values seen: a few outliers would make the steps of all others coarser
_ROWS = 64  # calibrated at once
_CALIBRATION = 512  # observations; and as many z of the prior as of the aggregate posterior
_SHARE = 0.8  # of the nats that may be lost: on other images it is a little more or less
_SEED = 0
ROUNDED = 0.5  # steps that a weight may be off: it is the nearest one
_UNSURE = 300  # times float32's rounding of a weight: what may add up before a value is rounded to one of 256 levels

Floats = NDArray[np.float32]
Nodes = tuple[list[str], list[str]]  # of the encoder, of the decoder


def fp16(plain: Candidate) -> Candidate:
    """The VAE with its weights, but for biases, rounded to float16 and stored so; products stay float32.

    plain: its float32 graphs.

    Raises BundleError where a weight is too large for float16.
    """
    vae, opset = rounded(plain.vae), plain.graphs["encoder"].opset_import[0].version
    graphs = candidate.export(vae, plain.contract.observation.shape, opset)
    halves = {role: store_half(model) for role, model in graphs.items()}
    reference = f"{plain.reference}, its weights rounded to float16"
    return candidate.assemble("fp16", reference, vae, plain.contract.observation, halves)


def int8(plain: Candidate, x: Floats, max_nats: float) -> Candidate:
    """The VAE with products of 8-bit integers, but for the layers that would cost too many nats so, and the prior's.

    plain: its float32 graphs. x: training observations [n, *shape] as the likelihood takes them, to get the steps from.
    The reference of the gate is what ONNX's own evaluator makes of these graphs.
    Raises BundleError where no layer can be quantised within `max_nats`.
    """
    networks = plain.graphs["encoder"], plain.graphs["decoder"]
    candidates = products(networks[0]), products(networks[1])
    if not any(candidates):
        raise BundleError("int8 refused", "the networks have no Conv, Gemm or MatMul", "choose fp16")
    some = x[:: math.ceil(len(x) / _CALIBRATION)]  # from all over: they lie in order of class
    latents = _latents(plain.runtime(), some)

    def quantised(nodes: Nodes) -> candidate.Graphs:
        encoder, decoder = map(quantise, networks, nodes, (some, latents))
        return {**plain.graphs, "encoder": encoder, "decoder": decoder}

    exact = plain.runtime().elbo(x, seed=_SEED).mean()

    def cost(nodes: Nodes) -> float:
        files = {f"{role}.onnx": model.SerializeToString() for role, model in quantised(nodes).items()}
        runtime = RuntimeVAE(Bundle(Path("int8"), Manifest("", plain.contract, {}), files), num_threads=1)
        return float(exact - runtime.elbo(x, seed=_SEED).mean())

    chosen = choose(candidates, cost, _SHARE * max_nats)
    if not any(chosen):
        which = f"each layer alone costs more than {_SHARE:g} of {max_nats:g} nats"
        raise BundleError("int8 refused", which, "allow more with --max-nats, or choose fp16")
    graphs = quantised(chosen)
    if (off := max(steps_off(model, graphs[role]) for role, model in plain.graphs.items())) > ROUNDED:
        raise BundleError("int8 refused", f"onnxruntime's quantiser puts a weight {off:.2g} steps off", "choose fp16")
    made = candidate.assemble(
        "int8",
        "ONNX's own evaluator",
        evaluated(plain.vae, graphs["encoder"], graphs["decoder"]),
        plain.contract.observation,
        graphs,
    )
    return replace(
        made,
        float32_layers=[
            f"{role} {name}"
            for role, model, taken in zip(("encoder", "decoder"), networks, chosen, strict=True)
            for name in products(model, _PRODUCTS + _OTHER_PRODUCTS)
            if name not in taken
        ],
    )


def choose(candidates: Nodes, cost: Callable[[Nodes], float], most: float) -> Nodes:
    """The candidates without the costliest ones, so that they cost at most `most` nats together.

    cost: how many nats per observation the ELBO loses with these quantised.
    """
    alone = {(role, name): cost(_nodes({(role, name)})) for role in (0, 1) for name in candidates[role]}
    left = sorted(alone, key=alone.__getitem__)
    while left and cost(_nodes(set(left))) > most:
        left.pop()
    return _nodes(set(left))


def _nodes(chosen: set[tuple[int, str]]) -> Nodes:
    encoder, decoder = (sorted(name for role, name in chosen if role == wanted) for wanted in (0, 1))
    return encoder, decoder


def _latents(runtime: RuntimeVAE, x: Floats) -> Floats:
    """As many z of the prior as of the aggregate posterior of x."""
    rows = np.arange(len(x))
    mu, logsigma = runtime.encode(x)
    eps = noise.normal(_SEED, noise.POSTERIOR, rows, runtime.latent_dim).reshape(mu.shape)
    return np.concatenate([runtime.prior.sample(_SEED, rows), mu + np.exp(logsigma) * eps], dtype=np.float32)


def evaluated(vae: VAE, encoder: onnx.ModelProto, decoder: onnx.ModelProto) -> VAE:
    """The VAE with these graphs, which ONNX's own evaluator runs, in place of its networks."""
    return VAE(Evaluated(encoder), Evaluated(decoder), vae.latent_shape, vae.likelihood, vae.prior)


class Evaluated(nn.Module):
    """A graph as ONNX's own evaluator runs it: an independent reference, for which there is no PyTorch network.

    Where `vae_export.rounding` draws what float32 may give, the graph's weights and steps are off by far more than it
    has to round: a value in the middle between two levels, that is a whole level off then, must be seen in few images.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.graph = onnx_reference.readable(model)
        sizes = {name for node in self.graph.graph.node if node.op_type == "Resize" for name in node.input[1:]}
        self.weights = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in self.graph.graph.initializer
            if tensor.data_type == TensorProto.FLOAT and tensor.name not in sizes
        }

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's outputs, of the type that `float` makes: float64 in `rounding.Precise`, else float32."""
        model = onnx.ModelProto.FromString(self.graph.SerializeToString())
        for tensor in model.graph.initializer:
            if (weight := self.weights.get(tensor.name)) is not None:
                drawn = weight + _UNSURE * (weight * 1 - weight)  # the weight itself, but where `rounding` draws
                tensor.CopyFrom(numpy_helper.from_array(drawn.float().numpy(), tensor.name))
        outputs = tuple(map(torch.from_numpy, onnx_reference.run(model, x.float().numpy())))
        return outputs if len(outputs) > 1 else outputs[0]


def rounded(vae: VAE) -> VAE:
    """A copy whose weights, but for biases and other vectors, are float16 values, still stored and computed as float32.

    Raises BundleError where a weight is too large for float16.
    """
    vae = copy.deepcopy(vae)
    parts = {"encoder": vae.encoder, "decoder": vae.decoder, "prior": vae.prior}
    for name, weight in (entry for role, part in parts.items() for entry in _weights(part, role)):
        weight.copy_(weight.half())
        if not weight.isfinite().all():
            raise BundleError("fp16 refused", f"{name} is too large for float16", "choose fp32")
    return vae


def _weights(module: nn.Module, role: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            yield f"{role}.{name}", tensor


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store weights that are float16 values as such, each behind a Cast to float32: no number that is computed changes.

    onnxruntime casts them once, when it opens the graph.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.ndim < 2 or values.size < _FEWEST or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def products(model: onnx.ModelProto, operators: tuple[str, ...] = _PRODUCTS) -> list[str]:
    """The names of the nodes that multiply by these operators: by default, of those that `quantise` can take."""
    return [node.name for node in model.graph.node if node.op_type in operators]


def steps_off(plain: onnx.ModelProto, quantised: onnx.ModelProto) -> float:
    """How many steps the weights of a quantised graph are off those of `plain` at most; infinite where one is missing.

    Rounding to the nearest step is 0.5 off. What float32 cannot hold of large numbers of steps, in biases, is left out.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    steps = {node.input[0]: node for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    worst = 0.0
    for tensor in plain.graph.initializer:
        weight, name = numpy_helper.to_array(tensor), tensor.name
        if (node := steps.get(f"{name}_quantized")) is not None:
            whole, step, zero = (stored[name] for name in node.input)
            axis = next((it.i for it in node.attribute if it.name == "axis"), 1)
            along = [-1 if i == axis else 1 for i in range(weight.ndim)] if step.ndim else []
            exact = weight.astype(np.float64) / step.reshape(along)
            off = np.abs(exact - (whole.astype(np.float64) - zero.reshape(along))) - 1e-6 * np.abs(exact)
            worst = max(worst, float(off.max()))
        elif name not in stored or not np.array_equal(stored[name], weight):
            return math.inf
    return worst


def quantise(model: onnx.ModelProto, nodes: list[str], inputs: Floats) -> onnx.ModelProto:
    """Let the `nodes` multiply 8-bit integers, with steps fixed by what their operands are for `inputs`.

    Weights get a step for each output channel and 7 bits: x86-64 processors without VNNI add pairs of products in 16
    bits, which 8-bit weights overflow. Activations get one step for a tensor, so that no row depends on the others.
    """
    # imported here: it takes a second, and the other precisions have no need of it
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    if not nodes:
        return model
    rows = min(_ROWS, len(inputs))  # the calibrator takes batches of one size only
    starts = (min(i, len(inputs) - rows) for i in range(0, len(inputs), rows))  # the last ones overlap
    batches = iter([{model.graph.input[0].name: inputs[i : i + rows]} for i in starts])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The inputs, a batch at a time."""

        def get_next(self) -> dict[str, Floats] | None:
            """The next batch, or None."""
            return next(batches, None)

    with tempfile.TemporaryDirectory(prefix="vae-export.") as folder, quiet():
        plain, file = Path(folder) / "plain.onnx", Path(folder) / "quantised.onnx"
        onnx.save(model, plain)  # given the model itself, the quantiser would take its weights out
        quantize_static(
            plain,
            file,
            Reader(),
            op_types_to_quantize=list(_PRODUCTS),
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "CalibPercentile": _PERCENTILE,
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],  # their products can end as floats
            },
        )
        quantised = onnx.load(file)
    return tidy.strip(quantised)
