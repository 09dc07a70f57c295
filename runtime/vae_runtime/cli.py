"""The command `vae-infer`. Each verb is a thin layer over one public function."""

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_runtime import detect_cli, serve_cli, terminal, watch_cli
from vae_runtime.command import alone, run
from vae_runtime.observation import IMAGE, SERIES

if TYPE_CHECKING:  # the heavy imports happen inside the verbs, so that --help does not wait for them
    pass

Options = terminal.Options
_TRAVERSED = 1000  # observations at most, which say how large each latent's KL is


@click.group()
@click.option(
    "--bundle", type=click.Path(path_type=Path), envvar="VAE_EDGE_BUNDLE", show_envvar=True,
    help="Bundle folder, or the name of one that ships with the package: mnist, fashion-mnist.  [default: mnist]",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Cores to use.  [default: VAE_EDGE_THREADS, or those there are]"
)
@click.option("--memory", type=click.IntRange(1, 2**40), help="MiB for the arrays in work at a time.  [default: 8]")
@click.version_option(package_name="vae-edge")
@click.pass_context
def cli(context: click.Context, bundle: Path | None, threads: int | None, memory: int | None) -> None:
    """Run an exported VAE with NumPy and onnxruntime. All figures are in nats per observation.

    SOURCES are image files, folders of them, patterns such as 'a/*.png', .npy and .npz arrays, IDX files such as
    MNIST's, tables, or - for standard input. What does not have the model's size or mode is fitted, and the command
    says so. Outputs: .png for a grid, .npy or .npz for an array, a name without suffix for a folder of PNGs. A model of
    rows of numbers, or of series, takes tables and arrays, and gives .csv, .npy or .npz, or a plot as .png.

    \b
    Examples:
      vae-infer sample -n 64 -o samples.png
      vae-infer elbo photo.png
      vae-infer --bundle bundles/mine detect photos
    """
    context.obj = (bundle, threads, None if memory is None else memory << 20)


@cli.command()
@click.option("-n", "number", type=click.IntRange(1, 2**63 - 1), default=16, show_default=True, help="How many.")
@click.option("--seed", type=terminal.SEED, help="Seed of the noise.  [default: a new one, printed]")
@click.option("--start", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="The first of the seed.")
@click.option(
    "--mean/--draws",
    default=None,
    help="Write E[x|z], or draws from p(x|z).  [default: draws; E[x|z] in a .png whose pixels are not binary]",
)
@terminal.with_output("Grid, array or folder.  [default: samples.png, and the terminal]")
@click.pass_obj
def sample(options: Options, number: int, seed: int | None, start: int, mean: bool | None, output: Path | None) -> None:
    """Draw observations from the model, x ~ p(x|z) with z ~ p(z)."""
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    show = output is None and sys.stdout.isatty()
    vae, output = terminal.load_to_write(options, output, "samples", *terminal.PICTURES)
    from vae_runtime import outputs

    if mean is None:  # draws of every pixel beside each other look like noise
        mean = output.suffix == ".png" and vae.observation.kind == IMAGE and not vae.likelihood.binary
        if mean:
            terminal.note("a picture shows E[x|z]; --draws draws each pixel from p(x|z) too")
    if plots := terminal.plotting(vae, output):
        plots.observations(output, vae, vae.sample(terminal.drawn(number, plots.MOST), seed, mean, start))
    else:
        batches = terminal.progress(
            vae.sample_batches(number, seed, mean, start), number, vae.rows, vae.observation.noun
        )
        outputs.write(output, number, vae.observation.shape, batches, first=start, names=vae.names)
    if show and output.suffix == ".png":
        import shutil

        from vae_runtime.images import blocks

        width = shutil.get_terminal_size().columns
        click.echo(blocks(vae.sample(min(number, width), seed, mean, start), width))
    what = f"{terminal.count(number, 'mean')} E[x|z]" if mean else terminal.count(number, "sample")
    click.echo(f"{output}: {what}, seed {seed}")


@cli.command()
@terminal.with_sources
@terminal.with_output(
    "Grid of pairs (image, reconstruction), or array or folder of reconstructions.  [default: reconstructions.png]"
)
@terminal.with_missing
@terminal.with_stride
@click.pass_obj
def reconstruct(
    options: Options, sources: tuple[str, ...], output: Path | None, missing: str, stride: int | None
) -> None:
    """Encode observations and decode the means mu of their latents, to E[x|z]."""
    vae, output = terminal.load_to_write(options, output, "reconstructions", *terminal.PICTURES)
    from vae_runtime import outputs

    found, batches = terminal.read(sources, vae, missing, stride)
    shape = vae.observation.shape
    import numpy as np

    if output.suffix == ".csv":
        names = [*vae.names, *(f"{name} reconstructed" for name in vae.names)]
        both = (np.concatenate([x, vae.reconstruct(x)], axis=1) for x in batches)
        outputs.write(output, len(found), (2 * shape[0], *shape[1:]), both, names=names)
    elif plots := terminal.plotting(vae, output):
        x = terminal.first(batches, terminal.drawn(len(found), plots.reconstructed(vae)))
        plots.reconstructions(output, vae, x, vae.reconstruct(x), list(islice(found.names(), len(x))))
    elif output.suffix == ".png":
        pairs = (np.stack([x, vae.reconstruct(x)], axis=1).reshape(-1, *shape) for x in batches)  # x, theta, x, ...
        outputs.write(output, 2 * len(found), shape, pairs, columns=min(8, 2 * len(found)))
    else:
        outputs.write(output, len(found), shape, map(vae.reconstruct, batches))
    terminal.say_fitted(found)
    click.echo(f"{output}: {terminal.count(len(found), 'reconstruction')}")


@cli.command(short_help="Score observations: the ELBO, its two terms and its rank.")
@terminal.with_sources
@click.option(
    "--samples", "-K", type=click.IntRange(1, 1_000_000), default=16, show_default=True, help="Draws of z for each."
)
@terminal.with_seed
@click.option(
    "--format", "style", type=click.Choice(["table", "csv", "json", "jsonl"]), help="How to print.  [default: table]"
)  # fmt: skip
@click.option("--by-column", is_flag=True, help="What each column or channel adds to log p(x|z), in a file's format.")
@terminal.with_missing
@terminal.with_stride
@terminal.with_output("A .csv, .json or .jsonl file.  [default: print]")
@click.pass_obj
def elbo(
    options: Options,
    sources: tuple[str, ...],
    samples: int,
    seed: int,
    style: str | None,
    by_column: bool,
    missing: str,
    stride: int | None,
    output: Path | None,
) -> None:
    """Score observations: the ELBO, its two terms, and its rank among the test ones of the training data.

    Grey images under a Bernoulli likelihood are drawn as binary ones, as in training, anew for each draw of z, and the
    command says so. A table on standard input is scored as its lines come, in CSV or JSON lines.
    """
    vae = terminal.load(options)
    terminal.check_stride(stride, vae)
    comes = sources == ("-",) and vae.observation.kind != IMAGE and style in (None, "csv", "jsonl")
    style = terminal.style(
        style, output, "csv" if comes and vae.observation.kind == SERIES else "table", *terminal.SCORED
    )
    if by_column and style == "table":
        raise click.UsageError("--by-column goes with --format csv, json or jsonl, or with -o")
    from vae_runtime.reports import format_scores
    from vae_runtime.scores import score

    noun, draws = vae.observation.noun, f"{terminal.count(samples, 'draw')} of z each, seed {seed}"
    if comes and style in ("csv", "jsonl") and (stream := terminal.text_stream()) is not None:
        changed, ranked = 0, True

        def lines() -> Iterator[str]:
            nonlocal changed, ranked
            parts = vae.follow(stream, stride, terminal.note, missing == "drop")
            for i, part in enumerate(parts):
                scores = score(vae, part.x, samples, seed, by_column=by_column)
                changed, ranked = changed + scores.off_support, scores.ranks is not None
                written = format_scores(scores, part.names, style, samples, seed, noun)
                yield from islice(written, 1 if i and style == "csv" else 0, None)  # one header

        terminal.write(lines(), output, f"scores of {noun}s as they came, {draws}")
    else:
        found, batches = terminal.read(sources, vae, missing, stride, vae.rows_per_run(samples))
        scores = score(vae, batches, samples, seed, by_column=by_column)
        written = format_scores(scores, found.names(), style, samples, seed, noun)
        written = terminal.folded(written) if style == "table" else written
        terminal.write(written, output, f"scores of {terminal.count(len(found), noun)}, {draws}")
        terminal.say_fitted(found)
        changed, ranked = scores.off_support, scores.ranks is not None
    terminal.say_observed(vae, changed, samples)
    if not ranked:
        terminal.note(f"no percentiles: the bundle keeps no quantiles of three test {noun}s or more")


@cli.command()
@terminal.with_sources
@click.option("--format", "style", type=click.Choice(["csv", "jsonl"]), help="How to print.  [default: csv]")
@terminal.with_missing
@terminal.with_stride
@terminal.with_output("An .npz, .csv or .jsonl file with mu and logsigma.  [default: print]")
@click.pass_obj
def encode(
    options: Options,
    sources: tuple[str, ...],
    style: str | None,
    missing: str,
    stride: int | None,
    output: Path | None,
) -> None:
    """Print or save mu and logsigma of q(z|x) for each observation."""
    style = terminal.style(style, output, "csv", ".npz", ".csv", ".jsonl")
    vae = terminal.load(options)
    import numpy as np

    found, batches = terminal.read(sources, vae, missing, stride)
    mu, logsigma = map(np.concatenate, zip(*map(vae.encode, batches), strict=True))
    noun = vae.observation.noun
    what = f"mu and logsigma of {terminal.count(len(mu), noun)}, {vae.latent_dim} dimensions each"
    if output and output.suffix == ".npz":
        from vae_runtime.outputs import write_arrays

        write_arrays(output, mu=mu, logsigma=logsigma)
        click.echo(f"{output}: {what}")
    else:
        from vae_runtime.reports import format_latents

        terminal.write(format_latents(found.names(), mu, logsigma, style, noun), output, what)
    terminal.say_fitted(found)


@cli.command(short_help="Decode latents to observations, E[x|z].")
@click.argument("latents")
@terminal.with_output("Grid, array or folder.  [default: decoded.png]")
@click.pass_obj
def decode(options: Options, latents: str, output: Path | None) -> None:
    """Decode LATENTS, an .npy [n, *latent_shape] or the .npz of `encode` (- for stdin), to E[x|z]."""
    vae, output = terminal.load_to_write(options, output, "decoded", *terminal.PICTURES)
    from vae_runtime import outputs
    from vae_runtime.latents import read

    z = read(latents, vae.latent_shape)
    chunks = (z[i : i + vae.rows] for i in range(0, len(z), vae.rows))
    noun = vae.observation.noun
    if plots := terminal.plotting(vae, output):
        plots.observations(output, vae, vae.decode(z[: terminal.drawn(len(z), plots.MOST)]))
    else:
        theta = terminal.progress(map(vae.decode, chunks), len(z), vae.rows, noun)
        outputs.write(output, len(z), vae.observation.shape, theta, names=vae.names)
    click.echo(f"{output}: {terminal.count(len(z), f'decoded {noun}')}")


@cli.command(short_help="Walk through latent space from one to another.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@terminal.with_missing
@click.option("--steps", type=click.IntRange(2, 1000), default=9, show_default=True, help="With both ends.")
@click.option("--linear", is_flag=True, help="Go straight, not on the great circle between the two.")
@terminal.with_output("One row of images, an animated .gif, array or folder.  [default: interpolation.png]")
@click.pass_obj
def interpolate(options: Options, a: str, b: str, missing: str, steps: int, linear: bool, output: Path | None) -> None:
    """Walk through latent space from observation A to observation B."""
    vae, output = terminal.load_to_write(options, output, "interpolation", *terminal.PICTURES, ".gif")
    from vae_runtime import outputs
    from vae_runtime.latents import interpolate as walk

    ends = [terminal.observations((source,), vae, missing) for source in (a, b)]
    first, last = (next(end.batches(1))[0] for end in ends)
    theta = walk(vae, first, last, steps, linear)
    if plots := terminal.plotting(vae, output):
        plots.walk(output, vae, theta)
    else:
        outputs.write(output, steps, vae.observation.shape, [theta], columns=steps, names=vae.names)
    terminal.say_fitted(*ends)
    for end in ends:
        if len(end) > 1:
            terminal.note(f"{next(end.names())} is taken, the first of {len(end)} {vae.observation.noun}s")
    click.echo(f"{output}: {steps} steps from {a} to {b}, {'linear' if linear else 'spherical'}")


@cli.command(short_help="Vary one latent at a time, a row each.")
@click.argument("sources", metavar="[SOURCES]...", nargs=-1)
@terminal.with_missing
@click.option("--steps", type=click.IntRange(2, 1000), default=11, show_default=True, help="How many for each latent.")
@click.option(
    "--span", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True, help="From -span to span."
)
@click.option("--most", type=click.IntRange(1), default=10, show_default=True, help="How many latents at most.")
@terminal.with_output("Grid, animated .gif, array or folder.  [default: traversal.png]")
@click.pass_obj
def traverse(
    options: Options, sources: tuple[str, ...], missing: str, steps: int, span: float, most: int, output: Path | None
) -> None:
    """Vary one latent at a time, a row each, the latent with the largest KL first.

    The other latents rest at the first observation's mean, and the KL is the mean of the first 1,000; without SOURCES,
    at 0, and the KL is that of 500 of the model's own samples. With a learned prior the span is in standard deviations
    of each latent, from its mean.
    """
    vae, output = terminal.load_to_write(options, output, "traversal", *terminal.PICTURES, ".gif")
    from vae_runtime import outputs
    from vae_runtime.latents import traverse as walk

    found = terminal.observations(sources, vae, missing) if sources else None
    x = next(found.batches(_TRAVERSED))[:_TRAVERSED] if found else None
    walked = walk(vae, x, steps, span, most)
    if plots := terminal.plotting(vae, output):
        plots.traversal(output, vae, walked, span)
    else:
        named = output.suffix == ".csv"
        names, theta = (["latent", "z", *vae.names], walked.labelled(span)) if named else (vae.names, walked.theta)
        outputs.write(output, len(walked.latents) * steps, theta.shape[2:], theta, columns=steps, names=names)
    if found:
        terminal.say_fitted(found)
    rows = ", ".join(f"{latent} ({kl:.2f})" for latent, kl in zip(walked.latents, walked.kl, strict=True))
    unit = " standard deviations" if vae.manifest.contract.learned_prior else ""
    click.echo(f"{output}: latents (KL in nats) {rows}, from {-span:g} to {span:g}{unit}")


@cli.command(short_help="Say what the bundle holds, and how good it is.")
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as JSON.")
@click.pass_obj
def info(options: Options, as_json: bool) -> None:
    """Say what the bundle holds, how it was made, and how good it is."""
    import json

    from vae_runtime.reports import INDENT, format_info

    manifest = terminal.load(options).manifest
    if as_json:
        click.echo(json.dumps(manifest.raw, indent=1))
    else:
        terminal.write(terminal.folded(format_info(manifest).splitlines(), INDENT), None, "")


@cli.command(short_help="Repeat the bundle's golden vectors on this device.")
@click.pass_obj
def verify(options: Options) -> None:
    """Run the bundle's golden vectors on this device and say how far it is off; exit code 3 past tolerance."""
    from vae_runtime import bundle as bundles
    from vae_runtime import verify as verification
    from vae_runtime.errors import BundleError

    path = bundles.locate(options[0])
    rows = verification.verify(bundles.read(path))
    click.echo(verification.table(rows))
    if failed := [row.name for row in rows if not row.passed]:
        raise BundleError("golden vectors not reproduced", ", ".join(failed), "do not trust this device's numbers")


@cli.command(short_help="Describe this machine, and say what it lacks.")
def doctor() -> None:
    """Describe this machine, and say whether the runtime can work on it."""
    from vae_runtime import doctor as examination

    for name, fact in examination.describe().items():
        click.echo(f"{name:12} {fact}")
    examination.check()
    click.echo(f"{'verdict':12} fit: onnxruntime can be imported here")


@cli.command(short_help="Measure start-up, latency, throughput and memory.")
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON: seconds, bytes, things per second.")
@click.option("--seconds", type=click.FloatRange(0.01), default=1.0, show_default=True, help="For each throughput.")
@click.pass_obj
def bench(options: Options, as_json: bool, seconds: float) -> None:
    """Measure start-up, latency, throughput by number of threads, and memory on this machine.

    --threads is the most of the sweep.
    """
    from vae_runtime.bench import bench as measure

    bundle, threads, memory = options
    gc.enable()
    found = measure(bundle, threads=threads, memory=memory, seconds=seconds)
    click.echo(found.json() if as_json else found.table())


cli.add_command(detect_cli.calibrate)
cli.add_command(detect_cli.detect)
cli.add_command(watch_cli.watch)
cli.add_command(serve_cli.serve)


def main() -> None:
    """The command `vae-infer`; ends in SystemExit."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's BLAS is not used, and its threads cost start-up time
    warnings.simplefilter("ignore")  # what matters is an error, in one line
    gc.disable()  # until the model is loaded: imports leave nothing to collect, and looking for it takes time
    try:
        run(cli, "vae-infer")
    finally:
        gc.enable()


def program() -> None:
    """`main` in a process of its own."""
    alone(main)
