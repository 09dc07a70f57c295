"""The bundle: its manifest, its golden vectors, and how it is published, replaced or left alone."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vae_export import exporter, gate, publish
from vae_export.cli import main
from vae_runtime.errors import ArgumentError
from vae_runtime.likelihoods import Bernoulli
from vae_runtime.vae import VAE
from vae_train import run_folder

Command = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def manifest(tiny_bundle: Path) -> Any:
    """The tiny bundle's manifest."""
    return json.loads((tiny_bundle / "manifest.json").read_bytes())


@pytest.fixture
def old(tiny_bundle: Path, tmp_path: Path) -> Path:
    """An older bundle, recognisable by one changed byte in its manifest."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    raw = (out / "manifest.json").read_bytes()
    (out / "manifest.json").write_bytes(raw[:-1] + b" ")
    return out


def test_manifest_lists_every_other_file(tiny_bundle: Path, manifest: Any) -> None:
    """Size and sha256 of every file but the manifest, and no file besides."""
    assert {path.name for path in tiny_bundle.iterdir()} == {*manifest["files"], "manifest.json"}
    assert set(manifest["files"]) == {"encoder.onnx", "decoder.onnx", "golden.npz", "calibration.json"}
    for name, entry in manifest["files"].items():
        raw = (tiny_bundle / name).read_bytes()
        assert entry == {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def test_manifest_verifies_itself(tiny_bundle: Path, manifest: Any) -> None:
    """The manifest's sha256 is that of its own bytes with the digest zeroed."""
    text = (tiny_bundle / "manifest.json").read_text()
    zeroed = re.sub(r'^( "sha256": )"[0-9a-f]{64}"', rf'\1"{"0" * 64}"', text, count=1, flags=re.MULTILINE)
    assert zeroed != text
    assert hashlib.sha256(zeroed.encode()).hexdigest() == manifest["sha256"]


def test_manifest_keeps_the_parity_report(manifest: Any) -> None:
    """All 40 rows of the gate are kept with their figures, every one passed."""
    parity = manifest["parity"]
    assert len(parity["rows"]) == 40
    for row in parity["rows"]:
        assert row["passed"] is True
        assert row["max_abs"] <= row["tolerance"] < 1e-2
        assert row["nats"] < 1e-3
        assert row["ulps"] < 100
        assert 0 <= row["worst"] < row["batch"]


def test_manifest_says_where_the_bundle_comes_from(tiny_run: Path, manifest: Any) -> None:
    """Provenance has the training command and the versions; the run's figures and quantiles are carried over."""
    assert manifest["provenance"]["command"] == "vae-train --epochs 2"
    assert {"python", "torch", "vae-edge", "onnx", "onnxruntime"} <= manifest["provenance"].keys()
    measured = json.loads((tiny_run / "evaluation.json").read_bytes())
    assert manifest["evaluation"] == measured
    quantiles = manifest["evaluation"]["quantiles"]
    for name in ("elbo", "reconstruction", "kl"):
        assert len(quantiles[name]) == len(quantiles["levels"]) == 105
        assert quantiles[name] == sorted(quantiles[name])
    weights = sum(p.numel() for p in run_folder.load(tiny_run).vae.parameters())
    assert manifest["parameters"] == weights


def test_manifest_says_how_images_became_levels(tiny_run: Path, manifest: Any) -> None:
    """The run's preprocessing is carried over, so that whoever infers can do the same."""
    assert manifest["preprocessing"] == json.loads((tiny_run / "config.json").read_bytes())["preprocessing"]
    assert manifest["preprocessing"] == {"levels": "as they are", "split": "the set's own"}


@pytest.mark.parametrize("best", [False, True])
def test_the_best_epoch_is_exported_where_asked_for(
    command: Command, run_with_another_best: Path, tiny_bundle: Path, tmp_path: Path, best: bool
) -> None:
    """`--best` publishes the weights and the figures of best.safetensors and best.json; without it, the last ones."""
    run = run_with_another_best
    result = command(main, run, "--out", tmp_path / "bundle", *(["--best"] if best else []))
    assert (result.code, result.err) == (0, "")
    z = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    logits, others = (VAE.load(path).parameters(z) for path in (tmp_path / "bundle", tiny_bundle))
    np.testing.assert_allclose(logits, others + best, atol=1e-4)
    evaluation = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())["evaluation"]
    measured = json.loads((run / ("best.json" if best else "evaluation.json")).read_bytes())
    assert evaluation == measured
    assert (evaluation["split"] == "test of the best") == best


def test_networks_that_are_not_trusted_are_not_exported(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    """A run that names a module is exported only with --model: exit code 2, the module named, not imported."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    settings = json.loads((run / "config.json").read_bytes())
    settings["config"]["network"]["model"] = "antigravity:fly"
    (run / "config.json").write_text(json.dumps(settings))
    result = command(main, run, "--out", tmp_path / "bundle")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "vae-export: error: run has networks of its own: antigravity:fly; "
        "if you trust that module, add --model antigravity:fly\n"
    )
    assert "antigravity" not in sys.modules
    assert not (tmp_path / "bundle").exists()


def test_golden_vectors_are_reproduced_by_the_runtime(tiny_bundle: Path) -> None:
    """golden.npz is small, has the documented arrays, and the runtime computes PyTorch's outputs from its inputs."""
    assert (tiny_bundle / "golden.npz").stat().st_size < 20_000
    with np.load(tiny_bundle / "golden.npz") as archive:
        golden = dict(archive)
    assert golden.keys() == {"seed", "x", "z", "eps", "mu", "logsigma", "logits", "elbo"}
    assert set(np.unique(golden["x"])) == {0, 1}
    vae = VAE.load(tiny_bundle)
    mu, logsigma = vae.encode(golden["x"])
    np.testing.assert_allclose(mu, golden["mu"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logsigma, golden["logsigma"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vae.parameters(golden["z"]), golden["logits"], rtol=1e-5, atol=1e-5)
    logits = vae.parameters(mu + np.exp(logsigma) * golden["eps"])
    elbo = Bernoulli(3).log_prob(golden["x"], logits) - vae.prior.kl(mu, logsigma).sum(1)
    np.testing.assert_allclose(elbo, golden["elbo"], atol=1e-3)


def test_golden_vectors_hold_no_training_data(tiny_bundle: Path, tiny_run: Path) -> None:
    """The golden images are the model's own draws, none of them one of the run's real images."""
    with np.load(tiny_bundle / "golden.npz") as archive:
        x = archive["x"]
    real = run_folder.load(tiny_run).probe / 255
    distance = np.abs(x[:, None] - real[None]).sum(axis=(2, 3, 4))
    assert distance.min() > 20


def test_exporting_twice_gives_the_same_bytes(tiny_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """A second export of the same run is the first, byte for byte, wherever it goes."""
    exporter.export_run(run_folder.load(tiny_run), tmp_path / "deep" / "er")
    assert contents(tmp_path / "deep" / "er") == contents(tiny_bundle)
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o755


def test_command_replaces_an_older_bundle(command: Command, tiny_run: Path, tiny_bundle: Path, old: Path) -> None:
    """`vae-export RUN --out OLD` leaves the new bundle alone in the place of the old, and says so."""
    assert contents(old) != contents(tiny_bundle)
    result = command(main, tiny_run, "--out", old)
    assert (result.code, result.err) == (0, "")
    assert contents(old) == contents(tiny_bundle)
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]
    assert "✓ 40 comparisons passed; the worst is " in result.out
    assert len(result.out.splitlines()) == 3
    assert f"published {old}: opset 17" in result.out.splitlines()[-1]


def test_what_another_run_has_made_is_not_replaced_without_a_word(
    command: Command,
    tiny_run: Path,
    tiny_bundle: Path,
    other_bundle: Path,
    tmp_path: Path,
    after_export: Callable[..., None],
) -> None:
    """A note says of what was replaced how and by whom it was made, unless the same run was exported so before."""
    after_export()
    out = shutil.copytree(other_bundle, tmp_path / "bundle")
    pair = json.loads((out / "manifest.json").read_bytes())["contract"]["pair"]
    result = command(main, tiny_run, "--out", out)
    made = f"opset 17, fp32, pair {pair}, of the run by vae-train --epochs 2"
    assert (result.code, result.err) == (0, f"vae-export: note: it replaces what was there: {made}\n")
    assert contents(out) == contents(tiny_bundle)
    assert command(main, tiny_run, "--out", out).err == ""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_export_leaves_the_old_bundle(
    tiny_run: Path,
    old: Path,
    after_export: Callable[..., None],
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever interrupts the gate: the old bundle stays byte for byte, and nothing is left beside it."""
    before = contents(old)
    after_export()

    def interrupted(*given: object) -> None:
        raise error

    monkeypatch.setattr(gate, "compare", interrupted)
    with pytest.raises(error):
        exporter.export_run(run_folder.load(tiny_run), old)
    assert contents(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]


def test_another_folder_is_never_replaced(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    """--out that holds other files, or is a file, is wrong usage and stays untouched."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "photos" / "manifest.json").write_bytes(b'{"contract": {}, "files": {}}')
    for own in ("encoder.onnx", "decoder.onnx", "manifest.json"):  # of an app, say
        (tmp_path / "networks").mkdir(exist_ok=True)
        (tmp_path / "networks" / own).write_bytes(b"{}")
    (tmp_path / "file").write_bytes(b"file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cat.jpg").write_bytes(b"cat")
    before = contents(tmp_path)
    holds_more = "output holds more than a bundle (cat.jpg)"
    none = ((name, "not a bundle") for name in ("other", "networks", "file"))
    for out, what in (("photos", holds_more), *none):
        out = tmp_path / out
        result = command(main, tiny_run, "--out", out)
        assert (result.code, result.out) == (2, "")
        assert re.fullmatch(r"vae-export: error: [^\n;]+; [^\n]+\n", result.err)
        assert f"{what}: {out};" in result.err
        with pytest.raises(ArgumentError):
            publish.check_target(out)
    assert contents(tmp_path) == before


def test_too_little_memory_is_no_fault_of_the_run(
    command: Command, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own error of it ends in one line and exit code 5, and nothing is published."""

    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("12 GiB were asked for")

    monkeypatch.setattr(gate, "compare", full)
    result = command(main, tiny_run, "--out", tmp_path / "bundle")
    assert (result.code, result.out) == (5, "")
    assert result.err == "vae-export: error: out of memory: the networks or the batch; free memory and try again\n"
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("lacking", ["torch", "onnx", "fcntl"])
def test_the_api_says_what_it_lacks(lacking: str) -> None:
    """Where a package, or a part of the system, is not there, an EnvironmentUnfit says so, and what to do."""
    code = f"""
import importlib.metadata, sys
sys.modules[{lacking!r}] = None
version = importlib.metadata.version
def installed(name):
    if name == {lacking!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = installed
import vae_export
from vae_runtime import EnvironmentUnfit
try:
    vae_export.export_vae
except EnvironmentUnfit as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.count("\n") == 1
    assert ("POSIX" if lacking == "fcntl" else f"not installed: {lacking}; install: ") in told


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (3, ["{tmp}/absent"]),
        (3, ["{tmp}"]),
        (3, ["{bundle}"]),
        (3, []),
        (2, ["{run}", "--opset", "x"]),
        (2, ["{run}", "--surprise"]),
        (2, ["{run}", "--out", "/proc/version/bundle"]),
    ],
)
def test_errors_end_in_one_line(
    command: Command,
    tiny_run: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_export: Callable[..., None],
    code: int,
    arguments: list[str],
) -> None:
    """A run that does not exist, a bundle in its place, wrong usage: the exit code, one line, nothing written."""
    monkeypatch.chdir(tmp_path)
    after_export()
    result = command(main, *(word.format(tmp=tmp_path, run=tiny_run, bundle=tiny_bundle) for word in arguments))
    assert (result.code, result.out) == (code, "")
    assert re.fullmatch(r"vae-export: error: [^\n;]+; [^\n]+\n", result.err), result.err
    assert not any(tmp_path.iterdir())


def test_a_link_is_followed(
    command: Command, tiny_run: Path, tiny_bundle: Path, old: Path, after_export: Callable[..., None]
) -> None:
    """--out through a symbolic link replaces the bundle that it points to and keeps the link."""
    link = old.parent / "current"
    link.symlink_to(old.name)
    after_export()
    result = command(main, tiny_run, "--out", link)
    assert (result.code, result.err) == (0, "")
    assert link.readlink() == Path(old.name)
    assert contents(old) == contents(tiny_bundle)
    assert {path.name for path in old.parent.iterdir()} == {"bundle", "current"}


@pytest.mark.slow
def test_a_terminated_export_leaves_the_old_bundle(tiny_run: Path, old: Path) -> None:
    """SIGTERM while the new bundle is judged: exit code 143, one line, the old bundle as it was, nothing beside it."""
    before = contents(old)
    arguments = [sys.executable, "-m", "vae_export", str(tiny_run), "--out", str(old)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(old.parent.glob(".bundle.*")):
            time.sleep(0.001)
        process.terminate()
        _, err = process.communicate(timeout=600)
    assert process.returncode == 143
    assert err == "vae-export: terminated: run it again when it suits\n"
    assert contents(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]


@pytest.mark.slow
def test_a_terminal_without_ticks_is_no_error(tiny_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Where stdout's encoding has no tick, as latin-1, a ? stands in its place and the bundle is published."""
    arguments = [sys.executable, "-m", "vae_export", str(tiny_run), "--out", str(tmp_path / "bundle")]
    threads = str(torch.get_num_threads())  # on which the last bits of PyTorch's side depend
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "OMP_NUM_THREADS": threads}
    result = subprocess.run(arguments, capture_output=True, encoding="latin-1", env=environment, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "? 40 comparisons passed" in result.stdout
    assert contents(tmp_path / "bundle") == contents(tiny_bundle)
