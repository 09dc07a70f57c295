"""The numeric gate: PyTorch against the shipped runtime, tensor by tensor and in nats."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.errors import VaeError
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train.vae import VAE

BATCHES = (1, 2, 7, 64)
RELATIVE = 1e-5  # of the largest value of an image's tensor; docs/numeric-gate.md justifies all three
ABSOLUTE, NATS = 1e-5, 1e-3  # besides: for tensors, and for the ELBO
SEED = 0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One comparison. `nats` is set for ELBO rows only; `problem` says why there are no numbers, if so."""

    tensor: str
    inputs: str
    batch: int
    max_abs: float
    max_rel: float
    nats: float | None
    passed: bool
    problem: str = ""

    @property
    def name(self) -> str:
        """For people: which tensor, on what, at which batch size."""
        return f"{self.tensor} on {self.inputs} at batch {self.batch}"


@torch.no_grad()
def compare(vae: VAE, runtime: RuntimeVAE, probe: NDArray[np.uint8]) -> list[Row]:
    """Compare encoder, decoder and ELBO over BATCHES, on real images, extremes, and z from prior and posterior.

    probe: 64 real images, uint8 [64, C, H, W].
    """
    vae = vae.cpu().eval()
    real = (probe / np.float32(255)).astype(np.float32)
    extremes = np.stack([np.zeros_like(real[0]), np.ones_like(real[0])])[np.arange(len(real)) % 2]
    rows = np.arange(len(real))
    prior = noise.normal(SEED, noise.PRIOR, rows, vae.latent_dim)
    eps = noise.normal(SEED, noise.POSTERIOR, rows, vae.latent_dim)
    mu, logsigma = _torch(vae.encoder, real)
    posterior = (mu + np.exp(logsigma) * eps).astype(np.float32)
    observed = runtime.observe(real, SEED)

    def torch_elbo(x: Floats) -> list[Floats]:
        return [vae.elbo(torch.from_numpy(x), torch.from_numpy(eps[: len(x)])).numpy()]

    comparisons: list[tuple[list[str], dict[str, Floats], Callable[..., Any], Callable[..., Any]]] = [
        (
            ["mu", "logsigma"],
            {"real images": real, "extremes": extremes},
            lambda x: _torch(vae.encoder, x),
            runtime.encode,
        ),
        (
            [vae.likelihood.output],
            {"prior z": prior, "posterior z": posterior},
            lambda z: _torch(vae.decoder, z),
            lambda z: [runtime.parameters(z)],
        ),
        (
            ["ELBO"],
            {"real images": observed, "extremes": extremes},
            torch_elbo,
            lambda x: [runtime.elbo(x, seed=SEED)],
        ),
    ]
    return [
        row
        for tensors, inputs, reference, candidate in comparisons
        for kind, x in inputs.items()
        for batch in BATCHES
        for row in _compare(tensors, kind, x[:batch], reference, candidate)
    ]


def table(rows: list[Row]) -> str:
    """The rows for people: a tick or a cross, the largest absolute and relative difference, and nats."""
    lines = [f"  {'tensor':11}{'inputs':13}{'batch':>5}{'max abs':>11}{'max rel':>11}{'nats':>11}"]
    for row in rows:
        nats = "" if row.nats is None else f"{row.nats:11.1e}"
        figures = row.problem or f"{row.max_abs:11.1e}{row.max_rel:11.1e}{nats}"
        lines.append(f"{'✓' if row.passed else '✗'} {row.tensor:11}{row.inputs:13}{row.batch:5d}{figures}")
    return "\n".join(lines)


def report(rows: list[Row]) -> dict[str, Any]:
    """The tolerances and every row, for the manifest."""
    kept = [{name: value for name, value in asdict(row).items() if name != "problem"} for row in rows]
    return {"tolerance": {"relative": RELATIVE, "absolute": ABSOLUTE, "nats": NATS}, "rows": kept}


def _compare(
    tensors: list[str], kind: str, x: Floats, reference: Callable[..., Any], candidate: Callable[..., Any]
) -> Iterator[Row]:
    expected = reference(x)
    try:
        got = candidate(x)
    except VaeError as error:
        for tensor in tensors:
            yield Row(tensor, kind, len(x), np.nan, np.nan, None, False, f"  {error.what}")
        return
    for tensor, a, b in zip(tensors, expected, got, strict=True):
        yield _row(tensor, kind, np.asarray(a, np.float64), np.asarray(b, np.float64))


def _row(tensor: str, kind: str, expected: NDArray[np.float64], got: NDArray[np.float64]) -> Row:
    if expected.shape != got.shape:
        problem = f"  shape {list(got.shape)}, expected {list(expected.shape)}"
        return Row(tensor, kind, len(expected), np.nan, np.nan, None, False, problem)
    difference = np.abs(got - expected)
    # each row against its own scale: an entry near zero is a sum of terms as large as its neighbours
    scale = np.abs(expected).reshape(len(expected), -1).max(axis=1).reshape(-1, *[1] * (expected.ndim - 1))
    largest, relative = float(difference.max()), float((difference / np.maximum(scale, 1e-30)).max())
    if tensor == "ELBO":
        passed = bool((difference <= NATS + RELATIVE * scale).all())  # False for NaN
        return Row(tensor, kind, len(expected), largest, relative, largest, passed)
    passed = bool((difference <= ABSOLUTE + RELATIVE * scale).all())
    return Row(tensor, kind, len(expected), largest, relative, None, passed)


def _torch(module: torch.nn.Module, x: Floats) -> list[Floats]:
    """A module's outputs as a list of arrays."""
    outputs = module(torch.from_numpy(x))
    return [tensor.numpy() for tensor in ((outputs,) if isinstance(outputs, torch.Tensor) else outputs)]
