"""What people hold: paths, Pillow images and 8-bit levels give what their arrays give; what is changed is said."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from support.bundles import Forge, linear
from vae_runtime import VAE, Detector, FittedWarning, score
from vae_runtime.errors import InputError

image = pytest.importorskip("PIL.Image")
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def colour(forge: Forge) -> VAE:
    """A linear model of images of 8x6 pixels in three colours, under a Gaussian."""
    return VAE.load(linear(forge, "gaussian", (3, 8, 6)), threads=1)


def levels(*shape: int) -> np.ndarray:
    """Seeded 8-bit levels."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_levels_and_pictures_are_what_their_array_is(colour: VAE) -> None:
    """[H, W, C], [n, H, W, C], a Pillow image and a list of these: levels / 255, to the last bit, and no warning."""
    many = levels(4, 8, 6, 3)
    x = (many / np.float32(255)).transpose(0, 3, 1, 2).astype(np.float32)
    pictures = [image.fromarray(each) for each in many]
    np.testing.assert_array_equal(colour.reconstruct(many[0]), colour.reconstruct(x[:1]))
    for given in (many, pictures, tuple(pictures), iter([many[:1], pictures[1:]])):
        np.testing.assert_array_equal(colour.elbo(given), colour.elbo(x))
    np.testing.assert_array_equal(colour.encode(pictures[2])[0], colour.encode(x[2:3])[0])
    np.testing.assert_array_equal(colour.score(many, 3).elbo, score(colour, x, 3).elbo)


def test_arrays_of_the_models_shape_are_values_whatever_their_type(colour: VAE) -> None:
    """As they always were: 8-bit 0 and 1 are 0 and 1, and levels are refused."""
    ones = levels(2, 3, 8, 6) // 128
    np.testing.assert_array_equal(colour.elbo(ones), colour.elbo(ones.astype(np.float32)))
    with pytest.raises(InputError, match="divide 8-bit levels by 255"):
        colour.elbo(levels(2, 3, 8, 6))


def test_paths_are_read_as_read_does_it(tmp_path: Path, colour: VAE) -> None:
    """One, a list, a folder; a detector learns from a folder and judges a file."""
    many = levels(30, 8, 6, 3)
    for i, each in enumerate(many):
        image.fromarray(each).save(tmp_path / f"{i:02}.png")
    one, two = tmp_path / "00.png", str(tmp_path / "01.png")
    np.testing.assert_array_equal(colour.elbo(one), colour.elbo(many[0]))
    np.testing.assert_array_equal(colour.elbo([one, two]), colour.elbo(many[:2]))
    np.testing.assert_array_equal(colour.observe(one.read_bytes()), colour.observe(many[0]))
    detector = Detector.fit(colour, tmp_path)
    assert detector.calibration == Detector.fit(colour, many).calibration
    assert detector.verdict(one).score == detector.verdict(many[0]).score
    assert detector.map(two).shape == (1, 8, 6)


def test_what_is_changed_is_said_where_the_caller_is(colour: VAE) -> None:
    """A size, colours, files; and levels that look like 0 and 1."""
    with pytest.warns(FittedWarning, match=r"image 0: fitted from 12x16 RGB to 6x8 RGB, and 1 more") as told:
        colour.elbo(levels(2, 16, 12, 3))
    assert told[0].filename == __file__
    with pytest.warns(FittedWarning, match=r"fitted from 6x8 L to 6x8 RGB"):
        colour.elbo(levels(8, 6))
    with pytest.warns(FittedWarning, match=r"four.png: fitted from 112x112 L to 6x8 RGB"):
        colour.elbo(DIGITS / "four.png")
    with pytest.warns(FittedWarning, match="0 and 1 taken as 8-bit levels"):
        colour.elbo(levels(8, 6, 3) // 128)


def test_rows_are_read_from_tables(tmp_path: Path, forge: Forge) -> None:
    """With what is to be said of them."""
    vae = VAE.load(linear(forge, "gaussian", (3,)), threads=1)
    (tmp_path / "rows.csv").write_text("a;b;c\n0,5;1;2\n3;4;5\n")
    with pytest.warns(FittedWarning, match="decimal comma"):
        found = vae.elbo(tmp_path / "rows.csv")
    np.testing.assert_array_equal(found, vae.elbo([[0.5, 1, 2], [3, 4, 5]]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.png", "absent.png"),
        (np.zeros((8, 6, 3)), r"images of the wrong shape: \[8, 6, 3\]"),
        (levels(8, 6, 2), r"images of the wrong shape: \[8, 6, 2\]"),
        ([image.new("RGB", (6, 8)), "a.png"], "images of"),
        ([], "images of the wrong shape"),
        (None, "images of the wrong type: object; give numbers"),
    ],
    ids=["absent", "floats", "two colours", "mixed", "nothing in it", "nothing"],
)
def test_what_cannot_be_understood_is_told(colour: VAE, given: object, message: str) -> None:
    """Without a guess, and without a warning."""
    with warnings.catch_warnings(), pytest.raises(InputError, match=message):
        warnings.simplefilter("error")
        colour.reconstruct(given)  # type: ignore[arg-type]


def test_a_picture_is_no_row(forge: Forge) -> None:
    """Its kind is named."""
    vae = VAE.load(linear(forge, "gaussian", (3,)), threads=1)
    with pytest.raises(InputError, match="picture for a model of rows: Image; give numbers or a table"):
        vae.elbo(image.new("RGB", (3, 1)))


def test_a_detector_says_what_it_is(colour: VAE) -> None:
    """On how many it was calibrated, and by what it judges."""
    assert repr(Detector.fit(colour, levels(30, 8, 6, 3))).endswith(
        "calibrated on 30 different normal images; odd at 3.23% of false alarms>"
    )
