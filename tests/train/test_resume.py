"""A training that is stopped, killed or damaged goes on from its checkpoint, bit for bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

SMALL = ["--hidden", "24", "--latent-dim", "3", "--batch-size", "16", "--seed", "4"]
SETTINGS = [*SMALL, "--epochs", "3", "--device", "cpu", "--no-download"]

# Trains in children that are killed with SIGKILL at random moments, each going on where the last one was, until one
# ends by itself. The parent has imported everything, so that most of a child's life is training and saving.
KILLER = """
import os, random, signal, sys, time
import numpy, safetensors.torch, sklearn.manifold, torch, torchvision
from matplotlib.figure import Figure
from vae_train import train
from vae_train.cli import main
kills, out, data, *settings = sys.argv[1:]
train.SAVE_EVERY = 0.01
delays, killed = random.Random(0), 0
def finished():
    return os.path.exists(os.path.join(out, "evaluation.json")) and not os.path.isdir(os.path.join(out, "checkpoints"))
while True:
    resumed = os.path.isdir(os.path.join(out, "checkpoints"))
    pid = os.fork()
    if pid == 0:
        common = ["--data-root", data, "--no-download", "--device", "cpu"]
        sys.argv = ["vae-train", *(["--resume", out, *common] if resumed else ["--out", out, *common, *settings])]
        main()
    if killed < int(kills):
        time.sleep(delays.uniform(0.02, 0.5))
        if not finished():
            os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not resumed and not os.path.isdir(os.path.join(out, "checkpoints")) and os.path.isdir(out) and status:
        import shutil
        shutil.rmtree(out)  # killed before the first checkpoint: begin again
    if os.WIFSIGNALED(status):
        killed += 1
    elif killed < int(kills) and not status:  # finished before it was killed often enough: keep it, and begin again
        os.rename(out, f"{out}-{killed}-{pid}")
    else:
        print(killed)
        sys.exit(os.waitstatus_to_exitcode(status))
"""


def train(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "vae_train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """A finished run's weights."""
    return safetensors.torch.load_file(run / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended with equal weights and equal test figures."""
    ours, theirs = weights(a), weights(b)
    figures = [json.loads((run / "evaluation.json").read_text())["figures"] for run in (a, b)]
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and figures[0] == figures[1]


@pytest.fixture(scope="module")
def uninterrupted(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SETTINGS from beginning to end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = train("--out", out, "--data-root", digits_root, *SETTINGS)
    _, err = done.communicate(timeout=120)
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
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert re.search(
        rf"vae-train: error: training stopped, its state saved: {out}; go on with: .*--resume {out}\n$", err
    )
    return out


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_training_ends_with_the_same_weights(
    uninterrupted: Path, digits_root: Path, tmp_path: Path, kills: int
) -> None:
    """Killed at random moments, some inside a save, and resumed each time, a run ends as if nothing had happened."""
    command = [sys.executable, "-c", KILLER, str(kills), str(tmp_path / "run"), str(digits_root), *SETTINGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == kills
    assert all(same(run, uninterrupted) for run in tmp_path.iterdir())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_stopped_training_goes_on(stopped: Path, uninterrupted: Path, digits_root: Path, tmp_path: Path) -> None:
    """SIGTERM finishes the step, saves and leaves with 143; `--resume` ends with the uninterrupted run's weights."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    done = train("--resume", run, "--data-root", digits_root, "--device", "cpu")
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert "going on at epoch" in err
    assert same(run, uninterrupted)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    stopped: Path, uninterrupted: Path, digits_root: Path, tmp_path: Path
) -> None:
    """One flipped bit in the newest checkpoint: a warning that names it, and the same weights in the end."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    _, newest = sorted((run / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    done = train("--resume", run, "--data-root", digits_root, "--device", "cpu")
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert f"checkpoint damaged (its sha256 differs): {newest}" in err
    assert same(run, uninterrupted)


@pytest.mark.parametrize("damage", ["all damaged", "none", "other network"])
def test_what_cannot_be_resumed_is_refused(stopped: Path, digits_root: Path, tmp_path: Path, damage: str) -> None:
    """Without a usable checkpoint `--resume` ends in exit code 3 and one line, and the run stays as it was."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in (run / "checkpoints").iterdir():
        if damage == "none":
            path.unlink()
        elif damage == "all damaged":
            path.write_bytes(path.read_bytes()[:-1])
    if damage == "other network":
        settings = json.loads((run / "config.json").read_text())
        settings["config"]["hidden"] = [25]
        (run / "config.json").write_text(json.dumps(settings))
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    done = train("--resume", run, "--data-root", digits_root, "--device", "cpu")
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (3, "")
    assert len([line for line in err.splitlines() if line.startswith("vae-train: error: ")]) == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_a_second_trainer_is_refused(stopped: Path, digits_root: Path, tmp_path: Path) -> None:
    """While one process trains in a run folder, another that resumes it ends in exit code 2."""
    import fcntl

    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    with (run / "config.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = train("--resume", run, "--data-root", digits_root, "--device", "cpu")
        _, err = done.communicate(timeout=60)
    assert done.returncode == 2
    assert err == (f"vae-train: error: another training is at work in the run: {run}; let it finish, or end it\n")


def test_a_finished_run_is_not_resumed(uninterrupted: Path, digits_root: Path) -> None:
    """`--resume` of a finished run is exit code 2; settings beside `--resume` are wrong usage."""
    done = train("--resume", uninterrupted, "--data-root", digits_root)
    assert "run is finished" in done.communicate(timeout=60)[1]
    assert done.returncode == 2
    done = train("--resume", uninterrupted, "--epochs", 9)
    assert "--resume goes without --epochs" in done.communicate(timeout=60)[1]
    assert done.returncode == 2


def test_a_full_disk_leaves_the_last_checkpoint(digits_root: Path, tmp_path: Path) -> None:
    """Where a checkpoint does not fit, the run ends in exit code 5 and no half-written file is left."""
    code = (
        "import resource, signal; from vae_train.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "main()"
    )
    command = [sys.executable, "-c", code, "--out", str(tmp_path / "run"), "--data-root", str(digits_root), *SETTINGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 5, done.stderr
    assert "disk full" in done.stderr
    assert not (tmp_path / "run").exists()
