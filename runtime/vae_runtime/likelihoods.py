"""Likelihoods p(x|z) in NumPy: means, draws, and log p(x|z) in nats, summed over an observation's values.

Shapes: observations x [..., *shape], of which a likelihood knows how many `axes` they have; parameters are as many, or,
where each value has several, that many times as long along the first axis: [..., 2 C, H, W], say. Leading axes
broadcast, so that x [batch, 1, C, H, W] meets parameters [batch, draws, C, H, W].

To add one: a class here and a line in `KNOWN`, its twin in `vae_train.likelihoods`, and its name in `vae_train.config`.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import noise
from vae_runtime.errors import BundleError, InputError
from vae_runtime.manifest import Named
from vae_runtime.observation import Observation, Shape

Floats = NDArray[np.float32]
Range = tuple[float, float]
Setting = float | NDArray[Any]  # of a contract: a number, or what `make` made of a list of them

LOGSIGMA_BOUNDS = (math.log(1e-3), 7.0)  # of values that spread by about 1, where a decoder or a column has its own
LOGDF_BOUNDS = (math.log(2), 5.0)  # of Student's t: E[x|z] exists, and beyond it is a Gaussian
LOG_SCALE_BOUND = 7.0  # of the discretised logistic: from a quarter of a level to a flat distribution


class Likelihood(Protocol):
    """What every likelihood offers; `parameters` is what the decoder graph returns."""

    name: str
    output: str  # the decoder graph's output name
    parameters_per_value: int
    noise: tuple[str, ...]  # which draws `sample` takes, in this order: "uniform" in [0, 1), standard "normal"
    discrete: bool  # whether log_prob is of a probability, so that bits per dimension mean something
    binary: bool  # whether values are 0 or 1, drawn with P(1) = value where they are neither
    range: ClassVar[Range | None]  # of the observations that it is for; None for any
    refusal: tuple[str, str]  # what values outside of the support are, and what to do about them

    def mean(self, parameters: Floats) -> Floats:
        """E[x|z], float32 of the observations' shape."""

    def sample(self, parameters: Floats, *noise: Floats) -> Floats:
        """x ~ p(x|z) from noise, each of the observations' shape, float32."""

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """log p(x|z), nats, float64 [...], summed over the observation's axes."""

    def log_prob_of_each(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """The terms of that sum: log p of each value, nats, float64 [..., *shape]."""

    def entropy(self, parameters: Floats) -> NDArray[np.float64]:
        """The entropy of p(x|z), nats, float64 [...], but for a constant of the model: how sure the decoder is."""

    def shortfall(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """By how much log p of each value is below what it could be there, nats, float64 [..., *shape], 0 or more.

        Half the deviance (McCullagh and Nelder 1989, section 2.3): what it could be is with a loc, or a theta, that
        hits it, and a scale as the decoder has it.
        """

    def supports(self, x: Floats) -> NDArray[np.bool_]:
        """Which values are in the support: bool of x's shape."""

    def nearest(self, x: Floats) -> Floats:
        """The nearest values in the support; what lies in it stays to the last bit."""


class Bernoulli:
    """Binary values with parameters `logits`: p(x = 1) = theta = sigmoid(logits)."""

    name, output, parameters_per_value, noise = "bernoulli", "logits", 1, ("uniform",)
    discrete, binary = True, True
    range: ClassVar[Range | None] = (0.0, 1.0)
    refusal = "grey values under a Bernoulli likelihood", "use observe(x, seed) first"

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def mean(self, parameters: Floats) -> Floats:
        """theta = sigmoid(logits); finite for every logit."""
        e = np.abs(parameters)
        np.exp(np.negative(e, out=e), out=e)
        theta = np.where(parameters >= 0, np.float32(1), e)
        e += 1
        theta /= e
        return theta

    def sample(self, parameters: Floats, noise: Floats) -> Floats:
        """1 where the uniform draw is below theta, else 0."""
        return (noise < self.mean(parameters)).astype(np.float32)

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of x * logits - softplus(logits); finite for every logit up to 1e38.

        With s = logits where x = 1 and -logits where x = 0, a value's term is min(s, 0) - log(1 + exp(-|s|)): no two
        large numbers cancel.
        """
        s = _flat(2 * x - 1, self.axes) * _flat(parameters, self.axes)
        negative = np.abs(s)
        np.negative(negative, out=negative)
        s += negative  # 2 min(s, 0), exactly
        linear: NDArray[np.float64] = 0.5 * s.sum(axis=-1).astype(np.float64)
        factors = np.exp(negative, out=negative)
        factors += 1
        linear -= np.log(factors, out=factors).sum(axis=-1)
        return linear

    def log_prob_of_each(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """x * logits - softplus(logits), as log sigmoid(s)."""
        s = (2 * x.astype(np.float64) - 1) * parameters
        terms: NDArray[np.float64] = np.minimum(s, 0) - np.log1p(np.exp(-np.abs(s)))
        return terms

    def entropy(self, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of softplus(logits) - theta * logits, with s = |logits|: log(1 + exp(-s)) + s (1 - theta)."""
        s = np.abs(_flat(parameters, self.axes))
        e = np.exp(-s)
        terms = np.log1p(e) + s * (e / (1 + e))
        entropy: NDArray[np.float64] = terms.sum(axis=-1, dtype=np.float64)
        return entropy

    def shortfall(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """KL(Bernoulli(x) || Bernoulli(theta)); x may be grey."""
        grey = x.astype(np.float64)
        own = sum(share * np.log(np.where(share > 0, share, 1)) for share in (grey, 1 - grey))
        cross = np.maximum(parameters, 0) - grey * parameters + np.log1p(np.exp(-np.abs(parameters.astype(np.float64))))
        shortfall: NDArray[np.float64] = np.maximum(own + cross, 0)
        return shortfall

    def supports(self, x: Floats) -> NDArray[np.bool_]:
        """Those that are 0 or 1."""
        binary: NDArray[np.bool_] = (x == 0) | (x == 1)
        return binary

    def nearest(self, x: Floats) -> Floats:
        """The likelier of 0 and 1."""
        return np.rint(x)


class Gaussian:
    """Real values N(loc, sigma^2) with parameters `loc`, and a sigma that values share.

    logsigma: of the values as the networks take them. log_unit: the logarithm of what 1 of these is in the unit that
    they came in, where they were scaled: log p(x|z) is a density in that unit. Both broadcast to an observation: they
    are one number, or [C, 1, ...] for each column or channel, or of its shape.
    """

    name, output, parameters_per_value, noise = "gaussian", "loc", 1, ("normal",)
    discrete, binary = False, False
    range: ClassVar[Range | None] = None
    refusal = "no real numbers", "clean the data"

    def __init__(self, axes: int, logsigma: Setting, log_unit: Setting = 0.0) -> None:
        """Raises ValueError where sigma would not be a number of float32."""
        self.axes = axes
        self.logsigma = _numbers("logsigma", logsigma, 80)
        self._sigma, self._precision = (np.exp(sign * self.logsigma).astype(np.float32) for sign in (1, -1))
        self._constant = self.logsigma + _numbers("log_unit", log_unit, 700) + 0.5 * math.log(2 * math.pi)

    def mean(self, parameters: Floats) -> Floats:
        """loc itself."""
        return parameters

    def sample(self, parameters: Floats, noise: Floats) -> Floats:
        """loc + sigma * noise; may leave the range of the observations."""
        drawn: Floats = parameters + self._sigma * noise
        return drawn

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of -1/2 ((x - loc) / sigma)^2 - log sigma - 1/2 log 2 pi: a density, not a probability."""
        scaled = (x - parameters) * self._precision
        axes = tuple(range(-self.axes, 0))
        squares: NDArray[np.float64] = np.square(scaled).sum(axis=axes, dtype=np.float64)
        values = math.prod(x.shape[-self.axes :]) // self._constant.size  # that each constant is for
        return -0.5 * squares - float(self._constant.sum()) * values

    def log_prob_of_each(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """-1/2 ((x - loc) / sigma)^2 - log sigma - 1/2 log 2 pi."""
        scaled = ((x - parameters) * self._precision).astype(np.float64)
        terms: NDArray[np.float64] = -0.5 * np.square(scaled) - self._constant
        return terms

    def entropy(self, parameters: Floats) -> NDArray[np.float64]:
        """0: it does not depend on z."""
        return np.zeros(parameters.shape[: parameters.ndim - self.axes])

    def shortfall(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """1/2 ((x - loc) / sigma)^2."""
        scaled = ((x - parameters) * self._precision).astype(np.float64)
        shortfall: NDArray[np.float64] = 0.5 * np.square(scaled)
        return shortfall

    def supports(self, x: Floats) -> NDArray[np.bool_]:
        """All real numbers."""
        return np.isfinite(x)

    def nearest(self, x: Floats) -> Floats:
        """As they are."""
        return x


class HeteroscedasticGaussian:
    """Real values N(loc, sigma^2) with parameters `loc` and `logsigma`, stacked along the first axis.

    logsigma is clamped to LOGSIGMA_BOUNDS: without a bound the density of values that the decoder knows has none
    (Mattei and Frellsen 2018, arXiv:1802.04826). log_unit as for `Gaussian`.
    """

    name, output, parameters_per_value, noise = "heteroscedastic-gaussian", "parameters", 2, ("normal",)
    discrete, binary = False, False
    range: ClassVar[Range | None] = None
    refusal = Gaussian.refusal

    def __init__(self, axes: int, log_unit: Setting = 0.0) -> None:
        self.axes = axes
        self._constant = _numbers("log_unit", log_unit, 700) + 0.5 * math.log(2 * math.pi)

    def mean(self, parameters: Floats) -> Floats:
        """loc itself."""
        return self._split(parameters)[0]

    def sample(self, parameters: Floats, noise: Floats) -> Floats:
        """loc + sigma * noise; may leave the range of the observations."""
        loc, logsigma = self._split(parameters)
        sigma: Floats = np.exp(logsigma)
        return loc + sigma * noise

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of -1/2 ((x - loc) / sigma)^2 - log sigma - 1/2 log 2 pi: a density, not a probability."""
        axes = tuple(range(-self.axes, 0))
        log_prob: NDArray[np.float64] = self.log_prob_of_each(x, parameters).sum(axis=axes)
        return log_prob

    def log_prob_of_each(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """-1/2 ((x - loc) / sigma)^2 - log sigma - 1/2 log 2 pi."""
        loc, logsigma = self._split(parameters)
        scaled = ((x - loc) * np.exp(-logsigma)).astype(np.float64)
        terms: NDArray[np.float64] = -0.5 * np.square(scaled) - logsigma - self._constant
        return terms

    def entropy(self, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of log sigma."""
        entropy: NDArray[np.float64] = _flat(self._split(parameters)[1], self.axes).sum(axis=-1, dtype=np.float64)
        return entropy

    def shortfall(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """1/2 ((x - loc) / sigma)^2."""
        loc, logsigma = self._split(parameters)
        scaled = ((x - loc) * np.exp(-logsigma)).astype(np.float64)
        shortfall: NDArray[np.float64] = 0.5 * np.square(scaled)
        return shortfall

    def supports(self, x: Floats) -> NDArray[np.bool_]:
        """All real numbers."""
        return np.isfinite(x)

    def nearest(self, x: Floats) -> Floats:
        """As they are."""
        return x

    def _split(self, parameters: Floats) -> tuple[Floats, Floats]:
        loc, logsigma = np.split(parameters, 2, axis=-self.axes)
        return loc, np.clip(logsigma, np.float32(LOGSIGMA_BOUNDS[0]), np.float32(LOGSIGMA_BOUNDS[1]))


class StudentT:
    """Real values of Student's t, loc + sigma t, with parameters `loc`; values share a sigma and degrees of freedom.

    For columns of heavy tails: few degrees of freedom give values far from loc far more probability than a Gaussian
    does. logsigma, log_unit: as for `Gaussian`. logdf: the logarithm of the degrees of freedom.
    """

    name, output, parameters_per_value, noise = "student-t", "loc", 1, ("normal", "normal")
    discrete, binary = False, False
    range: ClassVar[Range | None] = None
    refusal = Gaussian.refusal

    def __init__(self, axes: int, logsigma: Setting, logdf: Setting, log_unit: Setting = 0.0) -> None:
        """Raises ValueError where sigma or the degrees of freedom would not be a number of float32."""
        self.axes = axes
        self.logsigma, logdf = _numbers("logsigma", logsigma, 80), _numbers("logdf", logdf, 80)
        self.df = np.exp(logdf)
        self._sigma, self._precision = (np.exp(sign * self.logsigma).astype(np.float32) for sign in (1, -1))
        gammas = np.vectorize(lambda df: math.lgamma((df + 1) / 2) - math.lgamma(df / 2), otypes=[float])(self.df)
        unit = self.logsigma + _numbers("log_unit", log_unit, 700)
        self._constant = 0.5 * (logdf + math.log(math.pi)) - gammas + unit

    def mean(self, parameters: Floats) -> Floats:
        """loc itself."""
        return parameters

    def sample(self, parameters: Floats, normal: Floats, other: Floats) -> Floats:
        """loc + sigma t, by the polar method of Bailey (1994, Mathematics of Computation 62, 779).

        With two normals of radius r, cos(angle) sqrt(df (U^(-2 / df) - 1)) is t, where U = exp(-r^2 / 2) is uniform.
        """
        df = self.df.astype(np.float32)
        square = np.maximum(np.square(normal) + np.square(other), np.float32(1e-12))
        drawn: Floats = parameters + self._sigma * (normal * np.sqrt(df * np.expm1(square / df) / square))
        return drawn

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of log p: a density, not a probability."""
        axes = tuple(range(-self.axes, 0))
        log_prob: NDArray[np.float64] = self.log_prob_of_each(x, parameters).sum(axis=axes)
        return log_prob

    def log_prob_of_each(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(df pi) / 2 - log sigma - (df + 1) / 2 log(1 + t^2 / df)."""
        t = ((x - parameters) * self._precision).astype(np.float64)
        terms: NDArray[np.float64] = -0.5 * (self.df + 1) * np.log1p(np.square(t) / self.df) - self._constant
        return terms

    def entropy(self, parameters: Floats) -> NDArray[np.float64]:
        """0: it does not depend on z."""
        return np.zeros(parameters.shape[: parameters.ndim - self.axes])

    def shortfall(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """(df + 1) / 2 log(1 + t^2 / df)."""
        t = ((x - parameters) * self._precision).astype(np.float64)
        shortfall: NDArray[np.float64] = 0.5 * (self.df + 1) * np.log1p(np.square(t) / self.df)
        return shortfall

    def supports(self, x: Floats) -> NDArray[np.bool_]:
        """All real numbers."""
        return np.isfinite(x)

    def nearest(self, x: Floats) -> Floats:
        """As they are."""
        return x


class Mixed:
    """Columns of 0 and 1, Bernoulli with parameters logits, beside others, Gaussian with parameters loc.

    binary: which columns, or channels, are of the former. logsigma, log_unit: as for `Gaussian`, of all columns; those
    of binary ones are not used.
    """

    name, output, parameters_per_value, noise = "mixed", "parameters", 1, ("uniform", "normal")
    discrete, binary = False, False
    range: ClassVar[Range | None] = None
    refusal = "neither 0 nor 1 in a column of such values", "clean the data, or leave that one out"

    def __init__(self, axes: int, binary: Setting, logsigma: Setting, log_unit: Setting = 0.0) -> None:
        """Raises ValueError where the settings are not of this kind, and where no column is of one of both kinds."""
        flags = np.asarray(binary, object)
        if flags.ndim != axes or not all(type(flag) is bool for flag in flags.flat) or len(set(flags.flat)) < 2:
            raise ValueError(f"binary is {str(flags.tolist())[:40]}")
        self.axes = axes
        which = flags.astype(bool)
        self._places = np.flatnonzero(which), np.flatnonzero(~which)
        self._back = np.argsort(np.concatenate(self._places))
        real = (
            np.broadcast_to(np.asarray(each, object), which.shape)[self._places[1]] for each in (logsigma, log_unit)
        )
        self._bernoulli, self._gaussian = Bernoulli(axes), Gaussian(axes, *real)

    def mean(self, parameters: Floats) -> Floats:
        """theta = sigmoid(logits) of binary columns, loc of others."""
        logits, loc = self._parts(parameters)
        return self._joined(self._bernoulli.mean(logits), loc)

    def sample(self, parameters: Floats, uniform: Floats, normal: Floats) -> Floats:
        """In binary columns 1 where the uniform draw is below theta, else 0; in others loc + sigma * normal."""
        logits, loc = self._parts(parameters)
        binary, real = self._parts(uniform)[0], self._parts(normal)[1]
        return self._joined(self._bernoulli.sample(logits, binary), self._gaussian.sample(loc, real))

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """The sum of both: a density, since that of the real columns is one."""
        (binary, real), (logits, loc) = self._parts(x), self._parts(parameters)
        return self._bernoulli.log_prob(binary, logits) + self._gaussian.log_prob(real, loc)

    def log_prob_of_each(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """Log-probabilities in binary columns, log-densities in others."""
        (binary, real), (logits, loc) = self._parts(x), self._parts(parameters)
        each = self._bernoulli.log_prob_of_each(binary, logits), self._gaussian.log_prob_of_each(real, loc)
        return self._joined(*each)

    def entropy(self, parameters: Floats) -> NDArray[np.float64]:
        """That of the binary columns: that of the others does not depend on z."""
        return self._bernoulli.entropy(self._parts(parameters)[0])

    def shortfall(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """That of each column's kind."""
        (binary, real), (logits, loc) = self._parts(x), self._parts(parameters)
        return self._joined(self._bernoulli.shortfall(binary, logits), self._gaussian.shortfall(real, loc))

    def supports(self, x: Floats) -> NDArray[np.bool_]:
        """0 and 1 in binary columns, all real numbers in others."""
        binary, real = self._parts(x)
        return self._joined(self._bernoulli.supports(binary), self._gaussian.supports(real))

    def nearest(self, x: Floats) -> Floats:
        """As they are."""
        return x

    def _parts(self, values: Floats) -> tuple[Floats, Floats]:
        """Those of binary columns, and those of others."""
        binary, real = (values.take(places, axis=-self.axes) for places in self._places)
        return binary, real

    def _joined(self, binary: NDArray[Any], real: NDArray[Any]) -> NDArray[Any]:
        """Both as columns in their own order."""
        return np.concatenate([binary, real], axis=-self.axes).take(self._back, axis=-self.axes)


class DiscretisedLogistic:
    """8-bit levels x = level / 255 with parameters `loc` and `log_scale`, stacked along the first axis.

    A logistic distribution integrated over each level's bin, its tails given to levels 0 and 255 (Salimans et al. 2017,
    arXiv:1701.05517, eq. 2). log_scale is clamped to +-7.
    """

    name, output, parameters_per_value, noise = "discretised-logistic", "parameters", 2, ("uniform",)
    discrete, binary = True, False
    range: ClassVar[Range | None] = (0.0, 1.0)
    refusal = "values that are no 8-bit levels", "give level / 255 for levels 0 to 255"

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def mean(self, parameters: Floats) -> Floats:
        """E[x|z] to within half a level: that of the logistic with its tails cut to 0 and 1, in closed form."""
        loc, scale = self._split(parameters)
        mean: Floats = np.clip(scale * (_softplus(loc / scale) - _softplus((loc - 1) / scale)), 0, 1)
        return mean

    def sample(self, parameters: Floats, noise: Floats) -> Floats:
        """The level in whose bin the logistic's quantile of the uniform draw falls."""
        loc, scale = self._split(parameters)
        u = np.maximum(noise, np.float32(2**-25))  # noise is a multiple of 2^-24 below 1
        draw = loc + scale * (np.log(u) - np.log1p(-u))
        levels: Floats = np.rint(np.clip(draw, 0, 1) * np.float32(255)) / np.float32(255)
        return levels

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of log(F(x + 1/510) - F(x - 1/510)), F the logistic's distribution function."""
        axes = tuple(range(-self.axes, 0))
        log_prob: NDArray[np.float64] = self.log_prob_of_each(x, parameters).sum(axis=axes, dtype=np.float64)
        return log_prob

    def log_prob_of_each(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """log(F(x + 1/510) - F(x - 1/510)).

        With a and b the standardised edges of the bin, the difference is (1 - exp(b - a)) sigmoid(a) sigmoid(-b), whose
        logarithm is finite for every parameter.
        """
        loc, scale = self._split(parameters)
        half_bin = np.float32(1 / 510)
        upper = np.where(x > 1 - half_bin, np.float32(np.inf), (x + half_bin - loc) / scale)
        lower = np.where(x < half_bin, np.float32(-np.inf), (x - half_bin - loc) / scale)
        inside = np.where(np.isfinite(upper) & np.isfinite(lower), np.log(-np.expm1(-2 * half_bin / scale)), 0)
        terms: Floats = inside - _softplus(-upper) - _softplus(lower)
        return terms.astype(np.float64)

    def entropy(self, parameters: Floats) -> NDArray[np.float64]:
        """Sum over values of that of the logistic in levels, 2 + log(255 scale), or of 0 where it lies within one."""
        scale = _flat(self._split(parameters)[1], self.axes)
        terms = np.maximum(np.log(scale) + np.float32(2 + math.log(255)), 0)
        entropy: NDArray[np.float64] = terms.sum(axis=-1, dtype=np.float64)
        return entropy

    def shortfall(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """log p of the level at E[x|z], less that of x."""
        expected = self.log_prob_of_each(self.nearest(self.mean(parameters)), parameters)
        shortfall: NDArray[np.float64] = np.maximum(expected - self.log_prob_of_each(x, parameters), 0)
        return shortfall

    def supports(self, x: Floats) -> NDArray[np.bool_]:
        """Those that are 8-bit levels / 255, but for what float32 rounds."""
        on_level: NDArray[np.bool_] = np.abs(x - self.nearest(x)) < 1e-3 / 255
        return on_level

    def nearest(self, x: Floats) -> Floats:
        """The nearest levels / 255, as training rounds."""
        levels: Floats = np.rint(x * np.float32(255)) / np.float32(255)
        return levels

    def _split(self, parameters: Floats) -> tuple[Floats, Floats]:
        loc, log_scale = np.split(parameters, 2, axis=-self.axes)
        return loc, np.exp(np.clip(log_scale, -LOG_SCALE_BOUND, LOG_SCALE_BOUND))


KNOWN: dict[str, Any] = {
    kind.name: kind for kind in (Bernoulli, Gaussian, HeteroscedasticGaussian, StudentT, Mixed, DiscretisedLogistic)
}


def make(named: Named, observation: Observation) -> Likelihood:
    """The likelihood that a contract names, for its observations. Raises BundleError for one that is not known."""
    kind = KNOWN.get(named.name)
    if kind is not None and kind.range not in (None, observation.range):
        limits = "any real numbers" if observation.range is None else list(observation.range)
        todo = f"it is for values in {list(kind.range)}: choose another, or scale them"
        raise BundleError("likelihood of other values", f"{named.name} of {limits}", todo)
    try:
        if kind is None:
            raise ValueError("no such name")
        settings = {name: _spread(value, observation.shape) for name, value in named.settings.items()}
        made: Likelihood = kind(len(observation.shape), **settings)
        return made
    except (TypeError, ValueError) as error:
        which = f"{named.name!r} {str(named.settings or '')[:60]} ({error})"[:160]
        raise BundleError("unknown likelihood", which, "use a newer release of vae-edge, or export again") from None


def check(likelihood: Likelihood, x: Floats, noun: str, start: int = 0, columns: Sequence[str] = ()) -> None:
    """Raise InputError where an observation of x [batch, *shape] is off the support; they count from `start`.

    columns: the names of those along the first axis, where the one is to be named.
    """
    bad = outside(likelihood, x)
    if bad.any():
        row, (what, todo) = int(np.argmax(bad)), likelihood.refusal
        first = np.argwhere(~likelihood.supports(x[row]))[0, 0]
        raise InputError(what, f"{noun} {start + row}" + (f", column {columns[first]}" if columns else ""), todo)


def parameter_shape(likelihood: Likelihood, shape: Shape) -> Shape:
    """The shape of the parameters of an observation of this shape: theirs stand along its first axis."""
    first, *rest = shape
    return (first * likelihood.parameters_per_value, *rest)


def draw(likelihood: Likelihood, parameters: Floats, seed: int, index: ArrayLike, shape: Shape) -> Floats:
    """x ~ p(x|z), float32 [len(index), *shape], by this seed's noise of `noise.PIXELS`, and of `noise.SECOND`."""
    sources = {"uniform": noise.uniform, "normal": noise.normal}
    drawn = (
        sources[kind](seed, stream, index, math.prod(shape)).reshape(-1, *shape)
        for kind, stream in zip(likelihood.noise, (noise.PIXELS, noise.SECOND), strict=False)
    )
    return likelihood.sample(parameters, *drawn)


def outside(likelihood: Likelihood, x: Floats) -> NDArray[np.bool_]:
    """Which observations of x [batch, *shape] have a value off the support: bool [batch]."""
    return np.logical_not(likelihood.supports(x).all(axis=tuple(range(1, x.ndim))))


def _spread(setting: Any, shape: Shape) -> Any:
    """A list of a setting's values as an array that broadcasts to an observation's shape; anything else as it is.

    There is one for each row of its first axis, or one for each of its values; else ValueError is raised.
    """
    if not isinstance(setting, list):
        return setting
    for fit in ((shape[0], *[1] * (len(shape) - 1)), shape):
        if len(setting) == math.prod(fit):
            return np.array(setting, object).reshape(fit)
    each = f"{shape[0]} numbers, one for each column, nor {math.prod(shape)}, one for each value"
    raise ValueError(f"neither {each}")


def _numbers(name: str, given: Setting, most: float) -> NDArray[np.float64]:
    """A setting's numbers. Raises ValueError where they are none, or `most` or more in size."""
    numbers = np.asarray(given, object)
    if not all(type(number) in (int, float) and abs(number) < most for number in numbers.flat):
        raise ValueError(f"{name} is {str(numbers.tolist())[:40]}")
    return numbers.astype(np.float64)


def _flat(values: Floats, axes: int) -> Floats:
    return values.reshape(*values.shape[: values.ndim - axes], -1)


def _softplus(x: Floats) -> Floats:
    """log(1 + exp(x)), finite for every finite x, 0 at -inf."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
