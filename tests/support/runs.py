"""Image sets and runs made for tests; needs what training needs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import vae_train
from vae_runtime.observation import Shape
from vae_train import loop, networks, pixels, report, train
from vae_train.config import PRESETS, Place
from vae_train.vae import VAE

TINY = PRESETS["tutorial"].replace(hidden=(32,), latent_dim=4, epochs=2)  # the settings of tiny_run
NOISE = 0.02  # on weights; with more of it few draws of z carry all weight
OF_PIXELS = ("bernoulli", "gaussian", "discretised-logistic")  # the likelihoods of images; all: test_likelihoods.py
SHAPES = {
    "tutorial": (1, 28, 28),
    "deep": (1, 8, 8),
    "gated": (1, 8, 8),
    "resnet": (1, 12, 8),
    "resnet-colour": (3, 16, 16),
}


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array in the IDX format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def write_digits(root: Path) -> None:
    """scikit-learn's 1,797 digits at 28x28, in torchvision's MNIST layout: 1,500 to train on, 297 to test on."""
    digits = load_digits()
    levels = (digits.images / 16 * 255).astype(np.uint8)  # [1797, 8, 8]
    images = np.stack([np.asarray(Image.fromarray(x).resize((28, 28), Image.Resampling.BICUBIC)) for x in levels])
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        write_idx(raw / f"{name}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{name}-labels-idx1-ubyte", digits.target[part].astype(np.uint8))


def train_tiny(digits: Path, out: Path) -> None:
    """The tutorial's networks made small, two epochs on the digits: the run folder `out`."""
    train.train(TINY, out, Place(digits, download=False), command="vae-train --epochs 2")


@contextmanager
def without_report() -> Iterator[None]:
    """Trainings end with weights and figures alone: the pictures of a report take seconds, and follow from these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", lambda *given: None)
        yield


def smooth_images(n: int, shape: Shape) -> torch.Tensor:
    """Seeded images of soft spots, or such series, uint8 [n, *shape], black and white among their levels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(n, shape[0], *[3] * len(shape[1:]), generator=generator)
    mode = "bilinear" if len(shape) == 3 else "linear"
    x = torch.nn.functional.interpolate(coarse, shape[1:], mode=mode, align_corners=True)
    return (128 + 120 * x).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def make_vae(preset: str, likelihood: str, shape: Shape | None = None, **settings: Any) -> tuple[VAE, torch.Tensor]:
    """A VAE with noise on all weights in place of a training, and 64 images or windows, uint8 [64, *shape]."""
    config = PRESETS[preset].replace(likelihood=likelihood, **settings)
    shape = shape or SHAPES[preset]
    levels = smooth_images(64, shape)
    torch.manual_seed(0)
    vae = networks.build(config, shape)
    networks.start_at_constant(vae, *pixels.moments(levels))
    for weight in vae.parameters():
        weight.add_(NOISE * torch.randn_like(weight))
    return vae.eval(), levels


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, *given: Any, **settings: Any) -> vae_train.Interrupted:
    """Stop a training at a step, as Ctrl-C or a notebook's button does."""
    with monkeypatch.context() as patch:
        step, calls = loop.step, iter(range(1, 10**6))

        def stop(*given: Any) -> Any:
            if next(calls) == at:
                signal.raise_signal(signal.SIGINT)
            return step(*given)

        patch.setattr(loop, "step", stop)
        with pytest.raises(KeyboardInterrupt) as caught:
            vae_train.fit(*given, **settings)
    assert isinstance(caught.value, vae_train.Interrupted)
    return caught.value
