"""Walks through latent space against closed forms in float64, and latents read from files."""

import gzip
import io
import math
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vae_runtime import ArgumentError, InputError, latents
from vae_runtime.outputs import write_arrays


def test_the_spherical_path_keeps_away_from_the_middle():
    """Between two perpendicular points of length 1 the middle has length 1, and 0.71 on the straight line."""
    a, b = np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(latents.path(a, b, 3)[1], [math.sqrt(0.5)] * 2, rtol=1e-6)
    np.testing.assert_allclose(latents.path(a, b, 3, linear=True)[1], [0.5, 0.5], rtol=1e-6)


ONE, ZERO = np.ones(3, np.float32), np.zeros(3, np.float32)
TILTED = np.array([1, 1, 1 + 1e-6], np.float32)


@pytest.mark.parametrize(
    ("a", "b"),
    [(ONE, ONE), (ONE, 2 * ONE), (ONE, -ONE), (ONE, -3 * ONE), (ZERO, ONE), (ONE, ZERO), (ZERO, ZERO), (ONE, TILTED),
     (ONE, -TILTED), (1e-30 * ONE, ONE), (1e30 * ONE, -1e30 * ONE), (1e30 * ONE, 1e30 * TILTED), (1e-40 * ONE, ZERO)],
    ids=["same", "parallel", "opposite", "opposite 3", "from 0", "to 0", "at 0", "near", "nearly opposite", "tiny",
         "huge", "huge near", "subnormal"],
)  # fmt: skip
@pytest.mark.parametrize("linear", [False, True])
def test_degenerate_ends_are_joined_by_a_finite_path(a: np.ndarray, b: np.ndarray, linear: bool):
    """Parallel, opposite, zero, tiny and huge ends give finite points, never farther out than the farther end; where no
    plane is defined, they lie on the straight line.
    """
    a, b = a.astype(np.float32), b.astype(np.float32)
    z = latents.path(a, b, 7, linear).astype(np.float64)
    assert np.isfinite(z).all()
    np.testing.assert_array_equal(z[[0, -1]], [a, b])
    largest = max(np.linalg.norm(end.astype(np.float64)) for end in (a, b))
    assert np.linalg.norm(z, axis=1).max() <= largest * (1 + 1e-5)
    crossed = np.linalg.norm(np.cross(a.astype(np.float64), b.astype(np.float64)))
    if linear or crossed == 0:
        straight = np.linspace(a.astype(np.float64), b.astype(np.float64), 7)
        np.testing.assert_allclose(z, straight, rtol=1e-5, atol=1e-6 * largest + 2e-45)


@pytest.mark.parametrize("steps", [1, 0, -1, 10_001, 2.5, "3"])
def test_counts_of_steps_are_checked(loaded, steps: object):
    """Fewer than two steps, more than 10,000 and fractions raise ArgumentError, in each kind of walk."""
    for walk in (
        lambda: latents.path(ONE, ZERO, steps),
        lambda: latents.interpolate(loaded.vae, loaded.x[0], loaded.x[1], steps),
        lambda: latents.traverse(loaded.vae, steps=steps),
    ):
        with pytest.raises(ArgumentError, match=f"steps out of range: {steps}; give an integer from 2 to 1,000"):
            walk()
    with pytest.raises(ArgumentError, match="number of latents out of range: 0"):
        latents.traverse(loaded.vae, most=0)


@pytest.mark.parametrize("linear", [False, True])
def test_interpolation_runs_between_reconstructions(loaded, linear: bool):
    """The first and last image are the reconstructions of the two; each between is E[x|z] at the path's point."""
    vae, x = loaded.vae, loaded.x[:2]
    theta = latents.interpolate(vae, x[0], x[1], 6, linear)
    assert theta.shape == (6, *vae.observation.shape)
    assert theta.dtype == np.float32
    np.testing.assert_array_equal(theta[[0, -1]], vae.reconstruct(x))
    a, b = vae.encode(x)[0].astype(np.float64)
    turn = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for i in range(6):
        t = i / 5
        weights = (
            (1 - t, t) if linear else (math.sin((1 - t) * turn) / math.sin(turn), math.sin(t * turn) / math.sin(turn))
        )
        expected = vae.decode((weights[0] * a + weights[1] * b)[None])
        np.testing.assert_allclose(theta[i], expected[0], rtol=0, atol=1e-4)


def test_interpolating_takes_lists_and_other_types(loaded):
    """Images of any number type, lists too, give what float32 gives."""
    a, b = loaded.x[:2]
    expected = latents.interpolate(loaded.vae, a, b, 3)
    for convert in (lambda x: x.astype(np.uint8), lambda x: x.astype(bool), lambda x: x.tolist()):
        np.testing.assert_array_equal(latents.interpolate(loaded.vae, convert(a), convert(b), 3), expected)


def test_interpolating_other_shapes_is_an_input_error(loaded):
    """Images of another shape than the model's, two different ones too, raise InputError."""
    a = loaded.x[0]
    for first, second in (
        (a[0], a[0]),
        (a[None], a[None]),
        (a, a[:, 1:]),
        (a, a[0]),
        (a, 0.5),
        (a, "b.png"),
        (a, None),
    ):
        with pytest.raises(InputError):
            latents.interpolate(loaded.vae, first, second)
    with pytest.raises(InputError, match="pixels outside"):
        latents.interpolate(loaded.vae, a, 2 * a)


def mean_kl(vae, x: np.ndarray) -> np.ndarray:
    """KL(q(z_i|x) || p(z_i)) of each latent, averaged over the images, by its closed form in float64."""
    mu, logsigma = (array.astype(np.float64) for array in vae.encode(x))
    return ((np.exp(2 * logsigma) + mu**2 - 1) / 2 - logsigma).mean(axis=0)


@pytest.mark.parametrize("most", [1, 3, 10, 1000])
@pytest.mark.parametrize("given_images", [True, False])
def test_traversal_varies_one_latent_at_a_time(loaded, most: int, given_images: bool):
    """Rows are the latents of largest KL, in order; row r, step s is E[x|z] where latent r alone is moved to its place
    from -span to span, and the others are the first image's mu, or 0 without images.
    """
    vae, span, steps = loaded.vae, 2.5, 5
    x = loaded.x[3:43] if given_images else None
    walked = latents.traverse(vae, x, steps, span, most, seed=3)
    kl = mean_kl(vae, vae.sample(500, seed=3) if x is None else x)
    rows = min(most, vae.latent_dim)
    assert walked.theta.shape == (rows, steps, *vae.observation.shape)
    assert len(set(walked.latents)) == len(walked.latents) == rows
    np.testing.assert_allclose(walked.kl, kl[walked.latents], rtol=1e-6, atol=1e-9)
    assert (np.diff(walked.kl) <= 0).all()
    assert walked.kl[-1] >= np.sort(kl)[::-1][rows - 1] - 1e-6
    rest = np.zeros(vae.latent_dim, np.float32) if x is None else vae.encode(x[:1])[0][0]
    for latent, images in zip(walked.latents, walked.theta, strict=True):
        for step, image in enumerate(images):
            z = rest.copy()
            z[latent] = -span + 2 * span * step / (steps - 1)
            np.testing.assert_allclose(image, vae.decode(z[None])[0], rtol=0, atol=1e-5)


def test_traversal_is_repeatable_and_takes_any_number_of_images(loaded):
    """Without images the same seed gives the same walk; one image is enough, and 1,000 steps are fine."""
    first, second = (latents.traverse(loaded.vae, seed=4, most=2) for _ in range(2))
    np.testing.assert_array_equal(first.theta, second.theta)
    assert first.latents == second.latents
    assert latents.traverse(loaded.vae, loaded.x[:1], 1000, most=1).theta.shape[:2] == (1, 1000)


def test_traversal_of_no_images_is_an_input_error(loaded):
    """A batch of 0 images says nothing about KL: InputError, and no warning."""
    with pytest.raises(InputError):
        latents.traverse(loaded.vae, loaded.x[:0])


@pytest.mark.parametrize("span", [math.nan, math.inf, -math.inf, 1e39])
def test_a_span_without_end_is_an_argument_error(loaded, span: float):
    """A span that is not finite in float32 raises ArgumentError, a mistake in the call and not in the images."""
    with pytest.raises(ArgumentError, match="span"):
        latents.traverse(loaded.vae, loaded.x[:2], span=span)


def npz(**members: bytes) -> bytes:
    """An archive of such members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An array as NumPy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


Z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
OTHER = npy(np.zeros((9, 9)))


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


@pytest.mark.parametrize(
    "data",
    [npy(Z), npy(np.asfortranarray(Z)), npy(Z.astype(">f4")), npy(Z.astype(np.float64)), npz(z=npy(Z)),
     npz(mu=npy(Z), logsigma=OTHER), npz(logsigma=OTHER, mu=npy(Z)), npz(mu=OTHER, z=npy(Z)), npz(anything=npy(Z))],
    ids=["npy", "Fortran", "big-endian", "double", "z", "mu", "mu last", "z before mu", "one"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x"])
def test_latents_are_read_from_arrays_and_archives(
    tmp_path: Path, stdin: Callable[[bytes], None], data: bytes, name: str
):
    """An .npy, and of an .npz the array z, or mu, or the only one, under any name and from standard input."""
    path = tmp_path / name
    path.write_bytes(data)
    stdin(data)
    for source in (str(path), "-"):
        z = latents.read(source, (4,))
        assert z.dtype == np.float32
        np.testing.assert_array_equal(z, Z)


def test_what_encode_saves_is_read(loaded, tmp_path: Path):
    """The .npz of mu and logsigma that `encode` writes gives mu back, bit for bit."""
    mu, logsigma = loaded.vae.encode(loaded.x)
    write_arrays(tmp_path / "l.npz", mu=mu, logsigma=logsigma)
    np.testing.assert_array_equal(latents.read(str(tmp_path / "l.npz"), loaded.vae.latent_shape), mu)


def header(shape: object) -> bytes:
    """The beginning of an .npy that claims a shape of float32."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


NAN, INFINITE = Z.copy(), Z.astype(np.float64)
NAN[3, 2], INFINITE[1, 0] = np.nan, 1e300


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy(Z[:, :3]), "latents of the wrong shape: {} ([5, 3]); this model takes [batch, 4]"),
        (npy(Z[0]), "latents of the wrong shape: {} ([4]); this model takes [batch, 4]"),
        (npy(Z[None]), "latents of the wrong shape: {} ([1, 5, 4]); this model takes [batch, 4]"),
        (npz(mu=OTHER), "latents of the wrong shape: {} ([9, 9]); this model takes [batch, 4]"),
        (npy(NAN), "NaN or infinite latents: {} (row 3); clean the data"),
        (npz(mu=npy(NAN)), "NaN or infinite latents: {} (row 3); clean the data"),
        (npy(INFINITE), "NaN or infinite latents: {} (row 1); clean the data"),
        (npy(np.full((2, 4), "a")), "latents of the wrong type: {} (<U1); give numbers"),
        (npy(Z.astype(complex)), "latents of the wrong type: {} (complex128); give numbers"),
        (npy(np.array([[{}] * 4])), "Python objects"),
        (npz(a=npy(Z), b=npy(Z)), "a, b"),
        (npz(), "cannot be read ("),
        (b"", "cannot be read ("),
        (b"text\n", "cannot be read ("),
        (b"\x89PNG\r\n\x1a\n", "cannot be read ("),
        (npy(Z)[:-1], "cannot be read ("),
        (npy(Z)[:50], "cannot be read ("),
        (npz(z=npy(Z))[:-30], "cannot be read ("),
        (npz(z=npy(Z)[:-4]), "cannot be read ("),
        (npz(z=npy(Z)).replace(Z.tobytes()[:4], b"\0\0\0\0", 1), "cannot be read ("),
        (npz(z=b"text"), ""),
        (header((10**15, 4)) + bytes(64), "cannot be read ("),
        (header((2**70, 4)) + bytes(64), "cannot be read ("),
        (header((-1, 4)) + bytes(64), ""),
    ],
    ids=["narrow", "flat", "deep", "mu", "NaN", "NaN in mu", "infinite", "text", "complex", "objects", "two arrays",
         "no array", "empty", "words", "picture", "cut", "cut header", "cut archive", "cut member", "damaged member",
         "no array inside", "claims", "claims more", "negative"],
)  # fmt: skip
def test_what_are_no_latents_is_refused_by_name(
    tmp_path: Path, stdin: Callable[[bytes], None], data: bytes, words: str
):
    """Wrong shapes and types, NaN, several unknown arrays and damaged files raise InputError that names the file."""
    path = tmp_path / "latents.npy"
    path.write_bytes(data)
    stdin(data)
    for source, names in ((str(path), {str(path)}), ("-", {"-", "standard input"})):
        with pytest.raises(InputError) as caught:
            latents.read(source, (4,))
        text = str(caught.value)
        assert any(words.format(name) in text and f": {name}" in text for name in names)
        assert text.isprintable()
        assert len(text) < 500 + len(source)


def test_missing_files_and_folders_are_named(tmp_path: Path):
    """A missing file says to check the path; a folder and names that no file can have are InputErrors too."""
    with pytest.raises(InputError) as caught:
        latents.read(str(tmp_path / "missing.npz"), (4,))
    assert str(caught.value).endswith(f"not found: {tmp_path}/missing.npz; check the path")
    for source in (str(tmp_path), str(tmp_path / ("x" * 300)), str(tmp_path / "a\0b")):
        with pytest.raises(InputError, match="cannot be read"):
            latents.read(source, (4,))


def test_no_rows_are_refused(tmp_path: Path):
    """An array of 0 rows, from which nothing can be drawn, raises InputError that names the file."""
    path = tmp_path / "none.npy"
    path.write_bytes(npy(Z[:0]))
    with pytest.raises(InputError, match=r"none\.npy"):
        latents.read(str(path), (4,))


def test_compressed_latents_are_read(tmp_path: Path):
    """A gzipped .npy is read as images are; a damaged one is refused or gives the same numbers."""
    path = tmp_path / "z.npy.gz"
    good = gzip.compress(npy(Z), mtime=0)
    path.write_bytes(good)
    np.testing.assert_array_equal(latents.read(str(path), (4,)), Z)
    for position in range(10, len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bad)
        try:
            z = latents.read(str(path), (4,))
        except InputError as error:
            assert str(path) in str(error)
        else:
            np.testing.assert_array_equal(z, Z)
