"""Scores of observations, grey ones too: the ELBO, its terms, and its rank among the model's test observations."""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import arguments, given, likelihoods, noise
from vae_runtime.draws import Floats, Nats, no_terms
from vae_runtime.errors import ArgumentError, BundleError
from vae_runtime.given import Given
from vae_runtime.observation import IMAGE, SERIES
from vae_runtime.ranks import Ranks
from vae_runtime.threads import ordered_map
from vae_runtime.vae import MOST_SAMPLES, VAE

NUM_SAMPLES = 16  # draws by default: one has no standard error, and averages nothing
_LN2 = math.log(2)


@dataclass(frozen=True)
class Scores:
    """Scores of observations, float64 [n] each: ELBO and its terms in nats, and the `VAE.percentile` of the ELBO.

    standard_error: of the ELBO over the draws, of z and, where x is grey under a Bernoulli likelihood, of the binary x
    too; NaN for one draw. bits_per_dimension: -ELBO / (size of x, times ln 2), None where the likelihood is a density.
    kl_per_dimension: float64 [latent_dim], nats, averaged over the observations; None as in `Terms`.
    off_support: how many `VAE.observe` changes: grey ones are drawn as binary under a Bernoulli likelihood, others are
    rounded to the levels of theirs. index: uint64 [n], `noise.index` of each, by which equal ones are known.
    ranks, percentile: None where the bundle keeps no quantiles. contributions: by column, what it adds to log p(x|z),
    where that was asked for. may_overlap: whether observations are windows, which share rows.
    """

    elbo: Nats
    standard_error: Nats
    reconstruction: Nats
    kl: Nats
    percentile: Nats | None
    bits_per_dimension: Nats | None
    kl_per_dimension: Nats | None
    off_support: int
    index: NDArray[np.uint64]
    ranks: Ranks | None = None
    contributions: dict[str, Nats] = field(default_factory=dict)
    may_overlap: bool = False

    @property
    def different(self) -> int:
        """How many different observations there are."""
        return len(np.unique(self.index))

    @property
    def error_of_mean(self) -> float | None:
        """Standard error of the mean ELBO over the observations, nats; None where fewer than two of them are different.

        None of windows too: they may overlap, and are not as many independent ones.

        Equal ones have equal scores, and are one of as much weight: copies say nothing new of the mean.
        """
        if (different := self.different) < 2 or self.may_overlap:
            return None
        which = np.unique(self.index, return_inverse=True)[1]
        off = np.bincount(which, self.elbo - self.elbo.mean())  # [different], each the sum of its copies
        return math.sqrt(float(np.square(off).sum()) * different / (different - 1)) / len(self.elbo)

    def columns(self) -> dict[str, list[float]]:
        """`figures` as Python's numbers, for JSON."""
        return {name: column.tolist() for name, column in self.figures().items()}

    def figures(self) -> dict[str, NDArray[Any]]:
        """The figures that each one has, [n], by name; beside a percentile `test_observations`, of how many it is.

        What a column or channel contributes is called "log p(NAME)".
        """
        one_draw = bool(np.isnan(self.standard_error).all())
        of = None if self.ranks is None else np.broadcast_to(self.ranks.observations, len(self.elbo))
        figures: dict[str, NDArray[Any] | None] = {
            "elbo": self.elbo,
            "standard_error": None if one_draw else self.standard_error,
            "reconstruction": self.reconstruction,
            "kl": self.kl,
            "percentile": self.percentile,
            "test_observations": of,
            "bits_per_dimension": self.bits_per_dimension,
        }
        named = {name: column for name, column in figures.items() if column is not None}
        return named | {f"log p({name})": column for name, column in self.contributions.items()}


def score(
    vae: VAE,
    x: Given | Iterator[Given],
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    start: int = 0,
    by_column: bool = False,
) -> Scores:
    """Score observations x [batch, *shape], or whatever else a VAE takes, or an iterator over such batches.

    In memory for a few figures of each.

    Of `num_samples` draws of z each that `vae` takes, and of the binary x too where it is grey (`VAE.terms` with
    `observe`). Equal ones get equal scores, whatever lies beside them, for one `seed`. `start` is the number of the
    first one, for errors. by_column: what each column of rows, or channel of series, contributes too; ArgumentError for
    images. Raises InputError where one is not of the model's shape and range.
    """
    if by_column and vae.observation.kind == IMAGE:
        raise ArgumentError(f"{vae.observation.noun}s have no columns", vae.path, "score them without")
    evaluation = vae.manifest.evaluation  # read before hours of work, since it may be malformed
    try:
        ranks: Ranks | None = Ranks.of(evaluation)
    except BundleError:  # a model may be scored with that has not been measured
        ranks = None
    num_samples = arguments.integer(num_samples, "num_samples", 1, MOST_SAMPLES)
    rows = vae.rows_per_run(num_samples)

    def pieces() -> Iterator[tuple[int, Floats]]:
        seen = start
        for batch in given.batches(vae, x):
            observations = arguments.array(given.array(vae, batch), f"{vae.observation.noun}s")
            yield from ((seen + i, observations[i : i + rows]) for i in range(0, len(observations), rows))
            seen += len(observations)

    def work(piece: tuple[int, Floats]) -> tuple[Nats, Nats | None, NDArray[np.uint64], int]:
        first, observations = piece
        terms = vae.terms(observations, num_samples, seed, first, observe=True, contributions=by_column)
        each = [] if terms.contributions is None else [_of_columns(terms.contributions)]
        figures = np.column_stack([terms.elbo, terms.standard_error, terms.reconstruction, terms.kl, *each])
        standardised = vae.standardise(observations)
        changed = int(likelihoods.outside(vae.likelihood, standardised).sum())
        return figures, terms.kl_per_dimension, noise.index(standardised), changed

    figures, index, changed = array("d"), array("Q"), 0
    of_none = no_terms(vae.prior).kl_per_dimension
    kl = None if of_none is None else of_none.sum(axis=0)  # zeros
    for part, kl_of_part, index_of_part, changed_of_part in ordered_map(vae.threads, work, pieces()):
        figures.frombytes(part.tobytes())
        index.frombytes(index_of_part.tobytes())
        if kl is not None and kl_of_part is not None:
            for row in kl_of_part:  # one after the other, so that no bit depends on the parts
                kl += row
        changed += changed_of_part
    columns = vae.names if by_column else []
    elbo, error, reconstruction, kl_of_each, *of_columns = np.frombuffer(figures).reshape(-1, 4 + len(columns)).T
    percentile = None if ranks is None else ranks.percentile(elbo)
    bits = -elbo / (vae.observation.size * _LN2) if vae.likelihood.discrete else None
    mean_kl = None if kl is None else kl / max(1, len(elbo))
    numbers = np.frombuffer(index, np.uint64)
    return Scores(
        elbo, error, reconstruction, kl_of_each, percentile, bits, mean_kl, changed, numbers, ranks,
        dict(zip(columns, of_columns, strict=True)), vae.observation.kind == SERIES,
    )  # fmt: skip


def _of_columns(contributions: Nats) -> Nats:
    """What values [n, D] or [n, C, T] contribute, by column: [n, D] or [n, C]."""
    summed: Nats = contributions.reshape(*contributions.shape[:2], -1).sum(axis=2)
    return summed
