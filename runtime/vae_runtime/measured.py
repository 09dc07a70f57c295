"""What a bundle may say of its past: how it was made, its figures, the gate's report."""

from dataclasses import dataclass, field
from typing import Any

from vae_runtime import records


@dataclass(frozen=True)
class Provenance:
    """How a model was made: by which command, in how many seconds, and on what. others: versions, and whatever else."""

    command: str | None = None
    training_seconds: float | None = None
    device: str | None = None
    gpu: str | None = None
    threads: int | None = None
    processes: int | None = None
    others: dict[str, Any] = field(default_factory=dict, metadata=records.OTHERS)

    def __post_init__(self) -> None:
        if self.training_seconds is not None and self.training_seconds < 0:
            raise ValueError(f"training_seconds is {self.training_seconds:g}")


@dataclass(frozen=True)
class Figure:
    """A mean over the test observations and its standard error, in nats; the latter None where it is not known.

    num_samples: K, of an importance-weighted bound.
    """

    mean: float
    standard_error: float | None = None
    num_samples: int | None = None


@dataclass(frozen=True)
class Quantiles:
    """Of the test observations: levels from 0 to 1, and the ELBO at each, nats."""

    levels: tuple[float, ...]
    elbo: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.levels or len(self.levels) != len(self.elbo):
            raise ValueError("as many levels as quantiles are needed")


@dataclass(frozen=True)
class Evaluation:
    """What the model was measured on, and its figures by name.

    kl_per_dimension: nats, a mean for each latent; to the Gaussian of its mean and variance where the prior has no
    closed form of the KL.
    """

    observations: int
    dataset: str = ""
    split: str = ""
    binarisation: str | None = None
    prior: str | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    quantiles: Quantiles | None = None
    kl_per_dimension: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Compared:
    """A row of the numeric gate's report; docs/numeric-gate.md says what its figures are. nats: of the ELBO."""

    tensor: str
    inputs: str
    batch: int
    tolerance: float
    max_abs: float
    ulps: float
    nats: float
    pytorch: float
    worst: int
    passed: bool

    @property
    def is_real(self) -> bool:
        """Whether it is of real observations."""
        return self.inputs.startswith("real ")


@dataclass(frozen=True)
class Parity:
    """The numeric gate's report. tolerance: by golden vector, in its own unit; `model` says where it comes from."""

    reference: str
    tolerance: dict[str, float | str]
    rows: tuple[Compared, ...]

    def golden_tolerance(self, name: str) -> float:
        """How far a golden vector may be off. Raises ValueError where the report does not say."""
        if not isinstance(found := self.tolerance.get(name), float):
            raise ValueError(f"parity.tolerance.{name} is missing")
        return found


@dataclass(frozen=True)
class Precision:
    """What smaller graphs cost: nats of the ELBO that they lose, of a mean over so many test observations."""

    precision: str
    nats: float
    observations: int | None = None
    standard_error: float | None = None
    most_nats: float | None = None
