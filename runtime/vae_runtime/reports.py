"""Figures as text: scores of images, latents and the description of a bundle, for people and for programs."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from vae_runtime.errors import BundleError
from vae_runtime.likelihoods import Bernoulli
from vae_runtime.vae import VAE, Floats


@dataclass(frozen=True)
class Score:
    """One image's ELBO and terms in nats, and the share of test images with a lower ELBO, in percent.

    The share is interpolated between the bundle's quantiles; 0.1 and 99.9 stand for all beyond them.
    """

    image: str
    elbo: float
    reconstruction: float
    kl: float
    percentile: float


def score(vae: VAE, names: Sequence[str], x: Floats, num_samples: int, seed: int) -> tuple[list[Score], int]:
    """Scores of images [batch, C, H, W], and how many of them were grey and had to be binarised first."""
    scored = vae.binarise(x, seed) if isinstance(vae.likelihood, Bernoulli) else x
    binarised = int((scored != x).reshape(len(x), -1).any(axis=1).sum())
    terms = vae.terms(scored, num_samples, seed)
    try:
        quantiles = vae.info["evaluation"]["quantiles"]
        percentile = 100 * np.interp(terms.elbo, quantiles["elbo"], quantiles["levels"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError("bundle's manifest lacks the test images' quantiles", error, "export it again") from None
    columns = (terms.elbo, terms.reconstruction, terms.kl, percentile)
    return [Score(name, *map(float, row)) for name, *row in zip(names, *columns, strict=True)], binarised


def format_scores(scores: Sequence[Score], style: str, num_samples: int, seed: int) -> str:
    """Scores as `table`, `csv` or `json`."""
    header = [field.name for field in fields(Score)]
    if style == "json":
        rows = [asdict(row) for row in scores]
        return json.dumps({"unit": "nats", "samples": num_samples, "seed": seed, "images": rows}, indent=1)
    if style == "csv":
        return _csv(header, [list(asdict(row).values()) for row in scores])
    width = max(len("image"), *(len(row.image) for row in scores))
    lines = [f"{'image':{width}} {'ELBO':>10} {'log p(x|z)':>11} {'KL':>8} {'percentile':>11}"]
    for row in scores:
        figures = f"{row.elbo:10.2f} {row.reconstruction:11.2f} {row.kl:8.2f} {_percent(row.percentile):>11}"
        lines.append(f"{row.image:{width}} {figures}")
    elbos = np.array([row.elbo for row in scores])
    error = f" +- {elbos.std(ddof=1) / math.sqrt(len(elbos)):.2f}" if len(elbos) > 1 else ""
    draws = f"{num_samples} draw{'s' if num_samples > 1 else ''} of z per image, seed {seed}"
    lines.append(f"mean ELBO {elbos.mean():.2f}{error} nats per image, {draws}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    """A percentile, marked where it is one of the two ends."""
    return f"{'<' if value <= 0.1 else '>' if value >= 99.9 else ''}{value:.1f}%"


def format_latents(names: Sequence[str], mu: Floats, logsigma: Floats) -> str:
    """CSV with one line per image: its name, mu_0.., logsigma_0.."""
    header = ["image", *(f"{name}_{i}" for name in ("mu", "logsigma") for i in range(mu.shape[1]))]
    return _csv(header, [[name, *m.tolist(), *s.tolist()] for name, m, s in zip(names, mu, logsigma, strict=True)])


def format_info(manifest: dict[str, Any], as_json: bool) -> str:
    """What a bundle is, from its manifest."""
    if as_json:
        return json.dumps(manifest, indent=1)
    try:
        return _describe(manifest)
    except (KeyError, TypeError, ValueError) as error:
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
        lines[label] = f"{figure['mean']:.2f} +- {figure['standard_error']:.2f} nats per image"
    rows = manifest["parity"]["rows"]
    nats = max(row["nats"] for row in rows if row["tensor"] == "ELBO" and row["inputs"] == "real images")
    lines["gate"] = f"{len(rows)} comparisons with PyTorch passed; ELBO of real images within {nats:.1e} nats"
    return "\n".join(f"{name:22} {text}" for name, text in lines.items())


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue().rstrip("\n")
