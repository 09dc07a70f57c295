"""Odd or not: what is usual of a model's observations, learned from normal ones, and a p-value for every other one.

Example:
    detector = Detector.fit(vae, normal)  # normal ones that the model was not trained on
    verdict = detector.verdict(x)  # verdict.p, verdict.odd
"""

import hashlib
import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import bundle, density, maps, noise, records, traits
from vae_runtime.bundle import CALIBRATION, graphs_of
from vae_runtime.draws import Block, Model
from vae_runtime.errors import ArgumentError, BundleError, InputError
from vae_runtime.files import replacing
from vae_runtime.given import Given
from vae_runtime.observation import SERIES, VECTOR
from vae_runtime.vae import VAE
from vae_runtime.windows import Starts, separate

FALSE_ALARMS = 0.01
FEWEST = 20  # normal observations
MOST = 20_000  # that are looked at of more, chosen by what they are
_KEPT = 1000  # scores in a calibration: the highest ones, and as many of the others
_AT_ONCE = 256  # observations that are held against all kernels
_DIGITS = 7

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """What is usual, as statistics: no observation is in it.

    model: the hash of the graphs that it is for. traits: what the figures are called. num_samples: draws of z for each
    observation. observations: how many different normal ones were looked at. separate: of windows, how many of them
    share no row, and 0 of what are none. rows: the traits of some of them. scores:
    of all of them, or of enough, each by what the others say; higher_or_equal: how many are as high. places: what is
    usual where. false_alarms: the share of normal ones that may be called odd. threshold: a score that is, where it was
    set by hand.
    """

    model: str
    traits: tuple[str, ...]
    num_samples: int
    observations: int
    rows: tuple[tuple[float, ...], ...]
    scores: tuple[float, ...]
    higher_or_equal: tuple[int, ...]
    places: maps.Places
    false_alarms: float = FALSE_ALARMS
    threshold: float | None = None
    separate: int = 0
    format: int = 1

    def __post_init__(self) -> None:
        if self.format != 1:
            raise ValueError(f"format is {self.format}")
        if len(self.rows) < 3 or any(len(row) != len(self.traits) for row in self.rows):
            raise ValueError("rows do not fit the traits")
        if not self.scores or len(self.scores) != len(self.higher_or_equal) or list(self.scores) != sorted(self.scores):
            raise ValueError("scores are not in order")
        if not all(0 < higher <= self.observations for higher in self.higher_or_equal):
            raise ValueError(f"higher_or_equal is not of {self.observations} observations")
        if not len(self.rows) <= self.observations < 2**53:
            raise ValueError(f"observations is {self.observations}"[:60])
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}")
        if not 0 < self.false_alarms < 1:
            raise ValueError(f"false_alarms is {self.false_alarms:g}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold is {self.threshold:g}")


@dataclass(frozen=True)
class Verdict:
    """What a detector says of observations, [batch] each: float64, bool `odd` and the strings `oddest`.

    score: nats but for a constant; higher is odder. p: how many of normal observations have such a score or a higher
    one, from 1 / (n + 1) of n normal ones to 1; small is odd. oddest: of `Calibration.traits` the one that lies
    farthest from what is usual, where the others are as they are. deviation: how far, in standard deviations; below 0
    where it is less than usual.
    """

    score: Doubles
    p: Doubles
    odd: NDArray[np.bool_]
    oddest: NDArray[np.str_]
    deviation: Doubles


class Detector:
    """Tells odd observations from normal ones by several of their figures at once, of which each may be unusual.

    A score is -log of the density of an observation's traits among those of normal ones, nats. Of rows of numbers it is
    that less the ELBO, since they are seldom odd by being too ordinary, plus the nats of their values one by one, since
    a few dozen rows say more of each column than of how columns go together. Scores are the same for equal
    observations to the last bit, and on any machine to 0.001 nats, or a hundred-thousandth of the score where that is
    more; 8-bit graphs may round a value that lies in the middle of two levels to either. May be used from many threads.
    """

    def __init__(self, vae: VAE, calibration: Calibration) -> None:
        """Raises BundleError where the calibration is another model's."""
        todo = f"learn what is usual of this one: {_command(vae)}"
        if calibration.model != _model(vae):
            raise BundleError("calibration of another model", f"not of {vae.path}", todo)
        wanted = traits.names(vae.observation, vae.names)
        if list(calibration.traits) != wanted:
            raise BundleError("calibration of other traits", ", ".join(calibration.traits)[:200], todo)
        if len(calibration.places.mean) != math.prod(maps.cells(vae.observation)):
            raise BundleError("calibration of other places", len(calibration.places.mean), todo)
        self.vae, self.calibration = vae, calibration
        self._density = density.Density.of(np.array(calibration.rows))
        self._scores = np.array(calibration.scores)
        self._higher = np.array(calibration.higher_or_equal, np.float64)

    def __repr__(self) -> str:
        usual = f"{self.calibration.observations:,} different normal {self.vae.observation.noun}s"
        threshold = self.calibration.threshold
        by = f"{self.false_alarms:.2%} of false alarms" if threshold is None else f"threshold {threshold:.4g}"
        return f"<vae_runtime.Detector of {self.vae.path.name!r}: calibrated on {usual}; odd at {by}>"

    @classmethod
    def fit(
        cls,
        vae: VAE,
        normal: Given | Iterator[Given],
        false_alarms: float = FALSE_ALARMS,
        num_samples: int = traits.NUM_SAMPLES,
    ) -> "Detector":
        """Learn what is usual from `normal` observations of `vae`: [n, *shape], paths, or an iterator over batches.

        The memory is constant. They should be as those that will come, and not those that the model was trained on.
        Equal ones count once; of more than 20,000, those are taken whose hashes are least. Windows come in order: what
        is usual for one is told by those that share no row with it, since its neighbours would take it for ordinary.
        false_alarms: the share of normal ones that may be called odd. num_samples: draws of z for each. Raises
        InputError for fewer than 20 different ones, and for windows of which one shares rows with nearly all.
        """
        if not 0 < false_alarms < 1:
            raise ArgumentError("false alarms out of range", false_alarms, "give a share between 0 and 1, such as 0.01")
        figures, where = _Least(MOST), _Least(maps.KEPT)
        starts, windows = Starts(), vae.observation.kind == SERIES
        for x, rows, residuals in _looked_at(vae, normal, num_samples, places=True):
            index = noise.index(x)
            figures.add(index, np.column_stack([rows, starts.of(x)]) if windows else rows)
            where.add(index, residuals)
        found = figures.rows
        if len(found) < FEWEST:
            noun = vae.observation.noun
            raise InputError(f"too few normal {noun}s that differ", len(found), f"give {FEWEST} or more")
        begins, length = np.arange(len(found)), 1
        if windows:
            begins, length = found[:, -1].astype(np.int64), vae.observation.shape[-1]
            found = found[:, :-1]
        found = rounded(found)
        kernels = found[: density.MOST]
        scores = np.sort(_scores_of(vae, _surprises(found, begins, length), found))
        higher = len(scores) - np.searchsorted(scores, scores, side="left")
        kept = np.unique(np.linspace(0, len(scores) - 1, min(_KEPT, len(scores))).round().astype(int))
        kept = np.union1d(kept, np.arange(max(0, len(scores) - _KEPT), len(scores)))
        calibration = Calibration(
            _model(vae), tuple(traits.names(vae.observation, vae.names)), num_samples, len(found),
            tuple(map(tuple, kernels.tolist())), tuple(rounded(scores[kept]).tolist()),
            tuple(higher[kept].tolist()), maps.Places.of(where.rows), false_alarms,
            separate=separate(begins, length) if windows else 0,
        )  # fmt: skip
        return cls(vae, calibration)

    @classmethod
    def load(cls, vae: VAE, path: str | PathLike[str] | None = None) -> "Detector":
        """The detector that `save` wrote at `path`, or that the bundle of `vae` carries.

        Raises BundleError where there is none, or that of another model.
        """
        where = vae.path / CALIBRATION if path is None else Path(path)
        raw = bundle.carried(vae.path, vae.manifest, CALIBRATION) if path is None else _read(where)
        if raw is None:
            todo = f"make one, and name it with --calibration: {_command(vae)}"
            raise BundleError("bundle carries no calibration", vae.path, todo)
        try:
            return cls(vae, records.parse(Calibration, _document(raw)))
        except ValueError as error:
            todo = f"make one: {_command(vae)}"
            raise BundleError("not a calibration", f"{where} ({str(error)[:120]})", todo) from None
        except BundleError as error:
            raise BundleError(error.what, f"{where} ({error.which})", error.todo) from None

    def save(self, path: str | PathLike[str]) -> None:
        """Write the calibration to `path` as JSON, in one step."""
        with replacing(Path(path)) as file:
            file.write(self.dump())

    def dump(self) -> bytes:
        """The calibration as JSON."""
        return json.dumps(asdict(self.calibration)).encode() + b"\n"

    @property
    def least(self) -> float:
        """The least p that there can be: of n normal observations, 1 / (n + 1)."""
        return 1 / (self.calibration.observations + 1)

    @property
    def coarse(self) -> str | None:
        """Why normal observations may be called odd more often than was asked for, and what to do; None if not."""
        asked, count, known = self.calibration.false_alarms, self.calibration.observations, self.calibration.separate
        if self.calibration.threshold is not None:
            return None
        if self.least > asked:
            share = f"that is the share of false alarms, on average over calibrations of so few, and not {asked:.2%}"
            return f"of {count} normal ones no p is below {self.least:.2%}: {share}; calibrate with more"
        if 0 < known < 1 / asked:
            more = f"false alarms may be more than {asked:.2%}; calibrate with a longer recording"
            return f"calibrated on {count:,} windows, of which {known:,} share no row: {more}"
        return None

    @property
    def false_alarms(self) -> float:
        """The share of normal observations that are called odd: what was asked for, or `least` where that is more.

        Of a threshold that was set by hand, the share of those of the calibration that reach it, and `least` at least.
        """
        if (threshold := self.calibration.threshold) is not None:
            return float(self.p(np.array([threshold]))[0])
        return max(self.calibration.false_alarms, self.least)

    def traits(self, x: Given) -> Doubles:
        """What is looked at, `calibration.traits`, float64 [batch, traits]; x as in `VAE.terms`, grey ones too."""
        found = [rows for _, rows, _ in _looked_at(self.vae, x, self.calibration.num_samples)]
        return np.concatenate(found) if found else np.zeros((0, len(self.calibration.traits)))

    def map(self, x: Given) -> Doubles:
        """Where each of x is odd: how far each place is from what is usual there, in standard deviations, float64.

        Of images [batch, H, W], of rows [batch, D], of windows [batch, C, T]; x as in `traits`. Above 0 the model fits
        the place less than it fits normal ones, below 0 more: it is smoother, or lies nearer to what is expected. No
        place of 95% of normal observations goes beyond `calibration.places.high` and `.low`. A place is judged with
        those around it (`maps.residuals`), and some pixels or steps of a large observation share a number. It shows
        what the model cannot fit given what it took the whole for, so that what lies beside a change may be odd.
        """
        return self.traits_and_map(x)[1]

    def traits_and_map(self, x: Given) -> tuple[Doubles, Doubles]:
        """`traits` and `map` of x, in the time of the latter alone."""
        places, kind = self.calibration.places, self.vae.observation
        rows = [np.zeros((0, len(self.calibration.traits)))]
        deviations = [maps.spread_out(np.zeros((0, *maps.cells(kind))), kind)]
        for _, found, residuals in _looked_at(self.vae, x, self.calibration.num_samples, places=True):
            rows.append(found)
            deviations.append(maps.spread_out(places.deviations(residuals), kind))
        return np.concatenate(rows), np.concatenate(deviations)

    def score(self, x: Given) -> Doubles:
        """How odd each of x [batch, *shape] is, nats but for a constant, float64 [batch]; x as in `traits`."""
        return self._scored(self.traits(x))

    def p(self, score: ArrayLike) -> Doubles:
        """The share of normal ones whose score is as high as `score`, float64 (Vovk et al. 2005, section 2.2)."""
        count = self.calibration.observations
        given = np.asarray(score, np.float64)
        at = np.searchsorted(self._scores, given, side="left")  # the least kept score that is as high
        higher = np.where(at < len(self._scores), self._higher[np.minimum(at, len(self._scores) - 1)], 0)
        p: Doubles = (1 + higher) / (count + 1)
        return p

    def verdict(self, x: Given) -> Verdict:
        """Score, p-value and whether it is odd, of each of x, as in `traits`; a path does too."""
        return self.judged(self.traits(x))

    def between(self, odd: Doubles) -> tuple[float, float]:
        """A threshold between normal scores and those of odd ones, float64 [n], and the share of `odd` that it catches.

        Where it stands, the share of odd ones that are caught is higher than that of false alarms by as much as
        anywhere (Youden 1950). Raises InputError where there are no odd ones, and for NaN.
        """
        if not len(odd):
            raise InputError("no odd observations", "none", "give some with --odd, or leave it out")
        if np.isnan(odd).any():
            raise InputError("NaN among scores", f"odd observation {int(np.isnan(odd).argmax())}", "leave it out")
        candidates = np.sort(odd)
        caught = 1 - np.arange(len(odd)) / len(odd)
        best = int(np.argmax(caught - self.p(candidates)))
        return float(candidates[best]), float(caught[best])

    def judged(self, traits: Doubles) -> Verdict:
        """The verdict on observations by their `traits`, float64 [batch, traits]."""
        score, threshold = self._scored(traits), self.calibration.threshold
        p, deviations = self.p(score), self._density.deviations(traits)
        odd = p <= self.false_alarms if threshold is None else score >= threshold
        farthest = np.abs(deviations).argmax(axis=1)
        by = np.take_along_axis(deviations, farthest[:, None], axis=1)[:, 0]
        return Verdict(score, p, odd, np.array(self.calibration.traits)[farthest], by)

    def _scored(self, traits: Doubles) -> Doubles:
        return _scores_of(self.vae, self._density.surprise(traits), traits)


class _Least:
    """Rows of those whose numbers are least, of many that come, each once, in order of the numbers."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._index = np.zeros(0, np.uint64)
        self.rows: NDArray[Any] = np.zeros((0, 0))

    def add(self, index: NDArray[np.uint64], rows: NDArray[Any]) -> None:
        if len(self._index) == self._most:  # of many, most are not among them
            among = index < self._index[-1]
            index, rows = index[among], rows[among]
        if len(rows):
            joined = np.concatenate([self.rows, rows]) if len(self.rows) else rows
            self._index, first = np.unique(np.concatenate([self._index, index]), return_index=True)
            self._index, self.rows = self._index[: self._most], joined[first[: self._most]]


def _looked_at(
    vae: VAE, x: Given | Iterator[Given], num_samples: int, places: bool = False
) -> Iterator[tuple[Floats, Doubles, Floats]]:
    """As the networks take them a few observations at a time, their traits and, with `places`, `maps.residuals`.

    Raises InputError where a figure is not finite.
    """
    noun = vae.observation.noun

    def work(model: Model, block: Block, draws: int, seed: int) -> tuple[Floats, Doubles, Floats]:
        shortfall = np.zeros(block.x.shape) if places else None
        found = traits.traits(model, block, draws, seed, shortfall)
        residuals = np.zeros((len(found), 0), np.float32)
        if shortfall is not None:
            residuals = maps.residuals(shortfall, vae.observation)
        finite = np.isfinite(found).all(axis=1) & np.isfinite(residuals).all(axis=tuple(range(1, residuals.ndim)))
        if not finite.all():
            which = f"{noun} {block.numbers[np.argmin(finite)]}"
            raise InputError("the model gives no finite figure", which, f"check the {noun} and the model")
        return block.x, found, residuals

    yield from vae._map_blocks(work, x, num_samples, observe=True)


def _surprises(found: Doubles, begins: NDArray[np.int64], length: int) -> Doubles:
    """The surprise of each row of traits under the density of those that share nothing with it, nats [n].

    Beyond the first ones, of which kernels are kept, scale and correlation are those of all of these. begins: where the
    observation of each begins, which is `length` long. Raises InputError where there are too few.
    """

    def apart(some: slice) -> NDArray[np.bool_]:
        away: NDArray[np.bool_] = np.abs(begins[some, None] - begins[: density.MOST]) >= length
        if (away.sum(axis=1) < 3).any():
            raise InputError("normal windows that nearly all share rows", len(found), "give a longer recording")
        return away

    kernels = found[: density.MOST]
    surprises = [density.surprise_of_each(kernels, apart(slice(density.MOST)))]
    if len(found) > density.MOST:
        usual = density.Density.of(kernels)
        chunks = (slice(i, i + _AT_ONCE) for i in range(density.MOST, len(found), _AT_ONCE))
        surprises += [usual.surprise(found[i], ~apart(i)) for i in chunks]
    return np.concatenate(surprises)


def _scores_of(vae: VAE, surprise: Doubles, found: Doubles) -> Doubles:
    """The score, of -log density of the traits, which is `surprise`."""
    if vae.observation.kind != VECTOR:
        return surprise
    of = dict(zip(traits.names(vae.observation, vae.names), found.T, strict=True))
    score: Doubles = surprise - (of[traits.RECONSTRUCTION] - of[traits.KL]) + of.get(traits.VALUES, 0.0)
    return score


def rounded(values: Doubles) -> Doubles:
    """Numbers with as many digits as a calibration keeps, so that a saved one judges as the one that was fitted."""
    return np.array([float(f"{value:.{_DIGITS}g}") for value in values.ravel()]).reshape(values.shape)


def _model(vae: VAE) -> str:
    """What says which graphs a calibration is for: the hash of their hashes."""
    graphs = graphs_of(vae.manifest.contract)
    return hashlib.sha256("".join(vae.manifest.files[name].sha256 for name in graphs).encode()).hexdigest()


def _command(vae: VAE) -> str:
    """What makes a calibration for a model."""
    return f"vae-infer --bundle {shlex.quote(str(vae.path))} calibrate NORMAL... -o FILE.json"


def _document(raw: bytes) -> Any:
    """The JSON that these bytes are. Raises ValueError, in words of ours, where they are none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        todo = "check the path, or make one with vae-infer calibrate"
        raise BundleError("calibration not read", f"{path} ({error.strerror})", todo) from None
