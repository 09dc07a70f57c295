"""Likelihoods p(x|z) in NumPy: from a decoder's natural parameters to means, draws and log-probabilities in nats.

Shapes: images x [..., C, H, W]; parameters [..., C, H, W], or [..., 2 C, H, W] where a pixel has two. Leading axes
broadcast, so that x [batch, 1, C, H, W] meets parameters [batch, draws, C, H, W].
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import BundleError, InputError

Floats = NDArray[np.float32]

LOG_SCALE_BOUND = 7.0  # of the discretised logistic: from a quarter of a level to a flat distribution
_SOFTPLUS_HALVINGS = 4  # 2^4 factors in (1, 2] are multiplied before one logarithm is taken


class Likelihood(Protocol):
    """What every likelihood offers; `parameters` is what the decoder graph returns."""

    output: str  # the decoder graph's output name
    parameters_per_pixel: int
    noise: str  # which draws `sample` takes: "uniform" in [0, 1) or standard "normal"
    discrete: bool  # whether log_prob is of a probability, so that bits per dimension mean something

    def mean(self, parameters: Floats) -> Floats:
        """E[x|z], float32 of the images' shape."""

    def sample(self, parameters: Floats, noise: Floats) -> Floats:
        """x ~ p(x|z) from noise of the images' shape, float32."""

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """log p(x|z), nats, float64 [...], summed over channels and pixels."""

    def check(self, x: Floats, start: int = 0) -> None:
        """Raise InputError where an image of x [batch, C, H, W] is outside the support; they count from `start`."""


class Bernoulli:
    """Binary pixels with parameters `logits`: p(x = 1) = theta = sigmoid(logits)."""

    output, parameters_per_pixel, noise, discrete = "logits", 1, "uniform", True

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
        """Sum over pixels of x * logits - softplus(logits); finite for every logit.

        With s = logits where x = 1 and -logits where x = 0, a pixel's term is min(s, 0) - log(1 + exp(-|s|)): no two
        large numbers cancel. One logarithm serves 16 pixels, since the factors lie in (1, 2].
        """
        return _bernoulli_log_prob(2 * x - 1, parameters)

    def check(self, x: Floats, start: int = 0) -> None:
        """Raise InputError at the first image with a pixel that is neither 0 nor 1."""
        _refuse(x, (x == 0) | (x == 1), "grey pixels under a Bernoulli likelihood", "use observe(x, seed) first", start)


@dataclass(frozen=True)
class Gaussian:
    """Real-valued pixels N(loc, sigma^2) with parameters `loc` and one sigma, fixed or learned, for all pixels."""

    logsigma: float
    output, parameters_per_pixel, noise, discrete = "loc", 1, "normal", False

    def mean(self, parameters: Floats) -> Floats:
        """loc itself."""
        return parameters

    def sample(self, parameters: Floats, noise: Floats) -> Floats:
        """loc + sigma * noise; may leave [0, 1]."""
        return parameters + np.float32(math.exp(self.logsigma)) * noise

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """Sum over pixels of -1/2 ((x - loc) / sigma)^2 - log sigma - 1/2 log 2 pi: a density, not a probability."""
        scaled = (x - parameters) * np.float32(math.exp(-self.logsigma))
        constant = self.logsigma + 0.5 * math.log(2 * math.pi)
        squares: NDArray[np.float64] = np.square(scaled).sum(axis=(-3, -2, -1), dtype=np.float64)
        return -0.5 * squares - constant * math.prod(x.shape[-3:])

    def check(self, x: Floats, start: int = 0) -> None:
        """Every real value is in the support."""


class DiscretisedLogistic:
    """8-bit levels x = level / 255 with parameters `loc` and `log_scale`, stacked along the channels.

    A logistic distribution integrated over each level's bin, its tails given to levels 0 and 255 (Salimans et al. 2017,
    arXiv:1701.05517, eq. 2). log_scale is clamped to +-7.
    """

    output, parameters_per_pixel, noise, discrete = "parameters", 2, "uniform", True

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
        """Sum over pixels of log(F(x + 1/510) - F(x - 1/510)), F the logistic's distribution function.

        With a and b the standardised edges of the bin, the difference is (1 - exp(b - a)) sigmoid(a) sigmoid(-b), whose
        logarithm is finite for every parameter.
        """
        loc, scale = self._split(parameters)
        half_bin = np.float32(1 / 510)
        upper = np.where(x > 1 - half_bin, np.float32(np.inf), (x + half_bin - loc) / scale)
        lower = np.where(x < half_bin, np.float32(-np.inf), (x - half_bin - loc) / scale)
        inside = np.where(np.isfinite(upper) & np.isfinite(lower), np.log(-np.expm1(-2 * half_bin / scale)), 0)
        terms = inside - _softplus(-upper) - _softplus(lower)
        log_prob: NDArray[np.float64] = terms.sum(axis=(-3, -2, -1), dtype=np.float64)
        return log_prob

    @staticmethod
    def rounded(x: Floats) -> Floats:
        """The nearest levels / 255 to x in [0, 1], as training rounds; levels stay to the last bit."""
        levels: Floats = np.rint(x * np.float32(255)) / np.float32(255)
        return levels

    def on_level(self, x: Floats) -> NDArray[np.bool_]:
        """Which pixels are 8-bit levels / 255, but for what float32 rounds: bool of x's shape."""
        on_level: NDArray[np.bool_] = np.abs(x - self.rounded(x)) < 1e-3 / 255
        return on_level

    def check(self, x: Floats, start: int = 0) -> None:
        """Raise InputError at the first image with a pixel that is no 8-bit level."""
        _refuse(x, self.on_level(x), "pixels that are no 8-bit levels", "give level / 255 for levels 0 to 255", start)

    @staticmethod
    def _split(parameters: Floats) -> tuple[Floats, Floats]:
        loc, log_scale = np.split(parameters, 2, axis=-3)
        return loc, np.exp(np.clip(log_scale, -LOG_SCALE_BOUND, LOG_SCALE_BOUND))


def from_contract(contract: dict[str, Any]) -> Likelihood:
    """The likelihood that a bundle's contract names. Raises BundleError for one that this release does not know."""
    match contract:
        case {"name": "bernoulli"}:
            return Bernoulli()
        case {"name": "gaussian", "logsigma": float(logsigma)} if abs(logsigma) < 80:
            return Gaussian(logsigma)
        case {"name": "discretised-logistic"}:
            return DiscretisedLogistic()
    raise BundleError("unknown likelihood", repr(contract)[:120], "use a newer release of vae-edge, or export again")


def _bernoulli_log_prob(signs: Floats, logits: Floats) -> NDArray[np.float64]:
    """Sum over pixels of log sigmoid(s) = min(s, 0) - log(1 + exp(-|s|)), s = signs * logits, float64 [...]."""
    s = signs.reshape(*signs.shape[:-3], -1) * logits.reshape(*logits.shape[:-3], -1)  # [..., pixels]
    negative = np.abs(s)
    np.negative(negative, out=negative)
    s += negative  # 2 min(s, 0), exactly
    linear: NDArray[np.float64] = 0.5 * s.sum(axis=-1).astype(np.float64)
    factors = np.exp(negative, out=negative)
    factors += 1
    for _ in range(_SOFTPLUS_HALVINGS):
        half, odd = divmod(factors.shape[-1], 2)
        if odd:
            break
        factors = factors[..., :half] * factors[..., half:]
    linear -= np.log(factors).sum(axis=-1)
    return linear


def _softplus(x: Floats) -> Floats:
    """log(1 + exp(x)), finite for every finite x, 0 at -inf."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _refuse(x: Floats, good: NDArray[np.bool_], what: str, todo: str, start: int) -> None:
    bad = ~good.all(axis=tuple(range(1, x.ndim)))
    if bad.any():
        raise InputError(what, f"image {start + int(np.argmax(bad))}", todo)
