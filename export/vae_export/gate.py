"""The numeric gate: the shipped runtime against the networks in float64, tensor by tensor and in nats.

How far a number may be off follows from `vae_export.rounding`, a model of what float32 does.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_export import contract, golden, summary
from vae_export.rounding import Precise
from vae_runtime import noise
from vae_runtime.errors import BundleError, VaeError
from vae_runtime.likelihoods import Likelihood
from vae_runtime.observation import Observation, Shape
from vae_runtime.prior import standard_normal
from vae_runtime.vae import VAE as RuntimeVAE
from vae_runtime.verify import ulps
from vae_train import pixels
from vae_train.vae import VAE, Pass

BATCHES = (1, 2, 7, 64)
EXTREMES, PATTERNS, GOLDEN = "extremes", "patterns", "golden"
PRIOR, POSTERIOR, FAR = "prior z", "posterior z", "far z"
NOISE, FAR_NOISE, ROUND_TRIP = "noise", "far noise", "round trip"
FALSE_ALARM = 1e-6  # of a whole gate: the chance that a number is refused though rounding alone is at work
MODEL = (
    "largest standard error of float32 for golden vectors (rounding model of docs/numeric-gate.md, u = 2^-24), times "
    "what all numbers of the gate together exceed with a chance of 1e-6"
)
_AT_ONE_BATCH = (PATTERNS, GOLDEN, FAR, FAR_NOISE)
_FURTHEST, _DRAWS = 4, 8  # of so many inputs that are furthest off errors are drawn again, and so often
_FAR = 3.0  # standard deviations of the prior, along each axis of z, and half of it the other way along the next
_MOST_FAR = 256  # axes: of spatial latents, which have thousands, some from all over
_FAR_OUT = 6.0  # standard deviations of a value that has no range
_SEED = 0  # of the draws of rounding errors

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Probe = NDArray[Any]  # uint8 levels, or float32 in the range of the observations
Values = Mapping[str, NDArray[Any]]  # by tensor


@dataclass(frozen=True)
class Comparison:
    """One comparison. Its figures are those of the input that is furthest off, the one in row `worst`.

    max_abs, tolerance: how far it is off, and how far it may be, in the tensor's own unit (nats for the ELBO).
    ulps: max_abs as `vae_runtime.verify.ulps` counts it. nats: what that does to the ELBO, or to the term of it which
    the tensor enters. pytorch: how far PyTorch's float32 is off, at most. problem: why there are no figures, if so.
    evidence: what repeats a failure: inputs, for the ELBO their noise too, expected and, if there is any, got.
    """

    tensor: str
    inputs: str
    batch: int
    tolerance: float
    pytorch: float
    worst: int = 0
    max_abs: float = math.nan
    ulps: float = math.nan
    nats: float = math.nan
    problem: str = ""
    evidence: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.max_abs <= self.tolerance

    @property
    def name(self) -> str:
        """For people: which tensor, on what, at which batch size."""
        return f"{self.tensor} on {self.inputs} at batch {self.batch}"


@dataclass(frozen=True)
class Verdict:
    """All comparisons of the graphs of one precision with a reference, which is named for people."""

    precision: str
    reference: str
    comparisons: list[Comparison]

    @property
    def heading(self) -> str:
        """What was compared with what."""
        return f"{self.precision} in onnxruntime against {self.reference}"


class GateFailed(BundleError):
    """Numbers are further off than rounding explains, and nothing was published. verdict: with the comparisons."""

    def __init__(self, verdict: Verdict) -> None:
        failed = summary.of_failed(verdict.comparisons)
        super().__init__("numeric gate failed", failed, "nothing was published; see the comparisons")
        self.verdict = verdict


@dataclass(frozen=True)
class Side:
    """A function of the model, as float64, PyTorch and the runtime compute it.

    exact(*inputs, seed): its tensors in float64, or a draw of what float32 may give (`Precise.evaluate`).
    single(*inputs): in PyTorch's float32. run(runtime, inputs): the runtime's. term(values, row): nats, the term of the
    ELBO that these values of an input in that row make.
    """

    tensors: tuple[str, ...]
    exact: Callable[..., Sequence[Tensor]]
    single: Callable[..., Sequence[Tensor]]
    run: Callable[[RuntimeVAE, Floats], Sequence[NDArray[Any]]]
    term: Callable[[Values, int], float]


@dataclass(frozen=True)
class Case:
    """Inputs of one kind, by name and the same number of each, and what a side gives for them.

    expected: in float64. errors: the largest standard error of a number in float32. pytorch: how far PyTorch is off.
    """

    side: Side
    kind: str
    batches: list[int]
    inputs: dict[str, Floats]
    expected: dict[str, Doubles]
    errors: dict[str, float]
    pytorch: dict[str, float]


def compare(vae: VAE, runtime: RuntimeVAE, probe: Probe) -> list[Comparison]:
    """Compare encoder, decoder, a learned prior and ELBO, on everything that `expect` lists, at its batch sizes.

    probe: 64 real observations [64, *shape], uint8 levels or float32.
    """
    return judge(expect(vae, runtime.observation, probe), runtime)


def real(observation: Observation) -> str:
    """What rows of real observations are called: "real images", say."""
    return f"real {observation.noun}s"


def is_real(inputs: str) -> bool:
    """Whether a row is of real observations, by what its inputs are called."""
    return inputs.startswith("real ")


@torch.no_grad()
def expect(vae: VAE, observation: Observation, probe: Probe) -> list[Case]:
    """What the runtime must give: for real, extreme and made-up observations, golden vectors, and z near and far."""
    precise = Precise(vae.cpu().eval())
    levels, rows = torch.from_numpy(probe), np.arange(len(probe))
    grey = pixels.unit(levels).numpy()
    observed = pixels.unit(pixels.fixed_draw(levels)).numpy() if vae.likelihood.binary else grey
    golden_z, golden_x, _ = golden.inputs(precise, observation)
    ends = _ends(observation, observed, contract.likelihood(vae, observation))
    made_up = {EXTREMES: _extremes(observed, *ends), PATTERNS: _patterns(observed, *ends), GOLDEN: golden_x}
    encoder, decoder, elbo = _sides(precise, observation, observed)
    encoded = [_case(encoder, kind, {"x": x}) for kind, x in {real(observation): grey, **made_up}.items()]

    def eps(index: NDArray[Any]) -> Floats:
        drawn = noise.normal(golden.SEED, noise.POSTERIOR, index, vae.latent_dim)
        return drawn.reshape(-1, *vae.latent_shape)

    drawn = standard_normal(vae.latent_shape, golden.SEED, rows)
    mu, logsigma = encoded[0].expected.values()
    posterior = (mu + np.exp(logsigma) * eps(rows)).astype(np.float32)
    far = _far(vae.latent_shape)
    latents = {PRIOR: golden.latents(precise, drawn), POSTERIOR: posterior, FAR: far, GOLDEN: golden_z}
    decoded = [_case(decoder, kind, {"z": z}) for kind, z in latents.items()]
    noises = {NOISE: drawn, FAR_NOISE: far, GOLDEN: drawn[: len(golden_z)]}
    of_prior = _prior_cases(precise, noises, latents) if contract.learned_prior(vae) else []

    scored = []
    for kind, x in {real(observation): observed, **made_up}.items():
        scored.append(_case(elbo, kind, {"x": x, "eps": eps(noise.index(x))}))  # as `elbo` draws it
    return [*encoded, *decoded, *of_prior, *scored]


def judge(cases: list[Case], runtime: RuntimeVAE) -> list[Comparison]:
    """Compare the runtime's numbers with the expected ones."""
    numbers = sum(
        batch * values[0].size for case in cases for batch in case.batches for values in case.expected.values()
    )
    factor = standard_errors(numbers)
    return [row for case in cases for batch in case.batches for row in _compare(case, batch, runtime, factor)]


def standard_errors(numbers: int) -> float:
    """How many of them so many normal numbers exceed, on either side and any of them, with a chance of FALSE_ALARM."""
    return -NormalDist().inv_cdf(FALSE_ALARM / (2 * numbers))


def table(rows: list[Comparison]) -> str:
    """The rows for people: a tick or a cross, and the figures of the worst input, which is named by its row."""
    heads = ("off", "tolerance", "ulps", "nats", "PyTorch")
    lines = [f"  {'tensor':11}{'inputs':12}{'batch':>5}{'worst':>6}" + "".join(f"{head:>10}" for head in heads)]
    for row in rows:
        figures = f"{row.max_abs:10.1e}{row.tolerance:10.1e}{row.ulps:10.3g}{row.nats:10.1e}{row.pytorch:10.1e}"
        rest = f"  {row.problem}" if row.problem else f"{row.worst:6d}{figures}"
        lines.append(f"{'✓' if row.passed else '✗'} {row.tensor:11}{row.inputs:12}{row.batch:5d}{rest}")
    return "\n".join(lines)


def brief(rows: list[Comparison]) -> str:
    """The rows in a line, where all have passed."""
    scored = [row for row in rows if row.tensor == "ELBO" and is_real(row.inputs)]
    within = f"; ELBO of {scored[0].inputs} within {max(row.max_abs for row in scored):.1e} nats" if scored else ""
    return summary.of_passed(rows) + within


def report(rows: list[Comparison], reference: str) -> dict[str, Any]:
    """For the manifest: what the numbers were compared with, how far golden vectors may be off, why, and every row."""
    tolerance = {row.tensor.lower(): row.tolerance for row in rows if row.inputs == GOLDEN}
    named = ("tensor", "inputs", "batch", "worst", "max_abs", "tolerance", "ulps", "nats", "pytorch", "passed")
    kept = [{name: getattr(row, name) for name in named} for row in rows]
    return {"reference": reference, "tolerance": {"model": MODEL, **tolerance}, "rows": kept}


def _ends(observation: Observation, x: Floats, likelihood: Likelihood) -> tuple[Floats, Floats]:
    """The least and the largest value of each number of an observation [*shape].

    Where every real number is one, what lies far out by the real observations x: a device meets such values, and not
    1e30. A number that is the same in all of them is taken to spread by 1. A column of 0 and 1 has these.
    """
    if observation.range is not None:
        low, high = (np.full(observation.shape, end, np.float32) for end in observation.range)
        return low, high
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    out = _FAR_OUT * np.where(spread > 0, spread, 1)
    low, high = (mean - out).astype(np.float32), (mean + out).astype(np.float32)
    return np.where(likelihood.supports(low), low, np.float32(0)), np.where(
        likelihood.supports(high), high, np.float32(1)
    )


def _extremes(x: Floats, low: Floats, high: Floats) -> Floats:
    """Observations all at the low end and all at the high end, in turn."""
    return np.stack([low, high])[np.arange(len(x)) % 2]


def _patterns(x: Floats, low: Floats, high: Floats) -> Floats:
    """Half as many as given: seeded noise of both ends, of all densities, and, in turn, some of x inverted."""
    x = x[: max(1, len(x) // 2)]
    rows = len(x)
    uniforms = noise.uniform(golden.SEED, noise.PIXELS, np.arange(rows), low.size).reshape(x.shape)
    density = ((np.arange(rows, dtype=np.float32) + 0.5) / rows).reshape(-1, *[1] * low.ndim)
    patterns = np.where(uniforms < density, high, low)
    patterns[::2] = low + high - x[::2]
    return patterns


def _far(shape: Shape) -> Floats:
    """Latents [n, *shape] far from the prior's mean: along each axis, and half as far the other way along the next."""
    size = math.prod(shape)
    axes = np.unique(np.linspace(0, size - 1, min(size, _MOST_FAR)).round().astype(int))
    z = np.zeros((len(axes), size), np.float32)
    z[np.arange(len(axes)), axes] = _FAR
    if size > 1:
        z[np.arange(len(axes)), (axes + 1) % size] -= _FAR / 2
    return z.reshape(-1, *shape)


def _sides(precise: Precise, observation: Observation, observed: Floats) -> tuple[Side, Side, Side]:
    """The encoder, the decoder, whose outputs are weighed by what was observed, and the ELBO."""
    vae = precise.vae
    likelihood = contract.likelihood(vae, observation)

    def kl_at_mu(mu: Tensor, logsigma: Tensor) -> Tensor:
        of_each = vae.prior.kl(mu, logsigma)
        return -vae.prior.log_ratio(mu, logsigma, mu) if of_each is None else of_each.sum()

    def kl(values: Values, row: int) -> float:
        mu, logsigma = (torch.from_numpy(values[name])[None] for name in ("mu", "logsigma"))
        return float(precise.evaluate(kl_at_mu, mu, logsigma))

    def log_prob(values: Values, row: int) -> float:
        return float(likelihood.log_prob(observed[row % len(observed)], values[likelihood.output]))

    def elbo_of(x: Tensor, out: Pass) -> Tensor:
        return vae.terms_of(x, out).elbo

    def elbo(x: Tensor, eps: Tensor, seed: int | None = None) -> list[Tensor]:
        out = precise.evaluate(vae, x, eps[None], seed=seed)
        return [precise.evaluate(elbo_of, x, out, seed=seed if seed is None else seed + 1, in_pairs=True)]

    return (
        Side(("mu", "logsigma"), partial(precise.evaluate, vae.encoder), vae.encoder, RuntimeVAE.encode, kl),
        Side(
            (likelihood.output,),
            lambda z, seed=None: [precise.evaluate(vae.decoder, z, seed=seed)],
            lambda z: [vae.decoder(z)],
            lambda runtime, z: [runtime.parameters(z)],
            log_prob,
        ),
        Side(
            ("ELBO",),
            elbo,
            lambda x, eps: [vae.elbo(x, eps)],
            lambda runtime, x: [runtime.elbo(x, seed=golden.SEED)],
            lambda values, row: float(values["ELBO"]),
        ),
    )


def _prior_cases(precise: Precise, noises: Mapping[str, Floats], latents: Mapping[str, Floats]) -> list[Case]:
    """Both directions of a learned prior, by noise and by z of several kinds, and there and back again."""
    prior = precise.vae.prior

    def to_noise(z: Tensor) -> list[Tensor]:
        return [prior.to_noise(z)[0], prior.log_prob(z)]

    def there_and_back(noise: Tensor) -> Tensor:
        return prior.to_noise(prior.from_noise(noise))[0]

    def log_prob_of(values: Values, row: int) -> float:
        return float(precise.evaluate(prior.log_prob, torch.from_numpy(values["z_of_noise"])[None]))

    def log_normal(noise: Doubles) -> float:
        return -0.5 * float(np.square(noise).sum())

    forth = Side(
        ("z_of_noise",),
        lambda noise, seed=None: [precise.evaluate(prior.from_noise, noise, seed=seed)],
        lambda noise: [prior.from_noise(noise)],
        lambda runtime, noise: [runtime.prior.from_noise(noise)],
        log_prob_of,
    )
    back = Side(
        ("noise_of_z", "log_prob"),
        partial(precise.evaluate, to_noise),
        to_noise,
        lambda runtime, z: [runtime.prior.to_noise(z), runtime.prior.log_prob(z)],
        lambda values, row: float(values["log_prob"]) + log_normal(values["noise_of_z"]),
    )
    both = Side(
        (ROUND_TRIP,),
        lambda noise, seed=None: [precise.evaluate(there_and_back, noise, seed=seed)],
        lambda noise: [there_and_back(noise)],
        lambda runtime, noise: [runtime.prior.to_noise(runtime.prior.from_noise(noise))],
        lambda values, row: log_normal(values[ROUND_TRIP]),
    )
    tripped = [_case(both, kind, {"noise": noise}) for kind, noise in noises.items()]
    return [
        *(_case(forth, kind, {"noise": noise}) for kind, noise in noises.items()),
        *(_case(back, kind, {"z": z}) for kind, z in latents.items()),
        # whatever the network makes of it, it should be what it was
        *(replace(case, expected={ROUND_TRIP: case.inputs["noise"].astype(np.float64)}) for case in tripped),
    ]


def _case(side: Side, kind: str, inputs: dict[str, Floats]) -> Case:
    """What a side gives for inputs of one kind."""
    tensors = [torch.from_numpy(values) for values in inputs.values()]
    exact = dict(zip(side.tensors, side.exact(*tensors), strict=True))
    single = dict(zip(side.tensors, side.single(*tensors), strict=True))
    rows = len(tensors[0])
    errors = largest_errors(lambda at, seed: side.exact(*(values[at] for values in tensors), seed=seed), exact, single)
    return Case(
        side,
        kind,
        sorted({min(batch, rows) for batch in BATCHES}) if kind not in _AT_ONE_BATCH else [rows],
        inputs,
        {name: values.numpy() for name, values in exact.items()},
        errors,
        {name: float((single[name] - values).abs().max()) for name, values in exact.items()},
    )


def largest_errors(
    draw: Callable[[Tensor, int], Sequence[Tensor]], exact: Mapping[str, Tensor], single: Mapping[str, Tensor]
) -> dict[str, float]:
    """The largest standard error of a number, by tensor, from draws of their errors.

    draw(at, seed): what float32 may give for the inputs in the rows `at`. exact, single: what float64 and a float32
    give for all, [rows, ...].

    Of each input errors are drawn once. Where one is further off than the others, as a row far out is, all rests on its
    own draw, which may happen to be near 0. So those furthest off, in the draw and in `single`, are drawn _DRAWS times.
    """

    def squares(at: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
        return [
            (got - wanted[at]).square().reshape(len(at), -1) for got, wanted in zip(values, exact.values(), strict=True)
        ]

    rows = torch.arange(len(next(iter(exact.values()))))
    once = squares(rows, draw(rows, _SEED))
    seen = [*once, *squares(rows, [single[name] for name in exact])]
    furthest = torch.cat([each.mean(dim=1).topk(min(_FURTHEST, len(rows))).indices for each in seen]).unique()
    at = furthest.repeat(_DRAWS)
    again = [each.unflatten(0, (_DRAWS, -1)).mean(dim=0) for each in squares(at, draw(at, _SEED + 2))]
    return {name: float(np.max([*map(_largest, both)])) for name, *both in zip(exact, once, again, strict=True)}


def _largest(squares: Tensor) -> float:
    """The largest standard error of a number, from the squares of few draws of each number's error [rows, numbers].

    They say little of one number. So each is taken to have its row's mean square times its column's, over that of all.
    """
    rows, columns, mean = squares.mean(dim=1).max(), squares.mean(dim=0).max(), squares.mean()
    return math.sqrt(rows * columns / mean) if mean > 0 else float(mean)  # NaN stays NaN


def allowed(error: float, factor: float, expected: NDArray[Any]) -> float:
    """How far numbers with this largest standard error may be off: at least one rounding of the largest to float32.

    What no operation computes, such as a constant, has no error but that.
    """
    largest = float(np.abs(expected).max())
    return max(factor * error, 2.0**-24 * largest if math.isfinite(largest) else 0.0)  # NaN stays NaN


def _compare(case: Case, batch: int, runtime: RuntimeVAE, factor: float) -> Iterator[Comparison]:
    """The rows of one call of the runtime: one for each tensor."""
    inputs = {name: values[:batch] for name, values in case.inputs.items()}
    problem, results = "", list[NDArray[Any] | None]([None] * len(case.expected))
    try:
        results = list(case.side.run(runtime, next(iter(inputs.values()))))
    except VaeError as error:
        problem = f"{error.what}: {error.which}"
    for (name, values), got in zip(case.expected.items(), results, strict=True):
        tolerance, expected = allowed(case.errors[name], factor, values), values[:batch]
        row = Comparison(name, case.kind, batch, tolerance, case.pytorch[name], problem=problem)
        evidence: dict[str, NDArray[Any]] = {**inputs, "expected": expected}
        if got is not None:
            row, evidence = _measure(row, case, np.asarray(got, np.float64)), {**evidence, "got": got}
        yield row if row.passed else replace(row, evidence=evidence)


def _measure(row: Comparison, case: Case, got: Doubles) -> Comparison:
    """The row with the figures of its worst input."""
    expected = case.expected[row.tensor][: row.batch]
    if got.shape != expected.shape:
        return replace(row, problem=f"shape {list(got.shape)}, expected {list(expected.shape)}")
    off = np.abs(got - expected).reshape(row.batch, -1).max(axis=1)
    worst = int(off.argmax())  # NaN is more than any number
    here = slice(worst, worst + 1)
    wanted = {name: values[worst] for name, values in case.expected.items()}
    with np.errstate(all="ignore"):
        nats = case.side.term({**wanted, row.tensor: got[worst]}, worst) - case.side.term(wanted, worst)
        steps = ulps(got[here], expected[here])
    return replace(row, worst=worst, max_abs=float(off[worst]), ulps=steps, nats=abs(nats))
