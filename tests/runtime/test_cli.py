"""The command vae-infer: each verb's output, and each kind of error with its exit code and one line on stderr."""

import csv
import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from support.bundles import Forge, linear
from vae_runtime import VAE, Detector, latents
from vae_runtime.cli import main

VERBS = (
    "sample", "reconstruct", "elbo", "encode", "decode", "interpolate", "traverse", "info", "verify", "doctor", "bench"
)  # fmt: skip


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


def in_process(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """The command in a process of its own, its output captured."""
    call = [sys.executable, "-m", "vae_runtime", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, check=False, **options)


def thumbnail(path: str | Path) -> np.ndarray:
    """The levels of a grid of 28x28 images as a PNG shows them, at their own size."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))[::3, ::3]


def place(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """The levels of one image in such a grid."""
    return picture[2 + 30 * row : 30 + 30 * row, 2 + 30 * column : 30 + 30 * column]


def levels(x: np.ndarray) -> np.ndarray:
    """The nearest 8-bit levels of images in [0, 1]."""
    return np.rint(np.clip(x.astype(np.float64), 0, 1) * 255)


@pytest.mark.parametrize("suffix", [".png", ".npy", ".npz", ""])
@pytest.mark.parametrize("mean", [False, True])
def test_sample_writes_what_the_api_gives(command, folder: Path, tiny_bundle: Path, suffix: str, mean: bool):
    """`sample` writes `VAE.sample` of the same seed as a grid, an array or a folder, and says what it wrote."""
    out = folder / f"out{suffix}"
    result = command(main, "--bundle", tiny_bundle, "sample", "-n", 5, "--seed", 3, "-o", out, *["--mean"] * mean)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out}: 5 {'means E[x|z]' if mean else 'samples'}, seed 3\n"
    x = VAE.load(tiny_bundle).sample(5, seed=3, mean=mean)
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(out), x)
    elif suffix == ".npz":
        with np.load(out) as archive:
            assert archive.files == ["x"]
            np.testing.assert_array_equal(archive["x"], x)
    elif suffix == ".png":
        picture = thumbnail(out)
        assert picture.shape == (2 * 30 + 2, 3 * 30 + 2)
        for i in range(5):
            np.testing.assert_array_equal(place(picture, i // 3, i % 3), levels(x[i, 0]))
    else:
        assert sorted(file.name for file in out.iterdir()) == [f"{i}.png" for i in range(5)]
        for i in range(5):
            with Image.open(out / f"{i}.png") as picture:
                np.testing.assert_array_equal(np.asarray(picture), levels(x[i, 0]))
    assert list(folder.iterdir()) == [out]


def test_sample_goes_on_where_another_ended(command, tiny_bundle: Path):
    """`--start` continues a seed's images: two files together hold what one call writes."""
    for name, number, start in (("all", 9, 0), ("first", 4, 0), ("second", 5, 4)):
        call = ("sample", "-n", number, "--start", start, "--seed", 2, "-o", f"{name}.npy")
        assert command(main, "--bundle", tiny_bundle, *call).code == 0
    whole = np.concatenate([np.load("first.npy"), np.load("second.npy")])
    np.testing.assert_array_equal(np.load("all.npy"), whole)


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
    assert json.loads(command(main, "info", "--json").out)["contract"]["latent_shape"] == [4]
    assert command(main, "--bundle", "nowhere", "info").code == 3


def test_threads_and_memory_do_not_change_the_result(command, folder: Path):
    """`--threads` and `--memory` change nothing in what sampling and scoring write, byte for byte."""
    for options in (["--threads", 1], ["--threads", 2], ["--memory", 1], ["--memory", 1, "--threads", 3]):
        calls = {
            "x.npy": ["sample", "-n", 150, "--seed", 1, "--mean"],
            "y.npy": ["reconstruct", "x.npy"],
            "s.jsonl": ["elbo", "x.npy", "-K", 3],
            "l.npz": ["encode", "x.npy"],
        }
        for name, call in calls.items():
            assert command(main, *options, *call, "-o", name).code == 0
            first = folder / f"first {name}"
            if not first.exists():
                shutil.copy(name, first)
            assert Path(name).read_bytes() == first.read_bytes(), (options, name)


def test_reconstruct_writes_arrays_and_pairs(command, folder: Path, digits: Path, tiny_bundle: Path):
    """`reconstruct` writes theta at z = mu as arrays, and in a PNG each image beside its reconstruction."""
    vae = VAE.load(tiny_bundle)
    theta = vae.reconstruct(vae.sample(3, seed=8))
    result = command(main, "--bundle", tiny_bundle, "reconstruct", digits, "-o", "out.npy")
    assert (result.code, result.out, result.err) == (0, "out.npy: 3 reconstructions\n", "")
    np.testing.assert_array_equal(np.load("out.npy"), theta)
    result = command(main, "--bundle", tiny_bundle, "reconstruct", digits / "0.png", digits / "1.png")
    assert (result.code, result.out, result.err) == (0, "reconstructions.png: 2 reconstructions\n", "")
    picture = thumbnail("reconstructions.png")
    x = vae.sample(2, seed=8)
    assert picture.shape == (32, 4 * 30 + 2)
    for i, image in enumerate((x[0], theta[0], x[1], theta[1])):
        np.testing.assert_array_equal(place(picture, 0, i), levels(image[0]))
    result = command(main, "--bundle", tiny_bundle, "reconstruct", digits, "-o", "folder")
    assert (result.code, result.out, result.err) == (0, "folder: 3 reconstructions\n", "")
    for i in range(3):
        with Image.open(f"folder/{i}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), levels(theta[i, 0]))
    result = command(main, "--bundle", tiny_bundle, "reconstruct", digits / "0.png", "-o", "one.npz")
    assert result.out == "one.npz: 1 reconstruction\n"


@pytest.mark.parametrize("k", [1, 4])
def test_elbo_prints_a_table_csv_and_json(command, digits: Path, tiny_bundle: Path, k: int):
    """`elbo` prints the API's figures per image in each format, in nats, with K and the seed named."""
    vae = VAE.load(tiny_bundle)
    terms = vae.terms(vae.sample(3, seed=8), k, seed=2)
    names = [str(digits / f"{i}.png") for i in range(3)]
    call = ("--bundle", tiny_bundle, "elbo", digits, "-K", k, "--seed", 2)
    results = {style: command(main, *call, "--format", style) for style in ("json", "csv", "jsonl", "table")}
    assert {(result.code, result.err) for result in results.values()} == {(0, "")}

    scores = json.loads(results["json"].out)
    assert (scores["unit"], scores["samples"], scores["seed"]) == ("nats", k, 2)
    assert scores["mean_elbo"] == pytest.approx(terms.elbo.mean())
    error = terms.elbo.std(ddof=1) / 3**0.5
    assert scores["standard_error_of_mean"] == pytest.approx(error)
    assert scores["kl_per_dimension"] == pytest.approx(terms.kl_per_dimension.mean(axis=0).tolist())
    rows = list(csv.DictReader(io.StringIO(results["csv"].out)))
    lines = [json.loads(line) for line in results["jsonl"].out.splitlines()]
    for found in (scores["images"], rows, lines):
        assert [row["image"] for row in found] == names
        for name in ("elbo", "reconstruction", "kl"):
            assert [float(row[name]) for row in found] == getattr(terms, name).tolist()
        assert [float(row["percentile"]) for row in found] == vae.percentile(terms.elbo).tolist()
        assert [int(row["test_observations"]) for row in found] == [vae.manifest.evaluation.observations] * 3
        bits = -terms.elbo / (784 * np.log(2))
        np.testing.assert_allclose([float(row["bits_per_dimension"]) for row in found], bits, rtol=1e-12)
        assert all(("standard_error" in row) is (k > 1) for row in found)
        if k > 1:
            assert [float(row["standard_error"]) for row in found] == terms.standard_error.tolist()
    assert results["table"].out == command(main, *call).out
    header, *lines, mean, largest = results["table"].out.splitlines()
    assert header.split() == ["image", "ELBO", *["+-"] * (k > 1), "log", "p(x|z)", "KL", "percentile"]
    for i, (line, name) in enumerate(zip(lines, names, strict=True)):
        figures = [f"{figure:.2f}" for figure in (terms.standard_error[i], terms.reconstruction[i], terms.kl[i])]
        rank = vae.ranks.describe(vae.percentile(terms.elbo)[i])
        assert line.endswith(rank)
        assert line.removesuffix(rank).split() == [name, f"{terms.elbo[i]:.2f}", *figures[k == 1 :]]
    draws = f"{k} draw{'s' * (k > 1)} of z per image, seed 2, percentiles of 297 test images"
    bits = f"{bits.mean():.3f} bits per dimension"
    assert mean == f"mean ELBO of 3 images: {terms.elbo.mean():.2f} +- {error:.2f} nats per image ({bits}), {draws}"
    kl = terms.kl_per_dimension.mean(axis=0)
    order = ", ".join(f"{kl[i]:.2f} (latent {i})" for i in sorted(range(4), key=lambda i: -kl[i]))
    assert largest == f"mean KL per latent, largest first: {order}"


def test_the_images_of_a_folder_are_numbered_from_start(command, folder: Path, tiny_bundle: Path):
    """`sample --start 98 -o folder` writes 098.png to 102.png, so that parts of one seed go together."""
    assert command(main, "--bundle", tiny_bundle, "sample", "-n", 5, "--start", 98, "-o", "out").code == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [f"{i:03d}.png" for i in range(98, 103)]


@pytest.mark.parametrize("style", ["csv", "json", "jsonl"])
def test_elbo_saves_what_it_prints(command, folder: Path, digits: Path, tiny_bundle: Path, style: str):
    """`-o` takes the format from the name and writes the same text as UTF-8; --format beside it is refused."""
    (digits / "1.png").rename(digits / "один.png")
    call = ("--bundle", tiny_bundle, "elbo", digits, "-K", 3, "--seed", 2)
    printed = command(main, *call, "--format", style)
    assert command(main, *call, "-o", f"scores.{style}", "--format", "table").code == 2
    saved = command(main, *call, "-o", f"scores.{style}")
    assert (saved.code, saved.err) == (0, "")
    assert saved.out == f"scores.{style}: scores of 3 images, 3 draws of z each, seed 2\n"
    assert Path(f"scores.{style}").read_bytes() == printed.out.encode()
    assert sorted(path.name for path in folder.iterdir()) == ["digits", f"scores.{style}"]


def test_long_lists_are_scored_in_parts(command, tiny_bundle: Path):
    """300 grey images in a small memory are scored as the API scores them all at once, in their order."""
    grey = np.random.default_rng(4).random((300, 28, 28)).astype(np.float32)
    np.save("grey.npy", grey)
    vae = VAE.load(tiny_bundle)
    terms = vae.terms(grey[:, None], 2, 7, observe=True)
    call = ("--bundle", tiny_bundle, "--memory", 1, "elbo", "grey.npy", "-K", 2, "--seed", 7, "--format", "jsonl")
    result = command(main, *call)
    assert result.err == (
        "vae-infer: note: 300 grey images: each score is the mean over 2 binary draws, P(1) = level\n"
    )
    objects = [json.loads(line) for line in result.out.splitlines()]
    assert [one["image"] for one in objects] == [f"grey.npy[{i}]" for i in range(300)]
    assert [one["elbo"] for one in objects] == terms.elbo.tolist()


def test_percentile_ranks_images_among_the_test_images(command, digits: Path, tiny_bundle: Path):
    """A likely image ranks above noise, which falls to the lowest level of the test images' quantiles."""
    noise = (np.random.default_rng(0).random((1, 28, 28)) < 0.5).astype(np.uint8) * 255
    np.save("noise.npy", noise)
    result = command(main, "--bundle", tiny_bundle, "elbo", digits / "0.png", "noise.npy", "--format", "json")
    likely, unlikely = json.loads(result.out)["images"]
    lowest = 100 / VAE.load(tiny_bundle).manifest.evaluation.observations
    assert unlikely["elbo"] < likely["elbo"]
    assert unlikely["percentile"] == pytest.approx(lowest)
    assert likely["percentile"] > 5


def test_grey_and_fitted_images_are_noted_on_stderr(command, folder: Path, tiny_bundle: Path):
    """What was binarised or fitted is on stderr, a line for each mode whatever the sizes; stdout stays the result."""
    for i in range(7):
        Image.linear_gradient("L").resize((30, 30)).save(folder / f"{i}.png")
    for height in range(40, 90):
        Image.linear_gradient("L").resize((28, height)).convert("RGB").save(folder / f"tall{height}.png")
    Image.linear_gradient("L").resize((28, 29)).convert("LA").save(folder / "thin.png")
    result = command(main, "--bundle", tiny_bundle, "elbo", folder, "--format", "csv")
    assert result.code == 0
    assert result.err.splitlines() == [
        f"vae-infer: note: 7 images, {folder}/0.png first, fitted from 30x30 L to 28x28 L",
        f"vae-infer: note: 50 images of 50 sizes, {folder}/tall40.png first, fitted from 28x40 RGB to 28x28 L",
        f"vae-infer: note: {folder}/thin.png fitted from 28x29 LA to 28x28 L",
        "vae-infer: note: 58 grey images: each score is the mean over 16 binary draws, P(1) = level",
    ]
    assert len(result.out.splitlines()) == 59


def test_encode_prints_csv_and_saves_arrays(command, digits: Path, tiny_bundle: Path):
    """`encode` prints mu and logsigma as CSV or JSON lines that read back to the same float32, or saves either, or an
    .npz of both.
    """
    vae = VAE.load(tiny_bundle)
    mu, logsigma = vae.encode(vae.sample(3, seed=8))
    names = [str(digits / f"{i}.png") for i in range(3)]
    result = command(main, "--bundle", tiny_bundle, "encode", digits)
    assert (result.code, result.err) == (0, "")
    header, *rows = csv.reader(io.StringIO(result.out))
    assert header == ["image", *(f"{name}_{i}" for name in ("mu", "logsigma") for i in range(4))]
    assert [row[0] for row in rows] == names
    figures = np.array([row[1:] for row in rows], np.float64).astype(np.float32)
    np.testing.assert_array_equal(figures, np.concatenate([mu, logsigma], axis=1))
    lines = command(main, "--bundle", tiny_bundle, "encode", digits, "--format", "jsonl")
    assert (lines.code, lines.err) == (0, "")
    objects = [json.loads(line) for line in lines.out.splitlines()]
    assert [one["image"] for one in objects] == names
    np.testing.assert_array_equal(np.array([one["mu"] for one in objects], np.float32), mu)
    np.testing.assert_array_equal(np.array([one["logsigma"] for one in objects], np.float32), logsigma)
    for name, printed in (("latents.csv", result), ("latents.jsonl", lines), ("latents.npz", None)):
        saved = command(main, "--bundle", tiny_bundle, "encode", digits, "-o", name)
        assert (saved.code, saved.err) == (0, "")
        assert saved.out == f"{name}: mu and logsigma of 3 images, 4 dimensions each\n"
        if printed:
            assert Path(name).read_text() == printed.out
    with np.load("latents.npz") as archive:
        assert sorted(archive.files) == ["logsigma", "mu"]
        np.testing.assert_array_equal(archive["mu"], mu)
        np.testing.assert_array_equal(archive["logsigma"], logsigma)


@pytest.mark.parametrize("memory", [[], ["--memory", 1, "--threads", 1]])
def test_encode_and_decode_are_reconstruct(command, folder: Path, tiny_bundle: Path, memory: list):
    """`encode -o l.npz` and `decode l.npz` write what `reconstruct` writes, byte for byte, in each kind of output."""
    call = ("--bundle", tiny_bundle, *memory)
    assert command(main, *call, "sample", "-n", 100, "--seed", 1, "-o", "images.npy").code == 0
    assert command(main, *call, "encode", "images.npy", "-o", "l.npz").code == 0
    for suffix in (".npy", ".npz", ""):
        decoded = command(main, *call, "decode", "l.npz", "-o", f"decoded{suffix}")
        assert (decoded.code, decoded.err) == (0, "")
        assert decoded.out == f"decoded{suffix}: 100 decoded images\n"
        assert command(main, *call, "reconstruct", "images.npy", "-o", f"reconstructed{suffix}").code == 0
        pair = folder / f"decoded{suffix}", folder / f"reconstructed{suffix}"
        first, second = ([f.read_bytes() for f in sorted(p.iterdir())] if p.is_dir() else p.read_bytes() for p in pair)
        assert first == second


def test_decode_draws_a_grid(command, tiny_bundle: Path):
    """Without -o `decode` writes E[x|z] of each row of an .npy to decoded.png, near a square."""
    z = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    np.save("z.npy", z)
    result = command(main, "--bundle", tiny_bundle, "decode", "z.npy")
    assert (result.code, result.out, result.err) == (0, "decoded.png: 5 decoded images\n", "")
    theta = VAE.load(tiny_bundle).decode(z)
    for i in range(5):
        np.testing.assert_array_equal(place(thumbnail("decoded.png"), i // 3, i % 3), levels(theta[i, 0]))
    np.save("z.npy", z[:1])
    assert command(main, "--bundle", tiny_bundle, "decode", "z.npy").out == "decoded.png: 1 decoded image\n"


def test_standard_input_is_a_source(tiny_bundle: Path):
    """`-` reads a picture, a gzipped IDX file or latents from a pipe, as from a file."""
    vae = VAE.load(tiny_bundle)
    x = vae.sample(3, seed=8)
    bits = (x[:, 0] * 255).astype(np.uint8)
    idx = gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 28, 28) + bits.tobytes())
    done = in_process("--bundle", tiny_bundle, "elbo", "-", "--format", "jsonl", input=idx)
    assert (done.returncode, done.stderr) == (0, b"")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["image"] for one in objects] == [f"standard input[{i}]" for i in range(3)]
    assert [one["elbo"] for one in objects] == vae.elbo(x, 16).tolist()
    picture = io.BytesIO()
    Image.fromarray(bits[0]).save(picture, "PNG")
    done = in_process("--bundle", tiny_bundle, "encode", "-", "-o", "l.npz", input=picture.getvalue())
    assert (done.returncode, done.stderr) == (0, b"")
    done = in_process("--bundle", tiny_bundle, "decode", "-", "-o", "x.npy", input=Path("l.npz").read_bytes())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x.npy: 1 decoded image\n", b"")
    np.testing.assert_array_equal(np.load("x.npy"), vae.reconstruct(x[:1]))


@pytest.mark.parametrize("linear", [False, True])
def test_interpolate_walks_from_one_image_to_the_other(command, digits: Path, tiny_bundle: Path, linear: bool):
    """`interpolate A B` writes the walk that the API gives, as one row, an animation, an array or a folder."""
    vae = VAE.load(tiny_bundle)
    x = vae.sample(3, seed=8)
    a, b = digits / "0.png", digits / "2.png"
    theta = latents.interpolate(vae, x[0], x[2], 5, linear)
    np.testing.assert_array_equal(theta[[0, -1]], vae.reconstruct(x[[0, 2]]))
    call = ("--bundle", tiny_bundle, "interpolate", a, b, "--steps", 5, *["--linear"] * linear)
    for name in ("interpolation.png", "out.gif", "out.npy", "out.npz", "out"):
        result = command(main, *call, *([] if name == "interpolation.png" else ["-o", name]))
        assert (result.code, result.err) == (0, "")
        assert result.out == f"{name}: 5 steps from {a} to {b}, {'linear' if linear else 'spherical'}\n"
    picture = thumbnail("interpolation.png")
    assert picture.shape == (32, 5 * 30 + 2)
    for i in range(5):
        np.testing.assert_array_equal(place(picture, 0, i), levels(theta[i, 0]))
        with Image.open(f"out/{i}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), levels(theta[i, 0]))
    np.testing.assert_array_equal(np.load("out.npy"), theta)
    with np.load("out.npz") as archive:
        np.testing.assert_array_equal(archive["x"], theta)
    with Image.open("out.gif") as animation:
        frames = [np.asarray(frame.convert("L"))[::3, ::3] for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 8
    for frame, i in zip(frames, (0, 1, 2, 3, 4, 3, 2, 1), strict=True):
        np.testing.assert_array_equal(place(frame, 0, 0), levels(theta[i, 0]))


def test_interpolate_takes_the_first_image_of_each(command, tiny_bundle: Path):
    """Where A and B are arrays of many images, the walk goes from the first of A to the first of B."""
    vae = VAE.load(tiny_bundle)
    first, second = vae.sample(100, seed=3), vae.sample(50, seed=4)
    np.save("first.npy", first)
    np.save("second.npy", second)
    call = ("--bundle", tiny_bundle, "--memory", 1, "--threads", 1, "interpolate", "first.npy", "second.npy")
    assert command(main, *call, "-o", "walk.npy").code == 0
    expected = vae.reconstruct(np.stack([first[0], second[0]]))
    np.testing.assert_array_equal(np.load("walk.npy")[[0, -1]], expected)


def test_interpolate_notes_what_was_fitted(command, digits: Path, tiny_bundle: Path):
    """An end of another size is fitted, and stderr says so."""
    Image.linear_gradient("L").resize((30, 30)).save("large.png")
    result = command(main, "--bundle", tiny_bundle, "interpolate", "large.png", digits / "1.png", "-o", "x.npy")
    assert result.code == 0
    assert result.err == "vae-infer: note: large.png fitted from 30x30 L to 28x28 L\n"
    assert np.load("x.npy").shape == (9, 1, 28, 28)


@pytest.mark.parametrize("with_images", [False, True])
def test_traverse_varies_each_latent(command, digits: Path, tiny_bundle: Path, with_images: bool):
    """`traverse` writes the API's walk, a row for each latent, and names the latents with their KL."""
    vae = VAE.load(tiny_bundle)
    walked = latents.traverse(vae, vae.sample(3, seed=8) if with_images else None, 5, 2.0, 3)
    call = ("--bundle", tiny_bundle, "traverse", *[digits] * with_images, "--steps", 5, "--span", 2, "--most", 3)
    rows = ", ".join(f"{latent} ({kl:.2f})" for latent, kl in zip(walked.latents, walked.kl, strict=True))
    for name in ("traversal.png", "out.gif", "out.npy", "out"):
        result = command(main, *call, *([] if name == "traversal.png" else ["-o", name]))
        assert (result.code, result.err) == (0, "")
        assert result.out == f"{name}: latents (KL in nats) {rows}, from -2 to 2\n"
    picture = thumbnail("traversal.png")
    assert picture.shape == (3 * 30 + 2, 5 * 30 + 2)
    for row in range(3):
        for column in range(5):
            np.testing.assert_array_equal(place(picture, row, column), levels(walked.theta[row, column, 0]))
    np.testing.assert_array_equal(np.load("out.npy"), walked.theta.reshape(15, 1, 28, 28))
    assert len(list(Path("out").iterdir())) == 15
    with Image.open("out.gif") as animation:
        frames = [np.asarray(frame.convert("L"))[::3, ::3] for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 8
    for row in range(3):  # a frame is the grid of one column, near a square
        np.testing.assert_array_equal(place(frames[4], row // 2, row % 2), levels(walked.theta[row, 4, 0]))


@pytest.fixture
def gaussian(forge: Forge) -> Path:
    """A bundle of the tiny one's sizes under a Gaussian likelihood."""
    return linear(forge, "gaussian", (1, 28, 28), latent_shape=(4,))


@pytest.mark.parametrize(
    "call",
    [["sample", "--draws", "-o", "x.png"], ["sample", "-o", "x.npy"], ["reconstruct", "digits", "-o", "x.npy"],
     ["elbo", "digits"], ["encode", "digits"], ["decode", "z.npy", "-o", "x"],
     ["interpolate", "digits/0.png", "digits/1.png"], ["traverse", "digits"],
     ["traverse"], ["bench", "--seconds", "0.01"], ["info"]],
    ids=" ".join,
)  # fmt: skip
def test_every_verb_works_under_a_gaussian_likelihood(command, digits: Path, gaussian: Path, call: list[str]):
    """Samples beyond [0, 1], which a Gaussian has, stop no verb; scores have no bits per dimension."""
    np.save("z.npy", np.zeros((3, 4), np.float32))
    result = command(main, "--bundle", gaussian, *call)
    assert (result.code, result.err) == (0, "")
    assert "bits" not in result.out
    if call[-1] == "x.npy" and call[0] == "sample":
        x = np.load("x.npy")
        assert x.min() < 0
        assert x.max() > 1


@pytest.mark.parametrize("output", ["o.png", "o", "o.npy"])
def test_pictures_of_two_channels_are_said_to_show_their_mean(command, folder: Path, forge: Forge, output: str):
    """An array has both; and a picture is none of the model's observations."""
    bundle = linear(forge, "gaussian", (2, 8, 8))
    result = command(main, "--bundle", bundle, "sample", "-n", 3, "--seed", 1, "--mean", "-o", output)
    note = "vae-infer: note: a picture shows the mean of the 2 channels, in grey; an .npy array has them all\n"
    assert (result.code, result.err) == (0, note * (output != "o.npy"))
    Image.new("L", (8, 8)).save("a.png")
    refused = command(main, "--bundle", bundle, "elbo", "a.png")
    which = "a picture, and this model takes 2 channels: a.png"
    todo = "give an .npy or .npz array [n, 2, 8, 8]"
    assert (refused.code, refused.err) == (4, f"vae-infer: error: {which}; {todo}\n")


@pytest.mark.skipif(sys.platform != "linux", reason="file names as bytes")
def test_names_that_are_no_text_do_not_stop_a_verb(digits: Path, tiny_bundle: Path):
    """A file name of bytes that are no UTF-8 is scored and encoded, printed and saved; the other rows are whole."""
    (digits / "1.png").rename(digits / os.fsdecode(b"\xff.png"))
    for verb in ("elbo", "encode"):
        for style in ("csv", "jsonl"):
            call = ("--bundle", tiny_bundle, verb, digits)
            printed = in_process(*call, "--format", style)
            assert (printed.returncode, printed.stderr) == (0, b""), (verb, style)
            saved = in_process(*call, "-o", f"{verb}.{style}")
            assert (saved.returncode, saved.stderr) == (0, b""), (verb, style)
            for text in (printed.stdout, Path(f"{verb}.{style}").read_bytes()):
                assert len(text.splitlines()) == 3 + (style == "csv")
                assert f"{digits}/2.png".encode() in text
    done = in_process("--bundle", tiny_bundle, "encode", os.fsdecode(b"missing \xff.png"))
    assert done.returncode == 4
    assert done.stderr.startswith(b"vae-infer: error: file not found: missing ")


@pytest.mark.parametrize(
    ("words", "index", "completions"),
    [
        ("vae-infer s", 1, ["sample", "serve"]),
        ("vae-infer e", 1, ["elbo", "encode"]),
        ("vae-infer sample --s", 2, ["--seed", "--start"]),
        ("vae-infer elbo --format j", 3, ["json", "jsonl"]),
        ("vae-infer x", 1, []),
    ],
)
def test_the_shell_can_complete(words: str, index: int, completions: list[str]):
    """As bash asks for them, verbs, options and choices are completed; nothing else is printed."""
    asked = {"_VAE_INFER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
    done = in_process(env={**os.environ, **asked})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().split() == [f"plain,{word}" for word in completions]


def test_info_describes_the_bundle(command, tiny_bundle: Path):
    """`info` says size, latents, opset, origin and figures of a bundle; `--json` prints the whole manifest."""
    manifest = VAE.load(tiny_bundle).manifest.raw
    result = command(main, "--bundle", tiny_bundle, "info", "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == manifest
    result = command(main, "--bundle", tiny_bundle, "info")
    assert (result.code, result.err) == (0, "")
    graphs = sum(file.stat().st_size for file in tiny_bundle.glob("*.onnx"))
    for words in (
        f", {graphs / 1e6:.2f} MB, ",
        "1 x 28 x 28, bernoulli likelihood",
        "4 dimensions, standard-normal prior",
        "opset 17, ir 8",
        f"{manifest['parameters']:,} parameters",
        manifest["contract"]["pair"],
        manifest["provenance"]["command"],
        f"{manifest['evaluation']['figures']['elbo']['mean']:.2f} +- ",
        f"{len(manifest['parity']['rows'])} comparisons with the network in float64 passed",
    ):
        assert words in result.out


def test_info_of_one_test_image_knows_no_errors(command, forge):
    """A mean over one image is shown without `+-`, and is null in JSON."""

    def one(manifest):
        for figure in manifest["evaluation"]["figures"].values():
            figure["standard_error"] = None

    result = command(main, "--bundle", forge(change=one), "info")
    assert result.code == 0
    assert "+-" not in result.out
    assert "elbo " in result.out


def test_info_describes_the_shipped_bundle(command):
    """`info` without a bundle describes the shipped one."""
    result = command(main, "info")
    assert (result.code, result.err) == (0, "")
    assert VAE.load().manifest.contract.pair in result.out


def test_the_module_is_the_command(folder: Path, tiny_bundle: Path):
    """`python -m vae_runtime` in its own process does what `vae-infer` does."""
    base = [sys.executable, "-m", "vae_runtime", "--bundle", str(tiny_bundle)]
    done = subprocess.run([*base, "sample", "--seed", "1", "-o", "x.npy"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.npy: 16 samples, seed 1\n", "")
    done = subprocess.run([*base, "encode", "missing.png"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "vae-infer: error: file not found: missing.png; check the path\n"


def test_a_reader_that_leaves_early_is_no_error(tiny_bundle: Path):
    """Where the reader of a pipe has gone, as after `| head`, the command ends quietly with exit code 0."""
    call = [sys.executable, "-m", "vae_runtime", "--bundle", str(tiny_bundle), "info", "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(call, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("elbo - <&-", 4, "vae-infer: error: not an image or array: standard input; "),
        ("decode - -o x.npy <&-", 4, "vae-infer: error: "),
        ("elbo x.npy >&-", 0, "vae-infer: note: "),
        ("elbo x.npy 2>&-", 0, ""),
        ("encode absent.png 2>&-", 4, ""),
        ("watch - --calibration site.json <&- >&-", 0, "vae-infer: note: nothing came: "),
        ("sample -o y.npy <&- >&- 2>&-", 0, ""),
    ],
)
def test_standard_streams_that_are_closed_are_empty(folder: Path, tiny_bundle: Path, call: str, code: int, words: str):
    """As those of a service may be: nothing is read there, and what is written there is lost."""
    vae = VAE.load(tiny_bundle)
    np.save("x.npy", vae.reconstruct(vae.sample(2)))
    Detector.fit(vae, vae.sample(100, 1), num_samples=1).save("site.json")
    command = f"{shlex.quote(sys.executable)} -m vae_runtime --bundle {shlex.quote(str(tiny_bundle))} {call}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[: len(words)]) == (code, words)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGHUP")
@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(
    ("shell", "sent", "code"),
    [
        ("exec", ["SIGTERM"], 143),
        ("exec", ["SIGHUP"], 129),
        ("trap '' HUP; exec", ["SIGHUP", "SIGTERM"], 143),  # as nohup does
    ],
)
def test_what_is_half_written_goes_when_a_signal_ends_the_command(
    folder: Path, tiny_bundle: Path, shell: str, sent: list[str], code: int
):
    """SIGTERM, or that the terminal hangs up, unless that is ignored."""
    words = [sys.executable, "-m", "vae_runtime", "--bundle", str(tiny_bundle)]
    call = f"{shell} {shlex.join([*words, 'sample', '-n', '1000000000', '-o', 'x.npz'])}"
    with subprocess.Popen(["sh", "-c", call], stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not list(folder.glob(".x.*")):
                time.sleep(0.01)
            for name in sent:
                process.send_signal(getattr(signal, name))
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (code, "vae-infer: terminated: run it again when it suits\n")
    assert not list(folder.glob("*x.*"))


ALONE = """
import atexit, sys
from vae_runtime.command import alone
def main():
    atexit.register(print, "at the end")
    print("made")
    print("and said", file=sys.stderr)
    sys.exit(3)
alone(main)
"""


def test_a_process_ends_with_all_that_it_wrote():
    """Its exit code, both streams to the last word, and what was registered for its end, though it frees nothing."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "made\nat the end\n", "and said\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_script_is_printed(shell: str):
    """The line for a shell's start-up file prints a script that asks the command for completions, and nothing else."""
    done = in_process(env={**os.environ, "_VAE_INFER_COMPLETE": f"{shell}_source"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"_VAE_INFER_COMPLETE={shell}_complete".encode() in done.stdout
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=done.stdout, check=False, capture_output=True).returncode == 0


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
    Path("labels").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 9) + bytes(9))
    Path("cut.idx").write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, 9, 28, 28) + bytes(784))
    Path("used").mkdir()
    Path("used/0.png").write_bytes(b"mine")
    Path("folder.png").mkdir()
    np.save("z.npy", np.zeros((3, 40), np.float32))
    np.save("wrong.npy", np.zeros((3, 5), np.float32))
    np.save("nan z.npy", np.full((3, 40), np.nan))
    np.save("no z.npy", np.zeros((0, 40), np.float32))
    return folder


CALLS = {
    "sample": ["sample"],
    "reconstruct": ["reconstruct", "good.png"],
    "elbo": ["elbo", "good.png"],
    "encode": ["encode", "good.png"],
    "decode": ["decode", "z.npy"],
    "interpolate": ["interpolate", "good.png", "good.png"],
    "traverse": ["traverse", "good.png"],
    "info": ["info"],
    "verify": ["verify"],
    "bench": ["bench", "--seconds", "0.01"],
}  # what works in the workshop
PICTURES = ("sample", "reconstruct", "decode", "interpolate", "traverse")
TEXTS = ("elbo", "encode")
SHAPES = "this model takes [n, 1, 28, 28]"
BAD_IMAGES = {
    "text.png": "not an image or array: text.png; give a PNG, JPEG, .npy, .npz or IDX file; a table is for a model of "
    "rows, which vae-train",
    "file": "not an image or array: file; give a PNG",
    "zero.png": "not an image or array: zero.png; give a PNG",
    "cut.png": "file cannot be read (",
    "cut.idx": "file cannot be read (it ends before its 9 ",
    "missing.png": "file not found: missing.png; check the path",
    "file/x.png": "file cannot be read (Not a directory): file/x.png",
    "empty": "no images in the folder: empty; put",
    "no*.png": "no file matches: no*.png; check the pattern",
    "labels": f"array of shape [9]: labels; {SHAPES}",
    "flat.npy": f"array of shape [3, 784]: flat.npy; {SHAPES}",
    "zero rows.npy": "array of shape [0, 28, 28]: zero rows.npy",
    "nothing.npy": "nothing.npy",
    "nan.npy": "pixels outside [0, 1] or NaN: nan.npy[0]; give floats in [0, 1], or levels as uint8",
    "levels.npy": "pixels outside [0, 1] or NaN: levels.npy[0]; give floats in [0, 1], or levels as uint8",
    "huge.npy": "huge.npy[0]",
    "complex.npy": "array of type complex128: complex.npy; give uint8 levels or floats in [0, 1]",
}
BAD_LATENTS = {
    "missing.npy": "not found: missing.npy; check the path",
    "good.png": "cannot be read (",
    "file": "cannot be read (",
    "empty": "cannot be read (",
    "wrong.npy": "latents of the wrong shape: wrong.npy ([3, 5]); this model takes [batch, 40]",
    "complex.npy": "latents of the wrong type: complex.npy (complex128)",
    "nan z.npy": "NaN or infinite latents: nan z.npy (row 0); clean the data",
    "no z.npy": "no z.npy",
}


def suffix(verb: str) -> str:
    """A kind of output that the verb writes."""
    return ".npy" if verb in PICTURES else ".csv"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sample", "-n", 0], 2, "'-n'"),
        (["sample", "-n", -1], 2, "'-n'"),
        (["sample", "-n", "1e3"], 2, "'1e3' is not a valid integer;"),
        (["sample", "-n", 10**30], 2, "'-n'"),
        (["sample", "-n", 2**63], 2, "'-n'"),
        (["sample", "-n", 2**63 - 1], 5, "out of memory"),
        (["sample", "-n", 10**15], 5, "out of memory"),
        (["sample", "--seed", -1], 2, "'--seed'"),
        (["sample", "--seed", 2**64], 2, "'--seed'"),
        (["sample", "--start", -1], 2, "'--start'"),
        (["sample", "--start", 2**63], 2, "'--start'"),
        (["sample", "extra"], 2, "extra"),
        (["--threads", 0, "sample"], 2, "'--threads'"),
        (["--memory", 0, "sample"], 2, "'--memory'"),
        (["--memory", 2**40 + 1, "sample"], 2, "'--memory'"),
        (["smaple"], 2, "'smaple'"),
        (["sample", "--memory", 4], 2, "--memory in the wrong place; give it before the verb: vae-infer --memory ..."),
        (["elbo", "good.png", "--threads", 1], 2, "--threads in the wrong place; give it before the verb"),
        (["sample", "-o", "-"], 2, "output of an unknown kind: -;"),
        (["sample", "-n", 10**15, "-o", "x.npy"], 5, "disk too small: x.npy needs 3,136,000,000.0 GB"),
        (["reconstruct"], 2, "SOURCES"),
        (["elbo"], 2, "SOURCES"),
        (["encode"], 2, "SOURCES"),
        (["decode"], 2, "LATENTS"),
        (["interpolate"], 2, "'A'"),
        (["interpolate", "good.png"], 2, "'B'"),
        (["elbo", "good.png", "-K", 0], 2, "'-K'"),
        (["elbo", "good.png", "-K", 10**6 + 1], 2, "'-K'"),
        (["elbo", "good.png", "--format", "xml"], 2, "'xml'"),
        (["encode", "good.png", "--format", "table"], 2, "'table'"),
        (["interpolate", "good.png", "good.png", "--steps", 1], 2, "'--steps'"),
        (["interpolate", "good.png", "good.png", "--steps", 10_001], 2, "'--steps'"),
        (["traverse", "--steps", 1], 2, "'--steps'"),
        (["traverse", "--most", 0], 2, "'--most'"),
        (["traverse", "--span", 0], 2, "'--span'"),
        (["traverse", "--span", -1], 2, "'--span'"),
        (["traverse", "--span", "nan"], 2, "span"),
        (["traverse", "--span", "inf"], 2, "span"),
        (["traverse", "good.png", "--span", "1e39"], 2, "span"),
        (["bench", "--seconds", 0], 2, "'--seconds'"),
        *[([*call, "--nonsense"], 2, "--nonsense") for call in [*CALLS.values(), ["doctor"]]],
        *[([*CALLS[verb], "-o", f"missing/out{suffix(verb)}"], 2, "output folder not found: missing; make it first")
          for verb in PICTURES + TEXTS],
        *[([*CALLS[verb], "-o", f"file/out{suffix(verb)}"], 2, "output folder not found: file; make it first")
          for verb in PICTURES + TEXTS],
        *[([*CALLS[verb], "-o", "x" * 300 + suffix(verb)], 2, "cannot write") for verb in PICTURES + TEXTS],
        *[([*CALLS[verb], "-o", "out.txt"], 2, "output of an unknown kind: out.txt; end its name in .")
          for verb in PICTURES + TEXTS],
        *[([*CALLS[verb], "-o", "folder.png"], 2, "output is a folder: folder.png; name a file") for verb in PICTURES],
        *[([*CALLS[verb], "-o", "used"], 2, "output exists and is no empty folder: used; name a new folder")
          for verb in PICTURES],
        *[([*CALLS[verb], "-o", "file"], 2, "output exists and is no empty folder: file") for verb in PICTURES],
        (["sample", "-o", "out.gif"], 2, "out.gif; end its name in .png or .npy or .npz or no suffix (a folder)"),
        (["traverse", "-o", "out.txt"], 2, "end its name in .png or .npy or .npz or no suffix (a folder) or .gif"),
        (["elbo", "good.png", "-o", "out"], 2, "unknown kind: out; end its name in .csv or .json or .jsonl"),
        (["encode", "good.png", "-o", "out.png"], 2, "out.png; end its name in .npz or .csv or .jsonl"),
        *[(["--bundle", "missing", *call], 3, "bundle not found: missing (not in ")
          for call in CALLS.values()],
        *[(["--bundle", "damaged", *call], 3, "bundle damaged (size or sha256 differs): damaged/decoder.onnx")
          for call in CALLS.values()],
        (["--bundle", "file", "sample"], 3, "a file, not a bundle: file; name a folder"),
        (["--bundle", "half", "encode", "good.png"], 3, "bundle incomplete, no such file: half/encoder.onnx"),
        (["--bundle", "text", "elbo", "good.png"], 3, "manifest not understood: text/manifest.json"),
        *[([verb, name], 4, words) for verb in ("reconstruct", "elbo", "encode", "traverse")
          for name, words in BAD_IMAGES.items()],
        *[(["reconstruct", "good.png", name, "-o", "out.npy"], 4, words) for name, words in BAD_IMAGES.items()],
        *[(["interpolate", "good.png", name], 4, words) for name, words in BAD_IMAGES.items() if name != "cut.idx"],
        (["interpolate", "missing.png", "good.png", "-o", "out.gif"], 4, "file not found: missing.png"),
        *[(["decode", name], 4, words) for name, words in BAD_LATENTS.items()],
        (["decode", "wrong.npy", "-o", "out"], 4, "wrong.npy ([3, 5])"),
        (["elbo", "good.png", "text.png", "-o", "out.csv"], 4, "not an image or array: text.png"),
        (["encode", "huge.npy", "-o", "out.npz"], 4, "huge.npy[0]"),
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
def test_info_prints_what_a_bundle_has(command, forge, tiny_bundle: Path, missing: str):
    """What a bundle may lack, its figures say, `info` leaves out; the rest is as it was."""
    whole = command(main, "--bundle", tiny_bundle, "info").out.splitlines()
    result = command(main, "--bundle", forge(change=lambda manifest: manifest.pop(missing)), "info")
    assert (result.code, result.err) == (0, "")
    kept = [line for line in result.out.splitlines() if not line.startswith("graphs")]
    assert kept == [line for line in whole if line in kept]
    assert len(result.out) < len("\n".join(whole))


def test_verify_needs_the_gates_report(command, forge, workshop: Path):
    """Without it, nobody knows how far golden vectors may be off: exit code 3, in a line that says what is missing."""
    result = command(main, "--bundle", forge(change=lambda manifest: manifest.pop("parity")), "verify")
    assert (result.code, result.out) == (3, "")
    assert "parity" in result.err


@pytest.mark.parametrize("style", ["table", "csv", "json", "jsonl"])
def test_a_model_that_was_not_measured_scores_without_percentiles(command, forge, workshop: Path, style: str):
    """Without quantiles of test images `elbo` prints everything else, and a note says what is missing."""
    out = forge(change=lambda manifest: manifest.pop("evaluation"))
    result = command(main, "--bundle", out, "elbo", "good.png", "--format", style)
    assert result.code == 0
    assert "vae-infer: note: no percentiles: the bundle keeps no quantiles" in result.err
    assert "percentile" not in result.out
    assert "test_observations" not in result.out


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


def test_what_the_table_of_errors_calls_good_is_good(command, workshop: Path):
    """The calls that the table of errors spoils work as they are: it is not something else that fails."""
    for call in CALLS.values():
        assert command(main, *call).code == 0, call


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_goes_to_stdout(command, verb: str):
    """`--help` of the command and of each verb prints usage on stdout and exits with 0."""
    result = command(main, *verb.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: vae-infer {verb}".rstrip())
    assert max(map(len, result.out.splitlines())) <= 80
    assert not re.search(r"RANGE|\dx|<=|\b(INTEGER|FLOAT)\b", result.out.replace("640x480", ""))


def test_help_says_ranges_in_words(command):
    """As many or more, between two, above one; no limit that is the machine's own."""
    words = " ".join(command(main, "calibrate", "--help").out.split())
    assert (
        "--false-alarms NUMBER Share of normal ones that may be called odd. [default: 0.01; between 0 and 1]" in words
    )
    words = " ".join(command(main, "traverse", "--help").out.split())
    assert "--steps N How many for each latent. [default: 11; 2 to 1000]" in words
    assert "--span NUMBER From -span to span. [default: 3.0; above 0]" in words
    assert "-n N How many. [default: 16; 1 or more]" in " ".join(command(main, "sample", "--help").out.split())


def test_lines_are_folded_between_words_on_a_terminal_alone(command, monkeypatch: pytest.MonkeyPatch):
    """What follows is indented as what it belongs to, and joined it is what a pipe gets."""
    from vae_runtime import terminal

    plain = command(main, "info").out
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = list(terminal.folded(plain.splitlines(), 23))
    assert max(len(line) for text in shown for line in text.splitlines()) <= 60
    assert [" ".join(text.split()) for text in shown] == [" ".join(line.split()) for line in plain.splitlines()]
    assert all(line.startswith(" " * 23) for text in shown for line in text.splitlines()[1:])


def test_version(command):
    """`--version` prints the version of the installed distribution."""
    import importlib.metadata

    result = command(main, "--version")
    assert (result.code, result.err) == (0, "")
    assert importlib.metadata.version("vae-edge") in result.out
