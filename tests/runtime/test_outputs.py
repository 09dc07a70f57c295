"""Images out: every kind holds what was streamed, however it was cut up, and a failure leaves nothing behind."""

import os
import random
import resource
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageSequence

from support.sources import load
from vae_runtime import ArgumentError, InputError, ResourceError, outputs
from vae_runtime.observation import Shape

GREY: Shape = (1, 6, 5)
COLOUR: Shape = (3, 4, 7)
KINDS = [".npy", ".npz", ".png", ".gif", ""]
kinds = pytest.mark.parametrize("suffix", KINDS, ids=["npy", "npz", "png", "gif", "folder"])
shapes = pytest.mark.parametrize("shape", [GREY, COLOUR], ids=["grey", "colour"])


def draw(count: int, shape: Shape, seed: int = 0) -> np.ndarray:
    """Images in [0, 1], some of them on the ends, a few outside."""
    x = np.random.default_rng(seed).uniform(-0.1, 1.1, (count, *shape)).astype(np.float32)
    x[:, 0, 0, :3] = 0, 1, 0.5
    return x


def levels(x: np.ndarray) -> np.ndarray:
    """8-bit levels [n, H, W, C] of images, by the nearest level in float64."""
    return np.rint(255 * np.clip(x.astype(np.float64), 0, 1)).transpose(0, 2, 3, 1)


def cut(x: np.ndarray, *sizes: int) -> Iterator[np.ndarray]:
    """The images in batches of these sizes, the last one of what is left."""
    for size in sizes:
        yield x[:size]
        x = x[size:]
    yield x


def content(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of each file of a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


@shapes
@pytest.mark.parametrize("count", [1, 2, 11])
def test_an_npy_is_the_array(tmp_path: Path, shape: Shape, count: int):
    """.npy gives back the float32 images [n, C, H, W], bit for bit, those outside [0, 1] too."""
    x = draw(count, shape)
    outputs.write(tmp_path / "x.npy", count, shape, cut(x, 1))
    loaded = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert loaded.dtype == np.dtype("<f4")
    assert loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, x)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@shapes
def test_an_npz_holds_the_array_as_x(tmp_path: Path, shape: Shape):
    """.npz gives back the same array as `x`, compressed, and is a sound archive."""
    x = np.repeat(draw(2, shape), 50, axis=0)
    outputs.write(tmp_path / "x.npz", 100, shape, cut(x, 1, 50, 0, 20))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert archive.files == ["x"]
        np.testing.assert_array_equal(archive["x"], x)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.testzip() is None
        assert archive.getinfo("x.npy").compress_size < x.nbytes / 5


def test_arrays_are_written_together(tmp_path: Path):
    """`write_arrays` keeps each array's name, shape, type and values, in a compressed .npz that replaces an old one."""
    path = tmp_path / "x.npz"
    path.write_bytes(b"old")
    mu, logsigma = draw(40, GREY)[:, 0, 0], np.zeros((40, 5), np.float32)
    outputs.write_arrays(path, mu=mu, logsigma=logsigma)
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == ["logsigma", "mu"]
        np.testing.assert_array_equal(archive["mu"], mu)
        np.testing.assert_array_equal(archive["logsigma"], logsigma)
        assert archive["mu"].dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


@shapes
@pytest.mark.parametrize(("count", "columns"), [(1, None), (5, None), (7, 3), (4, 9)])
def test_a_png_shows_every_image_at_its_place(tmp_path: Path, shape: Shape, count: int, columns: int | None):
    """In the PNG, three times as large, image i has its levels at its row and column; the rest is one grey."""
    x = draw(count, shape)
    outputs.write(tmp_path / "x.png", count, shape, cut(x, 1), columns)
    wide = min(count, columns or int(np.ceil(np.sqrt(count))))
    with Image.open(tmp_path / "x.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "L" if shape[0] == 1 else "RGB")
        pixels = np.asarray(picture).reshape(picture.height, picture.width, shape[0])
    assert pixels.shape[:2] == (3 * (-(-count // wide) * (shape[1] + 2) + 2), 3 * (wide * (shape[2] + 2) + 2))
    small = pixels[::3, ::3].copy()
    np.testing.assert_array_equal(pixels, np.kron(small, np.ones((3, 3, 1), np.uint8)))
    for i, expected in enumerate(levels(x)):
        place = np.s_[2 + i // wide * (shape[1] + 2) :, 2 + i % wide * (shape[2] + 2) :]
        np.testing.assert_array_equal(small[place][: shape[1], : shape[2]], expected)
        small[place][: shape[1], : shape[2]] = 96
    assert (small == 96).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_of_other_channels_a_picture_shows_the_mean(tmp_path: Path, channels: int):
    """In grey, as a picture of their mean is written: there is no PNG or GIF of two channels, and four are no RGB."""
    x = np.random.default_rng(channels).uniform(size=(6, channels, 4, 5)).astype(np.float32)
    mean = x.mean(axis=1, keepdims=True)
    for name in ("x.png", "x.gif", "x"):
        outputs.write(tmp_path / name, 6, (channels, 4, 5), cut(x, 2), columns=3)
        outputs.write(tmp_path / f"mean {name}", 6, (1, 4, 5), cut(mean, 2), columns=3)
        assert content(tmp_path / name) == {
            file.removeprefix("mean "): data for file, data in content(tmp_path / f"mean {name}").items()
        }


@shapes
@pytest.mark.parametrize(("count", "last"), [(1, "0.png"), (10, "9.png"), (11, "10.png"), (101, "100.png")])
def test_a_folder_holds_numbered_pngs(tmp_path: Path, shape: Shape, count: int, last: str):
    """A name without suffix becomes a folder: one PNG per image, as large as the image, that sorts by its number."""
    x = draw(count, shape)
    outputs.write(tmp_path / "out", count, shape, cut(x, 1, count // 2))
    files = sorted((tmp_path / "out").iterdir())
    assert [int(file.stem) for file in files] == list(range(count))
    assert files[-1].name == last
    for file, expected in zip(files, levels(x), strict=True):
        with Image.open(file) as picture:
            assert picture.mode == ("L" if shape[0] == 1 else "RGB")
            np.testing.assert_array_equal(np.asarray(picture).reshape(expected.shape), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (1, 9), (3, 5), (4, 3)])
def test_a_gif_goes_forth_and_back(tmp_path: Path, rows: int, columns: int):
    """Frame i is column i of the grid, all rows of it; then the inner ones backwards; it loops without end."""
    x = draw(rows * columns, GREY)
    outputs.write(tmp_path / "x.gif", len(x), GREY, cut(x, 1, 1), columns)
    with Image.open(tmp_path / "x.gif") as animation:
        assert animation.info["loop"] == 0
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(animation)]
        assert animation.info["duration"] == 80
    assert len(frames) == 2 * columns - 2
    order = [*range(columns), *range(columns - 2, 0, -1)]
    for frame, column in zip(frames, order, strict=True):
        outputs.write(tmp_path / "column.png", rows, GREY, [x[column::columns]])
        with Image.open(tmp_path / "column.png") as expected:
            np.testing.assert_array_equal(frame, np.asarray(expected))


def test_a_gif_in_colour_is_near_its_levels(tmp_path: Path):
    """A GIF has 256 colours a frame: flat colours come out exactly, in each frame."""
    x = np.zeros((4, *COLOUR), np.float32)
    for i, colour in enumerate([(1, 0, 0), (0, 1, 0), (0.2, 0.4, 1), (1, 1, 1)]):
        x[i] = np.reshape(colour, (3, 1, 1))
    outputs.write(tmp_path / "x.gif", 4, COLOUR, [x], 4)
    with Image.open(tmp_path / "x.gif") as animation:
        middles = [np.asarray(frame.convert("RGB"))[12, 12] for frame in ImageSequence.Iterator(animation)]
    np.testing.assert_array_equal(middles, [levels(x)[i, 0, 0] for i in (0, 1, 2, 3, 2, 1)])


@kinds
@shapes
@pytest.mark.parametrize("seed", range(6))
def test_how_the_stream_is_cut_does_not_matter(tmp_path: Path, suffix: str, shape: Shape, seed: int):
    """Batches of any sizes, empty ones too, give the same bytes as one batch, in every kind of output."""
    generator = random.Random(seed)
    count, sizes = 2 * generator.randint(1, 12), [generator.randint(0, 9) for _ in range(generator.randint(0, 6))]
    x = draw(count, shape)
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    columns = count // 2
    outputs.write(whole, count, shape, [x], columns)
    outputs.write(parts, count, shape, cut(x, *sizes), columns)
    expected, got = content(whole), content(parts)
    if whole.is_file():
        assert got[parts.name] == expected[whole.name]
    else:
        assert got == expected


@kinds
def test_the_same_images_give_the_same_bytes(tmp_path: Path, suffix: str):
    """No output holds the time or its own name: written twice, under two names, the bytes are the same."""
    x = draw(6, GREY)
    for name in "ab":
        outputs.write(tmp_path / f"{name}{suffix}", 6, GREY, [x], 3)
    first, second = (list(content(tmp_path / f"{name}{suffix}").values()) for name in "ab")
    assert first == second


@kinds
@pytest.mark.parametrize("error", [InputError, RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_failure_in_the_stream_leaves_nothing(tmp_path: Path, suffix: str, error: type[BaseException], after: int):
    """When the generator raises, before the first batch or after some, that error comes out and no file is left."""
    raised = error("what", "which", "todo")

    def stream() -> Iterator[np.ndarray]:
        for _ in range(after):
            yield draw(2, GREY)
        raise raised

    with pytest.raises(error) as caught:
        outputs.write(tmp_path / f"out{suffix}", 6, GREY, stream(), 3)
    assert caught.value is raised
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", KINDS[:-1])
def test_a_failure_keeps_the_old_file(tmp_path: Path, suffix: str):
    """When the generator raises, an older output keeps its bytes; when it does not, the new one replaces it."""
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")

    def stream() -> Iterator[np.ndarray]:
        yield draw(2, GREY)
        raise LookupError

    with pytest.raises(LookupError):
        outputs.write(path, 6, GREY, stream(), 3)
    assert content(path) == {path.name: b"old"}
    outputs.write(path, 6, GREY, [draw(6, GREY)], 3)
    assert path.stat().st_size > 50
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_empty_folder_is_replaced(tmp_path: Path):
    """An empty folder in the place of the output becomes the output."""
    (tmp_path / "out").mkdir()
    outputs.write(tmp_path / "out", 3, GREY, [draw(3, GREY)])
    assert sorted(content(tmp_path / "out")) == ["0.png", "1.png", "2.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_replaced_where_folders_are_not_renamed_onto_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on Windows, where a rename onto any folder is refused."""
    rename = Path.replace

    def as_windows(old: Path, new: Path) -> Path:
        if Path(new).is_dir():
            raise PermissionError(13, "Access is denied", str(old), None, str(new))
        return rename(old, new)

    monkeypatch.setattr(Path, "replace", as_windows)
    (tmp_path / "out").mkdir()
    outputs.write(tmp_path / "out", 3, GREY, [draw(3, GREY)])
    assert sorted(content(tmp_path / "out")) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(("kind", "fits"), [(np.float32, True), (np.float64, False)])
def test_the_disk_is_asked_for_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, fits: bool):
    """Room for 5 bytes a value is enough for float32, and not for float64, as which scaled columns are written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 8 * 3))
    x = np.random.default_rng(1).normal(size=(8, 3)).astype(kind)
    with nullcontext() if fits else pytest.raises(ResourceError, match="disk too small"):
        outputs.write(tmp_path / "x.npy", 8, (3,), cut(x, 2))
    assert (tmp_path / "x.npy").exists() is fits


def test_a_used_folder_is_refused(tmp_path: Path):
    """A folder that holds anything raises ArgumentError and keeps what it holds; so does a file in its place."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.png").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=r"cannot write: .*out .*; choose another output"):
        outputs.write(tmp_path / "out", 3, GREY, [draw(3, GREY)])
    assert content(tmp_path / "out") == {"0.png": b"mine"}
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=r"cannot write: .*file .*; choose another output"):
        outputs.write(tmp_path / "file", 3, GREY, [draw(3, GREY)])
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_the_folder_of_now_may_be_written_when_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`.` names an empty folder like any other: it is filled, or refused with ArgumentError, and nothing else."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        outputs.write(Path(), 2, GREY, [draw(2, GREY)])
    except ArgumentError:
        assert list((tmp_path / "here").iterdir()) == []
    else:
        assert sorted(content(tmp_path / "here")) == ["0.png", "1.png"]


@kinds
@pytest.mark.parametrize("place", ["missing", "file"])
def test_an_impossible_place_is_named(tmp_path: Path, suffix: str, place: str):
    """In a folder that is missing, or is a file, writing raises ArgumentError that names the output."""
    (tmp_path / "file").write_bytes(b"mine")
    path = tmp_path / place / f"out{suffix}"
    with pytest.raises(ArgumentError) as caught:
        outputs.write(path, 2, GREY, [draw(2, GREY)], 2)
    assert str(caught.value).startswith(f"cannot write: {path} (")
    assert [p.name for p in tmp_path.rglob("*")] == ["file"]


def test_two_writers_of_one_folder_do_not_harm_each_other(tmp_path: Path):
    """Where a second write of the same folder starts while the first is under way, one of them is there whole."""
    x = draw(6, GREY)
    failed: list[ArgumentError] = []

    def stream() -> Iterator[np.ndarray]:
        yield x[:3]
        try:
            outputs.write(tmp_path / "out", 6, GREY, [x])
        except ArgumentError as error:
            failed.append(error)
        yield x[3:]

    try:
        outputs.write(tmp_path / "out", 6, GREY, stream())
    except ArgumentError as error:
        failed.append(error)
    assert len(failed) == 1
    outputs.write(tmp_path / "alone", 6, GREY, [x])
    assert content(tmp_path / "out") == content(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]


FILL = """
import resource, sys
from pathlib import Path
import numpy as np
from vae_runtime import VaeError, outputs
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
x = np.random.default_rng(0).random((64, 1, 60, 60), np.float32)  # 921,600 bytes, and no two pixels alike
try:
    outputs.write(Path(sys.argv[1]), 64, x.shape[1:], iter([x[:32], x[32:]]), 8)
except VaeError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on files on this system")
@kinds
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_is_a_resource_error(tmp_path: Path, suffix: str, old: bool):
    """Where no more fits on the disk, every kind of output raises ResourceError and leaves what was there before."""
    path = tmp_path / (f"out{suffix}" if suffix else "out")
    script = FILL if suffix else FILL.replace("4096, 4096", "1000, 1000")  # a PNG of the folder is small
    if old:
        path.write_bytes(b"old") if suffix else path.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == ""
    assert done.stdout == f"ResourceError disk full: {path}; free some space and try again\n"
    assert [p.name for p in tmp_path.iterdir()] == [path.name] * old
    if old:
        assert content(path) == ({path.name: b"old"} if suffix else {})


@pytest.mark.parametrize("count", [10**15, 2**63 - 1])
def test_a_grid_beyond_memory_is_refused_at_once(tmp_path: Path, count: int):
    """A PNG of more images than any memory holds raises ResourceError before the first image is asked for."""

    def stream() -> Iterator[np.ndarray]:
        raise AssertionError("no image is needed")
        yield

    with pytest.raises(ResourceError, match=f"out of memory: a grid of {count} images; ask for fewer"):
        outputs.write(tmp_path / "x.png", count, GREY, stream())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_long_stream_is_not_held(tmp_path: Path, suffix: str):
    """Images go to an array's file as they come: after each batch of 2 MB the last one's memory is free again."""

    def stream() -> Iterator[np.ndarray]:
        for _ in range(20):
            yield np.zeros((1000, 1, 25, 20), np.float32)

    tracemalloc.start()
    try:
        outputs.write(tmp_path / f"x{suffix}", 20_000, (1, 25, 20), stream())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 7_000_000


def test_permissions_follow_the_umask(tmp_path: Path):
    """New files and folders get the permissions that any other file gets here."""
    (tmp_path / "plain.txt").write_text("")
    (tmp_path / "plain").mkdir()
    for suffix in KINDS:
        outputs.write(tmp_path / f"out{suffix}", 2, GREY, [draw(2, GREY)], 2)
        like = tmp_path / ("plain.txt" if suffix else "plain")
        assert (tmp_path / f"out{suffix}").stat().st_mode == like.stat().st_mode


@kinds
def test_a_folder_without_permission_is_named(tmp_path: Path, suffix: str):
    """A folder that may not be written to raises ArgumentError with the reason."""
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("needs another user than root, who may write everywhere")
    try:
        with pytest.raises(ArgumentError, match="Permission denied"):
            outputs.write(tmp_path / f"out{suffix}", 2, GREY, [draw(2, GREY)], 2)
    finally:
        tmp_path.chmod(0o700)


def test_what_is_written_can_be_read_again(tmp_path: Path):
    """Arrays, archives and folders are sources too: they give back the images, or their nearest levels."""
    x = draw(12, GREY).clip(0, 1)
    nearest = (levels(x).transpose(0, 3, 1, 2) / 255).astype(np.float32)
    for suffix, expected in ((".npy", x), (".npz", x), ("", nearest)):
        outputs.write(tmp_path / f"out{suffix}", 12, GREY, [x])
        np.testing.assert_array_equal(load([tmp_path / f"out{suffix}"], GREY).x, expected)
