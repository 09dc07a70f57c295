"""The command `vae-export`: a training run in, a checked bundle out; and what one does with a bundle before it goes."""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vae_export import pair_options, summary
from vae_runtime import extras
from vae_runtime.command import run
from vae_runtime.errors import BundleError, InputError, printable
from vae_train.sections import InSections, section

if TYPE_CHECKING:
    from vae_export.exporter import Exported
    from vae_export.gate import Verdict
    from vae_train.config import Place
    from vae_train.data import Data
    from vae_train.run import Run

T = TypeVar("T", bound=summary.Outcome)
_RUNS = Path("runs")  # where vae-train puts them
_PATH = click.Path(path_type=Path)
_MEMORY = "free memory and try again"
_best = click.option("--best", is_flag=True, help="The weights of the run's best epoch instead of the last.")
_verbose = click.option("--verbose", is_flag=True, help="Print every row of the comparison.")
_model = click.option("--model", metavar="MODULE:FUNCTION", help="Trust this module to make the run's own networks.")


def _number(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """The number, or wrong usage where it is none."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number")
    return value


_COMMANDS = """\b
Commands on a bundle, by its folder or the name of one that ships:
  vae-export check BUNDLE [RUN]  Repeat the comparison.
  vae-export card BUNDLE         Write a model card.
A run folder of such a name is ./check or ./card.
"""


@click.command(cls=InSections, epilog=_COMMANDS)
@click.argument("run_folder", metavar="[RUN]", required=False, type=_PATH)
@click.option("--opset", type=int, default=17, show_default=True, help="ONNX operator set of the graphs, 17 or newer.")
@click.option("--out", type=_PATH, help="Bundle folder.  [default: bundles/NAME of the run]")
@_verbose
@click.option("--keep-failing", type=_PATH, help="New folder for what repeats a failure.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "auto"]),
    default="fp32",
    show_default=True,
    metavar="NAME",
    help="fp32, fp16 (half the size), int8 (a third, faster), auto.",
)
@click.option(
    "--max-nats",
    type=float,
    callback=_number,
    help="What a precision may cost on average, nats per observation.  [default: 0.5]",
)
@section(
    "A training run",
    _best,
    _model,
    click.option(
        "--data-root",
        type=_PATH,
        envvar="VAE_EDGE_DATA",
        default=Path("data"),
        show_default=True,
        show_envvar=True,
        help="Folder of the named image sets, which say what a precision costs.",
    ),
    click.option("--dataset", type=_PATH, help="Where the run's own observations are now."),
    click.option("--no-download", is_flag=True, help="Never use the network."),
)
@section(
    "A VAE that was trained elsewhere",
    click.option("--from", "origin", metavar="MODULE:FUNCTION", help="Described by this function."),
    *pair_options.OPTIONS,
    click.option("--observations", type=_PATH, help="Its real observations: an .npy or .npz array, 64 or more."),
)
@click.version_option(package_name="vae-edge")
def cli(
    run_folder: Path | None,
    opset: int,
    out: Path | None,
    best: bool,
    model: str | None,
    verbose: bool,
    keep_failing: Path | None,
    precision: str,
    max_nats: float | None,
    data_root: Path,
    dataset: Path | None,
    no_download: bool,
    origin: str | None,
    observations: Path | None,
    **pair: Any,
) -> None:
    """Export RUN, or the newest one in runs, as a bundle of checked ONNX graphs.

    Nothing is published unless the shipped runtime gives PyTorch's numbers. With --from, a VAE that was trained
    elsewhere is exported; examples/bring_your_own.py of the project's source is one. With --encoder and --decoder, it
    is one of which there are ONNX files.

    \b
    Examples:
      vae-export runs/photos --out bundles/photos --precision auto
      vae-export --from my_vae:described --out bundles/mine
    """
    paired = any(value is not None for value in pair.values())
    if (origin or paired) and (run_folder or best or model or dataset):
        which = "--from" if origin else "--encoder"
        raise click.UsageError(
            f"{which} goes without RUN, --best, --model and --dataset: it is another VAE than a run's"
        )
    if origin and paired:
        raise click.UsageError("--from says all of a VAE itself: leave out --encoder and what goes with it")
    if observations and not (origin or paired):
        raise click.UsageError("--observations goes with --from or --encoder: a run has its own")
    described = pair_options.told(pair, observations, out) if paired else None
    for name, value in (("--max-nats", max_nats), ("--dataset", dataset)):
        if precision == "fp32" and value is not None:
            raise click.UsageError(f"{name} goes with another --precision than fp32")
    _require_extra()
    from vae_export import exporter
    from vae_train.config import Place
    from vae_train.run_folder import newest_run

    how: dict[str, Any] = {"opset": opset, "precision": precision, "keep_failing": keep_failing}
    how["max_nats"] = exporter.MAX_NATS if max_nats is None else max_nats
    if origin or described:
        folder = out or Path("bundles") / str(origin).partition(":")[0].rpartition(".")[2]
        _publish(lambda: _from_elsewhere(origin or described, observations, folder, how), folder, how, verbose)
        return
    if run_folder is None:
        run_folder = newest_run(_RUNS)
        click.echo(f"vae-export: exporting {run_folder}, the newest finished run", err=True)
    run = _load(run_folder, model, best)
    place = Place(data_root, not no_download, dataset=dataset)
    observed = _observed(run_folder, run, place) if precision != "fp32" else None
    out = out or Path("bundles") / run_folder.resolve().name
    _publish(lambda: exporter.export_run(run, out, observed=observed, **how), out, how, verbose)


def _from_elsewhere(origin: Any, observations: Path | None, out: Path, how: dict[str, Any]) -> "Exported":
    """Export the VAE that a person's function, or a dict, describes; doubts about the description are said."""
    from vae_export import elsewhere

    described = elsewhere.described(origin) if isinstance(origin, str) else origin
    if observations:
        from vae_runtime import array_files

        described["observations"] = array_files.read_array(str(observations), "x")[1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", elsewhere.DescriptionWarning)
        try:
            return elsewhere.export(**described, out=out, **how)
        finally:  # where it fails, they may say why
            for doubt in said:
                if issubclass(doubt.category, elsewhere.DescriptionWarning):
                    click.echo(printable(f"vae-export: warning: {doubt.message}"), err=True)


def _publish(export: "Callable[[], Exported]", out: Path, how: dict[str, Any], verbose: bool) -> None:
    """Export, and say what was compared, what it costs and what it replaces. how: `exporter.export_vae`'s options."""
    from vae_export import failing, gate, tradeoff
    from vae_train.train import memory_errors

    before, keep_failing = _described(out), how["keep_failing"]
    try:
        with memory_errors(_MEMORY):
            exported = export()
    except gate.GateFailed as failed:
        _print_verdict(failed.verdict, verbose)
        repeat = f", and {keep_failing / failing.LINE}, which repeats it" if keep_failing else ""
        raise BundleError(failed.what, failed.which, f"nothing was published; see the table above{repeat}") from None
    first, *smaller = exported.verdicts
    _print_verdict(first, verbose)
    for tried in exported.tried:
        click.echo(tried.table())
    if how["precision"] == "auto":
        click.echo(tradeoff.choice(exported.precision, exported.tried))
    for verdict in smaller:
        _print_verdict(verdict, verbose)
    size = sum(file.stat().st_size for file in out.iterdir())
    click.echo(f"published {out}: opset {how['opset']}, {exported.precision}, {size / 1e6:.1f} MB")
    if (why := exported.uncalibrated) is not None:
        told = f"{why.what}, {why.which}; vae-infer calibrate makes one"
        click.echo(f"vae-export: note: it carries no calibration: {told}", err=True)
    if before and before != _described(out):
        click.echo(f"vae-export: note: it replaces what was there: {before}", err=True)


@click.group()
def on_bundles() -> None:
    """Commands on a bundle that exists."""


@on_bundles.command()
@click.argument("bundle", type=_PATH)
@click.argument("run_folder", metavar="[RUN]", required=False, type=_PATH)
@_best
@_model
@_verbose
def check(bundle: Path, run_folder: Path | None, best: bool, model: str | None, verbose: bool) -> None:
    """Repeat the comparison on BUNDLE, a folder or the name of one that ships, and write nothing.

    With RUN, the run folder that it was exported from, it is compared with PyTorch as it was at its export. Without,
    and without PyTorch: its hashes, graphs and golden vectors, and the runtime against ONNX's reference evaluator.
    """
    if run_folder is None and (best or model):
        raise click.UsageError("--best and --model go with RUN")
    if run_folder is None:
        extras.require("export", "check", "onnx")
    else:
        _require_extra()
    from vae_export import check as checks
    from vae_runtime import bundle as bundles

    read = bundles.read(bundles.locate(bundle))
    if run_folder is None:
        rows = checks.alone(read)
        _show(rows, checks.table, summary.of_passed, verbose)
        _refuse(rows, "do not use this bundle; see the table above")
    else:
        from vae_export import gate
        from vae_train.train import memory_errors

        with memory_errors(_MEMORY):
            compared = checks.with_run(read, _load(run_folder, model, best))
        _show(compared, gate.table, gate.brief, verbose)
        _refuse(compared, "do not use this bundle, or name its own run (add --best where it was exported so)")
    against = f"against {run_folder}" if run_folder else "against its golden vectors and ONNX's reference evaluator"
    click.echo(f"{bundle}: fine, {against}")


@on_bundles.command()
@click.argument("bundle", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="An .md file.  [default: print]")
def card(bundle: Path, output: Path | None) -> None:
    """Write a model card of BUNDLE, a folder or the name of one that ships, in Markdown.

    All that it says is in the bundle's manifest. Its front matter is what the Hugging Face Hub reads.
    """
    from vae_export import card as cards
    from vae_runtime import bundle as bundles
    from vae_runtime import files

    if output:
        files.check_output(output, ".md")
    text = cards.write(bundles.read(bundles.locate(bundle)).manifest)
    if output:
        files.write_lines(output, text.splitlines())
    click.echo(f"{output}: model card of {bundle}" if output else text, nl=bool(output))


def _print_verdict(verdict: "Verdict", verbose: bool) -> None:
    """Print heading and summary, or all rows."""
    from vae_export import gate

    click.echo(verdict.heading)
    _show(verdict.comparisons, gate.table, gate.brief, verbose)


def _observed(run_folder: Path, run: "Run", place: "Place") -> "Data":
    """The run's data, to make and weigh a precision with. Raises InputError without it.

    What it trained on counts as much as what it tests on: with that the ranges of 8-bit graphs are measured.
    """
    from vae_train import data, results

    observed, noun = results.load_data(run, place), run.observation.noun
    if (now := observed.digest()) != (then := run.settings.data_sha256):
        where, todo = data.origin(data.located(run.settings, run_folder, place), place.data_root, noun)
        which = f"{where} (sha256 {now[:16]}, and {then[:16]} in {run_folder})"
        raise InputError(f"training {noun}s are not the run's", which, todo)
    return observed


def _described(out: Path) -> str:
    """Of what precision and by which training the bundle at `out` is; empty where none can be read there."""
    from vae_runtime import bundle as bundles

    try:
        manifest = bundles.read(out).manifest
        onnx, smaller, made = manifest.onnx, manifest.precision, manifest.provenance
    except BundleError:
        return ""
    opset = f"opset {onnx.opset}, " if onnx else ""
    precision = smaller.precision if smaller else "fp32"
    of = f", of the run by {made.command}" if made and made.command else ""
    return printable(f"{opset}{precision}, pair {manifest.contract.pair}{of}")


def _load(run_folder: Path, model: str | None, best: bool) -> "Run":
    """The run; it is said where it cannot be held against its own training."""
    from vae_train.run_folder import load

    run = load(run_folder, model, best)
    if run.fingerprint is None:
        missing = "the run is from before 0.2 and has kept no outputs: its network may be another than was trained"
        click.echo(f"vae-export: note: {missing}", err=True)
    for warning in run.settings.warnings:
        click.echo(printable(f"vae-export: note: its training began with the warning: {warning}"), err=True)
    return run


def _show(rows: list[T], table: Callable[[list[T]], str], brief: Callable[[list[T]], str], verbose: bool) -> None:
    """Print all rows where they are asked for or one failed, else a line."""
    click.echo(table(rows) if verbose or summary.of_failed(rows) else brief(rows))


def _refuse(rows: Sequence[summary.Outcome], todo: str) -> None:
    """Raise BundleError, naming the worst row, if one failed."""
    if failed := summary.of_failed(rows):
        raise BundleError("numeric gate failed", failed, todo)


def _require_extra() -> None:
    """Raise EnvironmentUnfit where the export extra is not installed, or the system has no locks of files."""
    extras.require_whole("export", "export")


def main() -> None:
    """Entry point of `vae-export`."""
    # click has no group with a default command, and to make one takes ten times these lines
    run(on_bundles if sys.argv[1:2] and sys.argv[1] in on_bundles.commands else cli, "vae-export")
