"""The ONNX graphs: names, batch axis, opset, metadata, and what the exporter refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vae_export import exporter, onnx_graph, requirements
from vae_export.cli import main
from vae_runtime.errors import ArgumentError, BundleError
from vae_runtime.sessions import Session
from vae_train import run_folder

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
OUTPUTS = {"encoder": {"mu": [4], "logsigma": [4]}, "decoder": {"logits": [1, 28, 28]}}
INPUTS = {"encoder": {"x": [1, 28, 28]}, "decoder": {"z": [4]}}

both = pytest.mark.parametrize("role", ["encoder", "decoder"])


def shapes(values: Any) -> dict[str, list[int | str]]:
    """Names and shapes of a graph's inputs or outputs."""
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@both
def test_names_and_the_dynamic_batch(tiny_bundle: Path, role: str) -> None:
    """Inputs and outputs have their documented names, float32, and a first axis called batch."""
    graph = onnx.load(tiny_bundle / f"{role}.onnx").graph
    assert shapes(graph.input) == {name: ["batch", *rest] for name, rest in INPUTS[role].items()}
    assert shapes(graph.output) == {name: ["batch", *rest] for name, rest in OUTPUTS[role].items()}
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@both
def test_graph_is_valid_deterministic_and_self_contained(tiny_bundle: Path, role: str) -> None:
    """Each graph passes onnx's full check, has opset 17, ir version 8, no random operator and its weights inside."""
    raw = (tiny_bundle / f"{role}.onnx").read_bytes()
    model = onnx.load_from_string(raw)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert not model.functions
    assert not RANDOM & {node.op_type for node in model.graph.node}
    assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) > 100_000  # bytes, of about 25,600 weights
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_both_graphs_carry_one_contract_and_their_role(tiny_bundle: Path) -> None:
    """The metadata of both graphs holds the manifest's contract and the graph's own role, and nothing else."""
    contract = json.loads((tiny_bundle / "manifest.json").read_bytes())["contract"]
    assert contract["latent_shape"] == [4]
    assert contract["prior"] == {"name": "standard-normal"}
    for role in ("encoder", "decoder"):
        (entry,) = onnx.load(tiny_bundle / f"{role}.onnx").metadata_props
        assert entry.key == "vae_edge"
        assert json.loads(entry.value) == {**contract, "role": role}


@both
def test_graph_holds_no_trace_of_the_exporting_machine(tiny_bundle: Path, role: str) -> None:
    """No path of this machine's files (the exporter's stack traces) is in the published graph."""
    raw = (tiny_bundle / f"{role}.onnx").read_bytes()
    assert str(Path(onnx_graph.__file__).parent).encode() not in raw
    assert b".py" not in raw


@pytest.mark.parametrize("opset", range(onnx_graph.OLDEST_OPSET, onnx_graph.newest_opset() + 1))
def test_every_opset_arrives_and_gives_the_same_numbers(tiny_run: Path, opset: int) -> None:
    """The graph has exactly the opset asked for, and the runtime's session gives PyTorch's numbers for any batch."""
    run = run_folder.load(tiny_run)
    encoder = onnx_graph.to_onnx(run.vae.encoder, torch.zeros(2, 1, 28, 28), "x", ["mu", "logsigma"], opset)
    assert [(entry.domain, entry.version) for entry in encoder.opset_import] == [("", opset)]
    session = Session(encoder.SerializeToString(), "encoder")
    for batch in (1, 5):
        x = run.probe[:batch].astype(np.float32) / 255
        with torch.no_grad():
            expected = run.vae.encoder(torch.from_numpy(x))
        for got, wanted in zip(session.run(["mu", "logsigma"], x), expected, strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [onnx_graph.OLDEST_OPSET, onnx_graph.newest_opset()])
def test_decoder_arrives_at_the_oldest_and_newest_opset(tiny_run: Path, opset: int) -> None:
    """The decoder too has the opset asked for, and the same numbers."""
    run = run_folder.load(tiny_run)
    decoder = onnx_graph.to_onnx(run.vae.decoder, torch.zeros(2, 4), "z", ["logits"], opset)
    assert [(entry.domain, entry.version) for entry in decoder.opset_import] == [("", opset)]
    z = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    with torch.no_grad():
        expected = run.vae.decoder(torch.from_numpy(z)).numpy()
    (got,) = Session(decoder.SerializeToString(), "decoder").run(["logits"], z)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [16, 99])
def test_opsets_out_of_range_are_refused(
    command: Callable[..., Any], tiny_run: Path, tmp_path: Path, opset: int
) -> None:
    """An opset that cannot be had is wrong usage, and the message names the range."""
    wanted = f"17 to {onnx_graph.newest_opset()}"
    with pytest.raises(ArgumentError, match=wanted):
        exporter.export_run(run_folder.load(tiny_run), tmp_path / "x", opset=opset)
    result = command(main, tiny_run, "--opset", opset, "--out", tmp_path / "x")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("vae-export: error: ")
    assert len(result.err.splitlines()) == 1
    assert wanted in result.err
    assert not any(tmp_path.iterdir())


def test_newest_opset_is_one_that_all_sides_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """No opset without a known onnxruntime is offered, nor any but the first where torch no longer says its newest."""
    assert 20 <= onnx_graph.newest_opset() <= onnx.defs.onnx_opset_version()
    with monkeypatch.context() as patch:
        patch.setattr(requirements, "NEWEST_OPSET", 19)
        assert onnx_graph.newest_opset() == 19
    monkeypatch.delattr("torch.onnx._constants.ONNX_MAX_OPSET")
    assert onnx_graph.newest_opset() == 18


def valid_model(batch: str | int = "batch", operator: str = "Relu", opset: int = 17) -> onnx.ModelProto:
    """A one-node model, valid but for what the arguments spoil."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 3]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, ["x"], ["y"])], "g", [x], [y])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("operator", sorted({"RandomNormalLike", "RandomUniformLike", "Bernoulli"}))
def test_check_finds_random_operators(operator: str) -> None:
    """A graph with a random operator is refused by the operator's name."""
    onnx_graph.check(valid_model(), 17)
    with pytest.raises(BundleError, match=operator):
        onnx_graph.check(valid_model(operator=operator), 17)


def test_check_finds_random_operators_inside_a_branch() -> None:
    """A random operator hidden in the branch of an If is refused with it."""
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])
    branches = [
        onnx.helper.make_graph([onnx.helper.make_node(operator, ["x"], ["b"])], operator, [], [
            onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ["batch", 3])
        ])
        for operator in ("RandomNormalLike", "Relu")
    ]  # fmt: skip
    model = valid_model()
    truth = onnx.helper.make_tensor("c", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(truth)
    del model.graph.node[:]
    model.graph.node.append(
        onnx.helper.make_node("If", ["c"], [y.name], then_branch=branches[0], else_branch=branches[1])
    )
    with pytest.raises(BundleError, match="control flow, If"):
        onnx_graph.check(model, 17)


def test_check_finds_a_fixed_batch_and_another_opset() -> None:
    """A graph of batch 2, or of another opset than asked for, is refused."""
    with pytest.raises(BundleError, match="batch size fixed"):
        onnx_graph.check(valid_model(batch=2), 17)
    with pytest.raises(BundleError, match="asked for 17"):
        onnx_graph.check(valid_model(opset=16), 17)
