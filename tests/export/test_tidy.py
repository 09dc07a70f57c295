"""What becomes of the layers that people write: few operators at every opset, and weights that no device chokes on."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from vae_export import onnx_graph
from vae_runtime.errors import BundleError
from vae_runtime.sessions import Session

OPSETS = [onnx_graph.OLDEST_OPSET, *(pytest.param(n, marks=pytest.mark.slow) for n in (18, onnx_graph.newest_opset()))]


class Chunks(nn.Module):
    """One linear layer for mu and logsigma, as many write it; opset 17 splits otherwise than later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """The halves, exchanged."""
        mu, logsigma = self.linear(x).chunk(2, dim=1)
        return torch.cat([logsigma, mu], dim=1)


class Uneven(nn.Module):
    """Three parts, of which the last is smaller."""

    def forward(self, x: Tensor) -> Tensor:
        """The parts, turned round."""
        return torch.cat(x[:, :11].chunk(3, dim=1)[::-1], dim=1)


class Attends(nn.Module):
    """Attention over three tokens, which splits too."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The attended tokens."""
        tokens = x.unflatten(1, (3, 4))
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)


class Averages(nn.Module):
    """A mean, whose axes are an attribute at opset 17 and an input later."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image's mean."""
        return x.mean(dim=1, keepdim=True)


class Varies(nn.Module):
    """A variance, which torch writes as two means."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image's variance."""
        return x.var(dim=1, keepdim=True)


class Normalises(nn.Module):
    """Convolutions with the normalisation and the dropout that people put between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)),
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
            nn.GroupNorm(3, 6),
            nn.Upsample(scale_factor=2),
            nn.Flatten(),
        )
        for weight in self.layers.buffers():
            nn.init.uniform_(weight.float(), 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """All layers."""
        return self.layers(x)


class OnSphere(nn.Module):
    """A norm of 1, for which torch computes the shape to expand to."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image divided by its norm, in a shape computed from the batch's."""
        return nn.functional.normalize(x.reshape(x.shape[0], 3, -1), dim=2).flatten(1)


@torch.no_grad()
def assert_exported(module: nn.Module, opset: int) -> onnx.ModelProto:
    """The graph has this opset and gives the module's numbers, for another batch size than the example's."""
    model = onnx_graph.to_onnx(module, torch.zeros(2, 12), "x", ["y"], opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    (got,) = Session(model.SerializeToString(), "module").run(["y"], x.numpy())
    np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-5, atol=1e-5)
    return model


@pytest.mark.parametrize("module", [Chunks, Uneven, Attends, Averages, Varies, Normalises, OnSphere])
@pytest.mark.parametrize("opset", OPSETS)
def test_layers_that_people_write_are_exported(module: type[nn.Module], opset: int) -> None:
    """Splits, attention, means, variances, normalisation and computed shapes work at old and new opsets."""
    torch.manual_seed(0)
    assert_exported(module().eval(), opset)


@pytest.mark.parametrize(
    ("module", "operators"),
    [
        (Averages, "ReduceMean"),
        (OnSphere, "Reshape ReduceL2 Clip Div Reshape"),
        (Normalises, "Reshape Conv Relu ConvTranspose Reshape InstanceNormalization Reshape Mul Add Resize Reshape"),
    ],
)
def test_what_can_be_known_is_not_computed(module: type[nn.Module], operators: str) -> None:
    """Shapes become constants, batch normalisation a part of its convolution, and dropout nothing."""
    model = assert_exported(module().eval(), 17)
    assert [node.op_type for node in model.graph.node] == operators.split()
    made = {"x", *(tensor.name for tensor in model.graph.initializer), *(node.name for node in model.graph.node[:-1])}
    assert {name for node in model.graph.node for name in node.input if name} == made


class Small(nn.Module):
    """A linear layer with weights below what float32 holds in full."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6, bias=False)
        with torch.no_grad():
            self.linear.weight[0, :6] = torch.tensor([1e-40, -1e-40, 1e-45, 2**-126, -(2.0**-126), 0])

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        return self.linear(x)


def test_denormal_weights_are_zero() -> None:
    """Weights below 2^-126, which many devices compute slowly or take for 0, are 0; all others keep every bit."""
    torch.manual_seed(0)
    module = Small()
    (tensor,) = assert_exported(module, 17).graph.initializer
    expected = module.linear.weight.detach().numpy().copy()
    assert np.count_nonzero(expected[0, :6]) == 5
    expected[0, :3] = 0
    assert tensor.name == "linear.weight"
    assert numpy_helper.to_array(tensor).tobytes() == expected.tobytes()
    assert module.linear.weight[0, 0] == 1e-40  # the network itself is left alone


class Mishes(nn.Module):
    """An activation that has an operator from opset 18 on."""

    def forward(self, x: Tensor) -> Tensor:
        """Mish."""
        return nn.functional.mish(x)


class Pads(nn.Module):
    """Resizing with a filter, an attribute that opset 17 does not know."""

    def forward(self, x: Tensor) -> Tensor:
        """Half the size."""
        images = x.unflatten(1, (3, 2, 2))
        return nn.functional.interpolate(images, size=(1, 1), mode="bilinear", antialias=True).flatten(1)


@pytest.mark.parametrize(
    ("module", "operator"), [(Mishes, "Mish"), pytest.param(Pads, "Resize with antialias", marks=pytest.mark.slow)]
)
def test_what_an_opset_lacks_is_refused_with_the_way_out(module: type[nn.Module], operator: str) -> None:
    """Where opset 17 has no such operator, one line says so and what to do, which then works."""
    with pytest.raises(BundleError) as caught:
        onnx_graph.to_onnx(module(), torch.zeros(2, 12), "x", ["y"], 17)
    line = f"network has an operator newer than its opset: {operator} is not in opset 17; choose --opset 18, or newer"
    assert str(caught.value) == line
    assert_exported(module(), 18)


class Foreign(nn.Module):
    """An operator of a domain of its own, which only some runtimes would know."""

    def forward(self, x: Tensor) -> Tensor:
        """Whatever that operator does."""
        return torch.onnx.ops.symbolic("mine::Special", (x,), dtype=x.dtype, shape=x.shape, version=1)


def test_operators_outside_of_onnx_are_refused_by_name() -> None:
    """A graph that onnxruntime alone cannot run is not made."""
    with pytest.raises(BundleError) as caught:
        onnx_graph.to_onnx(Foreign(), torch.zeros(2, 12), "x", ["y"], 17)
    advice = "write it with operators that ONNX has instead"
    assert str(caught.value) == f"network has operators outside of ONNX: mine::Special; {advice}"
