"""One run, one bundle: exporting it again gives the same bytes, in whatever process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vae_export import exporter
from vae_runtime.bundle import FILES
from vae_train import run_folder
from vae_train.config import PRESETS

GRAPHS = """
import hashlib, torch
from vae_export import onnx_graph
from vae_train import networks
from vae_train.config import PRESETS
config = PRESETS["{preset}"]
shape = (3, 16, 16) if config.preset == "resnet-colour" else (1, 8, 8)
torch.manual_seed(0)
vae = networks.build(config, shape)
encoder = onnx_graph.to_onnx(vae.encoder, torch.zeros(2, *shape), "x", ["mu", "logsigma"], {opset})
decoder = onnx_graph.to_onnx(vae.decoder, torch.zeros(2, vae.latent_dim), "z", [vae.likelihood.output], {opset})
for model in (encoder, decoder):
    print(hashlib.sha256(onnx_graph.stamp(model, {{}}, "encoder")).hexdigest())
"""


def twice(*arguments: object) -> tuple[str, str]:
    """What two Python processes print, whose sets have different orders; `SEED` in an argument is 1 and 2."""
    processes = [
        subprocess.Popen(
            [sys.executable, *(str(argument).replace("SEED", seed) for argument in arguments)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    return first, second


@pytest.mark.slow
def test_exporting_again_in_another_process_gives_the_same_bytes(tiny_run: Path, tmp_path: Path) -> None:
    """Every file of a bundle, the manifest too, is byte for byte that of a process with another hash seed."""
    first, second = twice("-m", "vae_export", tiny_run, "--out", tmp_path / "SEED" / "bundle")
    assert first.replace("/1/", "/2/") == second
    for name in (*FILES, "manifest.json"):
        assert (tmp_path / "1" / "bundle" / name).read_bytes() == (tmp_path / "2" / "bundle" / name).read_bytes()


@pytest.mark.slow
def test_exporting_again_in_this_process_gives_the_same_bytes(tiny_run: Path, tmp_path: Path) -> None:
    """So is every file of a bundle that this process exports once more."""
    for name in ("1", "2"):
        exporter.export_run(run_folder.load(tiny_run), tmp_path / name, opset=20)
    for name in (*FILES, "manifest.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("preset", PRESETS)
def test_graphs_of_each_preset_do_not_depend_on_the_process(preset: str, opset: int) -> None:
    """Encoder and decoder of each preset have the same bytes in two processes with different hash seeds."""
    first, second = twice("-c", GRAPHS.format(preset=preset, opset=opset))
    assert len(set(first.split())) == 2
    assert first == second
