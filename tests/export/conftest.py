"""Fixtures of the export tests: the exporter, run once per graph of the tiny run, faults put in after it, a bundle."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from support import operators, runs
from vae_export import exporter, onnx_graph
from vae_train import fingerprint, run_folder, train
from vae_train.config import PRESETS, Place

Mutation = Callable[[onnx.ModelProto], None]

_GRAPH_OF = {"mu": "encoder", "logits": "decoder"}  # by first output


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators() -> None:
    """Exports here share it: it is half of the time of each."""
    operators.remember()


@pytest.fixture(scope="session")
def tiny_bundle(run_bundle: Path) -> Path:
    """Here the bundle that this exporter makes of `tiny_run`, in the place of the committed one."""
    return run_bundle


@pytest.fixture(scope="session")
def exported() -> dict[str, bytes]:
    """What the real exporter made of each graph of the tiny run at opset 17, kept so that each is exported once."""
    return {}


@pytest.fixture
def after_export(exported: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`after_export("encoder", mutation)` lets a mutation loose on that graph between exporter and gate.

    Without arguments nothing is changed: only the exporter's time is saved. For the tiny run at opset 17 only.
    """
    real = onnx_graph.to_onnx

    def apply(role: str = "", mutation: Mutation | None = None) -> None:
        def to_onnx(module: Any, example: Any, input_name: str, output_names: list[str], opset: int) -> Any:
            assert opset == 17
            graph = _GRAPH_OF[output_names[0]]
            if graph not in exported:
                exported[graph] = real(module, example, input_name, output_names, opset).SerializeToString()
            model = onnx.load_from_string(exported[graph])
            if graph == role and mutation is not None:
                mutation(model)
                assert model.SerializeToString() != exported[graph]
            return model

        monkeypatch.setattr(onnx_graph, "to_onnx", to_onnx)

    return apply


@pytest.fixture(scope="session")
def other_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle like the tiny one whose every bias is larger, so that both graphs give other numbers."""
    run = replace(run_folder.load(tiny_run), fingerprint=None)  # else it is known for another network than was trained
    with torch.no_grad():
        for name, weight in run.vae.named_parameters():
            weight += name.endswith("bias")
    out = tmp_path_factory.mktemp("bundles") / "other"
    exporter.export_run(run, out)
    return out


@pytest.fixture
def run_with_another_best(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run whose best epoch has other weights than its last, and outputs and figures of them."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    best = run_folder.load(run)
    with torch.no_grad():
        best.vae.decoder.last.bias += 1
    run_folder.save_weights(run, best.vae, best=True)
    run_folder.save_fingerprint(run, fingerprint.compute(best.vae, best.probe), best=True)
    run_folder.save_evaluation(run, {**best.evaluation, "split": "test of the best"}, best=True)
    return run


@pytest.fixture(scope="session")
def mlp_of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an MLP trained for seconds on scikit-learn's digits, which need no files."""
    folder = tmp_path_factory.mktemp("digits")
    config = PRESETS["deep"].replace(
        dataset="digits", hidden=(128, 128), activation="relu", latent_dim=8, epochs=15, batch_size=32
    )
    with runs.without_report():
        train.train(config, folder / "run", Place(folder, download=False, device="cpu", threads=1), command="vae-train")
    return folder / "run"
