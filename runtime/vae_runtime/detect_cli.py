"""The verbs of `vae-infer` that tell odd observations from normal ones: calibrate and detect."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_runtime import files, terminal
from vae_runtime.errors import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vae_runtime.detector import Detector, Verdict

_ODD = 1  # the exit code of --fail-on-odd
_PATH = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command()
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

    20 different ones are enough to begin with, and some hundreds tell odd ones at 1% of false alarms. The calibration
    holds statistics, and no observation.
    """
    if odd and threshold is not None:
        raise click.UsageError("--threshold goes without --odd, which sets it")
    files.check_output(output, ".json")
    vae = terminal.load(options)
    from vae_runtime.detector import Detector

    found, batches = terminal.read(sources, vae, missing, stride)
    detector = Detector.fit(vae, batches, false_alarms)
    terminal.say_fitted(found)
    if odd:
        others, batches = terminal.read(odd, vae, missing, stride)
        scores = _scores(detector, batches)
        terminal.say_fitted(others)
        threshold, caught = detector.between(scores)
        alarms = f"and calls {float(detector.p(threshold)):.1%} of the normal ones odd"
        which = f"it catches {caught:.1%} of {terminal.count(len(scores), 'odd one')}, {alarms}"
        terminal.note(f"threshold {threshold:.4g}: {which}")
    if threshold is not None:
        detector = Detector(vae, replace(detector.calibration, threshold=threshold))
    detector.save(output)
    _say_resolution(detector)
    usual = terminal.count(detector.calibration.observations, f"different normal {vae.observation.noun}")
    share = f"threshold {threshold:.4g}" if threshold is not None else f"false alarms {detector.false_alarms:.2%}"
    click.echo(f"{output}: {usual}, {share}")


@click.command()
@terminal.with_sources
@click.option("--calibration", type=_PATH, help="What `calibrate` wrote.  [default: what the bundle carries]")
@click.option("--format", "style", type=click.Choice(["table", "csv", "jsonl"]), help="How to print.  [default: table]")
@click.option("--fail-on-odd", is_flag=True, help=f"Leave with exit code {_ODD} where one is odd.")
@terminal.with_missing
@terminal.with_stride
@terminal.with_output("A .csv or .jsonl file.  [default: print]")
@click.pass_context
def detect(
    context: click.Context,
    sources: tuple[str, ...],
    calibration: Path | None,
    style: str | None,
    fail_on_odd: bool,
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
    from vae_runtime.detector import Detector

    detector = Detector.load(vae, calibration)
    found, batches = terminal.read(sources, vae, missing, stride, vae.rows_per_run(detector.calibration.num_samples))
    verdict = detector.judged(_scores(detector, batches))
    noun, odd = vae.observation.noun, int(verdict.odd.sum())
    lines = _lines(verdict, found.names(), style, noun)
    terminal.write(lines, output, f"{odd} of {terminal.count(len(found), noun)} odd")
    terminal.say_fitted(found)
    _say_resolution(detector)
    if fail_on_odd and odd:
        context.exit(_ODD)


def _scores(detector: "Detector", batches: "Iterator[NDArray[np.float32]]") -> "NDArray[np.float64]":
    import numpy as np

    return np.concatenate([detector.score(batch) for batch in batches])


def _say_resolution(detector: "Detector") -> None:
    """Say where a calibration cannot tell as finely as it was asked to."""
    asked, count = detector.calibration.false_alarms, detector.calibration.observations
    if detector.calibration.threshold is None and detector.least > asked:
        which = f"of {count} normal ones no p is below {detector.least:.2%}"
        share = f"that is the share of false alarms, on average over calibrations of so few, and not {asked:.2%}"
        terminal.note(f"{which}: {share}; calibrate with more")


def _lines(verdict: "Verdict", names: Iterable[str], style: str, noun: str) -> Iterator[str]:
    """The verdicts as lines of a `table`, `csv` or `jsonl`."""
    rows = zip(names, verdict.score.tolist(), verdict.p.tolist(), verdict.odd.tolist(), strict=True)
    if style == "jsonl":
        for name, *figures in rows:
            yield json.dumps({noun: name, **dict(zip(("score", "p", "odd"), figures, strict=True))})
    elif style == "csv":
        from vae_runtime.reports import csv_line

        yield csv_line([noun, "score", "p", "odd"])
        yield from (csv_line([name, score, p, int(odd)]) for name, score, p, odd in rows)
    else:
        listed = list(rows)
        width = max([len(noun), *(len(printable(name)) for name, *_ in listed)])
        yield f"{noun:{width}} {'score':>9} {'p':>8}"
        for name, score, p, odd in listed:
            yield f"{printable(name):{width}} {score:9.2f} {p:8.4f}{'  odd' if odd else ''}"
        yield f"{int(verdict.odd.sum())} of {len(listed)} odd"
