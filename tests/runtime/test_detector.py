"""Odd or not: p-values that are calibrated, traits that are what they say, calibrations that travel and are refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from support.bundles import Forge, linear, normal
from vae_runtime import VAE, noise
from vae_runtime.density import Density, surprise_of_each
from vae_runtime.detector import FEWEST, Detector
from vae_runtime.errors import ArgumentError, BundleError, InputError
from vae_runtime.observation import Observation
from vae_runtime.traits import NUM_SAMPLES, names, own

SHAPES: dict[str, tuple[int, ...]] = {"image": (1, 6, 5), "vector": (4,), "series": (2, 12)}


@pytest.fixture(params=SHAPES)
def vae(request: pytest.FixtureRequest, forge: Forge) -> VAE:
    """A linear model of each kind of observation, under a Gaussian."""
    return VAE.load(linear(forge, "gaussian", SHAPES[request.param]), threads=1)


def test_normal_observations_alarm_as_often_as_was_asked(vae: VAE) -> None:
    """Of 1,000 others from the same source, at 1% and 20%, within four standard errors of both samples."""
    fitted = Detector.fit(vae, normal(vae, 1500), 0.01)
    traits = fitted.traits(normal(vae, 1000, seed=1))
    for asked in (0.01, 0.2):
        odd = Detector(vae, replace(fitted.calibration, false_alarms=asked)).judged(traits).odd.mean()
        assert abs(odd - asked) < 4 * math.sqrt(asked * (1 - asked) * (1 / 1000 + 1 / 1500))


def test_p_values_of_normal_observations_are_uniform(vae: VAE) -> None:
    """Of few dozen as of many: by Kolmogorov's distance, at about 1 in 1,000 for each."""
    for count in (40, 1500):
        p = np.sort(Detector.fit(vae, normal(vae, count)).verdict(normal(vae, 1000, seed=1)).p)
        distance = np.abs(p - (np.arange(1000) + 0.5) / 1000).max()
        assert distance < 1.95 * math.sqrt(1 / 1000 + 1 / count) + 1 / count


def days(count: int, seed: int) -> np.ndarray:
    """Rows of two channels in order, of so many days of 240 rows each: a wave, and a lag that wanders, [n, 2]."""
    rng, n = np.random.default_rng(seed), 240 * count
    lag = np.convolve(rng.normal(size=n + 20), np.full(20, 0.1), "same")[:n]
    daily = np.sin(2 * np.pi * np.arange(n) / 240)
    return np.column_stack([daily + 0.3 * lag, lag]) + 0.1 * rng.normal(size=(n, 2))


def test_windows_that_share_rows_do_not_vouch_for_each_other(forge: Forge) -> None:
    """Of other days of a recording as many windows are called odd as was asked, also where the windows to calibrate by
    overlap, so that each has neighbours that are nearly as it is; a band of four standard errors of separate ones.
    """
    vae = VAE.load(linear(forge, "gaussian", SHAPES["series"]), threads=1)

    def windows(rows: np.ndarray, stride: int) -> np.ndarray:
        return sliding_window_view(rows, 12, axis=0)[::stride].astype(np.float32)

    detector = Detector.fit(vae, iter(np.array_split(windows(days(6, 0), 1), 7)))
    assert detector.calibration.separate == 240 * 6 // 12
    p = detector.verdict(windows(days(40, 1), 12)).p
    for asked in (0.02, 0.1):
        error = math.sqrt(asked * (1 - asked) * (1 / len(p) + 1 / detector.calibration.separate))
        assert abs((p <= asked).mean() - asked) < 4 * error


def test_windows_of_one_short_stretch_cannot_calibrate(forge: Forge) -> None:
    """Where all share rows, none says what is usual for another."""
    vae = VAE.load(linear(forge, "gaussian", SHAPES["series"]), threads=1)
    x = sliding_window_view(days(1, 0)[:40], 12, axis=0).astype(np.float32)
    with pytest.raises(InputError, match="normal windows that nearly all share rows: 25; give a longer recording"):
        Detector.fit(vae, x[:25])


def test_what_differs_either_way_is_odd(vae: VAE) -> None:
    """Far off values, and flat images and windows, which the ELBO alone takes for ordinary."""
    detector = Detector.fit(vae, normal(vae, 500))
    flat = np.broadcast_to(normal(vae, 500).mean(axis=0), (10, *vae.observation.shape)).astype(np.float32)
    if vae.observation.kind != "vector":
        assert detector.verdict(flat).p.max() < 0.3
    if vae.observation.kind != "image":
        assert detector.verdict(10 * normal(vae, 10, seed=2)).odd.all()
    else:
        assert detector.verdict(np.full((4, *vae.observation.shape), 0.5, np.float32)).odd.all()


def test_traits_are_what_they_are_called(vae: VAE) -> None:
    """Each by its definition, in float64, of the draws of z that the ELBO takes."""
    x = normal(vae, 7)
    found = dict(zip(names(vae.observation, vae.names), Detector.fit(vae, normal(vae, 50)).traits(x).T, strict=True))
    terms = vae.terms(x, NUM_SAMPLES)
    np.testing.assert_allclose(found["log p(x|z)"], terms.reconstruction, rtol=1e-6)
    np.testing.assert_allclose(found["KL"], terms.kl, rtol=1e-6)
    mu, logsigma = (values.reshape(7, -1).astype(np.float64) for values in vae.encode(x))
    eps = noise.normal(0, noise.POSTERIOR, noise.index(x), NUM_SAMPLES * vae.latent_dim).reshape(7, NUM_SAMPLES, -1)
    z = (mu[:, None] + np.exp(logsigma)[:, None] * eps).astype(np.float32)
    means = np.stack([vae.decode(z[:, k].reshape(7, *vae.latent_shape)) for k in range(NUM_SAMPLES)], axis=1)
    error = (x[:, None] - means).reshape(7, NUM_SAMPLES, -1)
    expected = np.log(np.square(error).mean(axis=2) + 1e-6).mean(axis=1)
    np.testing.assert_allclose(found["log squared error"], expected, rtol=1e-4, atol=1e-5)
    if vae.observation.kind == "image":
        np.testing.assert_allclose(found["log |mu|^2"], np.log(np.square(mu).mean(axis=1) + 1e-6), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["sum of logsigma"], logsigma.sum(axis=1), rtol=1e-5, atol=1e-6)
    nats = -0.5 * np.square(error / math.exp(-1.2))
    np.testing.assert_allclose(found["log spread of nats"], np.log(nats.std(axis=2)).mean(axis=1), atol=1e-4)
    assert not found["entropy"].any()  # of a Gaussian it does not depend on z


def test_traits_of_an_image_by_itself() -> None:
    """Entropies of its levels and of its edges, brightness and contrast, counted one by one."""
    levels = np.random.default_rng(0).integers(0, 4, (3, 2, 5, 4)) * 60
    found = own((levels / 255).astype(np.float32), Observation.image((2, 5, 4)))

    def entropy(values: np.ndarray) -> float:
        share = np.unique(values, return_counts=True)[1] / values.size
        return float(-(share * np.log(share)).sum())

    for image, row in zip(levels, found, strict=True):
        edges = np.concatenate([np.diff(image, axis=1).ravel(), np.diff(image, axis=2).ravel()])
        expected = [entropy(image), entropy(edges), image.mean() / 255, math.log(image.std() / 255 + 1 / 256)]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_traits_of_a_window_by_itself() -> None:
    """How far each channel spreads and how far a step goes, also of a window of one step."""
    x = np.array([[[0, 1, 0, 3]], [[2, 2, 2, 2]]], np.float32)
    expected = np.log(np.array([[np.std([0, 1, 0, 3]), math.sqrt(11 / 3)], [0, 0]]) + 1e-3)
    np.testing.assert_allclose(own(x, Observation("series", (1, 4), None)), expected, rtol=1e-12)
    np.testing.assert_allclose(own(x[:, :, :1], Observation("series", (1, 1), None)), math.log(1e-3), rtol=1e-12)


def test_a_rows_values_by_themselves_are_under_students_t() -> None:
    """Its -log density with three degrees of freedom, 2 / (pi sqrt(3) (1 + x^2 / 3)^2), is lowest at zero."""
    x = np.array([[0.0, 0.0], [1.0, -2.0], [1e15, 3.0]], np.float32)
    density = 2 / (math.pi * math.sqrt(3) * (1 + np.square(x, dtype=np.float64) / 3) ** 2)
    found = own(x, Observation("vector", (2,), None))[:, 0]
    np.testing.assert_allclose(found, -np.log(density / density.max()).sum(axis=1), rtol=1e-12)
    binary = Observation("vector", (2,), (0.0, 1.0))
    assert own(np.zeros((3, 2), np.float32), binary).shape == (3, 0)
    assert len(names(binary, [])) == len(names(Observation("vector", (2,), None), [])) - 1


def test_the_score_of_a_row_counts_its_values_and_the_elbo(forge: Forge) -> None:
    """It is -log of the traits' density less the ELBO, plus the nats of single values."""
    vae = VAE.load(linear(forge, "gaussian", SHAPES["vector"]), threads=1)
    detector, x = Detector.fit(vae, normal(vae, 50)), normal(vae, 7, seed=1)
    surprise = Density.of(np.array(detector.calibration.rows)).surprise(detector.traits(x))
    nats = 2 * np.log1p(np.square(x, dtype=np.float64) / 3).sum(axis=1)
    np.testing.assert_allclose(detector.score(x), surprise - vae.elbo(x, NUM_SAMPLES) + nats, rtol=1e-6)


def test_grey_images_are_judged_as_they_are_drawn(tiny: VAE) -> None:
    """Under a Bernoulli likelihood: the terms are those of `VAE.terms` with observe."""
    x = (tiny.sample(30, 3, mean=True) * 0.9).astype(np.float32)
    detector = Detector.fit(tiny, x)
    terms = tiny.terms(x, NUM_SAMPLES, observe=True)
    np.testing.assert_allclose(detector.traits(x)[:, 0], terms.reconstruction, rtol=1e-6)
    np.testing.assert_allclose(detector.traits(x)[:, 1], terms.kl, rtol=1e-6)


@pytest.fixture
def tiny(tiny_bundle: Path) -> VAE:
    """The committed model of binary images."""
    return VAE.load(tiny_bundle, threads=1)


def test_scores_do_not_depend_on_company_threads_or_memory(tiny: VAE, tiny_bundle: Path) -> None:
    """Equal observations have equal scores, to the last bit."""
    x = tiny.sample(50, 5)
    detector = Detector.fit(tiny, x)
    again = Detector(VAE.load(tiny_bundle, threads=2, memory=1 << 18), detector.calibration)
    np.testing.assert_array_equal(detector.score(x), again.score(x))
    np.testing.assert_array_equal(detector.score(x)[7:9], detector.score(x[7:9]))


def test_a_calibration_is_saved_and_loaded_to_the_last_bit(tiny: VAE, tmp_path: Path) -> None:
    """It has no observation in it, and judges as the one that was fitted."""
    x = tiny.sample(40, 6)
    detector = Detector.fit(tiny, x, false_alarms=0.05)
    detector.save(tmp_path / "site.json")
    loaded = Detector.load(tiny, tmp_path / "site.json")
    assert loaded.calibration == detector.calibration
    for ours, theirs in zip(vars(loaded.verdict(x)).values(), vars(detector.verdict(x)).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_equal_observations_count_once(tiny: VAE) -> None:
    """Copies would make each other ordinary."""
    x = tiny.sample(40, 6)
    once, twice = (Detector.fit(tiny, given).calibration for given in (x, np.concatenate([x, x, x[:5]])))
    assert once == twice


def test_batches_are_as_one_array(tiny: VAE) -> None:
    """In whatever order they come."""
    x = tiny.sample(60, 6)
    assert Detector.fit(tiny, x).calibration == Detector.fit(tiny, iter([x[40:], x[:40]])).calibration


def test_few_observations_say_how_fine_they_tell(tiny: VAE) -> None:
    """Of 24 different ones nothing is below 4%, and so many false alarms there are; fewer than 20 are refused."""
    x = tiny.sample(200, 6)
    _, first = np.unique(noise.index(x), return_index=True)
    x = x[np.sort(first)]
    detector = Detector.fit(tiny, x[:24])
    assert detector.least == detector.false_alarms == 1 / 25
    assert detector.verdict(1 - x[:5]).p.min() == 1 / 25
    with pytest.raises(InputError, match=f"too few normal images that differ: 19; give {FEWEST} or more"):
        Detector.fit(tiny, x[:19])


def test_a_threshold_by_hand_takes_the_place_of_the_rate(tiny: VAE) -> None:
    """What scores as high is odd; the p-value stays."""
    x = tiny.sample(40, 6)
    detector = Detector.fit(tiny, x)
    score = detector.score(x)
    by_hand = Detector(tiny, replace(detector.calibration, threshold=float(np.median(score))))
    np.testing.assert_array_equal(by_hand.verdict(x).odd, score >= np.median(score))
    np.testing.assert_array_equal(by_hand.verdict(x).p, detector.verdict(x).p)


def test_a_threshold_between_needs_odd_ones_with_a_score(tiny: VAE) -> None:
    """None, and NaN, set none."""
    detector = Detector.fit(tiny, tiny.sample(40, 6))
    with pytest.raises(InputError, match="no odd observations"):
        detector.between(np.zeros(0))
    with pytest.raises(InputError, match="NaN among scores: odd observation 1"):
        detector.between(np.array([90.0, np.nan, 95.0]))
    assert detector.between(np.array([90.0, 95.0])) == (90.0, 1.0)


def test_a_verdict_names_the_trait_that_is_farthest_from_what_is_usual(vae: VAE) -> None:
    """Whichever is moved, up or down, in rows of traits that are usual otherwise."""
    detector = Detector.fit(vae, normal(vae, 200))
    usual, called = np.array(detector.calibration.rows), np.array(detector.calibration.traits)
    moving = np.flatnonzero(usual.std(axis=0) > 1e-6)
    for by in (-30, 30):
        moved = usual.mean(axis=0) + by * usual.std(axis=0) * np.eye(len(called))
        verdict = detector.judged(moved[moving])
        assert verdict.oddest.tolist() == called[moving].tolist()
        assert (verdict.deviation * by > 0).all()


def test_deviations_are_shares_of_the_distance() -> None:
    """By the inverse root of the correlation, as SciPy takes it; their squares sum to Mahalanobis's squared."""
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 3)) @ [[1, 0.5, 0], [0, 2, 0.3], [0, 0, 1]] + 5
    points = rng.normal(size=(8, 3)) + 5
    found, scaled = Density.of(rows).deviations(points), (points - rows.mean(axis=0)) / rows.std(axis=0)
    correlation = np.corrcoef(rows.T)
    np.testing.assert_allclose(found, scaled @ linalg.inv(linalg.sqrtm(correlation)), atol=0.01)
    distances = np.einsum("ij,jk,ik->i", scaled, linalg.inv(correlation), scaled)
    np.testing.assert_allclose(np.square(found).sum(axis=1), distances, rtol=0.01)


def test_false_alarms_are_a_share(tiny: VAE) -> None:
    """Between 0 and 1."""
    for share in (0, 1, -1, 5):
        with pytest.raises(ArgumentError, match=f"false alarms out of range: {share}; give a share between 0 and 1"):
            Detector.fit(tiny, tiny.sample(30), share)


def test_another_models_calibration_is_refused(tiny: VAE, forge: Forge, tmp_path: Path) -> None:
    """By the hash of the graphs; the error names the file, the model, and the command that makes one."""
    detector = Detector.fit(tiny, tiny.sample(40))
    other = VAE.load(linear(forge, "bernoulli", tiny.observation.shape))
    with pytest.raises(BundleError, match="calibration of another model"):
        Detector(other, detector.calibration)
    detector.save(tmp_path / "site.json")
    with pytest.raises(BundleError) as refused:
        Detector.load(other, tmp_path / "site.json")
    assert str(refused.value) == (
        f"calibration of another model: {tmp_path}/site.json (not of {other.path}); "
        f"learn what is usual of this one: vae-infer --bundle {other.path} calibrate NORMAL... -o FILE.json"
    )


def test_false_alarms_of_a_threshold_are_those_of_the_calibration(tiny: VAE) -> None:
    """The share of its scores that reach it, as p counts them, and 1 / (n + 1) at the least."""
    detector = Detector.fit(tiny, tiny.sample(40))
    calibration = detector.calibration
    for threshold, share in ((-1e9, 1.0), (calibration.scores[30], 11 / 41), (1e9, 1 / 41)):
        assert Detector(tiny, replace(calibration, threshold=threshold)).false_alarms == pytest.approx(share)


def test_a_bundle_without_a_calibration_says_so(tiny: VAE) -> None:
    """And what to do."""
    with pytest.raises(BundleError, match=r"bundle carries no calibration: .*vae-infer --bundle .* calibrate NORMAL"):
        Detector.load(tiny)


@pytest.mark.parametrize(
    "change",
    [
        lambda site: site.update(rows=[]),
        lambda site: site["rows"][0].append(1.0),
        lambda site: site.update(scores=site["scores"][::-1]),
        lambda site: site.update(false_alarms=2.0),
        lambda site: site.update(num_samples=0),
        lambda site: site.update(observations=-1),
        lambda site: site.update(observations=10**400),
        lambda site: site.update(threshold=float("inf")),
        lambda site: site.update(higher_or_equal=[0] * len(site["scores"])),
        lambda site: site.update(format=2),
        lambda site: site.pop("traits"),
    ],
)
def test_a_damaged_calibration_is_not_understood(
    tiny: VAE, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Each part is checked."""
    Detector.fit(tiny, tiny.sample(40)).save(tmp_path / "site.json")
    site = json.loads((tmp_path / "site.json").read_text())
    change(site)
    (tmp_path / "site.json").write_text(json.dumps(site))
    with pytest.raises(BundleError, match=r"not a calibration: .*site\.json.*; make one: vae-infer --bundle"):
        Detector.load(tiny, tmp_path / "site.json")
    with pytest.raises(BundleError, match="calibration not read"):
        Detector.load(tiny, tmp_path / "absent.json")


def test_a_density_is_that_of_its_kernels() -> None:
    """By the definition: normals of that width around each row, in the coordinates where columns are uncorrelated."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 3)) @ [[1, 0.5, 0], [0, 2, 0.3], [0, 0, 1]] + 5
    density, points = Density.of(rows), rng.normal(size=(8, 3)) + 5
    inverse = density.whiten @ density.whiten.T
    distances = (points[:, None] - rows) / rows.std(axis=0)
    squares = np.einsum("ijk,kl,ijl->ij", distances, inverse, distances)
    expected = -np.log(np.exp(-squares / (2 * density.width**2)).mean(axis=1))
    np.testing.assert_allclose(density.surprise(points), expected, rtol=1e-9)
    without = rng.random((8, 60)) < 0.4
    kernels = np.where(without, 0, np.exp(-squares / (2 * density.width**2))).sum(axis=1) / (~without).sum(axis=1)
    np.testing.assert_allclose(density.surprise(points, without), -np.log(kernels), rtol=1e-9)


def test_equal_rows_surprise_alike_in_any_company() -> None:
    """To the last bit: alone, among few and among many, of as many columns as windows of ten channels have."""
    rng = np.random.default_rng(0)
    density, points = Density.of(rng.normal(size=(400, 25))), rng.normal(size=(200, 25))
    together, apart = density.surprise(points), density.deviations(points)
    for start, count in ((0, 1), (5, 1), (50, 3), (99, 70)):
        some = slice(start, start + count)
        np.testing.assert_array_equal(density.surprise(points[some]), together[some])
        np.testing.assert_array_equal(density.deviations(points[some]), apart[some])


def test_few_rows_promise_no_fewer_false_alarms_than_there_are() -> None:
    """Of 20 rows of 11 figures, a new one surprises more than all in 1 of 21 cases: the mean of 100 such samples."""
    shares = []
    for seed in range(100):
        rows = np.exp(0.3 * np.random.default_rng(seed).normal(size=(220, 11)))
        usual, new = rows[:20], rows[20:]
        shares.append((Density.of(usual).surprise(new) > surprise_of_each(usual).max()).mean())
    assert abs(np.mean(shares) - 1 / 21) < 4 * np.std(shares) / math.sqrt(len(shares))


def test_correlations_of_few_rows_are_shrunk_as_by_ledoit_and_wolf() -> None:
    """As scikit-learn does it."""
    covariance = pytest.importorskip("sklearn.covariance")
    for count in (12, 60, 2000):
        rows = np.random.default_rng(0).normal(size=(count, 3)) @ [[1, 0.5, 0], [0, 2, 0.3], [0, 0, 1]]
        density, scaled = Density.of(rows), (rows - rows.mean(axis=0)) / rows.std(axis=0)
        expected = np.linalg.inv(covariance.ledoit_wolf(scaled)[0])
        np.testing.assert_allclose(density.whiten @ density.whiten.T, expected, rtol=1e-4)


def test_another_value_of_a_column_that_is_always_the_same_is_odd() -> None:
    """What rounding makes of it is not, and a column that is there twice breaks nothing."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 2))
    with_more = np.column_stack([rows, np.full(30, 7.0), rows[:, 0]])
    density = Density.of(with_more)
    usual, moved, rounded = (density.surprise(with_more + np.array([0, 0, by, 0])) for by in (0, 0.1, 1e-6))
    assert np.isfinite(usual).all()
    assert moved.min() > usual.max() + 50
    np.testing.assert_allclose(rounded, usual, atol=1e-3)
    assert set(np.abs(density.deviations(with_more + np.array([0, 0, 0.1, 0]))).argmax(axis=1)) == {2}
