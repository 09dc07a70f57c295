"""The numeric gate: it passes what is right, and the real command publishes nothing that is wrong."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
from onnx import numpy_helper

from vae_export import gate
from vae_export.cli import main
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import checkpoint

Command = Callable[..., Any]
Mutation = Callable[[onnx.ModelProto], None]


def rows_of(tensor: str, batches: tuple[int, ...] = gate.BATCHES) -> set[str]:
    """The names of a tensor's rows."""
    kinds = {"logits": ("prior z", "posterior z")}.get(tensor, ("real images", "extremes"))
    return {f"{tensor} on {kind} at batch {batch}" for kind in kinds for batch in batches}


def value(model: onnx.ModelProto, name: str) -> np.ndarray:
    """A copy of one initializer."""
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    return numpy_helper.to_array(tensor).copy()


def change(model: onnx.ModelProto, name: str, edit: Callable[[np.ndarray], None]) -> None:
    """Edit one initializer in place."""
    values = value(model, name)
    edit(values)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def node(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    """The graph's one node of this kind."""
    (found,) = [node for node in model.graph.node if node.op_type == operator]
    return found


def corrupt_mu_bias(model: onnx.ModelProto) -> None:
    """One bias of the encoder's mu head is off by 0.001."""
    change(model, "heads.mu.bias", lambda values: values.__setitem__(2, values[2] + 1e-3))


def corrupt_mu_weight(model: onnx.ModelProto) -> None:
    """One weight of the encoder's mu head is off by 0.01: that of the hidden unit that a white image excites most."""
    weight, bias = (value(model, f"body.1.0.{name}") for name in ("weight", "bias"))  # [hidden, pixels], [hidden]
    unit = int((weight.sum(axis=1) + bias).argmax())
    change(model, "heads.mu.weight", lambda values: values.__setitem__((0, unit), values[0, unit] + 0.01))


def swap_outputs(model: onnx.ModelProto) -> None:
    """The nodes that compute mu and logsigma write to each other's output."""
    other = {"mu": "logsigma", "logsigma": "mu"}
    for one in model.graph.node:
        one.output[:] = [other.get(name, name) for name in one.output]


def leaky_relu(model: onnx.ModelProto) -> None:
    """The decoder's Relu became a LeakyRelu."""
    node(model, "Relu").op_type = "LeakyRelu"


def sigmoid(model: onnx.ModelProto) -> None:
    """The decoder's Relu became a Sigmoid."""
    node(model, "Relu").op_type = "Sigmoid"


def batch_in_the_input(model: onnx.ModelProto) -> None:
    """The batch size 2 is baked into the input's shape."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def batch_in_the_reshape(model: onnx.ModelProto) -> None:
    """The batch size 2 is baked into the constant of the Reshape."""
    change(model, node(model, "Reshape").input[1], lambda values: values.__setitem__(0, 2))


def nan_weight(model: onnx.ModelProto) -> None:
    """One weight of the first layer is NaN."""
    (first,) = {"body.1.0.weight", "body.0.0.weight"} & {tensor.name for tensor in model.graph.initializer}
    change(model, first, lambda values: values.__setitem__((0, 0), np.nan))


ELBO, MU, LOGSIGMA, LOGITS = (rows_of(name) for name in ("ELBO", "mu", "logsigma", "logits"))
NOT_TWO = (1, 7, 64)
ENCODER_NOT_TWO = rows_of("ELBO", NOT_TWO) | rows_of("mu", NOT_TWO) | rows_of("logsigma", NOT_TWO)
CASES: list[tuple[str, Mutation, set[str], set[str]]] = [  # graph, mutation, rows that must fail, rows that may
    ("encoder", corrupt_mu_bias, MU, MU | ELBO),
    ("encoder", corrupt_mu_weight, {f"mu on extremes at batch {batch}" for batch in (2, 7, 64)}, MU | ELBO),
    ("encoder", swap_outputs, MU | LOGSIGMA | ELBO, MU | LOGSIGMA | ELBO),
    ("decoder", leaky_relu, LOGITS | ELBO, LOGITS | ELBO),
    ("decoder", sigmoid, LOGITS | ELBO, LOGITS | ELBO),
    ("encoder", batch_in_the_input, ENCODER_NOT_TWO, ENCODER_NOT_TWO),
    ("encoder", batch_in_the_reshape, ENCODER_NOT_TWO, ENCODER_NOT_TWO),
    (
        "decoder",
        batch_in_the_input,
        rows_of("logits", NOT_TWO) | rows_of("ELBO", NOT_TWO),
        rows_of("logits", NOT_TWO) | rows_of("ELBO", NOT_TWO),
    ),
    ("encoder", nan_weight, MU | LOGSIGMA | ELBO, MU | LOGSIGMA | ELBO),
    ("decoder", nan_weight, LOGITS | ELBO, LOGITS | ELBO),
]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing_rows(err: str) -> set[str]:
    """The rows named by the command's one error line."""
    found = re.fullmatch(r"vae-export: error: numeric gate failed: ([^;\n]+); [^\n]+\n", err)
    assert found, err
    return set(found[1].split(", "))


def test_gate_passes_the_tiny_run(tiny_run: Path, tiny_bundle: Path) -> None:
    """All 32 rows pass: 4 tensors, 2 kinds of input each, 4 batch sizes, nats for the ELBO only."""
    run = checkpoint.load(tiny_run)
    rows = gate.compare(run.vae, RuntimeVAE.load(tiny_bundle), run.probe)
    assert len(rows) == 32
    assert {row.name for row in rows} == MU | LOGSIGMA | LOGITS | ELBO
    assert [row.name for row in rows if not row.passed] == []
    assert {row.tensor for row in rows if row.nats is not None} == {"ELBO"}
    assert len(gate.table(rows).splitlines()) == 33


def test_mutating_nothing_publishes(
    command: Command, tiny_run: Path, tmp_path: Path, after_export: Callable[..., None]
) -> None:
    """The control: with the mutation left out, the same set-up publishes and every row has a tick."""
    after_export()
    result = command(main, tiny_run, "--out", tmp_path / "bundle")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("✓") == 32
    assert RuntimeVAE.load(tmp_path / "bundle").latent_dim == 4


@pytest.mark.parametrize(
    ("role", "mutation", "must", "may"), CASES, ids=[f"{role}-{mutation.__name__}" for role, mutation, *_ in CASES]
)
def test_a_wrong_graph_is_never_published(
    command: Command,
    tiny_run: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    after_export: Callable[..., None],
    role: str,
    mutation: Mutation,
    must: set[str],
    may: set[str],
) -> None:
    """Exit code 3, the failing rows named and no others, nothing published, an older bundle as it was, to the byte."""
    after_export(role, mutation)
    old = shutil.copytree(tiny_bundle, tmp_path / "old")
    before = contents(tmp_path)
    for out in (tmp_path / "new", old):
        result = command(main, tiny_run, "--out", out)
        assert result.code == 3, result.err
        failed = failing_rows(result.err)
        assert must <= failed
        assert failed <= may
        assert result.out.count("✗") == len(failed)
        assert "published" not in result.out
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        assert contents(tmp_path) == before


@pytest.mark.parametrize("evaluated", ["before", "after"])
def test_a_run_with_a_nan_weight_is_never_published(
    command: Command, tiny_run: Path, tmp_path: Path, evaluated: str
) -> None:
    """NaN in the run itself (both sides agree on it) fails too, whether or not its figures show it."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "runs" / "nan"))
    weights = safetensors.torch.load_file(run / "model.safetensors")
    weights["decoder.body.0.0.weight"][0, 0] = np.nan
    raw = safetensors.torch.save(weights)
    (run / "model.safetensors").write_bytes(raw)
    evaluation = json.loads((run / "evaluation.json").read_bytes())
    evaluation["weights_sha256"] = hashlib.sha256(raw).hexdigest()
    if evaluated == "after":
        evaluation["figures"]["elbo"]["mean"] = float("nan")
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    result = command(main, run, "--out", tmp_path / "bundle")
    assert result.code == 3
    assert re.fullmatch(r"vae-export: error: [^\n]+; [^\n]+\n", result.err)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_rows_agree_to_the_stated_tolerance_only() -> None:
    """A row passes at a difference within the tolerances and fails just beyond them, for tensors and for nats."""
    expected = np.array([[100.0, 0.0]])
    for factor, passed in ((0.9, True), (1.1, False)):
        off = expected + np.array([[0.0, factor * (gate.ABSOLUTE + 100 * gate.RELATIVE)]])
        assert gate._row("mu", "k", expected, off).passed is passed
        nats = np.array([-100.0])
        row = gate._row("ELBO", "k", nats, nats + factor * (gate.NATS + 100 * gate.RELATIVE))
        assert row.passed is passed
        assert row.nats == pytest.approx(factor * (gate.NATS + 100 * gate.RELATIVE))


@pytest.mark.parametrize("got", [[[np.nan, 0.0]], [[np.inf, 0.0]], [[1.0]], [[1.0, 0.0], [1.0, 0.0]]])
def test_rows_of_nan_infinity_or_another_shape_fail(got: list[list[float]]) -> None:
    """NaN, infinity and another shape never pass."""
    assert not gate._row("mu", "k", np.array([[1.0, 0.0]]), np.array(got)).passed
