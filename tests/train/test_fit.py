"""Training from Python: what `vae_train.fit` takes and gives, and that it prints nothing."""

import base64
import dataclasses
import json
import math
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vae_train
from support.runs import interrupted
from vae_export import exporter
from vae_runtime import VAE as RuntimeVAE
from vae_runtime import extras
from vae_runtime.errors import ArgumentError, EnvironmentUnfit, InputError, ResourceError
from vae_train import data, results, run_folder
from vae_train.cli import main
from vae_train.config import PART_OF
from vae_train.given import Arrays
from vae_train.listener import silent
from vae_train.settings import Settings

Command = Callable[..., Any]
RNG = np.random.default_rng(0)
IMAGES = (RNG.random((200, 8, 8)) * np.linspace(0, 1, 8)).astype(np.float32)  # brighter to the right
ROWS = RNG.normal([5.0, -300.0, 0.0], [1.0, 20.0, 0.1], (300, 3))
SMALL: Settings = {"hidden": 8, "latent_dim": 2, "epochs": 2, "batch_size": 64}
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::vae_train.TrainingWarning"),
]


@pytest.fixture(autouse=True)
def without_pictures(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take seconds, and are not looked at here but for that of `tiny_run`."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)


def weights(run: vae_train.Run) -> dict[str, torch.Tensor]:
    """By name, on the CPU."""
    return {name: value.cpu() for name, value in run.vae.state_dict().items()}


def equal(a: vae_train.Run, b: vae_train.Run) -> bool:
    """Whether two runs have the same weights, bit for bit."""
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def test_arrays_become_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A VAE of their shape, metrics of each epoch, test figures of the test array; nothing on stdout or stderr."""
    rows: list[dict[str, float]] = []
    out = tmp_path / "run"
    run = vae_train.fit(IMAGES[:150], IMAGES[150:], out=out, callback=rows.append, name="noise", seed=3, **SMALL)
    assert capsys.readouterr() == ("", "")
    assert (run.path, run.config.preset, run.config.optimiser.seed) == (out, "tutorial", 3)
    assert run.observation.shape == (1, 8, 8)
    assert [row["epoch"] for row in rows] == [1, 2] and run.metrics == rows
    assert (run.evaluation["observations"], run.evaluation["dataset"]) == (50, "noise")
    assert run.vae.sample(3).shape == (3, 1, 8, 8)
    assert re.fullmatch(
        r"<vae_train.Run '.*/run': noise, preset tutorial, test ELBO -[\d.]+ nats per image>", repr(run)
    )


def test_a_run_by_fit_is_one_of_the_command(command: Command, tmp_path: Path) -> None:
    """The same file, settings and seed give the same weights, figures and files, but for how they were made."""
    path = tmp_path / "images.npy"
    np.save(path, IMAGES)
    words = ("--hidden", 8, "--latent-dim", 2, "--epochs", 2, "--batch-size", 64, "--device", "cpu")
    done = command(main, "--dataset", path, "--out", tmp_path / "a", *words)
    assert done.code == 0, done.err
    run = vae_train.fit(path, out=tmp_path / "b", device="cpu", **SMALL)
    other = vae_train.load_run(tmp_path / "a")
    assert equal(run, other)
    assert run.evaluation == other.evaluation
    assert {p.name for p in run.path.iterdir()} == {p.name for p in other.path.iterdir()}
    settings = [json.loads((folder / "config.json").read_text()) for folder in (run.path, other.path)]
    for each in settings:
        del each["provenance"]["command"]
    assert settings[0] == settings[1]
    said = "hidden=(8,), latent_dim=2, epochs=2, batch_size=64"
    assert run.provenance["command"] == f"vae_train.fit('images.npy', {said})"
    in_memory = vae_train.fit(IMAGES, device="cpu", **SMALL)  # whose split is by content too
    assert equal(in_memory, run)
    shown = command(main, "evaluate", in_memory.path, "-K", 3, "--dataset", path)
    assert shown.code == 0, shown.err
    assert shown.out == f"{vae_train.evaluate(in_memory, 3)}\n"


TYPES: dict[str, Any] = {
    "tensor": torch.from_numpy(IMAGES),
    "uint8": (IMAGES * 255).astype(np.uint8),
    "uint16": (IMAGES * 4095).astype(np.uint16),
    "bool": IMAGES > 0.3,
    "float64": IMAGES.astype(np.float64),
    "[n, C, H, W]": IMAGES[:, None],
}


@pytest.mark.parametrize("kind", TYPES)
def test_images_are_what_a_file_of_them_would_be(kind: str, tmp_path: Path) -> None:
    """Levels, booleans and floats, tensors and arrays: the precision, the scale and the split of such a file."""
    given, path = Arrays(TYPES[kind]), tmp_path / "x.npy"
    np.save(path, np.asarray(TYPES[kind]))
    config = vae_train.presets()["tutorial"].replace(dataset=str(path), likelihood="gaussian")
    settings = given.fitted(config, silent)
    assert settings == data.fitted(config)
    here, there = given.load(settings, silent, silent), data.load(settings, tmp_path)
    assert torch.equal(here.train, there.train) and torch.equal(here.test, there.test)
    assert (here.observation, here.preprocessing) == (there.observation, there.preprocessing)


def test_rows_are_named_and_scaled_by_what_is_trained_on() -> None:
    """An array's columns have the names that are given; mean and spread are those of the training rows alone."""
    run = vae_train.fit(ROWS[:200], ROWS[200:], columns=("a", "b", "c"), **SMALL)
    assert run.config.preset == "vector" and run.observation.shape == (3,)
    columns = run.settings.preprocessing["columns"]
    assert [column["name"] for column in columns] == ["a", "b", "c"]
    np.testing.assert_allclose([column["mean"] for column in columns], ROWS[:200].mean(axis=0))
    np.testing.assert_allclose([column["scale"] for column in columns], ROWS[:200].std(axis=0))
    assert run.settings.preprocessing["split"] == "given"


@pytest.mark.parametrize("shape", [(256, 2), (40, 2, 16)], ids=["rows in order", "windows"])
def test_series_are_windows(shape: tuple[int, ...]) -> None:
    """Rows in order are cut, windows are taken as they are; the test part is the one that is given."""
    x = RNG.normal(size=shape)
    run = vae_train.fit(x, x[:32], window=16, **SMALL)
    assert run.config.preset == "series" and run.observation.shape == (2, 16)
    assert run.evaluation["observations"] == (17 if len(shape) == 2 else 32)


def photos(folder: Path, images: np.ndarray) -> Path:
    """A folder of these images, levels as PNG files, in two classes."""
    for number, image in enumerate(images):
        path = folder / ("even", "odd")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def table(path: Path, rows: np.ndarray) -> Path:
    """A table of these rows."""
    path.write_text("a,b,c\n" + "".join(f"{a!r},{b!r},{c!r}\n" for a, b, c in rows.tolist()))
    return path


def saved(path: Path, x: np.ndarray) -> Path:
    """A file of this array."""
    np.save(path, x)
    return path


@pytest.mark.parametrize("kind", ["folder", "array", "rows", "table", "series", "windows"])
def test_paths_to_train_and_to_test_on(tmp_path: Path, command: Command, kind: str) -> None:
    """All of the one is trained on and all of the other tested on; the command does the same, and finds both again."""
    levels = (IMAGES * 255).astype(np.uint8)
    made: dict[str, tuple[Callable[[Path, np.ndarray], Path], np.ndarray, int]] = {
        "folder": (photos, levels, 30),
        "array": (lambda path, x: saved(path.with_suffix(".npy"), x), levels, 30),
        "rows": (lambda path, x: saved(path.with_suffix(".npy"), x), ROWS, 30),
        "table": (lambda path, x: table(path.with_suffix(".csv"), x), ROWS, 30),
        "series": (lambda path, x: table(path.with_suffix(".csv"), x), ROWS, 23),
        "windows": (lambda path, x: saved(path.with_suffix(".npy"), x), ROWS[:296].reshape(-1, 3, 8), 5),
    }
    save, x, tested = made[kind]
    kept = x[-5:] if kind == "windows" else x[-30:]
    train, test = save(tmp_path / "train", x[: -len(kept)]), save(tmp_path / "test", kept)
    settings: Settings = {**SMALL, "window": 8} if kind in ("series", "windows") else SMALL
    run = vae_train.fit(train, test, out=tmp_path / "run", **settings)
    assert run.evaluation["observations"] == tested
    assert run.settings.preprocessing["split"] == "given"
    words = ["--dataset", train, "--test", test, "--out", tmp_path / "other", "--hidden", 8, "--latent-dim", 2]
    words += ["--epochs", 2, "--batch-size", 64, *(["--window", 8] if "window" in settings else [])]
    done = command(main, *words)
    assert done.code == 0, done.err
    assert equal(vae_train.load_run(tmp_path / "other"), run)
    assert vae_train.load_run(tmp_path / "run").evaluate(2).observations == tested
    if kind == "table":
        np.testing.assert_allclose(run.settings.preprocessing["columns"][0]["mean"], ROWS[:-30, 0].mean())
    if kind == "folder":
        assert run.settings.preprocessing["unreadable"] == 0


def test_no_bundle_names_the_folders_of_data() -> None:
    """Neither of what was trained on nor of what was tested on."""
    config = vae_train.presets()["tutorial"].replace(dataset="/home/me/x.npy", test="/home/me/y.npy")
    assert exporter._without_folders(config) == config.replace(dataset="x.npy", test="y.npy")


def test_what_is_tested_on_is_of_the_same_kind(tmp_path: Path) -> None:
    """A folder beside an array, other columns, and nothing at all."""
    rows = saved(tmp_path / "rows.npy", ROWS)
    for test, words in (
        (photos(tmp_path / "photos", (IMAGES[:20] * 255).astype(np.uint8)), "test data of another kind: "),
        (saved(tmp_path / "two.npy", ROWS[:, :2]), r"array of shape \[300, 2\]: "),
        (tmp_path / "absent", "test data not found: "),
    ):
        with pytest.raises(InputError, match=f"^{words}{test}"):
            vae_train.fit(rows, test, **SMALL)
    with pytest.raises(ArgumentError, match=r"^a named set has its own test images: digits; "):
        vae_train.fit("digits", rows, **SMALL)


def test_figures_are_measured_where_the_data_are(tmp_path: Path) -> None:
    """In memory as long as the run is; a run that is loaded says that they were, and takes them again."""
    x, test = IMAGES[:150], IMAGES[150:]
    run = vae_train.fit(x, test, out=tmp_path / "run", **SMALL)
    found = run.evaluate(samples=5)
    assert found.elbo == vae_train.Figure(**run.evaluation["figures"]["elbo"])
    assert found.log_likelihood.mean >= found.elbo.mean - 0.2
    assert run.evaluation["figures"]["log_likelihood_5"]["mean"] == found.log_likelihood.mean
    loaded = vae_train.load_run(tmp_path / "run")
    with pytest.raises(
        InputError, match=f"^the run's data were given in Python: {tmp_path}/run; give them to vae_train"
    ):
        loaded.evaluate(5)
    assert loaded.evaluate(5, test=test) == found
    with pytest.warns(vae_train.TrainingNote, match="not the run's own test observations") as caught:
        others = loaded.evaluate(5, test=x[:20])
    assert caught[0].filename == __file__
    assert others.observations == 20 and others.dataset == "given"
    assert run_folder.load(tmp_path / "run").evaluation["observations"] == 50


def test_binary_images_that_are_given_again_are_drawn_as_they_were(tmp_path: Path) -> None:
    """The literature draws those beyond 50,000 first; figures of the same test images are those of the training."""
    x = np.random.default_rng(1).integers(0, 256, (50_130, 4, 4), dtype=np.uint8)
    few: Settings = {**SMALL, "epochs": 1, "batch_size": 5000}
    runs = [vae_train.fit(x[:-30], x[-30:], out=tmp_path / name, seed=seed, **few) for seed, name in enumerate("ab")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", vae_train.TrainingNote)
        found = vae_train.evaluate(tmp_path / "a", 2, test=x[-30:])
    assert found == runs[0].evaluate(2)
    compared = vae_train.compare(tmp_path / "a", tmp_path / "b", test=x[-30:])
    assert compared.rows["elbo"][0] == found.elbo


@pytest.mark.parametrize("settings", [{}, {"stride": 3}, {"stride": 11}, {"missing": "drop"}], ids=str)
def test_rows_in_order_that_are_given_again_become_the_same_windows(tmp_path: Path, settings: Settings) -> None:
    """Beside a constant channel, and of one channel alone: with the figures of the training, and no note of others."""
    random = np.random.default_rng(2)
    x, test = (np.column_stack([random.normal(size=(n, 2)), np.full(n, 7.0)]) for n in (300, 60))
    if "missing" in settings:
        test[30, 0] = np.nan
    run = vae_train.fit(x, test, out=tmp_path / "run", window=8, **SMALL, **settings)
    one = vae_train.fit(x[:, 1], test[:, 1], out=tmp_path / "one", window=8, **SMALL, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", vae_train.TrainingNote)
        assert vae_train.evaluate(tmp_path / "run", 2, test=test) == run.evaluate(2)
        assert vae_train.evaluate(tmp_path / "one", 2, test=test[:, 1]) == one.evaluate(2)
    with pytest.raises(InputError, match=r"^too few rows for windows of 8: test of shape \[7, 3\]; "):
        vae_train.evaluate(tmp_path / "run", 2, test=test[:7])


def test_two_runs_are_compared() -> None:
    """The rows of the command, as figures."""
    a, b = (vae_train.fit(IMAGES, seed=seed, **SMALL) for seed in (0, 1))
    found = vae_train.compare(a, b, samples=3)
    assert list(found.rows) == ["elbo", "reconstruction", "kl", "log p(x) >= (K = 3)"]
    for one, other, paired in found.rows.values():
        assert paired.mean == pytest.approx(other.mean - one.mean, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epocs": 3}, "no such setting: epocs; did you mean epochs?"),
        ({"lr": -1.0}, "learning rate out of range: -1.0; give a positive lr"),
        ({"preset": "vector8"}, "unknown preset: vector8; give one of tutorial, "),
        ({"device": "gpu"}, "unknown device: gpu; give auto, cpu or cuda"),
        ({"dense": 4}, "dense is for layers that these networks do not have: mlp; leave it out"),
        ({"columns": ("a", "b")}, "names of columns do not fit: 2 for train of shape [200, 8, 8]; give one for each"),
        ({"window": 8, "held_out": "hash"}, "held_out hash is for rows: window 8; leave out held_out: "),
    ],
)
def test_wrong_settings_are_told_by_their_names(settings: dict[str, Any], words: str) -> None:
    """As a person writes them in Python, not as the command's options."""
    with pytest.raises(ArgumentError) as caught:
        vae_train.fit(IMAGES, **settings)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (["a", "b"], None, "list is no array of numbers: train; "),
        (IMAGES[:0], None, r"no observations: train of shape \[0, 8, 8\]; "),
        (IMAGES, IMAGES[:, :4], r"test observations of another shape: train \[200, 8, 8\], test \[200, 4, 8\]; "),
        (IMAGES * 255, None, r"pixels outside \[0, 1\] or NaN: arrays\[\d+\]; "),
        ((IMAGES * 255).astype(np.int64), None, "images of type int64: arrays; "),
        (IMAGES[0, 0], None, r"array of shape \[8\]: arrays; "),
        ("absent", None, "data not found: absent; "),
    ],
)
def test_wrong_data_are_told(train: Any, test: Any, words: str) -> None:
    """What is wrong, with which part, and what to do."""
    with pytest.raises(InputError, match=f"^{words}"):
        vae_train.fit(train, test, **SMALL)


def test_notes_and_warnings_are_pythons() -> None:
    """Of two categories, at the line that called; a listener hears them in their place."""
    with pytest.warns(vae_train.TrainingWarning) as caught:
        vae_train.fit(IMAGES**8, **SMALL)
    kinds = {str(each.message).partition(":")[0]: each for each in caught}
    few = kinds["few steps"]
    assert few.category is vae_train.TrainingWarning and few.filename == __file__
    assert str(few.message).endswith("give more epochs, 100 at least")
    grey = next(each for name, each in kinds.items() if name.startswith("grey levels"))
    assert grey.category is vae_train.TrainingNote
    heard: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_train.fit(IMAGES, listener=vae_train.Listener(warn=heard.append), **SMALL)
    assert [line.partition(",")[0].partition(":")[0] for line in heard] == [
        "grey levels are drawn as binary", "few steps",
    ]  # fmt: skip


def test_torch_is_left_as_it_was() -> None:
    """The number of threads and the random numbers of the caller."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    vae_train.fit(IMAGES, threads=2, **SMALL)
    assert torch.get_num_threads() == 1
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


class Encoder(nn.Linear):
    """mu and log sigma by one layer."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x [batch, 1, 8, 8]."""
        return super().forward(x.flatten(1)).chunk(2, dim=1)


def linear(shape: tuple[int, ...], latent_dim: int, out: int) -> tuple[nn.Module, nn.Module]:
    """Networks as a person defines them in a notebook."""
    pixels = math.prod(shape)
    return Encoder(pixels, 2 * latent_dim), nn.Sequential(nn.Linear(latent_dim, pixels), nn.Unflatten(1, shape))


def test_own_networks_are_a_function() -> None:
    """Or its name; one that cannot be found again by a name is refused."""
    run = vae_train.fit(IMAGES, model=linear, epochs=1, latent_dim=3, export_check=False)
    assert run.config.network.model == f"{__name__}:linear"
    assert isinstance(run.vae.encoder, Encoder)
    assert run.evaluate(3).elbo == vae_train.Figure(**run.evaluation["figures"]["elbo"])
    assert equal(vae_train.load_run(run.path, model=linear), run)
    with pytest.raises(
        ArgumentError, match=r"^run has networks of its own: .*:linear; if you trust that module, add model"
    ):
        vae_train.load_run(run.path)
    with pytest.raises(ArgumentError, match=r"^networks that cannot be made again: .*<lambda>; define it at the top"):
        vae_train.fit(IMAGES, model=lambda *given: linear(*given))


def test_data_frames_have_columns_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of numbers that are chosen, in that order, and a column of classes; a training of one goes on."""
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = pandas.DataFrame(ROWS, columns=["a", "b", "c"]).assign(kind=["x", "y", "x"] * 100)
    given = {"columns": ("c", "a"), "label": "kind", "normal": "x", **SMALL}
    run = vae_train.fit(frame[:200], frame[200:], **given)
    assert [column["name"] for column in run.settings.preprocessing["columns"]] == ["c", "a"]
    assert run.data is not None and run.data.names == ["x"]
    assert len(run.data.test) == (frame[200:].kind == "x").sum()
    np.testing.assert_allclose(
        run.settings.preprocessing["columns"][1]["mean"], frame[:200].a[frame[:200].kind == "x"].mean()
    )
    error = interrupted(monkeypatch, 2, frame[:200], frame[200:], **given)
    assert equal(vae_train.resume(error.folder, frame[:200], frame[200:]), run)
    with pytest.raises(InputError, match=r"^column kind holds no numbers: train "):
        vae_train.fit(frame)


def test_settings_are_those_of_config() -> None:
    """What `fit` takes by name is what a run records, but for the data's own name."""
    assert set(Settings.__annotations__) == set(PART_OF) - {"dataset", "test"}


def test_pictures(tiny_run: Path) -> None:
    """`figures` are the report's pictures, by name."""
    pictures = vae_train.load_run(tiny_run).figures()
    assert list(pictures) == ["samples", "reconstructions", "traversals", "latents", "kl", "scores", "curves"]
    assert all(isinstance(picture, Image.Image) for picture in pictures.values())


def test_pictures_of_a_temporary_run_are_drawn_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the end of each training, of which a person makes many; and once."""
    drawn: list[Path] = []

    def draw(folder: Path, run: vae_train.Run, observations: data.Data) -> None:
        drawn.append(folder)
        Image.new("L", (3, 2)).save(folder / "samples.png")
        (folder / results.report.PAGE).touch()

    monkeypatch.setattr(results.report, "draw", draw)
    run = vae_train.fit(IMAGES, **SMALL)
    assert drawn == []
    assert run.figures()["samples"].size == (3, 2)
    assert "data:image/png;base64," in run._repr_html_()
    assert drawn == [run.path]


@pytest.mark.parametrize("kind", ["arrays", "a path", "temporary"])
def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It is a KeyboardInterrupt that names `resume`, which ends with the weights of a training without a break."""
    np.save(tmp_path / "x.npy", IMAGES)
    given = (tmp_path / "x.npy",) if kind == "a path" else (IMAGES[:150], IMAGES[150:])
    whole = vae_train.fit(*given, **SMALL)
    out = None if kind == "temporary" else tmp_path / "run"
    error = interrupted(monkeypatch, 4, *given, out=out, **SMALL)
    again = "" if kind == "a path" else ", train, test"
    assert str(error).endswith(f"; go on with: vae_train.resume('{error.folder}'{again})")
    assert equal(vae_train.resume(error.folder, *(() if kind == "a path" else given)), whole)


def test_arrays_are_needed_again_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of arrays says so where it is gone on with without them, or with others."""
    interrupted(monkeypatch, 4, IMAGES, out=tmp_path / "run", **SMALL)
    with pytest.raises(InputError, match=r"^the run's data were given in Python: .*/run; give them to vae_train"):
        vae_train.resume(tmp_path / "run")
    with pytest.raises(InputError, match=r"^images are not the run's: .*; give those"):
        vae_train.resume(tmp_path / "run", IMAGES[::-1])


def test_another_split_of_the_same_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test images would become training images; what goes on is said with the threads that it was begun with."""
    out = tmp_path / "run"
    error = interrupted(monkeypatch, 4, IMAGES[:150], IMAGES[150:], out=out, threads=1, **SMALL)
    assert str(error).endswith(f"; go on with: vae_train.resume('{out}', train, test, threads=1)")
    with pytest.raises(InputError, match=r"^images are not the run's: "):
        vae_train.resume(out, IMAGES[:140], IMAGES[140:])


def test_a_run_shows_itself_in_a_notebook(tiny_run: Path) -> None:
    """Its figures and two pictures, whole in themselves: no script, no address, and no colour that a theme hides."""
    run = vae_train.load_run(tiny_run)
    run.evaluation["figures"]["log_likelihood_7"] = {"num_samples": 7, "mean": -1234.5, "standard_error": 0.25}
    shown = run._repr_html_()
    elbo = run.evaluation["figures"]["elbo"]
    assert f"{elbo['mean']:,.2f} ± {elbo['standard_error']:,.2f}" in shown
    assert "log p(x) ≥ (K = 7)" in shown and "-1,234.50 ± 0.25" in shown
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert [base64.b64decode(data) for data in sources] == [
        (tiny_run / f"{name}.png").read_bytes() for name in ("curves", "samples")
    ]
    assert shown.count("src=") == 2
    assert not re.search(r"<script|https?:|[\s;\"]color:|#[0-9a-f]{3}", re.sub(r"base64,[^\"]+", "", shown))
    run.settings = dataclasses.replace(run.settings, config=run.config.replace(dataset="<b>&"))
    assert "&lt;b&gt;&amp;" in run._repr_html_()


def test_labels_and_a_bundle(tmp_path: Path) -> None:
    """Labels of the test part name the classes of its map; `export` gives a bundle that the runtime reads."""
    labels = ["dark" if image.mean() < 0.25 else "light" for image in IMAGES[150:]]
    run = vae_train.fit(IMAGES[:150], IMAGES[150:], test_labels=labels, **SMALL)
    assert run.data is not None and run.data.names == ["dark", "light"]
    assert run.data.test_labels.tolist() == [int(label == "light") for label in labels]
    assert run.export(tmp_path / "bundle").path == tmp_path / "bundle"
    assert RuntimeVAE.load(tmp_path / "bundle").sample(2, seed=0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encode": ("a",)}, "encode is for tables: arrays; "),
        ({"normal": "x"}, "normal is for tables: arrays; "),
        ({"held_out": "last"}, "held_out is for tables: arrays; "),
        ({"augment": ("turns",)}, "augment not known: turns; "),
    ],
)
def test_nothing_that_is_asked_for_is_left_undone(settings: dict[str, Any], words: str) -> None:
    """What does not go with images in memory is refused, and not passed over."""
    with pytest.raises(ArgumentError) as caught:
        vae_train.fit(IMAGES, **settings)
    assert str(caught.value).startswith(words)


def test_labels_go_with_arrays(tmp_path: Path) -> None:
    """A path has its own, and its own name; a path and an array are no pair."""
    path = saved(tmp_path / "x.npy", IMAGES)
    with pytest.raises(ArgumentError, match=r"^labels or a name beside a path: "):
        vae_train.fit(path, labels=range(200))
    with pytest.raises(ArgumentError, match=r"^a path to train on, and none to test on: ndarray; "):
        vae_train.fit(path, IMAGES)


def test_a_device_without_room_for_what_is_measured_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first tensors go to it, before a step."""

    def full(*given: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(data.Data, "observed_train", full)
    with pytest.raises(ResourceError, match=r"^out of memory: the networks or the batch; "):
        vae_train.fit(IMAGES, **SMALL)


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("fcntl", "training needs a POSIX system: "),
        ("torch", "training needs packages that are not installed: torch"),
        ("elsewhere", None),
    ],
)
def test_what_training_needs_is_named_where_fit_is_first_looked_up(
    monkeypatch: pytest.MonkeyPatch, absent: str, words: str | None
) -> None:
    """As fit itself would name it; what else is missing stays Python's own error."""
    monkeypatch.setitem(sys.modules, absent, None)
    monkeypatch.setitem(sys.modules, "vae_train.api", None)  # as where it cannot import that
    monkeypatch.setattr(extras, "_installed", lambda name: name != absent)
    with pytest.raises(EnvironmentUnfit if words else ModuleNotFoundError, match=words):
        _ = vae_train.fit
