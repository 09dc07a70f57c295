"""Where an observation is odd: maps by their definition, a planted blot is where it is, and each kind of file."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from support.bundles import Forge, linear, normal
from support.commands import Command
from vae_runtime import VAE, maps, noise
from vae_runtime.cli import main
from vae_runtime.detector import Detector
from vae_runtime.errors import BundleError
from vae_runtime.maps import Places, cells, residuals, spread_out
from vae_runtime.observation import Observation
from vae_runtime.traits import NUM_SAMPLES

SHAPES: dict[str, tuple[int, ...]] = {"image": (2, 9, 7), "vector": (4,), "series": (2, 12)}


@pytest.fixture(params=SHAPES)
def vae(request: pytest.FixtureRequest, forge: Forge) -> VAE:
    """A linear model of each kind of observation, under a Gaussian."""
    return VAE.load(linear(forge, "gaussian", SHAPES[request.param]), threads=1)


def around(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The mean of those at most two places away along each axis, place by place."""
    out = np.empty_like(values)
    for at in np.ndindex(*values.shape):
        near = tuple(slice(max(0, i - 2), i + 3) if axis in axes else i for axis, i in enumerate(at))
        out[at] = values[near].mean()
    return out


def test_a_map_is_what_it_says(vae: VAE) -> None:
    """By the definition: the root of twice the mean nats around a place, in spreads from that of normal ones."""
    x, usual = normal(vae, 4, seed=1), normal(vae, 60)
    detector = Detector.fit(vae, usual)

    def expected(x: np.ndarray) -> np.ndarray:
        mu, logsigma = vae.encode(x)
        eps = noise.normal(0, noise.POSTERIOR, noise.index(x), NUM_SAMPLES * vae.latent_dim)
        z = mu[:, None] + np.exp(logsigma)[:, None] * eps.reshape(len(x), NUM_SAMPLES, *vae.latent_shape)
        theta = vae.decode(z.reshape(-1, *vae.latent_shape).astype(np.float32))
        error = (x[:, None] - theta.reshape(len(x), NUM_SAMPLES, *vae.observation.shape)) / math.exp(-1.2)
        nats = 0.5 * np.square(error.astype(np.float64)).mean(axis=1)
        nats = nats.sum(axis=1) if vae.observation.kind == "image" else nats
        if vae.observation.kind == "vector":  # of rows each value by itself too, under Student's t
            nats += 2 * np.log1p(np.square(x.astype(np.float64)) / 3)
        axes = {"image": (0, 1), "series": (1,), "vector": ()}[vae.observation.kind]
        return np.sqrt(2 * np.stack([around(one, axes) for one in nats]))

    of_usual = expected(usual)
    spread = np.sqrt(of_usual.var(axis=0) + of_usual.var(axis=0).mean() + 1e-6)
    np.testing.assert_allclose(detector.map(x), (expected(x) - of_usual.mean(axis=0)) / spread, atol=2e-3)


def test_normal_observations_seldom_go_beyond_what_is_usual(vae: VAE) -> None:
    """In 5% of others a place is as far, either way, within four standard errors of both samples."""
    detector = Detector.fit(vae, normal(vae, 400))
    places, found = detector.calibration.places, detector.map(normal(vae, 400, seed=1)).reshape(400, -1)
    for beyond in (found.max(axis=1) > places.high, found.min(axis=1) < places.low):
        assert abs(beyond.mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 * 2 / 400)


def test_few_normal_ones_promise_no_less_than_there_is() -> None:
    """A new one goes beyond the most of 20 as often as one of the 20 goes beyond what the others say."""
    shares = []
    for seed in range(100):
        rows = np.exp(0.5 * np.random.default_rng(seed).normal(size=(220, 30))).astype(np.float32)
        places = Places.of(rows[:20])
        shares.append((places.deviations(rows[20:]).max(axis=1) > places.high).mean())
    assert 0.03 < np.mean(shares) < 0.1


def test_a_planted_blot_is_where_it_is_planted() -> None:
    """Of the shipped clothes: no pixel is as odd as one in it, but for those judged with it; nor was any before."""
    vae = VAE.load("fashion-mnist", threads=1)
    detector = Detector.load(vae)
    x = vae.sample(6, seed=4, mean=True)
    blotted = x.copy()
    blotted[:, :, 2:7, 21:26] = 1
    before, found = detector.map(x), detector.map(blotted)
    assert found.shape == (6, 28, 28)
    elsewhere = np.ones((28, 28), bool)
    elsewhere[: 7 + 2, 21 - 2 :] = False
    blot = found[:, 2:7, 21:26].max(axis=(1, 2))
    assert (blot > 1.5 * found[:, elsewhere].max(axis=1)).all()
    assert (blot > 1.5 * before.max(axis=(1, 2))).all()


def test_equal_observations_have_equal_maps(vae: VAE) -> None:
    """To the last bit, whatever lies beside them; of none there is none."""
    x = normal(vae, 9, seed=2)
    detector = Detector.fit(vae, normal(vae, 30))
    np.testing.assert_array_equal(detector.map(x)[4:6], detector.map(np.concatenate([x[4:6], x[:1]]))[:2])
    assert detector.map(x[:0]).shape == (0, *detector.map(x).shape[1:])


def test_large_observations_share_cells() -> None:
    """Their number is bounded, and each place has that of its block, by the mean over it."""
    image = Observation.image((1, 150, 131))
    assert cells(image) == (50, 44)
    assert cells(Observation("series", (3, 9000), None)) == (3, 1286)
    assert cells(Observation("vector", (9000,), None)) == (9000,)
    nats = np.random.default_rng(0).exponential(size=(1, 1, 150, 131))
    blocks = np.stack([[nats[0, 0, i : i + 3, j : j + 3].mean() for j in range(0, 131, 3)] for i in range(0, 150, 3)])
    found = residuals(nats, image)
    np.testing.assert_allclose(found[0], np.sqrt(2 * around(blocks, (0, 1))), rtol=1e-6)
    places = spread_out(found.astype(np.float64), image)
    assert places.shape == (1, 150, 131)
    assert places[0, 149, 130] == found[0, 49, 43]


def test_colours_say_which_way(vae: VAE) -> None:
    """Grey where nothing is unusual, red above, blue below."""
    if vae.observation.kind != "image":
        return
    x = normal(vae, 1)
    deviations = np.zeros((1, 9, 7))
    deviations[0, 0, 0], deviations[0, 8, 6] = 9, -9
    red, green, blue = maps.overlay(x, deviations, Places((0.0,), (1.0,), 3, -3))[0]
    assert red[0, 0] > 0.8 > 0.3 > blue[0, 0]
    assert blue[8, 6] > 0.8 > 0.4 > red[8, 6]
    np.testing.assert_array_equal(red[3, 1:], green[3, 1:])


def test_places_of_another_shape_are_refused(vae: VAE, tmp_path: Path) -> None:
    """A calibration whose places do not fit the observations is not this model's."""
    detector = Detector.fit(vae, normal(vae, 30))
    site = json.loads(detector.dump())
    for name in ("mean", "spread"):
        site["places"][name] = site["places"][name][1:]
    (tmp_path / "site.json").write_text(json.dumps(site))
    with pytest.raises(BundleError, match="calibration of other places"):
        Detector.load(vae, tmp_path / "site.json")
    site["places"]["spread"][0] = 0.0
    (tmp_path / "site.json").write_text(json.dumps(site))
    with pytest.raises(BundleError, match=r"not a calibration.*spread"):
        Detector.load(vae, tmp_path / "site.json")


@pytest.fixture
def sets(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """The model's detector, saved as site.json in a folder with x.npy, three observations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_EDGE_BUNDLE", str(vae.path))
    detector = Detector.fit(vae, normal(vae, 30))
    detector.save("site.json")
    np.save("x.npy", normal(vae, 3, seed=1))
    return detector


def test_maps_are_written_as_what_fits_the_kind(sets: Detector, command: Command) -> None:
    """Numbers as `map` gives them; of images a picture, of others lines with names; another kind is refused."""
    vae, expected = sets.vae, sets.map(np.load("x.npy"))
    words = ("detect", "x.npy", "--calibration", "site.json", "--maps")
    without = command(main, *words[:-1])
    ran = command(main, *words, "maps.npy")
    assert (ran.code, ran.out) == (0, without.out)
    assert "standard deviations from what is usual" in ran.err
    np.testing.assert_array_equal(np.load("maps.npy"), expected.astype(np.float32))
    if vae.observation.kind == "image":
        assert command(main, *words, "maps.csv").code == 2
        return
    assert command(main, *words, "maps.csv").code == 0
    head, *rows = list(csv.reader(Path("maps.csv").read_text().splitlines()))
    names = ["column 0", "column 1", "column 2", "column 3"][: expected.shape[1]]
    assert head == [*(["window", "step"] if vae.observation.kind == "series" else ["row"]), *names]
    numbers = np.array([row[-len(names) :] for row in rows], float)
    wanted = expected.swapaxes(1, -1).reshape(-1, len(names)) if vae.observation.kind == "series" else expected
    np.testing.assert_allclose(numbers, wanted, rtol=1e-3)
    assert rows[-1][0] == "x.npy[2]"
    assert command(main, *words, "maps.jsonl").code == 0
    *_, last = Path("maps.jsonl").read_text().splitlines()
    np.testing.assert_allclose(list(json.loads(last)["deviations"].values()), wanted[-1], rtol=1e-3)


def test_maps_of_digits_are_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Beside each image its map, in one picture or in a folder of them that are named after the files."""
    image = pytest.importorskip("PIL.Image")
    digits = Path(__file__).parents[2] / "examples" / "digits"
    monkeypatch.chdir(tmp_path)
    said = command(main, "detect", digits, "--maps", "maps").err
    assert "red where an image fits the model less" in said and "no verdict" in said
    names = sorted(path.name for path in Path("maps").iterdir())
    assert names[:2] == ["0-four.png", "1-not-a-digit.png"]
    assert image.open("maps/0-four.png").size == (2 * 224, 224)
    colours = np.asarray(image.open("maps/1-not-a-digit.png").convert("RGB"), int)
    left, right = colours[:, :224], colours[:, 224:]
    assert np.ptp(left, axis=2).max() == 0
    assert (right[..., 0] - right[..., 1]).max() > 100
    assert command(main, "detect", digits, "--maps", "maps.png").code == 0
    assert image.open("maps.png").size == (3 * (8 * 30 + 2), 3 * (2 * 30 + 2))


def test_maps_of_rows_and_windows_are_plots(sets: Detector, command: Command) -> None:
    """Where matplotlib is installed."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    if sets.vae.observation.kind != "image":
        np.save("x.npy", np.load("x.npy")[:1])
        ran = command(main, "detect", "x.npy", "--calibration", "site.json", "--maps", "maps.png")
        assert (ran.code, "red where a value fits the model less" in ran.err) == (0, True)
        assert image.open("maps.png").width > 300
