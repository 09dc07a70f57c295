"""The command `vae-train`: fit a VAE, and look at finished runs."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vae_runtime import extras
from vae_runtime.command import as_typed, run
from vae_runtime.errors import ArgumentError, printable
from vae_train.config import (
    AUGMENTS,
    AUTO,
    DATASETS,
    FULL_SCALE,
    GRADIENTS,
    LIKELIHOODS,
    MISSING,
    PART_OF,
    PRECISIONS,
    PRESETS,
    PRIORS,
    SIGMAS,
    SPLITS,
    Place,
)
from vae_train.sections import Sections, section

if TYPE_CHECKING:
    from vae_train.listener import Listener
    from vae_train.recorders import Recorder

# How often a thread looks for work before it sleeps. libgomp's own 300,000 keep a core busy that another program could
# use; docs/benchmarks.md has what that costs.
SPIN = 1000
_POSITIVE = click.IntRange(min=1)
_WEIGHT = click.FloatRange(min=0)
_PATH = click.Path(path_type=Path)


def _setting(name: str, *, help: str, **attributes: Any) -> Callable[[Any], Any]:
    """An option whose default is the preset's; the help has it where all presets have the same."""
    setting = name[2:].replace("-", "_")
    values = {getattr(getattr(preset, PART_OF[setting]), setting) for preset in PRESETS.values()}
    default = values.pop() if len(values) == 1 else "of the preset"
    return click.option(name, help=help if default is None else f"{help}  [default: {default}]", **attributes)


def _sides(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Height and width, of a square's side too: 16x24, or 32. Raises click.BadParameter for anything else."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if not (len(sides) <= 2 and all(side.isdecimal() and len(side) < 8 and int(side) for side in sides)):
        raise click.BadParameter(f"{text!r} is no size; give a side such as 32, or height x width such as 16x24")
    return int(sides[0]), int(sides[-1])


def _names(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


_machine = section(
    "Machine",
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute.",
    ),
    click.option("--threads", type=_POSITIVE, help="CPU threads.  [default: VAE_EDGE_THREADS, or the cores there are]"),
    click.option(
        "--data-root",
        type=_PATH,
        envvar="VAE_EDGE_DATA",
        default=Path("data"),
        show_default=True,
        show_envvar=True,
        help="Folder of the named image sets, in torchvision's layout.",
    ),
    click.option("--no-download", is_flag=True, help="Never use the network, even where data is missing."),
)
_model = click.option("--model", metavar="MODULE:FUNCTION", help="Trust this module to make the run's own networks.")
_data = click.option("--dataset", type=_PATH, help="Where the run's own data is now.  [default: where it was]")


@click.group(cls=Sections, invoke_without_command=True)
@section(
    "The common case",
    click.option(
        "--dataset",
        default="mnist",
        show_default=True,
        metavar="NAME|PATH",
        help=f"{', '.join(DATASETS)}, or your own: a folder of images or tables, a table, an array of images or rows.",
    ),
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="Networks and settings.  [default: tutorial; colour images: resnet-colour, rows: vector]",
    ),
    _setting("--test", metavar="PATH", help="Test on this, and train on all of --dataset.  [default: a part of it]"),
    _setting(
        "--epochs",
        type=_POSITIVE,
        help="Passes over what is trained on.  [default: until the test ELBO has stopped rising]",
    ),
    _setting("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of weights, order, pixels and noise."),
    click.option("--out", type=_PATH, help="Run folder.  [default: runs/DATASET-PRESET]"),
    click.option("--resume", type=_PATH, metavar="RUN", help="Go on with a run that was stopped, exactly."),
    click.option("--tensorboard", is_flag=True, help="Write scalars and pictures for TensorBoard into the run folder."),
    click.option("--wandb", is_flag=True, help="Record the training in Weights & Biases; offline without a login."),
    click.option("--mlflow", is_flag=True, help="Record the training in MLflow, where MLFLOW_TRACKING_URI says."),
)
@section(
    "Images",
    click.option(
        "--image-size",
        metavar="N|HxW",
        callback=_sides,
        help="Side, or height x width, to which a folder's images are fitted.  [default: most files' own]",
    ),
    click.option(
        "--channels",
        type=click.Choice(["1", "3"]),
        callback=lambda context, parameter, value: value and int(value),
        help="Grey or RGB, of a folder.  [default: the files' own]",
    ),
    click.option(
        "--levels",
        type=click.IntRange(1, FULL_SCALE),
        help="The level of 16-bit files that is 1.0, such as 4095.  [default: told from the files]",
    ),
    click.option(
        "--augment",
        metavar="WAY[,WAY...]",
        callback=_names,
        help=f"Change what is trained on anew in each batch: {', '.join(AUGMENTS)}.",
    ),
)
@section(
    "Rows of numbers",
    _setting(
        "--columns", metavar="A,B,...", callback=_names, help="Those of a table to train on.  [default: all of numbers]"
    ),
    _setting(
        "--encode", metavar="A,B,...", callback=_names, help="Columns to make others of 0 and 1 of, one for each value."
    ),
    _setting("--label", metavar="COLUMN", help="A table's column of classes, which is not trained on."),
    _setting(
        "--normal",
        metavar="LABEL",
        help="Train on half of the rows with this label, of series on nine tenths, and on no others.",
    ),
    _setting("--missing", type=click.Choice(MISSING), help="What to do with rows that lack a value."),
    click.option(
        "--split",
        "held_out",
        type=click.Choice(SPLITS),
        help="Keep for testing a tenth by its hash, the last one, or of windows blocks.  [default: hash; blocks]",
    ),
)
@section(
    "Series",
    _setting("--window", type=_POSITIVE, metavar="T", help="Observe windows of T rows in order of time."),
    _setting("--stride", type=_POSITIVE, metavar="S", help="Begin one at every S-th row.  [default: told in a note]"),
)
@section(
    "Networks",
    _setting(
        "--likelihood",
        type=click.Choice((*LIKELIHOODS, AUTO)),
        metavar="NAME",
        help=f"Distribution of the values, p(x|z): {', '.join(LIKELIHOODS)}; auto: by what the columns of rows hold.",
    ),
    _setting(
        "--sigma",
        type=click.Choice(SIGMAS),
        help="What has a learned sigma of its own.  [default: one for images, each column of others]",
    ),
    _setting("--latent-dim", type=_POSITIVE, help="Dimensions of z."),
    _setting("--prior", type=click.Choice(PRIORS), help="Distribution p(z); a flow is learned with the networks."),
    _setting("--hidden", metavar="N[,N...]", help="The encoder's layer widths, or a resnet's channels."),
    _setting("--blocks", type=_POSITIVE, help="Residual blocks at each size of the image."),
    _setting("--dense", type=_POSITIVE, help="Width of a resnet's fully connected layer."),
    click.option("--model", metavar="MODULE:FUNCTION", help="Your own networks, as in examples/own_networks.py."),
    click.option("--no-export-check", is_flag=True, help="Do not try the export of your own networks at the start."),
)
@section(
    "Objective",
    _setting(
        "--samples",
        type=_POSITIVE,
        help="Draws of z for each x: 1 is the ELBO, more the importance-weighted bound.",
    ),
    _setting("--gradient", type=click.Choice(GRADIENTS), help="path (STL, or DReG for more samples) or total."),
    _setting("--beta", type=_WEIGHT, help="Weight of the KL."),
    _setting("--warm-up", type=_WEIGHT, help="Epochs in which that weight grows from 0."),
    _setting("--free-bits", type=_WEIGHT, help="Nats of KL that each latent dimension has for nothing."),
    _setting("--batch-size", type=_POSITIVE, help="Observations per step."),
    _setting("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate of the one-cycle schedule."),
    _setting(
        "--precision", type=click.Choice(PRECISIONS), help="Of the products; auto: what the processor is fast in."
    ),
)
@_machine
@click.version_option(package_name="vae-edge")
@click.pass_context
def cli(
    context: click.Context,
    /,
    dataset: str,
    preset: str | None,
    hidden: str | None,
    test: str | None,
    out: Path | None,
    resume: Path | None,
    tensorboard: bool,
    wandb: bool,
    mlflow: bool,
    no_export_check: bool,
    device: str,
    threads: int | None,
    data_root: Path,
    no_download: bool,
    **settings: Any,
) -> None:
    """Train a variational autoencoder and write a run folder.

    Settings that are not given come from the preset. A run folder that exists is never overwritten.

    \b
    Examples:
      vae-train --dataset digits --epochs 50
      vae-train --dataset photos --image-size 64 --out runs/photos
      vae-train --dataset readings.csv --preset series --window 64
    """
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if context.invoked_subcommand is not None:
        if given:
            raise click.UsageError(f"options go after '{context.invoked_subcommand}'")
        return
    require_extra()
    recorders = _recorders(tensorboard=tensorboard, wandb=wandb, mlflow=mlflow)
    from vae_train import api, asked, train
    from vae_train.settings import checked

    listener, place = _reader(), Place(data_root, not no_download, device, threads, settings["model"])
    if resume is not None:
        where = {"dataset", "device", "threads", "data_root", "no_download", "model", "tensorboard", "wandb", "mlflow"}
        if unfit := sorted(given - where - {"resume"}):
            options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
            raise click.UsageError(f"a run keeps its settings: --resume goes without {options[unfit[0]]}")
        train.resume(resume, replace(place, dataset=Path(dataset) if "dataset" in given else None), recorders, listener)
        return
    if settings["window"] and settings["held_out"] == "hash":
        raise click.UsageError("--split hash is for rows: windows overlap, and those of some blocks of rows are kept")
    known = {**checked({**settings, "hidden": _widths(hidden)}), "test": test}
    config = asked.configured(dataset, preset, known, say=listener.note)
    out = out or Path("runs") / f"{Path(dataset).absolute().stem}-{config.preset}"
    export = api.exports() if config.network.model and not no_export_check else None
    train.train(config, out, place, as_typed("vae-train"), recorders, export, listener)


@cli.command(short_help="Bound log p(x) of the test data, and add it to the run.")
@click.argument("run_folder", metavar="RUN", type=_PATH)
@click.option("--samples", "-K", type=_POSITIVE, default=500, show_default=True, help="Draws of z for each.")
@click.option("--best", is_flag=True, help="The weights of the best epoch instead of the last.")
@_model
@_data
@_machine
def evaluate(run_folder: Path, samples: int, best: bool, **places: Any) -> None:
    """Bound log p(x) of the test data with importance samples, and add the figure to the run."""
    require_extra()
    from vae_train.api import evaluate

    click.echo(evaluate(run_folder, samples, best=best, **_at(**places)))


@cli.command(short_help="Write the pictures and report.html of a run again.")
@click.argument("run_folder", metavar="RUN", type=_PATH)
@_model
@_data
@_machine
def report(run_folder: Path, **places: Any) -> None:
    """Write the pictures and report.html of a finished run again, with the figures that it has now."""
    require_extra()
    from vae_train.api import draw_report

    click.echo(draw_report(run_folder, **_at(**places)))


@cli.command(short_help="Compare two runs on the same test data.")
@click.argument("a", metavar="RUN", type=_PATH)
@click.argument("b", metavar="RUN", type=_PATH)
@click.option("--samples", "-K", type=_POSITIVE, default=1, show_default=True, help="Compare bounds of log p(x) too.")
@click.option(
    "--model",
    "models",
    metavar="MODULE:FUNCTION",
    multiple=True,
    help="Trust this module to make a run's own networks; may be given twice.",
)
@_data
@_machine
def compare(a: Path, b: Path, samples: int, models: tuple[str, ...], **places: Any) -> None:
    """Compare two runs on the same test data: their figures, and the differences one by one."""
    require_extra()
    from vae_train.api import compare

    click.echo(compare(a, b, samples, models=models, **_at(**places)))


def _at(no_download: bool, **places: Any) -> dict[str, Any]:
    """What the options say of where to work, as the functions of `vae_train` take it."""
    return {**places, "download": not no_download}


def require_extra() -> None:
    """Raise EnvironmentUnfit where the train extra is not installed, or the system has no locks of files."""
    extras.require_whole("train", "training")


def _recorders(**asked: bool) -> "list[Recorder]":
    """Those that are asked for. Raises EnvironmentUnfit where the extra of one is not installed."""
    names = [name for name, given in asked.items() if given]
    for name in names:
        extras.require(name, f"--{name}")
    if not names:
        return []
    from vae_train import mlflow, tensorboard, wandb

    known: dict[str, Callable[[], Recorder]] = {
        "tensorboard": tensorboard.TensorBoard,
        "wandb": wandb.WandB,
        "mlflow": mlflow.MLflow,
    }
    return [known[name]() for name in names]


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError("hidden widths not understood", text, "give integers, such as 512,512") from None


def _reader() -> "Listener":
    """The one who reads what a command prints: figures on stdout, all else on stderr."""
    from vae_train.listener import Listener

    def on_stderr(kind: str) -> Callable[[str], None]:
        return lambda text: click.echo(f"vae-train: {kind}: {printable(text)}", err=True)

    say = partial(click.echo, err=True)
    return Listener(say, on_stderr("note"), on_stderr("warning"), click.echo, bar=True)


def main() -> None:
    """Entry point of `vae-train`."""
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN))  # read when torch is imported
    run(cli, "vae-train")
