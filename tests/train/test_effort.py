"""A training whose epochs are not counted beforehand: how long it goes on, what it measures, which weights it keeps."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vae_runtime.errors import ArgumentError
from vae_train import data, loop, metrics, results, run_folder, state, train
from vae_train.cli import main
from vae_train.config import PRESETS, Config, Place, vector
from vae_train.state import Metrics, TrainingState

Command = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")
# 13 steps in an epoch; 8 epochs are the fewest with 100 steps
SMALL = PRESETS["tutorial"].replace(dataset="digits", hidden=(16,), latent_dim=2, steps=260, patience=200)
HASTY = SMALL.replace(lr=1.0, steps=2600)  # its ELBO soon falls
HERE = Place(Path("absent"), download=False, device="cpu", threads=1)


@pytest.fixture(scope="module")
def digits() -> data.Data:
    """scikit-learn's digits, 8x8."""
    return data.load(SMALL, Path("absent"), download=False)


def go_on(training: TrainingState, images: data.Data, stop: int | None = None) -> TrainingState:
    """Train to the end, or until so many steps are done."""
    seen = images.observed_train(binary=True), images.observed_test(binary=True)

    def after_step() -> None:
        progress = training.progress
        if (progress.epoch - 1) * training.steps_per_epoch + progress.step == stop:
            raise InterruptedError

    def end_epoch() -> None:
        training.end_epoch(metrics.measure(training, *seen))

    try:
        loop.fit(training, images.train, end_epoch, after_step, quiet=True)
    except InterruptedError:
        assert stop is not None
    return training


def fit(config: Config, images: data.Data, stop: int | None = None) -> TrainingState:
    """A whole training, or its beginning."""
    return go_on(train._prepare(config, images, torch.device("cpu"), None), images, stop)


def untimed(rows: list[Metrics]) -> list[Metrics]:
    """Metrics without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "observations_per_second")} for row in rows]


def weights(training: TrainingState) -> dict[str, torch.Tensor]:
    """By name."""
    return training.vae.state_dict()


@pytest.mark.parametrize(
    ("name", "observations", "epochs"),
    [
        ("tutorial", 60_000, 5),
        ("deep", 60_000, 5),
        ("gated", 60_000, 5),
        ("resnet", 60_000, 5),
        ("tutorial", 107, 2345),
    ],
)
def test_a_presets_effort_is_a_number_of_steps(name: str, observations: int, epochs: int) -> None:
    """Those of five passes over MNIST; a small set has as many of them, in many more passes."""
    optimiser = PRESETS[name].optimiser
    assert optimiser.most_epochs(observations) == epochs
    assert dataclasses.replace(optimiser, epochs=7).most_epochs(observations) == 7


@pytest.mark.parametrize(("rows", "steps"), [(0, 200), (178, 600), (24_000, 10_058), (1_000_000, 15_628)])
def test_rows_are_seen_from_four_to_200_times(rows: int, steps: int) -> None:
    """Or as often as whole passes make 10,000 steps, all of which are spent."""
    optimiser = vector(9, rows).optimiser
    assert (optimiser.steps, optimiser.patience) == (steps, None)


def test_steps_that_are_spent_are_the_training_of_as_many_epochs(digits: data.Data) -> None:
    """Where the test ELBO rises to the end, the weights are those that --epochs would give, bit for bit; metrics are
    those of every eighth epoch, and of the last.
    """
    free, counted = fit(SMALL, digits), fit(SMALL.replace(epochs=20), digits)
    assert [row["epoch"] for row in free.progress.metrics] == [8, 16, 20]
    assert all(torch.equal(values, weights(counted)[name]) for name, values in weights(free).items())
    for row in free.progress.metrics:
        same = counted.progress.metrics[int(row["epoch"]) - 1]
        assert (row["test_elbo"], row["train_kl"]) == (same["test_elbo"], same["train_kl"])
        passes = 8 if row["epoch"] < 20 else 4
        assert row["observations_per_second"] == pytest.approx(passes * len(digits.train) / row["seconds"])
    first = counted.progress.metrics[:8]
    assert free.progress.metrics[0]["largest_gradient_norm"] == max(row["largest_gradient_norm"] for row in first)
    # every tenth step of 13 is the first and the eleventh, so that all epochs count alike
    mean = sum(row["gradient_norm"] for row in first) / 8
    assert free.progress.metrics[0]["gradient_norm"] == pytest.approx(mean, rel=1e-5)


def test_patience_ends_a_training(digits: data.Data) -> None:
    """It ends with the first metrics that are 200 steps, here two measurements, after the best ones."""
    rows = fit(HASTY, digits).progress.metrics
    for i, row in enumerate(rows):
        waited = (row["epoch"] - state.best(rows[: i + 1])["epoch"]) * 13
        assert (waited >= 200) == (row is rows[-1])
    assert rows[-1]["epoch"] < 200


@pytest.mark.parametrize("config", [SMALL, HASTY], ids=["spent", "out of patience"])
def test_a_training_goes_on_exactly_from_within(digits: data.Data, config: Config) -> None:
    """Stopped before the first metrics, with them, or after, and restored: it ends where it would have ended."""
    whole = fit(config, digits)
    for stop in (60, 104, 150):
        resumed = train._prepare(config, digits, torch.device("cpu"), None)
        resumed.restore(*fit(config, digits, stop).state())
        go_on(resumed, digits)
        assert untimed(resumed.progress.metrics) == untimed(whole.progress.metrics)
        assert all(torch.equal(values, weights(whole)[name]) for name, values in weights(resumed).items())


def test_without_patience_all_steps_are_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the test ELBO was highest, and the last weights are kept, with the best ones beside them."""
    real = metrics.measure

    def measure(*given: Any) -> dict[str, float]:
        row = real(*given)
        return row if row["epoch"] < 24 else {**row, "test_elbo": row["test_elbo"] - 100}

    monkeypatch.setattr(metrics, "measure", measure)
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    config = dataclasses.replace(SMALL, optimiser=dataclasses.replace(SMALL.optimiser, steps=500, patience=None))
    train.train(config, tmp_path / "run", HERE, command="vae-train")
    past = run_folder.read_metrics(tmp_path / "run")
    assert [row["epoch"] for row in past] == [8, 16, 24, 32, 39]
    for row, fallen, best in ((past[-1], 100, False), (past[1], 0, True)):
        figures = run_folder.load(tmp_path / "run", best=best).evaluation["figures"]
        assert figures["elbo"]["mean"] - fallen == pytest.approx(row["test_elbo"], rel=1e-6)


def rows(*elbos: float) -> list[Metrics]:
    """Metrics of every eighth epoch with these test ELBOs."""
    return [{"epoch": 8.0 * i, "test_elbo": elbo, "test_standard_error": 0.5} for i, elbo in enumerate(elbos, 1)]


@pytest.mark.parametrize(
    ("past", "said"),
    [
        (
            rows(-9.0, -8.0, -8.5, -8.2),
            "the test ELBO has not risen for 200 steps, since epoch 16: the weights are those of that epoch",
        ),
        (
            rows(-9.0, -8.0, -7.0),
            "260 steps are spent and the test ELBO is still rising: --epochs 40 trains twice as long",
        ),
        (rows(-9.0, -8.0, -7.0, -8.0), "the weights are those of epoch 24, with the highest test ELBO"),
        (rows(-7.4, -7.3, -7.2, -7.0), ""),
        (rows(-9.0), ""),
    ],
)  # fmt: skip
def test_how_a_training_ended_in_words(digits: data.Data, past: list[Metrics], said: str) -> None:
    """Out of patience, still rising by more than its standard error in as many steps, fallen at the end, or fine."""
    training = train._prepare(SMALL, digits, torch.device("cpu"), None)
    training.progress.metrics = past
    assert metrics.outcome(training) == said


def test_the_weights_of_the_highest_test_elbo_are_kept(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of patience, model.safetensors has them, and its figures are theirs; what was done is said and recorded."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    train.train(HASTY, tmp_path / "run", HERE, command="vae-train")
    best = state.best(run_folder.read_metrics(tmp_path / "run"))
    for kept in (run_folder.load(tmp_path / "run"), run_folder.load(tmp_path / "run", best=True)):
        assert kept.evaluation["figures"]["elbo"]["mean"] == pytest.approx(best["test_elbo"], rel=1e-6)
    optimiser = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["optimiser"]
    assert (optimiser["epochs"], optimiser["steps"], optimiser["patience"]) == (None, 2600, 200)


def test_the_command_says_until_when(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line at the start has the patience and the most steps; --epochs is exact, and has no such line."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    words = ("--dataset", "digits", "--hidden", 4, "--latent-dim", 2, "--batch-size", 1000, "--device", "cpu", "--out")
    result = command(main, *words, tmp_path / "a", "--epochs", 2)
    assert "images to train on in 4 steps," in result.err
    assert "until the test ELBO" not in result.err

    def stop(*given: object, **named: object) -> None:
        raise ArgumentError("enough", "here", "stop")

    monkeypatch.setattr(loop, "fit", stop)
    result = command(main, *words, tmp_path / "b")
    assert re.search(
        r"images to train on in 2,346 steps,.*\nuntil the test ELBO has not risen for 1,000 steps, or these are spent; "
        r"--epochs N makes N passes\n",
        result.err,
        re.DOTALL,
    )
