"""Experiment tracking: what a recorder is given of a training, and a training's side of it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vae_train import pixels, run_folder
from vae_train.bounds import evaluating
from vae_train.config import Config
from vae_train.state import Metrics
from vae_train.vae import VAE

_IMAGES = 16  # observations in a picture of an epoch

Pictures = Mapping[str, NDArray[np.uint8]]  # by name, each [height, width, C], C is 1 or 3


class Recorder(Protocol):
    """What records a training as it goes, beside its run folder: `TensorBoard`, `WandB`, `MLflow`, or a class of yours.

    Any of these may raise what it likes: that is said once, the recorder is closed, and the training goes on.
    """

    def start(self, run: Path, settings: Mapping[str, Any], past: Sequence[Metrics]) -> None:
        """A training begins, or goes on, in the run folder `run`.

        settings: those of `vae_train.config.Config`, JSON's kinds of values in four groups. past: the metrics of the
        epochs that are done; of later ones, which a killed training may have recorded, the training repeats.
        """

    def epoch(self, metrics: Metrics, pictures: Pictures) -> None:
        """An epoch has ended: its metrics, a `vae_train.metrics.Epoch`, and of images two pictures.

        pictures: `samples` and `reconstructions`, pairs of a draw or an image and of E[x|z] beside each other.
        """

    def finish(self, figures: Mapping[str, float], pictures: Pictures) -> None:
        """The training is finished: test figures in nats, each with its `..._standard_error` unless it is of one
        observation, and the run's pictures.

        pictures: those that epochs do not have: `latents`, the map of the test means, and what the report shows.
        """

    def close(self) -> None:
        """Nothing more comes; called after `finish`, and without it where a training was stopped."""


class Recording:
    """Hands a training's news to recorders; one that fails is told of in a line to `warn`, and then left out."""

    def __init__(self, recorders: Sequence[Recorder], warn: Callable[[str], None]) -> None:
        self._live, self._warn, self._shown = list(recorders), warn, {"curves"}  # which are scalars to a recorder

    def start(self, run: Path, config: Config, past: Sequence[Metrics]) -> None:
        """As `Recorder.start`."""
        settings = json.loads(json.dumps(asdict(config)))
        self._each(lambda recorder: recorder.start(run, settings, past))

    def epoch(self, metrics: Metrics, vae: VAE, levels: Tensor) -> None:
        """As `Recorder.epoch`; levels: test observations as the likelihood sees them, [n, *shape]."""
        if not self._live:
            return
        drawn = _pictures(vae, levels) if levels.ndim == 4 else {}  # images
        self._shown |= drawn.keys()
        self._each(lambda recorder: recorder.epoch(metrics, drawn))

    def finish(self, run: Path) -> None:
        """As `Recorder.finish`, of a run folder that has its report."""
        if not self._live:
            return
        measured = json.loads((run / run_folder.EVALUATION).read_bytes())["figures"]
        figures = {name: figure["mean"] for name, figure in measured.items()}
        errors = {f"{name}_standard_error": figure["standard_error"] for name, figure in measured.items()}
        figures |= {name: error for name, error in errors.items() if error is not None}  # of one observation alone
        found = {path.stem: _read(path) for path in sorted(run.glob("*.png")) if path.stem not in self._shown}
        self._each(lambda recorder: recorder.finish(figures, found))

    def close(self) -> None:
        """As `Recorder.close`."""
        self._each(lambda recorder: recorder.close())

    def _each(self, tell: Callable[[Recorder], None]) -> None:
        for recorder in list(self._live):
            try:
                tell(recorder)
            except Exception as error:  # a full disk, a network that is down, whatever a package may raise
                self._live.remove(recorder)
                said = " ".join(f"{type(error).__name__}: {error}".split())
                self._warn(f"{type(recorder).__name__} records no more ({said}); the training goes on")
                with suppress(Exception):
                    recorder.close()


@contextmanager
def recording(
    recorders: Sequence[Recorder], run: Path, config: Config, past: Sequence[Metrics], warn: Callable[[str], None]
) -> Iterator[Recording]:
    """Recorders that have been started, and are closed however the training ends."""
    found = Recording(recorders, warn)
    found.start(run, config, past)
    try:
        yield found
    finally:
        found.close()


def several(recorder: Recorder | Sequence[Recorder]) -> Sequence[Recorder]:
    """One recorder, or several, as several."""
    return recorder if isinstance(recorder, Sequence) else [recorder]


def grouped(metrics: Metrics) -> dict[str, float]:
    """The metrics of an epoch by names with a group in front: train/elbo, test/elbo, epoch/seconds."""
    found = {}
    for name, value in metrics.items():
        part, _, figure = name.partition("_")
        if name != "epoch":
            found[f"{part}/{figure}" if part in ("train", "test") else f"epoch/{name}"] = value
    return found


def flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings in one list, each as text by its name with the group in front: network.latent_dim."""
    parts = {name: values if isinstance(values, dict) else {"": values} for name, values in settings.items()}
    return {
        f"{part}.{name}".rstrip("."): str(value) for part, values in parts.items() for name, value in values.items()
    }


def last_epoch(past: Sequence[Metrics]) -> int:
    """The number of the last epoch in `past`; 0 of none."""
    return int(past[-1]["epoch"]) if past else 0


def _pictures(vae: VAE, levels: Tensor) -> dict[str, NDArray[np.uint8]]:
    from vae_train import pictures

    with evaluating(vae):
        return {
            "samples": pictures.samples(vae, _IMAGES),
            "reconstructions": pictures.reconstructions(vae, pixels.unit(levels[:_IMAGES])),
        }


def _read(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        array = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    return array.reshape(*array.shape[:2], -1)
