"""The command `vae-train`: fit a VAE, and evaluate a finished run."""

import importlib.util
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vae_runtime.command import as_typed, run
from vae_runtime.errors import ArgumentError, EnvironmentUnfit
from vae_train.config import DATASETS, PRESETS

_POSITIVE = click.IntRange(min=1)
_data_options = (
    click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        envvar="VAE_EDGE_DATA",
        default=Path("data"),
        show_default=True,
        show_envvar=True,
        help="Folder of the image sets, in torchvision's layout.",
    ),
    click.option("--no-download", is_flag=True, help="Never use the network, even where data is missing."),
)


def data_options(command: Any) -> Any:
    """The options that say where the data is."""
    for option in reversed(_data_options):
        command = option(command)
    return command


def _device_option(command: Any) -> Any:
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute.",
    )(command)


@click.group(invoke_without_command=True)
@click.option("--dataset", type=click.Choice(DATASETS), default="mnist", show_default=True, help="Images to train on.")
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), default="tutorial", show_default=True, help="Networks and settings."
)
@click.option("--epochs", type=_POSITIVE, help="Passes over the training images.")
@click.option("--batch-size", type=_POSITIVE, help="Images per step.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate of the one-cycle schedule.")
@click.option("--latent-dim", type=_POSITIVE, help="Dimensions of z.")
@click.option("--hidden", metavar="N[,N...]", help="Widths of the encoder's hidden layers; the decoder mirrors them.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of weights, order, pixels and noise.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/DATASET-PRESET]")
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was stopped, exactly."
)
@_device_option
@data_options
@click.version_option(package_name="vae-edge")
@click.pass_context
def cli(
    context: click.Context,
    /,
    dataset: str,
    preset: str,
    hidden: str | None,
    out: Path | None,
    resume: Path | None,
    device: str,
    data_root: Path,
    no_download: bool,
    **settings: Any,
) -> None:
    """Train a variational autoencoder and write a run folder.

    Settings that are not given come from the preset. A run folder that exists is never overwritten.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"options go after '{context.invoked_subcommand}'")
        return
    if resume is not None:
        named = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if unfit := sorted(named - {"resume", "device", "data_root", "no_download"}):
            raise click.UsageError(f"a run keeps its settings: --resume goes without --{unfit[0].replace('_', '-')}")
        require_extra()
        from vae_train.train import resume as go_on

        go_on(resume, data_root, download=not no_download, device=device)
        return
    config = PRESETS[preset].replace(dataset=dataset, hidden=_widths(hidden), **settings)
    out = out or Path("runs") / f"{dataset}-{preset}"
    require_extra()
    from vae_train.train import train

    train(config, out, data_root, download=not no_download, device=device, command=as_typed("vae-train"))


@cli.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--samples", "-K", type=_POSITIVE, default=500, show_default=True, help="Importance samples per image.")
@_device_option
@data_options
def evaluate(run_folder: Path, samples: int, device: str, data_root: Path, no_download: bool) -> None:
    """Bound log p(x) of the test images with importance samples, and add the figure to the run."""
    require_extra()
    from vae_train.train import evaluate_run

    evaluate_run(run_folder, samples, data_root, download=not no_download, device=device)


def require_extra() -> None:
    """Raise EnvironmentUnfit unless the packages of the train extra can be found."""
    for package in ("torch", "torchvision", "safetensors", "tqdm", "sklearn", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentUnfit(
                "training needs a package that is not installed", package, "pip install 'vae-edge[train]'"
            )


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError("hidden widths not understood", text, "give integers, such as 512,512") from None


def main() -> None:
    """Entry point of `vae-train`."""
    run(cli, "vae-train")
