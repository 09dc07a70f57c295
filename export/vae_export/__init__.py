"""Turn a VAE into a bundle of ONNX graphs, and publish it only if its numbers match PyTorch's.

Example:
    import vae_export
    from vae_runtime.observation import Observation

    exported = vae_export.export_vae(vae, Observation.image((1, 28, 28)), x_test, "bundles/mine")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_export.columns import Columns as Columns
    from vae_export.elsewhere import DescriptionWarning as DescriptionWarning
    from vae_export.elsewhere import export as export
    from vae_export.exporter import Exported as Exported
    from vae_export.exporter import export_run as export_run
    from vae_export.exporter import export_vae as export_vae
    from vae_export.gate import GateFailed as GateFailed
    from vae_export.preprocessing import Images as Images

_API = {  # its module
    "export": "elsewhere",
    "export_run": "exporter",
    "export_vae": "exporter",
    "Exported": "exporter",
    "GateFailed": "gate",
    "Images": "preprocessing",
    "Columns": "columns",
    "DescriptionWarning": "elsewhere",
}
__all__ = [*_API]


def __getattr__(name: str) -> Any:
    """Import on first use, so that a model card needs no PyTorch."""
    if name in _API:
        from vae_runtime import extras

        return extras.imported(f"vae_export.{_API[name]}", name, "export", "export")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
