"""Every translated operator gives what ONNX's own evaluator gives, in float64, at each opset that changed it."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vae_export import onnx_network, operators

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 6, 5)).astype(np.float32)
LINE = RNG.normal(size=(3, 4, 9)).astype(np.float32)
STEPS = RNG.normal(size=(5, 2, 3)).astype(np.float32)
ROWS = RNG.normal(size=(3, 8)).astype(np.float32)


def weight(*shape: int) -> Any:
    """Numbers of a kernel."""
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> Any:
    """Sizes or axes."""
    return np.array(values, np.int64)


def positive(count: int) -> Any:
    """Variances or scales."""
    return np.abs(weight(count)) + np.float32(0.5)


def graph(operator: str, x: Any, inputs: tuple[Any, ...], settings: dict[str, Any], opset: int) -> onnx.ModelProto:
    """One node, whose input x has a batch of any size; other inputs are constants, None for those that are left out."""
    names = ["x"] + ["" if value is None else f"c{i}" for i, value in enumerate(inputs)]
    constants = [numpy_helper.from_array(value, f"c{i}") for i, value in enumerate(inputs) if value is not None]
    outputs = [f"y{i}" for i in range(settings.pop("results", 1))]
    node = helper.make_node(operator, names, outputs, **settings)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_model(
        helper.make_graph([node], "one", [value], made, constants), opset_imports=[helper.make_opsetid("", opset)]
    )


IN_FLOAT32 = {"Erf", "Gelu", "HardSwish", "LayerNormalization", "GroupNormalization", "Resize"}  # by the evaluator
CASES: list[tuple[Any, ...]] = [
    *((name, X, (), {}) for name in (
        "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
        "LogSoftmax", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus",
        "Softsign", "Tanh", "ThresholdedRelu", "Celu", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean",
        "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "Dropout", "Flatten",
    )),
    *((name, X, (weight(4, 1, 1),), {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")),
    *((name, np.abs(X), (), {}) for name in ("Sqrt", "Log")),
    ("Pow", np.abs(X), (np.array(1.5, np.float32),), {}),
    ("Pow", X, (np.array(2, np.int64),), {}),
    ("Round", X * 3, (), {}),
    ("Gelu", X, (), {"opset": 20}),
    ("Gelu", X, (), {"opset": 20, "approximate": "tanh"}),
    ("Clip", X, (np.array(-0.5, np.float32), None), {}),
    ("Clip", X, (), {"min": -0.5, "max": 0.7, "opset": 9}),
    ("Softmax", ROWS, (), {"opset": 11}),
    ("Softmax", X, (), {"axis": 1}),
    ("MatMul", ROWS, (weight(8, 3),), {}),
    ("Gemm", ROWS, (weight(8, 3), weight(3)), {}),
    ("Gemm", ROWS, (weight(3, 8), weight(1, 3)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", ROWS, (weight(3, 8),), {"transB": 1}),
    ("Einsum", ROWS, (weight(8, 3),), {"equation": "bi,ij->bj"}),
    ("Conv", LINE, (weight(2, 4, 3), weight(2)), {"pads": [1, 1], "strides": [2]}),
    ("Conv", X, (weight(6, 2, 3, 3), weight(6)), {"group": 2, "pads": [1, 2, 0, 1]}),
    ("Conv", X, (weight(2, 4, 2, 3),), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", X, (weight(2, 4, 2, 3),), {"auto_pad": "SAME_LOWER"}),
    ("Conv", X, (weight(2, 4, 2, 3),), {"auto_pad": "VALID", "dilations": [2, 1]}),
    ("ConvTranspose", LINE, (weight(4, 2, 3), weight(2)), {"pads": [1, 1], "strides": [2], "output_padding": [1]}),
    ("ConvTranspose", X, (weight(4, 2, 3, 3), weight(2)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", X, (weight(4, 2, 4, 3), weight(2)), {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    ("ConvTranspose", X, (weight(4, 2, 3, 3), weight(2)), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", X, (weight(4, 2, 3, 3), weight(2)), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("GRU", STEPS, (weight(1, 12, 3), weight(1, 12, 4), weight(1, 24)),
     {"hidden_size": 4, "linear_before_reset": 1, "results": 2}),
    ("LSTM", STEPS, (weight(1, 16, 3), weight(1, 16, 4), weight(1, 32)), {"hidden_size": 4, "results": 3}),
    ("LSTM", STEPS, (weight(1, 16, 3), weight(1, 16, 4)), {"hidden_size": 4, "results": 2}),
    ("MaxPool", X, (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", X, (), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("AveragePool", X, (), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", X, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", X, (), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("BatchNormalization", X, (positive(4), weight(4), weight(4), positive(4)), {"epsilon": 1e-3}),
    ("BatchNormalization", X, (positive(4), weight(4), weight(4), positive(4)), {"opset": 13, "momentum": 0.5}),
    ("InstanceNormalization", X, (positive(4), weight(4)), {}),
    ("LayerNormalization", X, (positive(5), weight(5)), {}),
    ("LayerNormalization", X, (np.abs(weight(6, 5)), weight(6, 5)), {"axis": 2}),
    ("GroupNormalization", X, (positive(2), weight(2)), {"num_groups": 2, "opset": 18}),
    ("GroupNormalization", X, (positive(4), weight(4)), {"num_groups": 2, "opset": 21}),
    ("ReduceMean", X, (), {"axes": [2, 3], "keepdims": 0, "opset": 13}),
    ("ReduceMean", X, (ints(-1),), {"opset": 18}),
    ("ReduceSum", X, (ints(1, 2),), {"keepdims": 0}),
    ("ReduceSum", X, (), {"axes": [1], "opset": 11}),
    ("Reshape", X, (ints(0, -1),), {}),
    ("Reshape", X, (ints(-1, 20, 6),), {}),
    ("Transpose", X, (), {"perm": [0, 2, 3, 1]}),
    ("Flatten", X, (), {"axis": 0}),
    ("Squeeze", X[:, :1], (ints(1),), {}),
    ("Squeeze", X[:, :1], (), {"axes": [1], "opset": 11}),
    ("Squeeze", X[:, :1], (), {}),
    ("Unsqueeze", X, (ints(1, -1),), {}),
    ("Unsqueeze", X, (), {"axes": [0], "opset": 11}),
    ("Split", X, (ints(1, 3),), {"axis": 1, "results": 2}),
    ("Split", X, (), {"axis": 2, "results": 2, "opset": 11}),
    ("Split", X, (), {"axis": 3, "results": 3, "num_outputs": 3, "opset": 18}),
    ("Slice", X, (ints(1, 0), ints(2**63 - 1, -1), ints(1, 3)), {}),
    ("Slice", X, (ints(-1), ints(-(2**63)), ints(3), ints(-2)), {}),
    ("Slice", X, (), {"starts": [1], "ends": [4], "axes": [2], "opset": 9}),
    ("Gather", X, (np.array(-1, np.int64),), {"axis": 3}),
    ("Gather", X, (ints(2, 0, -1),), {"axis": 1}),
    ("Gather", X, (np.array([[0, 1], [2, 3]], np.int64),), {"axis": 2}),
    ("Expand", X[:, :1], (ints(1, 4, 1, 1),), {}),
    ("Tile", X, (ints(1, 2, 1, 3),), {}),
    ("Pad", X, (ints(0, 0, 1, 2, 0, 1, 0, 1), np.array(0.5, np.float32)), {}),
    ("Pad", X, (ints(0, 0, 1, 2, 0, 0, 2, 1),), {"mode": "reflect"}),
    ("Pad", X, (ints(0, 0, 1, 2, 0, 0, 2, 1),), {"mode": "edge"}),
    ("DepthToSpace", X, (), {"blocksize": 2}),
    ("DepthToSpace", X, (), {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", X[..., :4], (), {"blocksize": 2}),
    ("Upsample", X, (np.array([1, 1, 2, 2], np.float32),), {"opset": 9}),
    *(("Resize", X, (None, np.array([1, 1, 2, 3], np.float32)), settings) for settings in (
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {},
        {"nearest_mode": "ceil"},
        {"coordinate_transformation_mode": "align_corners"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "cubic"},
    )),
    ("Resize", X, (None, None, ints(3, 4, 12, 10)), {"mode": "linear"}),
    ("Resize", LINE, (None, None, ints(3, 4, 3)), {}),
    ("Resize", LINE, (None, None, ints(3, 4, 18)), {"mode": "linear"}),
    ("Where", X > 0, (weight(1), weight(1)), {}),
]  # fmt: skip


def title(case: tuple[Any, ...]) -> str:
    """For people: the operator and what is said of it."""
    return "-".join([case[0], *(f"{name}={value}" for name, value in case[3].items() if name != "results")])


@pytest.mark.parametrize("case", CASES, ids=title)
def test_as_the_evaluator_computes_it(case: tuple[Any, ...]) -> None:
    """To a rounding of float64; and traced for a batch of any size."""
    operator, x, inputs, settings = case[0], case[1], case[2], dict(case[3])
    opset = settings.pop("opset", 18 if operator == "Mish" else 17)
    model = graph(operator, x, inputs, settings, opset)
    if x.dtype == bool:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.BOOL
    network = onnx_network.OnnxNetwork(model, "one.onnx")
    expected = network.evaluated(x)
    got = network.exact(torch.from_numpy(x))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        close = 3e-6 if operator in IN_FLOAT32 else 1e-12
        np.testing.assert_allclose(got[name], values, rtol=close, atol=close)


def test_none_is_untested() -> None:
    """Each has a case here, but for those that only compute sizes and conditions, which the graphs of a pair have."""
    rest = {"And", "Cast", "CastLike", "Concat", "ConstantOfShape", "Equal", "Greater", "GreaterOrEqual",
            "Less", "LessOrEqual", "Mod", "Not", "Or", "Range", "ReduceProd", "Shape", "Size"}  # fmt: skip
    assert set(operators.TRANSLATED) - {case[0] for case in CASES} - {"Swish"} == rest
