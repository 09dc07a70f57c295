"""`vae-export check`: a bundle is judged again, with its run or without PyTorch, and whatever is wrong is named."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vae_export import check
from vae_export.cli import cli, main, on_bundles
from vae_runtime.bundle import GRAPHS, read
from vae_runtime.sessions import Session

Command = Callable[..., Any]
Forge = Callable[..., Path]
ERROR = re.compile(r"vae-export: error: [^\n;]+: [^\n;]+; [^\n]+\n")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(graph: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    """A graph after a change."""
    model = onnx.load_from_string(graph)
    change(model)
    return bytes(model.SerializeToString())


def nudge(model: onnx.ModelProto) -> None:
    """Add 0.01 to the first weight of the last bias."""
    bias = next(it for it in reversed(model.graph.initializer) if len(it.dims) == 1 and it.data_type == 1)
    values = numpy_helper.to_array(bias).copy()
    values[0] += 0.01
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))


def test_a_bundle_is_checked_without_its_run(
    command: Command, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden vectors and the reference evaluator, each tensor at each batch size, all within; nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = contents(tiny_bundle)
    result = command(main, "check", tiny_bundle, "--verbose")
    assert (result.code, result.err) == (0, "")
    *rows, last = result.out.splitlines()[1:]
    names = [row.split("  ")[0] for row in rows]
    tensors = ["mu", "logsigma", "logits", "elbo"]
    assert names[:6] == [f"✓ {name}, golden" for name in ("z", "eps", *tensors)]
    assert names[6:] == [f"✓ {name}, reference, batch {batch}" for batch in (1, 2, 7, 64) for name in tensors]
    assert last == f"{tiny_bundle}: fine, against its golden vectors and ONNX's reference evaluator"
    brief, fine = command(main, "check", tiny_bundle).out.splitlines()
    assert brief.startswith(f"✓ {len(rows)} comparisons passed")
    assert fine == last
    assert contents(tiny_bundle) == before
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_a_bundle_that_ships_is_checked_by_its_name(command: Command, name: str) -> None:
    """`vae-export check mnist` checks the bundle in the package."""
    result = command(main, "check", name)
    assert (result.code, result.err, result.out.count("✗")) == (0, "", 0)


WITHOUT = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(','))); del sys.argv[1]; {}"


def test_a_check_without_a_run_needs_no_pytorch(tiny_bundle: Path) -> None:
    """Where torch, torchvision and onnxscript cannot be imported, the check runs all the same."""
    blocked = ("torch,torchvision,onnxscript", "from vae_export.cli import main; main()")
    call = [sys.executable, "-c", WITHOUT.format(blocked[1]), blocked[0], "check", str(tiny_bundle)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    call[2] = WITHOUT.format("import torch")
    assert subprocess.run(call, capture_output=True, check=False).returncode == 1  # so that the block is one


@pytest.mark.parametrize(("role", "named"), [("encoder", "logsigma"), ("decoder", "logits")])
def test_a_changed_weight_is_found_by_the_golden_vectors(
    command: Command, tiny_bundle: Path, forge: Forge, role: str, named: str
) -> None:
    """A weight that is 0.01 off, under valid hashes: exit code 3, failing rows counted and shown, no other failed."""
    out = forge({f"{role}.onnx": changed((tiny_bundle / f"{role}.onnx").read_bytes(), nudge)})
    result = command(main, "check", out)
    assert result.code == 3
    assert ERROR.fullmatch(result.err)
    failed = [row[2:].split("  ")[0] for row in result.out.splitlines() if row.startswith("✗")]
    assert f"{named}, golden" in failed
    assert all("golden" in name for name in failed)
    counted = f"{len(failed)} of 22 rows, the worst " if len(failed) > 1 else ""
    (worst,) = (name for name in failed if f"numeric gate failed: {counted}{name} (" in result.err)
    assert worst in failed
    assert result.err.endswith("; do not use this bundle; see the table above\n")


def test_a_runtime_that_computes_otherwise_is_found_by_the_reference(
    command: Command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where onnxruntime gives other numbers for larger batches, the rows of the reference evaluator say so."""
    run = Session.run

    def off(session: Session, outputs: Any, x: Any) -> Any:
        return [result + np.float32(0.001 * (len(x) > 2)) for result in run(session, outputs, x)]

    monkeypatch.setattr(Session, "run", off)
    result = command(main, "check", tiny_bundle)
    assert result.code == 3
    failed = {row[2:].split("  ")[0] for row in result.out.splitlines() if row.startswith("✗")}
    sure = {f"{name}, reference, batch {batch}" for name in ("mu", "logsigma", "logits") for batch in (7, 64)}
    assert failed >= sure
    assert not any("golden" in name or "batch 1" in name or "batch 2" in name for name in failed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest["onnx"].update(opset=18), "exported opset 17: asked for 18"),
        (lambda manifest: manifest["onnx"].update(ir_version=9), "ir_version 8: the manifest says 9"),
        (lambda manifest: manifest["parity"].update(rows=[]), "bundle's manifest lacks what is checked: parity of mu"),
        (lambda manifest: manifest.pop("onnx"), "bundle's manifest lacks what is checked: "),
        (lambda manifest: manifest.pop("parity"), "no tolerance for golden vectors"),
    ],
)
def test_a_manifest_that_says_otherwise_is_named(command: Command, forge: Forge, change: Any, words: str) -> None:
    """Another opset or ir_version than the graphs', or none, and no tolerances, end in exit code 3 and one line."""
    result = command(main, "check", forge(change=change))
    assert (result.code, result.out) == (3, "")
    assert ERROR.fullmatch(result.err)
    assert words in result.err


def test_a_graph_that_is_not_valid_is_named(command: Command, tiny_bundle: Path, forge: Forge) -> None:
    """A node that ONNX does not know, under valid hashes, ends in exit code 3 and names the graph."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Frobnicate"

    out = forge({"decoder.onnx": changed((tiny_bundle / "decoder.onnx").read_bytes(), change)})
    result = command(main, "check", out)
    assert (result.code, result.out) == (3, "")
    assert f"graph is not what the manifest says: {out}/decoder.onnx (exported graph is not valid" in result.err


def test_a_graph_that_protobuf_refuses_is_named(command: Command, tiny_bundle: Path, forge: Forge) -> None:
    """Bytes that are no message where ONNX has one, under valid hashes, end in exit code 3 and name the graph."""
    raw = (tiny_bundle / "decoder.onnx").read_bytes()
    type_of_output = onnx.load_from_string(raw).graph.output[0].type.SerializeToString()
    assert type_of_output in raw
    out = forge({"decoder.onnx": raw.replace(type_of_output, b"\xff" * len(type_of_output))})
    result = command(main, "check", out)
    assert (result.code, result.out) == (3, "")
    assert result.err == f"vae-export: error: graph damaged: {out}/decoder.onnx (DecodeError); export it again\n"


def test_an_operator_that_the_reference_lacks_is_named(
    command: Command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX's evaluator raises, of whatever kind, ends in exit code 3 and one line that names the graph."""

    def run(evaluator: ReferenceEvaluator, outputs: Any, feed: Any) -> Any:
        raise NotImplementedError("no such\noperator")

    monkeypatch.setattr(ReferenceEvaluator, "run", run)
    result = command(main, "check", tiny_bundle)
    assert (result.code, result.out) == (3, "")
    assert ERROR.fullmatch(result.err)
    assert f"{tiny_bundle}/encoder.onnx (NotImplementedError: no such operator)" in result.err


@pytest.mark.parametrize("name", ["encoder.onnx", "golden.npz", "manifest.json"])
def test_damage_is_named(command: Command, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    """A flipped bit in any file ends in exit code 3 and names it."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    raw = bytearray((out / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (out / name).write_bytes(raw)
    result = command(main, "check", out)
    assert (result.code, result.out) == (3, "")
    assert str(out / name) in result.err


def test_quantised_graphs_are_evaluated_at_any_opset(tiny_bundle: Path, forge: Forge) -> None:
    """ONNX's evaluator knows the quantising operators from opset 19 on; one of opset 17 that has them is checked."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = ["rounded" if name == "z" else name for name in node.input]
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.float32(1 / 64), "step"),
                numpy_helper.from_array(np.uint8(128), "zero"),
            ]
        )
        both = [
            helper.make_node("QuantizeLinear", ["z", "step", "zero"], ["integers"]),
            helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["rounded"]),
        ]
        nodes = [*both, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    out = forge({"decoder.onnx": changed((tiny_bundle / "decoder.onnx").read_bytes(), change)})
    rows = check.alone(read(out))
    assert not next(row for row in rows if row.name == "logits, golden").passed
    assert all(row.passed for row in rows if row.name.startswith("logits, reference"))


def test_a_check_with_the_run_repeats_the_gate(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    """`check BUNDLE RUN` prints the table of the export, row by row, and leaves bundle and run as they were."""
    out = tmp_path / "bundle"
    exported = command(main, tiny_run, "--out", out, "--verbose")
    before = contents(out), sorted(tiny_run.iterdir())
    result = command(main, "check", out, tiny_run, "--verbose")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[:-1] == exported.out.splitlines()[1:-1]
    assert result.out.count("✓") > 20
    assert result.out.splitlines()[-1] == f"{out}: fine, against {tiny_run}"
    assert (contents(out), sorted(tiny_run.iterdir())) == before


def test_a_bundle_of_other_weights_is_refused(command: Command, tiny_run: Path, other_bundle: Path) -> None:
    """A bundle of the same networks with other weights: exit code 3, failing rows counted and the worst named."""
    result = command(main, "check", other_bundle, tiny_run)
    assert result.code == 3
    assert ERROR.fullmatch(result.err)
    rows = [row for row in result.out.splitlines() if row.startswith("✗")]
    assert len(rows) > 20
    assert re.search(
        rf": {len(rows)} of 40 rows, the worst \w+ on [^;]+ at batch \d+ \([^;]+ is allowed\); ", result.err
    )
    assert "add --best where it was exported so" in result.err


@pytest.mark.parametrize(
    ("graph", "change", "words"),
    [
        (lambda it: it.update(latent_shape=[5]), None, "latent shape (5,), not (4,)"),
        (lambda it: it["observation"].update(shape=[1, 28, 27]), None, "shape (1, 28, 27), not (1, 28, 28)"),
        (
            lambda it: it.update(likelihood={"name": "gaussian", "settings": {"logsigma": 0.5}}),
            None,
            "likelihood {'name': 'gaussian', 'settings': {'logsigma': 0.5}}, not {'name': 'bernoulli'}",
        ),
        (None, lambda manifest: manifest.update(parameters=3), "parameters 3, not "),
    ],
)
def test_a_bundle_of_another_model_is_refused(
    command: Command, tiny_run: Path, tiny_bundle: Path, forge: Forge, graph: Any, change: Any, words: str
) -> None:
    """Another image shape, latent_dim, likelihood or number of parameters: exit code 3 before anything is compared."""

    def restamp(model: onnx.ModelProto) -> None:
        (entry,) = model.metadata_props
        contract = json.loads(entry.value)
        graph(contract)
        entry.value = json.dumps(contract)

    files = {name: changed((tiny_bundle / name).read_bytes(), restamp) for name in GRAPHS} if graph else {}
    out = forge(files, change or (lambda manifest: graph(manifest["contract"])))
    result = command(main, "check", out, tiny_run)
    assert (result.code, result.out) == (3, "")
    assert f"bundle of another run: {out} ({words}" in result.err


def test_a_bundle_of_the_best_epoch_is_checked_with_best(
    command: Command, run_with_another_best: Path, tmp_path: Path
) -> None:
    """What `--best` exported is fine with --best, whose weights are compared, and refused without."""
    run, out = run_with_another_best, tmp_path / "bundle"
    assert command(main, run, "--best", "--out", out).code == 0
    result = command(main, "check", out, run, "--best")
    assert (result.code, result.err) == (0, "")
    assert command(main, "check", out, run).code == 3


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, []),
        (2, ["{bundle}", "--best"]),
        (2, ["{bundle}", "--model", "a:b"]),
        (2, ["{bundle}", "{run}", "more"]),
        (2, ["{bundle}", "--out", "x"]),
        (3, ["no-such-bundle"]),
        (3, ["{bundle}", "{bundle}"]),
        (3, ["{run}"]),
    ],
)
def test_errors_end_in_one_line(
    command: Command, tiny_run: Path, tiny_bundle: Path, code: int, arguments: list[str]
) -> None:
    """Wrong usage, and folders that are no bundle or no run: the exit code and one line with advice."""
    result = command(main, "check", *(word.format(run=tiny_run, bundle=tiny_bundle) for word in arguments))
    assert (result.code, result.out) == (code, "")
    assert re.fullmatch(r"vae-export: error: [^\n;]+; [^\n]+\n", result.err), result.err


@pytest.mark.slow
def test_a_run_called_like_a_command_is_exported(
    command: Command,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_export: Callable[..., None],
) -> None:
    """`vae-export ./check` exports the run folder "check", and so do options before its name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "check")
    after_export()
    for arguments in (["./check"], ["--opset", 17, "check"]):
        result = command(main, *arguments)
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines()[-1].startswith("published bundles/check: opset 17")
        shutil.rmtree("bundles")


def test_help_lists_the_commands_and_stays_short(command: Command) -> None:
    """`vae-export --help` names every command, in fewer lines than a screen has."""
    result = command(main, "--help")
    assert (result.code, result.err) == (0, "")
    assert {name for name in on_bundles.commands if f"  vae-export {name} BUNDLE" in result.out} == {
        *on_bundles.commands
    }
    assert len(result.out.splitlines()) < 60
    assert all(option in result.out for parameter in cli.params for option in parameter.opts if option.startswith("-"))
