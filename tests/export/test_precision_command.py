"""`vae-export --precision`: what is published, what it says of its cost, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vae_export import check, exporter
from vae_export.cli import main
from vae_runtime.bundle import read
from vae_runtime.cli import main as vae_infer
from vae_runtime.vae import VAE
from vae_train import run_folder

Command = Callable[..., Any]
ERROR = re.compile(r"vae-export: error: [^\n;]+: [^\n;]+; [^\n]+\n")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_of(folder: Path) -> Any:
    """The manifest of a bundle."""
    return json.loads((folder / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def plain(mlp_of_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the digits' MLP as it is; nobody changes it."""
    out = tmp_path_factory.mktemp("bundles") / "plain"
    exporter.export_run(run_folder.load(mlp_of_digits), out)
    return out


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_a_smaller_precision_is_published_with_its_cost(
    command: Command, mlp_of_digits: Path, plain: Path, tmp_path: Path, precision: str
) -> None:
    """Smaller graphs, both gates passed, the cost printed and in the manifest; every command takes the bundle."""
    out = tmp_path / precision
    done = command(main, mlp_of_digits, "--out", out, "--precision", precision)
    assert (done.code, done.err, done.out.count("✗")) == (0, "", 0)
    headings = [line for line in done.out.splitlines() if line.startswith(("fp", "int"))]
    reference = {"fp16": "the network in float64, its weights rounded to float16", "int8": "ONNX's own evaluator"}
    assert headings == [
        "fp32 in onnxruntime against the network in float64",
        f"{precision} against fp32",
        f"{precision} in onnxruntime against {reference[precision]}",
    ]
    assert done.out.splitlines()[-1].startswith(f"published {out}: opset 17, {precision}, ")

    manifest, of_plain = manifest_of(out), manifest_of(plain)
    assert "precision" not in of_plain
    cost = manifest["precision"]
    graphs = ("encoder.onnx", "decoder.onnx")
    assert cost["precision"] == precision
    assert cost["size"] == [sum(its["files"][name]["size"] for name in graphs) for its in (manifest, of_plain)]
    assert cost["size"][0] < 0.6 * cost["size"][1]
    assert set(cost["seconds"]) == {"encode 1", "decode 1", "encode 64", "decode 64"}
    assert cost["nats"] <= 0.5
    assert manifest["parity"]["reference"] == reference[precision]

    itself = "its golden vectors and ONNX's reference evaluator"
    for against, arguments in ((itself, (out,)), (mlp_of_digits, (out, mlp_of_digits))):
        checked = command(main, "check", *arguments)
        assert (checked.code, checked.err, checked.out.splitlines()[-1]) == (0, "", f"{out}: fine, against {against}")
    assert f"The graphs are {precision}." in command(main, "card", out).out
    verified = command(vae_infer, "--bundle", out, "verify")
    assert (verified.code, verified.out.count("✓")) == (0, 6)
    info = command(vae_infer, "--bundle", out, "info").out
    assert f"precision              {precision}, ELBO {abs(cost['nats']):.4f} +- " in info
    assert f" comparisons with {reference[precision]} passed" in info


@pytest.mark.slow
def test_the_cost_is_what_the_published_bundles_differ_by(
    command: Command, mlp_of_digits: Path, plain: Path, tmp_path: Path
) -> None:
    """The manifest's nats are the mean difference of both bundles' ELBO, on images of the same kind."""
    out = tmp_path / "int8"
    assert command(main, mlp_of_digits, "--out", out, "--precision", "int8").code == 0
    cost = manifest_of(out)["precision"]
    x = VAE.load(plain).sample(2000, seed=5)
    lost = VAE.load(plain).elbo(x) - VAE.load(out).elbo(x)
    error = np.hypot(cost["standard_error"], lost.std() / np.sqrt(len(lost)))
    assert abs(lost.mean() - cost["nats"]) < 5 * error + 0.2  # samples are not test images


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_graphs_are_reproducible(command: Command, mlp_of_digits: Path, tmp_path: Path, precision: str) -> None:
    """The same run exported twice gives the same bytes; only the measured times in the manifest differ."""
    bundles = []
    for name in ("first", "second"):
        assert command(main, mlp_of_digits, "--out", tmp_path / name, "--precision", precision).code == 0
        files = contents(tmp_path / name)
        manifest = json.loads(files.pop("manifest.json"))
        del manifest["precision"]["seconds"], manifest["sha256"]
        bundles.append((files, manifest))
    assert bundles[0] == bundles[1]


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        pytest.param("fp16", r"fp16 refused: it costs -?0\.\d{3} nats per image, more than -1", marks=pytest.mark.slow),
        ("int8", "int8 refused: each layer alone costs more than 0.8 of -1 nats"),
    ],
)
def test_what_costs_too_much_changes_nothing(
    command: Command, mlp_of_digits: Path, plain: Path, precision: str, reason: str
) -> None:
    """Past --max-nats: one line with the reason, and what was published before is as it was."""
    before = contents(plain)
    done = command(main, mlp_of_digits, "--out", plain, "--precision", precision, "--max-nats", -1)
    assert done.code == 3
    assert ERROR.fullmatch(done.err)
    assert re.search(reason, done.err)
    assert contents(plain) == before
    assert [path.name for path in plain.parent.iterdir()] == ["plain"]


@pytest.mark.slow
def test_auto_publishes_what_pays(command: Command, mlp_of_digits: Path, plain: Path, tmp_path: Path) -> None:
    """All precisions are weighed; with half a nat to spend one is taken, with less than none float32 as it was."""
    done = command(main, mlp_of_digits, "--out", tmp_path / "auto", "--precision", "auto")
    assert (done.code, done.err) == (0, "")
    assert done.out.count(" against fp32") == 2
    assert manifest_of(tmp_path / "auto")["precision"]["precision"] in ("fp16", "int8")
    done = command(main, mlp_of_digits, "--out", tmp_path / "none", "--precision", "auto", "--max-nats", -1)
    assert (done.code, done.err) == (0, "")
    assert ": opset 17, fp32, " in done.out
    assert contents(tmp_path / "none") == contents(plain)


@pytest.mark.parametrize("precision", ["fp16", "int8", "auto"])
def test_without_its_images_a_run_is_not_weighed(
    command: Command, tiny_run: Path, tmp_path: Path, precision: str
) -> None:
    """A run of a named set whose files are not there: exit code 4 and the option that names them, before any work."""
    arguments = ("--precision", precision, "--data-root", tmp_path / "none", "--no-download")
    done = command(main, tiny_run, "--out", tmp_path / "bundle", *arguments)
    assert (done.code, done.out) == (4, "")
    assert ERROR.fullmatch(done.err)
    assert "--data-root" in done.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8", "auto"])
def test_other_training_images_are_not_calibrated_on(
    command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path, precision: str
) -> None:
    """The test images are the run's and the training images are not: exit code 4, and both are named."""
    root = Path(shutil.copytree(digits_root, tmp_path / "root"))
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    raw = bytearray(file.read_bytes())
    raw[1000] ^= 1
    file.write_bytes(raw)
    words = ("--precision", precision, "--data-root", root, "--no-download")
    done = command(main, tiny_run, "--out", tmp_path / "bundle", *words)
    assert (done.code, done.out) == (4, "")
    assert ERROR.fullmatch(done.err)
    before = json.loads((tiny_run / "config.json").read_bytes())["data_sha256"]
    assert "training images are not the run's" in done.err
    assert all(name in done.err for name in (str(root), str(tiny_run), before[:16]))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_eight_bits_of_another_run_are_found(command: Command, mlp_of_digits: Path, tmp_path: Path) -> None:
    """Where one of the run's weights is 1% larger, the row of the decoder's weights fails, and no other."""
    assert command(main, mlp_of_digits, "--out", tmp_path / "int8", "--precision", "int8").code == 0
    run = replace(run_folder.load(mlp_of_digits), fingerprint=None)  # else it is known for another network
    with torch.no_grad():
        weight = max(run.vae.decoder.parameters(), key=torch.numel).flatten()
        weight[weight.abs().argmax()] *= 1.01
    failed = [row.name for row in check.with_run(read(tmp_path / "int8"), run) if not row.passed]
    assert failed == ["decoder on weights at batch 1"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--precision", "int8", "--max-nats", "nan"), "nan is no number"),
        (("--max-nats", "3"), "--max-nats goes with another --precision than fp32"),
    ],
)
def test_a_bound_that_means_nothing_is_wrong_usage(
    command: Command, mlp_of_digits: Path, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    """No number, or a bound for graphs that cost nothing: exit code 2, before any work."""
    done = command(main, mlp_of_digits, "--out", tmp_path / "bundle", *arguments)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_eight_bits_run_at_old_and_new_opsets(command: Command, mlp_of_digits: Path, tmp_path: Path) -> None:
    """The graphs have the opset asked for, and only ONNX's own operators."""
    for opset in (17, 19, 23):
        out = tmp_path / str(opset)
        done = command(main, mlp_of_digits, "--out", out, "--precision", "int8", "--opset", opset)
        assert (done.code, done.err) == (0, "")
        for name in ("encoder.onnx", "decoder.onnx"):
            model = onnx.load(out / name)
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
            assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
