"""`vae-export` without a run, and with what is none: the newest finished run, or a line on what was named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vae_export.cli import main
from vae_runtime.cli import main as vae_infer
from vae_train import run_folder
from vae_train.cli import main as vae_train

Command = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_three_commands_without_a_word_more(
    command: Command, digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder with the images at hand: train, export, sample."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_EDGE_DATA", str(digits_root))
    assert command(vae_train).code == 0
    exported = command(main, "--opset", 17)
    assert exported.code == 0, exported.err
    assert exported.err == "vae-export: exporting runs/mnist-tutorial, the newest finished run\n"
    assert exported.out.splitlines()[-1].startswith("published bundles/mnist-tutorial: opset 17")
    assert command(vae_infer, "sample", "-n", 16).code == 0
    assert Path("samples.png").exists()


def test_the_newest_is_the_one_that_was_finished_last(
    command: Command, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its weights, since figures may be measured again; one that was stopped is none."""
    monkeypatch.chdir(tmp_path)
    for seconds, name in ((30, "older"), (60, "newer"), (90, "stopped")):
        run = Path(shutil.copytree(tiny_run, tmp_path / "runs" / name))
        os.utime(run / run_folder.WEIGHTS, (seconds, seconds))
    os.utime(tmp_path / "runs" / "older" / run_folder.EVALUATION)
    (tmp_path / "runs" / "stopped" / "checkpoints").mkdir()
    (tmp_path / "runs" / "stopped" / "checkpoints" / "000001-000000001-0.safetensors").touch()
    assert run_folder.newest_run(Path("runs")) == Path("runs/newer")


@pytest.mark.parametrize("stopped", [False, True])
def test_without_a_finished_run_the_line_says_how_to_make_one(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """None at all, or one that goes on."""
    monkeypatch.chdir(tmp_path)
    if stopped:
        (tmp_path / "runs" / "mine" / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / "mine" / "checkpoints" / "000001-000000001-0.safetensors").touch()
    result = command(main)
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("vae-export: error: no finished run: runs; ")
    assert ("vae-train --resume runs/mine" if stopped else "vae-train") in result.err


@pytest.mark.parametrize("name", ["some.pt", "some.ckpt", "some.safetensors", "decoder.onnx"])
def test_a_file_is_told_apart_from_a_run(command: Command, tmp_path: Path, name: str) -> None:
    """What it is, and where the way to a run is described."""
    (tmp_path / name).write_bytes(b"whatever it holds")
    result = command(main, tmp_path / name)
    assert (result.code, result.out) == (3, "")
    assert ("a graph" if name.endswith(".onnx") else "weights") in result.err
    assert "docs/bring-your-own.md" in result.err


@pytest.mark.parametrize("name", ["some.pt", "some.safetensors", "decoder.onnx"])
def test_a_file_that_is_not_there_is_named(command: Command, tmp_path: Path, name: str) -> None:
    """It is the file that is missing, not a run's settings in a folder of its name."""
    result = command(main, tmp_path / name)
    assert (result.code, result.out) == (3, "")
    assert result.err == f"vae-export: error: file not found: {tmp_path / name}; check the path\n"
