"""The command vae-train: what it writes and prints, its exit codes, and what it does without its extra."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from vae_train.cli import main

Command = Callable[..., Any]


def assert_one_line(err: str) -> None:
    """Stderr is exactly one error line that ends in advice."""
    assert re.fullmatch(r"vae-train: error: [^\n;]+; [^\n]+\n", err), err


def test_one_epoch_writes_a_run(command: Command, digits_root: Path, tmp_path: Path) -> None:
    """The command trains, prints its figures in nats and leaves a run that knows the command line."""
    out = tmp_path / "runs" / "first"
    result = command(
        main,
        *("--epochs", 1, "--hidden", "16,8", "--latent-dim", 2, "--seed", 5, "--device", "cpu"),
        *("--out", out, "--data-root", digits_root, "--no-download"),
    )
    assert result.code == 0, result.err
    settings = json.loads((out / "config.json").read_text())
    assert settings["config"]["hidden"] == [16, 8]
    assert (settings["config"]["epochs"], settings["config"]["latent_dim"], settings["config"]["seed"]) == (1, 2, 5)
    assert "--latent-dim 2" in settings["provenance"]["command"]
    elbo = json.loads((out / "evaluation.json").read_text())["figures"]["elbo"]
    assert f"test ELBO {elbo['mean']:.2f} +- {elbo['standard_error']:.2f} nats" in result.out
    assert str(out) in result.out.splitlines()[-1]


def test_evaluate_adds_the_bound_to_the_run(
    command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path
) -> None:
    """`evaluate RUN -K 10` prints the bound with its standard error and keeps it beside the older figures."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = json.loads((run / "evaluation.json").read_text())
    result = command(main, "evaluate", run, "-K", 10, "--data-root", digits_root, "--no-download", "--device", "cpu")
    assert result.code == 0, result.err
    after = json.loads((run / "evaluation.json").read_text())
    bound = after["figures"].pop("log_likelihood_10")
    assert after == before
    assert bound["num_samples"] == 10
    assert math.isfinite(bound["standard_error"])
    assert bound["mean"] > before["figures"]["elbo"]["mean"]
    assert re.search(rf"K = 10\) +{bound['mean']:.2f} \+- {bound['standard_error']:.2f}$", result.out, re.MULTILINE)
    again = command(main, "evaluate", run, "-K", 10, "--data-root", digits_root, "--no-download", "--device", "cpu")
    assert (again.code, again.out) == (0, result.out)


@pytest.mark.parametrize(
    ("code", "names", "arguments"),
    [
        (2, "imagenet", "--dataset imagenet"),
        (2, "tiny", "--preset tiny"),
        (2, "--epochs", "--epochs 0"),
        (2, "--batch-size", "--batch-size -3"),
        (2, "--lr", "--lr 0"),
        (2, "--latent-dim", "--latent-dim 0"),
        (2, "1,x", "--hidden 1,x"),
        (2, "0", "--hidden 0"),
        (2, "hidden", "--hidden ''"),
        (2, "--seed", "--seed -1"),
        (2, "--device", "--device tpu"),
        (2, "--surprise", "--surprise"),
        (2, "{full}", "--out {full} --data-root {digits}"),
        (4, "{empty}", "--out {out} --data-root {empty} --no-download"),
        (3, "{empty}", "evaluate {empty} --data-root {digits}"),
        (3, "{absent}", "evaluate {absent} --data-root {digits}"),
        (2, "--samples", "evaluate {absent} -K 0"),
        (2, "RUN", "evaluate"),
    ],
)
def test_errors_end_in_one_line(
    command: Command, digits_root: Path, tmp_path: Path, code: int, names: str, arguments: str
) -> None:
    """Every failure has its exit code, one line on stderr that names the culprit and gives advice, and no stdout."""
    places = {name: tmp_path / name for name in ("full", "empty", "absent", "out")} | {"digits": digits_root}
    places["full"].mkdir()
    (places["full"] / "precious.txt").write_text("kept")
    places["empty"].mkdir()
    words = [word.strip("'").format(**places) for word in arguments.split()]
    result = command(main, *words)
    assert result.code == code, result.err
    assert_one_line(result.err)
    assert names.format(**places) in result.err
    assert result.out == ""
    assert not places["out"].exists()
    assert [path.name for path in places["full"].iterdir()] == ["precious.txt"]


def test_missing_data_without_a_network(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where data is missing and its download fails: exit code 4, one line, no run folder."""
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    result = command(main, "--data-root", tmp_path / "data", "--out", tmp_path / "run")
    assert result.code == 4
    assert_one_line(result.err)
    assert str(tmp_path / "data" / "MNIST" / "raw") in result.err
    assert result.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_cuda_where_there_is_none(
    command: Command, digits_root: Path, tiny_run: Path, tmp_path: Path, verb: str
) -> None:
    """`--device cuda` without CUDA: exit code 6, one line, nothing written."""
    words = ["--out", tmp_path / "run"] if verb == "train" else ["evaluate", tiny_run]
    result = command(main, *words, "--device", "cuda", "--data-root", digits_root)
    assert result.code == 6
    assert_one_line(result.err)
    assert not (tmp_path / "run").exists()


def test_diverged_training_ends_in_one_line(command: Command, digits_root: Path, tmp_path: Path) -> None:
    """A learning rate that drives the weights to NaN ends in advice about --lr, not in a traceback."""
    result = command(
        main,
        *("--lr", "1e30", "--epochs", 1, "--hidden", 16, "--latent-dim", 2, "--device", "cpu"),
        *("--out", tmp_path / "run", "--data-root", digits_root, "--no-download"),
    )
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("vae-train: error: ")]
    assert len(errors) == 1
    assert "--lr" in errors[0]


def test_options_before_evaluate_are_refused(
    command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path
) -> None:
    """An option of training in front of `evaluate` is wrong usage, not silently ignored."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    words = ("evaluate", run, "-K", 1, "--data-root", digits_root, "--no-download", "--device", "cpu")
    result = command(main, "--epochs", 3, *words)
    assert result.code == 2
    assert_one_line(result.err)


def test_help_lists_every_option(command: Command) -> None:
    """`--help` names all options."""
    result = command(main, "--help")
    training = ["dataset", "preset", "epochs", "batch-size", "lr", "latent-dim", "hidden", "seed"]
    options = [*training, "device", "out", "data-root", "no-download"]
    assert result.code == 0
    assert [name for name in options if not re.search(rf"--{name}\b", result.out)] == []


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a fresh process."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_module_help_works() -> None:
    """`python -m vae_train --help` is `vae-train --help`."""
    result = python("-m", "vae_train", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--latent-dim" in result.stdout


@pytest.mark.parametrize(("code", "heavy"), [("main()", False), ("import vae_train.likelihoods; main()", True)])
def test_help_does_not_wait_for_torch(code: str, heavy: bool) -> None:
    """`--help` imports neither torch nor NumPy; the second case shows that the check would notice."""
    script = (
        "import atexit, sys; sys.argv = ['vae-train', '--help']; from vae_train.cli import main\n"
        "atexit.register(lambda: print([m for m in ('torch', 'numpy') if m in sys.modules], file=sys.stderr))\n" + code
    )
    result = python("-c", script)
    assert result.returncode == 0
    assert (result.stderr.strip() != "[]") is heavy


@pytest.mark.parametrize("words", [["--out", "run"], ["evaluate", "run"]])
def test_without_its_extra(tmp_path: Path, words: list[str]) -> None:
    """Where torch is not installed: exit code 6 and one line that names the pip install, nothing written."""
    site = tmp_path / "site"  # the base install: no torch in sight
    site.mkdir()
    for package in ("click", "vae_train", "vae_runtime"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        (site / package).symlink_to(next(iter(spec.submodule_search_locations)))
    script = f"import os, sys; os.chdir({str(tmp_path)!r}); sys.argv = ['vae-train', *{words!r}]\n"
    script += "from vae_train.cli import main; main()"
    result = python("-S", "-c", script, PYTHONPATH=str(site))
    assert result.returncode == 6
    assert_one_line(result.stderr)
    assert "torch" in result.stderr
    assert "pip install 'vae-edge[train]'" in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize(
    "words",
    [
        "--batch-size 750 --epochs 5 --latent-dim 2",  # 10 steps, where PyTorch's one-cycle schedule divides by zero
        "--batch-size 500 --epochs 1 --latent-dim 1",
    ],
)
def test_the_smallest_runs_work(command: Command, digits_root: Path, tmp_path: Path, words: str) -> None:
    """A run of exactly 10 steps, and one with a single latent dimension, work to the last picture."""
    where = ("--out", tmp_path / "run", "--data-root", digits_root, "--no-download", "--device", "cpu")
    result = command(main, *words.split(), "--hidden", 8, *where)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == f"{tmp_path / 'run'}: weights, metrics and pictures"
    assert math.isfinite(json.loads((tmp_path / "run" / "evaluation.json").read_text())["figures"]["elbo"]["mean"])
    assert len(list((tmp_path / "run").glob("*.png"))) >= 4


@pytest.mark.parametrize("words", ["--lr nan", f"--hidden {10**11}", f"--batch-size {10**23}"])
def test_absurd_settings_leave_no_run(command: Command, digits_root: Path, tmp_path: Path, words: str) -> None:
    """NaN and sizes beyond all memory are wrong usage: exit code 2, one line, no run folder."""
    result = command(main, *words.split(), "--out", tmp_path / "run", "--data-root", digits_root, "--no-download")
    assert (result.code, result.out) == (2, "")
    assert_one_line(result.err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_leaves_no_run(
    digits_root: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and SIGTERM during training: exit code 130 or 143, one error line, no run folder."""
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # where a shell ignores it
    script += "from vae_train.cli import main; main()"
    words = ["--epochs", "1000000", "--hidden", "8", "--device", "cpu", "--no-download"]
    words += ["--out", str(tmp_path / "run"), "--data-root", str(digits_root)]
    arguments = [sys.executable, "-c", script, *words]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert first.startswith("training on cpu")
    assert process.returncode == code
    assert_one_line(err)
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_other_images(command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path) -> None:
    """`evaluate` on test images that are not the run's: exit code 4, one line that names the folder, nothing kept."""
    run, root = shutil.copytree(tiny_run, tmp_path / "run"), shutil.copytree(digits_root, tmp_path / "other")
    images = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    raw = images.read_bytes()
    images.write_bytes(raw[:16] + raw[:15:-1])  # upside down, behind the same header
    before = (run / "evaluation.json").read_bytes()
    result = command(main, "evaluate", run, "-K", 1, "--data-root", root, "--no-download", "--device", "cpu")
    assert (result.code, result.out) == (4, "")
    assert_one_line(result.err)
    assert str(root) in result.err
    assert (run / "evaluation.json").read_bytes() == before
