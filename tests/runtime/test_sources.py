"""Images in: what a file is shows in its content, whatever its name, and a batch at a time is all that is held."""

import gzip
import io
import os
import random
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.sources import images_in, load
from vae_runtime import InputError, sources
from vae_runtime.observation import VECTOR, Observation, Shape

GREY: Shape = (1, 28, 28)
COLOUR: Shape = (3, 8, 10)
LEVELS = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
PIXELS = (LEVELS[:, None] / np.float64(255)).astype(np.float32)  # what every kind of file below must give


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    """An array in the IDX format, as MNIST's authors describe it."""
    return struct.pack(">BBBB", 0, 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    """An array as NumPy itself writes it, in a format version of choice."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def header(shape: object, descr: str = "|u1", fortran: bool = False) -> bytes:
    """The beginning of an .npy of version 1.0 with any shape, written out by hand."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    text = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz(**members: bytes) -> bytes:
    """A compressed archive of such members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def png(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """A picture, encoded."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def claimed(width: int, height: int) -> bytes:
    """A 1-bit PNG that claims a size and holds no pixels at all: decoding it would fail."""
    start = b"\x89PNG\r\n\x1a\n"
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", b"damaged"), (b"IEND", b""))
    return start + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def refuses(source: str | Path, words: str, shape: Shape = GREY, name: str | None = None) -> None:
    """Loading raises InputError in one printable line that names the source, says `words` and what to do."""
    with pytest.raises(InputError) as caught:
        load([source], shape)
    text = str(caught.value)
    what, _, todo = text.rpartition("; ")
    assert words in what
    assert (name or str(source)) in what
    assert len(todo) > 5
    assert text.isprintable()
    assert len(text) < 500 + len(str(source))


ARRAYS = {
    "idx": idx(LEVELS),
    "idx.gz": gzip.compress(idx(LEVELS)),
    "4-D idx": idx(LEVELS[:, None]),
    "npy": npy(LEVELS),
    "npy.gz": gzip.compress(npy(LEVELS)),
    "npy 1.0": npy(LEVELS, (1, 0)),
    "npy 2.0": npy(LEVELS, (2, 0)),
    "Fortran npy": npy(np.asfortranarray(LEVELS)),
    "Fortran npy.gz": gzip.compress(npy(np.asfortranarray(LEVELS[:, None]))),
    "big-endian Fortran npy": npy(np.asfortranarray(LEVELS.astype(">u2") * 257)),
    "16-bit npy": npy(LEVELS.astype("<u2") * 257),
    "big-endian npy": npy(LEVELS.astype(">u2") * 257),
    "float npy": npy(PIXELS),
    "double npy": npy(LEVELS / 255),
    "npz": npz(arr_0=npy(LEVELS)),
    "npz.gz": gzip.compress(npz(arr_0=npy(LEVELS))),
    "npz with x": npz(labels=npy(np.arange(7)), x=npy(PIXELS), y=npy(np.zeros(3))),
    "npz with x last": npz(x=npy(np.asfortranarray(LEVELS))),
    "two gzip members": gzip.compress(idx(LEVELS)[:1000]) + gzip.compress(idx(LEVELS)[1000:]),
}


@pytest.mark.parametrize("name", ["x.idx", "x.png", "x"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_known_by_their_content(tmp_path: Path, kind: str, name: str):
    """IDX, .npy and .npz files, gzipped too, in either order of axes, give level / 255 under any name."""
    path = tmp_path / name
    path.write_bytes(ARRAYS[kind])
    images = images_in([path], GREY)
    assert len(images) == 7
    assert list(images.names()) == [f"{path}[{i}]" for i in range(7)]
    for rows in (2, 100):
        x = np.concatenate(list(images.batches(rows)))
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        np.testing.assert_array_equal(x, PIXELS)
    deep = "16-bit" in kind or "big-endian" in kind  # their scale is a guess where the model does not say one
    assert images.fitted == ({str(path): "as levels / 65535"} if deep else {})


PICTURES = {
    kind: png(LEVELS[0], kind, **options)
    for kind, options in {"PNG": {}, "BMP": {}, "GIF": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True}}.items()
}


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x-images-idx3-ubyte", "x.txt", "x.png", "x.gz"])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_known_by_their_content(tmp_path: Path, kind: str, name: str):
    """A picture of a lossless kind gives level / 255 under any name, an array's too."""
    path = tmp_path / name
    path.write_bytes(PICTURES[kind])
    batch = load([path], GREY)
    np.testing.assert_array_equal(batch.x, PIXELS[:1])
    assert batch.names == [str(path)]


def test_a_jpeg_named_png_is_read(tmp_path: Path):
    """JPEG bytes in a file named .png are what Pillow decodes from them."""
    path = tmp_path / "x.png"
    path.write_bytes(png(LEVELS[0], "JPEG"))
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.format == "JPEG"
        expected = np.asarray(image, np.float32)[None, None] / np.float32(255)
    np.testing.assert_array_equal(load([path], GREY).x, expected)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png", "x-idx3-ubyte", "x.gz"])
@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 1000, b"These are words.\n", b"%PDF-1.4", b"\x7fELF" * 9])
def test_what_is_neither_image_nor_array_is_refused(tmp_path: Path, name: str, content: bytes):
    """0 bytes, text and other formats raise InputError that says which kinds can be read, under any name."""
    path = tmp_path / name
    path.write_bytes(content)
    refuses(path, f"not an image or array: {path}")
    with pytest.raises(InputError, match=r"; give .*PNG.*\.npy.*\.npz.*IDX"):
        load([path], GREY)


def test_mnist_files_are_read_as_they_are(data_root: Path):
    """MNIST's own test file gives its 10,000 images in order, level / 255; its labels are refused by name."""
    raw = data_root / "MNIST" / "raw"
    path = raw / "t10k-images-idx3-ubyte"
    levels = np.frombuffer(path.read_bytes(), np.uint8, offset=16).reshape(10_000, 1, 28, 28)
    images = images_in([path], GREY)
    assert len(images) == 10_000
    seen = 0
    for x in images.batches(999):
        np.testing.assert_array_equal(np.rint(x * 255), levels[seen : seen + len(x)])
        seen += len(x)
    assert seen == 10_000
    refuses(raw / "t10k-labels-idx1-ubyte", "array of shape [10000]")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_labels_are_refused_by_name(tmp_path: Path, compress: Callable[[bytes], bytes]):
    """A labels file, IDX of one axis, raises InputError with the file, its shape and the one to give."""
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(compress(idx(np.arange(10, dtype=np.uint8))))
    with pytest.raises(InputError) as caught:
        load([path], GREY)
    assert str(caught.value) == f"array of shape [10]: {path}; this model takes [n, 1, 28, 28]"


def test_colour_idx_is_read(tmp_path: Path):
    """A model of three channels takes IDX files of four axes, channels second, and refuses three axes."""
    levels = np.random.default_rng(1).integers(0, 256, (5, *COLOUR), np.uint8)
    path = tmp_path / "colour"
    path.write_bytes(idx(levels))
    np.testing.assert_array_equal(load([path], COLOUR).x, (levels / 255).astype(np.float32))
    refuses(path, "array of shape [5, 3, 8, 10]", GREY)
    path.write_bytes(idx(levels[0]))
    refuses(path, "array of shape [3, 8, 10]", COLOUR)


@pytest.mark.parametrize("kind", [9, 11, 12, 13, 14])
def test_idx_of_other_types_is_refused(tmp_path: Path, kind: int):
    """IDX files of signed bytes, integers and floats, which no image set uses, raise InputError."""
    path = tmp_path / "x"
    path.write_bytes(idx(LEVELS, kind))
    refuses(path, "not an image or array")


@pytest.mark.parametrize("kind", ARRAYS)
def test_truncated_arrays_are_refused_by_name(tmp_path: Path, kind: str):
    """A file cut at its last byte, in the middle or in its header raises InputError, whatever the batches' size."""
    path = tmp_path / "x"
    whole = ARRAYS[kind]
    path.write_bytes(whole)
    assert len(load([path], GREY).x) == 7
    for size in (len(whole) - 1, len(whole) - 20, len(whole) // 2, 40, 18, 13, 9, 7, 5):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=re.escape(str(path))):
            for _ in images_in([path], GREY).batches(3):
                pass


def test_an_idx_that_ends_early_says_so(tmp_path: Path):
    """The images before the missing ones come; then InputError says how many the file promised."""
    path = tmp_path / "x"
    path.write_bytes(idx(LEVELS)[: -784 * 3 + 5])
    images = images_in([path], GREY)
    batches = images.batches(2)
    assert len(images) == 7
    np.testing.assert_array_equal(np.concatenate([next(batches), next(batches)]), PIXELS[:4])
    with pytest.raises(InputError, match=r"file cannot be read \(it ends before its 7 .*do\): .*/x; "):
        next(batches)


def test_bytes_after_an_array_do_no_harm(tmp_path: Path):
    """Bytes after the promised images, a padded download say, change nothing."""
    path = tmp_path / "x"
    for whole in (idx(LEVELS), npy(LEVELS), npy(np.asfortranarray(LEVELS))):
        path.write_bytes(whole + b"more")
        np.testing.assert_array_equal(load([path], GREY).x, PIXELS)


@pytest.mark.parametrize("fortran", [False, True], ids=["C", "Fortran"])
@pytest.mark.parametrize("rows", [10**6, 10**9, 10**15, 2**63 - 1, 10**40])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, lambda data: npz(x=data)], ids=["npy", "gz", "npz"])
def test_a_header_that_claims_too_many_rows_is_refused(
    tmp_path: Path, rows: int, compress: Callable[[bytes], bytes], fortran: bool, peak_memory
):
    """An .npy of one image that claims up to 10^40 raises InputError that names it, and takes no memory for them."""
    path = tmp_path / "x.npy"
    path.write_bytes(compress(header((rows, 28, 28), fortran=fortran) + bytes(784)))
    assert peak_memory(lambda: refuses(path, "file cannot be read")) < 20_000_000


@pytest.mark.parametrize("rows", [2**32 - 1, 10**6])
def test_an_idx_that_claims_too_many_rows_is_refused(tmp_path: Path, rows: int):
    """So does an IDX file of one image that claims 2^32 - 1."""
    path = tmp_path / "x"
    path.write_bytes(struct.pack(">BBBBIII", 0, 0, 8, 3, rows, 28, 28) + bytes(784))
    refuses(path, f"file cannot be read (it ends before its {rows} ")


@pytest.mark.parametrize("shape", ["(-1, 28, 28)", "(-7, 1, 28, 28)", "(-1, -28, -28)", "(28, -28)", "-784"])
def test_a_header_with_a_negative_size_is_refused(tmp_path: Path, shape: str):
    """An .npy whose header says a negative number of images raises InputError, and its length is never asked."""
    path = tmp_path / "x.npy"
    path.write_bytes(header(shape) + bytes(7 * 784))
    with pytest.raises(InputError, match=re.escape(str(path))):
        load([path], GREY)
    with pytest.raises(InputError, match=re.escape(str(path))):
        len(images_in([path], GREY))


@pytest.mark.parametrize(
    "content",
    [
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"{" * 60000,
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{}",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 8) + b"import x",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 2) + b"{}",
        header("(7, 28, 28)", "nonsense"),
        header("(7, 28, 28)", "|V784"),
        header("'text'"),
        header("(7.0, 28, 28)"),
        header("(" * 4000 + ")" * 4000),
    ],
    ids=["brackets", "long", "code", "empty", "type", "void", "text", "float", "deep"],
)
def test_damaged_npy_headers_are_refused(tmp_path: Path, content: bytes):
    """Headers that are too long, no literal, or of the wrong types raise InputError in one line."""
    path = tmp_path / "x.npy"
    path.write_bytes(content + LEVELS.tobytes())
    refuses(path, "")


def test_npy_of_version_3_is_refused_kindly(tmp_path: Path):
    """NumPy writes version 3.0 for records with names beyond Latin-1 alone, which are no images: InputError says so."""
    path = tmp_path / "x.npy"
    for array in (np.zeros((7, 28, 28), [("значение", "u1")]), LEVELS):
        path.write_bytes(npy(array, (3, 0)))
        assert path.read_bytes()[6] == 3
        refuses(path, "file cannot be read (its format is 3.0)")


@pytest.mark.parametrize("version", [(0, 0), (1, 9), (4, 0), (255, 255)])
def test_npy_of_an_unknown_version_is_refused(tmp_path: Path, version: tuple[int, int]):
    """What NumPy would not read, a format version that does not exist, raises InputError and is not guessed at."""
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY" + bytes(version) + npy(LEVELS, (2, 0))[8:])
    with pytest.raises(ValueError, match="version"):
        np.load(path)
    refuses(path, "")


def test_an_archive_of_several_arrays_needs_an_x(tmp_path: Path):
    """An .npz of several arrays, none named x, raises InputError that lists them; so does an archive in an archive."""
    path = tmp_path / "x.npz"
    path.write_bytes(npz(mu=npy(PIXELS), logsigma=npy(PIXELS)))
    refuses(path, "file cannot be read (it holds mu, logsigma, and none is named x)")
    path.write_bytes(npz(x=b"text", y=npy(LEVELS)))
    refuses(path, "not an image or array")


def test_a_damaged_archive_is_refused(tmp_path: Path):
    """A flipped bit anywhere in an .npz gives the same images or InputError, and in the data always InputError."""
    path = tmp_path / "x.npz"
    good = npz(x=npy(LEVELS[:1]))
    refused = 0
    for position in range(0, len(good), 5):
        bad = bytearray(good)
        bad[position] ^= 16
        path.write_bytes(bad)
        try:
            x = load([path], GREY).x
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(x, PIXELS[:1])
    assert refused > len(good) / 5 * 0.8


def test_a_damaged_gzip_file_never_gives_other_pixels(tmp_path: Path):
    """A flipped bit in a gzipped array gives the same images or InputError: its checksum is compared."""
    path = tmp_path / "x.gz"
    for data in (npy(LEVELS[:1] // 32), idx(LEVELS[:1] // 32)):
        good = gzip.compress(data, mtime=0)
        for position in range(10, len(good)):
            bad = bytearray(good)
            bad[position] ^= 1 << position % 8
            path.write_bytes(bad)
            try:
                x = load([path], GREY).x
            except InputError as error:
                assert str(path) in str(error)
            else:
                np.testing.assert_array_equal(x, (LEVELS[:1, None] // 32) / np.float32(255))


EMPTY = [b"", b"\x1f\x8b", gzip.compress(b"", mtime=0), gzip.compress(b"text", mtime=0), b"\x1f\x8b\x08" * 9]


@pytest.mark.parametrize("data", EMPTY)
def test_gzip_of_nothing_is_refused(tmp_path: Path, data: bytes):
    """An empty or damaged gzip file, and one of text, raise InputError."""
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    refuses(path, "")


def test_nesting_without_end_is_refused(tmp_path: Path):
    """A file gzipped 2,000 times raises InputError instead of overflowing the stack."""
    data = npy(LEVELS[:1])
    for _ in range(2000):
        data = gzip.compress(data, 1)
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    refuses(path, "file cannot be read")


def sixteen() -> tuple[bytes, np.ndarray]:
    """A 16-bit grey PNG and its pixels, rounded to 8 bits."""
    return png(LEVELS[0].astype(np.uint16) * 257), LEVELS[0] / 255


def big_endian() -> tuple[bytes, np.ndarray]:
    """A 16-bit TIFF, most significant byte first, as microscopes write it."""
    data = (LEVELS[0].astype(">u2") * 257).tobytes()
    return png(Image.frombytes("I;16B", (28, 28), data), "TIFF"), LEVELS[0] / 255


def palette() -> tuple[bytes, np.ndarray]:
    """A palette of greys in another order."""
    order = np.random.default_rng(2).permutation(256).astype(np.uint8)
    image = Image.frombytes("P", (28, 28), LEVELS[0].tobytes())
    image.putpalette(order.repeat(3).tobytes())
    return png(image), order[LEVELS[0]] / 255


def clear_palette() -> tuple[bytes, np.ndarray]:
    """A palette with one colour, index 0, that is clear."""
    image = Image.frombytes("P", (28, 28), (LEVELS[0] % 4).tobytes())
    image.putpalette(np.array([250, 60, 120, 180], np.uint8).repeat(3).tobytes())
    return png(image, transparency=0), np.array([0, 60, 120, 180])[LEVELS[0] % 4] / 255


def alpha() -> tuple[bytes, np.ndarray]:
    """White, more or less clear."""
    rgba = np.full((28, 28, 4), 255, np.uint8)
    rgba[..., 3] = LEVELS[0]
    return png(rgba), LEVELS[0] / 255


def turned() -> tuple[bytes, np.ndarray]:
    """A photograph taken with the camera upside down."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return png(LEVELS[0], exif=exif), LEVELS[0][::-1, ::-1] / 255


def animated(kind: str) -> tuple[bytes, np.ndarray]:
    """Seven frames, of which the first counts."""
    first, *others = map(Image.fromarray, LEVELS)
    return png(first, kind, save_all=True, append_images=others, duration=50), LEVELS[0] / 255


@pytest.mark.parametrize(
    "make",
    [sixteen, big_endian, palette, clear_palette, alpha, turned, lambda: animated("GIF"), lambda: animated("PNG"),
     lambda: animated("TIFF")],
    ids=["16 bits", "big-endian", "palette", "clear palette", "alpha", "turned", "GIF", "APNG", "TIFF"],
)  # fmt: skip
def test_pictures_of_many_makes_give_their_levels(
    tmp_path: Path, stdin: Callable[[bytes], None], make: Callable[[], tuple[bytes, np.ndarray]]
):
    """Depth, palette, transparency, orientation and frames come out as level / 255, from a file and standard input."""
    data, expected = make()
    path = tmp_path / "picture"
    path.write_bytes(data)
    stdin(data)
    for source in (str(path), "-"):
        np.testing.assert_allclose(load([source], GREY).x[0, 0], expected, rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize(
    "size", [(9000, 9000), (64_000_001, 1), (1, 64_000_001), (8001, 8000), (9999, 9999), (30_000, 30_000)]
)
def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]):
    """More than 64,000,000 pixels raise InputError by their header alone: these files hold no pixels to decode.

    Pillow itself warns of the last but one, and refuses the last.
    """
    path = tmp_path / "large.png"
    path.write_bytes(claimed(*size))
    refuses(path, f"image too large: {path}")
    path.write_bytes(claimed(8000, 8000))
    refuses(path, "file cannot be read")  # it may be decoded, and then there is nothing


def test_a_real_large_picture_is_refused(tmp_path: Path):
    """A valid 1-bit PNG of 9,000 x 9,000 pixels, ten kB, is refused too."""
    path = tmp_path / "large.png"
    Image.new("1", (9000, 9000)).save(path)
    assert path.stat().st_size < 100_000
    refuses(path, f"image too large: {path}")


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
def test_a_thin_picture_is_fitted(tmp_path: Path, size: tuple[int, int]):
    """A picture of one row or column, 5,000 pixels long, keeps its level."""
    Image.new("L", size, 150).save(tmp_path / "thin.png")
    np.testing.assert_allclose(load([tmp_path / "thin.png"], GREY).x, 150 / 255, atol=1 / 255)


def test_patterns_give_their_matches_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pattern, absolute, relative or recursive, stands for its matches sorted by name, arrays among them."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, level in (("b.png", 20), ("a.png", 10), ("c.npy", 30), ("deep/er/d.png", 40)):
        array = np.full((28, 28), level, np.uint8)
        (tmp_path / name).write_bytes(npy(array) if name.endswith("npy") else png(array))

    def levels(*patterns: str) -> list[int]:
        return [round(float(x.max() * 255)) for x in load(patterns, GREY).x]

    monkeypatch.chdir(tmp_path)
    assert levels("*.png") == [10, 20]
    assert levels("?.*") == levels(f"{tmp_path}/?.*") == [10, 20, 30]
    assert levels("[bc].*", "[ab].png") == [20, 30, 10, 20]
    assert levels("**/*.png") == [10, 20, 40]
    assert load(["?.png"], GREY).names == ["a.png", "b.png"]
    for pattern in ("*.jpg", "missing/*", f"{tmp_path}/x[0-9]"):
        refuses(pattern, f"no file matches: {pattern}")


def test_a_file_named_like_a_pattern_is_read(tmp_path: Path):
    """A file whose name holds brackets is that file, not a pattern."""
    (tmp_path / "x[1].png").write_bytes(PICTURES["PNG"])
    np.testing.assert_array_equal(load([tmp_path / "x[1].png"], GREY).x, PIXELS[:1])


def test_a_pattern_that_matches_a_folder_says_so(tmp_path: Path):
    """A pattern stands for files: a folder among its matches raises InputError that names the folder."""
    (tmp_path / "folder").mkdir()
    refuses(f"{tmp_path}/*", "file cannot be read (Is a directory)", name=str(tmp_path / "folder"))


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 5000, "a\0b", "\udcff.png", "*\0"],
    ids=["long", "longer", "null", "no text", "null pattern"],
)  # fmt: skip
def test_impossible_names_are_input_errors(tmp_path: Path, name: str):
    """Names that no file can have, and bytes that are no text, raise InputError."""
    with pytest.raises(InputError):
        load([str(tmp_path / name)], GREY)


def test_unreadable_files_and_folders_are_named(tmp_path: Path):
    """A file or folder without permission raises InputError with its name and the reason."""
    (tmp_path / "x.png").write_bytes(PICTURES["PNG"])
    (tmp_path / "x.png").chmod(0)
    if os.access(tmp_path / "x.png", os.R_OK):
        pytest.skip("needs another user than root, who may read everything")
    refuses(tmp_path / "x.png", "file cannot be read (Permission denied)")
    (tmp_path / "folder").mkdir(mode=0)
    refuses(tmp_path / "folder", "Permission denied")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (PICTURES["PNG"], ["standard input"]),
        (ARRAYS["npy"], [f"standard input[{i}]" for i in range(7)]),
        (ARRAYS["npz"], [f"standard input[{i}]" for i in range(7)]),
        (ARRAYS["idx.gz"], [f"standard input[{i}]" for i in range(7)]),
    ],
    ids=["PNG", "npy", "npz", "IDX.gz"],
)
def test_standard_input_is_a_source(stdin: Callable[[bytes], None], data: bytes, names: list[str]):
    """`-` is what comes on standard input, known by its content; its batches may be read again."""
    stdin(data)
    images = images_in(["-"], GREY)
    assert list(images.names()) == names
    for rows in (3, 100):
        np.testing.assert_array_equal(np.concatenate(list(images.batches(rows))), PIXELS[: len(names)])


@pytest.mark.parametrize("data", [b"", b"text\n", ARRAYS["npy"][:1000], idx(np.arange(9, dtype=np.uint8))])
def test_bad_standard_input_is_named(stdin: Callable[[bytes], None], data: bytes):
    """Nothing, text, a cut array and labels on standard input raise InputError that says where they came from."""
    stdin(data)
    refuses("-", "", name="standard input")


def test_a_pipe_is_a_source(tmp_path: Path):
    """In a process of its own, a gzipped IDX file through a pipe gives the same pixels, and a file beside it works."""
    (tmp_path / "x.png").write_bytes(PICTURES["PNG"])
    code = (
        "import sys; from vae_runtime import VAE\n"
        "batch = VAE.load().read(['x.png', '-']).load()\n"
        "sys.stdout.buffer.write(batch.x.tobytes()); print(len(batch.names), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=ARRAYS["idx.gz"], capture_output=True, cwd=tmp_path, check=True
    )
    x = np.frombuffer(done.stdout, np.float32).reshape(8, *GREY)
    np.testing.assert_array_equal(x, np.concatenate([PIXELS[:1], PIXELS]))
    assert done.stderr == b"8\n"


@pytest.mark.parametrize("kind", ["npy", "idx.gz", "npz"])
def test_bytes_are_a_source(kind: str):
    """The content of a file, given as bytes, is read as the file would be, beside other sources."""
    images = images_in([ARRAYS[kind], PICTURES["PNG"]], GREY)
    assert list(images.names()) == [*(f"bytes[{i}]" for i in range(7)), "bytes"]
    for rows in (3, 100):
        x = np.concatenate(list(images.batches(rows)))
        np.testing.assert_array_equal(x, np.concatenate([PIXELS, PIXELS[:1]]))


@pytest.mark.parametrize("content", [b"", b"-", b"x.png", b"*", b"text\n", ARRAYS["npy"][:1000]])
def test_bad_bytes_are_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes):
    """Bytes are never a name: what is no image or array raises InputError, though a file of that name is there."""
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(PICTURES["PNG"])
    with pytest.raises(InputError, match="bytes"):
        load([content], GREY)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PDF", "ICNS", "SGI", "PCX"])
def test_other_formats_of_pillow_are_refused(tmp_path: Path, kind: str):
    """Formats beyond the common ones, some of which Pillow reads with other programs, are not even tried."""
    path = tmp_path / "x.png"
    path.write_bytes(png(Image.new("L", (32, 32), 99), kind))
    refuses(path, "not an image or array")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    """Files of all kinds and their numbers of images: arrays of 1 to 40, pictures, one of them fitted."""
    folder = tmp_path_factory.mktemp("shelf")
    many = np.random.default_rng(3).integers(0, 256, (40, 28, 28), np.uint8)
    contents = {
        "one.npy": (npy(many[:1]), 1),
        "flat.npy": (npy(many[5]), 1),
        "two.idx": (idx(many[:2]), 2),
        "five.npz": (npz(x=npy(many[:5])), 5),
        "nine.npy": (npy(np.asfortranarray(many[:9])), 9),
        "forty.gz": (gzip.compress(idx(many)), 40),
        "a.png": (png(many[7]), 1),
        "b.png": (png(Image.fromarray(many[8]).resize((31, 45))), 1),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    return [(folder / name, count) for name, (_, count) in contents.items()]


@pytest.mark.parametrize("seed", range(40))
def test_batches_are_parts_of_the_same_images(shelf: list[tuple[Path, int]], seed: int):
    """For any sources and rows: at least `rows` images a batch but for the last, fewer than twice as many, all the
    images in order, and a name for each, as `load` gives them and as each file alone does.
    """
    generator = random.Random(seed)
    picks, rows = [generator.randint(0, 7) for _ in range(generator.randint(1, 6))], generator.randint(1, 60)
    paths = [shelf[i][0] for i in picks]
    images = images_in(paths, GREY)
    batches = list(images.batches(rows))
    assert len(images) == sum(shelf[i][1] for i in picks) == sum(map(len, batches))
    assert all(rows <= len(x) < 2 * rows for x in batches[:-1])
    assert 0 < len(batches[-1]) < 2 * rows
    x = np.concatenate(batches)
    whole = load(paths, GREY)
    np.testing.assert_array_equal(x, whole.x)
    np.testing.assert_array_equal(x, np.concatenate([load([path], GREY).x for path in paths]))
    assert list(images.names()) == whole.names == [name for path in paths for name in load([path], GREY).names]
    assert images.fitted == whole.fitted
    assert set(whole.fitted) == {str(path) for path in paths if path.name == "b.png"}


@pytest.mark.parametrize("kind", ["idx", "npy", "npy.gz", "npz"])
def test_a_long_array_is_never_held_whole(tmp_path: Path, kind: str, peak_memory):
    """Of 20,000 images, 63 MB as floats, batches of 50 hold under 3 MB at a time."""
    levels = np.random.default_rng(4).integers(0, 2, (20_000, 28, 28), np.uint8)
    make = {"idx": idx, "npy": npy, "npy.gz": lambda x: gzip.compress(npy(x), 1), "npz": lambda x: npz(x=npy(x))}
    path = tmp_path / "long"
    path.write_bytes(make[kind](levels))
    total = int(levels.sum())

    def read() -> Iterator[int]:
        for x in images_in([path], GREY).batches(50):
            assert len(x) == 50
            yield int(np.rint(x.sum(dtype=np.float64) * 255))

    del levels
    sums: list[float] = []
    assert peak_memory(lambda: sums.extend(read())) < 3_000_000
    assert sum(sums) == total


def test_names_are_not_made_before_they_are_asked_for(tmp_path: Path):
    """The names of an array that claims 10^15 images come one at a time."""
    path = tmp_path / "x.npy"
    path.write_bytes(header((10**15, 28, 28)))
    images = images_in([path], GREY)
    assert len(images) == 10**15
    names = images.names()
    assert [next(names), next(names)] == [f"{path}[0]", f"{path}[1]"]


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_a_bad_pixel_is_named_by_its_place_in_the_file(tmp_path: Path, rows: int):
    """NaN in image 5 of an array is told as image 5, however the array is cut into batches."""
    x = PIXELS.copy()
    x[5, 0, 3, 3] = np.nan
    (tmp_path / "x.npy").write_bytes(npy(x))
    with pytest.raises(
        InputError, match=r"pixels outside \[0, 1\] or NaN: .*x\.npy\[5\]; give floats in \[0, 1\], or levels as uint8"
    ):
        list(images_in([tmp_path / "x.npy"], GREY).batches(rows))


def test_a_file_that_vanishes_is_named(tmp_path: Path):
    """A file that is removed, or replaced by text, after it was looked at raises InputError, not another error."""
    path = tmp_path / "x.npy"
    for change in (path.unlink, lambda: path.write_bytes(b"text"), lambda: path.write_bytes(PICTURES["PNG"])):
        path.write_bytes(ARRAYS["npy"])
        images = images_in([path], GREY)
        change()
        with pytest.raises(InputError, match=r"x\.npy"):
            list(images.batches(10))


def test_a_folder_holds_pictures_only(tmp_path: Path):
    """In a folder, files with an image's suffix count, whatever they hold; arrays, text and folders do not."""
    for name in ("a.png", "b.JPG", "c.npy", "d.txt", "e"):
        (tmp_path / name).write_bytes(PICTURES["PNG"])
    (tmp_path / "deeper").mkdir()
    assert load([tmp_path], GREY).names == [str(tmp_path / "a.png"), str(tmp_path / "b.JPG")]
    assert {".png", ".jpg"} <= sources.SUFFIXES


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["npy", "gz"])
def test_rows_that_a_header_only_claims_take_no_memory(tmp_path: Path, compress: Callable[[bytes], bytes], peak_memory):
    """An .npy of 32 rows that claims 10^8 is refused once these are read, and nothing is held for each of the rest."""
    path = tmp_path / "x.npy"
    path.write_bytes(compress(header((10**8, 4)) + bytes(128)))

    def read() -> None:
        with pytest.raises(InputError, match="it ends before its 100000000 rows do"):
            list(sources.Observations([path], Observation(VECTOR, (4,), None)).batches(8))

    assert peak_memory(read) < 1_000_000
