"""A run's own images, found again from another working directory, after a move, or where --dataset says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from support.commands import Command, Result
from vae_export import exporter, gate
from vae_export.cli import main as vae_export
from vae_runtime import bundle
from vae_train import results
from vae_train.cli import main
from vae_train.data import Data
from vae_train.signals import Stopped

SMALL = ("--hidden", 4, "--latent-dim", 2, "--epochs", 1, "--likelihood", "gaussian", "--device", "cpu")
PASSED = gate.Comparison("mu", "real images", 1, tolerance=1.0, pytorch=0.0, max_abs=0.0, ulps=0.0, nats=0.0)

SHIPPED = bundle.read(bundle.shipped()).manifest


def write(path: Path, seed: int = 0) -> Path:
    """90 images of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(seed).integers(0, 256, (90, 1, 8, 8), dtype=np.uint8))
    return path


@pytest.fixture
def project(command: Command, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of `data/faces.npy`, typed so, from which the working directory has moved on."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    project = tmp_path / "secret" / "project"
    write(project / "data" / "faces.npy")
    monkeypatch.chdir(project)
    done = command(main, "--dataset", "data/faces.npy", "--out", "runs/faces", *SMALL)
    assert done.code == 0, done.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return project


def evaluate(command: Command, run: Path, *words: object) -> Result:
    """`vae-train evaluate`, quick."""
    return command(main, "evaluate", run, "--samples", 2, "--device", "cpu", *words)


def test_the_working_directory_may_be_another(command: Command, project: Path) -> None:
    """Every command that reads the run's images finds them where they were; the figures keep the data's name."""
    run = project / "runs" / "faces"
    result = evaluate(command, run)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("faces.npy test, ")
    assert command(main, "report", run, "--device", "cpu").code == 0
    assert command(main, "compare", run, run, "--device", "cpu").code == 0
    assert json.loads((run / "config.json").read_bytes())["config"]["data"]["dataset"] == "data/faces.npy"


def test_run_and_images_may_move_together(command: Command, project: Path, tmp_path: Path) -> None:
    """The path as it was typed is looked for above the run's folder too."""
    moved = project.rename(tmp_path / "moved")
    result = evaluate(command, moved / "runs" / "faces")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("verb", ["evaluate", "report", "compare"])
def test_images_elsewhere_are_named(command: Command, project: Path, tmp_path: Path, verb: str) -> None:
    """Moved and renamed they are not found, and the one line says how to name them; named so, all is as before."""
    runs = [project / "runs" / "faces"] * (2 if verb == "compare" else 1)
    before = json.loads((runs[0] / "evaluation.json").read_bytes())
    moved = (project / "data" / "faces.npy").rename(tmp_path / "renamed.npy")
    lost = command(main, verb, *runs, "--device", "cpu")
    assert (lost.code, lost.out) == (4, "")
    assert "data/faces.npy" in lost.err
    assert "--dataset" in lost.err
    result = command(main, verb, *runs, "--dataset", moved, "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    after = json.loads((runs[0] / "evaluation.json").read_bytes())
    assert {name: after[name] for name in ("dataset", "observations", "binarisation")} == {
        name: before[name] for name in ("dataset", "observations", "binarisation")
    }


def test_other_images_are_refused(command: Command, project: Path) -> None:
    """Of the same shape and number, under --dataset: exit code 4, and the advice has --dataset."""
    other = write(Path("other.npy"), seed=1)
    result = evaluate(command, project / "runs" / "faces", "--dataset", other)
    assert (result.code, result.out) == (4, "")
    assert f"not the run's: {other};" in result.err
    assert "--dataset" in result.err


def test_images_of_that_name_here_do_not_stand_in_for_the_runs(command: Command, project: Path) -> None:
    """The run's own, where they were, come before what the typed path finds in this working directory."""
    write(Path("data/faces.npy"), seed=1)
    result = evaluate(command, project / "runs" / "faces")
    assert (result.code, result.err) == (0, "")


def test_a_path_that_is_named_and_missing_is_not_passed_over(command: Command, project: Path) -> None:
    """The images where they were do not stand in for those that --dataset names."""
    result = evaluate(command, project / "runs" / "faces", "--dataset", "absent.npy")
    assert result.code == 4
    assert "data not found: absent.npy;" in result.err


def test_a_stopped_training_goes_on_with_moved_images(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--resume takes --dataset, and finds the images from another working directory without it."""
    run = project / "runs" / "stopped"

    def stop(out: Path, *given: object) -> None:
        raise Stopped(15, out, ())

    with monkeypatch.context() as patched:
        patched.chdir(project)
        patched.setattr(results, "finish", stop)
        assert command(main, "--dataset", "data/faces.npy", "--out", run, *SMALL).code == 143
    copy = shutil.copytree(run, Path("copy"))
    assert command(main, "--resume", run, "--device", "cpu").code == 0
    moved = (project / "data" / "faces.npy").rename("moved.npy")
    assert command(main, "--resume", copy, "--device", "cpu").code == 4
    assert command(main, "--resume", copy, "--dataset", moved, "--device", "cpu").code == 0


@pytest.mark.slow
def test_what_is_published_has_no_folders(command: Command, project: Path) -> None:
    """config.json has the absolute path, the bundle's manifest has not."""
    run = project / "runs" / "faces"
    assert json.loads((run / "config.json").read_bytes())["dataset_path"] == str(project / "data" / "faces.npy")
    result = command(vae_export, run, "--out", "bundle")
    assert result.code == 0, result.err
    manifest = Path("bundle/manifest.json").read_text()
    assert "secret" not in manifest
    assert json.loads(manifest)["settings"]["data"]["dataset"] == "faces.npy"


def test_a_precision_is_chosen_on_moved_images(
    command: Command, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vae-export --precision` takes --dataset, and has the images at hand before it exports."""
    seen = []

    def export_run(*given: object, observed: Data, **options: object) -> exporter.Exported:
        seen.append(observed.observation.shape)
        return exporter.Exported(Path("bundle"), [gate.Verdict("fp16", "made up", [PASSED])], [], None, SHIPPED)

    monkeypatch.setattr(exporter, "export_run", export_run)
    moved = (project / "data" / "faces.npy").rename(tmp_path / "renamed.npy")
    Path("bundle").mkdir()
    words = (vae_export, project / "runs" / "faces", "--out", "bundle", "--precision", "fp16")
    assert command(*words).code == 4
    assert command(*words, "--dataset", moved).code == 0
    assert seen == [(1, 8, 8)]


def test_a_path_behind_an_equals_sign_is_not_published(
    command: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--dataset=/home/me/faces.npy` is kept as typed, but for the folders."""
    path = project / "data" / "faces.npy"
    assert command(main, f"--dataset={path}", "--out", "run", *SMALL).code == 0
    typed = json.loads(Path("run/config.json").read_bytes())["provenance"]["command"]
    assert typed.startswith("vae-train --dataset=faces.npy --out run ")


def test_precision_fp32_looks_at_no_images(command: Command, project: Path) -> None:
    """Wrong usage, not silently ignored."""
    result = command(vae_export, project / "runs" / "faces", "--dataset", project)
    assert result.code == 2
    assert "--dataset" in result.err


def test_a_named_set_has_no_path(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    """MNIST lies under --data-root, and the refusal says so."""
    result = evaluate(command, tiny_run, "--dataset", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert "mnist" in result.err
    assert "--data-root" in result.err
