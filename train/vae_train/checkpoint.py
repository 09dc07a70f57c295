"""The run folder: settings, weights, metrics and test figures of one training run."""

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from vae_runtime.errors import ArgumentError, BundleError
from vae_runtime.files import replacing, write_error
from vae_train import networks
from vae_train.config import Config
from vae_train.vae import VAE

CONFIG, WEIGHTS, METRICS, EVALUATION, PROBE = (
    "config.json",
    "model.safetensors",
    "metrics.jsonl",
    "evaluation.json",
    "probe.npy",
)


@dataclass(frozen=True)
class Run:
    """A finished run: the VAE, its settings, how it was made, its test figures, and 64 test images (uint8)."""

    vae: VAE
    config: Config
    image_shape: networks.Shape
    provenance: dict[str, Any]
    evaluation: dict[str, Any]
    probe: np.ndarray[Any, np.dtype[np.uint8]]


def check_new(folder: Path) -> None:
    """Raise ArgumentError where the run folder holds files already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError("run folder exists", folder, "choose another with --out, or remove it")


@contextmanager
def start(folder: Path, config: Config, image_shape: networks.Shape, provenance: dict[str, Any]) -> Iterator[None]:
    """Make the run folder and write its settings; remove it again where the training inside does not end well.

    Raises ArgumentError where the folder cannot be made or holds files.
    """
    check_new(folder)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    settings = {"config": asdict(config), "image_shape": list(image_shape), "provenance": {**provenance, **versions}}
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, folder) from None
        write_json(folder / CONFIG, settings)
        yield
    except BaseException:
        for name in (CONFIG, METRICS, WEIGHTS, PROBE, EVALUATION):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # it was never made, or holds what this run did not write
            folder.rmdir()
        raise


def append_metrics(folder: Path, epoch: Any) -> None:
    """Add one line to the metrics (a dataclass of numbers)."""
    with (folder / METRICS).open("a") as file:
        file.write(json.dumps(asdict(epoch)) + "\n")


def save_weights(folder: Path, vae: VAE) -> None:
    """Write the weights in one step."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    with replacing(folder / WEIGHTS) as file:
        file.write(safetensors.torch.save(state))


def save_evaluation(folder: Path, evaluation: dict[str, Any]) -> None:
    """Write the test figures, tied by hash to the weights that they were measured on."""
    write_json(folder / EVALUATION, {**evaluation, "weights_sha256": _sha256(folder / WEIGHTS)})


def save_probe(folder: Path, images: torch.Tensor) -> None:
    """Keep a few real test images (uint8), on which the exporter compares numbers."""
    with replacing(folder / PROBE) as file:
        np.save(file, images.cpu().numpy())


def load(folder: Path) -> Run:
    """Read a run. Raises BundleError where it is missing, unfinished or damaged; executes nothing that it reads."""
    try:
        settings, evaluation = _read_json(folder / CONFIG), _read_json(folder / EVALUATION)
        if evaluation["weights_sha256"] != _sha256(folder / WEIGHTS):
            raise BundleError("run damaged (the weights' sha256 differs)", folder / WEIGHTS, "train again")
        values = settings["config"]
        config = Config(**{**values, "hidden": tuple(values["hidden"])})
        channels, height, width = settings["image_shape"]
        vae = networks.build(config, (channels, height, width))
        vae.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        probe = np.load(folder / PROBE, allow_pickle=False)
        if probe.dtype != np.uint8 or probe.shape[1:] != (channels, height, width) or len(probe) == 0:
            raise ValueError(f"{PROBE} does not hold images of the model")
        seconds = sum(row["seconds"] for row in read_metrics(folder))
        provenance = {**settings["provenance"], "training_seconds": round(seconds)}
        return Run(vae, config, (channels, height, width), provenance, evaluation, probe)
    except FileNotFoundError as error:
        missing = error.filename or folder
        raise BundleError("run not found or not finished", missing, "name a folder that vae-train finished") from None
    except (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise BundleError("run cannot be read", f"{folder} ({reason})", "train again, or restore its files") from None


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics, one dict per epoch."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in {path.name}")

    value: dict[str, Any] = json.loads(path.read_bytes(), parse_constant=refuse)
    return value


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
