"""The verbs of `vae-infer` that tell odd observations from normal ones: calibrate and detect."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_runtime import files, terminal
from vae_runtime.errors import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vae_runtime.detector import Detector, Verdict
    from vae_runtime.drift import Drift
    from vae_runtime.vae import VAE

_ODD = 1  # the exit code of --fail-on-odd
_PATH = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(short_help="Learn from normal observations what is usual.")
@terminal.with_sources
@click.option(
    "-o", "--output", type=_PATH, default=Path("site.json"), show_default=True, help="The calibration, a .json file."
)
@click.option(
    "--false-alarms", type=_SHARE, default=0.01, show_default=True, help="Share of normal ones that may be called odd."
)
@click.option("--threshold", type=float, help="Call odd what scores so high, in place of that share.")
@click.option(
    "--odd", multiple=True, metavar="SOURCE", help="Odd ones, for a threshold between them and the normal ones."
)
@terminal.with_missing
@terminal.with_stride
@click.pass_obj
def calibrate(
    options: terminal.Options,
    sources: tuple[str, ...],
    output: Path,
    false_alarms: float,
    threshold: float | None,
    odd: tuple[str, ...],
    missing: str,
    stride: int | None,
) -> None:
    """Learn from normal observations, which the model was not trained on, what is usual where it works.

    It knows those that it was trained on, so that others may seem odder than they are: put some aside before the
    training, since nothing here can tell. 20 different ones are enough to begin with, and 100 or more tell odd ones at
    1% of false alarms. The calibration holds statistics, and no observation.
    """
    if odd and threshold is not None:
        raise click.UsageError("--threshold goes without --odd, which sets it")
    if threshold is not None and not math.isfinite(threshold):
        raise click.UsageError(f"--threshold is a score, not {threshold}")
    files.check_output(output, ".json")
    vae = terminal.load(options)
    import numpy as np

    from vae_runtime.detector import Detector

    found, batches = terminal.read(sources, vae, missing, stride)
    normal: list[NDArray[np.uint64]] = []
    detector = Detector.fit(vae, _indexed(vae, batches, normal) if odd else batches, false_alarms)
    terminal.say_fitted(found)
    if odd:
        others, batches = terminal.read(odd, vae, missing, stride)
        numbers: list[NDArray[np.uint64]] = []
        scores = np.concatenate([detector.score(batch) for batch in _indexed(vae, batches, numbers)])
        if both := int(np.isin(np.concatenate(numbers), np.concatenate(normal)).sum()):
            terminal.note(f"{both} of {terminal.count(len(scores), 'odd one')} are among the normal ones too")
        terminal.say_fitted(others)
        threshold, caught = detector.between(scores)
        alarms = f"and calls {float(detector.p(threshold)):.1%} of the normal ones odd"
        which = f"it catches {caught:.1%} of {terminal.count(len(scores), 'odd one')}, {alarms}"
        terminal.note(f"threshold {threshold:.4g}: {which}")
    if threshold is not None:
        detector = Detector(vae, replace(detector.calibration, threshold=threshold))
    detector.save(output)
    if detector.coarse:
        terminal.note(detector.coarse)
    usual = terminal.count(detector.calibration.observations, f"different normal {vae.observation.noun}")
    share = f"threshold {threshold:.4g}" if threshold is not None else f"false alarms {detector.false_alarms:.2%}"
    click.echo(f"{output}: {usual}, {share}")


@click.command(short_help="Tell odd observations from normal ones.")
@terminal.with_sources
@click.option("--calibration", type=_PATH, help="What `calibrate` wrote.  [default: what the bundle carries]")
@click.option("--format", "style", type=click.Choice(["table", "csv", "jsonl"]), help="How to print.  [default: table]")
@click.option(
    "--maps",
    type=_PATH,
    help="Where each is unusual, which is no verdict, since normal ones have such places too: of images a .png or a"
    " folder of them, of rows and series a .csv, .jsonl or .png; or .npy.",
)
@click.option("--fail-on-odd", is_flag=True, help=f"Leave with exit code {_ODD} where one is odd.")
@click.option("--drift", is_flag=True, help="Say whether all of them together, in their order, are as usual.")
@terminal.with_missing
@terminal.with_stride
@terminal.with_output("A .csv or .jsonl file.  [default: print]")
@click.pass_context
def detect(
    context: click.Context,
    sources: tuple[str, ...],
    calibration: Path | None,
    style: str | None,
    maps: Path | None,
    fail_on_odd: bool,
    drift: bool,
    missing: str,
    stride: int | None,
    output: Path | None,
) -> None:
    """Tell odd observations from normal ones: a score, higher is odder, its p-value, and a verdict.

    p is the share of normal observations that score as high: of 1,000 normal ones ten have a p of 0.01 or less. Grey
    images under a Bernoulli likelihood are drawn as binary, as in training, and a score is of the mean over the draws.
    """
    style = terminal.style(style, output, "table", ".csv", ".jsonl")
    vae = terminal.load(context.obj)
    if maps is not None:
        from vae_runtime import map_files

        map_files.check(maps, vae)
        terminal.say_pictured(vae)
    import numpy as np

    from vae_runtime.detector import Detector

    detector = Detector.load(vae, calibration)
    found, batches = terminal.read(sources, vae, missing, stride, vae.rows_per_run(detector.calibration.num_samples))
    parts: list[NDArray[np.float64]] = []

    def mapped() -> "Iterator[map_files.Mapped]":
        for batch in batches:
            rows, deviations = detector.traits_and_map(batch)
            parts.append(rows)
            yield map_files.Mapped(batch, detector.judged(rows).score, deviations)

    if maps is None:
        parts.extend(map(detector.traits, batches))
    else:
        shown = map_files.write(maps, detector, mapped(), found.names(), len(found))
        terminal.note(f"{maps}: {shown}; that is no verdict, which is in the column odd")
    traits = np.concatenate(parts)
    verdict = detector.judged(traits)
    noun, odd = vae.observation.noun, int(verdict.odd.sum())
    by = _by(detector)
    lines = _lines(verdict, found.names(), style, noun, by)
    lines = terminal.folded(lines) if style == "table" else lines
    terminal.write(lines, output, f"{odd} of {terminal.count(len(found), noun)} odd, {by}")
    if drift:
        from vae_runtime import drift as drifting

        test = drifting.Drift(detector.calibration, every=drifting.apart(vae, stride))
        test.add(verdict.score, traits)
        (click.echo if style == "table" else terminal.note)(_drift(test, list(found.names()), noun))
    terminal.say_fitted(found)
    if detector.coarse:
        terminal.note(detector.coarse)
    if fail_on_odd and odd:
        context.exit(_ODD)


def _indexed(
    vae: "VAE", batches: "Iterator[NDArray[np.float32]]", numbers: "list[NDArray[np.uint64]]"
) -> "Iterator[NDArray[np.float32]]":
    """Pass batches on; `numbers` gets those by which equal observations are known."""
    from vae_runtime import noise

    for batch in batches:
        numbers.append(noise.index(vae.standardise(batch)))
        yield batch


def _drift(test: "Drift", names: list[str], noun: str) -> str:
    """Whether there is a drift in observations of these names, and of what."""
    of = terminal.count(len(names), noun)
    if test.every > 1:
        of += f", of which each {test.every}th is looked at, so that none overlaps another"
    if test.noticed is None or test.moved is None:
        return (
            f"no drift in {of}: e-value {math.exp(test.evidence):.2g}, and from {1 / test.false_alarms:g} on it is one"
        )
    noticed, begun = printable(names[test.noticed]), printable(names[test.moved.began])
    return f"drift noticed at {noticed}, {test.noticed + 1} of {of}, and begun about at {begun}: {test.moved}"


def _by(detector: "Detector") -> str:
    """By what the verdicts are."""
    threshold = detector.calibration.threshold
    return f"at {detector.false_alarms:.2%} of false alarms" if threshold is None else f"by threshold {threshold:.4g}"


def _lines(verdict: "Verdict", names: Iterable[str], style: str, noun: str, by: str) -> Iterator[str]:
    """The verdicts as lines of a `table`, `csv` or `jsonl`; by: by what they are."""
    head = [noun, *(field.name for field in fields(verdict))]
    rows = zip(names, *(getattr(verdict, name).tolist() for name in head[1:]), strict=True)
    if style == "jsonl":
        yield from (json.dumps(dict(zip(head, row, strict=True))) for row in rows)
    elif style == "csv":
        from vae_runtime.reports import csv_line

        yield csv_line(head)
        for row in rows:
            yield csv_line([int(cell) if isinstance(cell, bool) else cell for cell in row])
    else:
        listed = [(printable(name), *figures) for name, *figures in rows]
        width = max([len(noun), *(len(row[0]) for row in listed)])
        yield f"{noun:{width}} {'score':>9} {'p':>8}  odd  oddest"
        for name, score, p, odd, oddest, deviation in listed:
            shown = f"{score:9.2f}" if abs(score) < 1e6 else f"{score:9.3g}"  # of a spike it may have 40 digits
            judged = f"{name:{width}} {shown} {p:8.4f}  {'odd' if odd else '':3}"
            yield f"{judged}  {printable(oddest)} {deviation:+.1f}"
        yield f"{int(verdict.odd.sum())} of {len(listed)} odd, {by}"
