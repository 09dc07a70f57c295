"""Plots of rows and series: what their lines show, and what is said where matplotlib is not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import bundles
from support.bundles import Forge
from vae_runtime import VAE, extras, latents
from vae_runtime import manifest as manifests
from vae_runtime.bundle import MANIFEST
from vae_runtime.cli import main

pytest.importorskip("matplotlib")

COLUMNS = [{"name": f"column {i} in $", "mean": 100.0 * i, "scale": 10.0**i} for i in range(12)]
SHAPES = {"rows": (12,), "series": (2, 8)}


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle of a model of 12 columns of many units, or of two channels of 8 steps; the folder is empty."""
    folder = bundles.linear(forge, "gaussian", SHAPES[request.param])
    columns = COLUMNS[: SHAPES[request.param][0]]
    manifest = json.loads((folder / MANIFEST).read_bytes()) | {"preprocessing": {"columns": columns}}
    (folder / MANIFEST).write_bytes(manifests.dump({name: manifest[name] for name in manifest if name != "sha256"}))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    vae = VAE.load(folder)
    np.save("x.npy", vae.sample(700, 3))
    np.save("z.npy", np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of each plot that is written."""
    from vae_runtime import plots

    kept, write = [], plots._write
    monkeypatch.setattr(plots, "_write", lambda path, figure, axes: (kept.append(axes), write(path, figure, axes)))
    return kept


def lines(axes: Any) -> np.ndarray:
    """What the coloured and the grey lines of an axes show, in any order; the line at 0 aside."""
    return np.array([line.get_ydata() for line in axes.get_lines() if len(line.get_ydata()) > 2])


def spreads(x: np.ndarray) -> np.ndarray:
    """Rows [n, 12] in spreads of their columns."""
    mean, scale = (np.array([column[name] for column in COLUMNS]) for name in ("mean", "scale"))
    return np.asarray((x - mean) / scale)


@pytest.mark.parametrize(
    ("call", "note"),
    [
        (["traverse", "x.npy", "--steps", "5"], ""),
        (["sample", "-n", "600", "--seed", "1"], "a plot shows the first 500 of 600"),
        (["reconstruct", "x.npy"], "a plot shows the first "),
        (["interpolate", "x.npy", "x.npy"], ""),
        (["decode", "z.npy"], ""),
    ],
    ids=["traverse", "sample", "reconstruct", "interpolate", "decode"],
)
def test_every_verb_that_makes_observations_draws_them(command, model: Path, call: list[str], note: str):
    """A PNG, and a word where not all are in it."""
    from PIL import Image

    result = command(main, "--bundle", model, *call, "-o", "p.png")
    assert result.code == 0, result.err
    assert (note in result.err) if note else ("a plot" not in result.err)
    with Image.open("p.png") as picture:
        levels = np.asarray(picture.convert("L"))
    assert min(levels.shape) > 200
    assert 0.005 < (levels < 250).mean() < 0.6  # lines on white


def test_lines_are_in_spreads_of_their_columns(command, model: Path, drawn: list[Any]):
    """A line for each column over the latent, or for each row over the columns; of series for each value or window."""
    vae = VAE.load(model)
    for call in (["traverse", "x.npy", "--steps", "5"], ["sample", "-n", "9", "--seed", "1"]):
        assert command(main, "--bundle", model, *call, "-o", "p.png").code == 0
    walked = latents.traverse(vae, np.load("x.npy"), 5)
    (traversal, sample), theta, x = drawn, walked.theta, vae.sample(9, 1)
    if vae.observation.kind == "vector":
        expected, found = spreads(theta[0]).T, lines(traversal[0])
        np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), rtol=1e-6)
        named = traversal[0].get_legend_handles_labels()[1]
        moving = np.argsort(-np.ptp(spreads(theta).reshape(-1, 12), axis=0))[:10]
        assert named == [COLUMNS[i]["name"].replace("$", r"\$") for i in moving]
        np.testing.assert_allclose(lines(sample[0]), spreads(x), rtol=1e-6)
    else:
        assert len(traversal) == 3 * 2, "an axes for each latent and channel"
        for i, axes in enumerate(traversal):
            np.testing.assert_allclose(lines(axes), theta[i // 2, :, i % 2], rtol=1e-6)
        for channel, axes in enumerate(sample):
            np.testing.assert_allclose(lines(axes), x[:, channel], rtol=1e-6)


def test_reconstructions_are_beside_what_was_measured(command, model: Path, drawn: list[Any]):
    """Points of each column in its own unit, or lines of each window."""
    vae = VAE.load(model)
    assert command(main, "--bundle", model, "reconstruct", "x.npy", "-o", "p.png").code == 0
    x = np.load("x.npy")
    theta, axes = vae.reconstruct(x), drawn[0]
    if vae.observation.kind == "vector":
        assert len(axes) == 12
        points = axes[4].get_lines()[1]
        np.testing.assert_allclose(points.get_xdata(), x[:500, 4])
        np.testing.assert_allclose(points.get_ydata(), theta[:500, 4])
    else:
        assert len(axes) == 6 * 2
        assert axes[2].get_title().startswith("x.npy[1], ")
        np.testing.assert_allclose(lines(axes[3]), [x[1, 1], theta[1, 1]])


def test_without_matplotlib_the_extra_is_named(command, model: Path, monkeypatch: pytest.MonkeyPatch):
    """In a line with exit code 6, and nothing is written."""
    monkeypatch.setattr(extras, "_installed", lambda name: name != "matplotlib")
    monkeypatch.setattr(extras, "requirements", {"plot": {"matplotlib": "matplotlib>=3.9"}}.__getitem__)
    result = command(main, "--bundle", model, "sample", "-o", "p.png")
    assert (result.code, Path("p.png").exists()) == (6, False)
    assert result.err.startswith("vae-infer: error: a plot needs packages that are not installed: matplotlib; install")
    assert "matplotlib>=3.9" in result.err
