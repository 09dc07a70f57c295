"""What recorders are given, what happens where one fails, and what Weights & Biases and MLflow have kept."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vae_train
from vae_train import checkpoints, pictures, run_folder, train
from vae_train.config import PRESETS, Place
from vae_train.listener import Listener, silent
from vae_train.mlflow import MLflow
from vae_train.recorders import Pictures, Recorder, grouped
from vae_train.state import Metrics
from vae_train.wandb import WandB

SMALL = PRESETS["tutorial"].replace(dataset="digits", hidden=(8,), latent_dim=2, epochs=3, lr=1e-3)
HERE = Place(Path("nowhere"), download=False, device="cpu", threads=1)


class Killed(BaseException):
    """What stops a training in these tests, as SIGKILL would."""


@pytest.fixture(autouse=True)
def small_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the report at a training's end, which takes seconds: one of its pictures, and the curves."""

    def draw(folder: Path, *given: object) -> None:
        for name in ("latents", "curves"):
            Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(folder / f"{name}.png")

    monkeypatch.setattr(train.results.report, "draw", draw)


class Notebook:
    """A recorder that keeps what it is given; it raises when it is told of what `fails` names, and of `epoch` twice."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.told = fails, list[tuple[Any, ...]]()

    def _keep(self, *told: Any) -> None:
        self.told.append(told)
        if told[0] == self.fails and (self.fails != "epoch" or told[1]["epoch"] == 2):
            raise OSError(28, "No space left\non device")

    def start(self, run: Path, settings: Any, past: Any) -> None:
        """As a recorder does."""
        self._keep("start", run, settings, list(past))

    def epoch(self, metrics: Metrics, pictures: Pictures) -> None:
        """As a recorder does."""
        self._keep("epoch", metrics, dict(pictures))

    def finish(self, figures: Any, pictures: Pictures) -> None:
        """As a recorder does."""
        self._keep("finish", dict(figures), dict(pictures))

    def close(self) -> None:
        """As a recorder does."""
        self._keep("close")

    @property
    def names(self) -> list[str]:
        """What it was told of, in order."""
        return [told[0] for told in self.told]


def fit(out: Path, *recorders: Recorder, warn: Callable[[str], None] = silent) -> None:
    """A training of three epochs in a second."""
    train.train(SMALL, out, HERE, command="vae-train", recorders=recorders, listener=Listener(warn=warn))


def killed(out: Path, after: int, *recorders: Recorder, saved: bool = True) -> None:
    """The same, killed after an epoch's checkpoint or just before it, and so without closing its recorders."""
    save = checkpoints.save

    def dying(folder: Path, training: Any) -> None:
        ended = training.progress.epoch - 1 == after and training.progress.step == 0
        if saved or not ended:
            save(folder, training)
        if ended:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "save", dying)
        fit(out, *recorders)


def test_a_recorder_is_given_settings_epochs_and_figures_in_their_order(tmp_path: Path) -> None:
    """What the run folder holds: its settings, each line of metrics.jsonl, the test figures, the report's pictures."""
    run, notebook = tmp_path / "run", Notebook()
    fit(run, notebook)
    assert notebook.names == ["start", "epoch", "epoch", "epoch", "finish", "close"]
    (_, folder, settings, past), *epochs, (_, figures, shown), _ = notebook.told
    assert (folder, past) == (run, [])
    assert settings == json.loads((run / "config.json").read_text())["config"]
    assert [metrics for _, metrics, _ in epochs] == run_folder.read_metrics(run)
    np.testing.assert_array_equal(epochs[-1][2]["samples"], pictures.samples(run_folder.load(run).vae, 16))
    assert all(drawn.keys() == {"samples", "reconstructions"} for _, _, drawn in epochs)
    measured = json.loads((run / "evaluation.json").read_text())["figures"]
    assert figures.keys() == {name for key in measured for name in (key, f"{key}_standard_error")}
    assert figures["elbo"] == measured["elbo"]["mean"]
    assert shown.keys() == {"latents"}  # the curves are the scalars
    np.testing.assert_array_equal(shown["latents"], np.asarray(Image.open(run / "latents.png")))


@pytest.mark.filterwarnings("ignore::vae_train.TrainingWarning")
def test_a_figure_of_one_observation_has_no_standard_error(tmp_path: Path) -> None:
    """A recorder is given numbers alone: what is none is left out, and the others stay."""
    x, notebook = np.random.default_rng(0).random((50, 8, 8)), Notebook()
    settings = {"hidden": 8, "latent_dim": 2, "epochs": 1, "device": "cpu", "threads": 1}
    vae_train.fit(x[:49], x[49:], out=tmp_path / "run", recorder=notebook, progress=False, **settings)
    figures = notebook.told[-2][1]
    assert figures.keys() == {"elbo", "reconstruction", "kl"}
    assert all(isinstance(figure, float) for figure in figures.values())


def test_a_training_that_goes_on_says_which_epochs_are_done(tmp_path: Path) -> None:
    """One that is stopped closes its recorders without finishing them; the resumed one begins with the past."""
    run, first, second = tmp_path / "run", Notebook(), Notebook()
    killed(run, 2, first)
    assert first.names == ["start", "epoch", "epoch", "close"]
    train.resume(run, HERE, recorders=[second])
    assert second.names == ["start", "epoch", "finish", "close"]
    assert second.told[0][3] == run_folder.read_metrics(run)[:2]
    assert second.told[1][1]["epoch"] == 3


@pytest.mark.filterwarnings("ignore:few steps")
def test_fit_takes_one_recorder_or_several(tmp_path: Path) -> None:
    """From Python: each is told of the whole training."""
    one, first, second = Notebook(), Notebook(), Notebook()
    settings = {"preset": "tutorial", "hidden": 8, "latent_dim": 2, "epochs": 2, "device": "cpu", "threads": 1}
    for out, recorder in (("a", one), ("b", [first, second])):
        vae_train.fit("digits", out=tmp_path / out, recorder=recorder, progress=False, **settings)
    assert one.names == first.names == second.names == ["start", "epoch", "epoch", "finish", "close"]


@pytest.mark.parametrize("fails", ["start", "epoch", "finish", "close"])
def test_a_recorder_that_fails_is_told_of_once_and_ends_no_training(tmp_path: Path, fails: str) -> None:
    """The run is whole, the other recorder has everything, and the failing one is closed and told no more."""
    failing, whole = Notebook(fails), Notebook()
    warnings: list[str] = []
    fit(tmp_path / "run", failing, whole, warn=warnings.append)
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert whole.names == ["start", "epoch", "epoch", "epoch", "finish", "close"]
    said = "Notebook records no more (OSError: [Errno 28] No space left on device); the training goes on"
    assert [line for line in warnings if "Notebook" in line] == [said]
    assert failing.names == [*whole.names[: failing.names.index(fails) + (fails == "epoch")], fails, "close"]


# Weights & Biases


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, for a person who has neither a login nor settings, in quiet."""
    found = pytest.importorskip("wandb", reason="needs Weights & Biases: pip install wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield found
    found.teardown()


def logged(run: Path) -> dict[str, Any]:
    """What is in the newest of wandb's files of a run: id, project, config, history by step, summary, exit code.

    Its own process may write the last of them after `finish` has returned: waited for, a minute at most.
    """
    newest = max((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for _ in range(600):
        found: dict[str, Any] = {"history": {}, "summary": {}}
        for record in records(newest.read_bytes()):
            what = record.WhichOneof("record_type")
            if what == "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                found |= {"id": record.run.run_id, "project": record.run.project, "config": config}
            elif what == "history":
                values = named(record.history.item)
                found["history"].setdefault(values["_step"], {}).update(values)
            elif what == "summary":
                found["summary"] |= named(record.summary.update)
            elif what == "exit":
                return found | {"exit": record.exit.exit_code}
        time.sleep(0.1)
    raise AssertionError(f"{newest} does not end")


def records(data: bytes) -> Iterator[Any]:
    """The records of wandb's file, which is LevelDB's log: blocks of 32 KiB, in them parts of records.

    Before each part are 4 bytes of checksum, 2 of length and one of its kind: 1 is a whole record, 4 the last part.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    at, part = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(part)
            part = b""


def named(items: Any) -> dict[str, Any]:
    """The values of a record by their names."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_weights_and_biases_offline_has_all_of_a_training(tmp_path: Path, wandb: Any) -> None:
    """Without a login: scalars and pictures of each epoch, settings, test figures, in a folder that wandb can sync."""
    run = tmp_path / "run"
    fit(run, WandB())
    found = logged(run)
    rows = run_folder.read_metrics(run)
    assert (found["project"], found["exit"], sorted(found["history"])) == ("vae-edge", 0, [1, 2, 3])
    assert found["config"]["network"]["latent_dim"] == 2
    for epoch, row in enumerate(rows, 1):
        step = found["history"][epoch]
        assert {name: step[name] for name in grouped(row)} == grouped(row)
        (picture,) = (run / "wandb").glob(f"offline-run-*/files/{step['samples/path']}")
        assert np.asarray(Image.open(picture)).shape[:2] == (step["samples/height"], step["samples/width"])
    assert found["history"][3]["latents/path"].startswith("media/images/latents_3")
    measured = json.loads((run / "evaluation.json").read_text())["figures"]
    assert found["summary"]["final/elbo"] == measured["elbo"]["mean"]


def test_weights_and_biases_goes_on_in_the_same_run(tmp_path: Path, wandb: Any) -> None:
    """A resumed training has the id of the first; one that asks for it later records the epochs before."""
    run, later = tmp_path / "run", tmp_path / "later"
    killed(run, 2, WandB())
    first = logged(run)
    assert (first["exit"], sorted(first["history"])) == (1, [1, 2])
    train.resume(run, HERE, recorders=[WandB()])
    second = logged(run)
    assert (second["id"], sorted(second["history"])) == (first["id"], [3])
    killed(later, 2)
    train.resume(later, HERE, recorders=[WandB()])
    assert sorted(logged(later)["history"]) == [1, 2, 3]


def test_a_run_without_a_checkpoint_is_removed_with_its_records(tmp_path: Path, wandb: Any) -> None:
    """A training that dies before its first checkpoint leaves no folder behind."""
    killed(tmp_path / "run", 1, WandB(), saved=False)
    assert not (tmp_path / "run").exists()


# MLflow


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a new store in a file."""
    package = pytest.importorskip("mlflow", reason="needs MLflow: pip install mlflow")
    monkeypatch.chdir(tmp_path)  # where its artifacts go
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return package.MlflowClient()


def curves(client: Any, run: Any) -> dict[str, dict[int, float]]:
    """Each metric's points; no epoch has two."""
    found = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert all(len({point.step for point in points}) == len(points) for points in found.values())
    return {name: {point.step: point.value for point in points} for name, points in found.items()}


@pytest.mark.filterwarnings("default")  # of the packages below it
@pytest.mark.parametrize("saved", [False, True], ids=["before its checkpoint", "after it"])
def test_mlflow_has_all_of_a_training_that_was_resumed(tmp_path: Path, mlflow: Any, saved: bool) -> None:
    """One run of its store: each epoch once, settings, pictures and test figures; killed at the end of epoch 2."""
    out = tmp_path / "run"
    killed(out, 2, MLflow(), saved=saved)
    experiment = mlflow.get_experiment_by_name("vae-edge").experiment_id
    assert mlflow.search_runs([experiment])[0].info.status == "KILLED"
    train.resume(out, HERE, recorders=[MLflow()])
    (run,) = mlflow.search_runs([experiment])
    assert (run.info.status, run.data.params["network.latent_dim"], run.info.run_name) == ("FINISHED", "2", "run")
    rows, found = run_folder.read_metrics(out), curves(mlflow, run)
    assert found["test/elbo"] == {int(row["epoch"]): row["test_elbo"] for row in rows}
    assert {name for name in found if not name.startswith("final/")} == set(grouped(rows[0]))
    measured = json.loads((out / "evaluation.json").read_text())["figures"]
    assert found["final/elbo"] == {3: measured["elbo"]["mean"]}
    shown = [re.split("[%+]", Path(item.path).name)[:3] for item in mlflow.list_artifacts(run.info.run_id, "images")]
    for name, steps in {"samples": "123", "reconstructions": "123", "latents": "3"}.items():
        assert {step for picture, _, step in shown if picture == name} == set(steps)
