"""The training loop: epochs of steps down the negative bound, over observations in memory or read as they come."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from vae_runtime.errors import ArgumentError
from vae_train import augment, distributed, objectives, own_networks, pixels
from vae_train.listener import bar_hidden
from vae_train.state import TrainingState
from vae_train.streamed import Batches, Items, Streamed
from vae_train.vae import Pass

LOOK_EVERY = 50  # steps between looks at the running ELBO and at trouble; each look waits for the device
MOST_SKIPPED = 20  # steps in a row without a finite gradient, after which a training has diverged


def fit(
    training: TrainingState,
    levels: Tensor | Streamed,
    end_epoch: Callable[[], None],
    after_step: Callable[[], None] = lambda: None,
    noun: str = "image",
    quiet: bool = False,
) -> None:
    """Train to the end, from wherever `training` is.

    levels: the stored observations [n, *shape], on the VAE's device, or where they are read as they are needed what
    gives them; `noun` is what one is called.
    `end_epoch` measures and moves `training` on after an epoch that is `measured`; `after_step` may raise to stop.
    Raises ArgumentError where the training diverges.
    """
    config, progress = training.config, training.progress
    done = (progress.epoch - 1) * training.num_observations + progress.step * config.optimiser.batch_size
    total = training.most_epochs * training.num_observations
    with tqdm(
        total=total, initial=done, unit=f" {noun}s", unit_scale=True, disable=bar_hidden(not quiet), leave=False,
        dynamic_ncols=True, bar_format="{desc} |{bar}| {rate_noinv_fmt}, {remaining} left{postfix}",
    ) as bar:  # fmt: skip
        while not training.over:
            _epoch(training, levels, after_step, bar)
            _check(training)
            if not training.measured:
                training.end_epoch(None)
                continue
            bar.clear()  # what it prints stands on a line of its own
            end_epoch()


def _epoch(
    training: TrainingState, levels: Tensor | Streamed, after_step: Callable[[], None], bar: "tqdm[None]"
) -> None:
    progress = training.progress
    bar.set_description_str(f"epoch {progress.epoch}/{training.most_epochs}")
    start = time.perf_counter() - progress.seconds
    for some in _batches(training, levels):
        x, out = step(training, some)
        progress.seconds = time.perf_counter() - start
        bar.update(len(some))
        if progress.step % LOOK_EVERY == 1:
            _look(training, x, out, bar)
        after_step()


def _batches(training: TrainingState, levels: Tensor | Streamed) -> Iterator[Tensor]:
    """The stored observations of each batch of this epoch that is still to come, in random order."""
    if isinstance(levels, Batches):
        adam = training.config.optimiser
        yield from levels.mixed(adam.batch_size, (adam.seed, training.progress.epoch))
        return
    assert isinstance(levels, Tensor | Items)
    for rows in training.batches():
        yield levels.index_select(0, rows)


def step(training: TrainingState, levels: Tensor) -> tuple[Tensor, Pass]:
    """One step on a batch of stored observations [batch, *shape]: what the likelihood saw, and the pass."""
    x, eps = batch(training, levels)
    narrow = training.config.optimiser.precision == "bfloat16"
    share = len(levels) / distributed.size()  # the processes' gradients are averaged afterwards
    with _blamed(training.config.network.model):
        with torch.autocast(training.device.type, torch.bfloat16, enabled=narrow):
            out = _forward(training, x, eps)
        objectives.backward(training.objective(), training.vae, x, out, share)
    if distributed.size() > 1 and any(w.grad is None for w in training.weights if w.requires_grad):
        todo = "leave them out, or train with one process"  # DistributedDataParallel waits for them
        raise ArgumentError("weights without a gradient", training.config.network.model, todo)
    training.step(out)
    return x, out


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it is a failed allocation of PyTorch's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def _blamed(model: str | None) -> Iterator[None]:
    """Turn what PyTorch raises of a person's own networks into ArgumentError, but for a want of memory or of peers."""
    try:
        yield
    except RuntimeError as error:
        if model is None or out_of_memory(error) or distributed.lost(error):
            raise
        raise own_networks.failed(error, model) from None


def _forward(training: TrainingState, x: Tensor, eps: Tensor) -> Pass:
    """The pass; a process that has no image of a small batch sends a blank one through, and keeps none of it.

    Not every layer takes no images, and its weights need a gradient, of zero, for the other processes.
    """
    if len(x):
        try:
            return training.model(x, eps)  # type: ignore[no-any-return]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # but not PyTorch's own
            if training.config.network.model is None:
                raise
            if len(x) > 1:
                raise own_networks.failed(error, training.config.network.model) from None
            todo = "if it needs several images, as BatchNorm does, choose another --batch-size: this batch has one"
            raise own_networks.failed(error, training.config.network.model, todo) from None
    blank, noise = x.new_zeros(1, *x.shape[1:]), eps.new_zeros(len(eps), 1, *eps.shape[2:])
    out = training.model(blank, noise)
    return Pass(out.mu[:0], out.logsigma[:0], out.eps[:, :0], out.z[:, :0], out.parameters[:, :0])


def batch(training: TrainingState, levels: Tensor) -> tuple[Tensor, Tensor]:
    """What a likelihood sees of stored observations [batch, *shape], and noise eps [K, batch, *latent_shape] for them.

    Each process draws all of it, so that pixels and noise do not depend on their number, and keeps its own part.
    """
    vae, generator, ways = training.vae, training.generator, training.config.data.augment
    shape = (len(levels), training.config.objective.samples, *vae.latent_shape)
    levels = augment.augmented(levels, ways, generator) if ways else levels
    x = pixels.binarise(levels, generator) if vae.likelihood.binary else pixels.unit(levels)
    eps = torch.randn(shape, generator=generator, device=levels.device)
    return distributed.part(x), distributed.part(eps).transpose(0, 1)


@torch.no_grad()
def _look(training: TrainingState, x: Tensor, out: Pass, bar: "tqdm[None]") -> None:
    """Show the ELBO of this batch."""
    _check(training)
    if bar.disable or not len(x):
        return
    reconstruction, kl = (term.mean().item() for term in training.vae.terms_of(x, out))
    if math.isfinite(reconstruction - kl):
        digits = 1 if abs(reconstruction) < 1000 else 0  # so that it fits 80 columns
        terms = (f"{value:.{digits}f}" for value in (reconstruction - kl, reconstruction, kl))
        bar.set_postfix_str("ELBO {} = {} - {}".format(*terms))


def _check(training: TrainingState) -> None:
    """Raise ArgumentError where no step has been possible for long, or in the whole of a short training."""
    most = min(MOST_SKIPPED, training.most_epochs * training.steps_per_epoch)
    if training.skipped_in_a_row >= most:
        which = f"{most} steps in a row without a finite gradient, epoch {training.progress.epoch}"
        raise ArgumentError("training diverged", which, "choose a lower --lr or --precision float32")
