"""Training on a GPU: the same code, held against the CPU. Skipped where there is none."""

from pathlib import Path

import pytest
import torch

import vae_train
from vae_train import bounds, networks, objectives, pixels, provenance, run_folder, train
from vae_train.config import PRESETS, Config, Place

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIGS = {
    "mlp": PRESETS["tutorial"].replace(dataset="digits", epochs=15, batch_size=32),
    "resnet in bfloat16": PRESETS["resnet"].replace(dataset="digits", epochs=15, batch_size=32, precision="bfloat16"),
    "importance-weighted": PRESETS["gated"].replace(dataset="digits", epochs=15, batch_size=32, samples=4),
    "gaussian": PRESETS["tutorial"].replace(
        dataset="digits", epochs=15, batch_size=32, likelihood="gaussian", free_bits=0.1
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_training_reaches_what_the_cpu_reaches(config: Config, tmp_path: Path) -> None:
    """Other noise, the same law: the test ELBOs differ by little; untrained networks are 2 nats below and more."""
    elbos = []
    for device in ("cpu", "cuda"):
        train.train(config, tmp_path / device, Place(tmp_path, download=False, device=device), "vae-train")
        elbos.append(run_folder.load(tmp_path / device).evaluation["figures"]["elbo"]["mean"])
    assert elbos[0] == pytest.approx(elbos[1], abs=0.8)


def test_gradients_are_those_of_the_cpu() -> None:
    """One pass of the same images and noise gives the same gradients to float32's rounding."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"], (1, 28, 28))
    x, eps = torch.bernoulli(torch.rand(16, 1, 28, 28)), torch.randn(1, 16, 20)
    gradients = []
    for device in ("cpu", "cuda"):
        vae.to(device).zero_grad()
        x, eps = x.to(device), eps.to(device)
        objectives.backward(objectives.Objective(), vae, x, vae(x, eps), len(x))
        gradients.append([weight.grad.cpu() for weight in vae.parameters() if weight.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_binary_pixels_are_drawn_there() -> None:
    """Level 0 is always 0, 255 always 1, and the mean is the level's."""
    grey = torch.arange(256, dtype=torch.uint8, device="cuda").repeat(20_000, 1).view(-1, 1, 16, 16)
    bits = pixels.binarise(grey, torch.Generator("cuda").manual_seed(0))
    mean = bits.double().mean(dim=0).flatten().cpu()
    torch.testing.assert_close(mean, torch.arange(256).double() / 255, rtol=0, atol=0.02)
    assert mean[0] == 0
    assert mean[255] == 1


def test_figures_are_those_of_the_cpu() -> None:
    """The ELBO of the same noise-free terms: the KL and mu of the same images agree."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["resnet"], (1, 28, 28))
    levels = torch.randint(0, 2, (64, 1, 28, 28), dtype=torch.uint8) * 255
    here = bounds.measure(vae, levels)
    there = bounds.measure(vae.cuda(), levels.cuda())
    torch.testing.assert_close(here.mu, there.mu.cpu(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(here.terms.kl, there.terms.kl.cpu(), rtol=1e-3, atol=1e-3)


def test_the_gpu_is_named() -> None:
    """A run says which card made it."""
    assert provenance.of("", torch.device("cuda"))["gpu"] == torch.cuda.get_device_name()


@pytest.mark.filterwarnings("ignore::vae_train.TrainingWarning")
def test_fit_leaves_the_random_numbers_of_a_gpu_as_they_were() -> None:
    """Those after a training are the ones that would have come without it."""
    torch.cuda.init()
    state, settings = torch.cuda.get_rng_state(), {"hidden": 8, "latent_dim": 2, "epochs": 1, "device": "cuda"}
    vae_train.fit(torch.rand(100, 8, 8), progress=False, **settings)
    assert torch.equal(torch.cuda.get_rng_state(), state)
