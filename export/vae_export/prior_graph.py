"""The graph of a learned prior: from noise to z and from z to noise and log p(z), on the same weights."""

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from vae_export import onnx_graph, tidy
from vae_train.flow import LOG_SCALE_BOUND, SEEN_BOUND, Coupling, Flow

# One direction is a Scan over the couplings' stacked weights, so that a graph has as few nodes to open, check and read
# as one coupling has: onnxruntime takes some 40 microseconds for a node, however small it is.
_COUPLING = """
    seen = Clip(latents, lowest, highest)
    products_1 = Gemm <transB = 1> (seen, weight_1, bias_1)
    gates_1 = Sigmoid(products_1)
    hidden_1 = Mul(products_1, gates_1)
    products_2 = Gemm <transB = 1> (hidden_1, weight_2, bias_2)
    gates_2 = Sigmoid(products_2)
    hidden_2 = Mul(products_2, gates_2)
    products_3 = Gemm <transB = 1> (hidden_2, weight_3, bias_3)
    sizes = Constant <value_ints = [SIZE, SIZE]> ()
    shift, unbounded = Split <axis = 1> (products_3, sizes)
    bounded = Tanh(unbounded)
    log_scale = Mul(bounded, bound)
    scale = Exp(log_scale)
"""
_PARTS = "weight", "bias"
_TEXT = f"""
<ir_version: IR_VERSION, opset_import: ["": OPSET]>
prior (float[draws, SHAPE] noise, float[batch, SHAPE] z)
    => (float[draws, SHAPE] z_of_noise, float[batch, SHAPE] noise_of_z, float[batch] log_prob)
{{
    rows_of_noise = Reshape(noise, flat)
    rows_of_z_of_noise = Scan <num_scan_inputs = NUMBER, scan_input_directions = [BACKWARDS], body = from_noise
        (float[n, SIZE] latents, SLICES) => (float[n, SIZE] moved)
    {{
        {_COUPLING}
        unshifted = Sub(latents, shift)
        moved = Div(unshifted, scale)
    }}> (rows_of_noise, WEIGHTS)
    z_of_noise = Reshape(rows_of_z_of_noise, shape)

    rows_of_z = Reshape(z, flat)
    zeros = Clip(rows_of_z, zero, zero)
    rows_of_noise_of_z, log_scales = Scan <num_scan_inputs = NUMBER, body = to_noise
        (float[n, SIZE] latents, float[n, SIZE] sum, SLICES) => (float[n, SIZE] moved, float[n, SIZE] new_sum)
    {{
        {_COUPLING}
        scaled = Mul(latents, scale)
        moved = Add(scaled, shift)
        new_sum = Add(sum, log_scale)
    }}> (rows_of_z, zeros, WEIGHTS)
    noise_of_z = Reshape(rows_of_noise_of_z, shape)
    squares = Mul(rows_of_noise_of_z, rows_of_noise_of_z)
    normalised = Add(squares, log_2_pi)
    densities = Mul(normalised, minus_half)
    terms = Add(densities, log_scales)
    log_prob = ReduceSum <keepdims = 0> (terms, axis)
}}
"""


def to_onnx(flow: Flow, opset: int) -> onnx.ModelProto:
    """Inputs `noise` [draws, *shape] and `z` [batch, *shape] to `z_of_noise`, and to `noise_of_z` and `log_prob`.

    No output depends on both, so that either may have no rows. Raises BundleError where the opset cannot have it.
    """
    weights, size = dict(_stacked(flow)), math.prod(flow.shape)
    slices = [f"float[{', '.join(map(str, weight.shape[1:]))}] {name}" for name, weight in weights.items()]
    version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    words = {
        "IR_VERSION": [version], "OPSET": [opset], "SHAPE": flow.shape, "SIZE": [size], "SLICES": slices,
        "WEIGHTS": weights, "NUMBER": [len(weights)], "BACKWARDS": [1] * len(weights),
    }  # fmt: skip
    text = _TEXT
    for word, values in words.items():
        text = text.replace(word, ", ".join(map(str, values)))
    model: onnx.ModelProto = parser.parse_model(text)
    numbers = {"lowest": -SEEN_BOUND, "highest": SEEN_BOUND, "bound": LOG_SCALE_BOUND, "zero": 0}
    numbers |= {"log_2_pi": math.log(2 * math.pi), "minus_half": -0.5}
    sizes = {"flat": [0, size], "shape": [0, *flow.shape], "axis": [1]}  # 0: as many as there are
    arrays = weights | {name: np.array(number, np.float32) for name, number in numbers.items()}
    arrays |= {name: np.array(axes, np.int64) for name, axes in sizes.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx_graph.check(model, opset, scans=True)
    return model


@torch.no_grad()
def _stacked(flow: Flow) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and values of each layer's weights [couplings, out, in] and biases [couplings, out].

    The couplings' masks and the division by the bound are in them: 0 where a mask is 0, and twice as much, are exact.
    """
    couplings = [cast(Coupling, coupling) for coupling in flow.couplings]
    kept = torch.stack([coupling.kept for coupling in couplings])  # [couplings, size]
    moved = torch.cat([1 - kept, (1 - kept) / LOG_SCALE_BOUND], dim=1)  # shift and log_scale
    first, *_, last = layers = [
        {name: torch.stack([getattr(coupling.body[i], name) for coupling in couplings]) for name in _PARTS}
        for i in (0, 2, 4)
    ]
    first["weight"] *= kept[:, None, :]
    last["weight"] *= moved[..., None]
    last["bias"] *= moved
    for number, layer in enumerate(layers, start=1):
        for name in _PARTS:
            yield f"{name}_{number}", tidy.flushed(layer[name].numpy())
