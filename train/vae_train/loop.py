"""The training loop: Adam on the negative ELBO under a one-cycle schedule, over images held in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vae_train import data, evaluate
from vae_train.config import Config
from vae_train.vae import VAE

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
    vae: VAE,
    images: data.Images,
    test_bits: Tensor,
    config: Config,
    on_epoch: Callable[[Epoch], None],
    quiet: bool = False,
) -> None:
    """Train `vae` in place on `images.train` and report every epoch; `test_bits` are the binary test images.

    All tensors must be on the VAE's device. Pixels, order and noise come from one generator with `config.seed`.
    """
    train = images.train
    generator = torch.Generator(train.device).manual_seed(config.seed)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, fused=True)
    steps = -(-len(train) // config.batch_size)
    # a one-cycle schedule of 10 steps or fewer divides by zero; so short a run ends before its schedule
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=max(config.epochs * steps, 11), pct_start=0.1
    )
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        total = torch.zeros(2, device=train.device)  # reconstruction and KL so far, nats
        batches = torch.randperm(len(train), generator=generator, device=train.device).split(config.batch_size)
        bar = tqdm(
            batches, f"epoch {epoch}/{config.epochs}", unit="batch", disable=True if quiet else None, leave=False
        )
        seen = 0
        for step, rows in enumerate(bar):
            x = data.binarise(train[rows], generator)  # [batch, C, H, W]
            eps = torch.randn(len(x), vae.latent_dim, generator=generator, device=x.device)
            terms = vae.terms(x, eps, stl=True)
            loss = -terms.elbo.mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total += torch.stack([term.detach().sum() for term in terms])
            seen += len(x)
            if step % _SHOW_EVERY == 0 and not bar.disable:
                reconstruction, kl = (total / seen).tolist()
                bar.set_postfix_str(f"ELBO {reconstruction - kl:.2f} = {reconstruction:.2f} - {kl:.2f} nats")
        reconstruction, kl = (total / seen).tolist()
        seconds = time.perf_counter() - start
        test = evaluate.terms(vae, test_bits)
        on_epoch(
            Epoch(
                epoch=epoch,
                train_elbo=reconstruction - kl,
                train_reconstruction=reconstruction,
                train_kl=kl,
                test_elbo=test.elbo.mean().item(),
                test_reconstruction=test.reconstruction.mean().item(),
                test_kl=test.kl.mean().item(),
                seconds=seconds,
                images_per_second=len(train) / seconds,
            )
        )
