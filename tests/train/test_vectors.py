"""Rows of numbers from a file to a finished run: what is learnt, what is said, and what is refused."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.commands import Command
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import Observation
from vae_train import bounds, data, networks, pixels, run_folder, train, unusual
from vae_train.cli import main
from vae_train.config import PRESETS, Place, vector
from vae_train.rows import prepared

D = 6
HERE = ["--device", "cpu", "--threads", 1]


def linear_gaussian(n: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """x = W z + mean + 0.3 eps with two latents: float32 rows [n, 6], and their entropy in nats."""
    random = np.random.default_rng(7)
    weights, mean = random.normal(size=(D, 2)), random.normal(size=D)
    covariance = weights @ weights.T + 0.09 * np.eye(D)
    entropy = 0.5 * (D * math.log(2 * math.pi * math.e) + np.linalg.slogdet(covariance)[1])
    x = np.random.default_rng(seed).multivariate_normal(mean, covariance, size=n)
    return x.astype(np.float32), float(entropy)


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 such rows in a file."""
    path = tmp_path_factory.mktemp("vectors") / "readings.npy"
    np.save(path, linear_gaussian(4000)[0])
    return path


@pytest.fixture(scope="module")
def run(readings: Path) -> Path:
    """A run of the preset for rows, of 60 epochs."""
    out = readings.parent / "run"
    config = vector(columns=D, rows=4000).replace(dataset=str(readings), epochs=60)
    train.train(config, out, Place(Path(), False, "cpu", 1), "vae-train")
    return out


def test_the_elbo_comes_close_to_the_entropy(run: Path) -> None:
    """No model's mean log-density is above minus the entropy of what made the rows; a trained VAE is near, from below.

    The best diagonal Gaussian, which knows no correlations, is far below.
    """
    x, entropy = linear_gaussian(4000)
    found = json.loads((run / "evaluation.json").read_text())
    elbo = found["figures"]["elbo"]
    assert -entropy - 0.3 < elbo["mean"] < -entropy + 3 * elbo["standard_error"]
    diagonal = -0.5 * (D * math.log(2 * math.pi * math.e) + np.log(x.var(axis=0)).sum())
    assert elbo["mean"] > diagonal + 2
    assert (found["observations"], found["dataset"]) == (int(data.in_test(x.astype(np.float64)).sum()), "readings.npy")
    assert found["binarisation"].startswith("columns in their units, sha256 ")


def test_the_run_says_what_it_observes(run: Path) -> None:
    """Kind, shape and no range in config.json, from which the run is read; the kept rows as float32."""
    stored = json.loads((run / "config.json").read_text())
    assert stored["observation"] == {"kind": "vector", "shape": [D], "range": None}
    loaded = run_folder.load(run)
    assert loaded.observation == Observation("vector", (D,), None)
    assert (loaded.probe.shape, loaded.probe.dtype) == ((64, D), np.float32)
    assert loaded.vae.sample(5).shape == (5, D)


def test_the_report_has_columns_and_no_grids(run: Path) -> None:
    """Histograms and correlations in place of pictures, and rows throughout."""
    page = (run / "report.html").read_text()
    assert "<h2>Columns</h2>" in page
    assert "<h2>Correlations</h2>" in page
    assert "<h2>Samples</h2>" not in page
    assert "nats per row" in page
    assert "image" not in page.split("</style>")[1].replace("data:image/png", "").lower()
    assert {path.name for path in run.glob("*.png")} == {
        "latents.png",
        "kl.png",
        "scores.png",
        "curves.png",
        "columns.png",
        "correlations.png",
    }


def test_unusual_rows_are_named_with_the_column_that_makes_them_so(run: Path, readings: Path) -> None:
    """Three rows in which one column was moved come first, in their units; the page has them."""
    loaded = run_folder.load(run)
    rows = data.load(loaded.config, Path())
    test = rows.test.clone()
    moved = {7: 2, 30: 0, 41: 4}
    for i, column in moved.items():
        test[i, column] += 30
    found = unusual.find(loaded.vae, dataclasses.replace(rows, test=test), 5)
    with torch.no_grad():
        elbo = torch.stack([loaded.vae.elbo(test) for _ in range(16)]).mean(dim=0)
    order = torch.argsort(elbo)[:3].tolist()
    assert set(order) == set(moved)
    assert found.column[:3] == [moved[i] for i in order]
    assert found.names == [f"column {i}" for i in range(D)]
    known = rows.preprocessing["columns"]
    mean, scale = (np.array([column[name] for column in known]) for name in ("mean", "scale"))
    np.testing.assert_allclose((found.values[:3] - mean) / scale, test[order], atol=1e-5)
    np.testing.assert_allclose(found.elbo[:3], elbo[order], rtol=0.05)
    assert (np.diff(found.elbo) >= 0).all()
    assert (found.below[:3] > 50).all()
    page = (run / "report.html").read_text().split("<h2>Scores</h2>")[1].split("<h2>")[0]
    assert page.count("<tr>") == 1 + 10
    first = unusual.find(loaded.vae, rows)
    least = f"column {first.column[0]} ({first.below[0]:,.1f})"
    assert f"{first.elbo[0]:,.2f}</th><td>{first.kl[0]:,.2f}</td><td>{least}</td>" in page


def test_the_commands_work_on_rows(command: Command, readings: Path, tmp_path: Path) -> None:
    """Training with its default preset, TensorBoard, evaluate, compare and report: in rows, in exit code 0."""
    out = tmp_path / "run"
    made = command(main, "--dataset", readings, "--epochs", 1, "--tensorboard", "--out", out, *HERE)
    assert made.code == 0, made.err
    rows = int((~data.in_test(np.load(readings).astype(np.float64))).sum())
    assert f"{rows:,} rows to train on in " in made.err
    assert f"{D} columns, each scaled to mean 0 and spread 1" in made.err
    assert "preset vector" in made.err
    assert "nats per row" in made.out
    assert "nats per row, columns in their units" in made.out
    for words in (("evaluate", out, "-K", 5), ("report", out), ("compare", out, out)):
        result = command(main, *words, *HERE)
        assert result.code == 0, result.err
        assert "image" not in result.out.replace(str(out), "")


@pytest.mark.usefixtures("without_report")
def test_a_stopped_training_of_rows_goes_on(readings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an epoch, resumed: the weights of a training that was not stopped, to the last bit."""
    config = PRESETS["vector"].replace(dataset=str(readings), epochs=2, hidden=(8,))
    place = Place(Path(), False, "cpu", 1)
    train.train(config, tmp_path / "whole", place, "vae-train")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train._Between, "_save", stop_after(train._Between._save))
        train.train(config, tmp_path / "stopped", place, "vae-train")
    train.resume(tmp_path / "stopped", place)
    whole, resumed = (run_folder.load(tmp_path / name).vae.state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def stop_after(save: Any) -> Any:
    """A checkpoint is written, and the training is interrupted."""

    def saved(between: Any) -> None:
        save(between)
        raise KeyboardInterrupt

    return saved


def load(path: Path, **settings: Any) -> tuple[data.Data, list[str]]:
    """The rows, and what is said of them."""
    said: list[str] = []
    config = PRESETS["vector"].replace(dataset=str(path), **settings)
    return data.load(config, Path("absent"), False, pytest.fail, said.append), said


def test_rows_are_split_and_labelled_as_images_are(tmp_path: Path) -> None:
    """A tenth by the rows' bytes, equal rows on one side; `y` has the classes."""
    x = linear_gaussian(500)[0]
    np.savez(tmp_path / "a.npz", x=np.concatenate([x, x]), y=np.arange(1000) % 2)
    rows, said = load(tmp_path / "a.npz")
    assert said == []
    whole = np.concatenate([x, x]).astype(np.float64)
    test = data.in_test(whole)
    mean, spread = whole[~test].mean(axis=0), whole[~test].std(axis=0)
    for part, got in ((test, rows.test), (~test, rows.train)):
        np.testing.assert_allclose(got.numpy(), (whole[part] - mean) / spread, rtol=1e-5, atol=1e-6)
    assert rows.names == ["0", "1"]
    assert rows.preprocessing["split"] == "a tenth, by the sha256 of the values"


def test_columns_are_scaled_whatever_their_units(tmp_path: Path) -> None:
    """Spreads from 1e-6 to 1e9 and integers that float32 does not hold become mean 0 and spread 1, said in the run."""
    x = np.random.default_rng(3).normal(size=(600, 4)) * [1e-6, 1, 1e9, 50] + [0, 1e4, 0, 2**40]
    x[:, 3] = x[:, 3].round()
    np.save(tmp_path / "a.npy", x)
    rows, said = load(tmp_path / "a.npy")
    assert said == []
    np.testing.assert_allclose(rows.train.mean(dim=0), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(rows.train.std(dim=0, correction=0), np.ones(4), rtol=1e-5)
    scales = [column["scale"] for column in rows.preprocessing["columns"]]
    np.testing.assert_allclose(scales, [1e-6, 1, 1e9, 50], rtol=0.2)
    assert [column["name"] for column in rows.preprocessing["columns"]] == [f"column {i}" for i in range(4)]


@pytest.mark.usefixtures("without_report")
def test_a_scale_changes_no_model(tmp_path: Path) -> None:
    """The same rows in other units: the same weights, and an ELBO that differs by the logarithm of the units alone."""
    x = linear_gaussian(900)[0].astype(np.float64)
    units = np.array([1000, 1, 0.01, 1, 1, 64])
    runs = []
    for name, rows in (("a", x), ("b", x * units)):
        np.save(tmp_path / f"{name}.npy", rows)
        config = PRESETS["vector"].replace(dataset=str(tmp_path / f"{name}.npy"), epochs=2, hidden=(8,))
        config = config.replace(held_out="last")  # by their bytes other rows would be kept
        train.train(config, tmp_path / name, Place(Path(), False, "cpu", 1), "vae-train")
        runs.append(run_folder.load(tmp_path / name))
    elbo = [run.evaluation["figures"]["elbo"]["mean"] for run in runs]
    assert elbo[0] - elbo[1] == pytest.approx(np.log(units).sum(), abs=1e-3)
    torch.testing.assert_close(runs[0].vae.likelihood.logsigma, runs[1].vae.likelihood.logsigma, rtol=1e-3, atol=1e-4)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """Constant columns by name and value; few rows."""
    x = linear_gaussian(900)[0]
    x[:, 4] = 7
    np.save(tmp_path / "a.npy", x)
    rows, said = load(tmp_path / "a.npy")
    assert said == ["constant columns are left out: column 4 (7)"]
    assert rows.observation == Observation("vector", (5,), None)
    assert [column["name"] for column in rows.preprocessing["columns"]] == [f"column {i}" for i in (0, 1, 2, 3, 5)]
    np.save(tmp_path / "b.npy", linear_gaussian(150)[0])
    assert load(tmp_path / "b.npy")[1][0].endswith(" rows to train on are few: some hundreds make figures that mean "
                                                   "something")  # fmt: skip


def test_integers_and_booleans_are_numbers(tmp_path: Path) -> None:
    """Without a word, but for the likelihood that follows from columns of 0 and 1: mixed, or of them alone Bernoulli.

    One that is named takes them as it does; a column that another value was kept for testing in is none.
    """
    random = np.random.default_rng(0).integers(2, 9, (400, 4))
    values = {"none": random, "all": random > 4, "some": np.where([True, False, False, True], random > 4, random)}
    values["one"] = values["some"].copy()
    values["one"][399, 3] = 2
    todo = "--likelihood gaussian takes them as real numbers"
    some = "2 columns of 0 and 1 are taken as such, the likelihood is mixed: column 0, column 3; "
    one = "a column of 0 and 1 is taken as such, the likelihood is mixed: column 0; "
    all_ = "all columns hold 0 and 1 alone, the likelihood is bernoulli; "
    expected = {
        "none": ([], "gaussian", (0, 0)),
        "all": ([all_ + todo], "bernoulli", (1, 1)),
        "some": ([some + todo], "mixed", (1, 1)),
        "one": ([one + todo], "mixed", (1, 0)),
    }
    for name, (lines, likelihood, as_they_are) in expected.items():
        np.save(tmp_path / "a.npy", values[name])
        rows, said = load(tmp_path / "a.npy", held_out="last")
        assert (said, rows.train.dtype, rows.likelihood) == (lines, torch.float32, likelihood)
        assert rows.observation.range == ((0, 1) if likelihood == "bernoulli" else None)
        scales = [rows.preprocessing["columns"][i]["scale"] == 1 for i in (0, 3)]
        assert tuple(scales) == as_they_are
        rows, said = load(tmp_path / "a.npy", held_out="last", likelihood="gaussian")
        assert said == []
        assert all(column["scale"] != 1 for column in rows.preprocessing["columns"])


def refused(path: Path, **settings: Any) -> str:
    """The one line in which these rows are refused."""
    with pytest.raises((InputError, ArgumentError)) as caught:
        load(path, **settings)
    return str(caught.value)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """NaN and infinities by row and column; text by its type."""
    x = linear_gaussian(100)[0]
    x[42, 3] = np.nan
    np.save(tmp_path / "a.npy", x)
    assert refused(tmp_path / "a.npy").startswith(f"missing value (NaN): {tmp_path / 'a.npy'}[42], column 3; ")
    np.save(tmp_path / "b.npy", np.full((50, 2), "x"))
    assert "<U1" in refused(tmp_path / "b.npy")


def test_a_likelihood_that_does_not_go_with_the_rows_is_refused(tmp_path: Path) -> None:
    """Bernoulli needs 0 and 1, and then has that range; 8-bit levels are for images; a resnet too."""
    x = linear_gaussian(200)[0]
    np.save(tmp_path / "a.npy", x)
    line = refused(tmp_path / "a.npy", likelihood="bernoulli")
    assert line.startswith("values other than 0 and 1 under a Bernoulli likelihood: ")
    assert line.endswith("; add --likelihood gaussian")
    assert "8-bit levels" in refused(tmp_path / "a.npy", likelihood="discretised-logistic")
    np.save(tmp_path / "b.npy", x > 0)
    rows, _ = load(tmp_path / "b.npy", likelihood="bernoulli")
    assert rows.observation == Observation("vector", (D,), (0.0, 1.0))
    assert rows.observed_test(binary=True) is rows.test
    assert torch.equal(pixels.binarise(rows.train, torch.Generator()), rows.train)
    with pytest.raises(ArgumentError, match="a resnet is for images"):
        networks.build(PRESETS["resnet"], (D,))
    for setting in ({"image_size": (8, 8)}, {"channels": 1}):
        assert "an array's observations are not resized" in refused(tmp_path / "a.npy", **setting)


@pytest.mark.usefixtures("without_report")
def test_binary_rows_have_bits_per_dimension(tmp_path: Path) -> None:
    """A run under Bernoulli: its ELBO is of a probability, and near the entropy of independent fair coins."""
    np.save(tmp_path / "coins.npy", np.random.default_rng(0).integers(0, 2, (2000, 20), dtype=np.int8))
    config = PRESETS["vector"].replace(
        dataset=str(tmp_path / "coins.npy"), likelihood="bernoulli", epochs=3, hidden=(8,)
    )
    train.train(config, tmp_path / "run", Place(Path(), False, "cpu", 1), "vae-train")
    loaded = run_folder.load(tmp_path / "run")
    elbo = loaded.evaluation["figures"]["elbo"]["mean"]
    assert bounds.bits_per_dimension(elbo, 20) == pytest.approx(1, abs=0.05)
    assert loaded.evaluation["binarisation"].startswith("values as they are, ")


@pytest.mark.parametrize("normal", [None, "0"])
def test_millions_of_rows_are_scaled_in_their_own_memory(
    peak_memory: Callable[[Callable[[], object]], int], normal: str | None
) -> None:
    """At most 2.5 times the float32 array is held at a time, of which the float64 values are twice."""
    x = np.random.default_rng(0).normal(5, 2, (60_000, 20))
    x[:, 7] = 3
    labels = None if normal is None else np.where(np.arange(60_000) % 3, "0", "1")
    config = PRESETS["vector"].replace(dataset="x", label="y", normal=normal)
    names = [f"column {i}" for i in range(20)]
    made = []
    peak = peak_memory(lambda: made.append(prepared(config, "x", names, x.copy(), labels, lambda _: None)))
    assert peak < 2.5 * x.nbytes / 2
    found = x if labels is None else x[labels == "0"]
    test = data.in_test(found) if normal is None else data.in_test(found, 0.5, 0)
    alive = np.delete(found, 7, axis=1)
    mean, scale = alive[~test].mean(axis=0), alive[~test].std(axis=0)
    for part, got in ((~test, made[0].train), (test, made[0].test)):
        np.testing.assert_allclose(got, (alive[part] - mean) / scale, atol=1e-6)
