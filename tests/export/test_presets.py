"""Every preset under every likelihood, and layers that people write, from PyTorch to the runtime: the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vae_export import bundle, graphs
from vae_export.cli import judge
from vae_runtime import VAE, noise
from vae_runtime.bundle import read
from vae_runtime.errors import BundleError
from vae_runtime.session import Session
from vae_runtime.verify import verify
from vae_train import checkpoint, evaluate, networks, pixels, train
from vae_train.checkpoint import Run, Settings
from vae_train.config import LIKELIHOODS, PRESETS, Place

Exported = Callable[[str, str], tuple[Run, torch.Tensor, Path]]
SHAPES = {
    "tutorial": (1, 28, 28),
    "deep": (1, 8, 8),
    "gated": (1, 8, 8),
    "resnet": (1, 12, 8),
    "resnet-colour": (3, 16, 16),
}
NOISE = 0.02  # on weights; with more of it few draws of z carry all weight
PREPROCESSING = {"levels": "made up", "split": "none", "unreadable": 3}
CASES = [
    # the fast ones, of 3 to 6 seconds each, have every preset and every likelihood
    pytest.param(preset, likelihood, marks=[] if fast else pytest.mark.slow)
    for preset in SHAPES
    for likelihood in LIKELIHOODS
    for fast in [preset == "resnet-colour" or likelihood == PRESETS[preset].likelihood]
]


def smooth_images(n: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Seeded images of soft spots, uint8 [n, C, H, W], black and white among their levels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(n, shape[0], 3, 3, generator=generator)
    x = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True)
    return (128 + 120 * x).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def make_run(preset: str, likelihood: str) -> tuple[Run, torch.Tensor]:
    """A run as a training would leave it, with noise on all weights in place of one, and its test images."""
    config = PRESETS[preset].replace(likelihood=likelihood)
    shape, levels = SHAPES[preset], smooth_images(64, SHAPES[preset])
    torch.manual_seed(0)
    vae = networks.build(config, shape)
    networks.start_at_constant_image(vae, *pixels.moments(levels))
    for weight in vae.parameters():
        weight.add_(NOISE * torch.randn_like(weight))
    seen = pixels.fixed_draw(levels) if config.binarise else levels
    settings = Settings(config, shape, PREPROCESSING, "0" * 64, {"command": "vae-train"})
    figures = evaluate.summary(evaluate.measure(vae, seen))
    return Run(vae, settings, {"command": "vae-train"}, figures, levels.numpy()), pixels.unit(seen)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported(preset, likelihood)`: such a run, its test images and its bundle, which has passed the gate."""
    made: dict[tuple[str, str], tuple[Run, torch.Tensor, Path]] = {}

    def get(preset: str, likelihood: str) -> tuple[Run, torch.Tensor, Path]:
        if (preset, likelihood) not in made:
            out = tmp_path_factory.mktemp("presets") / "bundle"
            run, x = make_run(preset, likelihood)
            bundle.export(run, out, 17, judge)
            made[preset, likelihood] = run, x, out
        return made[preset, likelihood]

    return get


@pytest.mark.parametrize(("preset", "likelihood"), CASES)
@torch.no_grad()
def test_bundle_gives_pytorchs_numbers(exported: Exported, preset: str, likelihood: str) -> None:
    """The graphs pass the gate, verify, and give PyTorch's posterior, parameters, means and terms of the ELBO."""
    run, x, out = exported(preset, likelihood)
    shape, latent_dim = run.image_shape, run.vae.latent_dim

    loaded = read(out)
    assert all(row.passed for row in verify(loaded))
    manifest = loaded.manifest
    assert manifest["preprocessing"] == PREPROCESSING
    assert manifest["parameters"] == sum(weight.numel() for weight in run.vae.parameters())
    assert manifest["contract"]["latent_dim"] == latent_dim
    sides = dict(zip(("channels", "height", "width"), shape, strict=True))
    assert manifest["contract"]["image"] == {**sides, "range": [0, 1]}
    contract: dict[str, Any] = {"name": likelihood}
    if likelihood == "gaussian":
        contract["logsigma"] = run.vae.likelihood.logsigma.item()
    assert manifest["contract"]["likelihood"] == contract

    runtime = VAE.load(out, threads=1)
    mu, logsigma = run.vae.encoder(x)
    assert mu.std(dim=0).max() > 1e-3  # the encoder tells images apart, so that equal numbers mean something
    for got, expected in zip(runtime.encode(x.numpy()), (mu, logsigma), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
    z = noise.normal(5, noise.PRIOR, np.arange(9), latent_dim)
    parameters = run.vae.decoder(torch.from_numpy(z))
    np.testing.assert_allclose(runtime.parameters(z), parameters.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(runtime.decode(z), run.vae.likelihood.mean(parameters).numpy(), rtol=1e-4, atol=1e-4)

    eps = noise.normal(3, noise.POSTERIOR, np.arange(len(x)), latent_dim)
    expected = run.vae.terms(x, torch.from_numpy(eps))
    got = runtime.terms(x.numpy(), seed=3)
    for name in ("elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name).numpy(), rtol=1e-5, atol=1e-3)
    assert expected.elbo.std() > 0.1
    drawn = runtime.sample(4, seed=1)
    assert drawn.shape == (4, *shape)
    runtime.likelihood.check(drawn)


@torch.no_grad()
def test_importance_weighted_bounds_agree(exported: Exported) -> None:
    """For a colour model of 8-bit levels, both sides' bounds of log p(x), each with its own noise, have one mean."""
    run, x, out = exported("resnet-colour", "discretised-logistic")
    weights = run.vae.log_weights(x[:20], 100, torch.Generator().manual_seed(0)).double()
    bound = torch.logsumexp(weights, dim=0) - np.log(100)
    error = ((weights - bound).exp().std(dim=0) / 10).square().sum().sqrt().item() / 20  # delta method
    got = VAE.load(out, threads=1).log_likelihood(x[:20].numpy(), 100, seed=2)
    assert error < 0.1
    assert abs((got - bound.numpy()).mean()) < 5 * np.sqrt(2) * error
    assert (bound - run.vae.elbo(x[:20])).mean() > 0


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("preset", ["gated", "resnet-colour"])
def test_newer_opsets_pass_the_gate(preset: str, opset: int, tmp_path: Path) -> None:
    """The gate and the golden vectors pass at newer opsets too."""
    run, _ = make_run(preset, PRESETS[preset].likelihood)
    bundle.export(run, tmp_path / "bundle", opset, judge)
    loaded = read(tmp_path / "bundle")
    assert loaded.manifest["onnx"]["opset"] == opset
    assert all(row.passed for row in verify(loaded))


def test_run_of_a_folder_of_colour_images_is_exported(tmp_path: Path) -> None:
    """A folder of pictures, trained on for one epoch, becomes a bundle that scores those pictures as the run does."""
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(smooth_images(60, (3, 20, 16)).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{i}.png")
    config = PRESETS["resnet-colour"].replace(
        dataset=str(tmp_path / "pictures"), image_size=8, hidden=(8, 8), dense=16, latent_dim=4, epochs=1, batch_size=16
    )
    train.train(config, tmp_path / "run", Place(tmp_path, download=False, device="cpu"), command="vae-train")
    run = checkpoint.load(tmp_path / "run")
    bundle.export(run, tmp_path / "bundle", 17, judge)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    assert manifest["contract"]["likelihood"] == {"name": "discretised-logistic"}
    assert manifest["preprocessing"] == run.settings.preprocessing
    assert "8x8" in manifest["preprocessing"]["levels"]
    assert str(tmp_path) not in json.dumps(manifest)
    x = run.probe / np.float32(255)
    got = VAE.load(tmp_path / "bundle").terms(x, 200, seed=0).elbo.mean()
    assert got == pytest.approx(run.evaluation["figures"]["elbo"]["mean"], rel=0.05)


class Chunks(nn.Module):
    """One linear layer for mu and logsigma, as many write it; opset 17 splits otherwise than later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """The halves, exchanged."""
        mu, logsigma = self.linear(x).chunk(2, dim=1)
        return torch.cat([logsigma, mu], dim=1)


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
    """A mean, which opset 17 cannot have from this exporter."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image's mean."""
        return x.mean(dim=1, keepdim=True)


class Varies(nn.Module):
    """A variance, whose conversion to opset 17 leaves an attribute that it does not know."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image's variance."""
        return x.var(dim=1, keepdim=True)


class Branches(nn.Module):
    """What no graph can hold: a tensor's value decides which way is gone."""

    def forward(self, x: Tensor) -> Tensor:
        """The input or its opposite."""
        return x if x.sum() > 0 else -x


@torch.no_grad()
def assert_exported(module: nn.Module, opset: int) -> None:
    """The graph has this opset and gives the module's numbers, for another batch size than the example's."""
    model = graphs.to_onnx(module, torch.zeros(2, 12), "x", ["y"], opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    (got,) = Session(model.SerializeToString(), "module").run(["y"], x.numpy())
    np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [Chunks, Attends])
@pytest.mark.parametrize("opset", [17, 18])
def test_layers_that_split_are_exported(module: type[nn.Module], opset: int) -> None:
    """Splitting a tensor in equal parts works at opset 17 too."""
    torch.manual_seed(0)
    assert_exported(module(), opset)


@pytest.mark.parametrize("module", [Averages, Varies])
def test_layers_that_an_opset_lacks_are_refused_with_the_way_out(module: type[nn.Module]) -> None:
    """Where opset 17 has no such operator, one line says so and what to do, which then works."""
    with pytest.raises(BundleError) as caught:
        graphs.to_onnx(module(), torch.zeros(2, 12), "x", ["y"], 17)
    assert str(caught.value).endswith("; choose a newer --opset")
    assert "17" in caught.value.which
    assert_exported(module(), 18)


def test_networks_that_branch_are_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """A network whose way depends on a tensor's value ends in a BundleError; torch's own explanations are not heard."""
    with pytest.raises(BundleError) as caught:
        graphs.to_onnx(Branches(), torch.zeros(2, 12), "x", ["mu", "logsigma"], 17)
    line = str(caught.value)
    assert line.startswith("network cannot be exported: x to mu, logsigma (")
    assert line.endswith("; use operators that torch.onnx.export takes, and no branches on values")
    assert "data-dependent" in line
    assert capfd.readouterr() == ("", "")


class Bends(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        """Each image's Bessel functions."""
        return torch.special.bessel_j0(x)


def test_operators_that_onnx_lacks_are_named() -> None:
    """The line says which operator cannot be exported."""
    with pytest.raises(
        BundleError, match=r"^network cannot be exported: x to y \([^\n]*bessel_j0[^\n]*\); use operators"
    ):
        graphs.to_onnx(Bends(), torch.zeros(2, 12), "x", ["y"], 17)


class Listed(nn.Module):
    """An encoder whose mu and logsigma are a list."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        """The encoder's, as a list."""
        return list(self.encoder(x))


def test_encoder_may_return_a_list(tmp_path: Path) -> None:
    """A list of mu and logsigma passes the gate as a pair does."""
    run, _ = make_run("gated", "bernoulli")
    run.vae.encoder = Listed(run.vae.encoder)
    bundle.export(run, tmp_path / "bundle", 17, judge)
    assert all(row.passed for row in verify(read(tmp_path / "bundle")))
