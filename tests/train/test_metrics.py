"""What is measured after each epoch, and the signs of trouble: in words, in real trainings, and what stops one."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from vae_runtime.errors import ArgumentError
from vae_train import checkpoints, data, loop, metrics, objectives, pixels, results, state, train
from vae_train.cli import main
from vae_train.config import PRESETS, Config, Place
from vae_train.state import Metrics, TrainingState

Command = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = PRESETS["tutorial"].replace(dataset="digits", hidden=(16,), latent_dim=2, epochs=3)
CPU = torch.device("cpu")
GOOD = {
    **{"epoch": 3.0, "train_elbo": -90.0, "train_reconstruction": -70.0, "train_kl": 20.0},
    **{"test_elbo": -95.0, "test_reconstruction": -74.5, "test_kl": 20.5, "test_standard_error": 1.0},
    **{"active_units": 12.0, "gradient_norm": 5.0, "largest_gradient_norm": 9.0, "skipped_steps": 0.0},
    **{"seconds": 2.0, "observations_per_second": 30_000.0},
}


@pytest.fixture(scope="module")
def digits() -> data.Data:
    """scikit-learn's digits, 8x8."""
    return data.load(SMALL, Path("absent"), download=False)


def begin(config: Config, images: data.Data) -> TrainingState:
    """A training of these images that has not taken a step."""
    return train._prepare(config, images, CPU, None)


def fit(config: Config, images: data.Data) -> list[Metrics]:
    """A whole training's metrics."""
    training = begin(config, images)
    binary = training.vae.likelihood.binary
    seen = images.observed_train(binary), images.observed_test(binary)
    loop.fit(training, images.train, lambda: training.end_epoch(metrics.measure(training, *seen)), quiet=True)
    return training.progress.metrics


def rows(*changes: dict[str, float]) -> list[Metrics]:
    """Metrics of as many epochs, good but for these."""
    return [{**GOOD, "epoch": float(i), **change} for i, change in enumerate(changes, 1)]


HELP = "a --warm-up, --free-bits or a lower --lr may help"
COLLAPSE = (
    "posterior collapse: {} of {} latent dimensions are active, so that the model sees little of what it is given, and "
    "draws much the same for all; " + HELP
)
TROUBLE: dict[str, tuple[list[Metrics], list[str]]] = {
    "none": (rows({}), []),
    "still rising": (rows({"test_elbo": -120.0, "train_elbo": -119.0}, {}), []),
    "a large step": (rows({"largest_gradient_norm": 49.0}), []),
    "a jump": (
        rows({"largest_gradient_norm": 1234.0}),
        ["gradients jump: a norm of 1,234, and 5 on average; a lower --lr may help"],
    ),
    "a fall within the noise": (rows({}, {"test_elbo": -96.0}), []),
    "as many dimensions as it takes": (rows({"active_units": 3.0}), []),
    "collapse": (rows({"active_units": 2.0}), [COLLAPSE.format(2, 20)]),
    "total collapse": (rows({"active_units": 0.0}), [COLLAPSE.format(0, 20)]),
    "an old collapse": (rows({"active_units": 0.0}, {}), []),
    "skipped": (
        rows({"skipped_steps": 1200.0}),
        ["steps skipped: 1200, which were not finite; a lower --lr may help"],
    ),
    "skipped before": (
        rows({"skipped_steps": 3.0}, {}, {"skipped_steps": 1.0}),
        ["steps skipped: 4, which were not finite; a lower --lr may help"],
    ),
    "over-fitting": (
        rows({"test_elbo": -99.0}, {"test_elbo": -90.0}, {"test_elbo": -91.5, "train_elbo": -80.0}),
        [
            "over-fitting: test ELBO -91.50, and -90.00 at epoch 2, while the train ELBO rose to -80.00; "
            "that epoch's weights are kept as best.safetensors"
        ],
    ),
    "falling": (
        rows({}, {"test_elbo": -120.0, "train_elbo": -119.0}),
        ["the ELBO falls: test ELBO -120.00, and -95.00 at epoch 1; a lower --lr may help"],
    ),
    "all at once": (
        rows({}, {"active_units": 0.0, "skipped_steps": 2.0, "test_elbo": -99.0, "train_elbo": -99.5}),
        [
            COLLAPSE.format(0, 20),
            "steps skipped: 2, which were not finite; a lower --lr may help",
            "the ELBO falls: test ELBO -99.00, and -95.00 at epoch 1; a lower --lr may help",
        ],
    ),
}


@pytest.mark.parametrize(("past", "expected"), TROUBLE.values(), ids=TROUBLE.keys())
def test_trouble_in_words(past: list[Metrics], expected: list[str]) -> None:
    """Each sign of the last epoch has its line with the figures and what may help; good figures have none."""
    assert metrics.trouble(past, latent_dim=20) == expected


def test_in_few_steps_no_posterior_collapses() -> None:
    """A posterior that has not had 300 steps may yet open: what is to be said then is that they are few."""
    assert metrics.trouble(rows({"active_units": 0.0}), latent_dim=20, few=True) == []


def test_a_collapse_points_to_what_was_said_of_the_networks() -> None:
    """Where a person's own networks were warned of, that is the first thing to mend."""
    (line,) = metrics.trouble(rows({"active_units": 0.0}), latent_dim=20, warned=True)
    first = "mend first what was said of the networks before their first step; then "
    assert line == COLLAPSE.format(0, 20).replace(HELP, first + HELP)
    past = [{**row, "epoch": 5.0} for row in rows({"active_units": 0.0})]
    assert metrics.news(past, 5, 20, warned=True) == metrics.told(past, 5, 20, warned=True) == [line]


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "line"),
    [
        (107, 20, 128, "few steps: 20 in the whole run; give more --epochs, 300 at least"),
        (129, 149, 128, "few steps: 298 in the whole run; give more --epochs, 150 at least"),
        (129, 150, 128, ""),
        (60_000, 1, 128, ""),
        (60_000, 1, 30_000, "few steps: 2 in the whole run; give more --epochs, 150 at least"),
    ],
)
def test_a_run_of_few_steps_is_warned_of(images: int, epochs: int, batch: int, line: str) -> None:
    """Less than 300 steps, and the epochs that make as many."""
    assert metrics.few_steps(SMALL.replace(epochs=epochs, batch_size=batch), images) == line


def test_few_observations_are_warned_of() -> None:
    """With their number and how many it takes."""
    assert metrics.few_observations("image", metrics.FEW) == ""
    line = metrics.few_observations("image", 4)
    assert line == "few images: 4 to train on, which are learned by heart; give 100 or more, better some hundreds"


@pytest.mark.parametrize(
    ("epochs", "states", "told"),
    [
        (20, ".CCCC", [[], [], ["C"], [], []]),  # nothing in the first tenth, then once
        (20, "CC.CC", [[], [], [], ["C"], []]),  # again where it comes back
        (20, "...CB", [[], [], [], ["C"], ["F"]]),  # of two signs, the new one
        (5, "CCCCC", [["C"], [], [], [], ["C"]]),  # all of them at the end
        (5, "B...B", [["C"], [], [], [], ["C", "F"]]),
        (20, "S....", [[], [], ["S"], [], []]),  # steps skipped in the first tenth, after it
        (1, "C", [["C"]]),
    ],
)
def test_trouble_is_told_once(epochs: int, states: str, told: list[list[str]]) -> None:
    """A sign is told where it is new, and at the end; while the learning rate still grows, none is."""
    changes = {
        ".": {},
        "C": {"active_units": 0.0},
        "S": {"skipped_steps": 3.0},
        "B": {"active_units": 0.0, "test_elbo": -120.0, "train_elbo": -119.0},
    }
    past = rows(*(changes[state] for state in states))
    found = [metrics.news(past[:i], epochs, 20) for i in range(1, len(past) + 1)]
    marks = {"posterior collapse": "C", "the ELBO falls": "F", "steps skipped": "S"}
    assert [[marks[line.split(":")[0]] for line in lines] for lines in found] == told


def test_a_fall_that_is_waited_out_is_told_at_the_end_alone() -> None:
    """Other trouble is told as it comes."""
    falling, patient = rows({}, *[{"test_elbo": -120.0, "train_elbo": -119.0, "active_units": 0.0}] * 3), True
    found = [metrics.news(falling[:i], 20, 20, patient=patient) for i in range(1, 5)]
    collapse = COLLAPSE.format(0, 20)
    assert found == [[], [], [collapse], []]
    (fall,) = set(metrics.news(falling, None, 20, patient=patient)) - {collapse}
    assert fall.startswith("the ELBO falls: ")
    assert metrics.told(falling, 20, 20, patient=patient) == [collapse, fall]
    passed = rows({}, {}, {"test_elbo": -120.0, "train_elbo": -119.0}, {})
    assert metrics.told(passed, 20, 20, patient=patient) == []
    assert len(metrics.told(passed, 20, 20)) == 1


def test_the_best_epoch_is_the_first_with_the_highest_test_elbo() -> None:
    """Among equals the earlier, so that the weights of a plateau are written once."""
    past = rows({"test_elbo": -99.0}, {"test_elbo": -91.0}, {"test_elbo": -91.0}, {"test_elbo": -95.0})
    assert state.best(past)["epoch"] == 2


def test_an_epoch_in_one_line() -> None:
    """Figures in nats to two places, seconds, and observations a second, in a line that fits a terminal."""
    line = metrics.describe(GOOD)
    assert line == "epoch   3  ELBO: train -90.00, test -95.00 = -74.50 - 20.50 nats  2.0 s  30,000/s"


@pytest.mark.parametrize(("variance", "active"), [(0.0099, 1), (0.0101, 2)])
def test_measured_figures_are_those_of_the_images(digits: data.Data, variance: float, active: int) -> None:
    """ELBO, terms and standard error of given images, active dimensions by the variance of mu: NumPy, float64."""
    training = begin(SMALL.replace(latent_dim=3), digits)
    training.progress.seconds = 0.5
    vae = training.vae
    seen = [levels[:50] for levels in (digits.observed_train(True), digits.observed_test(True))]
    with torch.no_grad():  # of three dimensions one moves, one never, and one as much as `variance` says
        weight = vae.encoder.heads.mu.weight
        weight.copy_(torch.tensor([[3.0], [0.0], [1.0]]))
        mu, _ = vae.encoder(pixels.unit(seen[1]))
        weight[2] *= (variance / mu[:, 2].var(correction=0)).sqrt()
    found = metrics.measure(training, *seen)
    for name, levels in zip(("train", "test"), seen, strict=True):
        x = levels.double() / 255
        with torch.no_grad():
            mu, logsigma = vae.encoder(x.float())
            eps = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0))
            logits = vae.decoder((mu + logsigma.exp() * eps)[0]).double()
        log_prob = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(dim=(1, 2, 3))
        q = torch.distributions.Normal(mu.double(), logsigma.double().exp())
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(dim=1)
        assert found[f"{name}_reconstruction"] == pytest.approx(log_prob.mean().item(), rel=1e-5)
        assert found[f"{name}_kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
        assert found[f"{name}_elbo"] == pytest.approx((log_prob - kl).mean().item(), rel=1e-5)
    assert found["test_standard_error"] == pytest.approx((log_prob - kl).std().item() / 50**0.5, rel=1e-4)
    variances = np.var(mu.double().numpy(), axis=0)
    assert found["active_units"] == (variances > 0.01).sum() == active
    assert found["observations_per_second"] == len(digits.train) / 0.5


def test_gradient_norms_are_those_of_the_steps(digits: data.Data) -> None:
    """Mean and largest of every tenth step's, anew in each epoch; computed here from the gradients themselves."""
    training = begin(SMALL.replace(batch_size=100), digits)
    squares: list[float] = []
    for weight in training.weights:
        weight.register_post_accumulate_grad_hook(lambda weight: squares.append(norm2(weight)))
    for epoch in (1, 2):
        norms: list[float] = []
        for batch in training.batches():
            squares.clear()
            loop.step(training, digits.train[batch])
            norms.append(math.sqrt(sum(squares)))
        training.progress.seconds = 1.0
        found = metrics.measure(training, digits.train[:9], digits.test[:9])
        training.end_epoch(found)
        assert len(norms) == 16
        assert found["epoch"] == epoch
        assert found["gradient_norm"] == pytest.approx((norms[0] + norms[10]) / 2, rel=1e-5)
        assert found["largest_gradient_norm"] == pytest.approx(max(norms[0], norms[10]), rel=1e-5)
        assert found["skipped_steps"] == 0


def norm2(weight: torch.Tensor) -> float:
    """The squared norm of a weight's gradient."""
    assert weight.grad is not None
    return weight.grad.double().square().sum().item()


def test_a_large_beta_collapses_the_posterior(digits: data.Data) -> None:
    """beta = 100 drives every dimension to the prior, which is warned of; beta = 1 does not."""
    settings = {"likelihood": "gaussian", "latent_dim": 4, "batch_size": 64, "lr": 5e-3}
    collapsed, fine = (fit(SMALL.replace(beta=beta, **settings), digits) for beta in (100.0, 1.0))
    assert metrics.trouble(collapsed, 4) == [COLLAPSE.format(0, 4)]
    assert collapsed[-1]["test_kl"] < 0.01 < fine[-1]["test_kl"]
    assert metrics.trouble(fine, 4) == []


def test_forty_images_are_learnt_by_heart(digits: data.Data) -> None:
    """Trained for long on few images, the test ELBO falls while the train ELBO rises, which is called over-fitting."""
    few = dataclasses.replace(digits, train=digits.train[:40])
    long = SMALL.replace(likelihood="gaussian", hidden=(64,), latent_dim=8, lr=1e-2, epochs=150)
    past = fit(long, few)
    (line,) = metrics.trouble(past, 8)
    assert line.startswith(f"over-fitting: test ELBO {past[-1]['test_elbo']:.2f}, and ")
    assert f"at epoch {state.best(past)['epoch']}, while" in line
    assert 10 < state.best(past)["epoch"] < 150


def test_a_learning_rate_that_is_too_high_lets_the_elbo_fall(digits: data.Data) -> None:
    """At --lr 1 the ELBO of training and test images falls, which is not called over-fitting."""
    past = fit(SMALL.replace(lr=1.0, batch_size=32, epochs=10), digits)
    found = [line for i in range(len(past)) for line in metrics.trouble(past[: i + 1], 2)]
    assert any(line.startswith("the ELBO falls: ") for line in found)
    assert not any(line.startswith("over-fitting") for line in found)


def poison(monkeypatch: pytest.MonkeyPatch, steps: range | set[int], value: float = math.nan) -> None:
    """Let one pixel of these batches, counted from 0, be no number."""
    real, calls = pixels.binarise, iter(range(10**9))

    def binarise(grey: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = real(grey, generator)
        if next(calls) in steps:
            x[-1, 0, 3, 3] = value
        return x

    monkeypatch.setattr(pixels, "binarise", binarise)


@pytest.mark.parametrize("step", [5, 10])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, {"samples": 3}, {"precision": "bfloat16"}, {"activation": "gated"}], ids=str)
def test_a_step_that_is_not_finite_is_skipped(
    digits: data.Data, monkeypatch: pytest.MonkeyPatch, step: int, value: float, settings: dict[str, Any]
) -> None:
    """No number in one batch of 16: the training ends as one that left that step out, bit for bit, and counts it."""
    config = SMALL.replace(batch_size=100, **settings)
    left_out, skipping = begin(config, digits), begin(config, digits)
    for i, batch in enumerate(left_out.batches()):
        if i == step:  # its random numbers are drawn, and the schedule moves on
            loop.batch(left_out, digits.train[batch])
            left_out.schedule.step()
            left_out.progress.step += 1
        else:
            loop.step(left_out, digits.train[batch])
    poison(monkeypatch, {step}, value)
    for batch in skipping.batches():
        loop.step(skipping, digits.train[batch])
    expected, found = (training.state()[0] for training in (left_out, skipping))
    different = {name for name in expected if not torch.equal(expected[name], found[name])}
    assert {name.split(".")[0] for name in expected} > {"vae", "optimizer", "generator"}
    assert {name.split(".")[0] for name in different}.isdisjoint({"vae", "optimizer", "generator"})
    assert left_out.schedule.get_last_lr() == skipping.schedule.get_last_lr()
    for training in (left_out, skipping):
        training.progress.seconds = 1.0
    a, b = (metrics.measure(training, digits.train[:9], digits.test[:9]) for training in (left_out, skipping))
    assert (a["skipped_steps"], b["skipped_steps"]) == (0, 1)
    for name in ("gradient_norm", "largest_gradient_norm"):
        assert a[name] == b[name] > 0
    (line,) = (line for line in metrics.trouble([b], 2) if "skipped" in line)
    assert line.startswith("steps skipped: 1,")


def test_a_gradient_that_jumps_is_cut_to_ten_times_the_usual_one(
    digits: data.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thirteenth gradient a million times as long: ten times the usual length is left of it."""
    real = objectives.backward

    def lengthened(factor: float) -> tuple[list[float], torch.Tensor]:
        """The norms of vectors' gradients up to that step, and Adam's mean of gradients after it."""
        training, norms = begin(SMALL.replace(batch_size=100), digits), []

        def backward(*args: Any) -> None:
            real(*args)
            longer = factor if len(norms) == 12 else 1.0
            for weight in training.weights:
                assert weight.grad is not None
                weight.grad *= longer
            norms.append(math.sqrt(sum(norm2(weight) for weight in training.weights if weight.ndim < 2)))

        monkeypatch.setattr(objectives, "backward", backward)
        for batch in training.batches()[:13]:
            loop.step(training, digits.train[batch])
        return norms, torch.cat([state["exp_avg"].flatten() for state in training.optimizer.state.values()])

    norms, plain = lengthened(1.0)
    (_, twice), (_, thrice), (_, longer), (_, longest) = (lengthened(factor) for factor in (2.0, 3.0, 1e3, 1e6))
    usual = norms[0]
    for norm in norms[1:12]:
        usual = 0.99 * usual + 0.01 * norm
    once = twice - plain  # what the gradient itself brings to the mean
    torch.testing.assert_close(thrice, plain + 2 * once, rtol=1e-4, atol=1e-6)  # long, but not ten times
    torch.testing.assert_close(longest, plain + (10 * usual / norms[12] - 1) * once, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(longest, longer, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_without_the_usual_gradient_goes_on(digits: data.Data) -> None:
    """Those of earlier releases have none; what is usual is then measured from there on."""
    training = begin(SMALL, digits)
    loop.step(training, digits.train[:9])
    tensors, rest = training.state()
    del tensors["usual"]
    later = begin(SMALL, digits)
    later.restore(tensors, rest)
    assert later.progress.step == 1
    assert later.usual == 0
    loop.step(later, digits.train[:9])
    assert later.usual > 0


def command_line(out: Path, batch_size: int, epochs: int = 2) -> list[object]:
    """A training of the digits."""
    words = f"--dataset digits --hidden 16 --latent-dim 2 --device cpu --batch-size {batch_size} --epochs {epochs}"
    return [*words.split(), "--out", out]


STEPS = -(-1576 // 16)  # an epoch of batches of 16 digits


@pytest.mark.parametrize("start", [STEPS, 2 * STEPS - 25], ids=["at the epoch's start", "at its end"])
def test_many_skipped_steps_end_a_training_that_can_go_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    """One line and exit code 2; from the checkpoint that is left, --resume ends as a training without trouble."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)  # pictures are not looked at here
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert command(main, *command_line(whole, 16)).code == 0
    with monkeypatch.context() as poisoned:
        poison(poisoned, range(start, 10**9))
        stopped = command(main, *command_line(run, 16))
    assert stopped.code == 2
    assert stopped.err.splitlines()[-1] == (
        "vae-train: error: training diverged: 20 steps in a row without a finite gradient, epoch 2; "
        "choose a lower --lr or --precision float32"
    )
    assert len(list((run / "checkpoints").iterdir())) == 1
    resumed = command(main, "--resume", run, "--device", "cpu")
    assert resumed.code == 0, resumed.err
    for name in ("model.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_short_training_that_takes_no_step_is_noticed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps, none possible: one line, and no run that looks finished."""
    poison(monkeypatch, range(10**9))
    result = command(main, *command_line(tmp_path / "run", 400, epochs=1))
    assert result.code == 2
    assert "training diverged: 4 steps in a row without a finite gradient, epoch 1; choose" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [STEPS, STEPS + 5], ids=["a tenth step", "another"])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Where the pass itself was fine: skipped where it is looked at, else the training ends, and --resume works."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    run, real, calls = tmp_path / "run", TrainingState.step, iter(range(10**9))

    def poisoned(training: TrainingState, *given: Any) -> None:
        if next(calls) == step:
            training.weights[0].grad[0, 0] = math.nan  # type: ignore[index]
        real(training, *given)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "step", poisoned)
        patched.setattr(checkpoints, "SAVE_EVERY", 0.0)
        result = command(main, *command_line(run, 16))
    if step == STEPS:
        assert result.code == 0, result.err
        assert "steps skipped: 1," in result.err
    else:
        assert result.code == 2
        assert re.search(r"^vae-train: error: training diverged: [^\n;]+; choose a lower --lr.*\n\Z", result.err, re.M)
        for path in (run / "checkpoints").iterdir():
            assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(path).values())
        assert command(main, "--resume", run, "--device", "cpu").code == 0
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 2
    assert all(math.isfinite(value) for value in last.values())


def test_fewer_skipped_steps_are_warned_of(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """19 in a row do not end a training; the epoch's figures count them, and a warning says so."""
    assert loop.MOST_SKIPPED == 20
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    poison(monkeypatch, range(19))
    result = command(main, *command_line(tmp_path / "run", 16, epochs=1))
    assert result.code == 0, result.err
    warning = "vae-train: warning: steps skipped: 19, which were not finite; a lower --lr may help"
    assert warning in result.err.splitlines()
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["skipped_steps"] == 19


def test_a_measured_figure_that_is_not_finite_ends_the_training(digits: data.Data, tmp_path: Path) -> None:
    """Weights so large that the ELBO overflows, while gradients were finite: the error names --lr."""
    config = SMALL.replace(lr=1e30, batch_size=2000, epochs=1)
    with pytest.raises(ArgumentError, match="training diverged: epoch 1; choose a lower --lr"):
        train.train(config, tmp_path / "run", Place(tmp_path, download=False, device="cpu"), "vae-train")
    assert not (tmp_path / "run").exists()
