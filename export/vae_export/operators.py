"""ONNX's operators as torch computes them, one function each: what an ONNX graph is translated with.

A value is a tensor; or, where it is an integer or constant number of the graph itself, an array of NumPy. Of integers
that is one of objects, among them the size of the batch, which torch traces. A function takes the node and its inputs.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

Value = Any
Translated = Callable[..., Value]


@dataclass(frozen=True)
class Node:
    """A node of a graph. settings: its attributes. opset: of the graph: what an operator means may hang on it."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[str, Any]
    opset: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.settings.get(name, default)


class Untranslated(Exception):
    """A node that has no translation: its message says what of it."""


def tensor(value: Value) -> Tensor:
    """A value as a tensor: numbers of the graph as float32 or int64."""
    if isinstance(value, Tensor):
        return value
    if value.dtype == object and any(isinstance(each, torch.SymInt) for each in value.flat):
        raise Untranslated("computes with the size of the batch")
    if value.dtype == object:
        return torch.tensor(value.tolist())
    return torch.tensor(value)


def integers(value: Value) -> list[Any]:
    """Integers of the graph: sizes or axes. Raises Untranslated where they come out of data."""
    if isinstance(value, Tensor):
        raise Untranslated("sizes or indices that data decide")
    return [each if isinstance(each, torch.SymInt) else int(each) for each in np.ravel(value)]


def objects(values: Any) -> Value:
    """Integers as an array that may hold the size of the batch."""
    made = np.empty(len(values), object)
    made[:] = list(values)
    return made


def _of_graph(*values: Value) -> bool:
    return all(isinstance(value, np.ndarray) for value in values if value is not None)


def _tensors(function: Callable[..., Tensor]) -> Translated:
    """An operator that is a function of tensors alone, whatever the node says."""
    return lambda node, *values: function(*map(tensor, values))


def _either(function: Callable[..., Any]) -> Translated:
    """An operator that computes with numbers of the graph too, by Python's own operators."""

    def translated(node: Node, *values: Value) -> Value:
        return np.asarray(function(*values)) if _of_graph(*values) else function(*map(tensor, values))

    return translated


def _axis_first(node: Node, name: str, given: Value, default: Any = None) -> Any:
    """Integers that newer opsets have as an input and older ones as an attribute."""
    if given is not None:
        return integers(given)
    return node.get(name, default)


# arithmetic


def _divide(node: Node, a: Value, b: Value) -> Value:
    if _of_graph(a, b):
        return np.asarray(a // b if a.dtype == b.dtype == object else a / b)
    return tensor(a) / tensor(b)


def _where(node: Node, condition: Value, a: Value, b: Value) -> Value:
    if _of_graph(condition, a, b):
        return np.where(condition.astype(bool), a, b)
    return torch.where(tensor(condition).bool(), tensor(a), tensor(b))


def _clip(node: Node, x: Value, low: Value = None, high: Value = None) -> Value:
    ends = [node.get(name) if end is None else float(end) for name, end in (("min", low), ("max", high))]
    return x.clamp(*ends) if any(end is not None for end in ends) else x


def _cast(node: Node, x: Value, *_: Value) -> Value:
    to = node.get("to")
    if to in _FLOATS:
        if isinstance(x, Tensor):
            return x.float()
        symbolic = any(isinstance(each, torch.SymInt) for each in x.flat)
        return x if symbolic else np.asarray(x, np.float32)
    if isinstance(x, Tensor):
        if to == TensorProto.BOOL:
            return x != 0
        raise Untranslated(f"Cast of data to {TensorProto.DataType.Name(to)}")
    whole = [each if isinstance(each, torch.SymInt) else int(each) for each in x.flat]
    return objects(whole).reshape(x.shape)


_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


def _softmax(function: Callable[..., Tensor]) -> Translated:
    def translated(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, dim=node.get("axis"))
        if node.get("axis") % x.ndim != x.ndim - 1:  # then all axes from there on were one
            raise Untranslated("over several axes, as before opset 13")
        return function(x, dim=-1)

    return translated


def _mean(node: Node, *values: Value) -> Tensor:
    return reduce(torch.add, map(tensor, values)) / len(values)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate"))


def _prelu(node: Node, x: Tensor, slope: Value) -> Tensor:
    return torch.where(x < 0, x * tensor(slope), x)


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha"), node.get("gamma")
    out: Tensor = gamma * (x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0)))
    return out


# products


def _gemm(node: Node, a: Value, b: Value, c: Value = None) -> Value:
    a, b = tensor(a), tensor(b)
    a, b = a.t() if node.get("transA") else a, b.t() if node.get("transB") else b
    alpha, beta = node.get("alpha"), node.get("beta")
    if c is None:
        return alpha * (a @ b) if alpha != 1 else a @ b
    return torch.addmm(tensor(c), a, b, beta=beta, alpha=alpha)


def _einsum(node: Node, *values: Value) -> Tensor:
    return torch.einsum(node.get("equation"), *map(tensor, values))


def _window(node: Node, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and padding before and after of a window that moves over the last axes of x."""
    sides = len(kernel)
    strides, dilations = node.get("strides", [1] * sides), node.get("dilations", [1] * sides)
    auto, pads = node.get("auto_pad"), list(node.get("pads", [0] * 2 * sides))
    if auto == "VALID":
        pads = [0] * 2 * sides
    elif auto.startswith("SAME"):
        steps = [-(-side // stride) for side, stride in zip(x.shape[2:], strides, strict=True)]
        lacks = [
            max(0, (step - 1) * stride + (size - 1) * dilation + 1 - side)
            for step, stride, size, dilation, side in zip(steps, strides, kernel, dilations, x.shape[2:], strict=True)
        ]
        less, more = [lack // 2 for lack in lacks], [lack - lack // 2 for lack in lacks]
        pads = less + more if auto == "SAME_UPPER" else more + less
    return strides, dilations, pads[:sides], pads[sides:]


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """x with so much more, or less where it is negative, before and after along each of its last axes."""
    for axis, sides in enumerate(zip(before, after, strict=True), x.ndim - len(before)):
        if min(sides) < 0:  # not by F.pad: onnx's own evaluator knows no Pad that takes away
            less, rest = (max(0, -side) for side in sides)
            x = x.narrow(axis, less, x.shape[axis] - less - rest)
    pads = [max(0, side) for both in zip(reversed(before), reversed(after), strict=True) for side in both]
    return F.pad(x, pads, value=value) if any(pads) else x


def _conv(node: Node, x: Tensor, weight: Value, bias: Value = None) -> Tensor:
    weight, bias = tensor(weight), None if bias is None else tensor(bias)
    strides, dilations, before, after = _window(node, x, weight.shape[2:])
    if before != after:
        x, before = _padded(x, before, after), [0] * len(before)
    function = (F.conv1d, F.conv2d, F.conv3d)[len(before) - 1]
    return function(x, weight, bias, strides, before, dilations, node.get("group"))


def _conv_transpose(node: Node, x: Tensor, weight: Value, bias: Value = None) -> Tensor:
    weight, bias = tensor(weight), None if bias is None else tensor(bias)
    kernel = weight.shape[2:]
    sides = len(kernel)
    strides, dilations = node.get("strides", [1] * sides), node.get("dilations", [1] * sides)
    more, auto = list(node.get("output_padding", [0] * sides)), node.get("auto_pad")
    pads = list(node.get("pads", [0] * 2 * sides))
    if node.get("output_shape"):
        raise Untranslated("output_shape, which ONNX's own evaluator does not know: give pads instead")
    whole = [
        stride * (side - 1) + (size - 1) * dilation + 1
        for stride, side, size, dilation in zip(strides, x.shape[2:], kernel, dilations, strict=True)
    ]
    if auto.startswith("SAME"):
        steps = zip(whole, more, x.shape[2:], strides, strict=True)
        cuts = [size + extra - side * stride for size, extra, side, stride in steps]
        less, rest = [cut // 2 for cut in cuts], [cut - cut // 2 for cut in cuts]
        pads = less + rest if auto == "SAME_UPPER" else rest + less
    before, after = pads[:sides], pads[sides:]
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[sides - 1]
    group = node.get("group")
    shorter = [extra - cut for extra, cut in zip(more, after, strict=True)]  # at the end
    extra = [left + cut for left, cut in zip(shorter, before, strict=True)]  # as torch has it, with `before` at both
    if min(before) >= 0 and all(0 <= each < max(s, d) for each, s, d in zip(extra, strides, dilations, strict=True)):
        return function(x, weight, bias, strides, before, extra, group, dilations)
    out = function(x, weight, None, strides, 0, 0, group, dilations)
    out = _padded(out, [-cut for cut in before], shorter)
    return out if bias is None else out + bias.reshape(-1, *[1] * sides)


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    strides, dilations, before, after = _window(node, x, kernel)
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        x, before = _padded(x, before, after, -math.inf), [0] * len(before)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return function(x, kernel, strides, before, dilations, bool(node.get("ceil_mode", 0)))


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel, sides = node.get("kernel_shape"), len(node.get("kernel_shape"))
    strides, dilations, before, after = _window(node, x, kernel)
    counted = bool(node.get("count_include_pad", 0))
    if before != after and counted and not node.get("ceil_mode", 0):
        x, before, after = _padded(x, before, after), [0] * sides, [0] * sides
    if before != after or any(each != 1 for each in dilations):
        raise Untranslated("padding that differs between the sides, or dilations")
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[sides - 1]
    return function(x, kernel, strides, before, bool(node.get("ceil_mode", 0)), counted)


_GATES = {"GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}  # torch's order of them, by their places in ONNX's


def _recurrent(
    node: Node, x: Tensor, weight: Value, recurrence: Value, bias: Value = None, lengths: Value = None, *start: Value
) -> Value:
    """One layer over steps x [time, batch, inputs], forwards."""
    kind, given, hidden = node.operator, set(node.settings), recurrence.shape[-1]
    others = sorted(given & {"activations", "activation_alpha", "activation_beta", "clip"})
    if others or node.get("direction") != "forward" or node.get("layout", 0) or lengths is not None or len(start) > 2:
        raise Untranslated(f"other than torch's: {', '.join(others) or 'direction, layout, lengths or peepholes'}")
    if kind == "GRU" and not node.get("linear_before_reset"):
        raise Untranslated("linear_before_reset=0, reset_after=False of Keras: torch has no such GRU")

    def ordered(gates: Tensor) -> Tensor:
        return torch.cat([gates.narrow(0, i * hidden, hidden) for i in _GATES[kind]])

    weights = [ordered(tensor(each)[0]) for each in (weight, recurrence)]
    weights += map(ordered, tensor(bias)[0].chunk(2)) if bias is not None else ()
    zeros = x.new_zeros(1, x.shape[1], hidden)
    states = [zeros if each is None else tensor(each) for each in (*start, None, None)[: 2 if kind == "LSTM" else 1]]
    settings = (bias is not None, 1, 0.0, False, False, False)
    if kind == "LSTM":
        out, *last = torch.lstm(x, states, weights, *settings)
    else:
        out, *last = torch.gru(x, states[0], weights, *settings)
    return (out.unsqueeze(1), *last)


# normalisation


def _batch_norm(node: Node, x: Tensor, scale: Value, bias: Value, mean: Value, var: Value) -> Tensor:
    weight, offset = tensor(scale), tensor(bias)
    return F.batch_norm(x, tensor(mean), tensor(var), weight, offset, False, 0.0, node.get("epsilon"))


def _instance_norm(node: Node, x: Tensor, scale: Value, bias: Value) -> Tensor:
    return F.instance_norm(x, None, None, tensor(scale), tensor(bias), True, 0.0, node.get("epsilon"))


def _layer_norm(node: Node, x: Tensor, scale: Value, bias: Value = None) -> Tensor:
    shape = x.shape[node.get("axis") % x.ndim :]
    bias = None if bias is None else tensor(bias).expand(shape)
    return F.layer_norm(x, shape, tensor(scale).expand(shape), bias, node.get("epsilon"))


def _group_norm(node: Node, x: Tensor, scale: Value, bias: Value) -> Tensor:
    groups, scale, bias = node.get("num_groups"), tensor(scale), tensor(bias)
    if node.opset < 21:  # one for each group
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, scale, bias, node.get("epsilon"))


def _reduced(function: Callable[..., Tensor]) -> Translated:
    """Over some axes, or all; function(x, axes, keepdim)."""

    def translated(node: Node, x: Tensor, axes: Value = None) -> Tensor:
        over = _axis_first(node, "axes", axes)
        if not over and node.get("noop_with_empty_axes", 0):
            return x
        return function(tensor(x), over or list(range(x.ndim)), bool(node.get("keepdims")))

    return translated


# moves


def _reshape(node: Node, x: Value, shape: Value) -> Value:
    sizes = integers(shape)
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if _is(size, 0) else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _is(size: Any, number: int) -> bool:
    """Whether a size is that number; the batch's own is none."""
    return not isinstance(size, torch.SymInt) and size == number


def _transpose(node: Node, x: Value) -> Value:
    order = node.get("perm", range(x.ndim)[::-1])
    return x.permute(*order) if isinstance(x, Tensor) else x.transpose(order)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis")
    axis += x.ndim if axis < 0 else 0
    if axis in (0, x.ndim):
        return x.reshape(*((1, -1) if axis == 0 else (-1, 1)))
    return x.flatten(axis).flatten(0, axis - 1)


def _squeeze(node: Node, x: Value, axes: Value = None) -> Value:
    given = _axis_first(node, "axes", axes)
    over = tuple(axis % x.ndim for axis in given) if given else tuple(i for i, n in enumerate(x.shape) if _is(n, 1))
    return x.squeeze(over)


def _unsqueeze(node: Node, x: Value, axes: Value = None) -> Value:
    given = _axis_first(node, "axes", axes)
    ndim = x.ndim + len(given)
    for axis in sorted(axis % ndim for axis in given):
        x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
    return x


def _concat(node: Node, *values: Value) -> Value:
    if _of_graph(*values):
        return np.concatenate(values, axis=node.get("axis"))
    return torch.cat(list(map(tensor, values)), dim=node.get("axis"))


def _split(node: Node, x: Value, sizes: Value = None) -> Value:
    axis, number = node.get("axis"), len(node.outputs)
    given = _axis_first(node, "split", sizes)
    if given is None:
        each = -(-x.shape[axis] // number)
        given = [min(each, x.shape[axis] - i * each) for i in range(number)]
    if not isinstance(x, Tensor):
        return tuple(np.split(x, np.cumsum(given)[:-1], axis))
    return x.split(given, dim=axis)


def _slice(
    node: Node, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None
) -> Value:
    begin, end = _axis_first(node, "starts", starts), _axis_first(node, "ends", ends)
    over = _axis_first(node, "axes", axes, list(range(len(begin))))
    by = integers(steps) if steps is not None else [1] * len(begin)
    for first, last, axis, step in zip(begin, end, over, by, strict=True):
        axis %= x.ndim
        if step < 0:
            size = x.shape[axis]
            at = list(range(size))[slice(first, None if last < -size else last, step)]
            x = x.index_select(axis, torch.tensor(at)) if isinstance(x, Tensor) else x.take(at, axis)
        else:
            x = x[(*[slice(None)] * axis, slice(first, last, step))]
    return x


def _gather(node: Node, x: Value, at: Value) -> Value:
    axis = node.get("axis") % x.ndim
    if _of_graph(x, at):
        return np.asarray(np.take(x, at.astype(int), axis))
    if isinstance(at, np.ndarray) and at.ndim == 0:
        return tensor(x).select(axis, int(at))
    at = tensor(at)
    taken = tensor(x).index_select(axis, torch.where(at < 0, at + x.shape[axis], at).flatten())
    return taken.reshape(*x.shape[:axis], *at.shape, *x.shape[axis + 1 :])


def _expand(node: Node, x: Value, shape: Value) -> Value:
    sizes = integers(shape)
    if not isinstance(x, Tensor) and not any(isinstance(size, torch.SymInt) for size in sizes):
        return x * np.ones(sizes, int) if x.dtype == object else np.array(x * np.ones(sizes, np.float32))
    x = tensor(x)
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (x.ndim - len(sizes)) + sizes
    return x.expand([mine if _is(size, 1) else size for mine, size in zip(own, sizes, strict=True)])


def _tile(node: Node, x: Value, repeats: Value) -> Value:
    return tensor(x).repeat(*integers(repeats)) if isinstance(x, Tensor) else np.tile(x, integers(repeats))


def _shape(node: Node, x: Value) -> Value:
    return objects(x.shape[node.get("start", 0) : node.get("end")])


def _constant_of_shape(node: Node, shape: Value) -> Value:
    value, sizes = node.get("value", np.zeros(1, np.float32)), integers(shape)
    if value.dtype.kind in "iu":
        return np.full(sizes, int(value[0]), object)
    return torch.full(sizes, float(value[0]))


def _range(node: Node, start: Value, end: Value, step: Value) -> Value:
    if not _of_graph(start, end, step):
        raise Untranslated("ends that data decide")
    (first,), (last,), (by,) = map(integers, (start, end, step))
    return objects(range(first, last, by))


def _pad(node: Node, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    given = _axis_first(node, "pads", pads, node.get("paddings"))
    over = [axis % x.ndim for axis in integers(axes)] if axes is not None else list(range(x.ndim))
    sides = {axis: (given[i], given[i + len(over)]) for i, axis in enumerate(over)}
    before, after = zip(*(sides.get(axis, (0, 0)) for axis in range(x.ndim)), strict=True)
    mode = node.get("mode")
    if mode == "constant":
        return _padded(x, before, after, float(value) if value is not None else node.get("value", 0.0))
    moved = next((axis for axis in range(x.ndim) if before[axis] or after[axis]), x.ndim)
    if moved < 2 or mode not in ("reflect", "edge"):
        raise Untranslated(f"mode {mode} along axis {moved}")
    both = [side for pair in zip(before[:1:-1], after[:1:-1], strict=True) for side in pair]
    return F.pad(x, both, mode="reflect" if mode == "reflect" else "replicate")


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block, (_, channels, height, width) = node.get("blocksize"), x.shape
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    x = x.reshape(-1, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(-1, channels // block**2, height * block, width * block)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block, (_, channels, height, width) = node.get("blocksize"), x.shape
    x = x.reshape(-1, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(-1, channels * block**2, height // block, width // block)


def _resize(node: Node, x: Tensor, *rest: Value) -> Tensor:
    """Resize and what was Upsample before: of sizes that the graph says."""
    scales: Value
    scales, sizes = (rest[-1] if len(rest) < 3 else rest[1]) if rest else None, rest[2] if len(rest) > 2 else None
    over = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    if sizes is not None and sizes.size:
        wanted = dict(zip(over, integers(sizes), strict=True))
        if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Untranslated("sizes that keep an aspect ratio")
        by = dict.fromkeys(wanted)
    else:
        factors = node.get("scales") or np.ravel(scales).astype(float).tolist()
        by = dict(zip(over, factors, strict=True))
        wanted = {axis: math.floor(x.shape[axis] * f) if f != 1 else x.shape[axis] for axis, f in by.items()}
    moved = [axis for axis in over if axis and wanted[axis] != x.shape[axis]]
    if any(by[axis] is not None and wanted[axis] != x.shape[axis] * by[axis] for axis in moved):
        raise Untranslated("a scale that makes no whole size")
    mode, old = node.get("mode", "nearest"), node.opset < 11
    transform = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = "floor" if old else node.get("nearest_mode", "round_prefer_floor")
        return _nearest(x, {axis: wanted[axis] for axis in moved}, transform, rounding)
    shrinks = any(wanted[axis] < x.shape[axis] for axis in moved)
    aligned = transform == "align_corners"
    usual = transform in ("align_corners", "half_pixel", "pytorch_half_pixel") and not (
        node.get("antialias", 0) and shrinks
    )
    if not usual or x.ndim < 3 or not set(moved) <= set(range(2, x.ndim)) or (mode == "cubic" and x.ndim != 4):
        raise Untranslated(f"mode {mode}, {transform}, along axes {moved}")
    if mode == "cubic" and (node.get("cubic_coeff_a", -0.75) != -0.75 or node.get("exclude_outside", 0)):
        raise Untranslated("another cubic than torch's")
    torch_mode = "bicubic" if mode == "cubic" else {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
    return F.interpolate(x, [wanted.get(i, x.shape[i]) for i in range(2, x.ndim)], None, torch_mode, aligned)


def _nearest(x: Tensor, wanted: dict[int, int], transform: str, rounding: str) -> Tensor:
    """Each value of the result is one of x: along each axis, the one with the index that ONNX says."""
    at = {axis: _nearest_index(x.shape[axis], size, transform, rounding) for axis, size in wanted.items()}
    plain = all(each == [i * x.shape[axis] // wanted[axis] for i in range(wanted[axis])] for axis, each in at.items())
    if plain and wanted and min(wanted) >= 2 and x.ndim in (3, 4, 5):
        return F.interpolate(x, [wanted.get(i, x.shape[i]) for i in range(2, x.ndim)])
    for axis, each in at.items():
        x = x.index_select(axis, torch.tensor(each))
    return x


def _nearest_index(have: int, want: int, transform: str, rounding: str) -> list[int]:
    i, scale = np.arange(want, dtype=np.float64), want / have
    if transform == "align_corners":
        at = i * (have - 1) / (want - 1) if want > 1 else i * 0
    elif transform == "asymmetric":
        at = i / scale
    elif transform in ("half_pixel", "pytorch_half_pixel"):
        at = (i + 0.5) / scale - 0.5 if want > 1 or transform == "half_pixel" else i * 0
    else:
        raise Untranslated(f"nearest by {transform}")
    ways: dict[str, Callable[[Any], Any]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda a: np.ceil(a - 0.5),
        "round_prefer_ceil": lambda a: np.floor(a + 0.5),
    }
    return [int(each) for each in np.clip(ways[rounding](at), 0, have - 1)]


_OF_TENSORS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "And": torch.logical_and, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf,
    "Exp": torch.exp, "HardSwish": F.hardswish, "Log": torch.log, "MatMul": torch.matmul, "Mish": F.mish,
    "Not": torch.logical_not, "Or": torch.logical_or, "Pow": torch.pow, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Swish": F.silu, "Tanh": torch.tanh,
}  # fmt: skip
_OF_EITHER: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Mod": operator.mod,
    "Mul": operator.mul,
    "Neg": operator.neg,
    "Sub": operator.sub,
}
TRANSLATED: dict[str, Translated] = {
    **{name: _tensors(function) for name, function in _OF_TENSORS.items()},
    **{name: _either(function) for name, function in _OF_EITHER.items()},
    "Max": lambda node, *values: reduce(torch.maximum, map(tensor, values)),
    "Min": lambda node, *values: reduce(torch.minimum, map(tensor, values)),
    "Sum": lambda node, *values: reduce(torch.add, map(tensor, values)),
    "Mean": _mean,
    "Div": _divide,
    "Where": _where,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": lambda node, x, like: x,
    "Floor": lambda node, x: torch.floor(x) if isinstance(x, Tensor) else np.floor(x.astype(np.float64)),
    "Identity": lambda node, x: x,
    "Dropout": lambda node, x, *_: x,
    "Elu": lambda node, x: F.elu(x, node.get("alpha")),
    "Celu": lambda node, x: F.celu(x, node.get("alpha")),
    "Gelu": _gelu,
    "HardSigmoid": lambda node, x: (node.get("alpha") * x + node.get("beta")).clamp(0, 1),
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha")),
    "PRelu": _prelu,
    "Selu": _selu,
    "ThresholdedRelu": lambda node, x: torch.where(x > node.get("alpha"), x, torch.zeros(())),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda node, x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda node, x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ReduceL2": _reduced(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ReduceProd": lambda node, x, *_: np.asarray(math.prod(integers(x)), object).reshape([1] * node.get("keepdims")),
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Shape": _shape,
    "Size": lambda node, x: np.asarray(math.prod(x.shape), object),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "Upsample": _resize,
}  # fmt: skip
