"""What the verbs of `vae-infer` share: options, observations that are read with a word on each change, text written."""

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vae_runtime import files
from vae_runtime.errors import printable
from vae_runtime.observation import IMAGE, SERIES

if TYPE_CHECKING:  # the heavy imports happen inside the verbs, so that --help does not wait for them
    from io import BufferedReader
    from types import ModuleType

    from vae_runtime.draws import Floats
    from vae_runtime.sources import Observations
    from vae_runtime.vae import VAE

F = TypeVar("F", bound=Callable[..., Any])
Options = tuple[Path | None, int | None, int | None]  # bundle, threads, bytes

ARRAYS = (".npy", ".npz")
ROWS = (".csv", *ARRAYS, ".png")
SCORED = (".csv", ".json", ".jsonl")
PICTURES = (".png", *ARRAYS, "")
_PICTURED = (".png", ".gif", "")
SEED = click.IntRange(0, 2**64 - 1)

with_seed = click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the noise.")
with_sources = click.argument("sources", metavar="SOURCES...", nargs=-1, required=True)
with_stride = click.option(
    "--stride", type=click.IntRange(1, 2**31 - 1),
    help="Of series: rows from a window's start to the next one's.  [default: the model's own]",
)  # fmt: skip
with_missing = click.option(
    "--missing", type=click.Choice(["refuse", "drop"]), default="refuse", show_default=True,
    help="What to do with rows that lack a value.",
)  # fmt: skip


def with_output(help: str, default: str | None = None) -> Callable[[F], F]:
    """The option -o of a verb."""
    path = Path(default) if default else None
    return click.option("-o", "--output", type=click.Path(path_type=Path), default=path, show_default=True, help=help)


def load(options: Options) -> "VAE":
    """The VAE that the options name."""
    from vae_runtime.vae import VAE

    vae = VAE.load(*options)
    gc.freeze()  # modules stay: neither a later collection nor the interpreter's end need look at them
    gc.enable()
    return vae


def load_to_write(options: Options, output: Path | None, name: str, *kinds: str) -> "tuple[VAE, Path]":
    """The VAE, and where its output goes: by default a picture `name` of images, a table of rows, else an array."""
    if output is not None:
        files.check_output(output, *kinds, ".csv")
    vae = load(options)
    fitting = kinds if vae.observation.kind == IMAGE else ROWS
    output = output or Path(f"{name}{fitting[0]}")
    files.check_output(output, *fitting)
    if output.suffix in _PICTURED:
        say_pictured(vae)
    return vae, output


def read(
    sources: tuple[str, ...], vae: "VAE", missing: str, stride: int | None, rows: int | None = None
) -> "tuple[Observations, Iterator[Floats]]":
    """The observations of the sources, and their batches, by default as large as keeps all threads busy."""
    check_stride(stride, vae)
    found = observations(sources, vae, missing, stride)
    rows = rows or vae.rows * vae.threads
    return found, progress(found.batches(rows), len(found), rows, vae.observation.noun)


def plotting(vae: "VAE", output: Path) -> "ModuleType | None":
    """What draws the plots of rows and series, where the output is one."""
    if output.suffix != ".png" or vae.observation.kind == IMAGE:
        return None
    from vae_runtime import plots

    plots.require()
    return plots


def drawn(number: int, most: int) -> int:
    """How many of so many observations go into a plot."""
    if number > most:
        note(f"a plot shows the first {most} of {number:,}")
    return min(number, most)


def first(batches: "Iterator[Floats]", number: int) -> "Floats":
    """The first of some batches."""
    import numpy as np

    parts, held = [], 0
    for part in batches:
        parts.append(part)
        held += len(part)
        if held >= number:
            break
    return np.concatenate(parts)[:number]


def observations(sources: tuple[str, ...], vae: "VAE", missing: str, stride: int | None = None) -> "Observations":
    """What the sources hold."""
    if missing == "drop" and vae.observation.kind == IMAGE:
        raise click.UsageError("--missing is for models of rows and series, and this one takes images")
    return vae.read(sources, stride, missing == "drop")


def progress(batches: "Iterator[Floats]", total: int, rows: int, noun: str) -> "Iterator[Floats]":
    """Pass batches on, with a bar on stderr where that is a terminal and there are several."""
    if total <= 4 * rows or not sys.stderr.isatty():
        yield from batches
        return
    with click.progressbar(length=total, label=f"{noun}s", file=sys.stderr) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def check_stride(stride: int | None, vae: "VAE") -> None:
    """Raise a usage error for a stride of what is no series."""
    if stride is not None and vae.observation.kind != SERIES:
        raise click.UsageError(f"--stride is for models of series, and this one takes {vae.observation.noun}s")


def text_stream() -> "BufferedReader | None":
    """Standard input, where it holds text and no array."""
    from vae_runtime.array_files import is_array

    stream: BufferedReader = sys.stdin.buffer  # type: ignore[assignment]
    return None if is_array(stream.peek(4)) else stream


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(printable(f"vae-infer: note: {text}"), err=True)


def say_observed(vae: "VAE", changed: int, samples: int) -> None:
    """Say how many observations were drawn as binary, or rounded, to be scored."""
    noun = vae.observation.noun
    if changed and vae.likelihood.binary:
        each = f"the mean over {samples} binary draws" if samples > 1 else "of one binary draw"
        note(f"{count(changed, f'grey {noun}')}: each score is {each}, P(1) = level")
    elif changed:
        which = f"{count(changed, noun)} rounded to 8-bit levels"
        note(f"{which}, as in training: the likelihood is one of such levels")


def say_pictured(vae: "VAE") -> None:
    """Say that pictures show the mean of an image's channels, where there are others than grey and RGB."""
    from vae_runtime.images import PICTURED

    if vae.observation.kind == IMAGE and (channels := vae.observation.shape[0]) not in PICTURED:
        note(f"a picture shows the mean of the {channels} channels, in grey; an .npy array has them all")


def say_fitted(*sources: "Observations") -> None:
    """Say which images were changed to fit the model, a line for each kind of change, and how tables were read."""
    from vae_runtime import images

    for text in (text for found in sources for text in found.notes):
        note(text)
    kinds: dict[str, dict[str, str]] = {}
    for name, change in (pair for found in sources for pair in found.fitted.items()):
        kinds.setdefault(images.SIZE.sub("", change), {})[name] = change
    for changes in kinds.values():
        first, change = next(iter(changes.items()))
        sizes = len({size[0] for each in changes.values() if (size := images.SIZE.search(each))})
        of = f" of {sizes} sizes" if sizes > 1 else ""
        which = first if len(changes) == 1 else f"{len(changes)} images{of}, {first} first,"
        note(f"{which} fitted {change}")


def style(given: str | None, output: Path | None, default: str, *kinds: str) -> str:
    """How to write text: as the output's suffix says, or else as --format does."""
    if output is None:
        return given or default
    if given:
        raise click.UsageError("--format is for printing; with --output, the name's suffix says it")
    files.check_output(output, *kinds)
    return output.suffix[1:]


def count(number: int, thing: str) -> str:
    """So many things, in words."""
    return f"{number} {thing}{'s' * (number != 1)}"


def folded(lines: Iterable[str], indent: int = 2) -> Iterator[str]:
    """Lines for people: on a terminal, what is longer than it is wide goes on below, between words."""
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines:
        if width is None or len(line) <= width:
            yield line
        else:
            below = " " * indent
            yield textwrap.fill(line, width, subsequent_indent=below, break_long_words=False, break_on_hyphens=False)


def write(lines: Iterable[str], output: Path | None, what: str) -> None:
    """Print lines, or write them to a file and print what they are."""
    if output is None:
        for line in lines:
            click.echo(line)
    else:
        files.write_lines(output, lines)
        click.echo(f"{output}: {what}")
