"""What the service answers of a model: observations as JSON, scores with verdicts, and what the page says."""

import base64
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime.detector import Detector
from vae_runtime.errors import BundleError
from vae_runtime.images import levels
from vae_runtime.latents import rest, spread, traverse
from vae_runtime.maps import overlay
from vae_runtime.observation import IMAGE
from vae_runtime.outputs import png
from vae_runtime.scores import score
from vae_runtime.serve_limits import Deadline, Limits
from vae_runtime.serve_requests import Sent, most
from vae_runtime.vae import VAE

JSON = dict[str, Any]
UNITS = {
    **{name: f"{name}_nats" for name in ("elbo", "standard_error", "reconstruction", "kl")},
    "percentile": "percentile_percent",
}
_LATENTS = 8  # that have a slider
_USED = 0.01  # nats of KL: a latent with less does nothing
_LOOKED_AT = 500  # samples that say how far columns range


def shown(vae: VAE, x: NDArray[Any]) -> list[Any]:
    """Observations [n, *shape] for JSON: images as data URLs of PNG files, others as lists of numbers."""
    if vae.observation.kind != IMAGE:
        values: list[Any] = x.tolist()
        return values
    return ["data:image/png;base64," + base64.b64encode(png(each, scale=1)).decode() for each in levels(x)]


def scored(vae: VAE, detector: Detector | None, sent: Sent, draws: int, seed: int, show: bool, until: Deadline) -> JSON:
    """The scores of what was sent, and where there is a detector its verdicts: {"scores": [{...}, ...], ...}."""
    x = sent.x
    rows = vae.rows_per_run(draws)
    scores = score(vae, until.parts(x, rows), draws, seed)
    columns: JSON = {UNITS.get(name, name): column for name, column in scores.columns().items()}
    if show:
        few = vae.rows_per_run(1)
        made = [vae.reconstruct(each) for each in until.parts(x, few)]
        columns |= {"observation": shown(vae, x), "reconstructed": shown(vae, np.concatenate(made))}
    if detector is not None:
        rows = vae.rows_per_run(detector.calibration.num_samples)
        traits, maps = [], []
        for part in until.parts(x, rows):
            if show:
                found, deviations = detector.traits_and_map(part)
                maps += _maps(detector, part, deviations)
            else:
                found = detector.traits(part)
            traits.append(found)
        verdict = detector.judged(np.concatenate(traits))
        told = {part.name: getattr(verdict, part.name).tolist() for part in fields(verdict)}
        if show:
            columns["map"] = maps
        columns["verdict"] = [dict(zip(told, each, strict=True)) for each in zip(*told.values(), strict=True)]
    notes = list(sent.notes)
    if scores.off_support:
        how = f"drawn as binary {draws} times, P(1) = level" if vae.likelihood.binary else "rounded to 8-bit levels"
        notes.append(f"{scores.off_support} {vae.observation.noun}{'s are' if scores.off_support > 1 else ' is'} {how}")
    each = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    named = [{"name": name, **row} for name, row in zip(sent.names, each, strict=True)]
    return {"scores": named, "samples": draws, "seed": seed, "notes": notes}


def _maps(detector: Detector, x: NDArray[Any], deviations: NDArray[Any]) -> list[Any]:
    """Where each is odd: of images a picture, of others the standard deviations of each value from what is usual."""
    if detector.vae.observation.kind == IMAGE:
        return shown(detector.vae, overlay(x, deviations, detector.calibration.places))
    values: list[Any] = deviations.round(3).tolist()
    return values


@dataclass(frozen=True)
class Slider:
    """A latent that is used: its place in z, flat, its mean KL in nats, where it rests and how far it goes."""

    latent: int
    kl: float
    rest: float
    low: float
    high: float


@dataclass(frozen=True)
class Range:
    """A column of rows or a channel of series: its name, its usual value and how far it goes, in its own unit."""

    name: str
    usual: float
    low: float
    high: float
    whole: bool


def model(vae: VAE, detector: Detector | None, limits: Limits) -> JSON:
    """What the page says of a model, and what it builds its sliders from."""
    evaluation = vae.manifest.evaluation
    elbo = evaluation.figures.get("elbo") if evaluation else None
    return {
        "name": vae.path.name,
        "observation": asdict(vae.observation),
        "noun": vae.observation.noun,
        "latent_dim": vae.latent_dim,
        "likelihood": vae.manifest.contract.likelihood.name,
        "binary": vae.likelihood.binary,
        "discrete": vae.likelihood.discrete,
        "dataset": evaluation.dataset if evaluation else "",
        "test_observations": evaluation.observations if evaluation else None,
        "elbo_nats": elbo.mean if elbo else None,
        "standard_error_nats": elbo.standard_error if elbo else None,
        "ranks": _ranks(vae),
        "columns": [asdict(each) for each in _ranges(vae)],
        "sliders": [asdict(each) for each in _sliders(vae)],
        "rest": rest(vae).ravel().tolist(),
        "detector": None
        if detector is None
        else {
            "observations": detector.calibration.observations,
            "false_alarms": detector.false_alarms,
            "threshold": detector.calibration.threshold,
            "high": detector.calibration.places.high,
        },
        "limits": {"observations": most(vae, limits), "bytes": limits.bytes, "draws": limits.draws},
    }


def _ranks(vae: VAE) -> tuple[float, float] | None:
    """The lowest and the highest percentile, which stand for all beyond them; None where there are none."""
    try:
        return vae.ranks.lowest, vae.ranks.highest
    except BundleError:
        return None


def _sliders(vae: VAE) -> list[Slider]:
    """The latents with the largest KL on test observations, or where it was not measured on the model's own samples."""
    evaluation = vae.manifest.evaluation
    if evaluation is not None and evaluation.kl_per_dimension is not None:
        kl = np.array(evaluation.kl_per_dimension)
        latents = np.argsort(-kl, kind="stable")[:_LATENTS].tolist()
        kl = kl[latents]
    else:
        walked = traverse(vae, steps=2, most=_LATENTS)
        latents, kl = walked.latents, walked.kl
    at, (_, unit) = rest(vae).ravel(), spread(vae)
    return [
        Slider(i, float(nats), *(float(at[i] + far * unit.flat[i]) for far in (0, -3, 3)))
        for i, nats in zip(latents, kl, strict=True)
        if nats > _USED
    ]


def _ranges(vae: VAE) -> list[Range]:
    """How far each column or channel goes, as the model's own samples do."""
    if vae.observation.kind == IMAGE:
        return []
    clip = vae.observation.clip
    x = np.moveaxis(clip(vae.sample(_LOOKED_AT)), 1, -1).reshape(-1, vae.observation.shape[0])  # [many, columns]
    low, usual, high = np.percentile(x, [0.5, 50, 99.5], axis=0, method="inverted_cdf")  # values that there are
    whole = (x == np.rint(x)).all(axis=0)
    beyond = np.where(whole, 0, (high - low) / 4)
    ends = zip(clip(low - beyond), clip(high + beyond), strict=True)
    return [
        Range(name, _short(mid), _short(a), _short(b), bool(int_))
        for name, mid, (a, b), int_ in zip(vae.names, usual, ends, whole, strict=True)
    ]


def _short(value: float) -> float:
    """With four digits, as people read it."""
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0
