"""Writes small ONNX graphs as bytes, by the field numbers of onnx.proto, so that nobody needs the onnx package."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vae_runtime.bundle import METADATA_KEY
from vae_runtime.safety import metadata

FLOAT, UINT8, INT64, STRING, BOOL, FLOAT16, DOUBLE = 1, 2, 7, 8, 9, 10, 11  # element types
_KINDS = {"float32": FLOAT, "uint8": UINT8, "int64": INT64}


class Tensor(bytes):
    """A TensorProto."""


class Graph(bytes):
    """A GraphProto."""


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    groups = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def field(number: int, value: bytes | str | int) -> bytes:
    """A field as protobuf writes it; two messages in a row are one, so fields can be added at the end."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value % 2**64)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(number: int, values: Sequence[bytes | str | int]) -> bytes:
    """A repeated field."""
    return b"".join(field(number, value) for value in values)


def tensor(name: str, values: Any, dtype: Any = np.float32) -> Tensor:
    """Values of float32, uint8 or int64, as an initializer or an attribute."""
    array = np.asarray(values, dtype)
    return Tensor(
        fields(1, array.shape) + field(2, _KINDS[str(array.dtype)]) + field(8, name) + field(9, array.tobytes())
    )


def outside(name: str, size: int, **place: str) -> Tensor:
    """So many bytes that lie in another file: `outside("w", 20, location="x.bin", offset="0")`."""
    entries = [field(1, key) + field(2, value) for key, value in place.items()]
    return Tensor(field(1, size) + field(2, UINT8) + field(8, name) + fields(13, entries) + field(14, 1))


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> bytes:
    """A step of a graph; an attribute is an integer, a list of integers, a tensor or a graph."""
    written = [field(1, name) + _attribute(value) for name, value in attributes.items()]
    return fields(1, inputs) + fields(2, outputs) + field(4, operator) + fields(5, written) + field(7, domain)


def _attribute(value: Any) -> bytes:
    match value:
        case int():
            return field(3, value) + field(20, 2)
        case Tensor():
            return field(5, value) + field(20, 4)
        case Graph():
            return field(6, value) + field(20, 5)
    return fields(8, value) + field(20, 7)


def value(name: str, shape: Sequence[int | str], kind: int = FLOAT) -> bytes:
    """The declaration of an input or output; a dimension is a number or a name."""
    sizes = [field(1 if isinstance(size, int) else 2, size) for size in shape]
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, fields(1, sizes))))


def graph(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], weights: Sequence[bytes] = ()
) -> Graph:
    """A graph, of a model or of a loop's body."""
    return Graph(fields(1, nodes) + field(2, "g") + fields(5, weights) + fields(11, inputs) + fields(12, outputs))


def model(graph: bytes, contract: Mapping[str, Any] | None = None, domains: Sequence[str] = ("",)) -> bytes:
    """A model of opset 17, stamped with a contract, that may use operators of further domains."""
    opsets = [field(1, domain) + field(2, 1 if domain else 17) for domain in domains]
    stamp = b"" if contract is None else stamped(contract)
    return field(1, 8) + field(7, graph) + fields(8, opsets) + stamp


def stamped(contract: Mapping[str, Any]) -> bytes:
    """A contract as a graph carries it; behind a graph that has one already it takes its place."""
    return field(14, field(1, METADATA_KEY) + field(2, json.dumps(contract)))


def contract_of(graph: bytes) -> dict[str, Any]:
    """The contract that a graph carries."""
    return dict(json.loads(metadata(graph)[METADATA_KEY]))


def extended(graph: bytes, output: str, nodes: Sequence[bytes], weights: Sequence[bytes] = ()) -> bytes:
    """The model with nodes behind its output, which they find as `inner(output)` and have to compute anew."""
    old, new = (field(2, name) for name in (output, inner(output)))
    assert graph.count(old) == 1
    return graph.replace(old, new) + field(7, fields(1, nodes) + fields(5, weights))


def inner(output: str) -> str:
    """Another name of the same length."""
    return f"_{output[1:]}"


def linear(
    role: str, inputs: dict[str, list[int]], outputs: dict[str, list[int]], weights: Mapping[str, Any], contract: Any
) -> bytes:
    """Each output is the flat input times its weights plus its bias, in the output's shape."""
    (name,) = inputs
    nodes, constants = [node("Flatten", [name], ["flat"])], []
    for output, size in outputs.items():
        constants += [
            tensor(f"{output} w", weights[output]),
            tensor(f"{output} b", weights[f"{output} bias"]),
            tensor(f"{output} shape", [-1, *size], np.int64),
        ]
        nodes.append(node("Gemm", ["flat", f"{output} w", f"{output} b"], [f"{output} flat"]))
        nodes.append(node("Reshape", [f"{output} flat", f"{output} shape"], [output]))
    before, after = ([value(it, ["batch", *size]) for it, size in side.items()] for side in (inputs, outputs))
    return model(graph(nodes, before, after, constants), {**contract, "role": role})


class Affine(NamedTuple):
    """z = noise @ matrix + shift of latents in a row, float64 [size, size] and [size]."""

    matrix: np.ndarray
    shift: np.ndarray


def affine_flow(flow: Affine, shape: Sequence[int], contract: Mapping[str, Any]) -> bytes:
    """The graph of a learned prior, N(shift, matrix.T @ matrix), of latents of a shape."""
    constant = -0.5 * len(flow.shift) * math.log(2 * math.pi) - np.linalg.slogdet(flow.matrix)[1]
    weights = [
        tensor("matrix", flow.matrix), tensor("inverse", np.linalg.inv(flow.matrix)), tensor("shift", flow.shift),
        tensor("shape", [-1, *shape], np.int64), tensor("last", [1], np.int64), tensor("half", -0.5),
        tensor("constant", constant),
    ]  # fmt: skip
    nodes = [
        node("Flatten", ["noise"], ["flat noise"]),
        node("Gemm", ["flat noise", "matrix", "shift"], ["flat z of noise"]),
        node("Reshape", ["flat z of noise", "shape"], ["z_of_noise"]),
        node("Flatten", ["z"], ["flat z"]),
        node("Sub", ["flat z", "shift"], ["from shift"]),
        node("MatMul", ["from shift", "inverse"], ["flat noise of z"]),
        node("Reshape", ["flat noise of z", "shape"], ["noise_of_z"]),
        node("Mul", ["flat noise of z", "flat noise of z"], ["squares"]),
        node("ReduceSum", ["squares", "last"], ["sum"], keepdims=0),
        node("Mul", ["sum", "half"], ["exponent"]),
        node("Add", ["exponent", "constant"], ["log_prob"]),
    ]
    before = [value("noise", ["draws", *shape]), value("z", ["batch", *shape])]
    after = [
        value("z_of_noise", ["draws", *shape]),
        value("noise_of_z", ["batch", *shape]),
        value("log_prob", ["batch"]),
    ]
    return model(graph(nodes, before, after, weights), {**contract, "role": "prior"})
