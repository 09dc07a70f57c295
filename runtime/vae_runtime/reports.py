"""Figures as text: scores of images, latents and the description of a bundle, for people and for programs."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vae_runtime.elbo import Floats
from vae_runtime.errors import BundleError, printable
from vae_runtime.figures import plus_minus
from vae_runtime.scores import Scores

_SHOWN = 8  # latents in the table's last line


def format_scores(scores: Scores, names: Iterable[str], style: str, num_samples: int, seed: int) -> Iterator[str]:
    """Lines of scores as a `table`, `csv`, `json` or `jsonl` (one JSON object per line)."""
    columns = scores.columns()
    rows = zip(names, *columns.values(), strict=True)
    match style:
        case "json":
            facts = {
                "unit": "nats", "samples": num_samples, "seed": seed, "mean_elbo": float(scores.elbo.mean()),
                "standard_error_of_mean": scores.error_of_mean, "kl_per_dimension": scores.kl_per_dimension.tolist(),
            }  # fmt: skip
            yield json.dumps(facts, indent=1).removesuffix("\n}") + ',\n "images": ['
            for i, (name, *figures) in enumerate(rows, start=1):
                row = {"image": name, **dict(zip(columns, figures, strict=True))}
                yield "  " + json.dumps(row) + "," * (i < len(scores.elbo))
            yield " ]\n}"
        case "jsonl":
            for name, *figures in rows:
                yield json.dumps({"image": name, **dict(zip(columns, figures, strict=True))})
        case "csv":
            yield _csv(["image", *columns])
            yield from (_csv([name, *figures]) for name, *figures in rows)
        case _:
            yield from _table(scores, [name for name, *_ in rows], num_samples, seed)


def _table(scores: Scores, names: list[str], num_samples: int, seed: int) -> Iterator[str]:
    width = max(len("image"), *map(len, names))
    several = num_samples > 1
    error = f" {'+-':>5}" if several else ""
    ranks = scores.ranks and [scores.ranks.describe(percentile) for percentile in scores.ranks.percentile(scores.elbo)]
    rank_width = max(11, *map(len, ranks)) if ranks else 0
    rank = f" {'percentile':>{rank_width}}" if ranks else ""
    yield f"{'image':{width}} {'ELBO':>10}{error} {'log p(x|z)':>11} {'KL':>8}{rank}"
    for i, name in enumerate(names):
        error = f" {scores.standard_error[i]:5.2f}" if several else ""
        rank = f" {ranks[i]:>{rank_width}}" if ranks else ""
        figures = f"{scores.reconstruction[i]:11.2f} {scores.kl[i]:8.2f}{rank}"
        yield f"{printable(name):{width}} {scores.elbo[i]:10.2f}{error} {figures}"
    mean = plus_minus(float(scores.elbo.mean()), scores.error_of_mean)
    copies = ""
    if scores.different < len(scores.elbo):
        copies = ", all equal" if scores.different == 1 else f", {scores.different} distinct"
    of = f" of {len(scores.elbo)} images{copies}:" if len(scores.elbo) > 1 else ""
    draws = f"{num_samples} draw{'s' if several else ''} of z per image, seed {seed}"
    kind = "log density"  # unlike a probability, it may be above 0, and depends on the pixels' unit
    if scores.bits_per_dimension is not None:
        kind = f"{scores.bits_per_dimension.mean():.3f} bits per dimension"
    yield f"mean ELBO{of} {mean} nats per image ({kind}), {draws}"
    order = np.argsort(-scores.kl_per_dimension, kind="stable")[:_SHOWN]
    largest = ", ".join(f"{scores.kl_per_dimension[i]:.2f} (latent {i})" for i in order)
    yield f"mean KL per latent, largest first: {largest}{', ...' if len(scores.kl_per_dimension) > _SHOWN else ''}"


def format_latents(names: Iterable[str], mu: Floats, logsigma: Floats, style: str = "csv") -> Iterator[str]:
    """Lines with an image each: its name, mu and logsigma; as `csv` (mu_0.., logsigma_0..) or `jsonl`."""
    rows = zip(names, mu, logsigma, strict=True)
    if style == "jsonl":
        yield from (json.dumps({"image": name, "mu": m.tolist(), "logsigma": s.tolist()}) for name, m, s in rows)
        return
    yield _csv(["image", *(f"{name}_{i}" for name in ("mu", "logsigma") for i in range(mu.shape[1]))])
    yield from (_csv([name, *m.tolist(), *s.tolist()]) for name, m, s in rows)


def format_info(manifest: dict[str, Any], as_json: bool) -> str:
    """What a bundle is, from its manifest."""
    if as_json:
        return json.dumps(manifest, indent=1)
    try:
        return _describe(manifest)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise BundleError("bundle's manifest lacks what info prints", error, "export it again") from None


def _describe(manifest: dict[str, Any]) -> str:
    contract, evaluation, provenance = (manifest[part] for part in ("contract", "evaluation", "provenance"))
    image, likelihood = contract["image"], contract["likelihood"]["name"]
    size = sum(file["size"] for file in manifest["files"].values())
    lines = {
        "images": f"{image['channels']} x {image['height']} x {image['width']}, {likelihood} likelihood",
        "latents": f"{contract['latent_dim']} dimensions, {contract['prior']} prior",
        "graphs": f"opset {manifest['onnx']['opset']}, ir {manifest['onnx']['ir_version']}, {size / 1e6:.2f} MB, "
        f"{manifest['parameters']:,} parameters, pair {contract['pair']}",
        "made by": f"{provenance['command']}, in {provenance['training_seconds'] / 60:.1f} minutes",
        "measured on": f"{evaluation['images']:,} {evaluation['split']} images of {evaluation['dataset']}, "
        f"{evaluation['binarisation']}",
    }
    for name, figure in evaluation["figures"].items():
        label = f"log p(x) >= (K = {figure['num_samples']})" if "num_samples" in figure else name
        lines[label] = f"{plus_minus(figure['mean'], figure['standard_error'])} nats per image"
    if smaller := manifest.get("precision"):
        by = f"{plus_minus(abs(smaller['nats']), smaller['standard_error'], '.4f')} nats per image"
        side = "below" if smaller["nats"] >= 0 else "above"
        lines["precision"] = f"{smaller['precision']}, ELBO {by} {side} that of fp32, of which the figures above are"
    rows, reference = manifest["parity"]["rows"], manifest["parity"]["reference"]
    nats = max(row["nats"] for row in rows if row["tensor"] == "ELBO" and row["inputs"] == "real images")
    lines["gate"] = f"{len(rows)} comparisons with {reference} passed; ELBO of real images within {nats:.1e} nats"
    return "\n".join(printable(f"{name:22} {text}") for name, text in lines.items())


def _csv(row: list[Any]) -> str:
    """One line of CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(row)  # so that a line end within a name is quoted
    return buffer.getvalue().removesuffix("\r\n")
