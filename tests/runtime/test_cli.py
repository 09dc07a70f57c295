"""The command vae-infer: each verb's output, and each kind of error with its exit code and one line on stderr."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_runtime import VAE
from vae_runtime.cli import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no bundle named by the environment."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("VAE_EDGE_BUNDLE", raising=False)
    return work


@pytest.fixture
def digits(folder: Path, tiny_bundle: Path) -> Path:
    """A folder with three binary 28x28 PNGs, the tiny bundle's own samples 0 to 2."""
    path = folder / "digits"
    path.mkdir()
    for i, x in enumerate(VAE.load(tiny_bundle).sample(3, seed=8)):
        Image.fromarray((x[0] * 255).astype(np.uint8)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("suffix", [".png", ".npy", ".npz"])
@pytest.mark.parametrize("mean", [False, True])
def test_sample_writes_what_the_api_gives(command, folder: Path, tiny_bundle: Path, suffix: str, mean: bool):
    """`sample` writes `VAE.sample` of the same seed as a grid or an array, and says what it wrote."""
    out = folder / f"out{suffix}"
    result = command(main, "--bundle", tiny_bundle, "sample", "-n", 5, "--seed", 3, "-o", out, *["--mean"] * mean)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out}: 5 {'means' if mean else 'samples'}, seed 3\n"
    x = VAE.load(tiny_bundle).sample(5, seed=3, mean=mean)
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(out), x)
    elif suffix == ".npz":
        with np.load(out) as archive:
            assert archive.files == ["x"]
            np.testing.assert_array_equal(archive["x"], x)
    else:
        with Image.open(out) as picture:
            assert picture.size == (3 * (3 * 30 + 2), 3 * (2 * 30 + 2))
            levels = np.asarray(picture)[::3, ::3]
        np.testing.assert_array_equal(levels[2:30, 2:30], np.rint(x[0, 0] * 255))
        np.testing.assert_array_equal(levels[32:60, 32:60], np.rint(x[4, 0] * 255))
    assert list(folder.iterdir()) == [out]


def test_sample_uses_the_shipped_bundle_and_a_new_seed(command, folder: Path):
    """With no option at all 16 samples of the shipped model go to samples.png; the seed it prints repeats them."""
    first = command(main, "sample")
    assert (first.code, first.err) == (0, "")
    match = re.fullmatch(r"samples\.png: 16 samples, seed (\d+)\n", first.out)
    assert match
    png = (folder / "samples.png").read_bytes()
    command(main, "sample")
    assert (folder / "samples.png").read_bytes() != png
    command(main, "sample", "--seed", match[1])
    assert (folder / "samples.png").read_bytes() == png


def test_the_bundle_may_come_from_the_environment(command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """VAE_EDGE_BUNDLE names the bundle where --bundle does not; --bundle wins."""
    monkeypatch.setenv("VAE_EDGE_BUNDLE", str(tiny_bundle))
    assert json.loads(command(main, "info", "--json").out)["contract"]["latent_dim"] == 4
    assert command(main, "--bundle", "nowhere", "info").code == 3


def test_threads_do_not_change_the_result(command, folder: Path):
    """`--threads 1` and `--threads 2` write the same array."""
    for threads in (1, 2):
        result = command(main, "--threads", threads, "sample", "--seed", 1, "--mean", "-o", f"{threads}.npy")
        assert result.code == 0
    assert (folder / "1.npy").read_bytes() == (folder / "2.npy").read_bytes()


def test_reconstruct_writes_arrays_and_pairs(command, folder: Path, digits: Path, tiny_bundle: Path):
    """`reconstruct` writes theta at z = mu as arrays, and in a PNG each image beside its reconstruction."""
    vae = VAE.load(tiny_bundle)
    theta = vae.reconstruct(vae.sample(3, seed=8))
    result = command(main, "--bundle", tiny_bundle, "reconstruct", digits, "-o", "out.npy")
    assert (result.code, result.out, result.err) == (0, "out.npy: 3 reconstructions\n", "")
    np.testing.assert_array_equal(np.load("out.npy"), theta)
    result = command(main, "--bundle", tiny_bundle, "reconstruct", digits / "0.png", digits / "1.png")
    assert (result.code, result.out, result.err) == (0, "reconstructions.png: 2 reconstructions\n", "")
    with Image.open("reconstructions.png") as picture:
        levels = np.asarray(picture)[::3, ::3]
    x = vae.sample(2, seed=8)
    assert levels.shape == (32, 4 * 30 + 2)
    for i, image in enumerate((x[0], theta[0], x[1], theta[1])):
        np.testing.assert_array_equal(levels[2:30, 2 + 30 * i : 30 + 30 * i], np.rint(image[0] * 255))


def test_elbo_prints_a_table_csv_and_json(command, digits: Path, tiny_bundle: Path):
    """`elbo` prints the API's figures per image in each format, in nats, with K and the seed named."""
    vae = VAE.load(tiny_bundle)
    terms = vae.terms(vae.sample(3, seed=8), 4, seed=2)
    names = [str(digits / f"{i}.png") for i in range(3)]
    call = ("--bundle", tiny_bundle, "elbo", digits, "-K", 4, "--seed", 2)
    results = {style: command(main, *call, "--format", style) for style in ("json", "csv", "table")}
    assert {(result.code, result.err) for result in results.values()} == {(0, "")}

    scores = json.loads(results["json"].out)
    assert (scores["unit"], scores["samples"], scores["seed"]) == ("nats", 4, 2)
    rows = list(csv.DictReader(io.StringIO(results["csv"].out)))
    for found in (scores["images"], rows):
        assert [row["image"] for row in found] == names
        for name in ("elbo", "reconstruction", "kl"):
            assert [float(row[name]) for row in found] == getattr(terms, name).tolist()
        assert all(0 <= float(row["percentile"]) <= 100 for row in found)
    assert results["table"].out == command(main, *call).out
    header, *lines, last = results["table"].out.splitlines()
    assert header.split() == ["image", "ELBO", "log", "p(x|z)", "KL", "percentile"]
    for line, name, elbo in zip(lines, names, terms.elbo, strict=True):
        assert line.split()[:2] == [name, f"{elbo:.2f}"]
    error = terms.elbo.std(ddof=1) / 3**0.5
    assert last == f"mean ELBO {terms.elbo.mean():.2f} +- {error:.2f} nats per image, 4 draws of z per image, seed 2"


def test_percentile_ranks_images_among_the_test_images(command, digits: Path, tiny_bundle: Path):
    """A likely image ranks above noise, which falls to the lowest level of the test images' quantiles."""
    noise = (np.random.default_rng(0).random((1, 28, 28)) < 0.5).astype(np.uint8) * 255
    np.save("noise.npy", noise)
    result = command(main, "--bundle", tiny_bundle, "elbo", digits / "0.png", "noise.npy", "--format", "json")
    likely, unlikely = json.loads(result.out)["images"]
    lowest = 100 * VAE.load(tiny_bundle).info["evaluation"]["quantiles"]["levels"][0]
    assert unlikely["elbo"] < likely["elbo"]
    assert unlikely["percentile"] == pytest.approx(lowest)
    assert likely["percentile"] > 5


def test_grey_and_fitted_images_are_noted_on_stderr(command, folder: Path, tiny_bundle: Path):
    """What was binarised or fitted is said on stderr, one line for each kind of change; stdout stays the result."""
    for i in range(7):
        Image.linear_gradient("L").resize((30, 30)).save(folder / f"{i}.png")
    Image.linear_gradient("L").resize((28, 40)).convert("RGB").save(folder / "tall.png")
    result = command(main, "--bundle", tiny_bundle, "elbo", folder, "--format", "csv")
    assert result.code == 0
    assert result.err.splitlines() == [
        f"vae-infer: note: 7 images, {folder}/0.png first, fitted from 30x30 L to 28x28 L",
        f"vae-infer: note: {folder}/tall.png fitted from 28x40 RGB to 28x28 L",
        "vae-infer: note: 8 grey images were drawn as binary, P(1) = level",
    ]
    assert len(result.out.splitlines()) == 9


def test_encode_prints_csv_and_saves_arrays(command, digits: Path, tiny_bundle: Path):
    """`encode` prints mu and logsigma as CSV that reads back to the same float32, or saves both in an .npz."""
    vae = VAE.load(tiny_bundle)
    mu, logsigma = vae.encode(vae.sample(3, seed=8))
    result = command(main, "--bundle", tiny_bundle, "encode", digits)
    assert (result.code, result.err) == (0, "")
    header, *rows = csv.reader(io.StringIO(result.out))
    assert header == ["image", *(f"{name}_{i}" for name in ("mu", "logsigma") for i in range(4))]
    assert [row[0] for row in rows] == [str(digits / f"{i}.png") for i in range(3)]
    figures = np.array([row[1:] for row in rows], np.float64).astype(np.float32)
    np.testing.assert_array_equal(figures, np.concatenate([mu, logsigma], axis=1))
    result = command(main, "--bundle", tiny_bundle, "encode", digits, "-o", "latents.npz")
    assert (result.code, result.err) == (0, "")
    assert result.out == "latents.npz: mu and logsigma of 3 images, 4 dimensions each\n"
    with np.load("latents.npz") as archive:
        assert sorted(archive.files) == ["logsigma", "mu"]
        np.testing.assert_array_equal(archive["mu"], mu)
        np.testing.assert_array_equal(archive["logsigma"], logsigma)


def test_info_describes_the_bundle(command, tiny_bundle: Path):
    """`info` says size, latents, opset, origin and figures of a bundle; `--json` prints the whole manifest."""
    manifest = VAE.load(tiny_bundle).info
    result = command(main, "--bundle", tiny_bundle, "info", "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == manifest
    result = command(main, "--bundle", tiny_bundle, "info")
    assert (result.code, result.err) == (0, "")
    for words in (
        "1 x 28 x 28, bernoulli likelihood",
        "4 dimensions, standard-normal prior",
        "opset 17, ir 8",
        f"{manifest['parameters']:,} parameters",
        manifest["contract"]["pair"],
        "vae-train --epochs 2",
        f"{manifest['evaluation']['figures']['elbo']['mean']:.2f} +- ",
        f"{len(manifest['parity']['rows'])} comparisons with PyTorch",
    ):
        assert words in result.out


def test_info_describes_the_shipped_bundle(command):
    """`info` without a bundle describes the shipped one."""
    result = command(main, "info")
    assert (result.code, result.err) == (0, "")
    assert VAE.load().info["contract"]["pair"] in result.out


def test_the_module_is_the_command(folder: Path, tiny_bundle: Path):
    """`python -m vae_runtime` in its own process does what `vae-infer` does."""
    base = [sys.executable, "-m", "vae_runtime", "--bundle", str(tiny_bundle)]
    done = subprocess.run([*base, "sample", "--seed", "1", "-o", "x.npy"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.npy: 16 samples, seed 1\n", "")
    done = subprocess.run([*base, "encode", "missing.png"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "vae-infer: error: image not found: missing.png; check the path\n"


def test_a_reader_that_leaves_early_is_no_error(tiny_bundle: Path):
    """Where the reader of a pipe has gone, as after `| head`, the command ends quietly with exit code 0."""
    call = [sys.executable, "-m", "vae_runtime", "--bundle", str(tiny_bundle), "info", "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(call, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def workshop(folder: Path, tiny_bundle: Path) -> Path:
    """A working folder with one good image and everything that the table of errors needs."""
    Image.new("L", (28, 28)).save("good.png")
    Path("text.png").write_text("These are words, not pixels.\n")
    Path("zero.png").write_bytes(b"")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:50])
    Path("empty").mkdir()
    Path("file").write_text("a file")
    np.save("flat.npy", np.zeros((3, 784), np.float32))
    np.save("zero rows.npy", np.zeros((0, 28, 28), np.float32))
    np.save("nothing.npy", np.zeros((0, 0), np.float32))
    np.save("nan.npy", np.full((2, 28, 28), np.nan, np.float32))
    np.save("levels.npy", np.full((2, 28, 28), 255, np.float32))
    np.save("huge.npy", np.full((2, 28, 28), 1e300))
    np.save("complex.npy", np.zeros((2, 28, 28), complex))
    for name in ("damaged", "half", "text"):
        shutil.copytree(tiny_bundle, name)
    raw = bytearray(Path("damaged/decoder.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    Path("damaged/decoder.onnx").write_bytes(raw)
    Path("half/encoder.onnx").unlink()
    Path("text/manifest.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sample", "-n", 0], 2, "'-n'"),
        (["sample", "-n", -1], 2, "'-n'"),
        (["sample", "-n", "1e3"], 2, "'1e3' is not a valid integer"),
        (["sample", "-n", 10**30], 5, "out of memory"),
        (["sample", "-n", 10**15], 5, "out of memory"),
        (["sample", "--seed", -1], 2, "'--seed'"),
        (["sample", "--seed", 2**64], 2, "'--seed'"),
        (["sample", "--nonsense"], 2, "--nonsense"),
        (["sample", "extra"], 2, "extra"),
        (["--threads", 0, "sample"], 2, "'--threads'"),
        (["smaple"], 2, "'smaple'"),
        (["encode"], 2, "IMAGES"),
        (["elbo", "good.png", "-K", 0], 2, "'-K'"),
        (["elbo", "good.png", "--format", "xml"], 2, "'xml'"),
        (["sample", "-o", "out.txt"], 2, "output of an unknown kind: out.txt; end its name in .png or .npy or .npz"),
        (["sample", "-o", "out"], 2, "output of an unknown kind: out;"),
        (["encode", "good.png", "-o", "out.png"], 2, "output of an unknown kind: out.png; end its name in .npz"),
        (["sample", "-o", "missing/out.png"], 2, "output folder not found: missing; make it first"),
        (["sample", "-o", "file/out.png"], 2, "output folder not found: file; make it first"),
        (["reconstruct", "good.png", "-o", "missing/out.npy"], 2, "output folder not found: missing;"),
        (["sample", "-o", "x" * 300 + ".png"], 2, "cannot write"),
        (["--bundle", "missing", "sample"], 3, "bundle not found: missing/manifest.json; name a folder"),
        (["--bundle", "file", "sample"], 3, "bundle unreadable (Not a directory): file/manifest.json"),
        (["--bundle", "damaged", "sample"], 3, "bundle damaged (size or sha256 differs): damaged/decoder.onnx"),
        (["--bundle", "damaged", "info"], 3, "bundle damaged (size or sha256 differs): damaged/decoder.onnx"),
        (["--bundle", "half", "encode", "good.png"], 3, "bundle not found: half/encoder.onnx"),
        (["--bundle", "text", "elbo", "good.png"], 3, "manifest not understood: text/manifest.json"),
        (["encode", "text.png"], 4, "not an image: text.png; give a PNG"),
        (["elbo", "good.png", "text.png"], 4, "not an image: text.png; give a PNG"),
        (["reconstruct", "zero.png"], 4, "not an image: zero.png"),
        (["reconstruct", "cut.png"], 4, "cut.png"),
        (["encode", "missing.png"], 4, "image not found: missing.png; check the path"),
        (["encode", "empty"], 4, "no images in the folder: empty; put"),
        (["encode", "file/x.png"], 4, "file/x.png"),
        (["reconstruct", "flat.npy"], 4, "array of shape [3, 784]: flat.npy; this model takes [n, 1, 28, 28]"),
        (["elbo", "zero rows.npy"], 4, "array of shape [0, 28, 28]: zero rows.npy"),
        (["elbo", "nothing.npy"], 4, "nothing.npy"),
        (["elbo", "nan.npy"], 4, "pixels outside [0, 1] or NaN: nan.npy[0]; give floats in [0, 1]"),
        (["reconstruct", "levels.npy"], 4, "pixels outside [0, 1] or NaN: levels.npy[0]; give floats in [0, 1]"),
        (["encode", "huge.npy", "-o", "out.npz"], 4, "huge.npy[0]"),
        (["encode", "complex.npy"], 4, "array of type complex128: complex.npy; give uint8 levels or floats in [0, 1]"),
    ],
    ids=lambda value: " ".join(map(str, value))[:50] if isinstance(value, list) else "",
)  # fmt: skip
def test_every_failure_is_one_line_and_an_exit_code(command, workshop: Path, arguments: list, code: int, words: str):
    """A failure ends in its exit code, one line on stderr with what to do, nothing on stdout and no file left."""
    before = sorted(workshop.rglob("*"))
    result = command(main, *arguments)
    assert result.code == code
    assert result.err.startswith("vae-infer: error: ")
    assert result.err.endswith("\n")
    assert len(result.err.splitlines()) == 1
    assert len(result.err) < 600
    assert words in result.err
    what, _, advice = result.err.strip().removeprefix("vae-infer: error: ").partition("; ")
    assert ": " in what
    assert len(advice) > 5
    assert result.out == ""
    assert sorted(workshop.rglob("*")) == before


def test_no_verb_at_all_is_short(command):
    """`vae-infer` alone ends in exit code 2 and one short line that says how to get help."""
    result = command(main)
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert len(result.err) < 200
    assert "--help" in result.err


@pytest.mark.parametrize("missing", ["evaluation", "parity", "onnx", "provenance", "parameters"])
def test_a_manifest_without_what_a_verb_prints_is_a_bundle_error(command, forge, workshop: Path, missing: str):
    """A valid manifest that lacks the figures which `info` or `elbo` print ends in exit code 3, not in a traceback."""
    out = forge(change=lambda manifest: manifest.pop(missing))
    verbs = [["info"], ["elbo", "good.png"]] if missing == "evaluation" else [["info"]]
    for verb in verbs:
        result = command(main, "--bundle", out, *verb)
        assert result.code == 3
        assert result.err.startswith("vae-infer: error: ")
        assert missing in result.err
        assert result.out == ""


@pytest.mark.parametrize("old", [None, b"an older picture"])
def test_an_output_that_cannot_be_replaced_stays(command, folder: Path, old: bytes | None):
    """When reading the images fails, an older output keeps its content; a folder in its place is refused."""
    if old is not None:
        Path("out.png").write_bytes(old)
        assert command(main, "reconstruct", "missing.png", "-o", "out.png").code == 4
        assert Path("out.png").read_bytes() == old
    else:
        Path("out.png").mkdir()
        result = command(main, "sample", "-o", "out.png")
        assert (result.code, result.err) == (2, "vae-infer: error: output is a folder: out.png; name a file\n")
    assert [p.name for p in folder.iterdir()] == ["out.png"]


@pytest.mark.parametrize("verb", ["", "sample", "reconstruct", "elbo", "encode", "info"])
def test_help_goes_to_stdout(command, verb: str):
    """`--help` of the command and of each verb prints usage on stdout and exits with 0."""
    result = command(main, *verb.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: vae-infer {verb}".rstrip())


def test_version(command):
    """`--version` prints the version of the installed distribution."""
    import importlib.metadata

    result = command(main, "--version")
    assert (result.code, result.err) == (0, "")
    assert importlib.metadata.version("vae-edge") in result.out
