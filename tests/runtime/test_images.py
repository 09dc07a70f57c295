"""Images in and pictures out: every Pillow mode, size and array layout, and what is refused."""

import random
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.sources import load
from vae_runtime import InputError, images, outputs
from vae_runtime.manifest import Preprocessing, Step
from vae_runtime.observation import Shape

GREY: Shape = (1, 28, 28)
COLOUR: Shape = (3, 8, 10)
LEVELS = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)


def picture(mode: str, size: tuple[int, int] = (28, 28), level: int = 200) -> Image.Image:
    """A picture of one grey level in any mode."""
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], level * 257, np.uint16))
    if mode == "1":
        return Image.new("L", size, level).point(lambda p: 255 if p > 127 else 0).convert("1")
    return Image.new("L", size, level).convert(mode)


def refuses(source: Path, words: str, shape: Shape = GREY) -> None:
    """Loading raises InputError in one line that names the file and holds `words`."""
    with pytest.raises(InputError) as caught:
        load([source], shape)
    text = str(caught.value)
    assert str(source) in text
    assert words in text
    assert "; " in text
    assert "\n" not in text


def test_an_image_of_the_models_size_and_mode_passes_untouched():
    """A 28x28 grey image becomes float32 [1, 28, 28], level / 255 exactly, and nothing is said."""
    x, note = images.fit(Image.fromarray(LEVELS), GREY)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, LEVELS[None] / np.float32(255))
    assert note == ""


def test_all_256_levels_are_distinct_and_span_the_unit_interval():
    """Level k becomes the float32 nearest to k / 255; 0 and 255 become 0 and 1."""
    x, _ = images.fit(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)), (1, 16, 16))
    np.testing.assert_array_equal(x.ravel(), (np.arange(256) / 255).astype(np.float32))
    assert (x.min(), x.max()) == (0, 1)


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_a_grey_model_says_that_colours_are_dropped(mode: str):
    """Of one red pixel too; a colour file in which all is grey loses nothing."""
    image = Image.new("RGB", (28, 28), (90, 90, 90))
    for colours in ("", ", colours dropped"):
        given = image.quantize(4) if mode == "P" else image.convert(mode)
        assert images.fit(given, GREY)[1] == f"from 28x28 {mode} to 28x28 L{colours}"
        image.putpixel((3, 5), (255, 0, 0))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I"]
)
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (31, 90), (5, 3)])
def test_every_mode_and_size_is_fitted(mode: str, size: tuple[int, int]):
    """A flat picture in any mode and size keeps its level; the note says from what to what, if anything changed."""
    if mode == "I":
        image = Image.fromarray(np.full(size[::-1], 200 * 257, np.int32))
    elif mode == "HSV":
        image = picture("RGB", size).convert("HSV")
    elif mode == "PA":
        image = picture("P", size).convert("PA")
    else:
        image = picture(mode, size)
    assert image.mode == mode
    x, note = images.fit(image, GREY)
    assert x.shape == GREY
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, 1.0 if mode == "1" else 200 / 255, atol=1.5 / 255)
    same = (mode, size) == ("L", (28, 28))
    scale = ", levels / 65535," if mode.startswith("I") else ""
    assert note == ("" if same else f"from {size[0]}x{size[1]} {mode}{scale} to 28x28 L")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_colour_models_get_colour(mode: str):
    """For a model of 3 channels grey pictures get three equal ones; the note says RGB."""
    x, note = images.fit(picture(mode, (10, 8), 255), COLOUR)
    assert x.shape == COLOUR
    np.testing.assert_array_equal(x, 1)
    scale = ", levels / 65535," if mode == "I;16" else ""
    assert note == ("" if mode == "RGB" else f"from 10x8 {mode}{scale} to 10x8 RGB")


def test_channels_come_first():
    """A red, a green and a blue pixel land in channel 0, 1 and 2, at their places."""
    levels = np.zeros((8, 10, 3), np.uint8)
    for channel in range(3):
        levels[channel, 2 * channel, channel] = 255
    x, note = images.fit(Image.fromarray(levels), COLOUR)
    assert note == ""
    assert [tuple(place) for place in np.argwhere(x)] == [(0, 0, 0), (1, 1, 2), (2, 2, 4)]


def test_transparency_is_black():
    """Transparent pixels become black whatever their hidden colour, half transparent ones half as bright."""
    rgba = np.full((28, 28, 4), 255, np.uint8)
    rgba[:10, :, 3], rgba[10:20, :, 3] = 0, 128
    x, note = images.fit(Image.fromarray(rgba), GREY)
    np.testing.assert_array_equal(x[0, :10], 0)
    np.testing.assert_allclose(x[0, 10:20], 128 / 255, atol=1 / 255)
    np.testing.assert_array_equal(x[0, 20:], 1)
    assert "RGBA" in note


def test_a_change_of_pixels_is_always_said(tmp_path: Path):
    """A 28x28 grey PNG with a transparent level, or turned by its EXIF tag, is changed and therefore noted."""
    two = Image.fromarray(np.repeat([[200], [100]], 14, axis=0).astype(np.uint8).repeat(28, axis=1))
    two.save(tmp_path / "transparent.png", transparency=200)
    exif = Image.Exif()
    exif[0x0112] = 6
    two.save(tmp_path / "turned.png", exif=exif)
    batch = load([tmp_path / "transparent.png", tmp_path / "turned.png"], GREY)
    original, _ = images.fit(two, GREY)
    np.testing.assert_array_equal(batch.x[0], np.where(original == original[0, 0, 0], 0, original))
    np.testing.assert_array_equal(batch.x[1, 0], np.rot90(original[0], -1))
    assert list(batch.fitted) == batch.names


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int):
    """A photograph stored on its side or mirrored comes out upright, in all eight EXIF orientations."""
    upright = np.zeros((28, 28), np.uint8)
    upright[:14, :14], upright[:14, 14:], upright[14:, :14] = 255, 170, 85
    stored = {
        1: upright, 2: np.fliplr(upright), 3: np.rot90(upright, 2), 4: np.flipud(upright), 5: upright.T,
        6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    x = load([tmp_path / "photo.png"], GREY).x
    np.testing.assert_array_equal(x[0, 0], upright / np.float32(255))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("full_scale", [None, 4095])
def test_sixteen_bits_keep_their_precision(tmp_path: Path, suffix: str, full_scale: int | None):
    """Each of the levels is level / full scale to the last bit; where a model does not name it, the note does."""
    ramp = np.linspace(0, full_scale or 65535, 784).astype(np.uint16).reshape(28, 28)
    path = tmp_path / f"ramp{suffix}"
    Image.fromarray(ramp).save(path)
    with Image.open(path) as image:
        mode = image.mode
    batch = load([path], GREY, full_scale)
    np.testing.assert_array_equal(batch.x[0, 0], ramp.astype(np.float32) / np.float32(full_scale or 65535))
    note = f"from 28x28 {mode}, levels / 65535, to 28x28 L"
    assert batch.fitted == ({} if full_scale else {str(path): note})


@pytest.mark.parametrize("kind", ["image", "array"])
def test_a_level_above_the_full_scale_is_refused_by_number(tmp_path: Path, kind: str):
    """A 12-bit model takes no level of 5,000: the file and the level are named, and nothing is clipped."""
    levels = np.full((28, 28), 100, np.uint16)
    levels[3, 4] = 5000
    path = tmp_path / ("x.png" if kind == "image" else "x.npy")
    Image.fromarray(levels).save(path) if kind == "image" else np.save(path, levels[None])
    with pytest.raises(InputError) as caught:
        load([path], GREY, 4095)
    assert all(word in str(caught.value) for word in (str(path), "5000", "4095"))


def test_resizing_does_not_round_sixteen_bits():
    """Means of 2 x 2 levels that lie between two 8-bit levels stay there, and stay in [0, 1]."""
    levels = np.tile(np.array([[1000, 1100], [1050, 1090]], np.uint16), (28, 28))
    x, _ = images.fit(Image.fromarray(levels), GREY, Preprocessing(4095))
    np.testing.assert_allclose(x, 1060 / 4095, atol=2e-3)
    assert len(np.unique(x)) > 1  # at the edges
    edge = np.zeros((56, 56), np.uint16)
    edge[:, 28:] = 4095
    x, _ = images.fit(Image.fromarray(edge), (1, 50, 50), Preprocessing(4095))
    assert (x.min(), x.max()) == (0, 1)  # a bicubic filter overshoots


def test_colours_of_sixteen_bits_are_said_to_be_read_as_eight(tmp_path: Path):
    """Pillow takes the upper half of a PPM's 16-bit colours; the note says so."""
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P6 10 8 65535\n" + np.full((8, 10, 3), 40_000, ">u2").tobytes())
    batch = load([path], COLOUR)
    assert "16 bits, read as 8" in batch.fitted[str(path)]


def test_other_sizes_are_cut_at_the_centre_and_averaged():
    """A wide picture loses its sides, not its proportions, and shrinking averages instead of picking pixels."""
    wide = np.zeros((56, 112), np.uint8)
    wide[:, :28] = wide[:, 84:] = 255
    x, note = images.fit(Image.fromarray(wide), GREY)
    np.testing.assert_array_equal(x[..., 1:-1], 0)
    assert x.max() < 0.1  # Pillow's bicubic filter reads a pixel beyond the cut
    assert note == "from 112x56 L to 28x28 L"
    checks = np.indices((112, 112)).sum(axis=0) % 2 * np.uint8(255)
    x, _ = images.fit(Image.fromarray(checks.astype(np.uint8)), GREY)
    np.testing.assert_allclose(x, 0.5, atol=0.05)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".webp", ".jpg", ".JPEG", ".PNG"])
def test_files_of_many_formats_are_read(tmp_path: Path, suffix: str):
    """Each suffix that counts as an image in a folder is one that can be read; lossless ones give the exact levels."""
    path = tmp_path / f"digit{suffix}"
    Image.fromarray(LEVELS // 64 * 64).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    batch = load([path], GREY)
    assert batch.names == [str(path)]
    tolerance = 0.25 if "jp" in suffix.lower() else 0
    np.testing.assert_allclose(batch.x[0, 0], (LEVELS // 64 * 64) / np.float32(255), rtol=0, atol=tolerance)


def test_sources_keep_their_order_and_folders_are_sorted(tmp_path: Path):
    """Files come in the order given, a folder's images by name; other files and arrays in a folder are left out."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, level in (("b.png", 20), ("a.png", 10), ("c.PNG", 30)):
        Image.new("L", (28, 28), level).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    np.save(folder / "array.npy", np.zeros((28, 28), np.uint8))
    Image.new("L", (28, 28), 5).save(tmp_path / "z.png")
    np.save(tmp_path / "two.npy", np.stack([np.full((28, 28), level, np.uint8) for level in (1, 2)]))
    batch = load([tmp_path / "z.png", folder, str(tmp_path / "two.npy")], GREY)
    assert batch.names == [
        *(str(path) for path in (tmp_path / "z.png", folder / "a.png", folder / "b.png", folder / "c.PNG")),
        f"{tmp_path}/two.npy[0]",
        f"{tmp_path}/two.npy[1]",
    ]
    assert np.rint(batch.x[:, 0, 0, 0] * 255).tolist() == [5, 10, 20, 30, 1, 2]
    assert batch.x.shape == (6, 1, 28, 28)
    assert batch.x.dtype == np.float32
    assert batch.fitted == {}


def test_folders_inside_a_folder_are_read(tmp_path: Path):
    """Class folders, and folders further down, in the order of their paths; hidden files are not."""
    names = ["a/2.png", "a/b/1.png", "c.png", "d/0.png"]
    for level, name in enumerate([*names, "a/.hidden.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), level).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "d" / "back").symlink_to(tmp_path)
    batch = load([tmp_path], GREY)
    assert batch.names == [str(tmp_path / name) for name in names]
    assert np.rint(batch.x[:, 0, 0, 0] * 255).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (3, 28, 28), (28, 28)])
@pytest.mark.parametrize("kind", ["u1", "<f4", ">f8", "f2", "?"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPY"])
def test_arrays_of_levels_and_floats_are_read(tmp_path: Path, shape: tuple[int, ...], kind: str, suffix: str):
    """uint8 levels are divided by 255, floats and booleans taken as they are, in each of three layouts."""
    values = np.random.default_rng(1).integers(0, 256 if kind == "u1" else 2, shape).astype(kind)
    path = tmp_path / f"x{suffix}"
    with path.open("wb") as file:
        np.savez(file, values) if suffix == ".npz" else np.save(file, values)
    batch = load([path], GREY)
    n = 1 if len(shape) == 2 else 3
    expected = values.reshape(n, *GREY).astype(np.float32) / np.float32(255 if kind == "u1" else 1)
    np.testing.assert_array_equal(batch.x, expected)
    assert batch.x.dtype == np.float32
    assert batch.x.dtype.isnative
    assert batch.names == [f"{path}[{i}]" for i in range(n)]


def test_colour_arrays_are_read(tmp_path: Path):
    """A model of 3 channels takes [n, 3, H, W] and refuses other layouts."""
    np.save(tmp_path / "x.npy", np.full((2, *COLOUR), 255, np.uint8))
    np.testing.assert_array_equal(load([tmp_path / "x.npy"], COLOUR).x, np.ones((2, *COLOUR)))
    for shape in ((2, 8, 10, 3), (3, 8, 10), (8, 10)):
        np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
        refuses(tmp_path / "x.npy", f"array of shape {list(shape)}", COLOUR)


@pytest.mark.parametrize(
    "shape",
    [(), (784,), (3, 784), (28, 27), (2, 27, 28), (2, 3, 28, 28), (2, 28, 28, 1), (1, 1, 1, 28, 28), (0, 1, 28, 28),
     (0, 28, 28), (0, 0), (3, 0, 5), (0,)],
)  # fmt: skip
def test_arrays_of_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]):
    """Any other shape, the empty ones too, raises InputError with the shape that came and the one to give."""
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    refuses(tmp_path / "x.npy", f"array of shape {list(shape)}: {tmp_path}/x.npy; this model takes [n, 1, 28, 28]")


@pytest.mark.parametrize("kind", ["c8", "i8", "U3", "S3", "M8[s]", [("a", "f4")]], ids=str)
def test_arrays_of_other_types_are_refused(tmp_path: Path, kind: object):
    """Complex numbers, signed integers, text, dates and records raise InputError with the type."""
    np.save(tmp_path / "x.npy", np.zeros((28, 28), kind))
    refuses(tmp_path / "x.npy", "array of type")


def test_pickles_are_never_opened(tmp_path: Path):
    """Object arrays hold pickles, which can run code: they raise InputError, unopened."""
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    refuses(tmp_path / "x.npy", "array of type object")
    np.savez(tmp_path / "x.npz", np.array([{"a": 1}], object))
    refuses(tmp_path / "x.npz", "array of type object")


def test_a_huge_float64_is_refused_without_a_warning(tmp_path: Path):
    """A float64 value beyond float32 comes out as infinite or as InputError, not as a warning on the terminal."""
    np.save(tmp_path / "x.npy", np.full((28, 28), 1e300))
    try:
        batch = load([tmp_path / "x.npy"], GREY)
    except InputError:
        return
    assert np.isinf(batch.x).all()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an image or array"),
        (b"text", "not an image or array"),
        (b"\x93NUMPY\x01\x00", "file cannot be read ("),
        (b"PK\x03\x04 no archive", "file cannot be read ("),
    ],
)
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, suffix: str, content: bytes, words: str):
    """Empty, textual and damaged .npy and .npz files raise InputError with the file's name."""
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refuses(path, words)


def test_archives_without_arrays_are_refused(tmp_path: Path):
    """An empty .npz, and one that holds a text file instead of an array, raise InputError."""
    path = tmp_path / "x.npz"
    np.savez(path)
    refuses(path, f"not an image or array: {path}; give ")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
    refuses(path, f"not an image or array: {path}; give ")


@pytest.mark.parametrize("cut", [20, 100, 500])
def test_truncated_arrays_are_refused(tmp_path: Path, cut: int):
    """A .npy that lost its end raises InputError."""
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((28, 28), np.float32))
    path.write_bytes(path.read_bytes()[:cut])
    refuses(path, "file cannot be read (")


def test_missing_files_are_named(tmp_path: Path):
    """A missing picture, array, or link to nowhere raises InputError that says to check the path."""
    for name in ("missing.png", "missing", "missing.npy", "link.png"):
        (tmp_path / "link.png").unlink(missing_ok=True)
        (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
        refuses(tmp_path / name, f"file not found: {tmp_path}/{name}; check the path")
    (tmp_path / "file").write_bytes(b"")
    refuses(tmp_path / "file" / "x.png", "file cannot be read (Not a directory)")


@pytest.mark.parametrize("content", [b"", b"These are words, not pixels.\n", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_images_are_refused(tmp_path: Path, content: bytes):
    """An empty file, a text file and a bare signature named .png raise InputError with the file's name."""
    (tmp_path / "x.png").write_bytes(content)
    refuses(tmp_path / "x.png", f"not an image or array: {tmp_path}/x.png; give a")


def test_empty_folders_and_no_sources_are_refused(tmp_path: Path):
    """A folder without images, and no source at all, raise InputError that says what to give."""
    (tmp_path / "notes.txt").write_text("no image")
    refuses(tmp_path, "no images in the folder")
    with pytest.raises(InputError, match="no images: none named; name image files, folders or arrays"):
        load([], GREY)


def test_one_bad_file_among_good_ones_is_named(tmp_path: Path):
    """In a folder of good images the bad one is named."""
    for name in "abc":
        Image.fromarray(LEVELS).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(InputError, match=r"file cannot be read .*: .*/b\.png; save it again as PNG"):
        load([tmp_path], GREY)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about damaged metadata
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif", ".pgm", ".webp", ".jpg"])
def test_damaged_images_are_read_or_refused(tmp_path: Path, suffix: str):
    """Of 80 random damages to a file each gives an image or an InputError, never another exception."""
    path = tmp_path / f"x{suffix}"
    Image.fromarray(LEVELS).save(path)
    good = path.read_bytes()
    generator = random.Random(suffix)
    refused = 0
    for _ in range(80):
        bad = bytearray(good[: generator.choice([len(good), generator.randrange(len(good))])])
        for _ in range(generator.choice([1, 4])):
            if bad:
                position = generator.randrange(min(len(bad), generator.choice([64, len(good)])))
                bad[position] = generator.randrange(256)
        path.write_bytes(bad)
        try:
            batch = load([path], GREY)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert batch.x.shape == (1, *GREY)
            assert ((batch.x >= 0) & (batch.x <= 1)).all()
    assert refused > 10


def test_a_decompression_bomb_is_refused(tmp_path: Path):
    """A PNG of a few KB that claims 20,000 x 20,000 pixels raises InputError before it fills the memory."""
    path = tmp_path / "bomb.png"
    Image.new("1", (8, 8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = (20_000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)
    refuses(path, "image too large")


def test_floating_point_pixels_are_values_in_the_unit_interval(tmp_path: Path):
    """A TIFF of floats in [0, 1] keeps them to the last bit; of any other range it is refused."""
    floats = np.random.default_rng(0).random((28, 28), np.float32)
    Image.fromarray(floats).save(tmp_path / "x.tif")
    batch = load([tmp_path / "x.tif"], GREY)
    np.testing.assert_array_equal(batch.x[0, 0], floats)
    assert batch.fitted == {}
    for wrong in (floats * 255, floats - 1, np.full_like(floats, np.nan)):
        Image.fromarray(wrong).save(tmp_path / "x.tif")
        refuses(tmp_path / "x.tif", "outside [0, 1]")


def test_the_first_of_several_frames_is_taken_and_said(tmp_path: Path):
    """Of an animation the first frame is read, and `fitted` says that there are more."""
    frames = [Image.new("L", (28, 28), level) for level in (0, 255)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    batch = load([tmp_path / "x.gif"], GREY)
    assert batch.x.max() == 0
    assert "first of 2 frames" in batch.fitted[str(tmp_path / "x.gif")]


def test_grid_places_images_row_by_row():
    """Images stand row by row with grey gaps of 2 pixels around each; an unfilled place stays grey."""
    x = np.stack([np.full((1, 3, 4), level, np.float32) for level in (0.0, 0.2, 0.4, 0.6, 1.0)])
    picture = outputs.grid(len(x), x.shape[1:], [x])
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * (3 + 2) + 2, 3 * (4 + 2) + 2, 1)
    for i, level in enumerate((0, 51, 102, 153, 255)):
        top, left = 2 + i // 3 * 5, 2 + i % 3 * 6
        assert (picture[top : top + 3, left : left + 4] == level).all()
        picture[top : top + 3, left : left + 4] = 96
    assert (picture == 96).all()


@pytest.mark.parametrize(
    ("n", "columns", "expected"), [(1, None, 1), (4, None, 2), (5, 2, 2), (3, 8, 3), (17, None, 5)]
)
def test_grid_columns(n: int, columns: int | None, expected: int):
    """Without a number of columns the grid is nearly square; never more columns than images."""
    picture = outputs.grid(n, (3, 4, 4), [np.zeros((n, 3, 4, 4), np.float32)], columns)
    assert picture.shape == (-(-n // expected) * 6 + 2, expected * 6 + 2, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_grid_enlarged(tmp_path: Path, channels: int):
    """The PNG holds the grid's pixels, each three times as large, grey or in colour; a 1-pixel image too."""
    for x in (np.linspace(0, 1, 5 * channels * 12).reshape(5, channels, 3, 4), np.ones((1, channels, 1, 1))):
        x = x.astype(np.float32)
        outputs.write(tmp_path / "grid.png", len(x), x.shape[1:], [x])
        with Image.open(tmp_path / "grid.png") as picture:
            got = np.asarray(picture).reshape(picture.height, picture.width, channels)
        expected = outputs.grid(len(x), x.shape[1:], [x])
        np.testing.assert_array_equal(got, expected.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize("width", [16, 30, 46, 80, 200])
def test_blocks_fit_the_terminal(width: int):
    """Lines are at most as wide as the terminal, and as many images as fit stand beside each other."""
    x = np.ones((7, 1, 28, 28), np.float32)
    lines = images.blocks(x, width).splitlines()
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) >= min(7, width // 16) * 16 - 2
    assert len(lines) == -(-7 // min(7, width // 16)) * 7


def test_blocks_draw_the_picture():
    """Each character shows two pixels of the halved image: upper, lower, both or none."""
    x = np.zeros((1, 1, 4, 8), np.float32)
    x[0, 0, :2, 2:4] = x[0, 0, 2:, 4:6] = x[0, 0, :, 6:] = 1
    assert images.blocks(x, 80) == " ▀▄█"


@pytest.mark.parametrize("shape", [(3, 8, 10), (1, 7, 9), (1, 6, 6), (1, 2, 2)])
def test_blocks_take_any_shape(shape: Shape):
    """Colour and odd sizes are drawn too, in a quarter of the lines, rounded up."""
    lines = images.blocks(np.ones((1, *shape), np.float32), 1).splitlines()
    assert len(lines) == -(-(shape[1] // 2) // 2)
    assert {len(line) for line in lines} == {shape[2] // 2}


NOISE = np.random.default_rng(4).integers(0, 256, (60, 45, 3), np.uint8)
TO_CUT = (Step(resize=(12,), filter="hamming"), Step(crop=(8, 10)))


def test_steps_take_the_place_of_the_cut_and_the_resize():
    """Squeezed with another filter, or resized by the shorter side and then cut, as Pillow does it."""
    picture, filters = Image.fromarray(NOISE), Image.Resampling
    squeezed, note = images.fit(picture, COLOUR, Preprocessing(steps=(Step(resize=(8, 10), filter="lanczos"),)))
    np.testing.assert_array_equal(
        images.levels(squeezed[None])[0], np.asarray(picture.resize((10, 8), filters.LANCZOS))
    )
    assert note == "from 45x60 RGB to 10x8 RGB"
    cut, _ = images.fit(picture, COLOUR, Preprocessing(steps=TO_CUT))
    expected = picture.resize((12, 16), filters.HAMMING).crop((1, 4, 11, 12))
    np.testing.assert_array_equal(images.levels(cut[None])[0], np.asarray(expected))


def test_a_cut_that_is_larger_than_the_picture_puts_black_around_it():
    """A picture of 3 x 5 in one of 8 x 10, a pixel nearer to the end where it cannot be in the middle."""
    picture = Image.new("RGB", (5, 3), "white")
    x, note = images.fit(picture, COLOUR, Preprocessing(steps=(Step(crop=(8, 10)),)))
    expected = np.zeros((3, 8, 10), np.float32)
    expected[:, 2:5, 2:7] = 1
    np.testing.assert_array_equal(x, expected)
    assert note == "from 5x3 RGB to 10x8 RGB"


def test_deep_pictures_take_the_same_steps_without_being_rounded():
    """16-bit levels are resized as floats, by the same filter, and cut."""
    levels = np.random.default_rng(1).integers(0, 4096, (60, 45), np.uint16)
    x, _ = images.fit(Image.fromarray(levels), (1, 8, 10), Preprocessing(4095, steps=TO_CUT))
    floats = Image.fromarray(levels.astype(np.float32) / np.float32(4095))
    expected = np.asarray(floats.resize((12, 16), Image.Resampling.HAMMING).crop((1, 4, 11, 12)))
    np.testing.assert_array_equal(x[0], expected)


def test_colours_become_grey_for_a_model_of_three_channels():
    """Where the network has learnt from grey pictures in three channels; nothing is said of a picture that is grey."""
    size = (3, 60, 45)
    x, note = images.fit(Image.fromarray(NOISE), size, Preprocessing(grey=True))
    np.testing.assert_array_equal(images.levels(x[None])[0, ..., 2], np.asarray(Image.fromarray(NOISE).convert("L")))
    assert (x == x[0]).all()
    assert note == "from 45x60 RGB to 45x60 RGB, colours dropped"
    _, of_grey = images.fit(Image.fromarray(NOISE[..., 0]), size, Preprocessing(grey=True))
    assert of_grey == "from 45x60 L to 45x60 RGB"


def test_a_thread_of_a_picture_is_not_made_huge():
    """A shorter side of one pixel that becomes a thousand would make a million of a thousand pixels."""
    with pytest.raises(InputError, match=r"1,000,000x1,000 pixels on its way: a\.png; make its sides more alike"):
        images.fit(Image.new("L", (1000, 1)), GREY, Preprocessing(steps=(Step(resize=(1000,)),)), "a.png")
