"""The command `vae-infer`: sample, reconstruct, score and encode images with a bundle. Each verb wraps one API call."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_runtime.command import run

if TYPE_CHECKING:  # the heavy imports happen inside the verbs, so that --help does not wait for them
    from vae_runtime.images import Batch
    from vae_runtime.vae import VAE, Floats

Options = tuple[Path | None, int | None]  # bundle and threads
_SEED = click.IntRange(0, 2**64 - 1)
_sources = click.argument("sources", metavar="IMAGES...", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.group()
@click.option(
    "--bundle", type=click.Path(path_type=Path), envvar="VAE_EDGE_BUNDLE", show_envvar=True,
    help="Bundle folder.  [default: the one that ships with the package]",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores to use.  [default: all that this process may use]")
@click.version_option(package_name="vae-edge")
@click.pass_context
def cli(context: click.Context, bundle: Path | None, threads: int | None) -> None:
    """Run an exported VAE with NumPy and onnxruntime. All figures are in nats per image.

    IMAGES are image files, folders of them, and .npy or .npz arrays; what does not have the model's size or mode is
    fitted, and the command says so.
    """
    context.obj = (bundle, threads)


@cli.command()
@click.option("-n", "number", type=click.IntRange(min=1), default=16, show_default=True, help="How many images.")
@click.option("--seed", type=_SEED, help="Seed of the noise.  [default: a new one, printed]")
@click.option(
    "--start", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="First image of the seed."
)
@click.option("--mean", is_flag=True, help="Write E[x|z], smooth grey levels, instead of draws from p(x|z).")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="A .png grid, or an .npy or .npz array.  [default: samples.png, and the terminal]",
)  # fmt: skip
@click.pass_obj
def sample(options: Options, number: int, seed: int | None, start: int, mean: bool, output: Path | None) -> None:
    """Draw images from the prior."""
    show = output is None and sys.stdout.isatty()
    output = output or Path("samples.png")
    check_output(output, ".png", ".npy", ".npz")
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    vae = _load(options)
    if output.suffix == ".npy":
        save_stream(output, (number, *vae.image_shape), vae.sample_batches(number, seed, mean, start))
    else:
        x = vae.sample(number, seed, mean, start)
        save(output, x=x)
    if show:
        from vae_runtime.images import blocks

        click.echo(blocks(x, shutil.get_terminal_size().columns))
    click.echo(f"{output}: {number} {'mean' if mean else 'sample'}{'s' * (number > 1)}, seed {seed}")


@cli.command()
@_sources
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("reconstructions.png"), show_default=True,
    help="A .png grid of pairs (image, reconstruction), or an .npy or .npz array of reconstructions.",
)  # fmt: skip
@click.pass_obj
def reconstruct(options: Options, sources: tuple[Path, ...], output: Path) -> None:
    """Encode images and decode their means."""
    check_output(output, ".png", ".npy", ".npz")
    from vae_runtime import images

    vae = _load(options)
    batch = images.load(sources, vae.image_shape)
    theta = vae.reconstruct(batch.x)
    if output.suffix == ".png":
        import numpy as np

        pairs = np.stack([batch.x, theta], axis=1).reshape(-1, *vae.image_shape)  # image, reconstruction, image, ...
        save(output, columns=min(8, len(pairs)), x=pairs)
    else:
        save(output, x=theta)
    say_fitted(batch)
    click.echo(f"{output}: {len(theta)} reconstruction{'s' * (len(theta) > 1)}")


@cli.command()
@_sources
@click.option(
    "--samples", "-K", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Draws of z per image."
)
@click.option("--seed", type=_SEED, default=0, show_default=True, help="Seed of the noise.")
@click.option(
    "--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
    help="How to print.",
)  # fmt: skip
@click.pass_obj
def elbo(options: Options, sources: tuple[Path, ...], samples: int, seed: int, style: str) -> None:
    """Score images: the ELBO, its two terms, and its rank among the test images of the training data.

    Grey images under a Bernoulli likelihood are first drawn as binary ones, as in training, and the command says so.
    """
    from vae_runtime import images
    from vae_runtime.reports import format_scores, score

    vae = _load(options)
    batch = images.load(sources, vae.image_shape)
    scores, binarised = score(vae, batch.names, batch.x, samples, seed)
    say_fitted(batch)
    if binarised:
        images_were = "image was" if binarised == 1 else "images were"
        click.echo(f"vae-infer: note: {binarised} grey {images_were} drawn as binary, P(1) = level", err=True)
    click.echo(format_scores(scores, style, samples, seed))


@cli.command()
@_sources
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="An .npz with mu and logsigma.  [default: CSV on stdout]"
)
@click.pass_obj
def encode(options: Options, sources: tuple[Path, ...], output: Path | None) -> None:
    """Print or save mu and logsigma of q(z|x) for each image."""
    if output is not None:
        check_output(output, ".npz")
    from vae_runtime import images

    vae = _load(options)
    batch = images.load(sources, vae.image_shape)
    mu, logsigma = vae.encode(batch.x)
    if output is None:
        from vae_runtime.reports import format_latents

        result = format_latents(batch.names, mu, logsigma)
    else:
        save(output, mu=mu, logsigma=logsigma)
        result = f"{output}: mu and logsigma of {len(mu)} images, {vae.latent_dim} dimensions each"
    say_fitted(batch)
    click.echo(result)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as JSON.")
@click.pass_obj
def info(options: Options, as_json: bool) -> None:
    """Say what the bundle holds, how it was made, and how good it is."""
    from vae_runtime.reports import format_info

    vae = _load(options)
    click.echo(format_info(vae.info, as_json))


@cli.command()
@click.pass_obj
def verify(options: Options) -> None:
    """Run the bundle's golden vectors on this device and say how far it is off; exit code 3 past tolerance."""
    from vae_runtime import bundle as bundles
    from vae_runtime import verify as verification
    from vae_runtime.errors import BundleError

    path = options[0] or bundles.shipped()
    rows = verification.verify(bundles.read(path))
    click.echo(verification.table(rows))
    if failed := [row.name for row in rows if not row.passed]:
        raise BundleError("golden vectors not reproduced", ", ".join(failed), "do not trust this device's numbers")


@cli.command()
def doctor() -> None:
    """Describe this machine, and say whether the runtime can work on it."""
    from vae_runtime import doctor as examination

    for name, fact in examination.describe().items():
        click.echo(f"{name:12} {fact}")
    examination.check()
    click.echo(f"{'verdict':12} fit: onnxruntime can be imported here")


def check_output(path: Path, *suffixes: str) -> None:
    """Raise ArgumentError unless `path` can become a file of one of these kinds; asked before any long work."""
    from vae_runtime.errors import ArgumentError
    from vae_runtime.files import write_error

    if path.suffix not in suffixes:
        raise ArgumentError("output of an unknown kind", path, f"end its name in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ArgumentError("output folder not found", path.parent, "make it first")
    try:
        folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise write_error(error, path) from None
    if folder:
        raise ArgumentError("output is a folder", path, "name a file")


def save(path: Path, columns: int | None = None, **arrays: "Floats") -> None:
    """Write images as a PNG grid, or arrays as .npy or .npz, in one step."""
    import numpy as np

    from vae_runtime.files import replacing
    from vae_runtime.images import save_grid

    with replacing(path) as file:
        if path.suffix == ".npz":
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        elif path.suffix == ".npy":
            np.save(file, arrays["x"])
        else:
            save_grid(arrays["x"], file, columns)


def _load(options: Options) -> "VAE":
    from vae_runtime.vae import VAE

    bundle, threads = options
    return VAE.load(bundle, threads)


def save_stream(path: Path, shape: tuple[int, ...], batches: Iterator["Floats"]) -> None:
    """Write batches of images as one .npy of `shape`, in one step and in constant memory."""
    import numpy as np

    from vae_runtime.files import replacing

    with replacing(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(batch.astype("<f4", copy=False).tobytes())


def say_fitted(batch: "Batch") -> None:
    """Say which images were changed to fit the model, one line for each kind of change."""
    for change, count in Counter(batch.fitted.values()).items():
        first = next(name for name, note in batch.fitted.items() if note == change)
        which = first if count == 1 else f"{count} images, {first} first,"
        click.echo(f"vae-infer: note: {which} fitted {change}", err=True)


def main() -> None:
    """Entry point of `vae-infer`."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's BLAS is not used, and its threads cost start-up time
    run(cli, "vae-infer")
