"""An ONNX graph that was made elsewhere as a network of torch, held against what ONNX's own evaluator makes of it."""

import math
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import onnx
import onnx.inliner
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vae_export import gate, operators, reference
from vae_export.operators import TRANSLATED, Node, Value
from vae_export.outputs import Gives
from vae_export.rounding import Precise
from vae_runtime.errors import ArgumentError, BundleError
from vae_train.vae import VAE

Graph = str | PathLike[str] | onnx.ModelProto

REFERENCE = "the ONNX files in float64, as ONNX's own evaluator has them"
_OLDEST_OPSET = 9  # before that, ONNX's own evaluator takes BatchNormalization for training's
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_ROWS = 4  # real inputs that the evaluator, which is slow, runs; and as many that are not
_SEED = 0


class OnnxNetwork(nn.Module):
    """A graph of one input, node by node: x [batch, ...] to a dict of its outputs by their names.

    Outputs that are drawn at random, or that another input decides, are left out, with all that is behind them.
    Weights are the network's own, by their names in the graph; the batch may have any size, even where the graph fixes
    it. which: its file, for messages.
    """

    def __init__(self, graph: onnx.ModelProto, which: str) -> None:
        """Raises BundleError where the graph is none that can be one."""
        super().__init__()
        self.which, self.stored = which, _precision(graph)
        graph = _inlined(graph, which)
        self.outputs = [output.name for output in graph.graph.output]
        self.left_out, self.graph = _without_random(of_type(graph, TensorProto.FLOAT), which)
        self.nodes = [_node(node, self.graph.opset_import[0].version) for node in self.graph.graph.node]
        if unknown := sorted({node.operator for node in self.nodes if node.operator not in TRANSLATED}):
            todo = "export the model with simpler operators, or give its networks as torch modules"
            raise BundleError("ONNX operator that is not known here", f"{which}: {', '.join(unknown)}", todo)
        (self.input,) = (value.name for value in self.graph.graph.input)
        self.taken = _sizes(self.graph.graph.input[0])
        self.batch = self.taken[0] if self.taken else None  # that the graph is fixed to, or None
        self.from_input = _from_input(self.nodes, self.input)
        self.constants: dict[str, NDArray[Any]] = {}
        self.weights: dict[str, str] = {}
        statistics = {name for node in self.nodes if node.operator == "BatchNormalization" for name in node.inputs[3:]}
        scales = {name for node in self.nodes if node.operator in ("Resize", "Upsample") for name in node.inputs[1:]}
        for constant in self.graph.graph.initializer:
            values = numpy_helper.to_array(constant)
            if values.dtype != np.float32:
                self.constants[constant.name] = values.astype(object)
            elif values.size == 1 or constant.name in scales:
                self.constants[constant.name] = values
            else:
                self._keep(constant.name, torch.from_numpy(values.copy()), constant.name in statistics)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class. Raises ArgumentError for inputs of another shape, BundleError by the node that fails."""
        self._check_shape(x)
        values: dict[str, Value] = {"": None, self.input: x, **self.constants}
        values |= {name: getattr(self, own) for name, own in self.weights.items()}
        for node in self.nodes:
            given = [values[name] for name in node.inputs]
            try:
                made = TRANSLATED[node.operator](node, *self._of_any_batch(node, given, x))
            except Exception as error:  # whatever torch raises where a graph is not as it should be
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                which = f"{self.which}: {node.operator} {node.name or node.outputs[0]} ({reason})"
                raise BundleError("node of the ONNX graph fails", which, self._todo()) from error
            values |= dict(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False))
        return {output.name: operators.tensor(values[output.name]) for output in self.graph.graph.output}

    def _check_shape(self, x: Tensor) -> None:
        if not self.taken:
            return
        sizes, given = self.taken[1:], list(x.shape[1:])
        if len(sizes) != len(given) or any(size not in (None, n) for size, n in zip(sizes, given, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            which = f"{self.which} takes [batch, {wanted}], not [batch, {', '.join(map(str, given))}]"
            todo = "give observations as the encoder takes them, and shape= where it takes images flat"
            raise ArgumentError("input does not fit the ONNX graph", which, todo)

    def without_random(self, gives: Gives | None) -> Gives | None:
        """What is said of all of the graph's outputs, in their order, as said of those that are not left out.

        Raises ArgumentError where one of the others is wanted.
        """
        said = list(gives.values()) if isinstance(gives, Mapping) else []
        words = [word.strip() for word in gives.split(",")] if isinstance(gives, str) else []
        if len(words) == len(self.outputs):
            of_each = dict(zip(self.outputs, words, strict=True))
            said = [name for name, word in of_each.items() if word != "_"]
            gives = ", ".join(word for name, word in of_each.items() if name not in self.left_out)
        for name in said:
            if name in self.left_out:
                todo = f"name others, of {', '.join(name for name in self.outputs if name not in self.left_out)}"
                raise ArgumentError("output that is random", f"{self.which}: {name} ({self.left_out[name]})", todo)
        return gives

    @torch.no_grad()
    def check(self, inputs: Tensor) -> None:
        """Raise BundleError unless ONNX's own evaluator, in float64, gives the same for the first inputs [n, ...].

        And for as many that are not likely. What is the same follows from the rounding model, as in the gate: some of
        the evaluator's operators compute in float32 after all.
        """
        some = inputs[:_ROWS].double()
        noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
        some = torch.cat([some, 2 * some + noise]).float()
        got, single = self.exact(some), {name: values.double() for name, values in self(some).items()}
        errors = gate.largest_errors(lambda at, seed: [*self.exact(some[at], seed).values()], got, single)
        for name, expected in self.evaluated(some.numpy()).items():
            allowed = gate.allowed(errors[name], gate.standard_errors(expected.size), expected)
            off = np.abs(got[name].numpy() - expected).max() if got[name].shape == expected.shape else math.inf
            if not off <= allowed:
                which = (
                    f"{self.which}: {name} is {off:.2g} off what ONNX's own evaluator gives, {allowed:.2g} is allowed"
                )
                raise BundleError("ONNX graph is understood otherwise here", which, self._todo())

    @torch.no_grad()
    def exact(self, inputs: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """The outputs in float64; with a seed, a draw of what float32 may give."""
        outputs: dict[str, Tensor] = Precise(VAE(self, self, (1,))).evaluate(self, inputs, seed=seed)
        return outputs

    def evaluated(self, inputs: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        """The graph's outputs by ONNX's own evaluator, in float64; as many inputs at once as the graph is fixed to.

        Raises BundleError where it cannot run the graph.
        """
        graph = of_type(self.graph, TensorProto.DOUBLE)
        rows, batch = len(inputs), self.batch or len(inputs)
        parts = []
        for start in range(0, rows, batch):
            at = np.arange(start, start + batch) % rows
            try:
                parts.append(
                    reference.run(
                        reference.readable(graph),
                        inputs[at].astype(np.float64 if inputs.dtype == np.float32 else inputs.dtype),
                    )
                )
            except Exception as error:  # there is no saying what a rare operator raises
                reason = f"{type(error).__name__}: {str(error)[:120]}"
                todo = "export the model with simpler operators, or give its networks as torch modules"
                raise BundleError(
                    "ONNX's own evaluator cannot run the graph", f"{self.which} ({reason})", todo
                ) from None
        names = [output.name for output in graph.graph.output]
        return {
            name: np.concatenate(each)[: rows if self.batch else None]
            for name, each in zip(names, zip(*parts, strict=True), strict=True)
        }

    def _keep(self, name: str, weight: Tensor, statistics: bool) -> None:
        """Keep a weight of the graph as the network's own: a parameter, or a buffer of what training only observed."""
        own = name.replace(".", "_")
        while hasattr(self, own):
            own += "_"
        self.weights[name] = own
        if statistics:
            self.register_buffer(own, weight)
        else:
            self.register_parameter(own, nn.Parameter(weight, requires_grad=False))

    def _of_any_batch(self, node: Node, values: list[Value], x: Tensor) -> list[Value]:
        """A node's inputs; where the graph fixes the size of the batch, sizes that say it with the one of now."""
        fixed = self.batch is not None and node.operator in ("Reshape", "Expand") and node.inputs[0] in self.from_input
        if fixed and isinstance(values[1], np.ndarray):
            first, *rest = operators.integers(values[1])
            if first == self.batch:
                values[1] = operators.objects([x.shape[0], *rest])
        return values

    def _todo(self) -> str:
        if self.batch is not None:
            return f"export it with a batch of any size: this graph is fixed to one of {self.batch}"
        return "export the model with another opset or simpler operators, or give its networks as torch modules"


def is_graph(given: object) -> TypeGuard[Graph]:
    """Whether a network is given as an ONNX file or graph."""
    return isinstance(given, str | PathLike | onnx.ModelProto)


def read(graph: Graph, role: str) -> OnnxNetwork:
    """The network of a file, with weights that it keeps in others beside it, or of a graph. role: for messages.

    Raises BundleError where that is no ONNX graph, or one that is not known here.
    """
    if isinstance(graph, onnx.ModelProto):
        return OnnxNetwork(graph, role)
    path = Path(fspath(graph))
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        which = error.filename or path
        raise BundleError("ONNX file is missing", which, "name the file, with all its weights beside it") from None
    except Exception as error:  # protobuf's own, and ONNX's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            "no ONNX file", f"{path} ({reason})", "name a file that torch, tf2onnx or the like wrote"
        ) from None
    return OnnxNetwork(model, path.name)


def _inlined(model: onnx.ModelProto, which: str) -> onnx.ModelProto:
    """The graph without functions of its own. Raises BundleError where it has more than ONNX's operators of today."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if foreign := sorted(
        {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    ):
        todo = "export the model with ONNX's own operators, and before any runtime has optimised it"
        raise BundleError("operators outside of ONNX", f"{which}: {', '.join(foreign)}", todo)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        todo = f"export it with opset {_OLDEST_OPSET} to {newest}, 17 for one"
        raise BundleError("opset that is not known here", f"{which}: {opset}", todo)
    if model.graph.sparse_initializer:
        raise BundleError("sparse weights", which, "export the model with dense ones")
    return model


def _without_random(model: onnx.ModelProto, which: str) -> tuple[dict[str, str], onnx.ModelProto]:
    """Why each output that is not a function of one input is none; and the graph of the others and their input.

    Raises BundleError where there are none.
    """
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    constants = {constant.name: constant for constant in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in constants}
    left_out, by_input = {}, {name: list[str]() for name in inputs}
    for output in graph.output:
        names = _behind(output.name, maker)
        drawn = [reason for name in names if name in maker and (reason := _randomness(maker[name], constants))]
        taken = [name for name in inputs if name in names]
        if drawn:
            left_out[output.name] = drawn[0]
        elif len(taken) != 1:
            left_out[output.name] = f"the inputs {', '.join(taken)}" if taken else "no input"
        else:
            by_input[taken[0]].append(output.name)
    if len(used := [name for name, outputs in by_input.items() if outputs]) != 1:
        by = left_out | {output: name for name, outputs in by_input.items() for output in outputs}
        reasons = "; ".join(f"{output} is by {by[output]}" for output in by)
        todo = "export a graph of one input whose outputs it alone decides, in evaluation mode"
        raise BundleError("ONNX graph is no function of one input", f"{which}: {reasons}", todo)
    kept = by_input[used[0]]
    opset = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    names = {name for output in kept for name in _behind(output, maker)}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for field, values in (
        (made.graph.node, [node for node in graph.node if set(node.output) & names]),
        (made.graph.initializer, [constant for name, constant in constants.items() if name in names]),
        (made.graph.input, [inputs[used[0]]]),
        (made.graph.output, [output for output in graph.output if output.name in kept]),
        (made.graph.value_info, []),
        (made.opset_import, [helper.make_opsetid("", opset.version)]),
    ):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return left_out, made


def _behind(output: str, maker: Mapping[str, onnx.NodeProto]) -> set[str]:
    """The names of all values that one is made of, its own with them."""
    seen: set[str] = set()
    left = [output]
    while left:
        if (name := left.pop()) not in seen:
            seen.add(name)
            left += maker[name].input if name in maker else ()
    return seen


def _randomness(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> str:
    """Why a node's results are not the same each time, or not the ones of evaluation; empty where they are."""
    where = f"{node.op_type} {node.name or node.output[0]}"
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type in _RANDOM:
        return where
    flag = constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
    dropping = flag is not None and bool(numpy_helper.to_array(flag))
    observing = node.op_type == "BatchNormalization" and len(node.output) > 1
    if dropping or observing or settings.get("training_mode"):
        return f"{where} in training mode"
    return ""


def _from_input(nodes: Iterable[Node], name: str) -> set[str]:
    """The names of all values that an input's numbers, and not only its shape, make."""
    names = {name}
    for node in nodes:
        if node.operator not in ("Shape", "Size") and names & set(node.inputs):
            names |= set(node.outputs)
    return names


def _node(node: onnx.NodeProto, opset: int) -> Node:
    schema = onnx.defs.get_schema(node.op_type, opset).attributes if onnx.defs.has(node.op_type, opset) else {}
    usual = [attribute.default_value for attribute in schema.values() if attribute.default_value.name]
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in (*usual, *node.attribute)}
    of_python = {
        name: value.decode()
        if isinstance(value, bytes)
        else numpy_helper.to_array(value)
        if isinstance(value, TensorProto)
        else value
        for name, value in settings.items()
    }
    return Node(node.op_type, node.name, tuple(node.input), tuple(node.output), of_python, opset)


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """An input's sizes, None where they are free; none at all where nothing is said."""
    return [size.dim_value or None for size in value.type.tensor_type.shape.dim]


def _precision(model: onnx.ModelProto) -> str:
    """In what the graph takes its inputs: "FLOAT", which is what a bundle computes in, or another."""
    return next((TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in model.graph.input), "FLOAT")


def of_type(model: onnx.ModelProto, to: int) -> onnx.ModelProto:
    """A copy that computes in another type of floats, and whose constants, of nodes too, are all weights."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        ((name, value),) = ((each.name, helper.get_attribute_value(each)) for each in node.attribute)
        if name != "value":
            kind = np.float32 if name.startswith("value_float") else np.int64
            value = numpy_helper.from_array(np.asarray(value, kind))
        graph.initializer.add().CopyFrom(value)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
    tensors = [each.t for node in graph.node for each in node.attribute if each.type == onnx.AttributeProto.TENSOR]
    for tensor in (*graph.initializer, *tensors):
        if tensor.data_type in _FLOATS:
            values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(to))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        for each in node.attribute:
            if each.name in ("to", "dtype") and each.i in _FLOATS:
                each.i = to
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = to
    return made
