"""The training loop: Adam on the negative bound under a one-cycle schedule, over images held in memory."""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from vae_runtime.errors import ArgumentError
from vae_train import distributed, objectives, pixels
from vae_train.training import Training

if TYPE_CHECKING:
    from vae_train.vae import Pass

LOOK_EVERY = 50  # steps between looks at the running ELBO and at trouble; each look waits for the device
MOST_SKIPPED = 20  # steps in a row without a finite gradient, after which a training has diverged


def fit(
    training: Training,
    levels: Tensor,
    end_epoch: Callable[[], None],
    after_step: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> None:
    """Train to the end of the last epoch, from wherever `training` is.

    levels: the training images, uint8 [n, C, H, W], on the VAE's device. `end_epoch` measures and moves `training` on;
    `after_step` may raise to stop. Raises ArgumentError where the training diverges.
    """
    config, progress = training.config, training.progress
    done = (progress.epoch - 1) * training.num_images + progress.step * config.batch_size
    total = config.epochs * training.num_images
    with tqdm(total=total, initial=done, unit="images", unit_scale=True, disable=quiet or None, leave=False) as bar:
        while training.progress.epoch <= config.epochs:
            _epoch(training, levels, after_step, bar)
            end_epoch()


def _epoch(training: Training, levels: Tensor, after_step: Callable[[], None], bar: "tqdm[None]") -> None:
    config, progress = training.config, training.progress
    bar.set_description(f"epoch {progress.epoch}/{config.epochs}")
    start = time.perf_counter() - progress.seconds
    for rows in training.batches():
        x, eps = batch(training, levels[rows])
        with torch.autocast(training.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            out = training.model(x, eps)
        share = len(rows) / distributed.size()  # the processes' gradients are averaged afterwards
        objectives.backward(training.objective(), training.vae.likelihood, x, out, share)
        training.step()
        progress.seconds = time.perf_counter() - start
        bar.update(len(rows))
        if progress.step % LOOK_EVERY == 1:
            _look(training, x, out, bar)
        after_step()


def batch(training: Training, levels: Tensor) -> tuple[Tensor, Tensor]:
    """What a likelihood sees of images uint8 [batch, C, H, W], and noise eps [K, batch, latent_dim] for them.

    Each process draws all of it, so that pixels and noise do not depend on their number, and keeps its own part.
    """
    config, generator = training.config, training.generator
    shape = (len(levels), config.samples, config.latent_dim)
    x = pixels.binarise(levels, generator) if config.binarise else pixels.unit(levels)
    eps = torch.randn(shape, generator=generator, device=levels.device)
    return distributed.part(x), distributed.part(eps).transpose(0, 1)


@torch.no_grad()
def _look(training: Training, x: Tensor, out: "Pass", bar: "tqdm[None]") -> None:
    """Show the ELBO of this batch; raise ArgumentError where no step has been possible for long."""
    if training.skipped_in_a_row >= MOST_SKIPPED:
        which = f"{MOST_SKIPPED} steps in a row without a finite gradient, epoch {training.progress.epoch}"
        raise ArgumentError("training diverged", which, "choose a lower --lr or --precision float32")
    if bar.disable or not len(x):
        return
    reconstruction = training.vae.likelihood.log_prob(x, out.parameters).mean().item()
    kl = training.vae.kl_divergence(out.mu, out.logsigma).mean().item()
    if math.isfinite(reconstruction - kl):
        bar.set_postfix_str(f"ELBO {reconstruction - kl:.1f} = {reconstruction:.1f} - {kl:.1f} nats")
