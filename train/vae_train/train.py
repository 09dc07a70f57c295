"""One training run from data to a run folder, and the evaluation of a finished one."""

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from vae_runtime.errors import ArgumentError, EnvironmentUnfit, InputError, ResourceError
from vae_train import checkpoint, data, evaluate, loop, networks, report, signals
from vae_train.config import Config
from vae_train.training import Training

SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch


def train(config: Config, out: Path, data_root: Path, download: bool, device: str, command: str) -> None:
    """Fit the VAE of `config` and write the run folder `out`; it is removed again where no checkpoint was reached."""
    where = choose_device(device)
    checkpoint.check_new(out)
    images = data.load(config.dataset, data_root, download)
    shape = _shape(images)
    provenance = {"command": command, "device": str(where), "threads": torch.get_num_threads()}
    training = _prepare(config, images, where)
    with checkpoint.start(out, config, shape, provenance), checkpoint.locked(out):
        click.echo(f"training on {where}, {torch.get_num_threads()} threads, into {out}", err=True)
        _run(training, images, out, where)


def resume(out: Path, data_root: Path, download: bool, device: str) -> None:
    """Go on with the training of the run folder `out` from its newest checkpoint, as if it had never stopped.

    Raises ArgumentError where the run is finished or another training is at work in it.
    """
    where = choose_device(device)
    config, shape, _ = checkpoint.settings(out)
    with checkpoint.locked(out):
        if (out / checkpoint.EVALUATION).exists() and not (out / checkpoint.CHECKPOINTS).exists():
            raise ArgumentError("run is finished", out, "train anew with another --out")
        images = data.load(config.dataset, data_root, download)
        if shape != _shape(images):
            raise InputError("images are not the run's", data_root, "name the --data-root that it was trained on")
        training = _prepare(config, images, where)
        checkpoint.restore(out, training, lambda text: click.echo(f"vae-train: warning: {text}", err=True))
        checkpoint.write_metrics(out, training.progress.metrics)
        progress = training.progress
        click.echo(f"going on at epoch {progress.epoch}, step {progress.step}, on {where}, in {out}", err=True)
        _run(training, images, out, where)


def _shape(images: data.Images) -> networks.Shape:
    channels, height, width = images.train.shape[1:]
    return channels, height, width


def _prepare(config: Config, images: data.Images, where: torch.device) -> Training:
    torch.manual_seed(config.seed)
    with memory_errors():
        vae = networks.build(config, _shape(images), images.train.float().mean(dim=0) / 255).to(where)
        return Training(vae, config, len(images.train), where)


def _run(training: Training, images: data.Images, out: Path, where: torch.device) -> None:
    """Train to the end, with a checkpoint after each epoch, each minute and on SIGINT or SIGTERM; then measure."""
    vae, config = training.vae, training.config
    bits = data.fixed_test_draw(images)
    saved = time.monotonic()

    def on_epoch(epoch: loop.Epoch) -> None:
        if not math.isfinite(epoch.train_elbo + epoch.test_elbo):
            raise ArgumentError("training diverged", f"epoch {epoch.epoch}", "choose a lower --lr")
        checkpoint.save(out, training)
        checkpoint.write_metrics(out, training.progress.metrics)
        click.echo(
            f"epoch {epoch.epoch:3d}  train ELBO {epoch.train_elbo:8.2f}  test ELBO {epoch.test_elbo:8.2f} = "
            f"{epoch.test_reconstruction:.2f} - {epoch.test_kl:.2f} nats  {epoch.seconds:.1f} s  "
            f"{epoch.images_per_second:,.0f} images/s"
        )

    with signals.deferred() as received:

        def after_step() -> None:
            nonlocal saved
            if received or time.monotonic() - saved > SAVE_EVERY:
                checkpoint.save(out, training)
                saved = time.monotonic()
            if received:
                raise signals.Stopped(received[0], out)

        with memory_errors():
            loop.fit(training, images.train.to(where), bits.to(where), on_epoch, after_step)
    checkpoint.save_weights(out, vae)
    checkpoint.save_probe(out, images.test[:64])
    evaluation = {**protocol(config.dataset, bits), **evaluate.summary(evaluate.terms(vae, bits.to(where)))}
    checkpoint.save_evaluation(out, evaluation)
    click.echo(f"test ELBO {describe(evaluation['figures']['elbo'])} nats ({evaluation['binarisation']})")
    click.echo(f"{out}: weights and figures are saved; now the pictures, of which t-SNE takes a minute", err=True)
    report.draw(out, vae, bits, images.test_labels, images.names)
    checkpoint.remove_checkpoints(out)  # last, so that a run killed before its pictures goes on to them
    click.echo(f"{out}: weights, metrics and pictures")


def evaluate_run(folder: Path, num_samples: int, data_root: Path, download: bool, device: str) -> None:
    """Print the ELBO and the importance-weighted bound of a run on its test images, and keep them in the run.

    Raises InputError where the images under `data_root` are not those that the run was measured on.
    """
    where = choose_device(device)
    run = checkpoint.load(folder)
    images = data.load(run.config.dataset, data_root, download)
    bits = data.fixed_test_draw(images)
    measured_on = protocol(run.config.dataset, bits)
    if any(run.evaluation.get(name) != value for name, value in measured_on.items()):
        raise InputError("test images are not the run's", data_root, "name the --data-root that the run was trained on")
    vae, bits = run.vae.to(where), bits.to(where)
    with memory_errors():
        bound = evaluate.figure(evaluate.log_likelihood(vae, bits, num_samples))
    summary = evaluate.summary(evaluate.terms(vae, bits))
    bounds = {name: figure for name, figure in run.evaluation["figures"].items() if "num_samples" in figure}
    bounds[f"log_likelihood_{num_samples}"] = {"num_samples": num_samples, **bound}
    figures = {**summary["figures"], **bounds}
    checkpoint.save_evaluation(folder, {**measured_on, **summary, "figures": figures})
    click.echo(f"{measured_on['dataset']} test, {measured_on['binarisation']}, N(0, I) prior, nats per image")
    click.echo(f"ELBO                  {describe(figures['elbo'])}")
    click.echo(f"log p(x) >= (K = {num_samples})".ljust(22) + describe(bound))


def describe(figure: dict[str, float]) -> str:
    """Mean and standard error for people."""
    return f"{figure['mean']:.2f} +- {figure['standard_error']:.2f}"


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn PyTorch's failed allocations into ResourceError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            advice = "choose smaller --hidden, --batch-size or --samples"
            raise ResourceError("out of memory", "the networks or the batch", advice) from None
        raise


def protocol(dataset: str, bits: Tensor) -> dict[str, Any]:
    """What a figure in nats must name: dataset, split, binarisation, prior."""
    digest = hashlib.sha256(bits.cpu().numpy().tobytes()).hexdigest()
    return {
        "dataset": dataset,
        "split": "test",
        "images": len(bits),
        "binarisation": f"fixed draw, seed 777, sha256 {digest[:16]}",
        "prior": "standard-normal",
    }


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises EnvironmentUnfit where CUDA is asked for and absent."""
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise EnvironmentUnfit("no CUDA device", "--device cuda", "use --device cpu, or install a driver")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")
