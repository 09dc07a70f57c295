"""Run an exported VAE on any CPU with NumPy and onnxruntime alone.

Example:
    from vae_runtime import VAE

    vae = VAE.load()  # the model that ships with the package
    images = vae.sample(16, seed=0)  # float32 [16, 1, 28, 28]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_runtime.detector import Detector as Detector
    from vae_runtime.detector import Verdict as Verdict
    from vae_runtime.draws import Terms as Terms
    from vae_runtime.drift import Drift as Drift
    from vae_runtime.errors import ArgumentError as ArgumentError
    from vae_runtime.errors import BundleError as BundleError
    from vae_runtime.errors import EnvironmentUnfit as EnvironmentUnfit
    from vae_runtime.errors import InputError as InputError
    from vae_runtime.errors import ResourceError as ResourceError
    from vae_runtime.errors import VaeError as VaeError
    from vae_runtime.follow import Frames as Frames
    from vae_runtime.given import FittedWarning as FittedWarning
    from vae_runtime.scores import Scores as Scores
    from vae_runtime.scores import score as score
    from vae_runtime.vae import VAE as VAE
    from vae_runtime.watch_clock import Clock as Clock
    from vae_runtime.watch_events import Changed as Changed
    from vae_runtime.watch_events import Heartbeat as Heartbeat
    from vae_runtime.watch_events import Observed as Observed
    from vae_runtime.watching import watch as watch

_ERRORS = ("ArgumentError", "BundleError", "EnvironmentUnfit", "InputError", "ResourceError", "VaeError")
_API = {
    "VAE": "vae",
    "Detector": "detector",
    "Verdict": "detector",
    "Drift": "drift",
    "Scores": "scores",
    "Terms": "draws",
    "FittedWarning": "given",
    "score": "scores",
    "watch": "watching",
    "Observed": "watch_events",
    "Changed": "watch_events",
    "Heartbeat": "watch_events",
    "Clock": "watch_clock",
    "Frames": "follow",
}  # name: its module
__all__ = [*_API, *_ERRORS]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `vae-infer --help` does not wait for NumPy and onnxruntime."""
    if name in _API:
        from importlib import import_module

        return getattr(import_module(f"vae_runtime.{_API[name]}"), name)
    if name in _ERRORS:
        from vae_runtime import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
