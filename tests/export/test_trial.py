"""What is wrong in a person's networks is said before their first step, by what they do and by their graphs."""

import copy
import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vae_export.cli import main as vae_export
from vae_export.trial import try_out
from vae_train import networks, pitfalls, report
from vae_train.cli import main
from vae_train.config import PRESETS
from vae_train.likelihoods import Gaussian
from vae_train.vae import VAE

SHAPE, LATENTS = (1, 8, 8), 3
LOOSE = {"tutorial": (16,), "resnet": (8, 8)}


class Encoder(nn.Module):
    """mu and what `second` makes of the other half."""

    def __init__(self, second: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        super().__init__()
        self.body, self.second = nn.Linear(64, 2 * LATENTS), second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two outputs."""
        mu, other = self.body(x.flatten(1)).chunk(2, dim=1)
        return mu, self.second(other)


class ByLayer(nn.Module):
    """A layer with a telling name, halved or not."""

    def __init__(self, factor: float | None = None) -> None:
        super().__init__()
        self.mean, self.fc_logvar, self.factor = nn.Linear(64, LATENTS), nn.Linear(64, LATENTS), factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two outputs."""
        second = self.fc_logvar(x.flatten(1)).clamp(-10, 10)
        return self.mean(x.flatten(1)), second if self.factor is None else second * self.factor


class ByVariable(Encoder):
    """A variable with a telling name."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two outputs."""
        mu, log_var = self.body(x.flatten(1)).chunk(2, dim=1)
        return mu, log_var


class BySquare(ByLayer):
    """A variable that a layer with another name fills."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two outputs."""
        log_sigma_sq = self.mean(x.flatten(1))
        return self.mean(x.flatten(1)), log_sigma_sq


class Decoder(nn.Module):
    """What `last` makes of a layer."""

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(LATENTS, 64), last

    def forward(self, z: Tensor) -> Tensor:
        """Parameters."""
        return self.last(self.body(z)).unflatten(1, SHAPE)


def clipped(values: Tensor) -> Tensor:
    """Bounded without a sigmoid."""
    return (values + 0.5).clamp(0, 1)


def constant(values: Tensor) -> Tensor:
    """As a last layer that begins at 0 has it, seen before its first step: it says nothing."""
    return values * 0


@pytest.mark.parametrize(
    ("encoder", "decoder", "place", "words"),
    [
        (Encoder(), Decoder(torch.sigmoid), "likelihood", "return logits"),
        (Encoder(), Decoder(clipped), "likelihood", "return logits"),
        (Encoder(torch.exp), Decoder(), "posterior", "torch.log(sigma)"),
        (Encoder(nn.functional.softplus), Decoder(), "posterior", "torch.log(sigma)"),
        (Encoder(), Decoder(), "", ""),
        (Encoder(), Decoder(constant), "", ""),
        (Encoder(lambda values: values.clamp(-10, 1)), Decoder(), "", ""),
    ],
)
def test_the_numbers_say_it_without_an_export(encoder: nn.Module, decoder: nn.Module, place: str, words: str) -> None:
    """A decoder's outputs in [0, 1] for z near and far, a second output never below 0; and no other network."""
    vae = VAE(encoder, decoder, LATENTS)
    found = pitfalls.signs(vae, SHAPE)
    assert list(found) == ([place] if place else [])
    assert words in found.get(place, "")
    assert pitfalls.signs(VAE(Encoder(), decoder, LATENTS, Gaussian()), SHAPE) == {}  # a mean may be in [0, 1]


@pytest.mark.parametrize(
    ("encoder", "decoder", "place", "words"),
    [
        (Encoder(), Decoder(lambda values: constant(values).sigmoid()), "likelihood", "test_trial.py:"),
        (ByLayer(), Decoder(), "posterior", "0.5 * logvar"),
        (ByVariable(), Decoder(), "posterior", "mu, log_var = "),
        (BySquare(), Decoder(), "posterior", "log_sigma_sq = "),
        (ByLayer(0.5), Decoder(), "", ""),
        (Encoder(lambda values: values + torch.randn_like(values)), Decoder(), "encoder", "randn_like is random"),
    ],
)
def test_the_graphs_say_it_with_its_line(encoder: nn.Module, decoder: nn.Module, place: str, words: str) -> None:
    """A sigmoid at the end, whatever its numbers; a log variance by name, unless it is halved; what no graph can be."""
    found = try_out(VAE(encoder, decoder, LATENTS).eval(), SHAPE)
    assert list(found) == ([place] if place else [])
    assert words in found.get(place, "")


@pytest.mark.parametrize("preset", LOOSE)
def test_networks_that_are_right_are_not_spoken_of(preset: str) -> None:
    """The presets; neither the VAE nor any generator is touched."""
    config = PRESETS[preset].replace(hidden=LOOSE[preset], latent_dim=LATENTS)
    vae = networks.build(config, SHAPE).train()
    state, before = torch.random.get_rng_state(), copy.deepcopy(vae.state_dict())
    assert pitfalls.try_out(vae, config, torch.randint(0, 256, (8, *SHAPE)).byte(), try_out) == {}
    assert vae.training
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    torch.randint(0, 256, (8, *SHAPE))
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    torch.randint(0, 256, (8, *SHAPE))
    torch.randint(0, 256, (8, *SHAPE))
    assert torch.equal(after, torch.random.get_rng_state())


MODULE = """
import torch
from torch import nn
from vae_train import mlp

class Noisy(mlp.Encoder):
    def forward(self, x):
        mu, logsigma = super().forward(x)
        return mu + torch.randn_like(mu), logsigma

class Masked(mlp.Decoder):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.mask = torch.rand(64)
    def forward(self, z):
        return torch.sigmoid(super().forward(z) * self.mask.view(1, 8, 8))

def noisy(image_shape, latent_dim, out):
    return Noisy(image_shape, (8,), latent_dim, "relu"), mlp.Decoder(image_shape, (8,), latent_dim, "relu", out)

def masked(image_shape, latent_dim, out):
    return mlp.Encoder(image_shape, (8,), latent_dim, "relu"), Masked(image_shape, (8,), latent_dim, "relu", out)
"""


def test_a_training_says_it_and_goes_on(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings come before the first epoch, stand in the report, and are repeated by the export; without its check
    those by numbers alone stay.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("tried_out.py").write_text(MODULE)
    words = ("--dataset", "digits", "--device", "cpu", "--epochs", 1, "--batch-size", 512)
    noisy = command(main, *words, "--model", "tried_out:noisy", "--out", "noisy")
    assert noisy.code == 0, noisy.err
    (line,) = (line for line in noisy.err.splitlines() if "warning: vae-export would refuse the encoder" in line)
    said = line.removeprefix("vae-train: warning: ")
    assert said.startswith("vae-export would refuse the encoder: tried_out.py:9 ")
    assert html.escape(said) in Path("noisy/report.html").read_text()
    refused = command(vae_export, "noisy", "--model", "tried_out:noisy")
    assert refused.code == 3
    assert f"vae-export: note: its training began with the warning: {said}\n" in refused.err
    monkeypatch.setattr(report, "draw", lambda *given: None)  # that of the first has been looked at
    masked = command(main, *words, "--model", "tried_out:masked", "--out", "masked", "--no-export-check")
    assert masked.code == 0, masked.err
    assert "register_buffer" in masked.err
    assert "vae-export" not in masked.err
    quiet = command(main, *words, "--model", "tried_out:noisy", "--out", "quiet", "--no-export-check")
    assert (quiet.code, "vae-export" in quiet.err) == (0, False)
