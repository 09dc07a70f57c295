"""What the manifest says that a bundle needs: true for the onnxruntime it names, and not for the one before."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from support.runs import smooth_images
from vae_export import exporter, onnx_graph, requirements
from vae_export.cli import main
from vae_runtime.observation import Observation
from vae_train import networks, run_folder
from vae_train.config import PRESETS

ROOT = Path(__file__).parents[2]
OPSETS = range(onnx_graph.OLDEST_OPSET, onnx_graph.newest_opset() + 1)
OLDEST_INSTALLABLE = "1.15.0"  # on Python 3.11: which graphs an older one would load cannot be seen there

Installed = Callable[[str], Path]


def parts(release: str) -> tuple[int, ...]:
    """A release's numbers, for comparing."""
    return tuple(map(int, release.split(".")))


def test_manifest_says_what_the_graphs_need(tiny_bundle: Path) -> None:
    """Opset, IR version, operators and the oldest onnxruntime of a bundle of two small perceptrons."""
    assert json.loads((tiny_bundle / "manifest.json").read_bytes())["onnx"] == {
        "opset": 17,
        "ir_version": 8,
        "min_onnxruntime": "1.15.0",
        "operators": {
            "encoder": {"Clip": 1, "Gemm": 3, "Relu": 1, "Reshape": 1},
            "decoder": {"Gemm": 2, "Relu": 1, "Reshape": 1},
        },
        "working_bytes": {"encoder": 2 * 784 * 4, "decoder": 2 * 784 * 4},  # images and their flat copies
    }


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_memory_between_layers_is_of_what_lives_at_a_time(kind: type) -> None:
    """A value lives from the node that makes it to the last that takes it; weights, cast ones too, are not counted."""
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    value = lambda name, *shape: helper.make_tensor_value_info(name, type_, ["batch", *shape])  # noqa: E731
    stored = numpy_helper.from_array(np.ones((1, 50), np.float16), "stored")
    nodes = [
        helper.make_node("Cast", ["stored"], ["wide"], to=type_),
        helper.make_node("Add", ["x", "wide"], ["a"]),  # [batch, 50]
        helper.make_node("Concat", ["a", "a"], ["b"], axis=1),  # [batch, 100], beside a and x
        helper.make_node("Concat", ["b", "b"], ["c"], axis=1),  # [batch, 200], beside b alone, and x
        helper.make_node("Concat", ["c", "x"], ["y"], axis=1),  # [batch, 201], beside c and x
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 1)], [value("y", 201)], [stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert requirements.working_bytes(model) == (201 + 200 + 1) * np.dtype(kind).itemsize


@pytest.mark.slow
def test_installed_onnxruntime_is_new_enough_for_every_opset(tiny_run: Path, tmp_path: Path) -> None:
    """What is claimed rises with the opset, and never above the release in which the gate has just passed."""
    run = run_folder.load(tiny_run)
    claimed = []
    for opset in OPSETS:
        exporter.export_run(run, tmp_path / str(opset), opset=opset)
        manifest = json.loads((tmp_path / str(opset) / "manifest.json").read_bytes())
        assert manifest["onnx"]["opset"] == opset
        claimed.append(parts(manifest["onnx"]["min_onnxruntime"]))
    assert claimed == sorted(claimed)
    assert claimed[-1] > claimed[0] == parts(OLDEST_INSTALLABLE)
    assert claimed[-1] <= parts(version("onnxruntime"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """`installed("1.16.0")` or `installed("<1.16.0")`: the Python of an environment with that onnxruntime, no torch.

    Skips where the package index has none for this Python, or cannot be reached.
    """
    made: dict[str, Path] = {}

    def get(release: str) -> Path:
        if release not in made:
            venv = tmp_path_factory.mktemp("venv")
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            wanted = f"onnxruntime{release}" if release.startswith("<") else f"onnxruntime=={release}"
            packages = [wanted, "numpy<2", "click", "pillow"]  # onnxruntime was built for NumPy 1 up to 1.18
            command = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{wanted} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            made[release] = venv / "bin" / "python"
        return made[release]

    return get


def verify(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`vae-infer verify` of a bundle in that Python, with the runtime of this checkout."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "runtime")}
    command = [python, "-m", "vae_runtime", "--bundle", folder, "verify"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
def test_claimed_onnxruntime_runs_the_bundle_and_the_one_before_does_not(
    installed: Installed, tmp_path: Path, opset: int
) -> None:
    """In an environment with exactly the release named, golden vectors pass; in the one before, loading is refused."""
    out = tmp_path / "bundle"
    torch.manual_seed(0)
    vae = networks.build(PRESETS["resnet"].replace(hidden=(4, 4), dense=8, latent_dim=4), (1, 28, 28))
    images = smooth_images(64, (1, 28, 28)).numpy()
    exporter.export_vae(vae, Observation.image((1, 28, 28)), images, out, opset=opset)  # with convolutions
    claimed = json.loads((out / "manifest.json").read_bytes())["onnx"]["min_onnxruntime"]
    python = installed(claimed)
    found = subprocess.run(
        [python, "-c", "import onnxruntime; print(onnxruntime.__version__)"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == claimed
    done = verify(python, out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("✓") == 6
    if claimed != OLDEST_INSTALLABLE:
        refused = verify(installed(f"<{claimed}"), out)
        assert refused.returncode == 3
        assert "onnxruntime refuses the graph" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_graphs_run_in_the_claimed_onnxruntime(
    installed: Installed, mlp_of_digits: Path, command: Callable[..., Any], tmp_path: Path, precision: str
) -> None:
    """Weights of float16 and 8-bit products ask for no newer release than float32 does."""
    out = tmp_path / "bundle"
    assert command(main, mlp_of_digits, "--out", out, "--precision", precision).code == 0
    done = verify(installed(json.loads((out / "manifest.json").read_bytes())["onnx"]["min_onnxruntime"]), out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("✓") == 6
