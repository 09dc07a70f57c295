"""What a smaller precision costs and brings: nats of the ELBO, bytes, and seconds, against fp32 in the same process."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from operator import methodcaller
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_export.candidate import Candidate
from vae_export.quantise import fp16, int8
from vae_runtime.errors import BundleError, VaeError
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import bounds, data, pixels
from vae_train.run import Run
from vae_train.vae import VAE

MOST = 1000  # observations to weigh on
BATCHES = (1, 64)
SLOWER = 1.05  # times fp32: what lies below may be noise
_ROUNDS = 15
_SLICE = 0.004  # seconds of one side before the other's turn

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Tradeoff:
    """One precision against fp32.

    nats: what the ELBO loses, mean over so many test observations, with its standard error, None of one; `most_nats` of
    one of them.
    size: bytes of both graphs. seconds: the median of `encode` and of `decode` at each batch size, one thread. Of the
    two numbers the first is this precision's, the second fp32's. float32_layers: of int8, those that would cost too
    much. noun: what an observation is called.
    """

    precision: str
    observations: int
    nats: float
    standard_error: float | None
    most_nats: float
    size: tuple[int, int]
    seconds: dict[str, tuple[float, float]]
    float32_layers: list[str] = field(default_factory=list)
    noun: str = "image"

    @property
    def smaller(self) -> float:
        """Its size as a fraction of fp32's."""
        return self.size[0] / self.size[1]

    @property
    def time(self) -> float:
        """Its time as a fraction of fp32's, the geometric mean over `seconds`."""
        return math.exp(statistics.fmean(math.log(ours / theirs) for ours, theirs in self.seconds.values()))

    @property
    def worth(self) -> float:
        """Size times time as a fraction of fp32's: below 1 it pays."""
        return self.smaller * self.time

    def refusal(self, max_nats: float) -> str | None:
        """Why it should not be published, or None."""
        if not self.nats <= max_nats:
            return f"it costs {self.nats:.3f} nats per {self.noun}, more than {max_nats:g}"
        if self.time > SLOWER and self.smaller >= 1:
            return f"it is {self.time:.2f} times as slow and not smaller"
        return None

    def report(self) -> dict[str, Any]:
        """All figures, for the manifest."""
        return {name: value for name, value in asdict(self).items() if name != "noun"}

    def table(self) -> str:
        """All figures, for people."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        lines = [
            f"{self.precision} against fp32",
            f"  ELBO       {-self.nats:+.4f}{error} nats per {self.noun}, mean of "
            f"{self.observations:,} test {self.noun}s; {-self.most_nats:+.2f} at worst",
            f"  graphs     {self.size[0] / 1e6:.2f} MB for {self.size[1] / 1e6:.2f} MB",
        ]
        for what, (ours, theirs) in self.seconds.items():
            speed = f"{theirs / ours:.2f} times as fast" if ours <= theirs else f"{ours / theirs:.2f} times as long"
            lines.append(f"  {what:10} {1e3 * ours:.3f} ms for {1e3 * theirs:.3f} ms, {speed}")
        if self.float32_layers:
            lines.append(f"  in float32 {', '.join(self.float32_layers)}")
        return "\n".join(lines)


class Samples(NamedTuple):
    """Observations float32 [n, *shape] as the likelihood takes them: to make a precision with, and to weigh it on.

    overlap: of those to weigh it on, as `bounds.figure` takes it.
    """

    train: Floats
    test: Floats
    overlap: float = 1.0


@dataclass(frozen=True)
class Tried:
    """A smaller precision that was weighed: what it costs, if it could be made, and why it is refused, if it is."""

    precision: str
    cost: Tradeoff | None
    refusal: str = ""

    def table(self) -> str:
        """All that is known of it, for people."""
        return "\n".join(filter(None, (self.cost.table() if self.cost else "", self.refusal)))


def pick(
    precision: str, plain: Candidate, samples: Samples, max_nats: float
) -> tuple[Candidate | None, Tradeoff | None, list[Tried]]:
    """The graphs of the precision asked for, what they cost, and what was tried; for "auto", of the one that pays most.

    That is the one with the smallest product of size and time among those that lose at most `max_nats`, or None where
    that is float32. Raises BundleError where the precision asked for costs more, cannot be had, or is slower and not
    smaller.
    """
    make = {"fp16": lambda: fp16(plain), "int8": lambda: int8(plain, samples.train, max_nats)}
    made: list[tuple[Candidate, Tradeoff]] = []
    tried: list[Tried] = []
    for name in make if precision == "auto" else [precision]:
        cost = None
        try:
            candidate = _made(name, make[name])
            cost = weigh(candidate, plain, samples.test, samples.overlap)
            if refusal := cost.refusal(max_nats):
                raise BundleError(f"{name} refused", refusal, "choose another --precision, or another --max-nats")
        except BundleError as error:
            if precision != "auto":
                raise
            tried.append(Tried(name, cost, f"{error.what}: {error.which}"))
        else:
            made.append((candidate, cost))
            tried.append(Tried(name, cost))
    chosen = best([cost for _, cost in made]) if precision == "auto" else made[0][1]
    return next((candidate for candidate, cost in made if cost is chosen), None), chosen, tried


def choice(chosen: str, tried: list[Tried]) -> str:
    """Which one "auto" takes, and why, for people."""
    products = "".join(f", {one.cost.worth:.2f} for {one.precision}" for one in tried if one.cost and not one.refusal)
    return f"auto takes {chosen}: size times time is 1 for fp32{products}"


def _made(name: str, make: Callable[[], Candidate]) -> Candidate:
    """The candidate. Raises BundleError where ONNX's tools, which do not know every network, raise whatever they do."""
    try:
        return make()
    except (VaeError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        which = f"ONNX's tools cannot make it ({type(error).__name__}: {reason})"
        raise BundleError(f"{name} refused", which, "choose another --precision") from None


def best(weighed: list[Tradeoff]) -> Tradeoff | None:
    """The one whose size times time is least, if that is less than fp32's."""
    return min((one for one in weighed if one.worth < 1), key=lambda one: one.worth, default=None)


def weigh(candidate: Candidate, plain: Candidate, x: Floats, overlap: float = 1.0) -> Tradeoff:
    """Compare a candidate with fp32, `plain`, on observations x [n, *shape] as the likelihood takes them.

    overlap: of these, as `bounds.figure` takes it.
    """
    ours, theirs = candidate.runtime(), plain.runtime()
    lost = theirs.elbo(x) - ours.elbo(x)
    error = bounds.figure(torch.from_numpy(lost), overlap)["standard_error"]
    x = np.resize(x, (max(BATCHES), *x.shape[1:]))  # where there are fewer, each several times
    z = theirs.encode(x)[0]
    seconds = {}
    for batch in BATCHES:
        seconds[f"encode {batch}"] = _side_by_side(methodcaller("encode", x[:batch]), ours, theirs)
        seconds[f"decode {batch}"] = _side_by_side(methodcaller("decode", z[:batch]), ours, theirs)
    return Tradeoff(
        precision=candidate.precision,
        observations=len(lost),
        nats=float(lost.mean()),
        standard_error=error,
        most_nats=float(lost.max()),
        size=(candidate.size, plain.size),
        seconds=seconds,
        float32_layers=candidate.float32_layers,
        noun=plain.contract.observation.noun,
    )


def samples_of(vae: VAE, observations: NDArray[Any]) -> Samples:
    """All observations, uint8 levels or floats [n, *shape], to make a precision with and to weigh it on."""
    levels = torch.from_numpy(observations)
    x = _floats(pixels.fixed_draw(levels) if vae.likelihood.binary else levels)
    return Samples(x, x)


def samples_of_run(run: Run, images: data.Data) -> Samples:
    """Training and test images of a run, by which its figures were measured."""
    train, test = (part(run.vae.likelihood.binary) for part in (images.observed_train, images.observed_test))
    return Samples(_floats(train), _floats(test), max(1.0, images.overlap / _step(test)))


def _floats(levels: Tensor) -> Floats:
    """Up to 1,000 observations of a set, from all over it, as the runtime takes them."""
    return pixels.unit(levels[:: _step(levels)]).numpy()


def _step(levels: Tensor) -> int:
    """Of how many observations one is taken."""
    return math.ceil(len(levels) / MOST)


def _side_by_side(work: Callable[[RuntimeVAE], object], *vaes: RuntimeVAE) -> tuple[float, float]:
    """Seconds of the work with each VAE, the median of rounds in which each has its turn.

    They are of this thread, in which all work is done, so that other programs on a busy machine do not count.
    """
    times: list[list[float]] = [[] for _ in vaes]
    for _ in range(_ROUNDS):
        for vae, spent in zip(vaes, times, strict=True):
            done, start = 0, time.thread_time()
            while (elapsed := time.thread_time() - start) < _SLICE:
                work(vae)
                done += 1
            spent.append(elapsed / done)
    ours, theirs = (statistics.median(spent) for spent in times)
    return ours, theirs
