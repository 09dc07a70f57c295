"""MLflow as a recorder: in the store that MLFLOW_TRACKING_URI names, else in the file that MLflow itself makes."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_train import recorders
from vae_train.recorders import Pictures
from vae_train.state import Metrics

_FOLDER = "vae_edge.run_folder"  # the tag by which a training that goes on finds its run
_LONGEST = 500  # letters of a parameter in any of MLflow's stores


class MLflow:
    """A recorder for MLflow; needs the extra `mlflow`.

    Its own settings hold: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME (here `vae-edge` unless it is set). A training
    that goes on is the same run.
    """

    def __init__(self) -> None:
        self._client: Any = None
        self._id, self._epoch, self._finished = "", 0, False

    def start(self, run: Path, settings: Mapping[str, Any], past: Sequence[Metrics]) -> None:
        """As `Recorder.start`."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vae-edge")
        experiment = self._client.get_experiment_by_name(name)
        found = experiment.experiment_id if experiment else self._client.create_experiment(name)
        folder = str(run.absolute())
        # compared here, since a path may hold what the language of its filters has no way to quote
        same = [r.info.run_id for r in self._client.search_runs([found]) if r.data.tags.get(_FOLDER) == folder]
        if past and same:
            self._id = same[0]  # the newest
            self._client.update_run(self._id, status="RUNNING")
            self._epoch = max((m.step for m in self._client.get_metric_history(self._id, "test/elbo")), default=0)
        else:
            self._id = self._client.create_run(found, run_name=run.absolute().name, tags={_FOLDER: folder}).info.run_id
            self._client.log_dict(self._id, dict(settings), "settings.json")
            for name, value in recorders.flat(settings).items():
                if len(value) <= _LONGEST:
                    self._client.log_param(self._id, name, value)
        for metrics in past:
            self.epoch(metrics, {})

    def epoch(self, metrics: Metrics, pictures: Pictures) -> None:
        """As `Recorder.epoch`; an epoch that the store has already is not recorded twice."""
        from mlflow.entities import Metric

        if (epoch := recorders.last_epoch([metrics])) <= self._epoch:
            return
        now, self._epoch = round(time.time() * 1000), epoch
        self._show(pictures)
        values = [Metric(name, value, now, epoch) for name, value in recorders.grouped(metrics).items()]
        self._client.log_batch(self._id, metrics=values)

    def finish(self, figures: Mapping[str, float], pictures: Pictures) -> None:
        """As `Recorder.finish`; the figures are metrics of the last epoch."""
        for name, value in figures.items():
            self._client.log_metric(self._id, f"final/{name}", value, step=self._epoch)
        self._show(pictures)
        self._finished = True

    def close(self) -> None:
        """As `Recorder.close`."""
        if self._id:
            self._client.set_terminated(self._id, "FINISHED" if self._finished else "KILLED")

    def _show(self, pictures: Pictures) -> None:
        for name, picture in pictures.items():
            self._client.log_image(self._id, picture, key=name, step=self._epoch)
