"""Figures as text: scores, latents and the description of a bundle, for people and for programs."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import likelihoods
from vae_runtime.bundle import graphs_of
from vae_runtime.draws import Floats
from vae_runtime.errors import printable
from vae_runtime.figures import plus_minus
from vae_runtime.manifest import Manifest
from vae_runtime.measured import Evaluation
from vae_runtime.scores import Scores

_AT_ONCE = 1024  # rows
_SHOWN = 8  # latents in the table's last line
INDENT = 23  # characters before what a line of `format_info` says


def format_scores(
    scores: Scores, names: Iterable[str], style: str, num_samples: int, seed: int, noun: str
) -> Iterator[str]:
    """Lines of scores as a `table`, `csv`, `json` or `jsonl` (one JSON object per line); `noun` is what is scored."""
    columns = scores.figures()
    numbered = zip(names, _rows(list(columns.values())), strict=True)
    rows: Iterator[tuple[Any, ...]] = ((name, *figures) for name, figures in numbered)
    match style:
        case "json":
            facts = {
                "unit": "nats", "samples": num_samples, "seed": seed, "mean_elbo": float(scores.elbo.mean()),
                "standard_error_of_mean": scores.error_of_mean,
            }  # fmt: skip
            if scores.kl_per_dimension is not None:
                facts["kl_per_dimension"] = scores.kl_per_dimension.tolist()
            yield json.dumps(facts, indent=1).removesuffix("\n}") + f',\n "{noun}s": ['
            for i, (name, *figures) in enumerate(rows, start=1):
                row = {noun: name, **dict(zip(columns, figures, strict=True))}
                yield "  " + json.dumps(row) + "," * (i < len(scores.elbo))
            yield " ]\n}"
        case "jsonl":
            for name, *figures in rows:
                yield json.dumps({noun: name, **dict(zip(columns, figures, strict=True))})
        case "csv":
            yield csv_line([noun, *columns])
            yield from (csv_line([name, *figures]) for name, *figures in rows)
        case _:
            yield from _table(scores, [name for name, *_ in rows], num_samples, seed, noun)


def _table(scores: Scores, names: list[str], num_samples: int, seed: int, noun: str) -> Iterator[str]:
    width = max(len(noun), *map(len, names))
    several = num_samples > 1
    error = f" {'+-':>5}" if several else ""
    ranks = scores.ranks and [scores.ranks.describe(rank) for rank in scores.ranks.percentile(scores.elbo)]
    rank = f" {'percentile':>10}" if ranks else ""
    yield f"{noun:{width}} {'ELBO':>10}{error} {'log p(x|z)':>11} {'KL':>8}{rank}"
    for i, name in enumerate(names):
        error = f" {scores.standard_error[i]:5.2f}" if several else ""
        rank = f" {ranks[i]:>10}" if ranks else ""
        figures = f"{scores.reconstruction[i]:11.2f} {scores.kl[i]:8.2f}{rank}"
        yield f"{printable(name):{width}} {scores.elbo[i]:10.2f}{error} {figures}"
    mean = plus_minus(float(scores.elbo.mean()), scores.error_of_mean)
    copies = ""
    if scores.different < len(scores.elbo):
        copies = ", all equal" if scores.different == 1 else f", {scores.different} distinct"
    of = f" of {len(scores.elbo)} {noun}s{copies}:" if len(scores.elbo) > 1 else ""
    draws = f"{num_samples} draw{'s' if several else ''} of z per {noun}, seed {seed}"
    if scores.ranks and scores.ranks.coarse:  # how few they are sets the two ends
        draws += f", percentiles of {scores.ranks.observations} test {noun}s"
    kind = "log density"  # unlike a probability, it may be above 0, and depends on the values' unit
    if scores.bits_per_dimension is not None:
        kind = f"{scores.bits_per_dimension.mean():.3f} bits per dimension"
    yield f"mean ELBO{of} {mean} nats per {noun} ({kind}), {draws}"
    if (kl := scores.kl_per_dimension) is not None:
        order = np.argsort(-kl, kind="stable")[:_SHOWN]
        largest = ", ".join(f"{kl[i]:.2f} (latent {i})" for i in order)
        yield f"mean KL per latent, largest first: {largest}{', ...' if len(kl) > _SHOWN else ''}"


def _rows(columns: list[NDArray[Any]]) -> Iterator[tuple[float, ...]]:
    """The rows of columns [n] as Python's numbers, a few at a time: these take four times the memory."""
    for start in range(0, len(columns[0]), _AT_ONCE):
        yield from zip(*(column[start : start + _AT_ONCE].tolist() for column in columns), strict=True)


def format_latents(names: Iterable[str], mu: Floats, logsigma: Floats, style: str, noun: str) -> Iterator[str]:
    """Lines with an observation each: its name, mu and logsigma; as `csv` (mu_0.., logsigma_0..) or `jsonl`.

    Latents of several axes are written in C order.
    """
    mu, logsigma = (values.reshape(len(values), -1) for values in (mu, logsigma))
    rows = zip(names, mu, logsigma, strict=True)
    if style == "jsonl":
        yield from (json.dumps({noun: name, "mu": m.tolist(), "logsigma": s.tolist()}) for name, m, s in rows)
        return
    yield csv_line([noun, *(f"{name}_{i}" for name in ("mu", "logsigma") for i in range(mu.shape[1]))])
    yield from (csv_line([name, *m.tolist(), *s.tolist()]) for name, m, s in rows)


def format_info(manifest: Manifest) -> str:
    """What a bundle is, as far as its manifest says it."""
    contract, onnx = manifest.contract, manifest.onnx
    observation = contract.observation
    shape = " x ".join(map(str, observation.shape))
    size = sum(manifest.files[name].size for name in graphs_of(contract))
    latents = " x ".join(map(str, contract.latent_shape))
    graphs = [f"{size / 1e6:.2f} MB", f"pair {contract.pair}"]
    if manifest.parameters is not None:
        graphs.insert(1, f"{manifest.parameters:,} parameters")
    if onnx is not None:
        graphs.insert(0, f"opset {onnx.opset}, ir {onnx.ir_version}")
    density = "" if likelihoods.make(contract.likelihood, observation).discrete else " (a log density)"
    lines = {
        f"{observation.noun}s": f"{shape}, {contract.likelihood.name} likelihood{density}",
        "latents": f"{latents} dimensions, {contract.prior.name} prior",
        "graphs": ", ".join(graphs),
    }
    if words := manifest.preprocessing.in_words():
        lines["prepared"] = words
    if (made := manifest.provenance) is not None and made.command is not None:
        took = "" if made.training_seconds is None else f", in {made.training_seconds / 60:.1f} minutes"
        lines["made by"] = f"{made.command}{took}"
    if manifest.evaluation is not None:
        lines |= _measured(manifest.evaluation, observation.noun)
    if (smaller := manifest.precision) is not None:
        by = f"{plus_minus(abs(smaller.nats), smaller.standard_error, '.4f')} nats per {observation.noun}"
        side = "below" if smaller.nats >= 0 else "above"
        lines["precision"] = f"{smaller.precision}, ELBO {by} {side} that of fp32, of which the figures above are"
    if (parity := manifest.parity) is not None:
        passed = f"{len(parity.rows)} comparisons with {parity.reference} passed"
        nats = [row.nats for row in parity.rows if row.tensor == "ELBO" and row.is_real]
        worst = f"; ELBO of real {observation.noun}s within {max(nats):.1e} nats" if nats else ""
        lines["gate"] = passed + worst
    return "\n".join(printable(f"{name:{INDENT - 1}} {text}") for name, text in lines.items())


def _measured(evaluation: Evaluation, noun: str) -> dict[str, str]:
    """What a model was measured on, and its figures."""
    of = f" of {evaluation.dataset}" if evaluation.dataset else ""
    drawn = f", {evaluation.binarisation}" if evaluation.binarisation else ""
    split = f"{evaluation.split} " if evaluation.split else ""
    lines = {"measured on": f"{evaluation.observations:,} {split}{noun}s{of}{drawn}"}
    for name, figure in evaluation.figures.items():
        label = f"log p(x) >= (K = {figure.num_samples})" if figure.num_samples else name
        lines[label] = f"{plus_minus(figure.mean, figure.standard_error)} nats per {noun}"
    return lines


def csv_line(row: list[Any]) -> str:
    """One line of CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(row)  # so that a line end within a name is quoted
    return buffer.getvalue().removesuffix("\r\n")
