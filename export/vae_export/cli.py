"""The command `vae-export`: a training run in, a checked bundle out."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_runtime.command import run
from vae_runtime.errors import BundleError, EnvironmentUnfit

if TYPE_CHECKING:
    from vae_export.gate import Row


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--opset", type=int, default=17, show_default=True, help="ONNX operator set of the graphs.")
@click.option("--out", type=click.Path(path_type=Path), help="Bundle folder.  [default: bundles/NAME of the run]")
@click.option("--best", is_flag=True, help="The weights of the run's best epoch instead of the last.")
@click.option("--model", metavar="MODULE:FUNCTION", help="Trust this module to make the run's own networks.")
@click.version_option(package_name="vae-edge")
def cli(run_folder: Path, opset: int, out: Path | None, best: bool, model: str | None) -> None:
    """Export the run folder RUN as a bundle of ONNX graphs, checked against PyTorch.

    The bundle is published only if the shipped runtime gives PyTorch's numbers; else nothing changes on disk.
    """
    require_extra()
    from vae_export import bundle
    from vae_train import checkpoint

    out = out or Path("bundles") / run_folder.resolve().name
    bundle.export(checkpoint.load(run_folder, model, best), out, opset, judge)
    size = sum(file.stat().st_size for file in out.iterdir())
    click.echo(f"published {out}: opset {opset}, {size / 1e6:.1f} MB")


def judge(rows: list["Row"]) -> None:
    """Print the table; raise BundleError, naming every failing row, where one failed."""
    from vae_export import gate

    click.echo(gate.table(rows))
    if failed := [row.name for row in rows if not row.passed]:
        raise BundleError("numeric gate failed", ", ".join(failed), "nothing was published; see the table above")


def require_extra() -> None:
    """Raise EnvironmentUnfit unless the packages of the export extra can be found."""
    for package in ("torch", "safetensors", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentUnfit(
                "export needs a package that is not installed", package, "pip install 'vae-edge[export]'"
            )


def main() -> None:
    """Entry point of `vae-export`."""
    run(cli, "vae-export")
