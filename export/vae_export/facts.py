"""What a bundle's manifest says of its model, ready for a model card; nothing is made up for what it lacks."""

import math
from dataclasses import dataclass
from typing import Any

from vae_runtime import likelihoods
from vae_runtime.likelihoods import Likelihood
from vae_runtime.manifest import Manifest
from vae_runtime.observation import Shape

_LABELS = {"elbo": "ELBO", "reconstruction": "reconstruction term", "kl": "KL to the prior"}
_USED = 0.01  # nats of KL from which on a latent is counted as used


@dataclass(frozen=True)
class Figure:
    """A test figure: mean and standard error, in nats per image and, for probabilities, in bits per dimension.

    kind: what a model hub may call it. error: None where it is not known. num_samples: K, of a bound of log p(x).
    """

    kind: str
    label: str
    mean: float
    error: float | None
    bits: tuple[float, float | None] | None
    num_samples: int | None


@dataclass(frozen=True)
class Facts:
    """A manifest's parts. shape: channels, height, width. quantiles: of the test images' ELBO, by level."""

    manifest: dict[str, Any]
    shape: Shape
    latent_dim: int
    likelihood: Likelihood
    evaluation: dict[str, Any]
    figures: list[Figure]
    quantiles: dict[float, float]

    @property
    def dataset(self) -> str:
        """The name of the data set, empty where it is not known."""
        return str(self.evaluation.get("dataset", ""))

    @property
    def likelihood_name(self) -> str:
        """As the contract has it."""
        return str(self.manifest["contract"]["likelihood"]["name"])

    @property
    def prior(self) -> str:
        """The name of the prior."""
        prior = self.manifest["contract"]["prior"]
        return str(prior["name"] if isinstance(prior, dict) else prior)

    @property
    def images(self) -> str:
        """Their shape, for people."""
        return " x ".join(map(str, self.shape))

    @property
    def used_latents(self) -> int | None:
        """How many latents carry more than a hundredth of a nat on average, where that is known."""
        per_dimension = self.evaluation.get("kl_per_dimension")
        return None if per_dimension is None else sum(nats > _USED for nats in per_dimension)


def read(manifest: Manifest) -> Facts:
    """The facts of a manifest. Raises KeyError, TypeError and their like where it is not as the exporter writes it."""
    contract, evaluation = manifest.contract, dict(manifest.raw.get("evaluation", {}))
    if manifest.evaluation is not None:
        evaluation["images"] = manifest.evaluation.observations
    likelihood = likelihoods.make(contract.likelihood, contract.observation)
    to_bits = -1 / (contract.observation.size * math.log(2)) if likelihood.discrete else None
    figures = [_figure(name, figure, to_bits) for name, figure in evaluation.get("figures", {}).items()]
    quantiles = evaluation.get("quantiles", {})
    by_level = dict(zip(quantiles.get("levels", []), quantiles.get("elbo", []), strict=True))
    shape, latent_dim = contract.observation.shape, math.prod(contract.latent_shape)
    return Facts(manifest.raw, shape, latent_dim, likelihood, evaluation, figures, by_level)


def _figure(name: str, figure: dict[str, Any], to_bits: float | None) -> Figure:
    """A figure of the evaluation; the whole log-probability has bits per dimension too, its two terms have not."""
    mean, num_samples = float(figure["mean"]), figure.get("num_samples")
    error = None if figure["standard_error"] is None else float(figure["standard_error"])
    kind = "log_likelihood" if num_samples else name
    label = f"log p(x), at least (K = {num_samples:,})" if num_samples else _LABELS.get(name, name)
    whole = kind in ("elbo", "log_likelihood") and to_bits is not None
    bits = (mean * to_bits, None if error is None else abs(error * to_bits)) if whole and to_bits else None
    return Figure(kind, label, mean, error, bits, num_samples)
