"""A hostile world: forged bundles with valid hashes, too little memory or disk, signals, closed streams, no home."""

import copy
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from support import graphs
from support.bundles import Forge
from support.graphs import field, node
from support.hostile import ALL, LONGEST, Bench, one_line, places, seal, verified
from vae_runtime import VAE, BundleError, bundle
from vae_runtime.cli import cli, main

Run = Callable[..., subprocess.CompletedProcess[str]]
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as on Linux")


# Manifests: valid hashes over anything at all.

LONG = "A" * 10_000


@pytest.mark.parametrize(
    "value",
    [
        "\x1b[2J\u202e",
        *(
            pytest.param(it, marks=pytest.mark.slow)
            for it in (None, "words", -1, 0.5, 10**400, [], [1], {}, "A" * 10_000)
        ),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_verbs_survive_any_entry_of_a_manifest(bench: Bench, command: Any, value: Any):
    """With any one entry replaced, each verb ends well or in exit code 3 and one line, and prints nothing odd."""
    np.save(bench.path.parent / "x.npy", np.zeros((1, 28, 28), np.uint8))
    verbs = (["info"], ["info", "--json"], ["elbo", bench.path.parent / "x.npy"], ["verify"])
    codes = set()
    for i in range(len(places(bench.manifest))):
        tree = copy.deepcopy(bench.manifest)
        container, key = places(tree)[i]
        container[key] = value
        with bench.holding({"manifest.json": seal(json.dumps(tree).encode())}) as path:
            for verb in verbs:
                result = command(main, "--bundle", path, *verb)
                codes.add(result.code)
                assert result.code in (0, 3), (key, verb)
                assert all(line.isprintable() for line in result.out.splitlines()), (key, verb)
                unranked = result.err.startswith("vae-infer: note: no percentiles")  # scores go on without quantiles
                assert (result.err == "" or unranked) is (result.code == 0), (key, verb)
                assert len(result.err) < LONGEST, (key, verb)
                assert result.err.rstrip("\n").isprintable(), (key, verb)
    assert codes == {0, 3}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format": 2,', '"format": 1, "format": 2,'),
        ('"contract": {', '"contract": {}, "contract": {'),
        ('"latent_shape": [', '"latent_shape": [7], "latent_shape": ['),
        ('"onnx": {', '"onnx": {"a": 1, "a": 2, '),
    ],
)
def test_a_key_that_comes_twice_is_refused(bench: Bench, old: str, new: str):
    """Two readers may take different ones of two equal keys, so a manifest with such is not understood."""
    with bench.holding({"manifest.json": bench.sealed(old, new)}) as path:
        with pytest.raises(BundleError, match="manifest not understood") as caught:
            bundle.read(path)
        one_line(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_manifest_with_nan_is_refused(bench: Bench, number: str):
    """NaN and infinities are no JSON, and `info --json` would hand them on: such a manifest is not understood."""
    with bench.holding({"manifest.json": bench.sealed('"onnx": {', f'"onnx": {{"a": {number}, ')}) as path:
        with pytest.raises(BundleError, match="manifest not understood") as caught:
            bundle.read(path)
        one_line(caught.value)


@pytest.mark.parametrize("depth", [100, 300, 500, 700, 850, 1000, 10_000])
def test_a_nested_manifest_is_refused_or_printed(bench: Bench, depth: int):
    """However deep a manifest is nested, it is not understood, or every verb that prints it does so."""
    nested = f'"onnx": {{"a": {"[" * depth}{"]" * depth}, '
    with bench.holding({"manifest.json": bench.sealed('"onnx": {', nested)}) as path:
        try:
            vae = VAE.load(path)
        except BundleError as error:
            one_line(error)
            return
        assert len(str(vae.manifest.raw)) > 2 * depth
        result = CliRunner().invoke(cli, ["--bundle", str(path), "info", "--json"])
        assert result.exception is None
        assert json.loads(result.stdout) == vae.manifest.raw


# The command in a process of its own.

START = """
import json, resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have left it ignored
for name, limit in json.loads(sys.argv[1]).items():
    resource.setrlimit(getattr(resource, name), (limit, limit))
sys.argv = ["vae-infer", *sys.argv[2:]]
from vae_runtime.cli import main
main()
"""


def command_line(*arguments: object, **limits: int) -> list[str]:
    """vae-infer with these arguments, under limits such as RLIMIT_AS=bytes."""
    return [sys.executable, "-c", START, json.dumps(limits), *map(str, arguments)]


def clean(**changes: str) -> dict[str, str]:
    """This environment without what steers the command, and without Python's own files."""
    hidden = ("VAE_EDGE_BUNDLE", "VAE_EDGE_THREADS", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **changes}


def infer(cwd: Path, *arguments: object, timeout: float = 600, **limits: int) -> subprocess.CompletedProcess[str]:
    """Run vae-infer in the folder `cwd`."""
    return subprocess.run(
        command_line(*arguments, **limits), cwd=cwd, env=clean(), capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def here(command: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`infer` in this process, many times as fast: for what can neither hang it, nor kill it, nor fill the memory."""

    def call(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        result = command(main, *arguments)
        return subprocess.CompletedProcess(arguments, result.code, result.out, result.err)

    return call


def fails(done: subprocess.CompletedProcess[str], *codes: int) -> str:
    """The command ended in one of the exit codes, with one printable line on stderr and nothing on stdout."""
    assert done.returncode in codes, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("vae-infer: error: ")
    assert done.stderr.endswith("\n")
    assert done.stderr[:-1].isprintable()
    assert len(done.stderr) < LONGEST
    return done.stderr


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty working folder."""
    path = tmp_path / "work"
    path.mkdir()
    return path


# Files that are no files.


@pytest.mark.parametrize("name", ALL)
def test_a_link_to_the_same_bytes_loads(bench: Bench, tmp_path: Path, name: str):
    """A link in a file's place, also one that leaves the folder, is followed: the hash decides, not the place."""
    out = Path(shutil.copytree(bench.path, tmp_path / "linked"))
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to("../elsewhere")
    np.testing.assert_array_equal(VAE.load(out).sample(2), VAE.load(bench.path).sample(2))
    (tmp_path / "elsewhere").write_bytes(b"other bytes")
    with pytest.raises(BundleError, match=re.escape(str(out / name))):
        VAE.load(out)


@linux
@pytest.mark.parametrize("target", ["nowhere", "golden.npz", "/dev/zero", "/dev/null", "/dev/full", "/etc/passwd", "/"])
def test_a_link_to_anything_else_is_refused(bench: Bench, tmp_path: Path, target: str):
    """Links to nothing, to themselves, to devices, to other files and to folders raise BundleError with the file."""
    out = Path(shutil.copytree(bench.path, tmp_path / "linked"))
    (out / "golden.npz").unlink()
    (out / "golden.npz").symlink_to(target)
    with pytest.raises(BundleError, match=re.escape(str(out / "golden.npz"))) as caught:
        VAE.load(out)
    one_line(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["golden.npz", "manifest.json"])
def test_a_named_pipe_is_refused_at_once(bench: Bench, tmp_path: Path, work: Path, name: str):
    """A named pipe in a file's place, which nobody writes to, is refused; nothing waits for it."""
    out = Path(shutil.copytree(bench.path, tmp_path / "piped"))
    (out / name).unlink()
    os.mkfifo(out / name)
    assert str(out / name) in fails(infer(work, "--bundle", out, "info", timeout=600), 3)


@linux
def test_a_claimed_size_is_not_allocated(bench: Bench, work: Path):
    """A manifest that claims 2 GiB for a file of 8 kB is refused as damaged, under a limit of 1 GiB of memory."""
    lie = bench.sealed(f'"size": {bench.manifest["files"]["golden.npz"]["size"]},', f'"size": {2**31 - 1},')
    with bench.holding({"manifest.json": lie}) as path:
        error = fails(infer(work, "--bundle", path, "info", RLIMIT_AS=1 << 30), 3)
    assert f"bundle damaged (size or sha256 differs): {path}/golden.npz" in error


# Graphs under valid hashes.


Nodes = tuple[bytes, ...]


def ints(name: str, *values: int) -> graphs.Tensor:
    """An int64 vector."""
    return graphs.tensor(name, values, np.int64)


def whole(name: str, value: int) -> graphs.Tensor:
    """An int64 number."""
    return graphs.tensor(name, value, np.int64)


STEPS = (  # from z [batch, latent_dim] to its mean as four [batch, 1, 1, 1], and the shape wanted of the logits
    node("ReduceMean", ["z"], ["mean"], axes=[1], keepdims=1),
    node("Reshape", ["mean", "ones"], ["four"]),
    node("Shape", ["z"], ["shape"]),
    node("Gather", ["shape", "zero"], ["batch"]),
    node("Concat", ["batch", "rest"], ["wanted"], axis=0),
)
END = (node("Expand", ["four", "wanted"], ["logits"]),)


def decoder(
    bench: Bench,
    *nodes: bytes,
    constants: tuple[graphs.Tensor, ...] = (),
    end: Nodes = END,
    kind: int = graphs.FLOAT,
    domain: str = "",
) -> bytes:
    """A decoder that bears the contract: the mean of z as the logit of every pixel, with more nodes and constants."""
    contract = bench.manifest["contract"]
    weights = [ints("ones", -1, 1, 1, 1), ints("zero", 0), ints("rest", 1, 28, 28), *constants]
    z = graphs.value("z", ["batch", *contract["latent_shape"]])
    logits = graphs.value("logits", ["batch", 1, 28, 28], kind)
    graph = graphs.graph([*STEPS, *nodes, *end], [z], [logits], weights)
    return graphs.model(graph, {**contract, "role": "decoder"}, sorted({"", domain}))


def added(value: str) -> Nodes:
    """The end of a decoder that needs the sum of `value` too."""
    total = node("ReduceSum", [value], ["total"], keepdims=0)
    return (total, node("Add", ["four", "total"], ["both"]), node("Expand", ["both", "wanted"], ["logits"]))


def draw(work: Path, out: Path, run: Run = infer, **limits: int) -> subprocess.CompletedProcess[str]:
    """Draw two samples with the bundle `out` into x.npy."""
    return run(work, "--bundle", out, "sample", "-n", 2, "--mean", "--seed", 1, "-o", "x.npy", **limits)


def refused(work: Path, out: Path, *codes: int, run: Run = infer, **limits: int) -> str:
    """Drawing samples ends in one of the exit codes and a line that names the decoder, and leaves no file."""
    error = fails(draw(work, out, run, **limits), *codes)
    assert str(out / "decoder.onnx") in error
    assert not (work / "x.npy").exists()
    return error


def test_a_decoder_made_by_hand_runs(bench: Bench, forge: Forge, work: Path, here: Run):
    """The decoder that the next tests spoil loads and runs, so that what they see is what they spoilt."""
    done = draw(work, forge({"decoder.onnx": decoder(bench)}), here)
    assert (done.returncode, done.stderr) == (0, "")
    x = np.load(work / "x.npy")
    assert x.shape == (2, 1, 28, 28)
    assert (x == x[:, :, :1, :1]).all()


def outside(location: str) -> graphs.Tensor:
    """Weights that lie in another file."""
    return graphs.outside("outside", 20, location=location, offset="0", length="20")


@pytest.mark.parametrize("location", ["/etc/passwd", "../x", "golden.npz", "/proc/self/environ", "/dev/zero"])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_weights_in_other_files_are_refused(
    bench: Bench, forge: Forge, work: Path, here: Run, location: str, place: str
):
    """A graph whose weights lie in another file, of the bundle or not, ends in exit code 3."""
    inside = (node("Constant", [], ["outside"], value=outside(location)),) if place == "constant" else ()
    constants = () if inside else (outside(location),)
    end = (node("Cast", ["outside"], ["cast"], to=graphs.FLOAT), *added("cast"))
    out = forge({"decoder.onnx": decoder(bench, *inside, constants=constants, end=end)})
    (out.parent / "x").write_bytes(b"secrets" * 10)
    assert "weights in another file" in refused(work, out, 3, run=here)


def endless(bench: Bench) -> bytes:
    """A decoder with a loop of 2^63 - 1 turns."""
    kinds = {"i": graphs.INT64, "go": graphs.BOOL, "n": graphs.FLOAT}
    inputs = [graphs.value(name, [], kind) for name, kind in kinds.items()]
    outputs = [graphs.value(f"{name} on", [], kinds[name]) for name in ("go", "n")]
    turn = [node("Identity", ["go"], ["go on"]), node("Cos", ["n"], ["n on"])]
    start = node("ReduceSum", ["z"], ["start"], keepdims=0)
    loop = node("Loop", ["turns", "", "start"], ["end"], body=graphs.graph(turn, inputs, outputs))
    return decoder(bench, start, loop, constants=(whole("turns", 2**63 - 1),), end=added("end"))


def test_an_endless_loop_is_refused(bench: Bench, forge: Forge, work: Path):
    """A loop with which bare onnxruntime is still busy after a second ends in exit code 3 at once."""
    out = forge({"decoder.onnx": endless(bench)})
    code = (
        "import numpy, onnxruntime, sys; session = onnxruntime.InferenceSession(sys.argv[1]); print(flush=True)\n"
        "session.run(None, {'z': numpy.ones((1, 4), numpy.float32)})"
    )
    bare = [sys.executable, "-c", code, str(out / "decoder.onnx")]
    with subprocess.Popen(bare, env=clean(ORT_DISABLE_TELEMETRY="1"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        time.sleep(1)
        assert process.poll() is None
        process.kill()
    assert "control flow, Loop" in refused(work, out, 3)


@pytest.mark.parametrize("kind", ["branches", "types"])
def test_depth_is_refused(bench: Bench, forge: Forge, work: Path, kind: str):
    """Branches in branches and sequences of sequences, 20,000 deep, end in exit code 3, not in a crash."""
    inner = b""
    for _ in range(20_000):
        inner = field(4, field(1, inner)) if kind == "types" else field(5, field(6, field(1, inner)))
    more = field(13, field(1, b"deep") + field(2, inner)) if kind == "types" else field(1, inner)
    refused(work, forge({"decoder.onnx": decoder(bench) + field(7, more)}), 3)


@pytest.mark.parametrize(
    ("operator", "domain", "words"),
    [
        ("Gelu", "com.microsoft", "an operator of the domain 'com.microsoft'"),
        ("Relu", "evil", "an operator of the domain 'evil'"),
        ("RandomNormalLike", "", "a random operator, RandomNormalLike"),
        ("Bernoulli", "", "a random operator, Bernoulli"),
        ("\x1b[2J\x07\u202e\nRelu", "", ""),
        ("Relu", "\x1b[2J\x07\u202e\n", "an operator of the domain"),
    ],
)
def test_foreign_operators_are_refused(
    bench: Bench, forge: Forge, work: Path, here: Run, operator: str, domain: str, words: str
):
    """Random operators, those of other domains, and names that would steer a terminal end in one printable line."""
    more = node(operator, ["mean"], ["more"], domain=domain)
    assert words in refused(
        work, forge({"decoder.onnx": decoder(bench, more, end=added("more"), domain=domain)}), 3, run=here
    )


def test_onnxruntimes_own_format_is_refused(bench: Bench, forge: Forge, work: Path):
    """A decoder in the format that onnxruntime writes and opens too, which may hold anything, is refused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(work / "decoder.ort")
    onnxruntime.InferenceSession(decoder(bench), options)
    out = forge({"decoder.onnx": (work / "decoder.ort").read_bytes()})
    assert onnxruntime.InferenceSession((out / "decoder.onnx").read_bytes()).get_inputs()[0].name == "z"
    assert "onnxruntime's own format" in refused(work, out, 3)


ONE = graphs.tensor("one", [1.0])
BATCHFUL = (node("Mul", ["shape", "n"], ["many"]), node("ConstantOfShape", ["many"], ["big"], value=ONE))
GREEDY: dict[str, tuple[Nodes, tuple[graphs.Tensor, ...]]] = {  # 40 GB each, by operators that pass
    "ConstantOfShape": ((node("ConstantOfShape", ["n"], ["big"], value=ONE),), (ints("n", 10**10),)),
    "ConstantOfShape of the batch": (BATCHFUL, (ints("n", 10**5, 25_000),)),  # unknown before it runs
    "Expand": ((node("Expand", ["one", "n"], ["big"]),), (ONE, ints("n", 10**10))),
    "Tile": ((node("Tile", ["mean", "n"], ["big"]),), (ints("n", 10**5, 10**5),)),
    "Range": (
        (node("Range", ["from", "to", "by"], ["all"]), node("Cast", ["all"], ["big"], to=graphs.FLOAT)),
        (whole("from", 0), whole("to", 5 * 10**9), whole("by", 1)),
    ),
}


@linux
@pytest.mark.parametrize("kind", GREEDY)
def test_forty_gigabytes_are_refused(bench: Bench, forge: Forge, work: Path, kind: str):
    """A graph that asks for 40 GB, at load or at run, ends in exit code 5, or 3 where onnxruntime does not try."""
    nodes, constants = GREEDY[kind]
    out = forge({"decoder.onnx": decoder(bench, *nodes, constants=constants, end=added("big"))})
    refused(work, out, 3, 5, RLIMIT_AS=4 << 30)


@linux
@pytest.mark.parametrize("kind", ["ConstantOfShape of the batch", "Range"])
def test_memory_that_runs_out_is_no_fault_of_the_bundle(bench: Bench, forge: Forge, work: Path, kind: str):
    """An allocation that fails inside onnxruntime ends in exit code 5, which advises memory and not another export."""
    nodes, constants = GREEDY[kind]
    out = forge({"decoder.onnx": decoder(bench, *nodes, constants=constants, end=added("big"))})
    assert "out of memory: " in refused(work, out, 5, RLIMIT_AS=4 << 30)


@pytest.mark.parametrize("kind", ["INT64", "DOUBLE", "FLOAT16", "BOOL", "STRING"])
def test_outputs_of_other_types_are_refused(bench: Bench, forge: Forge, work: Path, here: Run, kind: str):
    """A decoder whose logits are not float32 ends in exit code 3."""
    number = getattr(graphs, kind)
    end = (node("Expand", ["four", "wanted"], ["floats"]), node("Cast", ["floats"], ["logits"], to=number))
    refused(work, forge({"decoder.onnx": decoder(bench, end=end, kind=number)}), 3, run=here)


@pytest.mark.parametrize("kind", ["a pixel for all", "a row too many", "no rows"])
def test_outputs_of_other_shapes_are_refused(bench: Bench, forge: Forge, work: Path, here: Run, kind: str):
    """A decoder whose logits, once it runs, do not have the shape that the graph declares ends in exit code 3."""
    unit = node("Div", ["batch", "batch"], ["unit"])  # [1], which onnxruntime does not know beforehand
    rows = {
        "a pixel for all": [unit, node("Concat", ["batch", "unit", "unit", "unit"], ["other"], axis=0)],
        "a row too many": [unit, node("Add", ["batch", "unit"], ["more"])],
        "no rows": [node("Sub", ["batch", "batch"], ["more"])],
    }[kind]
    if kind != "a pixel for all":
        rows.append(node("Concat", ["more", "rest"], ["other"], axis=0))
    one = node("ReduceMean", ["four"], ["one row"], axes=[0], keepdims=1)
    end = (*rows, one, node("Expand", ["one row", "other"], ["logits"]))
    refused(work, forge({"decoder.onnx": decoder(bench, end=end)}), 3, run=here)


# Golden vectors under valid hashes.


def zip_bomb(head: bytes, megabytes: int) -> bytes:
    """A small zip archive with one member, seed.npy, that inflates to `head` and so many MB of zeros."""

    def deflated(data: bytes, flush: int) -> bytes:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflate.compress(data) + deflate.flush(flush)

    zeros = deflated(bytes(1 << 20), zlib.Z_FULL_FLUSH)  # after which the stream can go on with anything
    stream = deflated(head, zlib.Z_FULL_FLUSH) + zeros * megabytes + deflated(b"", zlib.Z_FINISH)
    name, size = b"seed.npy", len(head) + (megabytes << 20)
    entry = struct.pack("<HHHHLLLHH", 0, 8, 0, 0, 0, len(stream), size, len(name), 0)
    local = struct.pack("<4sH", b"PK\3\4", 20) + entry + name + stream
    central = struct.pack("<4sHH", b"PK\1\2", 20, 20) + entry + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name
    return local + central + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


def npy_header(*shape: int) -> bytes:
    """The header of an .npy file of float32."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@linux
@pytest.mark.parametrize(
    "head", [npy_header(3 << 28), npy_header(1 << 50), b"no header"], ids=["array", "huge array", "no array"]
)
def test_a_zip_bomb_is_refused(forge: Forge, work: Path, head: bytes):
    """Golden vectors of 3 MB that inflate to 3 GB end in exit code 3 or 5 under a limit of 1.5 GB of memory."""
    raw = zip_bomb(head, 3 << 10)
    assert len(raw) < 4 << 20
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, archive.open("seed.npy") as member:
        assert member.read(len(head) + (2 << 20)) == head + bytes(2 << 20)
    fails(infer(work, "--bundle", forge({"golden.npz": raw}), "verify", RLIMIT_AS=1500 << 20), 3, 5)


def marked(raw: bytes, offset: int, value: int) -> bytes:
    """A zip archive with one byte changed in the header and in the directory's entry of each member."""
    changed = bytearray(raw)
    for mark, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        for found in re.finditer(re.escape(mark), raw):
            changed[found.start() + offset + shift] = value
    return bytes(changed)


def rewritten(raw: bytes, **changes: Any) -> bytes:
    """Golden vectors with some arrays replaced."""
    buffer = io.BytesIO()
    with np.load(io.BytesIO(raw)) as archive:
        np.savez_compressed(buffer, **{**archive, **changes})
    return buffer.getvalue()


def of_brackets(raw: bytes) -> bytes:
    """An archive whose one array has a header of nothing but opening brackets."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("seed.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 200) + b"(" * 200)
    return buffer.getvalue()


GOLDEN: dict[str, Callable[[bytes], bytes]] = {
    "no archive": lambda raw: b"junk" * 10,
    "the start of one": lambda raw: raw[:100],
    "its end missing": lambda raw: raw[:-1],
    "a wrong checksum": lambda raw: raw[:200] + bytes([raw[200] ^ 255]) + raw[201:],
    "encrypted": lambda raw: marked(raw, 6, 1),
    "unknown compression": lambda raw: marked(raw, 8, 99),
    "brackets": of_brackets,
    "infinite seed": lambda raw: rewritten(raw, seed=np.array(np.inf)),
    "seed of NaN": lambda raw: rewritten(raw, seed=np.array(np.nan)),
    "huge logsigma": lambda raw: rewritten(raw, logsigma=np.full((2, 4), 1e9, np.float32)),
    "words": lambda raw: rewritten(raw, mu=np.full((2, 4), "word")),
    "dates": lambda raw: rewritten(raw, elbo=np.zeros(2, "M8[s]")),
    "other rows": lambda raw: rewritten(raw, z=np.zeros((3, 4), np.float32)),
    "no rows": lambda raw: rewritten(raw, z=np.zeros((0, 4), np.float32)),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_hostile_golden_vectors_are_refused(bench: Bench, forge: Forge, work: Path, here: Run, kind: str):
    """Golden vectors that are no archive, a damaged one, or nonsense, under valid hashes, end in exit code 3."""
    out = forge({"golden.npz": GOLDEN[kind](bench.files["golden.npz"])})
    assert str(out) in fails(here(work, "--bundle", out, "verify"), 3)


@pytest.mark.parametrize("name", ["z", "eps", "x", "mu", "logsigma", "logits", "elbo"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e300, 2**62])
def test_golden_figures_out_of_range_give_rows_or_an_error(bench: Bench, name: str, value: float):
    """Golden arrays of NaN, infinities and numbers that float32 cannot hold: rows or VaeError, and no warning."""
    read = bundle.read(bench.path)
    verified(read, rewritten(bench.files["golden.npz"], **{name: np.full(read.golden()[name].shape, value)}))


# Memory, disk, signals and streams.


@linux
def test_many_samples_fit_into_little_memory(work: Path, tiny_bundle: Path):
    """200,000 samples, 627 MB, are written as .npy by a process that may have 400 MB of addresses."""
    sampling = ("--bundle", tiny_bundle, "--threads", 2, "sample")
    done = infer(work, *sampling, "-n", 200_000, "--seed", 1, "-o", "x.npy", RLIMIT_AS=400 << 20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.npy: 200000 samples, seed 1\n", "")
    written = np.load(work / "x.npy", mmap_mode="r")
    assert written.shape == (200_000, 1, 28, 28)
    np.testing.assert_array_equal(written[-1:], VAE.load(tiny_bundle).sample(1, seed=1, start=199_999))
    (work / "x.npy").unlink()


@linux
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png"])
@pytest.mark.parametrize("old", [None, b"an older file"])
def test_a_full_disk_leaves_nothing(work: Path, name: str, old: bytes | None):
    """Where files may not grow past 64 kB, samples end in exit code 5, an older file stays, and no other is left."""
    if old is not None:
        (work / name).write_bytes(old)
    done = infer(work, "sample", "-n", 2000, "-o", name, RLIMIT_FSIZE=1 << 16)
    assert f"disk full: {name}; free some space" in fails(done, 5)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == ({} if old is None else {name: old})


def interrupted(work: Path, ready: Callable[[int], bool], *arguments: object) -> tuple[float, int, str, str]:
    """Seconds until vae-infer left after SIGINT, sent once it is `ready`, with its exit code, stdout and stderr."""
    with subprocess.Popen(
        command_line(*arguments), cwd=work, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not ready(process.pid):
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(0.2)  # into the work
            start = time.perf_counter()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=600)
            return time.perf_counter() - start, process.returncode, out, err
        finally:
            process.kill()


LEFT = "vae-infer: interrupted: run it again when it suits\n"


@linux
def test_ctrl_c_stops_sampling(work: Path):
    """SIGINT amid a million samples, which take minutes: exit code 130 long before, one line, and no file."""
    seconds, *rest = interrupted(
        work, lambda pid: any(work.iterdir()), "--threads", 2, "sample", "-n", 1_000_000, "-o", "x.npy"
    )
    assert rest == [130, "", LEFT]
    assert list(work.iterdir()) == []
    assert seconds < 30


@linux
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("draws", [100_000, 1_000_000])
def test_ctrl_c_stops_scoring(work: Path, threads: int, draws: int):
    """SIGINT amid hours of draws of z for each image: exit code 130 at once, on one thread and on two."""
    np.save(work / "many.npy", np.zeros((500, 28, 28), np.float32))

    def at_work(pid: int) -> bool:
        """Whether half a second of processor time is spent, and so the imports are behind."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12]) > os.sysconf("SC_CLK_TCK") // 2

    call = ("--threads", threads, "elbo", "many.npy", "--samples", draws)
    seconds, *rest = interrupted(work, at_work, *call)
    assert rest == [130, "", LEFT]
    assert seconds < 30


def redirected(work: Path, redirection: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run vae-infer with a redirection of the shell."""
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command_line(*arguments)]
    return subprocess.run(shell, cwd=work, env=clean(), capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("call", [["info"], ["info", "--json"], ["--help"], ["--version"], ["verify"], ["doctor"]])
def test_a_full_stdout_is_one_line(work: Path, call: list[str]):
    """A stdout that takes nothing, /dev/full, ends in exit code 5 and one line, without a traceback."""
    assert "No space left on device" in fails(redirected(work, ">/dev/full", *call), 5)


def test_a_closed_stdout_is_no_error(work: Path):
    """Without a stdout, as some services are started, what was asked for is done, and nothing is said."""
    done = redirected(work, ">&-", "sample", "-n", 2, "-o", "x.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load(work / "x.npy").shape == (2, 1, 28, 28)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_without_stderr_keeps_its_exit_code(work: Path, redirection: str):
    """Where stderr is closed or takes nothing, the exit code still says what went wrong, and stdout stays empty."""
    done = redirected(work, redirection, "--bundle", "nowhere", "info")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@linux
@pytest.mark.parametrize("home", ["/nonexistent/home", "/proc", "/dev/null", "", None])
def test_no_home_is_needed(work: Path, home: str | None):
    """A home that is missing, cannot be written, even by root, or is no folder changes nothing, and nothing is said."""
    environment = {name: value for name, value in clean(HOME=home or "").items() if not name.startswith("XDG_")}
    if home is None:
        del environment["HOME"]
    call = command_line("sample", "-n", 1, "--seed", 1, "-o", "x.npy")
    done = subprocess.run(call, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.npy: 1 sample, seed 1\n", "")


PROBE = """
import json, os, sys, time, numpy
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
exec(sys.argv[1])
time.sleep(0.5)
links = []
for name in os.listdir("/proc/self/fd"):
    try:
        links.append(os.readlink(f"/proc/self/fd/{name}"))
    except OSError:  # the one that listed the folder
        pass
home = os.path.realpath(os.environ["HOME"])
found = [link for link in links if link.startswith(("socket:", home))]
print(json.dumps({"threads": threads() - before, "open": found}))
"""


def traces(tmp_path: Path, code: str) -> dict[str, Any]:
    """What `code` leaves behind on a user's machine: threads, open sockets and files, and files in an empty home."""
    home = tmp_path / "home"
    home.mkdir()
    hidden = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY")
    kept = {name: value for name, value in clean().items() if name not in hidden and not name.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, code],
        cwd=tmp_path, env={**kept, "HOME": str(home)}, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return {**json.loads(done.stdout), "home": [path.name for path in home.rglob("*")]}


QUIET = {"threads": 0, "open": [], "home": []}


@linux
def test_nothing_is_reported_home(tmp_path: Path):
    """Half a second after a sample there is no thread, socket, open file or file in the home that was not asked for."""
    assert traces(tmp_path, "import vae_runtime; vae_runtime.VAE.load().sample(1)") == QUIET


@linux
def test_the_probe_sees_telemetry(tmp_path: Path):
    """The same probe does see the telemetry of onnxruntimes that have it, where it is left on."""
    found = traces(tmp_path, "import onnxruntime; print(end='')")
    if found == QUIET:
        pytest.skip("this onnxruntime has no telemetry to see")
    assert found["threads"] > 0
    assert any("onnxruntime" in name for name in found["home"])
    assert found["open"]


def test_eight_threads_run_a_thousand_times_each(tiny_bundle: Path):
    """8,000 runs of one VAE on single images from eight threads at once give the bits that each gives alone."""
    vae = VAE.load(tiny_bundle)
    z = np.random.default_rng(0).standard_normal((8, 1, vae.latent_dim), np.float32)
    x = vae.sample(8, seed=3)[:, None]
    alone = [(vae.decode(z[i]).tobytes(), vae.elbo(x[i], seed=i).tobytes()) for i in range(8)]
    assert len(set(alone)) == 8

    def work(thread: int) -> int:
        wrong = 0
        for run in range(500):
            i = (thread + run) % 8
            wrong += (vae.decode(z[i]).tobytes(), vae.elbo(x[i], seed=i).tobytes()) != alone[i]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8
