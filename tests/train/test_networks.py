"""The networks that settings make: their shapes, their start, what is refused, and networks of a person's own."""

import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vae_runtime.errors import ArgumentError, ResourceError
from vae_train import mlp, networks, pixels, resnet, run_folder, train
from vae_train.config import LIKELIHOODS, PRESETS, Config, Place
from vae_train.vae import VAE

IMAGES = [
    *((preset, (1, 28, 28)) for preset in ("tutorial", "deep", "gated", "resnet")),
    ("resnet-colour", (3, 32, 32)),
    ("resnet-colour", (3, 64, 64)),
]
SMALL = [
    *(("tutorial", (3, 4, 6)), ("deep", (3, 5, 7)), ("gated", (1, 1, 1))),
    *(("resnet", (1, 8, 12)), ("resnet-colour", (3, 8, 16))),
]
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)
every_preset = pytest.mark.parametrize(("preset", "shape"), SMALL)


def build(preset: str, shape: tuple[int, int, int], **settings: object) -> VAE:
    """The seeded VAE of a preset."""
    torch.manual_seed(0)
    return networks.build(PRESETS[preset].replace(**settings), shape)


def shaken(vae: VAE) -> VAE:
    """The VAE with noise on every weight, those that start at zero too."""
    with torch.no_grad():
        for weight in vae.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return vae


@pytest.mark.parametrize(("preset", "shape"), IMAGES)
@torch.no_grad()
def test_presets_build_for_their_images(preset: str, shape: tuple[int, int, int]) -> None:
    """Every preset takes images of the size it is meant for, and its decoder gives as many pixels back."""
    vae = build(preset, shape)
    out = vae(torch.rand(1, *shape), torch.randn(1, 1, vae.latent_dim))
    assert vae.likelihood.name == ("discretised-logistic" if preset == "resnet-colour" else "bernoulli")
    assert vae.likelihood.mean(out.parameters).shape == (1, 1, *shape)


@every_preset
@every_likelihood
@torch.no_grad()
def test_shapes_and_types(preset: str, shape: tuple[int, int, int], likelihood: str) -> None:
    """Encoders give mu and logsigma, decoders the likelihood's parameters, all float32, for K draws of each image."""
    vae = build(preset, shape, likelihood=likelihood)
    latent_dim = PRESETS[preset].network.latent_dim
    out = vae(torch.rand(3, *shape), torch.randn(2, 3, latent_dim))
    channels, *sides = shape
    assert out.mu.shape == out.logsigma.shape == (3, latent_dim)
    assert out.z.shape == (2, 3, latent_dim)
    assert out.parameters.shape == (2, 3, channels * vae.likelihood.parameters_per_value, *sides)
    assert vae.likelihood.mean(out.parameters).shape == (2, 3, *shape)
    assert vae.likelihood.log_prob(torch.ones(3, *shape), out.parameters).shape == (2, 3)
    for tensor in (*out, *vae.parameters()):
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()


@every_preset
def test_every_weight_learns(preset: str, shape: tuple[int, int, int]) -> None:
    """Once a network has left its start, every weight has a gradient of its own: none is idle."""
    vae = shaken(build(preset, shape))
    x = torch.rand(4, *shape).round()
    (-vae.elbo(x).mean()).backward()
    for name, weight in vae.named_parameters():
        assert weight.grad is not None, name
        assert (weight.grad != 0).any(), name


@every_preset
@torch.no_grad()
def test_images_do_not_meddle_with_each_other(preset: str, shape: tuple[int, int, int]) -> None:
    """An image's outputs do not depend on the others in its batch."""
    vae = shaken(build(preset, shape)).double()
    x, eps = torch.rand(3, *shape).double(), torch.randn(1, 3, vae.latent_dim).double()
    whole, alone = vae(x, eps), vae(x[1:2], eps[:, 1:2])
    torch.testing.assert_close(whole.mu[1], alone.mu[0])
    torch.testing.assert_close(whole.parameters[0, 1], alone.parameters[0, 0])
    assert not torch.allclose(whole.mu[0], whole.mu[1])


def test_number_of_weights_of_the_tutorials_network() -> None:
    """784-400-20+20 and 20-400-784: 652,824 weights, as worked out by hand."""
    by_hand = (784 * 400 + 400) + 2 * (400 * 20 + 20) + (20 * 400 + 400) + (400 * 784 + 784)
    assert sum(weight.numel() for weight in build("tutorial", (1, 28, 28)).parameters()) == by_hand == 652_824


@torch.no_grad()
def test_mlp_is_its_formula() -> None:
    """The tutorial's encoder and decoder are one ReLU layer and linear heads, spelled out with matrix products."""
    vae = build("tutorial", (1, 4, 4), hidden=(7,), latent_dim=3)
    x, z = torch.rand(5, 1, 4, 4), torch.randn(5, 3)
    first, heads = vae.encoder.body[1][0], vae.encoder.heads
    h = torch.relu(x.reshape(5, 16) @ first.weight.T + first.bias)
    expected = [h @ head.weight.T + head.bias for head in (heads.mu, heads.logsigma)]
    torch.testing.assert_close(list(vae.encoder(x)), expected)
    first, last = vae.decoder.body[0][0], vae.decoder.last
    h = torch.relu(z @ first.weight.T + first.bias)
    torch.testing.assert_close(vae.decoder(z), (h @ last.weight.T + last.bias).reshape(5, 1, 4, 4))


@torch.no_grad()
def test_gated_layer_is_its_formula() -> None:
    """A gated layer is (a x + b) * sigmoid(c x + d), and the preset's layers are such."""
    torch.manual_seed(0)
    layer, x = mlp.Gated(6, 4).double(), torch.randn(5, 6, dtype=torch.float64)
    a, b, c, d = (layer.value.weight, layer.value.bias, layer.gate.weight, layer.gate.bias)
    torch.testing.assert_close(layer(x), (x @ a.T + b) / (1 + torch.exp(-(x @ c.T + d))))
    vae = build("gated", (1, 4, 4), hidden=(9, 8))
    for part, sizes in ((vae.encoder.body[1:], [(16, 9), (9, 8)]), (vae.decoder.body, [(40, 8), (8, 9)])):
        assert [type(layer) for layer in part] == [mlp.Gated] * 2
        assert [(layer.value.in_features, layer.gate.out_features) for layer in part] == sizes


@pytest.mark.parametrize(("preset", "activation"), [("tutorial", nn.ReLU), ("deep", nn.SiLU)])
def test_activation_is_the_settings(preset: str, activation: type[nn.Module]) -> None:
    """relu and silu stand behind each hidden layer, nowhere else."""
    vae = build(preset, (1, 4, 4), hidden=(5, 6))
    found = [type(m) for m in vae.modules() if isinstance(m, nn.ReLU | nn.SiLU | mlp.Gated)]
    assert found == [activation] * 4


@pytest.mark.parametrize("preset", ["tutorial", "deep", "gated", "resnet"])
@torch.no_grad()
def test_logsigma_is_clamped(preset: str) -> None:
    """Whatever the weights, logsigma stays within -10 and 1, and the ELBO is finite."""
    vae = build(preset, (1, 8, 8))
    for weight in vae.encoder.heads.parameters():
        weight.mul_(1e6)
    x = torch.rand(20, 1, 8, 8).round()
    _, logsigma = vae.encoder(x)
    assert (logsigma.min(), logsigma.max()) == mlp.LOGSIGMA_RANGE == (-10, 1)
    assert torch.isfinite(vae.terms(x).kl).all()


@torch.no_grad()
def test_residual_block_starts_as_identity() -> None:
    """A new block gives what it takes, to the bit; with other weights it is x + conv(silu(conv(silu(x))))."""
    torch.manual_seed(0)
    block, x = resnet.Block(5), torch.randn(3, 5, 6, 7)
    assert torch.equal(block(x), x)
    for weight in block.parameters():
        weight.normal_()
    h = x
    for convolution in (block.first, block.second):
        h = nn.functional.conv2d(h * torch.sigmoid(h), convolution.weight, convolution.bias, padding=1)
    torch.testing.assert_close(block(x), x + h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 3])
def test_resnet_has_the_blocks_and_channels_that_settings_say(blocks: int) -> None:
    """At each size of the image there are `blocks` blocks of that size's channels, in the encoder and mirrored."""
    vae = build("resnet", (3, 16, 24), hidden=(4, 6, 8), blocks=blocks, dense=10)
    channels = [m.first.in_channels for m in vae.encoder.modules() if isinstance(m, resnet.Block)]
    assert channels == [c for c in (4, 6, 8) for _ in range(blocks)]
    mirrored = [m.first.in_channels for m in vae.decoder.modules() if isinstance(m, resnet.Block)]
    assert mirrored == channels[::-1]
    assert vae.decoder.smallest == (8, 2, 3)
    assert [m.in_features for m in vae.encoder.body if isinstance(m, nn.Linear)] == [8 * 2 * 3]


@pytest.mark.parametrize(
    ("hidden", "shape", "message"),
    [
        (
            (16, 32),
            (1, 30, 30),
            "images do not halve: 30x30; choose sides divisible by 4, or fewer numbers in --hidden",
        ),
        (
            (16, 32),
            (1, 28, 30),
            "images do not halve: 28x30; choose sides divisible by 4, or fewer numbers in --hidden",
        ),
        (
            (8, 8, 8),
            (1, 28, 28),
            "images do not halve: 28x28; choose sides divisible by 8, or fewer numbers in --hidden",
        ),
        ((8,), (1, 1, 2), "images do not halve: 1x2; choose sides divisible by 2, or fewer numbers in --hidden"),
    ],
)
def test_images_that_do_not_halve_are_refused(
    hidden: tuple[int, ...], shape: tuple[int, int, int], message: str
) -> None:
    """A resnet names the sides and what they must be divisible by; one halving less is enough where that divides."""
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}$"):
        build("resnet", shape, hidden=hidden)
    with torch.no_grad():
        fewer = build("resnet", (3, 12, 20), hidden=(8, 8))
        assert fewer.decoder(torch.zeros(1, fewer.latent_dim)).shape == (1, 3, 12, 20)


def test_weights_follow_the_seed() -> None:
    """The same seed gives the same weights, another one others."""
    config = PRESETS["resnet"].replace(hidden=(4, 4))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(torch.cat([w.flatten() for w in networks.build(config, (1, 8, 8)).parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# the start


@pytest.mark.parametrize("preset", ["tutorial", "gated", "resnet"])
@every_likelihood
@torch.no_grad()
def test_decoder_starts_at_the_constant_image(preset: str, likelihood: str) -> None:
    """With what comes before its last bias silenced, the decoder returns the likelihood's constant, which expects the
    training images' mean; the Gaussian's sigma is their spread.
    """
    vae = build(preset, (2, 8, 12), likelihood=likelihood)
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (500, 2, 8, 12), generator=generator, dtype=torch.uint8)
    levels[:, :, :4] //= 4
    mean, std = pixels.moments(levels)
    before = vae.decoder(torch.zeros(1, vae.latent_dim))
    networks.start_at_constant(vae, mean, std)
    z = torch.randn(4, vae.latent_dim, generator=generator)
    constant = vae.likelihood.constant(mean, std)
    bias = vae.decoder.last.bias.unflatten(0, constant.shape) if preset != "resnet" else vae.decoder.bias
    torch.testing.assert_close(bias, constant)
    spread = (vae.decoder(z) - constant).abs().max()
    assert 0 < spread < 2  # what the untrained layers add to it
    for name, weight in vae.decoder.named_parameters():
        if name not in ("last.bias", "bias"):
            weight.zero_()
    torch.testing.assert_close(vae.decoder(z), constant.expand(4, *constant.shape))
    torch.testing.assert_close(vae.likelihood.mean(vae.decoder(z))[0], mean, rtol=0, atol=0.02)
    assert (before - constant).abs().max() > 0.3  # it was not there already
    if likelihood == "gaussian":
        assert vae.likelihood.logsigma.exp().item() == pytest.approx(std.square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("likelihood", ["discretised-logistic", "gaussian", "bernoulli"])
@torch.no_grad()
def test_a_resnet_starts_from_standardised_images(likelihood: str) -> None:
    """Its first convolution gives for x what it gave for (x - mean) / std, away from the edges; where pixels are drawn
    as binary it is as it was.
    """
    vae = build("resnet", (2, 8, 12), likelihood=likelihood)
    levels = torch.randint(100, 140, (500, 2, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = pixels.unit(levels)
    first = vae.encoder.body[0]
    expected = first((x - x.mean()) / x.std() if likelihood != "bernoulli" else x)
    networks.start_at_constant(vae, *pixels.moments(levels))
    torch.testing.assert_close(first(x)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=1e-3, atol=1e-4)


def test_decoder_without_start_at_is_left_alone() -> None:
    """A person's decoder need not have the method."""
    vae = VAE(nn.Identity(), nn.Linear(2, 3), 2)
    before = vae.decoder.bias.clone()
    networks.start_at_constant(vae, torch.full((1, 1, 3), 0.5), torch.ones(1, 1, 3))
    assert torch.equal(vae.decoder.bias, before)


# a person's own


OWN = """
import torch
from torch import nn
from pathlib import Path

Path("imported").touch()


class Encoder(nn.Module):
    def __init__(self, shape, latent_dim):
        super().__init__()
        self.norm = nn.BatchNorm2d(shape[0])
        self.linear = nn.Linear(shape[0] * shape[1] * shape[2], 2 * latent_dim)

    def forward(self, x):
        return self.linear(self.norm(x).flatten(1)).chunk(2, dim=1)


class Decoder(nn.Module):
    def __init__(self, latent_dim, shape):
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(latent_dim, shape[0] * shape[1] * shape[2])

    def forward(self, z):
        return self.linear(z).unflatten(1, self.shape)


def networks(image_shape, latent_dim, out):
    return Encoder(image_shape, latent_dim), Decoder(latent_dim, (out, *image_shape[1:]))
"""
ADVICE = "see examples/own_networks.py of the project's source"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """`own(text)` writes the module own_networks_here.py into a new working directory; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def write(text: str) -> Path:
        sys.modules.pop("own_networks_here", None)
        (tmp_path / "own_networks_here.py").write_text(text)
        return tmp_path

    yield write
    sys.modules.pop("own_networks_here", None)


def own_config(name: str = "own_networks_here:networks", **settings: object) -> Config:
    """Settings with networks of a person's own."""
    return PRESETS["tutorial"].replace(model=name, latent_dim=3, **settings)


@every_likelihood
def test_own_networks_are_those_of_the_function(own: Callable[[str], Path], likelihood: str) -> None:
    """The function gets the images' shape, the latent dimensions and the numbers per pixel; the VAE has its networks.

    They are left in training mode, their running statistics untouched.
    """
    own(OWN)
    config = own_config(likelihood=likelihood)
    vae = networks.build(config, (3, 4, 5), config.network.model)
    assert type(vae.encoder).__module__ == "own_networks_here"
    out = vae(torch.rand(2, 3, 4, 5), torch.randn(1, 2, 3))
    assert out.parameters.shape == (1, 2, 3 * vae.likelihood.parameters_per_value, 4, 5)
    again = networks.build(config, (3, 4, 5), config.network.model)
    assert again.training
    assert again.encoder.norm.training
    assert again.encoder.norm.num_batches_tracked == 0
    assert torch.equal(again.encoder.norm.running_mean, torch.zeros(3))


def test_own_networks_are_only_imported_when_trusted(own: Callable[[str], Path]) -> None:
    """A module that the run names, but the person does not, is never executed."""
    folder = own(OWN)
    for trusted in (None, "", "own_networks_here", "own_networks_here:other", "other:networks"):
        with pytest.raises(ArgumentError) as caught:
            networks.build(own_config(), (1, 4, 4), trusted)
        what = f"other networks than {trusted}" if trusted else "networks of its own"
        assert str(caught.value) == (
            f"run has {what}: own_networks_here:networks; "
            "if you trust that module, add --model own_networks_here:networks"
        )
        assert not (folder / "imported").exists()
        assert "own_networks_here" not in sys.modules
    networks.build(own_config(), (1, 4, 4), "own_networks_here:networks")
    assert (folder / "imported").exists()


def test_trust_in_a_module_that_the_run_does_not_name_imports_nothing(own: Callable[[str], Path]) -> None:
    """A run of this package's own networks does not import what --model names."""
    folder = own(OWN)
    networks.build(PRESETS["tutorial"], (1, 4, 4), "own_networks_here:networks")
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_here:networks", "No module named 'no_such_module_here'"),
        ("own_networks_here:absent", "module 'own_networks_here' has no attribute 'absent'"),
        ("own_networks_here", "module 'own_networks_here' has no attribute ''"),
        ("own_networks_here.deeper:networks", "No module named 'own_networks_here.deeper'"),
        (":networks", "Empty module name"),
        (".relative:networks", "the 'package' argument is required"),
    ],
)
def test_own_networks_that_are_not_there(own: Callable[[str], Path], name: str, reason: str) -> None:
    """A name without a module or a function is refused in one line that says which is missing."""
    own(OWN)
    with pytest.raises(ArgumentError) as caught:
        networks.build(own_config(name), (1, 4, 4), name)
    line = str(caught.value)
    assert line.startswith(f"networks not found ({reason}")
    elsewhere = "run this in the folder that no_such_module_here is in, or name that folder in PYTHONPATH"
    todo = elsewhere if "no_such_module_here" in name else "give --model package.module:function"
    assert line.endswith(f"): {name}; {todo}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ".chunk(2, dim=1)\n",
            "[:, :5].split([2, 3], dim=1)\n",
            "networks do not fit (mu: float32 [2, 2], for a batch of 2): {}; return float32 [batch, 3]",
        ),
        (
            ".chunk(2, dim=1)\n",
            ".double().chunk(2, dim=1)\n",
            "networks do not fit (mu: float64 [2, 3], for a batch of 2): {}; return float32 [batch, 3]",
        ),
        (
            "self.linear(self.norm(x).flatten(1)).chunk(2, dim=1)",
            "x.flatten(1)[:, :3], x.flatten(1).sum(0)[:3]",
            "networks do not fit (logsigma: float32 [3], for a batch of 2): {}; return float32 [batch, 3]",
        ),
        (
            "(out, *image_shape[1:])",
            "image_shape",
            "networks do not fit (parameters: float32 [2, 1, 4, 4], for a batch of 2): {}; "
            "return float32 [batch, 2, 4, 4]",
        ),
        (
            ".unflatten(1, self.shape)",
            "",
            "networks do not fit (parameters: float32 [2, 32], for a batch of 2): {}; return float32 [batch, 2, 4, 4]",
        ),
        (
            ".chunk(2, dim=1)\n",
            ".chunk(3, dim=1)\n",
            "networks do not fit (encoder returns 3 values (a tensor [2, 2], a tensor [2, 2], a tensor [2, 2])): {}; "
            "return mu and logsigma, two tensors [batch, 3]",
        ),
        (
            "        return self.linear(self.norm(x).flatten(1)).chunk(2, dim=1)",
            "        return dict(zip(('mu', 'logsigma'), self.linear(x.flatten(1)).chunk(2, dim=1)))",
            "networks do not fit (encoder returns a dict of mu, logsigma): {}; "
            "return mu and logsigma, two tensors [batch, 3]",
        ),
        (
            "    return Encoder(",
            "    Encoder(",
            "networks fail (TypeError: cannot unpack non-iterable NoneType object): {}; " + ADVICE,
        ),
        (
            "    return Encoder(",
            "    raise KeyError('width')\n    return Encoder(",
            "networks fail (KeyError: 'width', line 30 of own_networks_here.py): {}; " + ADVICE,
        ),
        (
            "nn.Linear(shape[0]",
            "nn.Linear(1 + shape[0]",
            "networks fail (RuntimeError: ... (2x16 and 17x6), line 16 of own_networks_here.py): {}; " + ADVICE,
        ),
        (
            "def networks(image_shape, latent_dim, out)",
            "def networks(image_shape, latent_dim)",
            "networks fail (TypeError: networks() takes 2 positional arguments but 3 were given): {}; " + ADVICE,
        ),
        (
            "def networks(image_shape, latent_dim, out):\n    return",
            "networks = 3\n\ndef f():\n    return",
            "networks fail (TypeError: 'int' object is not callable): {}; " + ADVICE,
        ),
        (
            "    def forward(self, z):",
            "    def start_at(self, parameters):\n        self.bias.copy_(parameters)\n\n    def forward(self, z):",
            "networks fail (AttributeError: 'Decoder' object has no attribute 'bias', "
            "line 26 of own_networks_here.py): {}; " + ADVICE,
        ),
        (
            'Path("imported").touch()',
            "nothing_of_that_name",
            "networks fail (NameError: name 'nothing_of_that_name' is not defined, "
            "line 6 of own_networks_here.py): {}; " + ADVICE,
        ),
        (
            'Path("imported").touch()',
            "int('wide')",
            "networks fail (ValueError: invalid literal for int() with base 10: 'wide', "
            "line 6 of own_networks_here.py): {}; " + ADVICE,
        ),
        (
            "import torch\n",
            "import torch_that_is_absent\n",
            "networks fail (ModuleNotFoundError: No module named 'torch_that_is_absent', "
            "line 2 of own_networks_here.py): {}; " + ADVICE,
        ),
        (
            "import torch\n",
            "import torch torch\n",
            "networks fail (SyntaxError: invalid syntax (own_networks_here.py, line 2)): {}; " + ADVICE,
        ),
    ],
    ids=[
        "width-of-mu",
        "type-of-mu",
        "batch-of-logsigma",
        "numbers-per-pixel",
        "flat-parameters",
        "three-from-the-encoder",
        "dict-from-the-encoder",
        "returns-nothing",
        "raises",
        "fails-in-forward",
        "takes-too-few",
        "no-function",
        "fails-in-start_at",
        "fails-on-import",
        "wrong-value-on-import",
        "lacks-a-package",
        "no-python",
    ],
)
def test_own_networks_that_fail_say_so_in_one_line(
    own: Callable[[str], Path], old: str, new: str, message: str
) -> None:
    """Wrong shapes are named beside those wanted; whatever else the module raises, with its line, and no traceback."""
    assert old in OWN
    own(OWN.replace(old, new))
    config = own_config(likelihood="discretised-logistic")
    with pytest.raises(ArgumentError) as caught:
        networks.build(config, (1, 4, 4), config.network.model)
    start, dots, end = message.format(config.network.model).partition("...")  # which stand for torch's own words
    assert str(caught.value) == message.format(config.network.model) or (dots and str(caught.value).startswith(start))
    assert str(caught.value).endswith(end)


def test_own_networks_may_be_anywhere_on_the_path(own: Callable[[str], Path]) -> None:
    """The name of a function in an installed package will do; its networks need not learn anything but a bias."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1, 4, 4))

        def forward(self, z: Tensor) -> Tensor:
            """The bias, whatever z."""
            return self.bias.expand(len(z), -1, -1, -1)

    class Prior(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            """N(0, I), whatever x."""
            zeros = torch.zeros(len(x), 3)
            return zeros, zeros

    mlp.made_here = lambda shape, latent_dim, out: (Prior(), Flat())
    try:
        name = "vae_train.mlp:made_here"
        vae = networks.build(own_config(name), (1, 4, 4), name)
    finally:
        del mlp.made_here
    x = torch.rand(2, 1, 4, 4).round()
    assert torch.equal(vae.terms(x).kl, torch.zeros(2))
    assert vae.terms(x).reconstruction.tolist() == pytest.approx([-16 * math.log(2)] * 2)


def test_own_networks_may_have_latents_in_space(own: Callable[[str], Path]) -> None:
    """mu and logsigma [batch, C, h, w] make such latents, of which a run is trained, measured, drawn and read again."""
    own(
        """
from torch import nn

class Encoder(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Conv2d(1, 2 * channels, 4, stride=4)

    def forward(self, x):
        return self.layers(x).chunk(2, dim=1)

def networks(shape, latent_dim, out):
    return Encoder(latent_dim), nn.ConvTranspose2d(latent_dim, out, 4, stride=4)
"""
    )
    config, here = own_config(dataset="digits", epochs=1), Path("run")
    train.train(config, here, Place(Path(), False, "cpu", trusted=config.network.model), "vae-train")
    run = run_folder.load(here, config.network.model)
    assert (run.vae.latent_shape, run.vae.latent_dim) == ((3, 2, 2), 12)
    assert run.fingerprint.mu.shape == (64, 3, 2, 2)
    assert len(run.evaluation["kl_per_dimension"]) == 12
    assert sum(run.evaluation["kl_per_dimension"]) == pytest.approx(run.evaluation["figures"]["kl"]["mean"])
    assert "12 latent dimensions" in (here / "report.html").read_text()


@pytest.mark.usefixtures("without_report", "one_thread")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("h = torch.sigmoid(h); h *= 2", "modified by an inplace operation"),
        ("h = h.view(7, -1) if torch.is_grad_enabled() else h", r"is invalid for input of size .* line 13 of"),
    ],
    ids=["backward", "forward"],
)
def test_what_pytorch_raises_of_own_networks_is_one_line(own: Callable[[str], Path], line: str, words: str) -> None:
    """In the first step, forward and backward; but a want of memory is that of the machine."""
    text = f"""
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self, latent_dim):
        super().__init__()
        self.layers = nn.Linear(64, 2 * latent_dim)

    def forward(self, x):
        h = x.flatten(1)
        h = self.layers(h)
        {line}
        return h.chunk(2, dim=1)

def networks(shape, latent_dim, out):
    return Encoder(latent_dim), nn.Sequential(nn.Linear(latent_dim, 64 * out), nn.Unflatten(1, (out, 8, 8)))
"""
    own(text)
    config = own_config(dataset="digits", epochs=1)
    place = Place(Path(), False, "cpu", trusted=config.network.model)
    with pytest.raises(ArgumentError, match=f"^networks fail .RuntimeError: .*{words}.*own_networks_here:networks; "):
        train.train(config, Path("run"), place, "vae-train")
    own(text.replace(line, "if torch.is_grad_enabled(): raise torch.OutOfMemoryError"))
    with pytest.raises(ResourceError, match=r"^out of memory"):
        train.train(config, Path("run"), place, "vae-train")
