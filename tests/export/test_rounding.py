"""The model of float32's rounding: what it says of sums and layers, against float32 itself, added up in every order."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.arithmetic import InOrder
from vae_export import gate
from vae_export.rounding import Precise
from vae_runtime.observation import Observation
from vae_train import networks
from vae_train.config import PRESETS
from vae_train.vae import VAE

SMALL = {
    "mlp": PRESETS["tutorial"].replace(hidden=(64,), latent_dim=4),
    "resnet": PRESETS["resnet"].replace(hidden=(8, 12), dense=32, latent_dim=4, likelihood="discretised-logistic"),
}
SHAPE = (1, 8, 8)


@torch.no_grad()
def small(network: str) -> VAE:
    """A small VAE with weights that are not at their start."""
    torch.manual_seed(0)
    vae = networks.build(SMALL[network], SHAPE)
    for weight in vae.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    return vae.eval()


def images(n: int) -> Tensor:
    """Seeded noise at 8-bit levels."""
    return torch.randint(256, (n, *SHAPE), generator=torch.Generator().manual_seed(1)).float() / 255


def spread(module: nn.Module, x: Tensor, **given: Any) -> Tensor:
    """The model's standard error of each number that a module gives for x, from eight draws."""
    precise = Precise(module)  # type: ignore[arg-type]
    clean = precise.evaluate(module, x)
    draws = [precise.evaluate(module, x, seed=seed, **given) for seed in range(8)]
    return (torch.stack(draws) - clean).square().mean(dim=0).sqrt()


@pytest.mark.parametrize("network", SMALL)
@torch.no_grad()
def test_networks_are_computed_in_float64(network: str) -> None:
    """Without a seed the numbers are those of the same network converted to float64; its weights stay as they were."""
    vae = small(network)
    before = copy.deepcopy(vae.state_dict())
    precise, double = Precise(vae), copy.deepcopy(vae).double()
    x, eps = images(5), torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    got = [*precise.evaluate(vae.encoder, x), precise.evaluate(vae.decoder, eps), precise.evaluate(vae.elbo, x, eps)]
    wanted = [*double.encoder(x.double()), double.decoder(eps.double()), double.elbo(x.double(), eps.double())]
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    for name, weight in vae.state_dict().items():
        assert weight.dtype == before[name].dtype
        assert torch.equal(weight, before[name])


class Tied(nn.Module):
    """Two places of one layer, and two of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """All three."""
        return torch.tanh(self.other(torch.tanh(self.again(torch.tanh(self.first(x))))))


@torch.no_grad()
def test_tied_weights_come_back() -> None:
    """Layers and weights in several places are computed in float64, and are the same parameters afterwards."""
    torch.manual_seed(0)
    module, x = Tied(), torch.randn(5, 8)
    before = dict(module.named_parameters(remove_duplicate=False))
    got = Precise(module).evaluate(module, x)  # type: ignore[arg-type]
    torch.testing.assert_close(got, copy.deepcopy(module).double()(x.double()), rtol=1e-13, atol=1e-13)
    after = dict(module.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert {weight.dtype for weight in after.values()} == {torch.float32}


class NamesFloat32(nn.Module):
    """Code that insists on float32."""

    def forward(self, x: Tensor) -> Tensor:
        """x / 3, through constants and conversions."""
        third = torch.ones(1, dtype=torch.float32) / torch.full((1,), 3.0, dtype=torch.float32)
        return x.to(torch.float32) * third.float()


def test_code_that_names_float32_is_computed_in_float64() -> None:
    """Constants and conversions that name float32 are in float64 too."""
    module = NamesFloat32()
    x = torch.tensor([0.7])
    got = Precise(module).evaluate(module, x)  # type: ignore[arg-type]
    assert got.item() == pytest.approx(x.item() / 3, rel=1e-15)


def test_draws_are_seeded() -> None:
    """A seed's draw is the same each time, and another seed's another one."""
    vae = small("mlp")
    precise, x = Precise(vae), images(2)
    (a, _), (b, _), (c, _) = (precise.evaluate(vae.encoder, x, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def cumulative(terms: np.ndarray) -> np.ndarray:
    """Sums over the last axis in float32, one term after the other."""
    return np.add.accumulate(terms, axis=-1, dtype=np.float32)[..., -1]


class Product(nn.Module):
    """Rows times one column of ones and of halves."""

    def forward(self, x: Tensor) -> Tensor:
        """[rows, n] to [rows, 1]."""
        return torch.mm(x, self.column(x.shape[1]))

    @staticmethod
    def column(n: int) -> Tensor:
        """Weights that float32 rounds in products."""
        return torch.linspace(0.5, 1.5, n)[torch.randperm(n, generator=torch.Generator().manual_seed(3))][:, None]


class Sum(nn.Module):
    """Sums of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """[rows, n] to [rows]."""
        return x.sum(dim=1)


class Variance(nn.Module):
    """Variances of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """[rows, n] to [rows]."""
        return x.var(dim=1, correction=0)


def variance_of_squares(x: np.ndarray) -> np.ndarray:
    """The mean of the squares less the square of the mean, in float32."""
    n = np.float32(x.shape[1])
    return cumulative(x * x) / n - np.square(cumulative(x) / n)


Computed = Callable[[np.ndarray], np.ndarray]
SUMS: list[tuple[nn.Module, bool, Computed]] = [
    (Product(), False, lambda x: cumulative(x * Product.column(x.shape[1]).numpy()[:, 0])[:, None]),
    (Sum(), False, cumulative),
    (Sum(), True, lambda x: x.sum(axis=1)),
    (Variance(), False, variance_of_squares),
]


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize(("module", "in_pairs", "computed"), SUMS, ids=["product", "sum", "sum in pairs", "variance"])
def test_sums_are_off_by_what_the_model_says(
    module: nn.Module, in_pairs: bool, computed: Computed, mean: float
) -> None:
    """Of 1,000 sums of 800 terms in float32, the root mean square error is between a third and all of the model's."""
    x = torch.randn(1000, 800, generator=torch.Generator().manual_seed(4)) + mean
    exact = Precise(module).evaluate(module, x).numpy()  # type: ignore[arg-type]
    actual = np.sqrt(np.square(computed(x.numpy()) - exact).mean())
    model = spread(module, x, in_pairs=in_pairs).square().mean().sqrt().item()
    assert 1 / 3 < actual / model < 1


class Normed(nn.Sequential):
    """Layers after a shift, so that a norm has something to subtract."""

    def forward(self, x: Tensor) -> Tensor:
        """The layers of x + 3."""
        return super().forward(x + 3)


class Attention(nn.Module):
    """Attention over rows as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Each image's rows attend to one another."""
        tokens = x[:, 0]
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class Applied(nn.Module):
    """A function of torch as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of x."""
        return self.function(x)


FUNCTIONS = (torch.exp, torch.exp2, torch.log2, torch.log10, torch.tan, torch.atan, torch.sinh, torch.cosh, torch.asinh)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: Normed(nn.Flatten(), nn.LayerNorm(64)),
    "group norm": lambda: Normed(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)),
    "batch norm": lambda: Normed(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)),
    "instance norm": lambda: Normed(nn.InstanceNorm2d(1)),
    "attention": Attention,
    "a transformer's layer": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(8, 2, batch_first=True)
    ),
    "transposed convolution": lambda: nn.ConvTranspose2d(1, 3, 4, stride=2, padding=1),
    "grouped convolution": lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=2)),
    "pooling": lambda: nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
    "upsampling": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "softmax": lambda: nn.Softmax(dim=-1),
    "activations": lambda: nn.Sequential(nn.GELU(), nn.SiLU(), nn.ELU(), nn.Softplus(), nn.Tanh(), nn.Mish()),
    "running sum": lambda: nn.Sequential(nn.Flatten(), Applied(partial(torch.cumsum, dim=1))),
    **{function.__name__: partial(Applied, lambda x, function=function: function(x + 0.1)) for function in FUNCTIONS},
    "weight norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 16))),
}


@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_layers_are_off_by_no_more_than_the_model_says(layer: str) -> None:
    """PyTorch's float32 is off by less than three of the largest standard error, and by more than a hundredth of it."""
    torch.manual_seed(0)
    module = LAYERS[layer]().eval()
    x = images(8)
    actual = (module(x) - Precise(module).evaluate(module, x)).abs().max().item()  # type: ignore[arg-type]
    assert 0.01 < actual / spread(module, x).max().item() < 3


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("network", SMALL)
@torch.no_grad()
def test_processors_that_add_in_order_are_within_tolerance(network: str, fused: bool) -> None:
    """Sums strictly in order, with and without fused multiply-add, stay below what the gate tolerates."""
    vae = small(network)
    cases = gate.expect(vae, Observation.image((1, 8, 8)), (images(8) * 255).byte().numpy())
    factor = 6  # less than the quantile of any gate: of 1e-6 / 2 for the fewest numbers that it may have
    for case in cases:
        with InOrder(fused):
            got = case.side.single(*map(torch.from_numpy, case.inputs.values()))
        for name, values in zip(case.expected, got, strict=True):
            off = np.abs(values.numpy() - case.expected[name]).max()
            assert 0 < off < factor * case.errors[name], (case.kind, name)
            assert math.isfinite(off)
