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
    from vae_runtime.errors import ArgumentError as ArgumentError
    from vae_runtime.errors import BundleError as BundleError
    from vae_runtime.errors import EnvironmentUnfit as EnvironmentUnfit
    from vae_runtime.errors import InputError as InputError
    from vae_runtime.errors import ResourceError as ResourceError
    from vae_runtime.errors import VaeError as VaeError
    from vae_runtime.scores import Scores as Scores
    from vae_runtime.scores import score as score
    from vae_runtime.vae import VAE as VAE

_ERRORS = ("ArgumentError", "BundleError", "EnvironmentUnfit", "InputError", "ResourceError", "VaeError")
_API = {
    "VAE": "vae",
    "Detector": "detector",
    "Verdict": "detector",
    "Scores": "scores",
    "Terms": "draws",
    "score": "scores",
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
