"""Drift: a test that may be asked at any time raises few false alarms, finds what has moved, and says what it was."""

import math
from collections.abc import Callable
from itertools import combinations, pairwise, permutations
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from support.bundles import Forge, linear
from support.commands import Command
from vae_runtime import VAE, Detector, Drift
from vae_runtime.cli import main
from vae_runtime.detector import Calibration
from vae_runtime.drift import apart
from vae_runtime.errors import ArgumentError
from vae_runtime.maps import Places

NAMES = ("KL", "brightness", "contrast")


def calibration(rows: np.ndarray, scores: np.ndarray) -> Calibration:
    """Of normal observations by their traits [n, traits] and scores [n]."""
    scores = np.sort(scores)
    higher = len(scores) - np.searchsorted(scores, scores)
    table = tuple(map(tuple, rows.tolist()))
    places = Places((0.0,), (1.0,), 3.0, -3.0)
    return Calibration(
        "", NAMES[: rows.shape[1]], 8, len(scores), table, tuple(scores.tolist()), tuple(higher.tolist()), places
    )


def of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and traits: the score is how far the traits lie from 0."""
    return np.square(rows).sum(axis=1), rows


def told(normal: np.ndarray, stream: np.ndarray, false_alarms: float = 0.001, every: int = 1) -> Drift:
    """What is said of a stream of traits after normal ones."""
    drift = Drift(calibration(*reversed(of(normal))), false_alarms, every)
    drift.add(*of(stream))
    return drift


def test_it_is_exact_where_every_order_is_as_likely() -> None:
    """The mean of the e-value over all orders of 4 normal and 3 further values is what was staked, to rounding."""
    values, e_values = np.array([0.3, 1.1, -0.4, 2.2, 5.0, -3.0, 0.7]), []
    for chosen in combinations(range(7), 4):
        normal, rest = values[list(chosen)], np.delete(values, list(chosen))
        usual = calibration(normal[:, None], normal)
        for order in permutations(rest):
            drift = Drift(usual, false_alarms=1e-9)
            drift.add(np.array(order), np.array(order)[:, None])
            e_values.append(2 * math.exp(drift.evidence))  # score and trait are the same, each with half of the stake
    assert np.std(e_values) > 0.1
    assert np.mean(e_values) == pytest.approx(1, abs=1e-12)


def by_definition(normal: list[float], stream: list[float]) -> float:
    """The e-value of a stream after 5 normal values, whose gaps are the bins: each bet from each start by itself."""
    z = NormalDist()

    def bet(shift: float = 0, spread: float = 1, share: float = 1) -> list[float]:
        def below(place: float) -> float:
            return (1 - share) * z.cdf(place) + share * z.cdf((place - shift) / spread)

        cuts = [0.0, *(below(z.inv_cdf(i / 6)) for i in range(1, 6)), 1.0]
        return [6 * (right - left) for left, right in pairwise(cuts)]

    shifts = [sign * size for size in (0.1, 0.25, 0.5, 1, 2) for sign in (1, -1)]
    spreads = [0.4, 0.7, 1.5, 3]
    bets = [*map(bet, shifts), *(bet(spread=s) for s in spreads), bet(3, share=0.05), bet(-3, share=0.05)]
    places = [sum(value > usual for usual in normal) for value in stream]
    counts, wins = [1] * 6, []
    for place in places:
        likely = [count / sum(counts) for count in counts]
        wins.append([odds[place] / sum(p * o for p, o in zip(likely, odds, strict=True)) for odds in bets])
        counts[place] += 1

    def unspent(t: int) -> float:
        return 1 / math.log2(2 + t)

    e_value = unspent(len(stream))
    for start in range(len(stream)):
        products = np.prod(wins[start:], axis=0)
        e_value += (unspent(start) - unspent(start + 1)) * float(np.mean(products))
    return e_value


@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0])
def test_it_is_what_its_definition_says(shift: float) -> None:
    """By an independent, slow computation; in whatever parts the stream comes, to the last bit."""
    rng = np.random.default_rng(3)
    normal, stream = rng.normal(size=5), rng.normal(size=30) + shift
    drifts = []
    for parts in (1, 7, 30):
        drift = Drift(calibration(normal[:, None], normal), false_alarms=1e-12)
        for part in np.array_split(stream, parts):
            drift.add(part, part[:, None])
        drifts.append(drift.evidence)
    assert drifts[0] == drifts[1] == drifts[2]
    assert 2 * math.exp(drifts[0]) == pytest.approx(by_definition(normal.tolist(), stream.tolist()), rel=1e-9)


def test_false_alarms_are_as_few_as_asked() -> None:
    """Of 100 streams that go on as the 40 normal ones were, at 10%; and most of those are noticed that go on higher."""
    rng, alarms, found = np.random.default_rng(4), 0, 0
    for _ in range(100):
        normal, stream = rng.normal(size=(40, 1)), rng.normal(size=(100, 1))
        alarms += told(normal, stream, 0.1).noticed is not None
        found += told(normal, stream + 1, 0.1).noticed is not None
    assert alarms <= 10 + 3 * math.sqrt(9)
    assert found > 60


MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "higher": lambda x: x + 1,
    "lower": lambda x: x - 1,
    "more varied": lambda x: 2 * x,
    "less varied": lambda x: x / 3,
    "higher at times": lambda x: np.where(np.arange(len(x)) % 8 == 0, x + 4, x),
    "lower at times": lambda x: np.where(np.arange(len(x)) % 8 == 0, x - 4, x),
}


@pytest.mark.parametrize("how", MOVES)
def test_what_has_moved_is_noticed_and_named(how: str) -> None:
    """Soon after it has begun, with about when that was, and which trait it was and in which direction."""
    rng = np.random.default_rng(5)
    stream = rng.normal(size=(1000, 3))
    stream[600:, 1] = MOVES[how](stream[600:, 1])
    drift = told(rng.normal(size=(1000, 3)), stream)
    assert drift.noticed is not None
    assert drift.moved is not None
    assert 600 < drift.noticed < 1000
    assert (drift.moved.what, drift.moved.how) == ("brightness", how)
    assert abs(drift.moved.began - 600) < 60
    assert drift.evidence >= math.log(1000)
    assert str(drift.moved).startswith(f"brightness is {how.split(' at ')[0]} than usual")
    assert str(drift.moved).endswith(" at times") == how.endswith(" at times")


def test_it_ends_where_a_drift_is_noticed() -> None:
    """What comes later is counted, and changes nothing."""
    rng = np.random.default_rng(5)
    normal, moved = rng.normal(size=(100, 3)), rng.normal(size=(200, 3)) + 3
    drift = told(normal, moved)
    before = drift.noticed, drift.evidence, str(drift.moved)
    drift.add(*of(normal))
    assert (drift.noticed, drift.evidence, str(drift.moved)) == before
    assert drift.observations == 300


def test_values_that_are_often_the_same_are_no_drift_until_others_come() -> None:
    """Few levels, and one alone: a new value is anywhere among its equals, by seeded draws."""
    rng = np.random.default_rng(6)

    def rows(count: int, level: float) -> np.ndarray:
        return np.stack([rng.normal(size=count), rng.integers(0, 3, count) / 4, np.full(count, level)], axis=1)

    normal, stream = rows(200, 0.1), rows(2000, 0.1)
    assert told(normal, stream).evidence == told(normal, stream).evidence < 0
    drift = told(normal, np.concatenate([stream, rows(200, 0.2)]))
    assert str(drift.moved) == "contrast is higher than usual"
    assert drift.noticed is not None
    assert 2000 < drift.noticed < 2020


def test_memory_is_constant(peak_memory: Callable[[Callable[[], object]], int]) -> None:
    """A stream of many batches takes as much as one of few."""
    rng = np.random.default_rng(7)
    drift = Drift(calibration(*reversed(of(rng.normal(size=(100, 3))))))
    batch = of(rng.normal(size=(100, 3)))

    def add(batches: int) -> None:
        for _ in range(batches):
            drift.add(*batch)

    add(1)
    assert peak_memory(lambda: add(20)) < 1.1 * peak_memory(lambda: add(4))


def test_of_windows_that_overlap_some_are_looked_at(forge: Forge) -> None:
    """Each that begins where the one before has ended, by the stride; the others change nothing."""
    vae = VAE.load(linear(forge, "gaussian", (2, 12)))
    assert (apart(vae), apart(vae, 5), apart(vae, 12), apart(vae, 20)) == (4, 3, 1, 1)
    rng = np.random.default_rng(8)
    normal, stream = rng.normal(size=(50, 3)), rng.normal(size=(90, 3)) + 2
    usual = calibration(*reversed(of(normal)))
    drift, third = Drift(usual, every=3), Drift(usual)
    for part in np.split(stream, [10, 11, 50]):
        drift.add(*of(part))
    third.add(*of(stream[::3]))
    assert (drift.observations, drift.seen, drift.evidence) == (90, 30, third.evidence)
    assert third.noticed is not None
    assert third.moved is not None
    assert drift.moved is not None
    assert (drift.noticed, drift.moved.began) == (3 * third.noticed, 3 * third.moved.began)


@pytest.mark.parametrize("given", [{"false_alarms": 0}, {"false_alarms": 1}, {"every": 0}])
def test_what_makes_no_sense_is_refused(given: dict[str, float]) -> None:
    """With what it is."""
    with pytest.raises(ArgumentError, match=next(iter(given)).replace("_", " ")):
        Drift(calibration(np.eye(3), np.arange(3.0)), **given)  # type: ignore[arg-type]


def test_detect_says_whether_there_is_a_drift(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """As the last line of a table, and beside the other formats on stderr."""
    vae = VAE.load(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_EDGE_BUNDLE", str(tiny_bundle))
    Detector.fit(vae, vae.sample(300, 1)).save("site.json")
    np.save("more.npy", vae.sample(60, 2))
    brighter = vae.sample(60, 3)
    brighter[:, :, 10:20, 5:10] = 1
    np.save("brighter.npy", brighter)
    words = ("--drift", "--calibration", "site.json")
    ran = command(main, "detect", "more.npy", *words)
    assert ran.out.splitlines()[-1].startswith("no drift in 60 images: e-value 0.")
    ran = command(main, "detect", "more.npy", "brighter.npy", *words, "--format", "csv")
    assert len(ran.out.splitlines()) == 121
    assert ran.err.startswith("vae-infer: note: drift noticed at brighter.npy[")
    assert "of 120 images, and begun about at brighter.npy[" in ran.err
