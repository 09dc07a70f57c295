"""Checkpoints: the state of a training, written into its run folder, found there again and restored."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from vae_runtime.errors import BundleError
from vae_runtime.files import replacing, write_errors
from vae_train.state import TrainingState

FOLDER = "checkpoints"  # in the run folder
SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch; one is written after each epoch too
_TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}")  # the names that `replacing` gives to files that it writes


def save(folder: Path, training: TrainingState) -> None:
    """Write a checkpoint in one step, and keep the one before it. Its name carries the sha256 of its bytes."""
    tensors, rest = training.state()
    data = safetensors.torch.save(tensors, metadata={"rest": rest})
    place = folder / FOLDER
    with write_errors(place):
        place.mkdir(exist_ok=True)
    progress = training.progress
    name = f"{progress.epoch:06d}-{progress.step:09d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    with replacing(place / name) as file:
        file.write(data)
    for old in (*found(folder)[2:], *place.glob(".*")):  # and what killed saves have left
        old.unlink()


def newest(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, torch.Tensor], str]:
    """A training's state in the newest checkpoint that is whole; `warn` is told about a damaged one.

    Raises BundleError where there is none. Nothing is executed, and nothing read before its hash is right.
    """
    for path in found(folder):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != path.stem.split("-")[-1]:
            warn(f"checkpoint damaged (its sha256 differs): {path}; using the one before it")
            continue
        try:
            size = int.from_bytes(data[:8], "little")
            return safetensors.torch.load(data), json.loads(data[8 : 8 + size])["__metadata__"]["rest"]
        except (ValueError, LookupError, TypeError, SafetensorError) as error:
            raise unreadable(path, error) from None
    raise BundleError("no checkpoint to resume from", folder / FOLDER, "train anew with another --out")


def restore(folder: Path, training: TrainingState, state: tuple[dict[str, torch.Tensor], str]) -> None:
    """Let a training go on from such a state. Raises BundleError where it is another network's."""
    try:
        training.restore(*state)
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        raise unreadable(folder / FOLDER, error) from None


def remove(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished, and what killed trainings have left of files half written."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    return sorted((folder / FOLDER).glob("[0-9]*.safetensors"), reverse=True)


def unreadable(path: Path, error: Exception) -> BundleError:
    """The error where what a training has written, or its folder, cannot be read."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
    return BundleError("run cannot be read", f"{path} ({reason})", "train again, or restore its files")
