"""The test figures of a manifest as people and model hubs read them."""

import math
from dataclasses import dataclass

from vae_runtime import likelihoods
from vae_runtime.errors import printable
from vae_runtime.manifest import Manifest
from vae_runtime.measured import Figure

_LABELS = {"elbo": "ELBO", "reconstruction": "reconstruction term", "kl": "KL to the prior"}


@dataclass(frozen=True)
class CardFigure:
    """A test figure: mean and standard error, in nats per observation and, for probabilities, in bits per dimension.

    kind: what a model hub may call it. error: None where it is not known. num_samples: K, of a bound of log p(x).
    """

    kind: str
    label: str
    mean: float
    error: float | None
    bits: tuple[float, float | None] | None
    num_samples: int | None


def figures(manifest: Manifest) -> list[CardFigure]:
    """All test figures. Raises BundleError where the likelihood is not known."""
    contract = manifest.contract
    discrete = likelihoods.make(contract.likelihood, contract.observation).discrete
    to_bits = -1 / (contract.observation.size * math.log(2)) if discrete else None
    measured = manifest.evaluation.figures if manifest.evaluation else {}
    return [_figure(printable(name), figure, to_bits) for name, figure in measured.items()]


def _figure(name: str, figure: Figure, to_bits: float | None) -> CardFigure:
    """A figure of the evaluation; the whole log-probability has bits per dimension too, its two terms have not."""
    mean, error, k = figure.mean, figure.standard_error, figure.num_samples
    kind = "log_likelihood" if k else name
    label = f"log p(x), at least (K = {k:,})" if k else _LABELS.get(name, name)
    bits = None
    if kind in ("elbo", "log_likelihood") and to_bits is not None:
        bits = mean * to_bits, None if error is None else abs(error * to_bits)
    return CardFigure(kind, label, mean, error, bits, k)
