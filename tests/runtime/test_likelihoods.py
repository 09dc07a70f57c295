"""The likelihoods against closed forms in float64, and by summing over every image or level."""

import itertools
import math

import numpy as np
import pytest

from vae_runtime import BundleError, InputError, noise
from vae_runtime.likelihoods import (
    Bernoulli,
    DiscretisedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    StudentT,
    check,
    draw,
    make,
)
from vae_runtime.manifest import Named
from vae_runtime.observation import IMAGE, SERIES, VECTOR, Observation

BERNOULLI = Bernoulli(3)
HETEROSCEDASTIC = HeteroscedasticGaussian(3)
STUDENT = StudentT(3, -0.5, 1.2)
LOGISTIC = DiscretisedLogistic(3)
IMAGES = Observation.image((1, 3, 3))
LEVELS = (np.arange(256) / 255).astype(np.float32).reshape(256, 1, 1, 1)
PAIRS = [(0.5, -3), (0.0, -2), (1.0, -5), (0.3, 0), (-5, 1.2), (-5, -9), (1.2, -9), (0.5, -9), (1.2, 7), (-5, 7)]


def draw_logits(rows: int, *shape: int, scale: float = 4) -> np.ndarray:
    """Seeded logits of about `scale`, float32 [rows, *shape]."""
    return scale * noise.normal(9, noise.PRIOR, np.arange(rows), math.prod(shape)).reshape(rows, *shape)


@pytest.mark.parametrize("logit", [1e4, -1e4, 100.0, -100.0, 0.0])
def test_extreme_logits_stay_finite(logit: float):
    """At logits of +-10,000 means stay in [0, 1] and log-probabilities finite, without a warning."""
    logits = np.full((2, 1, 2, 2), logit, np.float32)
    x = np.stack([np.zeros((1, 2, 2)), np.ones((1, 2, 2))]).astype(np.float32)
    theta = BERNOULLI.mean(logits)
    assert ((theta >= 0) & (theta <= 1)).all()
    expected = -4 * np.logaddexp(0, [logit, -logit])
    np.testing.assert_allclose(BERNOULLI.log_prob(x, logits), expected, rtol=1e-6, atol=1e-30)


def test_probabilities_of_all_images_sum_to_one():
    """The 2^10 binary images of 10 pixels have a total probability of 1: log_prob is a normalised log-probability."""
    images = np.array(list(itertools.product([0, 1], repeat=10)), np.float32).reshape(-1, 1, 2, 5)
    for logits in draw_logits(5, 1, 2, 5, scale=2):
        log_prob = BERNOULLI.log_prob(images, np.repeat(logits[None], len(images), axis=0))
        assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-6)


def test_sample_frequencies_are_theta():
    """Over 20,000 draws every pixel is 1 as often as theta says, to within 4.5 standard errors."""
    n = 20_000
    logits = draw_logits(1, 1, 4, 5, scale=2)
    uniforms = noise.uniform(3, noise.PIXELS, np.arange(n), 20).reshape(n, 1, 4, 5)
    x = BERNOULLI.sample(np.repeat(logits, n, axis=0), uniforms)
    assert x.dtype == np.float32
    assert set(np.unique(x)) == {0, 1}
    theta = 1 / (1 + np.exp(-logits[0].astype(np.float64)))
    assert (np.abs(x.mean(axis=0) - theta) < 4.5 * np.sqrt(theta * (1 - theta) / n)).all()


def test_certain_pixels_are_never_drawn_otherwise():
    """theta = 1 gives 1 and theta = 0 gives 0 for every uniform in [0, 1), the smallest and the largest too."""
    uniforms = np.array([[0, 2**-24, 0.5, 1 - 2**-24]], np.float32)
    np.testing.assert_array_equal(BERNOULLI.sample(np.full((1, 4), 1e4, np.float32), uniforms), 1)
    np.testing.assert_array_equal(BERNOULLI.sample(np.full((1, 4), -1e4, np.float32), uniforms), 0)


@pytest.mark.parametrize("row", [0, 3, 9])
def test_check_names_the_first_grey_image(row: int):
    """A grey pixel raises InputError with the index of its image and the way out."""
    x = np.zeros((10, 1, 3, 3), np.float32)
    check(BERNOULLI, x, "image")
    check(BERNOULLI, 1 - x, "image")
    x[row:, 0, 2, 2] = 0.5
    with pytest.raises(InputError, match=rf"grey values under a Bernoulli likelihood: image {row}; use observe"):
        check(BERNOULLI, x, "image")
    with pytest.raises(InputError, match=rf"row {row + 100}; "):
        check(BERNOULLI, x, "row", start=100)


def test_gaussian_samples_have_its_moments():
    """20,000 draws from N(loc, sigma^2) have its mean and variance, to within 4.5 standard errors."""
    n, sigma, loc = 20_000, 0.5, np.array([-1, 0, 2], np.float32).reshape(1, 1, 3, 1)
    normals = noise.normal(3, noise.PIXELS, np.arange(n), 3).reshape(n, 1, 3, 1)
    x = Gaussian(3, math.log(sigma)).sample(np.repeat(loc, n, axis=0), normals)
    assert (np.abs(x.mean(axis=0) - loc[0]) < 4.5 * sigma / math.sqrt(n)).all()
    assert (np.abs(x.var(axis=0) / sigma**2 - 1) < 4.5 * math.sqrt(2 / n)).all()


def test_a_sigma_of_the_decoder():
    """Normal densities and moments with the sigma of each value, which is bounded on both sides; densities per unit."""
    loc = np.array([-1, 0.5, 2, 0], np.float32)
    logsigma = np.array([-2, 0.7, -30, 30], np.float32)
    likelihood = make(Named("heteroscedastic-gaussian", {"log_unit": [1.0, 0, -3, 2]}), Observation(VECTOR, (4,), None))
    sigma = np.exp([-2, 0.7, math.log(1e-3), 7])
    x = loc + np.float32(0.7) * sigma.astype(np.float32)
    parameters = np.concatenate([loc, logsigma])
    expected = -0.5 * ((x - loc.astype(np.float64)) / sigma) ** 2 - np.log(sigma * math.sqrt(2 * math.pi))
    expected -= [1, 0, -3, 2]
    np.testing.assert_allclose(likelihood.log_prob_of_each(x, parameters), expected, rtol=1e-4)
    assert likelihood.log_prob(x, parameters) == pytest.approx(expected.sum(), rel=1e-5)
    np.testing.assert_array_equal(likelihood.mean(parameters), loc)
    n = 20_000
    drawn = likelihood.sample(np.tile(parameters, (n, 1)), noise.normal(3, noise.PIXELS, np.arange(n), 4))
    assert drawn.dtype == np.float32
    assert (np.abs(drawn.mean(axis=0) - loc) < 4.5 * sigma / math.sqrt(n)).all()
    assert (np.abs(drawn.var(axis=0, dtype=np.float64) / sigma**2 - 1) < 4.5 * math.sqrt(2 / n)).all()


def test_students_t_has_its_law():
    """Densities of 2 degrees of freedom, in closed form and per unit; 20,000 draws follow the distribution function."""
    logsigma, log_unit, n = [0.3, -2.0], [1.0, -1.0], 20_000
    settings = {"logsigma": logsigma, "logdf": [math.log(2)] * 2, "log_unit": log_unit}
    likelihood = make(Named("student-t", settings), Observation(VECTOR, (2,), None))
    loc, sigma = np.array([0.5, -1], np.float32), np.exp(logsigma)
    x = np.random.default_rng(0).normal(0, 20, (9, 2)).astype(np.float32)
    t = (x.astype(np.float64) - loc) / sigma
    expected = -1.5 * np.log(2 + t**2) - logsigma - log_unit  # (2 + t^2)^(-3/2), over sigma
    np.testing.assert_allclose(likelihood.log_prob_of_each(x, np.tile(loc, (9, 1))), expected, rtol=1e-5)
    np.testing.assert_allclose(likelihood.log_prob(x, np.tile(loc, (9, 1))), expected.sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(likelihood.mean(loc), loc)
    drawn = draw(likelihood, np.tile(loc, (n, 1)), 4, np.arange(n), (2,))
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    t = np.sort((drawn.astype(np.float64) - loc) / sigma, axis=0)
    below = 0.5 + t / (2 * np.sqrt(2 + t**2))
    assert np.abs(below - ((np.arange(n) + 0.5) / n)[:, None]).max() < 2 / math.sqrt(n)
    assert abs(np.corrcoef(np.sign(drawn - loc), rowvar=False)[0, 1]) < 4.5 / math.sqrt(n)


@pytest.mark.parametrize("logdf", ["2", None, True, math.nan, 80.0, [0.0]])
def test_degrees_of_freedom_are_numbers(logdf: object):
    """Or the likelihood is not known."""
    with pytest.raises(BundleError, match="unknown likelihood: 'student-t'"):
        make(Named("student-t", {"logsigma": 0.0, "logdf": logdf}), Observation(VECTOR, (2,), None))


def test_many_degrees_of_freedom_are_a_gaussian():
    """The densities come together."""
    x, loc = np.random.default_rng(1).normal(0, 1, (2, 5, 3)).astype(np.float32)
    expected = Gaussian(1, -0.5).log_prob(x, loc)
    np.testing.assert_allclose(StudentT(1, -0.5, math.log(1e7)).log_prob(x, loc), expected, rtol=1e-5)


FLAGS = [True, False, False, True, False]
SETTINGS = {
    "binary": FLAGS,
    "logsigma": [0.0, -1.0, 0.5, 0.0, -3.0],
    "log_unit": [0.0, 2.0, -1.0, 0.0, 0.5],
}


@pytest.mark.parametrize(("kind", "shape"), [(VECTOR, (5,)), (SERIES, (5, 3))])
def test_columns_of_0_and_1_beside_real_ones(kind: str, shape: tuple[int, ...]):
    """Probabilities of the former and densities of the latter, in their order; means; support; draws in front."""
    likelihood = make(Named("mixed", SETTINGS), Observation(kind, shape, None))
    generator = np.random.default_rng(6)
    per_column = (5, *[1] * (len(shape) - 1))
    flags = np.broadcast_to(np.reshape(FLAGS, per_column), shape)
    parameters = generator.normal(0, 2, (7, 4, *shape)).astype(np.float32)
    x = np.where(flags, generator.integers(0, 2, (7, 1, *shape)), generator.normal(0, 1, (7, 1, *shape)))
    x = x.astype(np.float32)
    values, theta = x.astype(np.float64), 1 / (1 + np.exp(-parameters.astype(np.float64)))
    sigma = np.exp(np.reshape(SETTINGS["logsigma"], per_column))
    real = -0.5 * ((values - parameters) / sigma) ** 2 - np.log(sigma * math.sqrt(2 * math.pi))
    real -= np.reshape(SETTINGS["log_unit"], per_column)
    expected = np.where(flags, np.log(np.where(values == 1, theta, 1 - theta)), real)
    each = likelihood.log_prob_of_each(x, parameters)
    assert each.dtype == np.float64
    np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)
    axes = tuple(range(2, expected.ndim))
    np.testing.assert_allclose(likelihood.log_prob(x, parameters), expected.sum(axis=axes), rtol=1e-5)
    np.testing.assert_allclose(likelihood.mean(parameters), np.where(flags, theta, parameters), rtol=1e-6)
    supports = likelihood.supports(np.full((2, *shape), 0.5, np.float32))
    np.testing.assert_array_equal(supports, np.broadcast_to(~flags, supports.shape))


def test_draws_of_mixed_columns_have_the_law():
    """40,000 draws: theta and N(loc, sigma^2), and no correlation of any two columns, to 4.5 standard errors."""
    kind = Observation(VECTOR, (5,), None)
    likelihood, n = make(Named("mixed", SETTINGS), kind), 40_000
    parameters = np.array([0.5, -1, 0.3, -1.2, 2], np.float32)
    x = draw(likelihood, np.tile(parameters, (n, 1)), 3, np.arange(n), (5,))
    assert x.dtype == np.float32
    assert likelihood.supports(x).all()
    theta, sigma = 1 / (1 + np.exp(-parameters.astype(np.float64))), np.exp(SETTINGS["logsigma"])
    mean = np.where(FLAGS, theta, parameters)
    deviation = np.where(FLAGS, np.sqrt(theta * (1 - theta)), sigma)
    assert (np.abs(x.mean(axis=0) - mean) < 4.5 * deviation / math.sqrt(n)).all()
    np.testing.assert_allclose(x.std(axis=0), deviation, rtol=4.5 / math.sqrt(2 * n) + 0.005)
    for some in (x, np.where(FLAGS, x, np.abs(x - mean))):  # a pair of normals may share its radius alone
        off = np.corrcoef(some, rowvar=False) - np.eye(5)
        assert np.abs(off).max() < 4.5 / math.sqrt(n)
    again = draw(likelihood, np.tile(parameters, (3, 1)), 3, np.arange(7, 10), (5,))
    np.testing.assert_array_equal(again, x[7:10])


@pytest.mark.parametrize("binary", [[True] * 5, [False] * 5, [1, 0, 0, 0, 0], [True, False], True, None])
def test_mixed_columns_are_of_both_kinds(binary: object):
    """Flags that are none, too few, or all alike are no such likelihood."""
    with pytest.raises(BundleError, match="unknown likelihood: 'mixed'"):
        make(Named("mixed", {**SETTINGS, "binary": binary}), Observation(VECTOR, (5,), None))


def test_a_value_off_the_support_is_named_by_its_column():
    """Row and column of the first one."""
    likelihood = make(Named("mixed", SETTINGS), Observation(VECTOR, (5,), None))
    x = np.zeros((4, 5), np.float32)
    x[:, 2] = 0.5
    check(likelihood, x, "row")
    x[2, 3] = 2
    with pytest.raises(InputError) as caught:
        check(likelihood, x, "row", 10, ["a", "b", "c", "d", "e"])
    assert str(caught.value) == "neither 0 nor 1 in a column of such values: row 12, column d; clean the data, or " \
                                "leave that one out"  # fmt: skip


@pytest.mark.parametrize(("kind", "shape"), [(VECTOR, (4,)), (SERIES, (4, 5))])
def test_each_column_has_its_sigma_and_its_unit(kind: str, shape: tuple[int, ...]):
    """Densities are those of raw values, in float64; draws spread by each column's sigma; axes in front broadcast."""
    generator = np.random.default_rng(4)
    logsigma, scale = generator.normal(-1, 0.5, 4), generator.uniform(0.01, 300, 4)
    settings = {"logsigma": logsigma.tolist(), "log_unit": np.log(scale).tolist()}
    gaussian = make(Named("gaussian", settings), Observation(kind, shape, None))
    x, loc = generator.normal(0, 1, (2, 6, *shape)).astype(np.float32)
    per_column = (4, *[1] * (len(shape) - 1))
    sigma, unit = np.exp(logsigma).reshape(per_column), scale.reshape(per_column)
    raw, raw_loc = (values.astype(np.float64) * unit for values in (x, loc))
    terms = -0.5 * ((raw - raw_loc) / (sigma * unit)) ** 2 - np.log(sigma * unit * math.sqrt(2 * math.pi))
    expected = terms.reshape(6, -1).sum(axis=1)
    np.testing.assert_allclose(gaussian.log_prob(x, loc), expected, rtol=1e-5)
    np.testing.assert_allclose(gaussian.log_prob(x[:, None], loc[:, None]), expected[:, None], rtol=1e-5)
    normals = noise.normal(3, noise.PIXELS, np.arange(4000), math.prod(shape)).reshape(-1, *shape)
    drawn = gaussian.sample(np.repeat(loc[:1], 4000, axis=0), normals)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.std(axis=0), np.broadcast_to(sigma, shape), rtol=0.06)


@pytest.mark.parametrize(("kind", "shape"), [(SERIES, (2, 3)), (IMAGE, (2, 3, 2))])
def test_each_value_has_its_sigma(kind: str, shape: tuple[int, ...]):
    """As many numbers as values are a sigma for each, in C order; the unit stays that of a column; others are none."""
    generator = np.random.default_rng(4)
    observation = Observation(kind, shape, None)
    logsigma, log_unit = generator.normal(-1, 0.5, math.prod(shape)), [3.0, -2.0]
    gaussian = make(Named("gaussian", {"logsigma": logsigma.tolist(), "log_unit": log_unit}), observation)
    x, loc = generator.normal(0, 1, (2, 6, *shape)).astype(np.float32)
    sigma, off = np.exp(logsigma).reshape(shape), x.astype(np.float64) - loc
    terms = -0.5 * (off / sigma) ** 2 - np.log(sigma * math.sqrt(2 * math.pi))
    expected = terms.reshape(6, -1).sum(axis=1) - sum(log_unit) * math.prod(shape[1:])
    np.testing.assert_allclose(gaussian.log_prob(x, loc), expected, rtol=1e-5)
    np.testing.assert_allclose(gaussian.log_prob_of_each(x, loc).reshape(6, -1).sum(axis=1), expected, rtol=1e-5)
    normals = noise.normal(3, noise.PIXELS, np.arange(4000), math.prod(shape)).reshape(-1, *shape)
    drawn = gaussian.sample(np.repeat(loc[:1], 4000, axis=0), normals)
    np.testing.assert_allclose(drawn.std(axis=0), sigma, rtol=0.06)
    for other in (1, 3, math.prod(shape) - 1, math.prod(shape) + 1):
        with pytest.raises(BundleError, match=rf"neither 2 numbers, one for each column, nor {math.prod(shape)}"):
            make(Named("gaussian", {"logsigma": [0.0] * other}), observation)


@pytest.mark.parametrize(
    "likelihood", [BERNOULLI, Gaussian(3, -1.0), HETEROSCEDASTIC, STUDENT, LOGISTIC], ids=lambda it: it.name
)
def test_the_terms_of_each_value_sum_to_the_whole(likelihood):
    """log_prob_of_each has the observation's shape, broadcasts over draws, and sums to log_prob."""
    generator = np.random.default_rng(8)
    x = generator.integers(0, 2, (5, 1, 2, 3, 4)).astype(np.float32)
    parameters = generator.normal(0, 2, (5, 6, 2 * likelihood.parameters_per_value, 3, 4)).astype(np.float32)
    x = np.repeat(x, 2, axis=2)[:, :, :2]
    each = likelihood.log_prob_of_each(x, parameters)
    assert (each.shape, each.dtype) == ((5, 6, 2, 3, 4), np.float64)
    np.testing.assert_allclose(each.sum(axis=(2, 3, 4)), likelihood.log_prob(x, parameters), rtol=1e-5)


@pytest.mark.parametrize(
    "likelihood",
    [Gaussian(1, -1.0), HeteroscedasticGaussian(1), StudentT(1, -0.5, 1.2), DiscretisedLogistic(1)],
    ids=lambda it: it.name,
)
def test_a_value_falls_short_of_what_it_could_be(likelihood):
    """By the largest log p of it over a thousand locs, with the scale as it is."""
    generator = np.random.default_rng(9)
    x = likelihood.nearest(generator.uniform(0.3, 0.7, (20, 1)).astype(np.float32))
    parameters = np.full((20, likelihood.parameters_per_value), -3, np.float32)
    parameters[:, 0] = generator.uniform(0.2, 0.8, 20)
    tried = np.repeat(parameters[:, None], 2001, axis=1)
    tried[..., 0] = np.linspace(0, 1, 2001)
    best = likelihood.log_prob_of_each(x[:, None], tried).max(axis=1)
    expected = best - likelihood.log_prob_of_each(x, parameters)
    np.testing.assert_allclose(likelihood.shortfall(x, parameters), expected, atol=2e-3)


def test_a_grey_value_falls_short_by_a_divergence():
    """KL(Bernoulli(x) || Bernoulli(theta)), of binary ones -log p; mixed columns have their own kind's."""
    x = np.array([[0.0, 1.0, 0.25, 0.5, 0.9]], np.float32)
    logits = np.array([[-1.0, 2.0, 0.5, 0.0, -30.0]], np.float32)
    theta, grey = 1 / (1 + np.exp(-logits.astype(np.float64))), np.clip(x.astype(np.float64), 1e-15, 1 - 1e-15)
    expected = grey * np.log(grey / theta) + (1 - grey) * np.log((1 - grey) / (1 - theta))
    found = Bernoulli(1).shortfall(x, logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    mixed = make(Named("mixed", {"binary": FLAGS, "logsigma": [0.0] * 5}), Observation(VECTOR, (5,), None))
    columns = mixed.shortfall(np.array([[1.0, 2.0, 3.0, 0.0, 4.0]], np.float32), np.zeros((1, 5), np.float32))
    np.testing.assert_allclose(columns, [[math.log(2), 2, 4.5, math.log(2), 8]], rtol=1e-6)


def stacked(loc: float, log_scale: float, rows: int = 1) -> np.ndarray:
    """Parameters of one pixel, float32 [rows, 2, 1, 1]."""
    return np.tile(np.array([loc, log_scale], np.float32).reshape(1, 2, 1, 1), (rows, 1, 1, 1))


def level_probabilities(loc: float, log_scale: float) -> np.ndarray:
    """P(level) for the 256 levels by differences of the logistic's distribution function in float64, tails and all."""
    edges = (np.arange(255) + 0.5) / 255
    inner = (1 + np.tanh((edges - loc) / math.exp(min(max(log_scale, -7), 7)) / 2)) / 2
    return np.diff(np.concatenate([[0], inner, [1]]))


@pytest.mark.parametrize(("loc", "log_scale"), PAIRS)
def test_logistic_probabilities_sum_to_one(loc: float, log_scale: float):
    """The probabilities of the 256 levels sum to 1 and are the reference's, for sharp, flat and far-off pixels."""
    p = np.exp(LOGISTIC.log_prob(LEVELS, stacked(loc, log_scale)))
    assert p.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(p, level_probabilities(loc, log_scale), atol=1e-4)


@pytest.mark.parametrize(("loc", "log_scale"), [*PAIRS, (1e4, -1e4), (-1e4, -1e4), (1e4, 1e4), (-1e4, 1e4)])
def test_logistic_mean_is_the_expectation(loc: float, log_scale: float):
    """The mean lies in [0, 1] and within half a level of the sum of level times probability."""
    mean = LOGISTIC.mean(stacked(loc, log_scale)).item()
    assert mean == pytest.approx(level_probabilities(loc, log_scale) @ (np.arange(256) / 255), abs=1 / 510)
    assert -1e-6 <= mean <= 1 + 1e-6


@pytest.mark.parametrize("likelihood", [Gaussian(3, 0.0), HETEROSCEDASTIC, LOGISTIC], ids=lambda it: it.name)
def test_extreme_parameters_stay_finite(likelihood):
    """At parameters of +-10,000 mean, draw and log-probability of every level are finite, without a warning."""
    for values in itertools.product([1e4, -1e4], repeat=likelihood.parameters_per_value):
        parameters = np.tile(np.array(values, np.float32).reshape(1, -1, 1, 1), (256, 1, 1, 1))
        draws = likelihood.sample(parameters, LEVELS * np.float32(1 - 2**-24))
        for result in (likelihood.mean(parameters), draws, likelihood.log_prob(LEVELS, parameters)):
            assert np.isfinite(result).all(), values


@pytest.mark.parametrize(("loc", "log_scale"), PAIRS)
def test_logistic_samples_follow_the_probabilities(loc: float, log_scale: float):
    """20,000 draws lie on levels, and their distribution function is the reference's to within 2 / sqrt(n)."""
    n = 20_000
    uniforms = noise.uniform(4, noise.PIXELS, np.arange(n), 1).reshape(n, 1, 1, 1)
    x = LOGISTIC.sample(stacked(loc, log_scale, n), uniforms)
    levels = np.rint(x * 255).astype(int)
    np.testing.assert_array_equal(x, LEVELS.ravel()[levels])
    frequencies = np.bincount(levels.ravel(), minlength=256) / n
    distance = np.abs(np.cumsum(frequencies - level_probabilities(loc, log_scale))).max()
    assert distance < 2 / math.sqrt(n)


def test_check_names_the_first_image_off_the_levels():
    """All 256 levels pass; a pixel between two raises InputError with the index of its image."""
    check(LOGISTIC, LEVELS, "image")
    off = LEVELS.copy()
    off[7:] += np.float32(0.3 / 255)
    with pytest.raises(InputError, match="no 8-bit levels: image 7; "):
        check(LOGISTIC, off, "image")


def test_a_contract_names_three_likelihoods():
    """Each likelihood is made from what a contract says of it, for observations of so many axes."""
    for name, kind in (("bernoulli", Bernoulli), ("discretised-logistic", DiscretisedLogistic)):
        made = make(Named(name), IMAGES)
        assert (type(made), made.axes) == (kind, 3)
    made = make(Named("gaussian", {"logsigma": -1.5}), Observation(VECTOR, (5,), None))
    assert (type(made), made.axes, made.logsigma) == (Gaussian, 1, -1.5)


@pytest.mark.parametrize(
    "named",
    [Named("poisson"), Named(""), Named("gaussian")]
    + [
        Named("gaussian", {"logsigma": value})
        for value in ("0", None, True, math.nan, math.inf, -80.0, [], [0.0, 0.0], ["0"])
    ],
)
def test_what_is_not_known_is_refused(named: Named):
    """An unknown likelihood, or one without what it needs, raises BundleError that shows it and says what to do."""
    with pytest.raises(BundleError, match="newer release of vae-edge, or export again") as caught:
        make(named, IMAGES)
    assert repr(named.name) in caught.value.which


@pytest.mark.parametrize("name", ["bernoulli", "discretised-logistic"])
def test_a_likelihood_of_levels_needs_their_range(name: str):
    """Probabilities of values in [0, 1] are not those of other values: such a contract is refused."""
    with pytest.raises(BundleError, match=name):
        make(Named(name), Observation(VECTOR, (5,), None))


@pytest.mark.parametrize(
    "likelihood", [Bernoulli, HeteroscedasticGaussian, DiscretisedLogistic, lambda axes: Gaussian(axes, -0.7)]
)
@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 6)])
def test_any_axes_are_summed_over(likelihood, shape: tuple[int, ...]):
    """Vectors and series have the log-probability of an image with the same values."""
    image, other = likelihood(3), likelihood(len(shape))
    x = np.rint(noise.uniform(1, noise.PIXELS, np.arange(5), 12)).reshape(5, 1, 12)
    parameters = draw_logits(5, image.parameters_per_value * 12)
    folded = (image.parameters_per_value * shape[0], *shape[1:])
    expected = image.log_prob(x.reshape(5, 1, 1, 12), parameters.reshape(5, -1, 1, 12))
    got = other.log_prob(x.reshape(5, *shape), parameters.reshape(5, *folded))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
