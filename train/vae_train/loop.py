"""The training loop: Adam on the negative ELBO under a one-cycle schedule, over images held in memory."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vae_train import data, evaluate
from vae_train.training import Training

_SHOW_EVERY = 50  # steps between looks at the running ELBO; each look waits for the device


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured: nats per image, seconds, images per second.

    The training KL is log q(z|x) - log p(z) at the drawn z, averaged while the weights change; the test KL is exact.
    """

    epoch: int
    train_elbo: float
    train_reconstruction: float
    train_kl: float
    test_elbo: float
    test_reconstruction: float
    test_kl: float
    seconds: float
    images_per_second: float


def fit(
    training: Training,
    train: Tensor,
    test_bits: Tensor,
    on_epoch: Callable[[Epoch], None],
    after_step: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> None:
    """Train to the end of the last epoch, from wherever `training` is, and report every epoch.

    train, uint8 [n, C, H, W], and test_bits, the binary test images, are on the VAE's device. `after_step` may raise to
    stop.
    """
    vae, config, generator = training.vae, training.config, training.generator
    while (progress := training.progress).epoch <= config.epochs:
        label = f"epoch {progress.epoch}/{config.epochs}"
        bar = tqdm(training.batches(), label, unit="batch", disable=True if quiet else None, leave=False)
        start = time.perf_counter() - progress.seconds
        for rows in bar:
            x = data.binarise(train[rows], generator)  # [batch, C, H, W]
            eps = torch.randn(len(x), vae.latent_dim, generator=generator, device=x.device)
            terms = vae.terms(x, eps, stl=True)
            loss = -terms.elbo.mean()
            loss.backward()
            training.optimizer.step()
            training.schedule.step()
            training.optimizer.zero_grad(set_to_none=True)
            training.total += torch.stack([term.detach().sum() for term in terms])
            progress.step += 1
            progress.seconds = time.perf_counter() - start
            if progress.step % _SHOW_EVERY == 1 and not bar.disable:
                reconstruction, kl = (training.total / (progress.step * config.batch_size)).tolist()
                bar.set_postfix_str(f"ELBO {reconstruction - kl:.2f} = {reconstruction:.2f} - {kl:.2f} nats")
            after_step()
        epoch = _measure(training, test_bits)
        training.end_epoch(asdict(epoch))
        on_epoch(epoch)


def _measure(training: Training, test_bits: Tensor) -> Epoch:
    reconstruction, kl = (training.total / training.num_images).tolist()
    test = evaluate.terms(training.vae, test_bits)
    return Epoch(
        epoch=training.progress.epoch,
        train_elbo=reconstruction - kl,
        train_reconstruction=reconstruction,
        train_kl=kl,
        test_elbo=test.elbo.mean().item(),
        test_reconstruction=test.reconstruction.mean().item(),
        test_kl=test.kl.mean().item(),
        seconds=training.progress.seconds,
        images_per_second=training.num_images / training.progress.seconds,
    )
