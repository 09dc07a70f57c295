"""Likelihoods p(x|z) in PyTorch: log p(x|z) is a sum over an observation's values. The runtime has their twins.

Shapes: observations x [batch, *shape], images [batch, C, H, W] say; parameters [..., batch, *shape], and where a value
has two of them they are stacked along the first axis of the shape, [..., batch, 2 C, H, W].
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from vae_runtime.likelihoods import LOG_SCALE_BOUND, LOGDF_BOUNDS, LOGSIGMA_BOUNDS
from vae_runtime.manifest import Named
from vae_runtime.observation import Shape

_HALF_BIN = 1 / 510
_DF = 10.0  # degrees of freedom that are started from


class Likelihood(nn.Module):
    """What every likelihood offers; a module, since one may have weights of its own.

    axes: how many an observation has; parameters of several numbers a value are split along the first of them.
    """

    name: str
    output: str  # what the decoder's output is called in the exported graph
    parameters_per_value = 1
    binary = False  # whether values are 0 or 1; grey pixels are drawn as such, anew in every batch
    discrete = True  # whether log_prob is of a probability, so that bits per dimension mean something

    def __init__(self, axes: int = 3) -> None:
        super().__init__()
        self.axes = axes

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """log p(x|z), nats, [..., batch], summed over all axes but these."""
        raise NotImplementedError

    def root(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Where backpropagation starts: a tensor, and the gradient of -log p(x|z) with respect to it."""
        log_prob = self.log_prob(x, parameters)
        return log_prob, torch.full_like(log_prob, -1)

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x|z], of the observations' shape."""
        raise NotImplementedError

    def sample(self, parameters: Tensor) -> Tensor:
        """x ~ p(x|z), of the observations' shape."""
        raise NotImplementedError

    def constant(self, mean: Tensor, std: Tensor) -> Tensor:
        """Parameters of the best constant observation, from the values' mean and std, both of its shape."""
        raise NotImplementedError

    def contract(self) -> Named:
        """What a bundle says of it."""
        return Named(self.name)


class Bernoulli(Likelihood):
    """Binary values with parameters `logits`: p(x = 1) = theta = sigmoid(logits)."""

    name, output, binary = "bernoulli", "logits", True

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Sum of x * logits - softplus(logits); finite for every finite logit, since log(sigmoid) is never formed."""
        return _sum(x * parameters - softplus(parameters), x)

    def root(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The logits and sigmoid(logits) - x, so that the value of log p(x|z) is not computed."""
        return parameters, torch.sigmoid(parameters.detach()).sub_(x)

    def mean(self, parameters: Tensor) -> Tensor:
        """theta = sigmoid(logits)."""
        return torch.sigmoid(parameters)

    def sample(self, parameters: Tensor) -> Tensor:
        """0 or 1 with p(1) = theta."""
        return torch.bernoulli(torch.sigmoid(parameters))

    def constant(self, mean: Tensor, std: Tensor) -> Tensor:
        """logit(mean)."""
        return torch.logit(mean, eps=1e-3)


class Gaussian(Likelihood):
    """Real values N(loc, sigma^2) with parameters `loc`, and a learned sigma that values share.

    Rybkin, Daniilidis and Levine 2021, arXiv:2006.13202. sigma: the shape of log sigma, which broadcasts to an
    observation's: (), (C, 1, 1) or (C, H, W), say. log_unit: the logarithm of what 1 is in the unit that the values of
    each column came in, [C, 1, ...]: log p(x|z) is a density in that unit.
    """

    name, output, discrete = "gaussian", "loc", False

    log_unit: Tensor

    def __init__(self, axes: int = 3, sigma: Shape = ()) -> None:
        super().__init__(axes)
        self.logsigma = nn.Parameter(torch.zeros(sigma))
        self.register_buffer("log_unit", torch.zeros(()), persistent=False)  # the run's columns say it

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Sum of -1/2 ((x - loc) / sigma)^2 - log sigma - 1/2 log 2 pi: a density, not a probability."""
        squares = _sum(((x - parameters) * torch.exp(-self._bounded)).square(), x)
        constant = self._bounded + self.log_unit + 0.5 * math.log(2 * math.pi)
        log_prob: Tensor = -0.5 * squares - constant.sum() * (math.prod(x.shape[1:]) // constant.numel())
        return log_prob

    def mean(self, parameters: Tensor) -> Tensor:
        """loc itself."""
        return parameters

    def sample(self, parameters: Tensor) -> Tensor:
        """loc + sigma * noise; may leave [0, 1]."""
        return parameters + torch.exp(self._bounded) * torch.randn_like(parameters)

    def constant(self, mean: Tensor, std: Tensor) -> Tensor:
        """The mean; sigma starts from the values' own spread around it."""
        squares = std.square()
        count = self.logsigma.numel()
        squares = squares.mean() if self.logsigma.ndim == 0 else squares.reshape(count, -1).mean(dim=1)
        with torch.no_grad():
            self.logsigma.copy_(squares.sqrt().clamp(min=1e-3).log().reshape(self.logsigma.shape))
        return mean

    def contract(self) -> Named:
        """With the learned sigma."""
        return Named(self.name, _listed(logsigma=self._bounded) | _unit(self.log_unit))

    @property
    def _bounded(self) -> Tensor:
        """log sigma; a column that follows from the others would without a bound have a density without one."""
        return self.logsigma.clamp(min=LOGSIGMA_BOUNDS[0]) if self.logsigma.ndim else self.logsigma


class HeteroscedasticGaussian(Likelihood):
    """Real values N(loc, sigma^2) with parameters `loc` and `logsigma`, stacked along the first axis.

    logsigma is clamped to LOGSIGMA_BOUNDS: without a bound the density of values that the decoder knows has none
    (Mattei and Frellsen 2018, arXiv:1802.04826). log_unit as for `Gaussian`.
    """

    name, output, parameters_per_value, discrete = "heteroscedastic-gaussian", "parameters", 2, False

    log_unit: Tensor

    def __init__(self, axes: int = 3) -> None:
        super().__init__(axes)
        self.register_buffer("log_unit", torch.zeros(()), persistent=False)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Sum of -1/2 ((x - loc) / sigma)^2 - log sigma - 1/2 log 2 pi: a density, not a probability."""
        loc, logsigma = self._split(parameters)
        squares = ((x - loc) * torch.exp(-logsigma)).square()
        return _sum(-0.5 * squares - logsigma - self.log_unit - 0.5 * math.log(2 * math.pi), x)

    def mean(self, parameters: Tensor) -> Tensor:
        """loc itself."""
        return self._split(parameters)[0]

    def sample(self, parameters: Tensor) -> Tensor:
        """loc + sigma * noise; may leave [0, 1]."""
        loc, logsigma = self._split(parameters)
        return loc + torch.exp(logsigma) * torch.randn_like(loc)

    def constant(self, mean: Tensor, std: Tensor) -> Tensor:
        """The mean, and the logarithm of the standard deviation."""
        return torch.cat([mean, std.log().clamp(*LOGSIGMA_BOUNDS)])

    def contract(self) -> Named:
        """With the unit, where there is one."""
        return Named(self.name, _unit(self.log_unit))

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        loc, logsigma = parameters.chunk(2, dim=-self.axes)
        return loc, logsigma.clamp(*LOGSIGMA_BOUNDS)


class StudentT(Likelihood):
    """Real values of Student's t, loc + sigma t, with parameters `loc`; values share a learned sigma and logdf.

    For columns of heavy tails (Lange, Little and Taylor 1989, doi:10.1080/01621459.1989.10478852). logdf: the logarithm
    of the degrees of freedom, clamped to LOGDF_BOUNDS; of the shape `sigma`, as logsigma. log_unit as for `Gaussian`.
    """

    name, output, discrete = "student-t", "loc", False

    log_unit: Tensor

    def __init__(self, axes: int = 3, sigma: Shape = ()) -> None:
        super().__init__(axes)
        self.logsigma = nn.Parameter(torch.zeros(sigma))
        self.logdf = nn.Parameter(torch.full(sigma, math.log(_DF)))
        self.register_buffer("log_unit", torch.zeros(()), persistent=False)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Sum of log G((df + 1) / 2) - log G(df / 2) - log(df pi) / 2 - log sigma - (df + 1) / 2 log(1 + t^2 / df).

        G is the gamma function: a density, not a probability.
        """
        logsigma, logdf = self._bounded
        df = torch.exp(logdf)
        t = (x - parameters) * torch.exp(-logsigma)
        gammas = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2)
        constant = gammas - 0.5 * (logdf + math.log(math.pi)) - logsigma - self.log_unit
        return _sum(constant - 0.5 * (df + 1) * torch.log1p(t.square() / df), x)

    def mean(self, parameters: Tensor) -> Tensor:
        """loc itself."""
        return parameters

    def sample(self, parameters: Tensor) -> Tensor:
        """loc + sigma t."""
        logsigma, logdf = self._bounded
        t = torch.distributions.StudentT(torch.exp(logdf).expand_as(parameters)).sample()
        return parameters + torch.exp(logsigma) * t

    def constant(self, mean: Tensor, std: Tensor) -> Tensor:
        """The mean; sigma starts from the values' own spread around it, that of these degrees of freedom."""
        squares = std.square().reshape(self.logsigma.numel(), -1).mean(dim=1) * ((_DF - 2) / _DF)
        with torch.no_grad():
            self.logsigma.copy_(squares.sqrt().clamp(min=1e-3).log().reshape(self.logsigma.shape))
            self.logdf.fill_(math.log(_DF))
        return mean

    def contract(self) -> Named:
        """With the learned sigma and degrees of freedom."""
        logsigma, logdf = self._bounded
        return Named(self.name, _listed(logsigma=logsigma, logdf=logdf) | _unit(self.log_unit))

    @property
    def _bounded(self) -> tuple[Tensor, Tensor]:
        return self.logsigma.clamp(min=LOGSIGMA_BOUNDS[0]), self.logdf.clamp(*LOGDF_BOUNDS)


class Mixed(Likelihood):
    """Columns of 0 and 1, Bernoulli with parameters logits, beside others, Gaussian with parameters loc.

    Each of the latter has a learned sigma. binary_columns: which, or which channels, are of the former, bool [C, 1,
    ...]; it is kept with the weights. log_unit as for `Gaussian`.
    """

    name, output, discrete = "mixed", "parameters", False

    binary_columns: Tensor
    log_unit: Tensor

    def __init__(self, axes: int = 1, columns: int = 2) -> None:
        super().__init__(axes)
        shape = (columns, *[1] * (axes - 1))
        self.logsigma = nn.Parameter(torch.zeros(shape))
        self.register_buffer("binary_columns", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("log_unit", torch.zeros(()), persistent=False)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The sum of both: a density, since that of the real columns is one."""
        logsigma = self._bounded
        squares = ((x - parameters) * torch.exp(-logsigma)).square()
        real = -0.5 * squares - logsigma - self.log_unit - 0.5 * math.log(2 * math.pi)
        return _sum(torch.where(self.binary_columns, x * parameters - softplus(parameters), real), x)

    def mean(self, parameters: Tensor) -> Tensor:
        """theta = sigmoid(logits) of binary columns, loc of others."""
        return torch.where(self.binary_columns, torch.sigmoid(parameters), parameters)

    def sample(self, parameters: Tensor) -> Tensor:
        """0 or 1 with p(1) = theta in binary columns, loc + sigma * noise in others."""
        real = parameters + torch.exp(self._bounded) * torch.randn_like(parameters)
        return torch.where(self.binary_columns, torch.bernoulli(torch.sigmoid(parameters)), real)

    def constant(self, mean: Tensor, std: Tensor) -> Tensor:
        """logit(mean) of binary columns, the mean of others; sigma starts from the values' own spread around it."""
        squares = std.square().reshape(len(std), -1).mean(dim=1)
        with torch.no_grad():
            self.logsigma.copy_(squares.sqrt().clamp(min=1e-3).log().reshape(self.logsigma.shape))
        return torch.where(self.binary_columns, torch.logit(mean, eps=1e-3), mean)

    def contract(self) -> Named:
        """Which columns are binary, and the learned sigma of the others."""
        named = _listed(binary=self.binary_columns, logsigma=self._bounded)
        return Named(self.name, named | _unit(self.log_unit))

    @property
    def _bounded(self) -> Tensor:
        return self.logsigma.clamp(min=LOGSIGMA_BOUNDS[0])


class DiscretisedLogistic(Likelihood):
    """8-bit levels x = level / 255 with parameters `loc` and `log_scale`, stacked along the first axis.

    A logistic distribution integrated over each level's bin, its tails given to levels 0 and 255 (Salimans et al. 2017,
    arXiv:1701.05517, eq. 2). log_scale is clamped to +-7.
    """

    name, output, parameters_per_value = "discretised-logistic", "parameters", 2

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Sum of log(F(x + 1/510) - F(x - 1/510)), as (1 - exp(b - a)) sigmoid(a) sigmoid(-b), finite everywhere.

        a and b are the standardised edges of the bin.
        """
        loc, scale = self._split(parameters)
        left, right = x < _HALF_BIN, x > 1 - _HALF_BIN
        upper = softplus(-(x + _HALF_BIN - loc) / scale).masked_fill(right, 0)
        lower = softplus((x - _HALF_BIN - loc) / scale).masked_fill(left, 0)
        inside = torch.log(-torch.expm1(-2 * _HALF_BIN / scale)).masked_fill(left | right, 0)
        return _sum(inside - upper - lower, x)

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x|z] to within half a level: that of the logistic with its tails cut to 0 and 1, in closed form."""
        loc, scale = self._split(parameters)
        return (scale * (softplus(loc / scale) - softplus((loc - 1) / scale))).clamp(0, 1)

    def sample(self, parameters: Tensor) -> Tensor:
        """The level in whose bin a draw of the logistic falls."""
        loc, scale = self._split(parameters)
        u = torch.rand_like(loc).clamp(min=2**-25)
        draw = loc + scale * (torch.log(u) - torch.log1p(-u))
        return torch.round(draw.clamp(0, 1) * 255) / 255

    def constant(self, mean: Tensor, std: Tensor) -> Tensor:
        """The mean, and the scale of the logistic that has this standard deviation."""
        log_scale = torch.log(std.clamp(min=1 / 255) * (math.sqrt(3) / math.pi))
        return torch.cat([mean, log_scale])

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = parameters.chunk(2, dim=-self.axes)
        return loc, torch.exp(log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND))


KNOWN: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (Bernoulli, Gaussian, HeteroscedasticGaussian, StudentT, Mixed, DiscretisedLogistic)
}


def make(name: str, shape: Shape, sigma: str) -> Likelihood:
    """The likelihood of observations of this shape.

    sigma: what shares a learned sigma, where the likelihood has one: all values ("one"), those of a "column" or
    channel, which is the first axis, or none do ("value").
    """
    shared: dict[str, Shape] = {"one": (), "column": (shape[0], *[1] * (len(shape) - 1)), "value": shape}
    kind = KNOWN[name]
    if kind is Mixed:
        return Mixed(len(shape), columns=shape[0])
    return kind(len(shape), sigma=shared[sigma]) if kind in (Gaussian, StudentT) else kind(len(shape))


def _listed(**settings: Tensor) -> dict[str, Any]:
    """Settings as a contract has them: a number, or a list of them."""
    return {name: values.flatten().tolist() if values.ndim else values.item() for name, values in settings.items()}


def _unit(log_unit: Tensor) -> dict[str, Any]:
    """What a contract says of the columns' units: nothing where these are the networks' own."""
    return _listed(log_unit=log_unit) if log_unit.any() else {}


def _sum(terms: Tensor, x: Tensor) -> Tensor:
    """Terms [..., batch, *shape] of the values of x [batch, *shape], summed to [..., batch]."""
    return terms.flatten(1 - x.ndim).sum(dim=-1)
