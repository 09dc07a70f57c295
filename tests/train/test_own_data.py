"""A person's own images: folders of files of many kinds, arrays, what is refused, and what is kept for testing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from vae_runtime import sources
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import Observation
from vae_train import data, pixels, results
from vae_train.cli import main
from vae_train.config import PRESETS, DataConfig

SUFFIXES = ".bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp"
KINDS = ["L", "RGB", "RGBA", "LA", "P", "P with transparency", "1", "I;16", "CMYK", "turned"]


def picture(kind: str, width: int, height: int, seed: int) -> Image.Image:
    """A random picture of this mode."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    colour = Image.fromarray(noise[:, :, :3])
    if kind == "I;16":
        return Image.fromarray(noise[:, :, :2].astype(np.uint16) @ np.array([1, 256], np.uint16))
    if kind in ("RGBA", "LA"):
        return Image.fromarray(noise).convert(kind)
    if kind.startswith("P"):
        return colour.quantize(16)
    return colour.convert("RGB" if kind == "turned" else kind)


def save(file: Path, kind: str, width: int = 20, height: int = 20, seed: int = 0) -> Path:
    """Write such a picture, in a format that can hold it."""
    image, options = picture(kind, width, height, seed), {}
    if kind == "CMYK":
        file = file.with_suffix(".jpg")
    if kind == "P with transparency":
        options["transparency"] = 3
    if kind == "turned":
        options["exif"] = image.getexif()
        options["exif"][0x0112] = 6
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 pictures of all kinds and many sizes, in two folders and one further down."""
    sizes = np.random.default_rng(3).integers(5, 60, (60, 2)).tolist()
    places = ["cats", "dogs", "dogs/spaniels"]
    for i, (width, height) in enumerate(sizes):
        save(tmp_path / "photos" / places[i % 3] / f"{i:02d}.png", KINDS[i % len(KINDS)], width, height, seed=i)
    return tmp_path / "photos"


def load(path: object, **settings: Any) -> data.Data:
    """The images, under a likelihood that takes any value; what is warned of fails the test."""
    config = PRESETS["resnet-colour"].replace(**{"dataset": str(path), "likelihood": "gaussian", **settings})
    return data.load(config, Path("absent"), download=False, warn=pytest.fail)


def levels(images: data.Data) -> set[bytes]:
    """All images, whichever side they are on."""
    return {x.numpy().tobytes() for x in (*images.train, *images.test)}


def error(path: object, **settings: Any) -> str:
    """The one line in which these images are refused."""
    with pytest.raises((InputError, ArgumentError)) as caught:
        load(path, **settings)
    assert caught.value.exit_code == (4 if isinstance(caught.value, InputError) else 2)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 21])
def test_a_folder_is_read_as_the_runtime_reads_it(photos: Path, size: int, channels: int) -> None:
    """Whatever the files' size and mode, their pixels are those that vae_runtime gives a model of that shape."""
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    expected = sources.Observations(files, Observation.image((channels, size, size))).load().x
    images = load(photos, image_size=(size, size), channels=channels)
    assert images.observation == Observation.image((channels, size, size))
    assert len(images.train) + len(images.test) == len(expected)
    assert levels(images) == {x.tobytes() for x in expected}


def test_the_kinds_of_pictures_are_what_they_claim(photos: Path) -> None:
    """The files above really are of ten kinds: modes as Pillow reads them, transparency, a turned one."""
    found = set()
    for path in photos.rglob("*.*"):
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) == 6
            transparent = image.mode == "P" and "transparency" in image.info
            found.add("turned" if turned else "P with transparency" if transparent else image.mode)
    assert found == set(KINDS)


def test_files_of_many_sizes_are_fitted_to_32_pixels_unless_said(photos: Path) -> None:
    """In colour where any of them may have some."""
    assert load(photos).observation.shape == (3, 32, 32)
    assert load(photos, channels=1).observation.shape == (1, 32, 32)
    assert load(photos, image_size=(16, 16)).observation.shape == (3, 16, 16)


SIDES = "and sides must be divisible by 8"


@pytest.mark.parametrize(
    ("preset", "kind", "sizes", "shape", "said"),
    [
        ("resnet-colour", "RGB", {(64, 64): 9}, (3, 64, 64), ""),
        ("resnet-colour", "L", {(128, 16): 9}, (1, 128, 16), ""),
        ("resnet-colour", "I;16", {(8, 8): 9}, (1, 8, 8), ""),
        ("resnet-colour", "LA", {(8, 8): 9}, (1, 8, 8), ""),
        ("resnet-colour", "P", {(8, 8): 9}, (3, 8, 8), ""),
        ("resnet-colour", "turned", {(16, 24): 9}, (3, 24, 16), ""),
        ("resnet-colour", "RGB", {(24, 24): 9, (90, 7): 1}, (3, 24, 24), "9 of 10 files have this size"),
        ("resnet-colour", "RGB", {(50, 71): 9}, (3, 48, 64), f"files have 50x71, {SIDES}"),
        ("resnet-colour", "RGB", {(5, 7): 9}, (3, 8, 8), f"files have 5x7, {SIDES}"),
        ("tutorial", "L", {(50, 71): 9}, (1, 50, 71), ""),
        ("resnet-colour", "RGB", {(64, 136): 9}, (3, 32, 32), "files of 64x136 are large"),
        ("tutorial", "L", {(9, 8): 8, (8, 8): 2}, (1, 32, 32), "files have 2 sizes, 9x8 is the most frequent"),
    ],
)  # fmt: skip
def test_size_and_mode_come_from_the_files(
    tmp_path: Path, preset: str, kind: str, sizes: dict[tuple[int, int], int], shape: tuple[int, ...], said: str
) -> None:
    """Those of nearly all files, upright, where the network can take them and they are not large; a line says what is
    not every file's own.
    """
    for (height, width), count in sizes.items():
        for i in range(count):
            save(tmp_path / f"{height}-{width}-{i}.{'tiff' if kind == 'I;16' else 'png'}", kind, width, height, seed=i)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines: list[str] = []
    config = data.fitted(PRESETS[preset].replace(dataset=str(tmp_path)), lines.append).data
    assert (config.channels, *config.image_size) == shape
    lines = [line for line in lines if line.startswith("images are")]
    taken = f"images are {shape[1]}x{shape[2]} (height x width): {said}; --image-size sets another size"
    assert lines == ([taken] if said else [])


def test_no_picture_is_decoded_for_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers say it, of every format; large files are many."""
    for i, suffix in enumerate(("png", "jpg", "tiff", "webp", "gif", "bmp")):
        save(tmp_path / f"{i}.{suffix}", "L", 16, 8)

    def decode(*given: object) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    assert data.observation(DataConfig(str(tmp_path))).shape == (3, 8, 16)  # WebP has no grey


def test_how_a_folder_was_fitted_is_said(tmp_path: Path) -> None:
    """In a line, with how many of them, of how many sizes, and one by name; nothing where all have the size."""
    for i in range(40):
        save(tmp_path / f"{i:02}.png", "RGB", 8 + i, 8, seed=i)
    config = PRESETS["resnet-colour"].replace(dataset=str(tmp_path), image_size=(8, 8))
    said: list[str] = []
    data.load(config, Path("absent"), False, pytest.fail, said.append)
    (line,) = said
    assert line.startswith("39 of 40 image files of 39 sizes or modes, 01.png first, fitted from 9x8 RGB to 8x8 RGB, ")
    assert "--image-size" in line
    for i in range(40):
        save(tmp_path / f"{i:02}.png", "RGB", 8, 8, seed=i)
    data.load(config, Path("absent"), False, pytest.fail, pytest.fail)


def test_folders_inside_are_classes(photos: Path) -> None:
    """The first folder's name is the class; files beside the folders are a class of their own, "all"."""
    save(photos / "stray.png", "RGB", seed=99)
    images = load(photos, image_size=(8, 8))
    assert images.names == ["all", "cats", "dogs"]
    for label, name in ((1, "cats"), (2, "dogs")):
        files = sorted((photos / name).rglob("*.*g"))
        inside = sources.Observations(files, Observation.image((3, 8, 8))).load().x
        expected = {x.tobytes() for x in inside[data.in_test(inside)]}
        assert {x.numpy().tobytes() for x in images.test[images.test_labels == label]} == expected != set()


def test_files_of_other_kinds_are_not_looked_at(photos: Path) -> None:
    """Notes and photographs in a format that is not read are counted by suffix; hidden files and folders are not."""
    before = levels(load(photos, image_size=(8, 8)))
    for name in ("notes.txt", ".hidden.png", "cats/a.HEIC", "cats/b.heic", "README"):
        (photos / name).write_text("not an image")
    (photos / "folder.png").mkdir()
    warnings: list[str] = []
    config = PRESETS["resnet-colour"].replace(dataset=str(photos), image_size=(8, 8), likelihood="gaussian")
    assert levels(data.load(config, Path("absent"), False, warnings.append)) == before
    assert warnings == ["4 files of other kinds are not looked at: .heic (2), no suffix (1), .txt (1)"]
    save(photos / "cats" / "new.PNG", "RGB", seed=77)
    assert len(levels(data.load(config, Path("absent"), False))) == len(before) + 1


def test_links_are_followed(photos: Path, tmp_path: Path) -> None:
    """A folder that is a link is a class like others, one that leads back is read once, and a broken link is named."""
    before = levels(load(photos, image_size=(8, 8)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(elsewhere / "a.png", "RGB", seed=77)
    (photos / "birds").symlink_to(elsewhere)
    (photos / "cats" / "back").symlink_to(photos)
    (photos / "broken.png").symlink_to(tmp_path / "nowhere.png")
    warnings: list[str] = []
    config = PRESETS["resnet-colour"].replace(dataset=str(photos), image_size=(8, 8), likelihood="gaussian")
    images = data.load(config, Path("absent"), False, warnings.append)
    assert images.names == ["birds", "cats", "dogs"]
    assert len(images.train) + len(images.test) == len(before) + 1
    assert warnings == ["1 of 62 image files cannot be read: broken.png (file not found); left out"]


@pytest.fixture
def damaged(photos: Path) -> list[str]:
    """Names of files in `photos` that are no images: cut short, text, empty, and two more."""
    whole = save(photos / "cats" / "a-cut.png", "RGB", 50, 50).read_bytes()
    (photos / "cats" / "a-cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "b-text.png").write_text("hello")
    (photos / "dogs" / "c-empty.jpg").touch()
    (photos / "dogs" / "d-empty.gif").touch()
    (photos / "dogs" / "e-empty.tiff").touch()
    return ["b-text.png", "cats/a-cut.png", "dogs/c-empty.jpg", "dogs/d-empty.gif", "dogs/e-empty.tiff"]


def test_unreadable_files_are_named_once_and_left_out(photos: Path, damaged: list[str]) -> None:
    """One warning with their number, the names of the first and why; all others are there."""
    warnings: list[str] = []
    config = PRESETS["resnet-colour"].replace(dataset=str(photos), image_size=(8, 8), likelihood="gaussian")
    images = data.load(config, Path("absent"), False, warnings.append)
    (warning,) = warnings
    assert warning.startswith("5 of 65 image files cannot be read: b-text.png (not an image or array), cats/a-cut.png")
    assert all(f"{name} (" in warning for name in damaged)
    assert images.preprocessing["unreadable"] == 5
    for name in damaged:
        (photos / name).unlink()
    assert levels(images) == levels(load(photos, image_size=(8, 8)))


def test_a_warning_keeps_the_terminal_as_it_is(
    command: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line break and an escape sequence in a file's name are printed as their codes; config.json counts the file."""
    (photos / "\x1b[31mred\n.png").touch()
    monkeypatch.setattr(results, "finish", lambda *given: None)  # figures and pictures are not looked at here
    small = ("--image-size", 8, "--channels", 1, "--epochs", 1, "--hidden", 4, "--latent-dim", 2, "--device", "cpu")
    result = command(main, "--dataset", photos, *small, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    (line,) = (line for line in result.err.splitlines() if "cannot be read" in line)
    assert line == (
        "vae-train: warning: 1 of 61 image files cannot be read: \\x1b[31mred\\n.png (not an image or array); left out"
    )
    assert "\x1b" not in result.err
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["preprocessing"]["unreadable"] == 1
    assert stored["observation"]["shape"] == [1, 8, 8]
    assert stored["config"]["data"]["dataset"] == str(photos)


@pytest.mark.parametrize("content", ["nothing", "text", "damaged"])
def test_a_folder_without_images_is_refused(tmp_path: Path, content: str) -> None:
    """Empty, with files of other kinds, or with none that can be read: then one of them is named too."""
    why = ""
    if content == "text":
        (tmp_path / "a.txt").write_text("x")
    if content == "damaged":
        (tmp_path / "a.png").write_text("x")
        why = " (a.png (not an image or array))"
    assert error(tmp_path) == f"no image could be read: {tmp_path}{why}; put {SUFFIXES} files there"


@pytest.mark.parametrize("path", ["", "absent", "absent/images.npy", "MNIST"])
def test_a_path_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """An empty name is not the working folder; a misspelt name of a set is answered with the names that there are."""
    save(tmp_path / "a.png", "L")
    monkeypatch.chdir(tmp_path)
    names = "mnist, fashion-mnist, kmnist, digits, a folder of images or tables, a table or an array"
    assert error(path) == f"data not found: {path or 'an empty name'}; name {names}"


RANDOM = np.random.default_rng(0)
FLOATS = "give floats in [0, 1], or levels as uint8; of pixels in [-1, 1] give (x + 1) / 2"
BYTES = RANDOM.integers(0, 256, (90, 3, 8, 6), dtype=np.uint8)
GREY = BYTES[:, :1]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (BYTES, torch.uint8),
        (GREY, torch.uint8),
        (BYTES.astype(np.float32) / 255, torch.uint8),
        (BYTES.astype(np.float64) / 255, torch.uint8),
        (RANDOM.random((90, 3, 8, 6)), torch.float32),
        (RANDOM.random((90, 3, 8, 6)).astype(np.float16), torch.float32),
        (GREY.astype(np.uint16) * 257, torch.uint8),
        (GREY.astype(np.uint16) * 256, torch.float32),
        (GREY >= 128, torch.uint8),
        (np.asfortranarray(BYTES), torch.uint8),
    ],
    ids=["RGB", "grey", "float32", "float64", "floats", "float16", "8 of 16 bits", "16 bits", "booleans", "Fortran"],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_are_taken_as_they_are(tmp_path: Path, array: np.ndarray, dtype: torch.dtype, kind: str) -> None:
    """Levels of 8 bits stay such, however they are stored; 16-bit levels and floats between them keep their values."""
    path = tmp_path / f"images.{kind}"
    if kind == "npy":
        np.save(path, array)
    else:
        np.savez(path, x=array, unused=np.zeros(3))
    full_scale = {"uint8": 255, "uint16": 65535}.get(array.dtype.name, 1)
    expected = (array / full_scale).astype(np.float32)
    images = load(path)
    assert images.observation.shape == expected.shape[1:]
    assert len(images.train) + len(images.test) == 90
    assert {part.dtype for part in (images.train, images.test)} == {dtype}
    assert {pixels.unit(x).numpy().tobytes() for x in (*images.train, *images.test)} == {x.tobytes() for x in expected}
    assert images.preprocessing["levels"] == "as they are"
    assert images.names == ["all"]


def test_a_likelihood_of_levels_says_what_rounding_loses(tmp_path: Path) -> None:
    """64 levels between two 8-bit ones: how many are left is said before the training, and kept with the run."""
    x = (128 + np.random.default_rng(0).integers(0, 64, (90, 1, 8, 6)) / 64).astype(np.float32) / 255
    np.save(tmp_path / "narrow.npy", x)
    warnings: list[str] = []
    config = PRESETS["tutorial"].replace(dataset=str(tmp_path / "narrow.npy"), likelihood="discretised-logistic")
    images = data.load(config, Path("absent"), False, warnings.append)
    assert images.train.dtype == images.test.dtype == torch.uint8
    (warning,) = warnings
    for said in (warning, images.preprocessing["rounded"]):
        assert "2 of 64 distinct values left" in said
    for likelihood in ("gaussian", "bernoulli"):
        assert "rounded" not in load(tmp_path / "narrow.npy", likelihood=likelihood).preprocessing


def deep(path: Path, top: int) -> np.ndarray:
    """90 frames of 16-bit levels up to `top`, in a folder of PNG and TIFF files or in an array: [90, 1, 8, 6]."""
    levels = np.random.default_rng(2).integers(0, top, (90, 1, 8, 6), dtype=np.uint16, endpoint=True)
    levels[7, 0, 3, 2] = top
    if path.suffix:
        np.save(path, levels)
        return levels
    path.mkdir()
    for i, frame in enumerate(levels):
        Image.fromarray(frame[0]).save(path / f"{i:02d}.{'png' if i % 2 else 'tif'}")
    return levels


@pytest.mark.parametrize("name", ["frames", "frames.npy"])
@pytest.mark.parametrize(("top", "scale"), [(200, 1023), (800, 1023), (1800, 4095), (4096, 16383), (16384, 65535)])
def test_fewer_bits_in_files_of_sixteen_are_recognised(tmp_path: Path, name: str, top: int, scale: int) -> None:
    """The largest level of all files says how many bits there are; it is said, recorded, and divided by."""
    levels, said = deep(tmp_path / name, top), list[str]()
    config = PRESETS["tutorial"].replace(dataset=str(tmp_path / name), likelihood="gaussian")
    if name == "frames":
        config = config.replace(image_size=(8, 6), channels=1)
    config = data.fitted(config, said.append)
    assert config.data.levels == scale
    assert [f"{top:,}" in line and f"/ {scale};" in line for line in said] == [True] * (scale < 65535)
    images = data.load(config, Path("absent"), False)
    assert images.preprocessing["full_scale"] == scale
    kept = {x.tobytes() for part in (images.train, images.test) for x in pixels.unit(part).numpy()}
    assert kept == {x.tobytes() for x in levels.astype(np.float32) / np.float32(scale)}


def test_levels_beyond_sixteen_bits_are_refused_by_name(tmp_path: Path) -> None:
    """32-bit files may hold more, or less than nothing: what cannot be read is named, and nothing is guessed of it."""
    for name, level in (("more", 70_000), ("less", -5)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((8, 6), level + i, np.int32)).save(tmp_path / name / f"{i}.tif")
        config = PRESETS["tutorial"].replace(dataset=str(tmp_path / name), image_size=(8, 8), channels=1)
        with pytest.raises(InputError, match=r"0\.tif"):
            data.load(data.fitted(config), Path("absent"), False)


def test_levels_but_for_float32s_rounding_lose_nothing(tmp_path: Path) -> None:
    """level * float32(1 / 255) is not level / 255 to the last bit, and no value is lost: nothing is said."""
    np.save(tmp_path / "a.npy", BYTES * np.float32(1 / 255))
    config = PRESETS["tutorial"].replace(dataset=str(tmp_path / "a.npy"), likelihood="discretised-logistic")
    images = data.load(config, Path("absent"), False, pytest.fail)
    assert "rounded" not in images.preprocessing
    assert {x.numpy().tobytes() for part in (images.train, images.test) for x in part} == {x.tobytes() for x in BYTES}


def test_levels_that_are_given_are_taken(tmp_path: Path) -> None:
    """--levels says more than the files do; what lies above is refused by number, and files of 8 bits have no need."""
    deep(tmp_path / "frames.npy", 1800)
    config = PRESETS["tutorial"].replace(dataset=str(tmp_path / "frames.npy"), likelihood="gaussian", levels=2000)
    assert data.fitted(config, pytest.fail).data.levels == 2000
    assert data.load(config, Path("absent"), False).train.max() == 0.9
    with pytest.raises(InputError, match=r"1800.*\[7\]"):
        data.load(config.replace(levels=1000), Path("absent"), False)
    np.save(tmp_path / "bytes.npy", BYTES)
    with pytest.raises(ArgumentError, match="--levels"):
        data.fitted(config.replace(dataset=str(tmp_path / "bytes.npy")))
    with pytest.raises(ArgumentError, match="--levels"):
        data.load(config.replace(dataset="digits"), Path("absent"), False)


def test_zeros_and_ones_in_bytes_are_said_to_be_nearly_black(tmp_path: Path) -> None:
    """A binary image saved as levels 0 and 1 of 255 is not what was meant; as booleans it is."""
    binary = np.random.default_rng(0).random((90, 8, 6)) < 0.5
    said: list[str] = []
    for name, array in (("levels", binary.astype(np.uint8)), ("booleans", binary)):
        np.save(tmp_path / f"{name}.npy", array)
        data.load(
            PRESETS["tutorial"].replace(dataset=str(tmp_path / f"{name}.npy")), Path("absent"), False, said.append
        )
    (line,) = said
    assert "nearly black" in line


def test_grey_arrays_need_no_channel_axis(tmp_path: Path) -> None:
    """[n, H, W] is [n, 1, H, W]."""
    np.save(tmp_path / "a.npy", GREY)
    np.save(tmp_path / "b.npy", GREY[:, 0])
    a, b = (load(tmp_path / name) for name in ("a.npy", "b.npy"))
    assert torch.equal(a.train, b.train)
    assert torch.equal(a.test, b.test)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.arange(90) % 3 * 10, ["0", "10", "20"]),
        (np.array(["dog", "cat", "ape"] * 30), ["ape", "cat", "dog"]),
        (np.arange(90) % 2 == 0, ["False", "True"]),
    ],
    ids=["integers", "strings", "booleans"],
)
def test_labels_of_an_archive_are_kept_with_their_images(tmp_path: Path, labels: np.ndarray, names: list[str]) -> None:
    """y beside x: whatever the labels are, each test image has its own."""
    np.savez_compressed(tmp_path / "a.npz", x=BYTES, y=labels)
    images = load(tmp_path / "a.npz")
    assert images.names == names
    expected = {x.tobytes(): str(y) for x, y in zip(BYTES, labels, strict=True)}
    found = [images.names[label] for label in images.test_labels]
    assert found == [expected[x.numpy().tobytes()] for x in images.test]


def test_an_array_may_have_the_suffix_of_an_archive(tmp_path: Path) -> None:
    """Its first bytes say what it is; labels it has none."""
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, BYTES)
    images = load(tmp_path / "x.npz")
    assert (len(images.train) + len(images.test), images.names) == (90, ["all"])


def test_labels_that_are_objects_are_called_so(tmp_path: Path) -> None:
    """What a person sees is that y is meant, and how it is saved so that it is read."""
    np.savez(tmp_path / "a.npz", x=BYTES, y=np.array(["dog", None] * 45, object))
    message = error(tmp_path / "a.npz")
    assert "Python objects" in message
    assert "(y)" in message
    assert "y.astype(str)" in message


class Bomb:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("which", ["npy", "x of npz", "y of npz"])
def test_a_pickle_is_never_executed(tmp_path: Path, which: str) -> None:
    """An array of objects is refused, as images and as labels, and nothing in it runs."""
    bombs = np.full((90, 8, 6), Bomb(tmp_path / "exploded"), object)
    path = tmp_path / f"a.{which[-3:]}"
    if which == "npy":
        np.save(path, bombs, allow_pickle=True)
    else:
        np.savez(path, **{"x": BYTES, "y": np.arange(90), which[0]: bombs if which[0] == "x" else bombs[:, 0, 0]})
    assert str(path) in error(path)
    assert not (tmp_path / "exploded").exists()
    loaded = np.load(path, allow_pickle=True)  # the bomb is a bomb
    if which != "npy":
        loaded = loaded[which[0]]
    assert (tmp_path / "exploded").exists()


ONE_LINE: list[tuple[str, np.ndarray, str]] = [
    ("channels last", np.zeros((9, 8, 6, 3), np.uint8), "array of shape [9, 8, 6, 3]: {}; put the channels first: {t}"),
    ("grey last", np.zeros((9, 8, 6, 1), np.uint8), "array of shape [9, 8, 6, 1]: {}; put the channels first: {t}"),
    ("strings", np.full((9, 8, 6), "a"), "array of type <U1: {}; give uint8 levels or floats in [0, 1]"),
    ("names", np.array(["a", "b"]), "array of shape [2]: {}; give images [n, C, H, W] or {h}"),
    ("five axes", np.zeros((9, 1, 2, 8, 6)), "array of shape [9, 1, 2, 8, 6]: {}; give images [n, C, H, W] or {h}"),
    ("RGBA", np.zeros((9, 4, 8, 6)), "array of shape [9, 4, 8, 6]: {}; give images of 1 (grey) or 3 (RGB) channels"),
    (
        "levels as floats",
        BYTES.astype(np.float32),
        "pixels outside [0, 1] or NaN: {}[0]; " + FLOATS,
    ),
    (
        "below 0",
        BYTES / 255 - 1e-3,
        "pixels outside [0, 1] or NaN: {}[0]; " + FLOATS,
    ),
    ("NaN", np.where(np.arange(90)[:, None, None, None] == 7, np.nan, BYTES / 255), "pixels outside {u}: {}[7]; {f}"),
    ("integers", BYTES.astype(np.int64), "array of type int64: {}; give uint8 levels or floats in [0, 1]"),
    ("none", BYTES[:0], "array of shape [0, 3, 8, 6]: {}; {e}"),
    ("no pixels", np.zeros((10, 1, 0, 0)), "array of shape [10, 1, 0, 0]: {}; {e}"),
    ("no columns", np.zeros((10, 0)), "array of shape [10, 0]: {}; {e}"),
    ("two", BYTES[:2], "too few images to keep a tenth for testing: 2 of them; give some dozens"),
    ("all equal", np.zeros((90, 1, 8, 6), np.uint8), "too few different {k}: all 90 are equal; {d}"),
    ("two kinds", BYTES[[0, 1] * 45], "too few different {k}: of 90, 2 differ; {d}"),
]
SHORT = {
    "k": "images to keep a tenth for testing",
    "t": "x.transpose(0, 3, 1, 2)",
    "h": "[n, H, W], or rows of numbers [n, D]",
    "u": "[0, 1] or NaN",
    "f": FLOATS,
    "e": "it holds no value: give some dozens of observations",
}


@pytest.mark.parametrize(("array", "message"), [row[1:] for row in ONE_LINE], ids=[row[0] for row in ONE_LINE])
def test_arrays_that_are_no_images_are_refused_in_one_line(tmp_path: Path, array: np.ndarray, message: str) -> None:
    """What is wrong, in which file or image, and what to do."""
    path = tmp_path / "images.npy"
    np.save(path, array)
    assert error(path) == message.format(path, **SHORT, d="give some dozens")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": BYTES, "y": np.arange(89)}, "labels y of shape [89]: {}; give one for each of its 90 images"),
        ({"x": BYTES, "y": np.eye(90)}, "labels y of shape [90, 90]: {}; give one for each of its 90 images"),
        (
            {"images": BYTES, "y": np.arange(90)},
            "file cannot be read (it holds images, y, and none is named x): {}; give an .npy or .npz array",
        ),
    ],
    ids=["too few labels", "one-hot labels", "images of another name"],
)
def test_archives_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    """Labels of another number or shape, and images that no name tells from the rest."""
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    assert error(path) == message.format(path)


@pytest.mark.parametrize("part", ["x", "y"])
def test_a_damaged_archive_is_refused(tmp_path: Path, part: str) -> None:
    """One changed byte in images or labels fails the archive's own checksum."""
    path = tmp_path / "images.npz"
    np.savez(path, x=BYTES, y=np.arange(90))
    raw = bytearray(path.read_bytes())
    raw[raw.index(f"{part}.npy".encode()) + 300] ^= 1
    path.write_bytes(raw)
    assert error(path).startswith(f"file cannot be read (Bad CRC-32 for file '{part}.npy'): {path}; ")


@pytest.mark.parametrize("name", ["text.npy", "picture.png"])
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, name: str) -> None:
    """Text, and a single picture."""
    (tmp_path / "text.npy").write_text("hello")
    save(tmp_path / "picture.png", "RGB")
    path = tmp_path / name
    words = {
        "text.npy": f"file cannot be read (it is no array): {path}; give an .npy or .npz array",
        "picture.png": f"not a table or array: {path}; give CSV in UTF-8, .npy or .npz",
    }
    assert error(path) == words[name]


@pytest.mark.parametrize("setting", [{"image_size": (8, 8)}, {"channels": 3}])
def test_arrays_are_not_resized(tmp_path: Path, setting: dict[str, int]) -> None:
    """A size or channels are for folders, and refused even where they are the array's own."""
    np.save(tmp_path / "a.npy", np.zeros((90, 3, 8, 8), np.uint8))
    expected = f"an array's observations are not resized: {tmp_path / 'a.npy'}; leave out --image-size and --channels"
    assert error(tmp_path / "a.npy", **setting) == expected


@pytest.mark.parametrize("binary", [np.uint8(255), True, 1.0], ids=["levels", "booleans", "floats"])
def test_binary_images_are_drawn_as_they_are(tmp_path: Path, binary: Any) -> None:
    """Black and white images have one draw alone, in the test as in every batch."""
    np.save(tmp_path / "a.npy", (GREY >= 128) * binary)
    images = load(tmp_path / "a.npy", likelihood="bernoulli")
    assert torch.equal(images.observed_test(binary=True), images.test)
    assert torch.equal(255 * pixels.binarise(images.train, torch.Generator()), images.train)
    assert set(images.train.unique().tolist()) == {0, 255}


def test_a_tenth_is_kept_for_testing() -> None:
    """Of 20,000 random images, to within five standard errors."""
    random = np.random.default_rng(0).integers(0, 256, (20_000, 1, 4, 4), dtype=np.uint8)
    assert abs(data.in_test(random).mean() - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5


def test_an_image_stays_on_its_side(photos: Path) -> None:
    """Whatever files come, go, or change their name: what was tested on before is never trained on later."""
    before = load(photos, image_size=(8, 8))
    test = {x.numpy().tobytes() for x in before.test}
    files = sorted(photos.rglob("*.png"))
    for path in files[::7]:
        path.unlink()
    for i, path in enumerate(files[1::7]):
        path.rename(path.with_name(f"{97 - i}-renamed.png"))
    for i in range(30):
        save(photos / "birds" / f"{i}.png", "RGB", seed=1000 + i)
    after = load(photos, image_size=(8, 8))
    kept = levels(before) & levels(after)
    assert len(kept) < len(levels(before))
    assert {x.numpy().tobytes() for x in after.test} & kept == test & kept
    assert test & kept


def test_equal_images_are_on_one_side(photos: Path) -> None:
    """Copies under other names, in other folders and of another format never stand on both sides."""
    for path in sorted(photos.rglob("*.png")):
        copy = photos / "copies" / f"{path.stem}.png"
        copy.parent.mkdir(exist_ok=True)
        if path.parent != copy.parent:
            shutil.copy(path, copy)
    images = load(photos, image_size=(8, 8))
    train, test = ([x.numpy().tobytes() for x in part] for part in (images.train, images.test))
    assert len(train) + len(test) > 110
    assert len(set(train)) <= len(train) / 1.8  # the copies are there
    assert not set(train) & set(test)


def test_one_test_image_is_enough(command: Callable[..., Any], tmp_path: Path) -> None:
    """A tiny set of which one image is kept for testing trains to the end, report and all, and can be evaluated."""
    sets = (np.random.default_rng(seed).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8) for seed in range(1000))
    np.save(tmp_path / "few.npy", next(x for x in sets if data.in_test(x).sum() == 1))
    small = ("--epochs", 2, "--hidden", 4, "--latent-dim", 2, "--device", "cpu", "--threads", 1)
    result = command(main, "--dataset", tmp_path / "few.npy", *small, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "11 images to train on in 2 steps, 1 to test" in result.err
    result = command(main, "evaluate", tmp_path / "run", "-K", 2, "--device", "cpu")
    assert result.code == 0, result.err
    assert result.out.startswith("few.npy test, fixed draw, seed 777, sha256 ")
    assert "+-" not in result.out
    assert "+-" not in command(main, "compare", tmp_path / "run", tmp_path / "run", "--device", "cpu").out
    assert "± 0.00" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("absolute", [False, True])
def test_images_to_test_on_inside_the_folder_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    """80 dark ones and 20 bright ones, which --test names by whatever path: these are the test part, and only that."""
    monkeypatch.chdir(tmp_path)
    for part, count, level in (("test", 20, 200), ("train", 80, 10)):
        for i in range(count):
            file = tmp_path / "p" / part / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), level + i % 50, np.uint8)).save(file)
    said: list[str] = []
    test = tmp_path / "p/test" if absolute else Path("p/test")
    config = PRESETS["tutorial"].replace(dataset="p", test=str(test))
    images = data.load(config, Path("absent"), False, pytest.fail, said.append)
    assert (len(images.train), len(images.test)) == (80, 20)
    assert int(images.train.max()) < 100 < int(images.test.min())
    assert said == ["20 of 100 files are in the test data too, and are not trained on"]
    for dataset in ("p/test", "p/train"):
        with pytest.raises(InputError, match="nothing to train on but the test data: p/"):
            data.load(config.replace(dataset=dataset, test="p"), Path("absent"), False)
