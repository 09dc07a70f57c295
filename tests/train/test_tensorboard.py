"""`--tensorboard`: the scalars and pictures of each epoch, read back with TensorBoard's own reader."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vae_runtime.errors import ArgumentError
from vae_train import checkpoints, data, networks, pictures, pixels, run_folder, train
from vae_train.config import PRESETS, Place
from vae_train.state import TrainingState

pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae_train.recorders import recording
from vae_train.tensorboard import TensorBoard

SMALL = PRESETS["tutorial"].replace(dataset="digits", hidden=(8,), latent_dim=2, epochs=4, lr=1e-3)
HERE = Place(Path("nowhere"), download=False, device="cpu", threads=1)


class Killed(BaseException):
    """What stops a training in these tests, as SIGKILL would."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report at a training's end is not looked at here, and takes seconds."""
    monkeypatch.setattr(train.results.report, "draw", lambda *given: None)


@contextmanager
def killed_after(epoch: int, saved: bool) -> Iterator[None]:
    """Let a training die at the end of this epoch, before or after the epoch's checkpoint is written."""
    save = checkpoints.save

    def dying(folder: Path, training: TrainingState) -> None:
        ended = training.progress.epoch - 1 == epoch and training.progress.step == 0
        if saved or not ended:
            save(folder, training)
        if ended:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "save", dying)
        yield


def events(run: Path) -> EventAccumulator:
    """All that TensorBoard sees of a run."""
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Each curve's points, of epochs; no epoch has two."""
    found = events(run)
    curves = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    assert all(len({point.step for point in points}) == len(points) for points in curves.values())
    points = {tag: {point.step: point.value for point in points} for tag, points in curves.items()}
    return {tag: curve for tag, curve in points.items() if not tag.startswith("final/")}


def expected(run: Path) -> dict[str, dict[int, float]]:
    """The same curves from metrics.jsonl."""
    rows = run_folder.read_metrics(run)
    tags = {name: re.sub("^(train|test)_", r"\1/", name) for name in rows[0] if name != "epoch"}
    tags = {name: tag if "/" in tag else f"epoch/{tag}" for name, tag in tags.items()}
    return {tag: {int(row["epoch"]): float(np.float32(row[name])) for row in rows} for name, tag in tags.items()}


def test_every_metric_of_every_epoch_is_a_scalar(tmp_path: Path) -> None:
    """What metrics.jsonl holds, under names that TensorBoard groups."""
    train.train(SMALL, tmp_path / "run", HERE, command="vae-train", recorders=[TensorBoard()])
    found = scalars(tmp_path / "run")
    assert found == expected(tmp_path / "run")
    assert {"train/elbo", "test/elbo", "test/kl", "test/standard_error", "epoch/active_units"} <= found.keys()
    assert sorted(found["test/elbo"]) == [1, 2, 3, 4]


def test_samples_and_reconstructions_are_images_of_each_epoch(tmp_path: Path) -> None:
    """One of each per epoch, and the last are those of the finished weights."""
    train.train(SMALL, tmp_path / "run", HERE, command="vae-train", recorders=[TensorBoard()])
    found = events(tmp_path / "run")
    assert found.Tags()["images"] == ["samples", "reconstructions"]
    vae = run_folder.load(tmp_path / "run").vae
    observed = pixels.unit(data.load(SMALL, HERE.data_root).observed_test(binary=True))[:16]
    for name, last in {
        "samples": pictures.samples(vae, 16),
        "reconstructions": pictures.reconstructions(vae, observed),
    }.items():
        points = found.Images(name)
        assert [point.step for point in points] == [1, 2, 3, 4]
        shown = [np.asarray(Image.open(io.BytesIO(point.encoded_image_string)).convert("L")) for point in points]
        np.testing.assert_array_equal(shown[-1], last[..., 0])
        assert (shown[0] != shown[-1]).any()


@pytest.mark.parametrize("saved", [False, True], ids=["before its checkpoint", "after it"])
def test_a_resumed_training_goes_on_without_gap_or_double(tmp_path: Path, saved: bool) -> None:
    """Killed at the end of epoch 3 and resumed: each epoch once, with the figures of metrics.jsonl."""
    run = tmp_path / "run"
    with killed_after(3, saved):
        train.train(SMALL, run, HERE, command="vae-train", recorders=[TensorBoard()])
    assert sorted(scalars(run)["test/elbo"]) == [1, 2, 3]
    time.sleep(
        1
    )  # files are read in the order of their names, which tell the second and, in it, a number without zeros
    train.resume(run, HERE, recorders=[TensorBoard()])
    assert scalars(run) == expected(run)
    assert sorted(scalars(run)["test/elbo"]) == [1, 2, 3, 4]
    assert [point.step for point in events(run).Images("samples")] == [1, 2, 3, 4]


def test_what_a_killed_training_wrote_too_much_is_taken_back(tmp_path: Path) -> None:
    """Epoch 3 was written and not saved: the resumed training's own epoch 3 takes its place, wherever they differ."""
    run = tmp_path / "run"
    with killed_after(3, saved=False):
        train.train(SMALL, run, HERE, command="vae-train", recorders=[TensorBoard()])
    before = scalars(run)["epoch/seconds"]
    train.resume(run, HERE, recorders=[TensorBoard()])
    after = scalars(run)["epoch/seconds"]
    assert (after[1], after[2]) == (before[1], before[2])
    assert after[3] != before[3]


def test_tensorboard_may_be_asked_for_later(tmp_path: Path) -> None:
    """A training that began without it writes the epochs before too, when it goes on with it."""
    run = tmp_path / "run"
    with killed_after(2, saved=True):
        train.train(SMALL, run, HERE, command="vae-train")
    assert not (run / "tensorboard").exists()
    train.resume(run, HERE, recorders=[TensorBoard()])
    assert scalars(run) == expected(run)
    assert sorted(scalars(run)["test/elbo"]) == [1, 2, 3, 4]


def test_a_run_without_a_checkpoint_is_removed_with_it(tmp_path: Path) -> None:
    """A training that dies, or diverges, before its first checkpoint leaves no folder behind."""
    with killed_after(1, saved=False):
        train.train(SMALL, tmp_path / "run", HERE, command="vae-train", recorders=[TensorBoard()])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ArgumentError, match="training diverged"):
        train.train(SMALL.replace(lr=1e30), tmp_path / "run", HERE, command="vae-train", recorders=[TensorBoard()])
    assert not (tmp_path / "run").exists()


def test_the_training_is_the_same_with_it(tmp_path: Path) -> None:
    """Weights and figures are those of a training without `--tensorboard`, bit for bit."""
    for name in ("with", "without"):
        train.train(
            SMALL, tmp_path / name, HERE, command="vae-train", recorders=[TensorBoard()] if name == "with" else []
        )
    for name in ("model.safetensors", "evaluation.json"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_dropout_is_off_in_its_pictures_and_on_in_training(tmp_path: Path) -> None:
    """The pictures take the networks as they are in use, and leave them as they are in training."""
    config = SMALL.replace(epochs=1)
    run, levels, warnings = tmp_path / "run", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), list[str]()
    vae = networks.build(config, (1, 8, 8))
    vae.decoder = torch.nn.Sequential(vae.decoder, torch.nn.Dropout(0.5))
    row = {"epoch": 1.0, "test_elbo": -1.0}
    with recording([TensorBoard()], run, config, [], warnings.append) as recorded:
        recorded.epoch(row, vae, levels)
        assert vae.training
        shown = pictures.samples(vae.eval(), 16)
        recorded.epoch(row | {"epoch": 2.0}, vae, levels)
        assert not vae.training
    assert warnings == []
    for point in events(run).Images("samples"):
        picture = np.asarray(Image.open(io.BytesIO(point.encoded_image_string)).convert("L"))
        np.testing.assert_array_equal(picture, shown[..., 0])


@pytest.mark.slow
def test_it_is_not_imported_unless_asked_for(tmp_path: Path) -> None:
    """A training without `--tensorboard` never loads the package, which takes seconds."""
    code = (
        "import sys, pathlib; from vae_train import train; from vae_train.config import PRESETS, Place;"
        "config = PRESETS['tutorial'].replace(dataset='digits', hidden=(4,), epochs=1);"
        "train.results.report.draw = lambda *given: None;"
        "train.train(config, pathlib.Path(sys.argv[1]), Place(pathlib.Path('.')), 'vae-train');"
        "sys.exit(any(name.partition('.')[0] == 'tensorboard' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tensorboard" in sys.modules  # here it is loaded, under that name


@pytest.mark.slow
def test_only_the_first_process_writes(tmp_path: Path) -> None:
    """Two processes of one training: one file of events, with each epoch once."""
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    settings = ["--dataset", "digits", "--hidden", "8", "--epochs", "2", "--device", "cpu", "--threads", "1"]
    command = [*launcher, "vae_train", "--out", str(run), *settings, "--tensorboard"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert scalars(run) == expected(run)
