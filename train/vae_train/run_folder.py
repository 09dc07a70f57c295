"""The run folder: settings, weights, metrics, test figures and the network's fingerprint of one training run."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from vae_runtime import records
from vae_runtime.bundle import MANIFEST, RUN_CONFIG
from vae_runtime.errors import ArgumentError, BundleError
from vae_runtime.files import replacing, write_errors, write_lines
from vae_runtime.observation import IMAGE, Observation
from vae_train import checkpoints, networks, signals
from vae_train.checkpoints import unreadable
from vae_train.config import Config, upgraded
from vae_train.fingerprint import Fingerprint
from vae_train.run import PROBED, Run
from vae_train.vae import VAE

TENSORBOARD, WANDB = "tensorboard", "wandb"
CONFIG, METRICS, PROBE = RUN_CONFIG, "metrics.jsonl", "probe.npy"
_KEPT, _MOST_BYTES = 1000, 1 << 23  # of the test observations that are in the probe, at most
WEIGHTS, EVALUATION, FINGERPRINT = "model.safetensors", "evaluation.json", "fingerprint.npz"
BEST_WEIGHTS, BEST_EVALUATION, BEST_FINGERPRINT = "best.safetensors", "best.json", "best.npz"  # highest test ELBO
_WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx")  # what a person may give for a run


@dataclass(frozen=True)
class Settings:
    """What a run folder says of a training before it ends.

    dataset_path: where a person's own data was then, absolute; it is for this run alone and never published. None of
    a named set, and of a run that was made before 0.2. warnings: what was said of a person's own networks before their
    first step. given: whether the data were given in Python, and no path names them. test_path: as
    dataset_path, of what is tested on where it lies apart. tested_on: how many observations are; None of a run that was
    made before 0.2. drawn_before: as `Data` has it.
    """

    config: Config
    observation: Observation
    preprocessing: dict[str, Any]
    data_sha256: str
    provenance: dict[str, Any]
    dataset_path: str | None = None
    warnings: tuple[str, ...] = ()
    given: bool = False
    test_path: str | None = None
    tested_on: int | None = None
    drawn_before: int = 0


def check_new(folder: Path) -> None:
    """Raise ArgumentError where the run folder holds files already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        todo = (
            "go on with --resume, or choose another with --out"
            if checkpoints.found(folder)
            else "choose another with --out, or remove it"
        )
        raise ArgumentError("run folder exists", folder, todo)


@contextmanager
def start(folder: Path, settings: Settings) -> Iterator[None]:
    """Make the run folder, write its settings and keep others out; remove it where the training leaves no checkpoint.

    Raises ArgumentError where the folder cannot be made or holds files.
    """
    check_new(folder)
    stored = asdict(settings)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).touch(exist_ok=False)  # one of two trainings that begin at once
    try:
        write_json(folder / CONFIG, stored)
        with locked(folder):
            yield
    except BaseException:
        if not checkpoints.found(folder) and not (folder / EVALUATION).exists():  # a finished run has none either
            for name in (CONFIG, METRICS, WEIGHTS, PROBE, FINGERPRINT, BEST_WEIGHTS, BEST_FINGERPRINT, BEST_EVALUATION):
                with suppress(OSError):  # the folder could not be made
                    (folder / name).unlink(missing_ok=True)
            for name in (TENSORBOARD, WANDB):
                shutil.rmtree(folder / name, ignore_errors=True)
            for place in (folder / checkpoints.FOLDER, folder):
                with suppress(OSError):  # it was never made, or holds what this run did not write
                    place.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trainers out of the run folder. Raises ArgumentError where one is at work there."""
    with (folder / CONFIG).open("rb+") as file:  # for writing too: NFS gives no other file an exclusive lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArgumentError("another training is at work in the run", folder, "let it finish, or end it") from None
        yield


def read_settings(folder: Path) -> Settings:
    """What a run was asked for. Raises BundleError where it cannot be read."""
    if folder.is_file():
        what = "a graph" if folder.suffix == ".onnx" else "weights or the like"
        todo = "name the run that it is from; for a VAE that was trained elsewhere see docs/bring-your-own.md of the"
        raise BundleError(f"a file: {what}, not a training run", folder, f"{todo} project's source")
    try:
        stored = _read_json(folder / CONFIG)
        if "image_shape" in stored:  # as in release 0.1
            stored["observation"] = {"kind": IMAGE, "shape": stored["image_shape"], "range": [0, 1]}
        return records.parse(Settings, {**stored, "config": upgraded(stored["config"])})
    except FileNotFoundError:
        if (folder / MANIFEST).exists():
            raise BundleError("a bundle, not a training run", folder, "name the run that it is from") from None
        if folder.suffix in _WEIGHTS and not folder.exists():
            raise BundleError("file not found", folder, "check the path") from None
        raise BundleError("run not found", folder / CONFIG, "name a folder that vae-train wrote") from None
    except (OSError, ValueError, LookupError, TypeError, ArgumentError) as error:
        raise unreadable(folder, error) from None


def newest_run(folder: Path) -> Path:
    """The run in a folder of runs that was finished last. Raises BundleError where there is none."""
    files = (EVALUATION, WEIGHTS)
    finished = [run for run in folder.glob("*/") if all((run / name).is_file() for name in files)]
    finished = [run for run in finished if not checkpoints.found(run)]
    if not finished:
        stopped = next((run for run in sorted(folder.glob("*/")) if checkpoints.found(run)), None)
        todo = f"go on with: vae-train --resume {stopped}" if stopped else "make one with vae-train, or name its folder"
        raise BundleError("no finished run", folder, todo)
    return max(finished, key=lambda run: (run / WEIGHTS).stat().st_mtime)  # evaluate writes the figures anew


def write_metrics(folder: Path, rows: list[dict[str, float]]) -> None:
    """Write the metrics, a line per epoch, in one step."""
    write_lines(folder / METRICS, map(json.dumps, rows))


def save_weights(folder: Path, vae: VAE, best: bool = False) -> None:
    """Write the weights in one step: a finished training's, or those of its best epoch so far."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in vae.state_dict().items()}
    with replacing(folder / (BEST_WEIGHTS if best else WEIGHTS)) as file:
        file.write(safetensors.torch.save(state))


def save_evaluation(folder: Path, evaluation: dict[str, Any], best: bool = False) -> None:
    """Write the test figures, tied by hash to the weights that they were measured on."""
    weights, name = (BEST_WEIGHTS, BEST_EVALUATION) if best else (WEIGHTS, EVALUATION)
    write_json(folder / name, {**evaluation, "weights_sha256": _sha256(folder / weights)})


def save_fingerprint(folder: Path, fingerprint: Fingerprint, best: bool = False) -> None:
    """Write what the trained network gave for the probe, tied by hash to its weights."""
    weights, name = (BEST_WEIGHTS, BEST_FINGERPRINT) if best else (WEIGHTS, FINGERPRINT)
    with replacing(folder / name) as file:
        np.savez(file, weights_sha256=np.array(_sha256(folder / weights)), **asdict(fingerprint))


def _read_fingerprint(folder: Path, rows: int, best: bool) -> Fingerprint | None:
    """The network's fingerprint on the probe's rows, where the run has kept it."""
    weights, name = (BEST_WEIGHTS, BEST_FINGERPRINT) if best else (WEIGHTS, FINGERPRINT)
    if not (folder / name).exists():
        return None
    with np.load(folder / name, allow_pickle=False) as stored:
        found = Fingerprint(**{field.name: stored[field.name] for field in fields(Fingerprint)})
        if stored["weights_sha256"] != _sha256(folder / weights) or len(found.elbo) != rows:
            raise ValueError(f"{name} is of other weights")
    return found


def save_held_out(folder: Path, test: torch.Tensor) -> None:
    """Keep real test observations: the first ones, on which numbers are compared, and some from all over the others."""
    most = max(PROBED, min(_KEPT, _MOST_BYTES // max(1, test[:1].numel() * test.element_size())))
    others = test[PROBED :: max(1, -(-(len(test) - PROBED) // max(1, most - PROBED)))]
    with replacing(folder / PROBE) as file:
        np.save(file, torch.cat([test[:PROBED], others[: most - PROBED]]).cpu().numpy())


def load(folder: Path, trusted: str | None = None, best: bool = False) -> Run:
    """Read a run with its last weights, or with those of its best epoch; executes nothing that it reads.

    A person's own networks are made only by the function that `trusted` names, "package.module:function".
    Raises BundleError where the run is missing, unfinished or damaged; ArgumentError where its networks are not
    trusted.
    """
    weights, evaluation = (BEST_WEIGHTS, BEST_EVALUATION) if best else (WEIGHTS, EVALUATION)
    try:
        settings = read_settings(folder)
        figures = _read_json(folder / evaluation)
        if "images" in figures:  # as in release 0.1
            figures["observations"] = figures.pop("images")
        if figures["weights_sha256"] != _sha256(folder / weights):
            raise BundleError("run damaged (the weights' sha256 differs)", folder / weights, "train again")
        vae = load_weights(folder, settings, trusted, best)
        held_out = np.load(folder / PROBE, allow_pickle=False)
        low, high = settings.observation.range or (-np.inf, np.inf)
        within = held_out.dtype == np.float32 and ((held_out >= low) & (held_out <= high)).all()
        known = held_out.dtype == np.uint8 or within
        if not known or held_out.shape[1:] != settings.observation.shape or len(held_out) == 0:
            raise ValueError(f"{PROBE} does not hold {settings.observation.noun}s of the model")
        seconds = sum(row["seconds"] for row in read_metrics(folder))
        provenance = {**settings.provenance, "training_seconds": round(seconds)}
        found = _read_fingerprint(folder, min(PROBED, len(held_out)), best)
        return Run(folder, vae, settings, provenance, figures, held_out, found, best)
    except FileNotFoundError as error:
        if checkpoints.found(folder):
            own = ("--model", settings.config.network.model) if settings.config.network.model else ()
            raise BundleError("run not finished", folder, signals.go_on(folder, own)) from None
        missing = error.filename or folder
        raise BundleError("run not found or not finished", missing, "name a folder that vae-train finished") from None
    except ArgumentError:  # a ValueError too, but it has its own advice
        raise
    except (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise unreadable(folder, error) from None


def load_weights(folder: Path, settings: Settings, trusted: str | None, best: bool) -> VAE:
    """The VAE of a run, with its last weights or those of its best epoch so far, in evaluation mode.

    Raises BundleError where they cannot be read.
    """
    vae = networks.build(settings.config, settings.observation.shape, trusted)
    networks.in_units(vae, settings.preprocessing)
    read_weights(folder, vae, best)
    return vae.eval()


def read_weights(folder: Path, vae: VAE, best: bool) -> None:
    """Give a VAE the weights of a run, its last or those of its best epoch so far.

    Raises BundleError where they cannot be read.
    """
    path = folder / (BEST_WEIGHTS if best else WEIGHTS)
    try:
        vae.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        raise unreadable(path, error) from None


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics, one dict per epoch; what release 0.1 called images are observations."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name.replace("images_per", "observations_per"): value for name, value in row.items()} for row in rows]


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
