"""The numeric gate: it passes what is right, and the real command publishes nothing that is wrong."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import numpy_helper

from vae_export import gate
from vae_export.cli import main
from vae_export.rounding import Precise
from vae_runtime.observation import Observation
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import networks, run_folder
from vae_train.config import PRESETS

Command = Callable[..., Any]
Mutation = Callable[[onnx.ModelProto], None]

_LATENTS = 4  # of the tiny run
_KINDS = {"logits": ("prior z", "posterior z")}


def rows_of(tensor: str, batches: tuple[int, ...] = gate.BATCHES) -> set[str]:
    """The names of a tensor's rows: at every batch size for what is likely, at one for what is not."""
    kinds = _KINDS.get(tensor, ("real images", "extremes"))
    found = {f"{tensor} on {kind} at batch {batch}" for kind in kinds for batch in batches}
    rare = {"golden": 2, "far z": _LATENTS} if tensor == "logits" else {"golden": 2, "patterns": 32}
    return found | {f"{tensor} on {kind} at batch {batch}" for kind, batch in rare.items() if batch > 2 or 2 in batches}


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


def failing_rows(result: Any) -> set[str]:
    """The rows that the command's table marks, which its one error line counts; it names one of them."""
    rows = [row[2:36] for row in result.out.splitlines() if row.startswith("✗")]
    found = {f"{row[:11].strip()} on {row[11:23].strip()} at batch {row[23:28].strip()}" for row in rows}
    line = r"vae-export: error: numeric gate failed: (?:(\d+) of 40 rows, the worst )?([^;\n(]+) \([^;\n]+\); [^\n]+\n"
    error = re.fullmatch(line, result.err)
    assert error, result.err
    assert int(error[1] or 1) == len(found)
    assert error[2] in found
    return found


@pytest.fixture(scope="module")
def cases(tiny_run: Path) -> list[gate.Case]:
    """What the gate expects of the tiny run's graphs."""
    run = run_folder.load(tiny_run)
    return gate.expect(run.vae, run.observation, run.probe)


def case_of(cases: list[gate.Case], tensor: str, kind: str) -> gate.Case:
    """One case."""
    (found,) = [case for case in cases if case.kind == kind and tensor in case.expected]
    return found


def test_gate_passes_the_tiny_run(tiny_run: Path, tiny_bundle: Path) -> None:
    """All 40 rows pass: 4 tensors, 2 likely kinds of inputs at 4 batch sizes, and 2 others."""
    run = run_folder.load(tiny_run)
    rows = gate.compare(run.vae, RuntimeVAE.load(tiny_bundle), run.probe)
    assert len(rows) == 40
    assert {row.name for row in rows} == MU | LOGSIGMA | LOGITS | ELBO
    assert [row.name for row in rows if not row.passed] == []
    assert len(gate.table(rows).splitlines()) == 41
    assert all(row.evidence == {} for row in rows)


def test_mutating_nothing_publishes(
    command: Command, tiny_run: Path, tmp_path: Path, after_export: Callable[..., None]
) -> None:
    """The control: without the mutation the same set-up publishes, --verbose shows every row, nothing is kept."""
    after_export()
    words = ("--out", tmp_path / "bundle", "--keep-failing", tmp_path / "kept", "--verbose")
    result = command(main, tiny_run, *words)
    assert (result.code, result.err) == (0, "")
    assert result.out.count("✓") == 40
    assert RuntimeVAE.load(tmp_path / "bundle").latent_dim == _LATENTS
    assert not (tmp_path / "kept").exists()


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
        failed = failing_rows(result)
        assert must <= failed
        assert failed <= may
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
    (run / "fingerprint.npz").unlink()  # as in a run from before 0.2; else they are of other weights
    result = command(main, run, "--out", tmp_path / "bundle")
    assert result.code == 3
    assert re.fullmatch(r"(vae-export: note: [^\n]+\n)?vae-export: error: [^\n]+; [^\n]+\n", result.err)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def shifted(case: gate.Case, tensor: str, at: tuple[int, ...], off: float, bundle: Path) -> gate.Case:
    """The case, but what it expects is what the runtime gives, less `off` in one place."""
    expected = dict(zip(case.expected, case.side.run(RuntimeVAE.load(bundle), case.inputs["x"]), strict=True))
    values = np.asarray(expected[tensor], np.float64)
    values[at] -= off
    return replace(case, expected={**expected, tensor: values})


@pytest.mark.parametrize("tensor", ["logsigma", "ELBO"])
@pytest.mark.parametrize(("factor", "passed"), [(0.99, True), (1.01, False), (np.nan, False), (np.inf, False)])
def test_rows_agree_to_their_tolerance_only(
    cases: list[gate.Case], tiny_bundle: Path, tensor: str, factor: float, passed: bool
) -> None:
    """A row passes at a difference within its tolerance and fails beyond it, at NaN and at infinity; others pass."""
    case = case_of(cases, tensor, "real images")
    numbers = sum(batch * values[0].size for c in cases for batch in c.batches for values in c.expected.values())
    place = (5, 1)[: case.expected[tensor].ndim]
    tolerance = next(row.tolerance for row in gate.judge(cases, RuntimeVAE.load(tiny_bundle)) if tensor in row.name)
    assert numbers * math.erfc(tolerance / case.errors[tensor] / math.sqrt(2)) == pytest.approx(1e-6, rel=1e-6)
    moved = shifted(case, tensor, place, factor * tolerance, tiny_bundle)
    rows = gate.judge([moved if c is case else c for c in cases], RuntimeVAE.load(tiny_bundle))
    touched = [row for row in rows if (row.tensor, row.inputs) == (tensor, "real images") and row.batch > place[0]]
    assert {row.passed for row in touched} == {passed}
    assert {row.worst for row in touched} == {place[0]}
    assert all(row.passed for row in rows if row not in touched)


def test_another_shape_fails(cases: list[gate.Case], tiny_bundle: Path) -> None:
    """A tensor of another shape than expected never passes, though NumPy would compare it."""
    case = case_of(cases, "mu", gate.GOLDEN)
    wide = {name: values[:, :1] for name, values in case.expected.items()}
    rows = gate.judge([replace(case, expected=wide)], RuntimeVAE.load(tiny_bundle))
    assert [row.problem for row in rows] == ["shape [2, 4], expected [2, 1]"] * 2
    assert not any(row.passed for row in rows)


def test_rows_say_how_far_off_the_worst_input_is(
    tiny_run: Path, tiny_bundle: Path, cases: list[gate.Case], after_export: Callable[..., None], tmp_path: Path
) -> None:
    """mu[2] off by 0.001: the worst image by its KL's closed form is not asked for, but its figures are its own."""
    case = case_of(cases, "mu", "real images")
    moved = shifted(case, "mu", (9, 2), 1e-3, tiny_bundle)
    row = next(r for r in gate.judge([moved], RuntimeVAE.load(tiny_bundle)) if (r.tensor, r.batch) == ("mu", 64))
    mu = moved.expected["mu"][9]
    scale = np.float32(np.abs(mu).max())
    assert (row.worst, row.passed) == (9, False)
    assert row.max_abs == pytest.approx(1e-3, rel=1e-6)
    assert row.ulps == pytest.approx(1e-3 / float(np.nextafter(scale, np.float32(np.inf)) - scale), rel=1e-6)
    assert row.nats == pytest.approx(abs((mu[2] + 1e-3) ** 2 - mu[2] ** 2) / 2, rel=1e-4)
    assert row.pytorch < row.tolerance
    lines = gate.table([row]).splitlines()
    assert lines[1].split()[:7] == ["✗", "mu", "real", "images", "64", "9", "1.0e-03"]


@pytest.mark.parametrize("off", [1e-9, 1e-3, 1e30, np.inf])
def test_columns_stay_apart(off: float) -> None:
    """However large the figures are, each stands below its heading."""
    row = gate.Comparison("logsigma", "real images", 64, 1e-5, 1e-6, worst=63, max_abs=off, ulps=off * 2**24, nats=off)
    head, line = gate.table([row]).splitlines()
    assert len(line) == len(head)
    for column in ("worst", "off", "tolerance", "ulps", "nats", "PyTorch"):
        end = head.index(column) + len(column)
        assert line[end - 1] != " "
        assert line[end : end + 1] in ("", " ")


def test_tolerances_hold_for_rounding_by_the_model(tiny_run: Path, cases: list[gate.Case]) -> None:
    """Of fresh draws of float32's errors, for all images and not only those that tolerances come from, none fails.

    Nor are tolerances of another size: the worst draw of 64 images is a third to three times the standard error.
    """
    run = run_folder.load(tiny_run)
    precise = Precise(run.vae)
    for tensor, kind, part in (("mu", "real images", run.vae.encoder), ("logits", gate.PRIOR, run.vae.decoder)):
        case = case_of(cases, tensor, kind)
        values = precise.evaluate(part, torch.from_numpy(next(iter(case.inputs.values()))), seed=1000)
        first = values[0] if tensor == "mu" else values
        off = np.abs(first.numpy() - case.expected[tensor]).max()
        assert case.errors[tensor] / 3 < off < 3 * case.errors[tensor]


def test_tolerances_come_from_all_inputs() -> None:
    """Of 20 far z two are 1,000 times as large inside: wherever they are, tolerances know of them."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"].replace(hidden=(8,), latent_dim=20), (1, 4, 4)).eval()
    probe = np.zeros((2, 1, 4, 4), np.uint8)
    far = case_of(gate.expect(vae, Observation.image((1, 4, 4)), probe), "logits", gate.FAR)
    with torch.no_grad():
        next(vae.decoder.parameters())[:, 18] *= 1000
    larger = case_of(gate.expect(vae, Observation.image((1, 4, 4)), probe), "logits", gate.FAR)
    assert larger.pytorch["logits"] > 100 * far.pytorch["logits"]
    assert larger.errors["logits"] > 100 * far.errors["logits"]


def test_far_latents_are_far_on_every_axis() -> None:
    """3 along each axis, and -1.5 along the next where there is one."""
    assert gate._far((1,)).tolist() == [[3.0]]
    assert gate._far((2,)).tolist() == [[3.0, -1.5], [-1.5, 3.0]]


def test_golden_tolerances_are_in_the_manifest(tiny_bundle: Path) -> None:
    """For each golden array the tolerance of the gate's golden row, and what it comes from in words."""
    parity = json.loads((tiny_bundle / "manifest.json").read_bytes())["parity"]
    golden = {row["tensor"].lower(): row["tolerance"] for row in parity["rows"] if row["inputs"] == "golden"}
    assert golden.keys() == {"mu", "logsigma", "logits", "elbo"}
    model = parity["tolerance"].pop("model")
    assert parity["tolerance"] == golden
    assert "2^-24" in model
    assert "1e-6" in model
    assert max(golden.values()) < 1e-3


@pytest.mark.parametrize(
    ("role", "mutation"),
    [("encoder", corrupt_mu_bias), ("decoder", leaky_relu), ("encoder", batch_in_the_reshape)],
)
def test_a_kept_failure_is_repeated_with_onnxruntime_alone(
    command: Command,
    tiny_run: Path,
    tmp_path: Path,
    after_export: Callable[..., None],
    role: str,
    mutation: Mutation,
) -> None:
    """--keep-failing: the kept graphs give the kept wrong numbers for the kept inputs again, in every failing row."""
    after_export(role, mutation)
    kept = tmp_path / "new" / "kept"
    result = command(main, tiny_run, "--out", tmp_path / "bundle", "--keep-failing", kept)
    assert result.code == 3
    assert f"{kept}/rerun.txt" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert {path.name for path in kept.iterdir()} == {*gate_files(), "failing.npz", "rerun.txt"}
    with np.load(kept / "failing.npz") as archive:
        kept_arrays = dict(archive)
    assert set(kept_arrays["rows"]) == failing_rows(result)
    sessions = {name: onnxruntime.InferenceSession(kept / f"{name}.onnx") for name in ("encoder", "decoder")}
    for i, name in enumerate(kept_arrays["rows"]):
        row = {key.split("/")[1]: value for key, value in kept_arrays.items() if key.startswith(f"{i}/")}
        if "got" not in row:  # onnxruntime could not run it, and cannot now
            with pytest.raises(Exception, match=r"Reshape|Gemm|INVALID_ARGUMENT"):
                sessions["encoder"].run(None, {"x": row["x"]})
            continue
        again = recompute(sessions, name.split(" on ")[0], row)[row["worst"]]
        np.testing.assert_allclose(again, row["got"], rtol=1e-6, atol=1e-5)
        assert np.abs(again - row["expected"]).max() > 1e-5
    assert "got" in row or mutation is batch_in_the_reshape


def gate_files() -> set[str]:
    """The files of a bundle."""
    return {"encoder.onnx", "decoder.onnx", "golden.npz", "manifest.json"}


def recompute(sessions: dict[str, onnxruntime.InferenceSession], tensor: str, row: dict[str, np.ndarray]) -> np.ndarray:
    """A tensor from onnxruntime, the ELBO of binary images in NumPy's float64 from its tensors."""
    if tensor == "logits":
        return sessions["decoder"].run(["logits"], {"z": row["z"]})[0]
    mu, logsigma = sessions["encoder"].run(["mu", "logsigma"], {"x": row["x"]})
    if tensor != "ELBO":
        return {"mu": mu, "logsigma": logsigma}[tensor]
    logits = sessions["decoder"].run(["logits"], {"z": mu + np.exp(logsigma) * row["eps"]})[0].astype(np.float64)
    reconstruction = (row["x"] * logits - np.logaddexp(0, logits)).sum(axis=(1, 2, 3))
    return reconstruction - 0.5 * (np.exp(2 * logsigma) + mu**2 - 2 * logsigma - 1).sum(axis=1)


def test_the_kept_line_repeats_the_failure(
    command: Command, tiny_run: Path, tmp_path: Path, after_export: Callable[..., None]
) -> None:
    """rerun.txt is one line for the shell that prints how far off the named row is."""
    after_export("encoder", corrupt_mu_bias)
    command(main, tiny_run, "--out", tmp_path / "bundle", "--keep-failing", tmp_path / "kept")
    (line,) = (tmp_path / "kept" / "rerun.txt").read_text().splitlines()
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # the tests' own is `python3`
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        line, shell=True, cwd=tmp_path / "kept", env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(1e-3, rel=0.01)
    assert "# in this folder: mu on real images at batch 1, " in line


def test_what_exists_is_not_kept_over(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    """--keep-failing with a folder that exists is wrong usage, before anything is exported."""
    (tmp_path / "kept").mkdir()
    result = command(main, tiny_run, "--out", tmp_path / "bundle", "--keep-failing", tmp_path / "kept")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"vae-export: error: folder exists: {tmp_path}/kept; choose another with --keep-failing\n"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
