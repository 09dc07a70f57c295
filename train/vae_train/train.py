"""One training run from data to a run folder, and the evaluation of a finished one."""

import hashlib
import math
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from vae_runtime.errors import ArgumentError, EnvironmentUnfit
from vae_train import checkpoint, data, evaluate, loop, networks, report
from vae_train.config import Config


def train(config: Config, out: Path, data_root: Path, download: bool, device: str, command: str) -> None:
    """Fit the VAE of `config` and write the run folder `out`."""
    where = choose_device(device)
    images = data.load(config.dataset, data_root, download)
    channels, height, width = images.train.shape[1:]
    checkpoint.start(out, config, (channels, height, width), command)
    torch.manual_seed(config.seed)
    vae = networks.build(config, (channels, height, width), images.train.float().mean(dim=0) / 255)
    vae = vae.to(where)
    bits = data.fixed_test_draw(images)
    on_device = data.Images(images.train.to(where), images.test, images.test_labels, images.names)
    click.echo(f"training on {where}, {torch.get_num_threads()} threads, into {out}", err=True)

    def on_epoch(epoch: loop.Epoch) -> None:
        if not math.isfinite(epoch.train_elbo + epoch.test_elbo):
            raise ArgumentError("training diverged", f"epoch {epoch.epoch}", "choose a lower --lr")
        checkpoint.append_metrics(out, epoch)
        click.echo(
            f"epoch {epoch.epoch:3d}  train ELBO {epoch.train_elbo:8.2f}  test ELBO {epoch.test_elbo:8.2f} = "
            f"{epoch.test_reconstruction:.2f} - {epoch.test_kl:.2f} nats  {epoch.seconds:.1f} s  "
            f"{epoch.images_per_second:,.0f} images/s"
        )

    loop.fit(vae, on_device, bits.to(where), config, on_epoch)
    checkpoint.save_weights(out, vae)
    checkpoint.save_probe(out, images.test[:64])
    test = evaluate.terms(vae, bits.to(where))
    evaluation = {**protocol(config.dataset, bits), **evaluate.summary(test)}
    checkpoint.save_evaluation(out, evaluation)
    elbo = evaluation["figures"]["elbo"]
    click.echo(f"test ELBO {elbo['mean']:.2f} +- {elbo['standard_error']:.2f} nats ({evaluation['binarisation']})")
    click.echo("drawing the pictures; t-SNE takes a minute", err=True)
    report.draw(out, vae, bits, images.test_labels, images.names)
    click.echo(f"{out}: weights, metrics and pictures")


def evaluate_run(folder: Path, num_samples: int, data_root: Path, download: bool, device: str) -> None:
    """Print the ELBO and the importance-weighted bound of a run on its test images, and keep them in the run."""
    where = choose_device(device)
    run = checkpoint.load(folder)
    images = data.load(run.config.dataset, data_root, download)
    bits = data.fixed_test_draw(images).to(where)
    bound = evaluate.figure(evaluate.log_likelihood(run.vae.to(where), bits, num_samples))
    figures = {**run.evaluation["figures"], f"log_likelihood_{num_samples}": {"num_samples": num_samples, **bound}}
    checkpoint.save_evaluation(folder, {**run.evaluation, "figures": figures})
    elbo = figures["elbo"]
    click.echo(f"{run.evaluation['dataset']} test, {run.evaluation['binarisation']}, N(0, I) prior, nats per image")
    click.echo(f"ELBO              {elbo['mean']:8.2f} +- {elbo['standard_error']:.2f}")
    click.echo(f"log p(x), K = {num_samples:<4d}{bound['mean']:8.2f} +- {bound['standard_error']:.2f}")


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
