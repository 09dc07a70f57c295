"""Fit a variational autoencoder in PyTorch and keep it in a run folder that explains itself.

Example:
    import vae_train

    run = vae_train.fit(x_train, x_test, preset="tutorial", epochs=5)
    images = run.vae.sample(16)  # [16, 1, 28, 28]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_train.api import Interrupted as Interrupted
    from vae_train.api import TrainingNote as TrainingNote
    from vae_train.api import TrainingWarning as TrainingWarning
    from vae_train.api import compare as compare
    from vae_train.api import evaluate as evaluate
    from vae_train.api import fit as fit
    from vae_train.api import load_run as load_run
    from vae_train.api import presets as presets
    from vae_train.api import resume as resume
    from vae_train.config import Config as Config
    from vae_train.config import DataConfig as DataConfig
    from vae_train.config import NetworkConfig as NetworkConfig
    from vae_train.config import ObjectiveConfig as ObjectiveConfig
    from vae_train.config import OptimiserConfig as OptimiserConfig
    from vae_train.listener import Listener as Listener
    from vae_train.mlflow import MLflow as MLflow
    from vae_train.recorders import Recorder as Recorder
    from vae_train.results import Comparison as Comparison
    from vae_train.results import Evaluation as Evaluation
    from vae_train.results import Figure as Figure
    from vae_train.run import Run as Run
    from vae_train.tensorboard import TensorBoard as TensorBoard
    from vae_train.vae import VAE as VAE
    from vae_train.wandb import WandB as WandB

_API = {  # name: its module
    **dict.fromkeys(["fit", "resume", "load_run", "evaluate", "compare", "presets"], "api"),
    "Run": "run",
    "VAE": "vae",
    **dict.fromkeys(["Comparison", "Evaluation", "Figure"], "results"),
    **dict.fromkeys(["Config", "DataConfig", "NetworkConfig", "ObjectiveConfig", "OptimiserConfig"], "config"),
    "Recorder": "recorders",
    "TensorBoard": "tensorboard",
    "WandB": "wandb",
    "MLflow": "mlflow",
    "Listener": "listener",
    **dict.fromkeys(["Interrupted", "TrainingNote", "TrainingWarning"], "api"),
}
__all__ = [*_API]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `vae-train --help` does not wait for PyTorch.

    Raises EnvironmentUnfit where what training needs is missing.
    """
    if name in _API:
        from vae_runtime import extras

        return extras.imported(f"vae_train.{_API[name]}", name, "train", "training")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
