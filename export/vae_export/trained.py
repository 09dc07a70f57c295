"""Whether a network is the one that was trained: by the outputs that its run has kept from the end of the training."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_export import gate
from vae_export.rounding import Precise
from vae_runtime.errors import BundleError
from vae_train import fingerprint, networks
from vae_train.config import Config
from vae_train.fingerprint import Fingerprint
from vae_train.vae import VAE, Pass

MARGIN = 10  # times the gate's tolerance: another processor, release of PyTorch and code path computed what was kept


@dataclass(frozen=True)
class Difference:
    """How far a tensor that was kept is off from the network's now: of the observation in row `row`, the furthest.

    off, allowed: in the tensor's own unit, nats for the ELBO.
    """

    tensor: str
    row: int
    off: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is what rounding explains; False for NaN."""
        return self.off <= self.allowed


class OtherNetwork(BundleError):
    """The network is not the one that was trained."""

    def __init__(self, which: str, todo: str) -> None:
        super().__init__("not the network that was trained", which, todo)


@contextmanager
def named(config: Config) -> Iterator[None]:
    """Let an OtherNetwork from inside say who makes the networks of a run, and what to do."""
    try:
        yield
    except OtherNetwork as error:
        raise OtherNetwork(f"{config.made_by} ({error.which})", networks.to_restore(config)) from None


def check(vae: VAE, observations: NDArray[Any], kept: Fingerprint, noun: str) -> None:
    """Raise OtherNetwork where the VAE gives other numbers than it did when its training ended.

    kept: what it gave then for the first of the observations. noun: what one of them is called.
    """
    wrong = [difference for difference in compare(vae, observations, kept) if not difference.passed]
    if wrong:
        most = max(wrong, key=lambda one: one.off / one.allowed if one.allowed else math.inf)
        others = f", {len(wrong)} of 3 tensors differ" if len(wrong) > 1 else ""
        off = f"{most.tensor} of kept {noun} {most.row} is {most.off:.2g} off, {most.allowed:.1g} is allowed{others}"
        raise OtherNetwork(off, "export the network that the fingerprint is of")


@torch.no_grad()
def compare(vae: VAE, observations: NDArray[Any], kept: Fingerprint) -> list[Difference]:
    """mu, logsigma and ELBO that were kept, float32, against the VAE in float64.

    Allowed is MARGIN times what the numeric gate would, by the same model of rounding.
    """
    precise = Precise(vae.cpu().eval())
    rows = min(len(observations), len(kept.elbo))
    x, eps = fingerprint.inputs(vae, observations[:rows])
    expected = _outputs(precise, x, eps)
    then = {name: torch.from_numpy(getattr(kept, name.lower())[:rows]) for name in expected}

    def draw(at: Tensor, seed: int) -> list[Tensor]:
        return list(_outputs(precise, x[at], eps[at], seed).values())

    errors = gate.largest_errors(draw, expected, then)
    factor = MARGIN * gate.standard_errors(sum(values.numel() for values in expected.values()))
    found = []
    for name, values in expected.items():
        off = (then[name] - values).abs().reshape(len(x), -1).amax(dim=1)
        most = gate.allowed(errors[name], factor, values.numpy())
        found.append(Difference(name, int(off.argmax()), float(off.max()), most))
    return found


def _outputs(precise: Precise, x: Tensor, eps: Tensor, seed: int | None = None) -> dict[str, Tensor]:
    """In float64, or with a seed one draw of what float32 may give: by name, of each observation."""
    vae = precise.vae

    def elbo(x: Tensor, out: Pass) -> Tensor:
        return vae.terms_of(x, out).elbo

    out = precise.evaluate(vae, x, eps[None], seed=seed)
    return {
        "mu": out.mu,
        "logsigma": out.logsigma,
        "ELBO": precise.evaluate(elbo, x, out, seed=seed if seed is None else seed + 1),
    }
