"""A run knows its own network again by the outputs that it has kept, and no other."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.runs import OF_PIXELS
from vae_export import candidate, exporter, gate, trained
from vae_export.check import with_run
from vae_export.trained import OtherNetwork
from vae_runtime import bundle as bundles
from vae_runtime.errors import BundleError
from vae_runtime.observation import Observation
from vae_train import fingerprint, networks, pixels, run_folder, train
from vae_train.config import PRESETS, Place
from vae_train.fingerprint import Fingerprint
from vae_train.vae import VAE

SHAPE = (1, 8, 8)
SMALL = {
    "tutorial": PRESETS["tutorial"].replace(hidden=(32,), latent_dim=4),
    "gated": PRESETS["gated"].replace(hidden=(32, 32), latent_dim=4),
    "resnet": PRESETS["resnet"].replace(hidden=(8, 8), dense=32, latent_dim=4),
}


def images(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Seeded grey levels, uint8 [64, C, H, W]."""
    return torch.randint(0, 256, (64, *shape), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


@torch.no_grad()
def with_noise(vae: VAE) -> VAE:
    """The VAE with noise on all weights, in place of a training."""
    torch.manual_seed(0)
    for weight in vae.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    return vae


class Own(nn.Module):
    """A person's encoder: a convolution, a running mean, constants of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.gain = 0.2, 1.0
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.more = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh())
        self.last = nn.Linear(16, 8)
        self.register_buffer("scale", torch.full((16,), 0.5), persistent=False)
        self.mask = torch.ones(16)  # not even a buffer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logsigma."""
        h = nn.functional.leaky_relu(self.more(self.body(self.gain * x)) * self.scale * self.mask, self.slope)
        mu, logsigma = self.last(h).chunk(2, dim=1)
        return mu, logsigma


class OwnDecoder(nn.Module):
    """Its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.ELU(alpha=0.5), nn.Linear(32, 64))

    def forward(self, z: Tensor) -> Tensor:
        """Logits."""
        return self.body(z).unflatten(1, SHAPE)


def own() -> VAE:
    """A VAE of such networks."""
    return with_noise(VAE(Own(), OwnDecoder(), 4)).eval()


def check(vae: VAE, kept: Fingerprint) -> None:
    """Hold the VAE against what was kept for the images."""
    trained.check(vae, images().numpy(), kept, "image")


def kept_of(vae: VAE) -> Fingerprint:
    """What a training would keep."""
    return fingerprint.compute(vae, images().numpy())


@pytest.mark.parametrize("likelihood", OF_PIXELS)
@pytest.mark.parametrize("preset", SMALL)
def test_the_network_that_was_trained_is_known_again(preset: str, likelihood: str) -> None:
    """PyTorch's float32, with one thread and with two, is well within what is allowed, under every likelihood."""
    vae = networks.build(SMALL[preset].replace(likelihood=likelihood), SHAPE)
    networks.start_at_constant(vae, *pixels.moments(images()))
    vae, threads = with_noise(vae), torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found = trained.compare(vae, images().numpy(), kept_of(vae))
            assert [difference.tensor for difference in found] == ["mu", "logsigma", "ELBO"]
            assert all(difference.off < difference.allowed / 4 for difference in found), found
    finally:
        torch.set_num_threads(threads)
    check(vae, kept_of(vae))


def test_sums_in_another_order_are_the_same_network() -> None:
    """Hidden units in another order: every sum is added otherwise, as on another processor, and passes."""
    vae = with_noise(networks.build(SMALL["tutorial"], SHAPE))
    state, order = vae.state_dict(), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    turned = copy.deepcopy(vae)
    with torch.no_grad():
        for name, weight in turned.named_parameters():
            axis = next((axis for axis, size in enumerate(weight.shape) if size == 32), None)
            if axis is not None:
                weight.copy_(state[name].index_select(axis, order))
    other = kept_of(turned)
    assert not np.array_equal(other.mu, kept_of(vae).mu)
    check(vae, other)


class Fixed(Own):
    """A posterior of one spread for all, a constant that float32 rounds."""

    spread = -1.1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logsigma."""
        mu, _ = super().forward(x)
        return mu, torch.full_like(mu, self.spread)


def test_a_constant_is_its_float32_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation rounds it, but being float32 does; the numeric gate allows as much, and another constant is told."""
    vae = with_noise(VAE(Fixed(), OwnDecoder(), 4)).eval()
    kept = kept_of(vae)
    check(vae, kept)
    made = candidate.fp32(vae, Observation.image(SHAPE), 17)
    assert all(row.passed for row in gate.compare(vae, made.runtime(), images().numpy()))
    monkeypatch.setattr(Fixed, "spread", -1.11)
    with pytest.raises(OtherNetwork):
        check(vae, kept)


def other_activation(vae: VAE) -> None:
    """Of the encoder."""
    vae.encoder.body[2] = nn.Tanh()


def other_decoder(vae: VAE) -> None:
    """A constant of the decoder's activation, off by a percent."""
    vae.decoder.body[1].alpha = 0.505


def dropped(vae: VAE) -> None:
    """A layer without weights."""
    vae.encoder.more[2] = nn.Identity()


def constant(vae: VAE) -> None:
    """Off by a percent."""
    vae.encoder.gain = 1.01


def slope(vae: VAE) -> None:
    """Off by a percent."""
    vae.encoder.slope = 0.202


def buffer(vae: VAE) -> None:
    """One that the weights' file does not hold, off by a percent."""
    vae.encoder.scale *= 1.01


def attribute(vae: VAE) -> None:
    """A tensor that is no buffer, one number of which is another."""
    vae.encoder.mask[3] = 0


def epsilon(vae: VAE) -> None:
    """Of a normalisation."""
    vae.encoder.body[1].eps = 1e-3


def weights(vae: VAE) -> None:
    """Rounded to 16 bits."""
    with torch.no_grad():
        for weight in vae.parameters():
            weight.copy_(weight.bfloat16())


EDITS = (other_activation, other_decoder, dropped, constant, slope, buffer, attribute, epsilon, weights)


@pytest.mark.parametrize("edit", EDITS)
def test_another_network_is_refused(edit: Callable[[VAE], None]) -> None:
    """Same weights or nearly, same shapes, other numbers: the tensor and what to do are named."""
    vae = own()
    kept = kept_of(vae)
    check(vae, kept)
    edit(vae)
    refused = pytest.raises(OtherNetwork, match="not the network that was trained: networks mine:networks")
    with refused as caught, trained.named(PRESETS["tutorial"].replace(model="mine:networks")):
        check(vae, kept)
    assert "restore mine" in caught.value.todo
    assert ("ELBO" if edit is other_decoder else " of kept image ") in caught.value.which


def test_nothing_is_published_of_another_network(tmp_path: Path) -> None:
    """The library itself refuses it."""
    vae = own()
    kept = kept_of(vae)
    other_activation(vae)
    with pytest.raises(OtherNetwork, match="not the network that was trained"):
        exporter.export_vae(vae, Observation.image(SHAPE), images().numpy(), tmp_path / "bundle", fingerprint=kept)
    assert not list(tmp_path.iterdir())


def test_check_refuses_another_network(tiny_run: Path, tiny_bundle: Path) -> None:
    """So does the comparison of a bundle with its run."""
    run = run_folder.load(tiny_run)
    assert run.fingerprint is not None
    for module in run.vae.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(module, name, nn.Tanh())
    with pytest.raises(BundleError, match="not the network that was trained"):
        with_run(bundles.read(tiny_bundle), run)


@pytest.mark.usefixtures("without_report")
def test_outputs_are_computed_outside_of_autocast_and_leave_the_network_as_it_was(tmp_path: Path) -> None:
    """A training in bfloat16 keeps float32 outputs, of its last weights and of its best."""
    config = SMALL["tutorial"].replace(dataset="digits", epochs=2, batch_size=512, lr=0.05, precision="bfloat16")
    train.train(config, tmp_path / "run", Place(tmp_path, device="cpu"), command="vae-train")
    for best in (False, True):
        run = run_folder.load(tmp_path / "run", best=best)
        assert run.fingerprint is not None
        trained.check(run.vae, run.probe, run.fingerprint, "image")
    vae = own().train()
    before = torch.get_float32_matmul_precision()
    fingerprint.compute(vae, images().numpy())
    assert vae.training
    assert torch.get_float32_matmul_precision() == before


def test_outputs_of_other_weights_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    """They are tied to the weights by hash."""
    folder = tmp_path / "run"
    folder.mkdir()
    for file in tiny_run.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with np.load(folder / run_folder.FINGERPRINT) as stored:
        arrays = dict(stored)
    np.savez(folder / run_folder.FINGERPRINT, **{**arrays, "weights_sha256": np.array("0" * 64)})
    with pytest.raises(BundleError, match=r"fingerprint\.npz"):
        run_folder.load(folder)
