"""A training that is stopped, killed or damaged goes on from its checkpoint, bit for bit."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vae_train import loop, metrics, results
from vae_train.cli import main

Command = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["--hidden", "24", "--latent-dim", "3", "--batch-size", "16", "--seed", "4"]
HERE = ["--device", "cpu", "--threads", "1", "--no-download"]  # one thread: a busy machine slows more of them down
SETTINGS = [*SMALL, "--epochs", "3", *HERE]

# What every child of a killer does: train, or go on, in a process that has imported everything beforehand.
CHILD = """
import glob, os, random, shutil, signal, sys, time
import numpy, safetensors.torch, sklearn.manifold, torch, torchvision
from matplotlib.figure import Figure
from vae_train import checkpoints, run_folder, report, results, train
from vae_train.cli import main
def start(out, data, settings, prepare=lambda: None):
    resumed = os.path.isdir(os.path.join(out, "checkpoints"))
    pid = os.fork()
    if pid == 0:
        prepare()
        common = ["--data-root", data, "--no-download", "--device", "cpu", "--threads", "1"]
        sys.argv = ["vae-train", *(["--resume", out, *common] if resumed else ["--out", out, *common, *settings])]
        main()
    return pid
def finish(pid, out):
    status = os.waitpid(pid, 0)[1]
    best = os.path.join(out, "best.safetensors")
    if os.path.exists(best):  # whole at any moment
        assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(best).values())
    if status and os.path.isdir(out) and not glob.glob(os.path.join(out, "checkpoints", "[0-9]*")):
        shutil.rmtree(out)  # killed before the first checkpoint: begin again
    return status
"""

# Trains in children that are killed with SIGKILL at random moments, each going on where the last one was, until one
# ends by itself. The parent has imported everything, so that most of a child's life is training and saving.
KILLER = (
    CHILD
    + """
kills, out, data, *settings = sys.argv[1:]
checkpoints.SAVE_EVERY = 0.01
delays, killed = random.Random(0), 0
def finished():
    return os.path.exists(os.path.join(out, "evaluation.json")) and not os.path.isdir(os.path.join(out, "checkpoints"))
while True:
    pid = start(out, data, settings)
    if killed < int(kills):
        time.sleep(delays.uniform(0.02, 0.5))
        if not finished():
            os.kill(pid, signal.SIGKILL)
    status = finish(pid, out)
    if os.WIFSIGNALED(status):
        killed += 1
    elif killed < int(kills) and not status:  # finished before it was killed often enough: keep it, and begin again
        os.rename(out, f"{out}-{killed}-{pid}")
    else:
        print(killed)
        sys.exit(os.waitstatus_to_exitcode(status))
"""
)

# Trains once for each of POINTS, in a child that kills itself there, and in another that goes on to the end.
POINTS = {
    "a checkpoint, whose epoch's best weights are written": ("checkpoints.save", 2),
    "the best weights, written but not in their place": ("best.safetensors", 2),
    "a checkpoint, written but not in its place": ("checkpoints/", 2),
    "the metrics": ("metrics.jsonl", 2),
    "the last weights": ("model.safetensors", 1),
    "the figures of the best": ("best.json", 1),
    "the figures of the last": ("evaluation.json", 1),
    "the report": ("report.draw", 1),
    "the removal of the checkpoints": ("checkpoints.remove", 1),
}
SUICIDE = (
    CHILD
    + """
from pathlib import Path
out, data, points, *settings = sys.argv[1:]
report.draw = lambda *given: None  # the pictures take most of the time, and follow from the weights
for number, (point, times) in enumerate(eval(points)):
    where, left = os.path.join(out, str(number)), [times]
    def die():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def prepare():
        if "." in point and hasattr(globals().get(point.split(".")[0]), point.split(".")[1]):
            module, name = globals()[point.split(".")[0]], point.split(".")[1]
            real = getattr(module, name)
            setattr(module, name, lambda *given: (die(), real(*given))[1])
        else:
            real = Path.replace
            Path.replace = lambda path, target: (point in str(target) and die(), real(path, target))[1]
    killed = finish(start(where, data, settings, prepare), where)
    assert os.WIFSIGNALED(killed), point
    assert os.path.isdir(os.path.join(where, "checkpoints")), point
    assert finish(start(where, data, settings), where) == 0, point
"""
)


def train(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "vae_train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(run: Path, pictures: bool) -> dict[str, Any]:
    """All that a finished run holds, with or without pictures, but for what depends on the clock."""
    files = (path for path in run.iterdir() if path.is_file() and (pictures or path.suffix not in (".png", ".html")))
    found: dict[str, Any] = {path.name: path.read_bytes() for path in files}
    rows = [json.loads(line) for line in found.pop("metrics.jsonl").splitlines()]
    found["metrics"] = [
        {k: v for k, v in row.items() if k not in ("seconds", "observations_per_second")} for row in rows
    ]
    for name in ("config.json", "report.html", "curves.png"):
        found[name] = len(found.get(name, "")) > 0
    return found


def assert_same(run: Path, other: Path, pictures: bool = True) -> None:
    """Both runs ended with the same files: weights, the best epoch's, figures and pictures to the last bit."""
    ours, theirs = content(run, pictures), content(other, pictures)
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []
    assert not (run / "checkpoints").exists()


@pytest.fixture(scope="module")
def uninterrupted(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SETTINGS from beginning to end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = train("--out", out, "--data-root", digits_root, *SETTINGS)
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def stopped(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped by SIGTERM in the middle."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    process = train("--out", out, "--data-root", digits_root, *SETTINGS)
    while not list(out.glob("checkpoints/*.safetensors")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143, err
    going_on = shlex.join(
        ["vae-train", "--resume", str(out), "--data-root", str(digits_root), "--device", "cpu", "--threads", "1"]
    )
    assert err.endswith(f"vae-train: terminated: training stopped, its state saved: {out}; go on with: {going_on}\n")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 200])
def test_a_killed_training_ends_with_the_same_weights(
    uninterrupted: Path, digits_root: Path, tmp_path: Path, kills: int
) -> None:
    """Killed at random moments, some inside a save, and resumed each time, a run ends as if nothing had happened."""
    command = [sys.executable, "-c", KILLER, str(kills), str(tmp_path / "run"), str(digits_root), *SETTINGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == kills
    for run in tmp_path.iterdir():
        assert_same(run, uninterrupted)


@pytest.mark.slow
def test_killed_at_the_worst_moments_a_training_ends_the_same(
    uninterrupted: Path, digits_root: Path, tmp_path: Path
) -> None:
    """Before and between the files that belong together: best weights, checkpoint, metrics, figures, report."""
    words = [str(tmp_path), str(digits_root), repr(list(POINTS.values())), *SETTINGS]
    done = subprocess.run([sys.executable, "-c", SUICIDE, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    runs = list(tmp_path.iterdir())
    assert len(runs) == len(POINTS)
    for run in runs:
        assert_same(run, uninterrupted, pictures=False)


def test_a_stopped_training_goes_on(stopped: Path, uninterrupted: Path, digits_root: Path, tmp_path: Path) -> None:
    """SIGTERM finishes the step, saves and leaves with 143; `--resume` ends with the uninterrupted run's weights."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    done = train("--resume", run, "--data-root", digits_root, *HERE)
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    assert "going on at epoch" in err
    assert_same(run, uninterrupted)


# Small networks of every kind on scikit-learn's digits, 25 steps an epoch.
DIGITS = "--dataset digits --latent-dim 3 --batch-size 64 --seed 7 --device cpu --no-download"
KINDS = {
    "resnet, bfloat16": "--preset resnet --hidden 4,4 --dense 8 --precision bfloat16",
    "gated, importance-weighted": "--preset gated --hidden 16,16 --samples 3 --gradient path",
    "Gaussian, warm-up, free bits": "--hidden 16 --likelihood gaussian --warm-up 1.5 --free-bits 0.05",
    "discretised logistic, total gradient": "--preset deep --hidden 16 --likelihood discretised-logistic "
    "--gradient total",
}
MOMENTS = {"the first step": 1, "the end of an epoch": 25, "the middle of an epoch": 37, "the last step": 50}


def interrupted(
    command: Command, monkeypatch: pytest.MonkeyPatch, step: int, *words: object, number: int = signal.SIGTERM
) -> str:
    """Train, with a signal in this step, counted from 1; what is printed about it."""
    real, calls = loop.step, iter(range(1, 10**9))

    def counted(*given: Any) -> Any:
        if next(calls) == step:
            os.kill(os.getpid(), number)
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "step", counted)
        result = command(main, *words)
    assert result.code == 128 + number, result.err
    err: str = result.err
    return err


def assert_resumes_the_same(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    settings: str,
    step: int,
    *trust: str,
    number: int = signal.SIGTERM,
) -> None:
    """Stopped in a step and resumed, a training of two epochs ends as one that was not."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)  # pictures follow from the weights
    words = [*DIGITS.split(), *settings.split(), *trust, "--epochs", 2]
    whole, run = folder / "whole", folder / "run"
    assert command(main, *words, "--out", whole).code == 0
    err = interrupted(command, monkeypatch, step, *words, "--out", run, number=number)
    going_on = shlex.join(["vae-train", "--resume", str(run), *trust, "--device", "cpu"])
    assert err.endswith(f"training stopped, its state saved: {run}; go on with: {going_on}\n")
    assert not (run / "evaluation.json").exists()
    result = command(main, "--resume", run, "--device", "cpu", *trust)
    assert result.code == 0, result.err
    assert f"going on at epoch {(step - 1) // 25 + 1}, step {(step - 1) % 25 + 1}, on cpu, 1 thread" in result.err
    assert_same(run, whole)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_training_resumes_bit_for_bit(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: str
) -> None:
    """SIGTERM in the middle of an epoch: weights, best weights and figures are those of a training without it."""
    assert_resumes_the_same(command, monkeypatch, tmp_path, settings, MOMENTS["the middle of an epoch"])


DROPPING = """
from torch import nn
from vae_train import mlp

def networks(image_shape, latent_dim, out):
    encoder = mlp.Encoder(image_shape, (16,), latent_dim, "relu")
    encoder.body.append(nn.Dropout(0.5))
    return encoder, mlp.Decoder(image_shape, (16,), latent_dim, "relu", out)
"""


def test_dropout_resumes_bit_for_bit(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a person's own layers draw from PyTorch's own generator goes on where it was, too."""
    (tmp_path / "dropping_networks.py").write_text(DROPPING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    trust = ("--model", "dropping_networks:networks")
    step = MOMENTS["the middle of an epoch"]
    assert_resumes_the_same(command, monkeypatch, tmp_path, "--no-export-check", step, *trust)


@pytest.mark.parametrize("step", MOMENTS.values(), ids=MOMENTS.keys())
def test_a_training_resumes_from_any_step(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int
) -> None:
    """SIGTERM in the first step, in an epoch's last, in the very last: nothing is done twice or left out."""
    assert_resumes_the_same(command, monkeypatch, tmp_path, KINDS["Gaussian, warm-up, free bits"], step)


def test_ctrl_c_amid_an_epoch_finishes_the_step(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SIGINT finishes the step, saves and leaves with 130; `--resume` ends as a training without it."""
    step = MOMENTS["the middle of an epoch"]
    assert_resumes_the_same(command, monkeypatch, tmp_path, "--hidden 16", step, number=signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_report_that_is_interrupted_is_drawn_by_resume(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """A signal amid the pictures, after the training: the error names --resume, which has only them left to do."""
    run, small = tmp_path / "run", ("--hidden", 4, "--latent-dim", 2, "--epochs", 2, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(results.report, "draw", lambda *given: signal.raise_signal(number))
        stopped = command(main, "--dataset", "digits", *small, "--out", run)
    assert stopped.code == code
    line = f"training stopped, its state saved: {run}; go on with: vae-train --resume {run} --device cpu"
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert stopped.err.splitlines()[-1] == f"vae-train: {word}: {line}"
    weights = (run / "model.safetensors").read_bytes()
    resumed = command(main, "--resume", run, "--device", "cpu")
    assert resumed.code == 0, resumed.err
    assert "epoch" not in resumed.out.splitlines()[0]
    assert (run / "report.html").exists()
    assert (run / "model.safetensors").read_bytes() == weights


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_amid_the_last_measurement_is_heeded(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    """After the last step, before the figures: the state is saved, and --resume goes on to them."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    words = [*DIGITS.split(), "--hidden", 8, "--epochs", 2]
    real = metrics.measure

    def measure(*given: Any) -> Any:
        if given[0].progress.epoch == 2:
            os.kill(os.getpid(), number)
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(metrics, "measure", measure)
        result = command(main, *words, "--out", tmp_path / "run")
    assert result.code == 128 + number, result.err
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert command(main, "--resume", tmp_path / "run", "--device", "cpu").code == 0
    assert command(main, *words, "--out", tmp_path / "whole").code == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def own(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An array of images, and a training of it that was stopped, in the folder `run`."""
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8))
    words = ("--dataset", path, "--hidden", 8, "--latent-dim", 2, "--batch-size", 16, "--device", "cpu")
    interrupted(command, monkeypatch, 15, *words, "--out", tmp_path / "run")
    return path


@pytest.mark.parametrize("change", ["one level", "one image more", "another order", "gone"])
def test_images_that_have_changed_are_refused(command: Command, own: Path, tmp_path: Path, change: str) -> None:
    """A run goes on with the images that it began with, or not at all: exit code 4, one line that names them."""
    images = np.load(own)
    if change == "one level":
        images[70, 0, 3, 3] ^= 1
    elif change == "one image more":
        images = np.concatenate([images, 255 - images[:1]])
    np.save(own, images[::-1] if change == "another order" else images)
    if change == "gone":
        own.unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    result = command(main, "--resume", tmp_path / "run", "--device", "cpu")
    assert (result.code, result.out) == (4, "")
    what = "data not found" if change == "gone" else "images are not the run's"
    assert re.fullmatch(rf"vae-train: error: {what}: {own}; [^\n]+\n", result.err), result.err
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before


def test_named_images_that_have_changed_are_refused(
    command: Command, stopped: Path, digits_root: Path, tmp_path: Path
) -> None:
    """Other files under --data-root, of the same shape and number: exit code 4, and the folder is named."""
    run, root = Path(shutil.copytree(stopped, tmp_path / "run")), shutil.copytree(digits_root, tmp_path / "other")
    images = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    raw = images.read_bytes()
    images.write_bytes(raw[:16] + raw[:15:-1])  # upside down, behind the same header
    result = command(main, "--resume", run, "--data-root", root, "--device", "cpu")
    assert (result.code, result.out) == (4, "")
    assert result.err == (
        f"vae-train: error: images are not the run's: {root}; name the --data-root that the run was trained on\n"
    )


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    stopped: Path,
    uninterrupted: Path,
    digits_root: Path,
    tmp_path: Path,
) -> None:
    """One flipped bit in the newest checkpoint: a warning that names it, and the same weights in the end."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    _, newest = sorted((run / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    monkeypatch.setattr(results.report, "draw", lambda *given: None)  # pictures follow from the weights
    result = command(main, "--resume", run, "--data-root", digits_root, *HERE)
    assert result.code == 0, result.err
    warning = f"checkpoint damaged (its sha256 differs): {newest}; using the one before it"
    assert result.err.splitlines()[0] == f"vae-train: warning: {warning}"
    assert_same(run, uninterrupted, pictures=False)


@pytest.mark.parametrize("damage", ["all damaged", "none", "other network", "no network"])
def test_what_cannot_be_resumed_is_refused(
    command: Command, stopped: Path, digits_root: Path, tmp_path: Path, damage: str
) -> None:
    """Without a usable checkpoint `--resume` ends in exit code 3 and one line, and the run stays as it was."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in (run / "checkpoints").iterdir():
        if damage == "none":
            path.unlink()
        elif damage == "all damaged":
            path.write_bytes(path.read_bytes()[:-1])
    if "network" in damage:
        settings = json.loads((run / "config.json").read_text())
        change = {"hidden": [25]} if damage == "other network" else {"activation": "tanh"}
        settings["config"]["network"] |= change
        (run / "config.json").write_text(json.dumps(settings))
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    result = command(main, "--resume", run, "--data-root", digits_root, "--device", "cpu")
    assert (result.code, result.out) == (3, "")
    assert len([line for line in result.err.splitlines() if line.startswith("vae-train: error: ")]) == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.slow
def test_a_second_trainer_is_refused(command: Command, digits_root: Path, tmp_path: Path) -> None:
    """While one process trains in a run folder, another that resumes it ends in exit code 2, and the first goes on."""
    run = tmp_path / "run"
    first = train("--out", run, "--data-root", digits_root, *SMALL, "--epochs", 1000, *HERE)
    while not list(run.glob("checkpoints/*.safetensors")):
        assert first.poll() is None
        time.sleep(0.005)
    result = command(main, "--resume", run, "--data-root", digits_root, "--device", "cpu")
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=600)
    assert first.returncode == 143
    assert result.code == 2
    assert result.err == (
        f"vae-train: error: another training is at work in the run: {run}; let it finish, or end it\n"
    )


def test_a_finished_run_is_not_resumed(command: Command, uninterrupted: Path, digits_root: Path) -> None:
    """`--resume` of a finished run is exit code 2."""
    result = command(main, "--resume", uninterrupted, "--data-root", digits_root)
    assert result.code == 2
    assert result.err == f"vae-train: error: run is finished: {uninterrupted}; train anew with another --out\n"


LITTLE = (
    "import resource, signal; from vae_train.cli import main;"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
    "main()"
)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_last_checkpoint(
    uninterrupted: Path, stopped: Path, digits_root: Path, tmp_path: Path, begun: bool
) -> None:
    """Where a checkpoint does not fit: exit code 5, no file half written, and --resume from the last good one."""
    run = tmp_path / "run"
    words = ["--out", str(run), *SETTINGS]
    if begun:
        shutil.copytree(stopped, run)
        words = ["--resume", str(run), *HERE]
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    command = [sys.executable, "-c", LITTLE, *words, "--data-root", str(digits_root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 5, done.stderr
    assert "disk full" in done.stderr
    assert run.exists() is begun
    if begun:
        assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before
        assert not list(run.rglob(".*"))
        _, err = (again := train("--resume", run, "--data-root", digits_root, *HERE)).communicate(timeout=600)
        assert again.returncode == 0, err
        assert_same(run, uninterrupted)


def test_what_differs_since_the_beginning_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch, stopped: Path, digits_root: Path, tmp_path: Path
) -> None:
    """Another number of threads is warned of; a run of a GPU is not gone on with on a CPU."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    words = ("--resume", run, "--data-root", digits_root, "--device", "cpu")
    settings = json.loads((run / "config.json").read_text())
    settings["provenance"]["device"] = "cuda"
    (run / "config.json").write_text(json.dumps(settings))
    result = command(main, *words)
    assert (result.code, result.out) == (2, "")
    assert result.err == "vae-train: error: run was begun on another device: cuda; resume it with --device cuda\n"
    shutil.copy(stopped / "config.json", run)
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    result = command(main, *words, "--threads", 2)
    assert result.code == 0, result.err
    assert result.err.splitlines()[0] == (
        "vae-train: warning: weights will not be those of an unbroken training to the last bit: threads 2, not 1"
    )


def test_a_best_epoch_that_is_damaged_does_not_cost_the_run(
    command: Command, monkeypatch: pytest.MonkeyPatch, stopped: Path, digits_root: Path, tmp_path: Path
) -> None:
    """Where its weights cannot be read at the end, a warning names them, and the last ones take their place."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    real = results.finish

    def finish(out: Path, *given: Any) -> None:
        (out / "best.safetensors").write_bytes(b"damaged")
        real(out, *given)

    monkeypatch.setattr(results, "finish", finish)
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    result = command(main, "--resume", run, "--data-root", digits_root, *HERE)
    assert result.code == 0, result.err
    assert f"vae-train: warning: run cannot be read: {run / 'best.safetensors'} (" in result.err
    assert (run / "best.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


TIED = """
import torch
from torch import nn
from vae_train import mlp

class Decoder(nn.Module):
    def __init__(self, first, weight, shape):
        super().__init__()
        self.first, self.weight, self.shape = first, weight, shape

    def forward(self, z):
        return (torch.relu(self.first(z)) @ self.weight).unflatten(1, self.shape)

def networks(image_shape, latent_dim, out):
    encoder = mlp.Encoder(image_shape, (16,), latent_dim, "relu")
    return encoder, Decoder(nn.Linear(latent_dim, 16), encoder.body[1][0].weight, (out, *image_shape[1:]))
"""


@pytest.mark.slow
def test_tied_weights_are_kept_and_resume_bit_for_bit(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A weight that a person's encoder and decoder share goes into every file, though safetensors knows no sharing."""
    (tmp_path / "tied_networks.py").write_text(TIED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    trust = ("--model", "tied_networks:networks")
    assert_resumes_the_same(command, monkeypatch, tmp_path, "", MOMENTS["the middle of an epoch"], *trust)


@pytest.mark.slow
def test_a_terminal_shows_what_happens(tmp_path: Path) -> None:
    """Epoch, images a second, time left and the split of the ELBO on one line of 80 columns; in a pipe nothing."""
    import fcntl
    import pty
    import struct
    import termios

    words = ["--dataset", "digits", "--hidden", "8", "--batch-size", "8", "--epochs", "4", *HERE]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "vae_train", *words, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 65536)
        except OSError:  # closed at the other end
            break
    assert process.wait(60) == 0
    lines = re.split(r"[\r\n]+", said.decode())
    shown = [
        re.fullmatch(r"epoch (\d)/4 \|.*\| *[\d.]+k? images/s, \d\d:\d\d left, ELBO (\S+) = (\S+) - (\S+) *", line)
        for line in lines
    ]
    found = [match.groups() for match in shown if match]
    assert {int(epoch) for epoch, *_ in found} >= {1, 2}
    for _, elbo, reconstruction, kl in found:
        assert float(elbo) == pytest.approx(float(reconstruction) - float(kl), abs=0.11)
    assert max(len(line) for line in lines if line.startswith("epoch") and "|" in line) <= 80


def test_a_run_whose_checkpoints_went_but_not_their_folder_is_finished(
    command: Command, uninterrupted: Path, digits_root: Path, tmp_path: Path
) -> None:
    """A training killed while it removes its checkpoints, at the very end, may leave their folder empty."""
    run = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    (run / "checkpoints").mkdir()
    result = command(main, "--resume", run, "--data-root", digits_root)
    assert result.code == 2
    assert result.err == f"vae-train: error: run is finished: {run}; train anew with another --out\n"


def test_a_stopped_run_is_told_to_go_on(
    command: Command, uninterrupted: Path, digits_root: Path, tmp_path: Path
) -> None:
    """What needs a finished run names the command that finishes it, as a shell takes it."""
    run = Path(shutil.copytree(uninterrupted, tmp_path / "my run"))
    (run / "evaluation.json").unlink()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "000001-000000000-0.safetensors").touch()
    result = command(main, "evaluate", run, "--data-root", digits_root)
    assert result.code == 3
    said, command_line = result.err.split("; go on with: ")
    assert said == f"vae-train: error: run not finished: {run}"
    assert shlex.split(command_line) == ["vae-train", "--resume", str(run)]
