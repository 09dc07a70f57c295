"""Weights & Biases as a recorder: on its server where you are logged in, else in the folder `wandb` of a run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_train import recorders
from vae_train.recorders import Pictures
from vae_train.run_folder import WANDB
from vae_train.state import Metrics


class WandB:
    """A recorder for Weights & Biases; needs the extra `wandb`.

    Its own settings hold: WANDB_MODE, WANDB_PROJECT (here `vae-edge` unless it is set), WANDB_ENTITY and the others.
    Without a login nothing is sent: `wandb sync` does that later. A training that goes on is the same run.
    """

    def __init__(self) -> None:
        self._run: Any = None
        self._epoch, self._finished = 0, False

    def start(self, run: Path, settings: Mapping[str, Any], past: Sequence[Metrics]) -> None:
        """As `Recorder.start`."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import: it would ask for a server, offline
        import wandb

        online = wandb.setup().settings.mode == "online"
        begun = _identity(run / WANDB)
        self._epoch = recorders.last_epoch(past)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vae-edge"),
            name=run.absolute().name,
            dir=run,
            config=dict(settings),
            mode="offline" if online and not wandb.login(prompt=False) else None,
            id=begun,
            resume="allow" if begun and online else None,
            settings=wandb.Settings(console="off"),  # what a training prints is the terminal's
        )
        for metrics in past if begun is None else ():
            self._run.log(recorders.grouped(metrics), step=recorders.last_epoch([metrics]))

    def epoch(self, metrics: Metrics, pictures: Pictures) -> None:
        """As `Recorder.epoch`; an epoch that its server has already is not recorded twice."""
        self._epoch = recorders.last_epoch([metrics])
        self._run.log(recorders.grouped(metrics) | _images(pictures), step=self._epoch)

    def finish(self, figures: Mapping[str, float], pictures: Pictures) -> None:
        """As `Recorder.finish`; the figures are in the run's summary."""
        self._run.log(_images(pictures), step=self._epoch)
        self._run.summary.update({f"final/{name}": value for name, value in figures.items()})
        self._finished = True

    def close(self) -> None:
        """As `Recorder.close`."""
        if self._run is not None:
            self._run.finish(exit_code=0 if self._finished else 1)


def _images(pictures: Pictures) -> dict[str, Any]:
    import wandb

    return {name: wandb.Image(picture) for name, picture in pictures.items()}


def _identity(folder: Path) -> str | None:
    """The id of the run in wandb's own folder, from the names that it gives: run-DATE_TIME-ID, offline-run-..."""
    begun = sorted(path.name.removeprefix("offline-") for path in folder.glob("*run-*-*"))
    return begun[-1].split("-", 2)[2] if begun else None
