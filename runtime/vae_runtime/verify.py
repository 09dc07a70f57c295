"""Check a bundle on this device: run its golden vectors and say, row by row, how far the numbers are off."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import noise
from vae_runtime.bundle import Bundle
from vae_runtime.draws import Floats
from vae_runtime.errors import BundleError
from vae_runtime.prior import kl_of_draw, standard_normal
from vae_runtime.vae import VAE


@dataclass(frozen=True)
class Golden:
    """One golden array: how far the device is off, at most, in its own unit (nats for the ELBO) and in `ulps`.

    tolerance: of the largest difference, from the manifest, which has it from the numeric gate.
    """

    name: str
    ulps: float
    max_abs: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.max_abs <= self.tolerance


@np.errstate(all="ignore")  # what overflows is off by more than any tolerance
def verify(bundle: Bundle) -> list[Golden]:
    """Compute every golden array of the bundle again, with this device's noise and onnxruntime.

    Raises BundleError where the bundle is damaged or holds no usable golden vectors.
    """
    vae, parity, golden = VAE(bundle, standardised=True), bundle.manifest.parity, bundle.golden()
    if parity is None:
        raise BundleError("no tolerance for golden vectors", f"{bundle.path} (parity)", "export it again")
    try:
        seed, rows = int(golden["seed"]), np.arange(len(golden["z"]))
        learned = bundle.manifest.contract.learned_prior
        drawn = standard_normal(vae.latent_shape, seed, rows)
        got: dict[str, NDArray[Any]] = {"noise" if learned else "z": drawn}
        if learned:
            got |= {"z": vae.prior.from_noise(drawn), "log_prob": vae.prior.log_prob(golden["z"])}
        got["eps"] = noise.normal(seed, noise.POSTERIOR, rows, vae.latent_dim).reshape(-1, *vae.latent_shape)
        got["mu"], got["logsigma"] = vae.encode(golden["x"])
        got[vae.likelihood.output] = vae.parameters(golden["z"])
        z = golden["mu"] + np.exp(golden["logsigma"]) * golden["eps"]
        log_likelihood = vae.likelihood.log_prob(golden["x"], vae.parameters(z))
        got["elbo"] = log_likelihood - kl_of_draw(vae.prior, got["mu"], got["logsigma"], golden["eps"])
        of_z = parity.golden_tolerance("z_of_noise") if learned else 0.0
        exact = {"noise": 0.0, "eps": 0.0, "z": of_z}
        tolerances = {name: exact[name] if name in exact else parity.golden_tolerance(name) for name in got}
        return [_golden(name, golden[name], np.asarray(got[name]), tolerance) for name, tolerance in tolerances.items()]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BundleError("no usable golden vectors", f"{bundle.path} ({reason})", "export it again") from None


def table(rows: list[Golden]) -> str:
    """The rows for people."""
    lines = [f"  {'golden':10}{'ulps':>8}{'max abs':>11}{'tolerance':>11}"]
    lines += [
        f"{'✓' if row.passed else '✗'} {row.name:10}{row.ulps:8.1f}{row.max_abs:11.1e}{row.tolerance:11.1e}"
        for row in rows
    ]
    return "\n".join(lines)


def ulps(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """The largest difference in float32 steps of its row's scale, the largest number that is expected there.

    Rows are those of the first axis. A number near zero is a sum of terms as large as its neighbours, and as far off:
    in steps of its own, which are tiny, that would say nothing.
    """
    rows = len(expected)
    off = np.abs(np.asarray(got, np.float64) - expected).reshape(rows, -1).max(axis=1)
    scale = np.abs(expected).reshape(rows, -1).max(axis=1).astype(np.float32)
    return float((off / np.spacing(scale)).max())


def _golden(name: str, expected: Floats, got: NDArray[np.floating], tolerance: float) -> Golden:
    got = got.astype(np.float32)
    if got.shape != expected.shape:
        raise ValueError(f"{name} has the shape {list(expected.shape)}, not {list(got.shape)}")
    off = float(np.abs(got.astype(np.float64) - expected).max())
    return Golden(name, ulps(got, expected), off, tolerance)
