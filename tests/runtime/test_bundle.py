"""Bundles: nothing is trusted before its hash matches, a mixed pair is refused, and every failure is a BundleError."""

import errno
import json
import os
import pickle
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.graphs import contract_of, extended, field, graph, inner, model, node, outside, stamped, tensor
from support.graphs import value as value_of
from vae_runtime import VAE, BundleError, bundle, manifest
from vae_runtime.bundle import FILES, GRAPHS, METADATA_KEY, locate, shipped

with suppress(ImportError):  # Windows has none
    import fcntl

ALL = (*FILES, "manifest.json")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def refuses(path: Path, words: str, use: Callable[[VAE], object] | None = None) -> str:
    """Loading the bundle, or `use` of what it gave, raises BundleError with `words` in one line; returns the text."""
    vae = VAE.load(path) if use else None
    with pytest.raises(BundleError) as caught:
        use(vae) if use and vae else VAE.load(path)
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert caught.value.exit_code == 3
    return text


def test_a_bundle_is_read_as_it_is(tiny_bundle: Path):
    """`read` returns the manifest and exactly the bytes of the three other files, and the golden arrays by name."""
    read = bundle.read(tiny_bundle)
    assert read.files == {name: (tiny_bundle / name).read_bytes() for name in FILES}
    assert read.manifest.raw == json.loads((tiny_bundle / "manifest.json").read_bytes())
    assert read.manifest.contract.latent_shape == (4,)
    assert read.golden()["x"].shape == (2, 1, 28, 28)


def test_a_missing_bundle_is_named(tmp_path: Path):
    """A missing folder, an empty folder and a file in its place raise BundleError with the path and what to do."""
    refuses(tmp_path / "missing", f"bundle not found: {tmp_path}/missing (not in {tmp_path}); name a folder")
    refuses(tmp_path, f"bundle not found: {tmp_path} (no manifest.json in it); name a folder")
    (tmp_path / "file").write_bytes(b"")
    refuses(tmp_path / "file", f"a file, not a bundle: {tmp_path}/file; name a folder")


def test_the_bundles_that_there_are_are_named(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside the folder that was asked for, in `bundles` there, and inside of it."""
    home = copy.parent / "home"
    shutil.copytree(copy, home / "bundles" / "clothes")
    monkeypatch.chdir(home)
    for asked in ("cloths", "bundles/cloths", "bundles"):
        with pytest.raises(BundleError, match=r"; name a folder that vae-export wrote, such as bundles/clothes, or fa"):
            bundle.read(Path(asked))


def test_a_mistyped_name_and_a_run_get_their_own_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name that does not ship: the error lists those that do. A run's folder: the command that exports it."""
    monkeypatch.chdir(tmp_path)
    refuses(Path("minst"), f"bundle not found: minst (not in {tmp_path});")
    with pytest.raises(BundleError, match=r"; name a folder that vae-export wrote, or fashion-mnist or mnist$"):
        bundle.read(Path("minst"))
    Path("run").mkdir()
    Path("run", "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"^a training run, not a bundle: run; export it: vae-export run$"):
        bundle.read(Path("run"))


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_named(copy: Path, name: str):
    """A bundle without one of its files, or with a folder in its place, raises BundleError with that file."""
    (copy / name).unlink()
    incomplete = f"bundle incomplete, no such file: {copy / name};"
    refuses(copy, f"bundle not found: {copy} (no {name} in it);" if name == "manifest.json" else incomplete)
    (copy / name).mkdir()
    refuses(copy, f"bundle unreadable (Is a directory): {copy / name};")


def test_a_bundle_away_for_an_instant_is_awaited(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Where two renames replace a bundle, nothing is at its path between them: a reader waits, but not for ever."""
    away = copy.with_name(f".{copy.name}.1.abcdef01")
    copy.rename(away)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            away.rename(copy)

    monkeypatch.setattr(bundle.time, "sleep", pause)
    assert bundle.read(copy).path == copy
    copy.rename(away)
    refuses(copy, f"bundle not found: {copy} (not in {copy.parent})")
    assert len(pauses) < 100
    assert sum(pauses) < 1
    away.rename(copy.with_name("elsewhere"))
    del pauses[:]
    refuses(copy, f"bundle not found: {copy} (not in {copy.parent})")
    assert pauses == []


@pytest.mark.parametrize("name", ALL)
def test_one_flipped_bit_is_noticed(copy: Path, name: str):
    """A single bit flipped at the start, the end, or anywhere between in any file raises BundleError with its name."""
    good = (copy / name).read_bytes()
    generator = random.Random(name)
    for position in (0, 1, len(good) // 2, len(good) - 1, *(generator.randrange(len(good)) for _ in range(12))):
        bad = bytearray(good)
        bad[position] ^= 1 << generator.randrange(8)
        (copy / name).write_bytes(bad)
        assert "copy or export it again" in refuses(copy, str(copy / name))
    (copy / name).write_bytes(good)
    VAE.load(copy)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_every_byte_of_the_manifest_is_covered(tiny_bundle: Path, step: int):
    """A flipped bit at any position of manifest.json, in its digest, whitespace, names or digits, is a BundleError."""
    good = (tiny_bundle / "manifest.json").read_bytes()
    generator = random.Random(0)
    manifest.parse(good, tiny_bundle / "manifest.json", FILES)
    for position in range(0, len(good), step):
        bad = bytearray(good)
        bad[position] ^= 1 << generator.randrange(8)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            manifest.parse(bytes(bad), tiny_bundle / "manifest.json", FILES)


@pytest.mark.parametrize("change", [b"7", b"\t", b"A", b'"'])
def test_replaced_bytes_of_the_manifest_are_noticed(tiny_bundle: Path, change: bytes):
    """Another digit, whitespace, capital or quote anywhere is noticed too: JSON that means the same is not the same."""
    good = (tiny_bundle / "manifest.json").read_bytes()
    for position in range(0, len(good), 31):
        bad = good[:position] + change + good[position + 1 :]
        if bad != good:
            with pytest.raises(BundleError):
                manifest.parse(bad, tiny_bundle / "manifest.json", FILES)


@pytest.mark.parametrize("name", ALL)
def test_a_truncated_or_longer_file_is_noticed(copy: Path, name: str):
    """An empty file, half of it, all but one byte, and one byte more raise BundleError with the file's name."""
    good = (copy / name).read_bytes()
    for bad in (b"", good[: len(good) // 2], good[:-1], good + b" "):
        (copy / name).write_bytes(bad)
        refuses(copy, str(copy / name))


def restamp(graph: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A graph whose stamped contract was changed: of two, the last counts."""
    contract = contract_of(graph)
    change(contract)
    return graph + stamped(contract)


@pytest.mark.parametrize("opens", range(4))
def test_a_bundle_replaced_while_it_is_opened_is_read_anew(
    copy: Path, forge, monkeypatch: pytest.MonkeyPatch, opens: int
):
    """Where another bundle comes before any of the reader's opens, and the old one goes, it reads the new one."""
    change = {"pair": "0123456789abcdef"}
    files = {name: restamp((copy / name).read_bytes(), lambda contract: contract.update(change)) for name in GRAPHS}
    new = forge({**files, "golden.npz": b"other"}, lambda manifest: manifest["contract"].update(change))
    expected = bundle.read(new).files
    real, opened = bundle._open, []

    def opening(path: Path) -> Any:
        if len(opened) == opens:
            shutil.rmtree(copy)
            new.rename(copy)
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(bundle, "_open", opening)
    assert bundle.read(copy).files == expected


def test_a_bundle_removed_after_it_was_opened_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Once its four files are open, a bundle may go: the reader has it whole."""
    whole, real = bundle.read(copy), bundle._verify

    def verify(path: Path, files: Any) -> bundle.Bundle:
        shutil.rmtree(copy)
        return real(path, files)

    monkeypatch.setattr(bundle, "_verify", verify)
    assert bundle.read(copy) == whole


kept_open = pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces no file that is open")


@kept_open
def test_large_graphs_are_read_when_they_are_run(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Not before, and as they were when the bundle was loaded, though it has gone since; their files are closed."""
    here = len([*Path("/dev/fd").iterdir()])
    monkeypatch.setattr(bundle, "_LARGE", 1)
    read = bundle.read(copy)
    assert len([*Path("/dev/fd").iterdir()]) == here + len(FILES)
    expected = {name: (copy / name).read_bytes() for name in FILES}
    shutil.rmtree(copy)
    assert dict(read.files) == expected
    assert read.golden()["x"].shape == (2, 1, 28, 28)
    vae = VAE(read)
    assert vae.elbo(vae.sample(3)).shape == (3,)
    vae.close()
    del read, vae
    assert len([*Path("/dev/fd").iterdir()]) == here


@kept_open
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"1", lambda data: b"1" + data[1:]])
def test_a_large_graph_that_was_changed_in_its_place_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
):
    """When it is opened, and named; the other graph is as good as before."""
    monkeypatch.setattr(bundle, "_LARGE", 1)
    vae = VAE.load(copy)
    (copy / "encoder.onnx").write_bytes(change((copy / "encoder.onnx").read_bytes()))
    x = vae.sample(2)
    with pytest.raises(BundleError, match=r"bundle changed or damaged .*: .*encoder.onnx; load it again"):
        vae.encode(x)


@kept_open
@pytest.mark.parametrize("many", [True, False], ids=["many", "all"])
def test_a_process_keeps_some_descriptors(copy: Path, monkeypatch: pytest.MonkeyPatch, many: bool):
    """Where it has many open files, or as many as it may have, bundles are held in memory."""
    real = os.dup

    def dup(descriptor: int) -> int:
        if many:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD, bundle._MOST_OPEN + 1)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(bundle, "_LARGE", 1)
    monkeypatch.setattr(os, "dup", dup)
    here = len([*Path("/dev/fd").iterdir()])
    read, contents = bundle.read(copy), {name: (copy / name).read_bytes() for name in FILES}
    assert len([*Path("/dev/fd").iterdir()]) == here
    assert read.files == contents
    monkeypatch.setattr(os, "dup", real)
    again = bundle.read(copy)
    assert len([*Path("/dev/fd").iterdir()]) == here + len(FILES)
    assert again.files == contents


@kept_open
def test_a_copy_of_a_bundle_holds_its_files(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """It needs nothing of the one that it was made of."""
    monkeypatch.setattr(bundle, "_LARGE", 1)
    read, contents = bundle.read(copy), {name: (copy / name).read_bytes() for name in FILES}
    copies = [deepcopy(read), pickle.loads(pickle.dumps(read))]
    del read
    shutil.rmtree(copy)
    assert [each.files for each in copies] == [contents, contents]


@kept_open
def test_a_file_system_may_give_less_than_it_is_asked_for(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """As those of networks do; one that gives nothing any more is named."""
    monkeypatch.setattr(bundle, "_LARGE", 1)
    read, real = bundle.read(copy), os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: real(descriptor, min(size, 1000), offset))
    assert read.files == {name: (copy / name).read_bytes() for name in FILES}

    def stale(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "pread", stale)
    with pytest.raises(BundleError, match=r"bundle unreadable \(Stale file handle\): .*encoder.onnx; load it again"):
        read.files["encoder.onnx"]


def test_too_little_memory_is_no_fault_of_the_bundle(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """It is a MemoryError, which the command calls out of memory."""

    def mmap(descriptor: int, size: int, flags: int = 0) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(bundle.mmap, "mmap", mmap)
    with pytest.raises(MemoryError):
        bundle.read(copy)


@pytest.fixture
def another_contract(tiny_bundle: Path, forge) -> Callable[..., Path]:
    """Forge the tiny bundle with a changed contract, the same one in the manifest and in both graphs."""

    def make(change: Callable[[dict[str, Any]], object]) -> Path:
        graphs = {name: restamp((tiny_bundle / name).read_bytes(), change) for name in GRAPHS}
        return Path(forge(graphs, lambda manifest: change(manifest["contract"])))

    return make


def decode(vae: VAE) -> object:
    """The first use of the decoder."""
    return vae.decode(np.zeros((1, vae.latent_dim), np.float32))


def encode(vae: VAE) -> object:
    """The first use of the encoder."""
    return vae.encode(np.zeros((1, *vae.observation.shape), np.float32))


def test_forging_is_possible(tiny_bundle: Path, forge):
    """The fixture's valid hashes do load, so what the next tests see is not a failure of the hashes."""
    out = forge({name: (tiny_bundle / name).read_bytes() for name in FILES})
    np.testing.assert_array_equal(VAE.load(out).sample(2), VAE.load(tiny_bundle).sample(2))


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_graph_of_another_export_is_refused(tiny_bundle: Path, forge, role: str):
    """A graph of the same network from another export has another pair id, and does not load beside this one."""
    other = restamp((tiny_bundle / f"{role}.onnx").read_bytes(), lambda it: it.update(pair="0123456789abcdef"))
    out = forge({f"{role}.onnx": other})
    refuses(out, f"graph belongs to another bundle: {out / role}.onnx; keep the files of one export together")


def test_an_encoder_of_the_shipped_bundle_is_refused(forge):
    """A real encoder from the shipped bundle does not load beside the tiny decoder, whatever the hashes say."""
    out = forge({"encoder.onnx": (shipped() / "encoder.onnx").read_bytes()})
    refuses(out, f"graph belongs to another bundle: {out}/encoder.onnx")


def test_a_decoder_is_no_encoder(tiny_bundle: Path, forge):
    """Each graph carries its role: two decoders, and a swapped pair, are refused."""
    encoder, decoder = ((tiny_bundle / name).read_bytes() for name in GRAPHS)
    out = forge({"encoder.onnx": decoder})
    refuses(out, f"graph belongs to another bundle: {out}/encoder.onnx")
    shutil.rmtree(out)
    refuses(forge({"encoder.onnx": decoder, "decoder.onnx": encoder}), "graph belongs to another bundle")


@pytest.mark.parametrize("value", [None, "", "not JSON", "[]", "{}"])
def test_a_graph_without_a_contract_is_refused(forge, value: str | None):
    """A graph whose metadata holds no contract, or something else, is refused."""
    name = value_of("y", ["batch", 1])
    bare = model(graph([node("Identity", ["z"], ["y"])], [value_of("z", ["batch", 1])], [name]))
    stamp = b"" if value is None else field(14, field(1, METADATA_KEY) + field(2, value))
    refuses(forge({"decoder.onnx": bare + stamp}), "graph belongs to another bundle")


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("graph", [b"", b"not a graph", b"\x08\x08" + b"\xff" * 100, b"PK\x03\x04" + bytes(100)])
def test_bytes_that_are_no_graph_are_refused(forge, capfd: pytest.CaptureFixture[str], graph: bytes, name: str):
    """What is no protobuf is a BundleError with the file, or a size that cannot be; nothing is printed."""
    out = forge({name: graph})
    refuses(out, "manifest not understood" if graph == b"" else f"graph damaged: {out}/{name} (no protobuf: ")
    assert capfd.readouterr() == ("", "")


def test_an_empty_protobuf_is_no_graph_of_this_bundle(forge):
    """A protobuf of a few fields and nothing else holds no contract, and is refused for that."""
    out = forge({"encoder.onnx": field(1, 8)})
    refuses(out, f"graph belongs to another bundle: {out}/encoder.onnx")


def test_weights_outside_the_graph_are_refused(tiny_bundle: Path, forge, monkeypatch: pytest.MonkeyPatch):
    """A graph that asks for weights in another file is refused: it can read nothing, not even beside the bundle."""
    graph = (tiny_bundle / "encoder.onnx").read_bytes()
    out = forge({"encoder.onnx": graph + field(7, field(5, outside("more", 4, location="weights.bin")))})
    (out / "weights.bin").write_bytes(b"more")
    monkeypatch.chdir(out)
    refuses(out, f"graph holds what no VAE needs: {out}/encoder.onnx (weights in another file); export it again")


@pytest.mark.parametrize(
    ("change", "uses"),
    [
        (lambda it: it.update(latent_shape=[5]), {"encoder.onnx": encode, "decoder.onnx": decode}),
        (lambda it: it["observation"].update(shape=[1, 28, 27]), {"encoder.onnx": encode, "decoder.onnx": decode}),
        (lambda it: it["observation"].update(shape=[3, 28, 28]), {"encoder.onnx": encode, "decoder.onnx": decode}),
        (lambda it: it.update(likelihood={"name": "discretised-logistic"}), {"decoder.onnx": decode}),
        (
            lambda it: it.update(likelihood={"name": "gaussian", "settings": {"logsigma": 0.0}}),
            {"decoder.onnx": decode},
        ),
    ],
    ids=["latents", "width", "channels", "parameters", "output name"],
)
def test_graphs_of_other_sizes_than_the_contract_are_refused(another_contract, change, uses: dict[str, Any]):
    """A contract that all files share, but whose sizes are not those of the graphs, is a BundleError at first use."""
    out = another_contract(change)
    for name, use in uses.items():
        refuses(out, f"graph's shapes are not the contract's: {out}/{name} (", use)
    refuses(out, "graph's shapes are not the contract's", lambda vae: vae.sample(1))
    refuses(out, "graph's shapes are not the contract's", lambda vae: list(vae.sample_batches(1)))


def test_a_wrong_graph_is_refused_at_every_use(another_contract):
    """What was refused once is refused again, with the same words: no half-opened graph stays behind."""
    vae = VAE.load(another_contract(lambda contract: contract.update(latent_shape=[5])))
    texts = []
    for _ in range(2):
        with pytest.raises(BundleError, match="graph's shapes are not the contract's") as caught:
            decode(vae)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("name", "use", "other"), [("encoder.onnx", encode, decode), ("decoder.onnx", decode, encode)])
def test_a_graph_that_only_onnxruntime_refuses_is_named_at_first_use(
    tiny_bundle: Path, forge, capfd: pytest.CaptureFixture[str], name: str, use, other
):
    """An operator that does not exist is a BundleError when the graph is first used; the other graph works."""
    step = field(4, "Gemm")
    graph = (tiny_bundle / name).read_bytes()
    assert step in graph
    out = forge({name: graph.replace(step, field(4, "Frob"), 1)})
    refuses(out, f"onnxruntime refuses the graph: {out}/{name} (", use)
    other(VAE.load(out))
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_fails_while_it_runs_is_named(tiny_bundle: Path, forge, capfd: pytest.CaptureFixture[str]):
    """A graph that opens and then cannot be run, a Reshape to a wrong size, is a BundleError with the file."""
    nodes = [
        node("Reshape", [inner("logits"), "wrong"], ["reshaped"]),
        node("Reshape", ["reshaped", "right"], ["logits"]),
    ]
    sizes = {"wrong": [-1, 1, 28, 29], "right": [-1, 1, 28, 28]}
    weights = [tensor(name, size, np.int64) for name, size in sizes.items()]
    out = forge({"decoder.onnx": extended((tiny_bundle / "decoder.onnx").read_bytes(), "logits", nodes, weights)})
    refuses(out, f"onnxruntime cannot run the graph: {out}/decoder.onnx (", decode)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [0, 3, "1", None, [1], 1.5, True, 1.0, 2.0])
def test_another_format_is_named(forge, value: object):
    """A format that this release does not know is a BundleError that names both formats."""
    out = forge(change=lambda manifest: manifest["contract"].update(format=value))
    refuses(out, f"bundle of format {value!r}: {out}/manifest.json; this release reads format 2, and 1")


@pytest.mark.parametrize("key", ["format", "pair", "observation", "latent_shape", "prior", "likelihood"])
def test_a_contract_without_a_key_is_refused(another_contract, key: str):
    """Each field of the contract is needed, though the graphs lack it too; the text names the missing field."""
    refuses(another_contract(lambda contract: contract.pop(key)), key)


@pytest.mark.parametrize("key", ["format", "pair", "observation", "latent_shape", "prior", "likelihood"])
def test_a_manifest_whose_contract_lacks_a_key_is_named(forge, key: str):
    """Where the manifest's contract lacks a field, the text names the manifest and that field."""
    out = forge(change=lambda manifest: manifest["contract"].pop(key))
    assert key in refuses(out, f"{out}/manifest.json (")


@pytest.mark.parametrize("value", [{"name": "laplace"}, {"name": "gaussian", "settings": {"logsigma": 0.0}}])
def test_a_likelihood_that_the_graphs_do_not_carry_is_refused(forge, value: object):
    """A manifest whose likelihood was changed, but not its graphs, is refused as a mixed bundle."""
    out = forge(change=lambda manifest: manifest["contract"].update(likelihood=value))
    refuses(out, f"graph belongs to another bundle: {out}/encoder.onnx; keep the files of one export together")


@pytest.mark.parametrize("key", ["contract", "files"])
def test_a_manifest_without_a_part_is_refused(forge, key: str):
    """Each part that loading relies on is needed; a part of another type is refused too."""
    values: list[object] = [None, [], "text", 3, {}]
    out = forge(change=lambda manifest: manifest.pop(key))
    assert key in refuses(out, f"{out}/manifest.json (")
    for value in values:
        shutil.rmtree(out)
        refuses(forge(change=lambda manifest, value=value: manifest.update({key: value})), f"{out}/manifest.json")


@pytest.mark.parametrize("value", [0, -1, 2**31, 2**80, 1.5, "28", None, True, [], {}])
@pytest.mark.parametrize("key", ["latent_shape", "shape", "size"])
def test_impossible_sizes_are_refused(forge, key: str, value: object):
    """Sizes that are negative, zero, huge or no integers raise BundleError before anything of that size is made."""

    def change(manifest: dict) -> None:
        if key == "size":
            manifest["files"]["golden.npz"][key] = value
        else:
            place = manifest["contract"] if key == "latent_shape" else manifest["contract"]["observation"]
            place[key] = [value, *place[key][1:]]

    out = forge(change=change)
    assert key in refuses(out, f"bundle's manifest not understood: {out}/manifest.json (ValueError: ")


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [
        ({"gamma": 2.2}, "gamma is not known to this release"),
        ({"steps": [{"resize": [28, 28], "gamma": 2.2}]}, "gamma is not known to this release"),
        ({"network_takes": {"mean": [], "std": [1]}}, "mean or std has no numbers"),
        ({"steps": [{"resize": [28, 27]}]}, "preprocessing.steps do not end at [28, 28]"),
        ({"steps": [{"resize": [28]}]}, "preprocessing.steps do not end at [28, 28]"),
        ({"steps": [{"crop": [28, 28], "resize": [28]}]}, "either resize"),
        ({"steps": [{"crop": [28]}]}, "crop, [H, W]"),
        ({"steps": [{"resize": [28, 0]}]}, "resize is [28, 0]"),
        ({"steps": [{"resize": [28, 28], "filter": "smooth"}]}, "filter is 'smooth'"),
    ],
)
def test_preprocessing_that_is_not_understood_is_refused(forge, preprocessing: dict[str, object], words: str):
    """Files would be prepared otherwise than the network has learnt; whoever knows arrays alone is not spared."""
    refuses(forge(change=lambda manifest: manifest.update(preprocessing=preprocessing)), words)


UNKNOWN = ["laplace", {"name": "laplace"}, {"name": []}, None, 3, [], {}]


@pytest.mark.parametrize("value", UNKNOWN)
def test_unknown_priors_are_refused(another_contract, value: object):
    """A prior that this release does not know is a BundleError that shows it, though the graphs carry it too."""
    text = refuses(another_contract(lambda contract: contract.update(prior=value)), "prior")
    if value == {"name": "laplace"}:
        assert text.startswith("unknown prior: 'laplace'; use a newer release of vae-edge")


@pytest.mark.parametrize(
    "value", [*UNKNOWN, "bernoulli", {"name": "gaussian"}, {"name": "gaussian", "settings": {"logsigma": 1e9}}]
)
def test_unknown_likelihoods_are_refused(another_contract, value: object):
    """A likelihood that this release does not know is a BundleError that shows it, though the graphs carry it too."""
    text = refuses(another_contract(lambda contract: contract.update(likelihood=value)), "likelihood")
    if isinstance(value, dict) and isinstance(name := value.get("name"), str):
        assert text.startswith(f"unknown likelihood: {name!r} ")
        assert "use a newer release of vae-edge" in text


@pytest.mark.parametrize("value", [None, 3, [], "", "0" * 64, "f" * 64])
def test_a_wrong_hash_is_refused(forge, value: object):
    """A manifest that is valid by itself but has another hash for a file does not load."""
    out = forge(change=lambda manifest: manifest["files"]["golden.npz"].update(sha256=value))
    refuses(out, str(out))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not JSON",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"NaN",
        b"{}",
        b'{"sha256": NaN}',
        b'{"sha256": null}',
        b'{"sha256": ""}',
        b'{"sha256": "\\ud800"}',
        b"\xff\xfe\x00",
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b" " * (2 << 20),
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_what_is_no_manifest_is_refused(copy: Path, raw: bytes):
    """Text, lists, NaN, other encodings, deep nesting, huge numbers and huge files raise BundleError, nothing else."""
    (copy / "manifest.json").write_bytes(raw)
    assert len(refuses(copy, f"{copy}/manifest.json")) < 500


def test_a_manifest_holds_no_nan():
    """`dump` refuses NaN, which is not JSON, and what it writes is read back as it was."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        manifest.dump({"figure": float("nan")})
    written = json.loads(manifest.dump({"figure": 1.5, "zeros": "0" * 64}))
    assert len(written.pop("sha256")) == 64
    assert written == {"figure": 1.5, "zeros": "0" * 64}


def test_a_huge_file_is_not_read_whole(copy: Path):
    """A file of 1 TiB (sparse) in a bundle is refused at once, by its size."""
    with (copy / "golden.npz").open("r+b") as file:
        file.truncate(1 << 40)
    refuses(copy, f"bundle damaged (size or sha256 differs): {copy}/golden.npz")


def test_loading_is_quiet(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]):
    """Loading and running a good bundle prints nothing and warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VAE.load(tiny_bundle).sample(3)
    assert capfd.readouterr() == ("", "")


def test_shipped_bundles_have_names(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, "default" and "mnist" are one shipped bundle; a folder of that name here comes first; paths are paths."""
    monkeypatch.chdir(tmp_path)
    assert locate() == locate("default") == locate("mnist") == shipped()
    assert locate("no-such-name") == Path("no-such-name")
    assert locate(tmp_path / "mnist") == tmp_path / "mnist"
    shutil.copytree(tiny_bundle, "mnist")
    assert locate("mnist") == Path("mnist")
    assert locate() == shipped()
