"""Drift: whether what comes still looks like the calibration, by a test that may be asked after each observation.

Example:
    drift = Drift(detector.calibration)
    drift.add(scores, traits)  # of one observation or of many, as often as one likes
    drift.noticed, drift.moved
"""

from dataclasses import dataclass
from math import log, log2
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.detector import Calibration, rounded
from vae_runtime.errors import ArgumentError
from vae_runtime.observation import SERIES
from vae_runtime.sources import windowing
from vae_runtime.vae import VAE

FALSE_ALARMS = 0.001

SCORE = "score"
HIGHER, LOWER, WIDER, NARROWER = "higher", "lower", "more varied", "less varied"
HIGHER_AT_TIMES, LOWER_AT_TIMES = "higher at times", "lower at times"

_Z = NormalDist()
_EDGES = np.arange(-3.5, 3.75, 0.25)  # of bins, in standard deviations of a normal distribution
_CALIBRATION, _OBSERVATIONS = 0, 1  # seeds of what tells equal values apart
_AT_ONCE = 256
_TELLING = 100  # to 1

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _Bet:
    """That a share of observations comes from N(shift, spread^2), where usual ones come from N(0, 1)."""

    called: str
    shift: float = 0.0
    spread: float = 1.0
    share: float = 1.0

    def below(self, z: float) -> float:
        """The probability of less than z."""
        return (1 - self.share) * _Z.cdf(z) + self.share * _Z.cdf((z - self.shift) / self.spread)


_BETS = (
    *(_Bet(HIGHER, shift) for shift in (0.1, 0.25, 0.5, 1.0, 2.0)),
    *(_Bet(LOWER, -shift) for shift in (0.1, 0.25, 0.5, 1.0, 2.0)),
    *(_Bet(WIDER, spread=spread) for spread in (1.5, 3.0)),
    *(_Bet(NARROWER, spread=spread) for spread in (0.4, 0.7)),
    _Bet(HIGHER_AT_TIMES, 3.0, share=0.05),
    _Bet(LOWER_AT_TIMES, -3.0, share=0.05),
)


@dataclass(frozen=True)
class Moved:
    """What moved most, as a description and no test.

    what: of the traits the one with the most evidence since it began, or "score" where that is less than 100 to 1. how:
    "higher", "lower", "more varied", "less varied", "higher at times" or "lower at times". began: about with which
    observation, by number.
    """

    what: str
    how: str
    began: int

    def __str__(self) -> str:
        how, _, rest = self.how.partition(" at")
        return f"{self.what} is {how} than usual" + (rest and f" at{rest}")


class Drift:
    """A sequential test of whether observations come from where those of a calibration came from.

    Of observations that do, in any order as likely as in any other, a share of at most `false_alarms` of all streams,
    however long, is ever called drifted: it may be looked at after each one. Score and traits are each tested, at half
    of `false_alarms` and at equal parts of the other half; those of the traits are exact, and that of the score is as
    exact as the calibration's scores are like those of new observations.

    Of n normal values a new one is as likely to fall into each of the n + 1 gaps between them, and the next one into
    each of n + 2: Polya's urn, with bins of gaps as colours. Against it bets are laid on values that are higher, lower,
    more or less varied; what a bet has won is a test martingale (Ville 1939; Vovk et al. 2005, section 7.1; Ramdas et
    al. 2023, arXiv:2210.01948). Bets begin anew at each observation, each time with a part of the stake, so that a long
    normal past costs little. The memory is constant, and equal streams have equal answers.

    observations: how many have come. noticed: the number of that with which a drift was noticed, from 0, else None;
    the test ends there, and later ones are counted only. moved: what moved, None before. evidence: log of the e-value,
    nats; a drift is noticed at -log of `false_alarms`.
    """

    def __init__(self, calibration: Calibration, false_alarms: float = FALSE_ALARMS, every: int = 1) -> None:
        """every: 2 looks at each second observation, say, and so on: for windows that overlap."""
        if not 0 < false_alarms < 1:
            raise ArgumentError(
                "false alarms out of range", false_alarms, "give a share between 0 and 1, such as 0.001"
            )
        if every < 1:
            raise ArgumentError("every out of range", every, "give 1 or more")
        self.traits, self.false_alarms, self.every = calibration.traits, false_alarms, every
        self.observations, self.evidence = 0, log(1 / 2)
        self.noticed: int | None = None
        self.moved: Moved | None = None
        self._urns = _Urns.of(calibration)
        self._share = np.array([1 / 2, *[1 / (2 * len(self.traits))] * len(self.traits)])  # [statistics]
        self._drawn = np.tile(self._urns.gaps[:, None], len(_BETS))  # [statistics, bets]
        self._won = np.zeros_like(self._drawn)
        self._run = np.zeros_like(self._drawn)  # what it has won at the most since any observation (Page 1954)
        self._began = np.zeros(self._run.shape, np.int64)

    @property
    def seen(self) -> int:
        """How many of the observations were looked at."""
        return -(-self.observations // self.every)

    def add(self, scores: Doubles, traits: Doubles) -> None:
        """Look at observations: their scores, float64 [n], and traits, float64 [n, traits], of a `Detector`."""
        looked_at = slice(-self.observations % self.every, None, self.every)
        values = rounded(np.column_stack([scores, traits])[looked_at])  # [m, statistics]
        first = self.seen
        self.observations += len(traits)
        for start in range(0, len(values), _AT_ONCE):
            if self.noticed is None:
                self._bet(values[start : start + _AT_ONCE], first + start)

    def _bet(self, values: Doubles, first: int) -> None:
        """Bet on each of the values [m, statistics], of which the first is the one of that number."""
        odds = self._urns.of_values(values, first)  # [m, statistics, bets]
        drawn = np.cumsum(np.concatenate([self._drawn[None], odds]), axis=0)
        gaps = self._urns.gaps + np.arange(first, first + len(values))[:, None]  # [m, statistics]
        wins = odds * gaps[:, :, None] / drawn[:-1]  # of each bet's probabilities, over those of the urn
        limits = 1 / (self._share * self.false_alarms)
        for number, win in enumerate(wins, first):
            stake = (_unspent(number) - _unspent(number + 1)) / len(_BETS)
            self._won = (self._won + stake) * win
            np.copyto(self._began, number, where=self._run < 1)
            self._run = np.maximum(self._run, 1) * win
            wealth = self._won.sum(axis=1) + _unspent(number + 1)  # [statistics]
            if (wealth >= limits).any():
                self._notice(number)
                break
        self._drawn = drawn[number + 1 - first]
        self.evidence = float(np.log((wealth * self._share).max()))

    def _notice(self, number: int) -> None:
        """What is to be said with the observation of that number."""
        self.noticed = number * self.every
        trait = 1 + int(self._run[1:].max(axis=1).argmax())
        of = trait if self._run[trait].max() >= _TELLING else 0
        bet = int(self._run[of].argmax())
        began = int(self._began[of, bet]) * self.every
        self.moved = Moved(self.traits[of - 1] if of else SCORE, _BETS[bet].called, began)


@dataclass(frozen=True)
class _Urns:
    """Bins for the scores and for each trait, statistics in short, by edges that are values of the calibration.

    A value that equals an edge lies below it where its uniform draw does, so that a new one may be anywhere among its
    equals: many figures of binary images are often the same.
    """

    gaps: Doubles  # [statistics]: between the values of the calibration, and beyond them
    edges: Doubles  # [statistics, edges], in order; infinite where there are fewer
    draws: Doubles  # [statistics, edges]
    odds: Doubles  # [statistics, edges + 1, bets]: what a bet gives a bin, over the bin's share of the gaps

    @classmethod
    def of(cls, calibration: Calibration) -> "_Urns":
        """Those of the scores that it keeps, and of its rows of traits."""
        ranks = calibration.observations - np.array(calibration.higher_or_equal)  # how many are lower
        columns = [(np.array(calibration.scores), np.maximum.accumulate(ranks), calibration.observations)]
        rows = np.sort(np.array(calibration.rows), axis=0)
        columns += [(values, np.searchsorted(values, values), len(rows)) for values in rows.T]
        statistics, most = len(columns), len(_EDGES)
        edges, draws = np.full((statistics, most), np.inf), np.zeros((statistics, most))
        odds = np.ones((statistics, most + 1, len(_BETS)))
        for i, (values, ranks, count) in enumerate(columns):
            uniforms = noise.uniform(_CALIBRATION, noise.TIES, i, 2 * len(values)).astype(np.float64)
            values, below, drawn = _places(values, ranks, count, *uniforms.reshape(2, -1))
            at = _nearest(below, [_Z.cdf(z) * (count + 1) for z in _EDGES])
            edges[i, : len(at)], draws[i, : len(at)] = values[at], drawn[at]
            odds[i, : len(at) + 1] = _odds(below[at] / (count + 1))
        return cls(np.array([count + 1.0 for _, _, count in columns]), edges, draws, odds)

    def of_values(self, values: Doubles, first: int) -> Doubles:
        """The odds of the bins of values [m, statistics], the first one that of that number: [m, statistics, bets]."""
        bins = (values[:, :, None] > self.edges).sum(axis=2)
        equal = values[:, :, None] == self.edges
        if equal.any():
            draws = noise.uniform(_OBSERVATIONS, noise.TIES, first + np.arange(len(values)), values.shape[1])
            bins += (equal & (draws[:, :, None] >= self.draws)).sum(axis=2)
        odds: Doubles = self.odds[np.arange(values.shape[1]), bins]
        return odds


def apart(vae: VAE, stride: int | None = None) -> int:
    """Windows of which each so many-th is taken do not overlap; 1 of what are no series. stride: as in `VAE.read`."""
    if vae.observation.kind != SERIES:
        return 1
    return -(-vae.observation.shape[-1] // windowing(vae.observation, vae.manifest.preprocessing, stride).stride)


def _places(
    values: Doubles, ranks: Integers, count: int, low: Doubles, high: Doubles
) -> tuple[Doubles, Integers, Doubles]:
    """Where an edge may be: values in order, how many of count + 1 gaps are below, and the draws of those edges.

    values, ranks: some or all of the `count` values, and how many are lower. low, high: uniform draws, of as many. Of
    values that are equal these are the first and the last, with the least and the greatest of a draw for each of them.
    """
    ranks, first, times = np.unique(ranks, return_index=True, return_counts=True)
    values, low, high = values[first], low[first], high[first]
    equals = np.where(times > 1, np.diff(np.append(ranks, count)), 1)
    least = 1 - (1 - low) ** (1 / equals)
    several = equals > 1
    greatest = least[several] + (1 - least[several]) * high[several] ** (1 / (equals[several] - 1))
    below = np.concatenate([ranks + 1, (ranks + equals)[several]])
    order = np.argsort(below, kind="stable")
    values, draws = np.concatenate([values, values[several]]), np.concatenate([least, greatest])
    return values[order], below[order], draws[order]


def _nearest(values: Integers, wanted: list[float]) -> Integers:
    """Where in values, in order, those stand that are nearest to the wanted ones, each once."""
    after = np.clip(np.searchsorted(values, wanted), 1, max(1, len(values) - 1))
    before = after - 1
    after = np.minimum(after, len(values) - 1)
    return np.unique(np.where(wanted - values[before] <= values[after] - wanted, before, after))


def _odds(below: Doubles) -> Doubles:
    """Of bins, by the shares of gaps below the edges between them: [bins, bets]."""
    shares = np.diff(below, prepend=0, append=1)
    places = [_Z.inv_cdf(share) for share in below.tolist()]
    bets = np.array([[bet.below(z) for z in places] for bet in _BETS])
    return (np.diff(bets, axis=1, prepend=0, append=1) / shares).T


def _unspent(number: int) -> float:
    """The part of the stake that is left before the observation of that number."""
    return 1 / log2(2 + number)
