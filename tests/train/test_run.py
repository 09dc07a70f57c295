"""The run folder: what training leaves behind, how it is read back, and what is refused."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import vae_train
from vae_runtime.errors import ArgumentError, BundleError, InputError
from vae_runtime.observation import Observation
from vae_train import bounds, checkpoints, data, metrics, results, run_folder, state, train
from vae_train.cli import main
from vae_train.config import PRESETS, Config, Place

Command = Callable[..., Any]
PICTURES = ["samples.png", "reconstructions.png", "latents.png", "curves.png"]
TINY = PRESETS["tutorial"].replace(hidden=(32,), latent_dim=4, epochs=2)  # the settings of tiny_run


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def read(path: Path) -> Any:
    """A JSON file's value."""
    return json.loads(path.read_bytes())


def load(root: Path) -> data.Data:
    """The images of tiny_run."""
    return data.load(TINY, root, download=False)


def place(root: Path) -> Place:
    """Where tiny_run was trained."""
    return Place(root, download=False, device="cpu")


def test_run_folder_has_what_it_promises(tiny_run: Path) -> None:
    """Settings, weights, metrics, test figures, probe, report and pictures, and no temporary file."""
    expected = {"config.json", "model.safetensors", "metrics.jsonl", "evaluation.json", "probe.npy", "report.html"}
    expected |= {"best.safetensors", "best.json", "fingerprint.npz", "best.npz"}
    found = {path.name for path in tiny_run.iterdir()}
    assert {name for name in found if not name.endswith(".png")} == expected
    assert found >= set(PICTURES)


def test_config_says_how_to_repeat_the_run(tiny_run: Path, digits_root: Path) -> None:
    """config.json holds every setting, the images' shape and sha256, how they were read, and the command."""
    settings = read(tiny_run / "config.json")
    assert settings["config"] == json.loads(json.dumps(dataclasses.asdict(TINY)))
    assert settings["observation"] == {"kind": "image", "shape": [1, 28, 28], "range": [0, 1]}
    assert settings["preprocessing"] == {"levels": "as they are", "split": "the set's own"}
    assert settings["data_sha256"] == load(digits_root).digest()
    assert settings["provenance"]["command"] == "vae-train --epochs 2"
    assert settings["provenance"]["torch"] == torch.__version__


def test_metrics_have_one_line_per_epoch(tiny_run: Path) -> None:
    """Each line names ELBOs, terms, seconds and images/s; the test ELBO is reconstruction - KL."""
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row.keys() == {field.name for field in dataclasses.fields(metrics.Epoch)}
        for part in ("train", "test"):
            assert row[f"{part}_elbo"] == pytest.approx(row[f"{part}_reconstruction"] - row[f"{part}_kl"], abs=1e-3)
            assert row[f"{part}_kl"] > 0
        assert 0 < row["gradient_norm"] <= row["largest_gradient_norm"]
        assert row["skipped_steps"] == 0
        assert row["observations_per_second"] == pytest.approx(1500 / row["seconds"])


def test_training_improves_the_elbo(tiny_run: Path) -> None:
    """The second epoch's test and train ELBO are higher than the first's."""
    first, second = run_folder.read_metrics(tiny_run)
    assert second["test_elbo"] > first["test_elbo"]
    assert second["train_elbo"] > first["train_elbo"]


def test_evaluation_names_its_protocol_and_repeats(tiny_run: Path, digits_root: Path) -> None:
    """evaluation.json names dataset, split, binarisation and prior, and its figures follow from weights and data."""
    evaluation = read(tiny_run / "evaluation.json")
    assert evaluation["dataset"] == "mnist"
    assert (evaluation["split"], evaluation["observations"], evaluation["prior"]) == ("test", 297, "standard-normal")
    assert "fixed draw" in evaluation["binarisation"]
    drawn = load(digits_root).observed_test(binary=True)
    terms = bounds.measure(run_folder.load(tiny_run).vae, drawn).terms
    for name, values in {"elbo": terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl}.items():
        figure = evaluation["figures"][name]
        assert figure["mean"] == pytest.approx(values.mean().item(), rel=1e-5)
        error = values.double().std().item() / 297**0.5
        assert figure["standard_error"] == pytest.approx(error, rel=1e-5)
        quantiles = np.quantile(values.double().numpy(), evaluation["quantiles"]["levels"])
        np.testing.assert_allclose(evaluation["quantiles"][name], quantiles, rtol=1e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_open(tiny_run: Path, name: str) -> None:
    """Each picture is a PNG of a sensible size that shows something."""
    with Image.open(tiny_run / name) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100
        assert len(np.unique(np.asarray(picture.convert("L")))) > 1


def test_probe_is_the_first_test_images(tiny_run: Path, digits_root: Path) -> None:
    """The probe keeps 64 real test images, as they are."""
    np.testing.assert_array_equal(run_folder.load(tiny_run).probe, load(digits_root).test[:64].numpy())


def test_load_gives_the_weights_back_bit_for_bit(tiny_run: Path, tmp_path: Path) -> None:
    """Weights survive reading, and writing them again gives the same file."""
    run = run_folder.load(tiny_run)
    stored = safetensors.torch.load_file(tiny_run / "model.safetensors")
    state = run.vae.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in state)
    assert run.config == TINY
    assert run.observation.shape == (1, 28, 28)
    run_folder.save_weights(tmp_path, run.vae)
    assert (tmp_path / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("position", [3, 40, 5000, -1])
def test_a_flipped_bit_in_the_weights_is_refused(copied: Path, position: int) -> None:
    """One changed bit anywhere in the weights makes the run damaged."""
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[position] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match=r"damaged.*model\.safetensors"):
        run_folder.load(copied)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "evaluation.json", "probe.npy"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    """A run without one of its files is refused by that file's name."""
    (copied / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        run_folder.load(copied)


@pytest.mark.parametrize("name", ["config.json", "evaluation.json", "probe.npy"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\x80", b"[]", b"null", b"{}", b"[" * 100_000, b'{"config": 3}'])
def test_garbage_is_refused(copied: Path, name: str, content: bytes) -> None:
    """Whatever stands in a file that should be settings, figures or images: a BundleError, no other exception."""
    (copied / name).write_bytes(content)
    with pytest.raises(BundleError):
        run_folder.load(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": [16]},
        {"hidden": []},
        {"hidden": 3},
        {"hidden": ["a"]},
        {"latent_dim": -1},
        {"latent_dim": 10**30},
        {"latent_dim": "x"},
        {"activation": "tanh"},
        {"activation": "gated"},
        {"architecture": "transformer"},
        {"architecture": "resnet"},
        {"likelihood": "gaussian"},
        {"likelihood": 3},
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(copied: Path, change: dict[str, Any]) -> None:
    """A config that cannot be, or that describes other networks than the weights, is a BundleError."""
    settings = read(copied / "config.json")
    settings["config"]["network"].update(change)
    (copied / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BundleError):
        run_folder.load(copied)


@pytest.mark.parametrize(
    "probe",
    [np.zeros((64, 1, 8, 8), np.uint8), np.zeros((64, 1, 28, 28), np.float64), np.zeros((0, 1, 28, 28), np.uint8)],
    ids=["shape", "type", "empty"],
)
def test_a_probe_that_is_not_64_images_of_the_model_is_refused(copied: Path, probe: np.ndarray) -> None:
    """The kept images must be levels, or float32 values, of the model's shape, else the run is damaged."""
    np.save(copied / "probe.npy", probe)
    with pytest.raises(BundleError):
        run_folder.load(copied)


def test_a_pickled_probe_is_never_executed(copied: Path) -> None:
    """A probe that holds pickled objects is refused."""
    np.save(copied / "probe.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(BundleError):
        run_folder.load(copied)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """Neither an empty folder nor a missing one nor a file is a run."""
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError) as caught:
            run_folder.load(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_seed_decides_the_weights(tiny_run: Path, digits_root: Path, tmp_path: Path, seed: int) -> None:
    """The same seed gives the same weights and figures again, to the last bit; another seed gives others."""
    out = tmp_path / "again"
    train.train(TINY.replace(seed=seed), out, place(digits_root), command="vae-train")
    same = seed == TINY.optimiser.seed
    for name in ("model.safetensors", "evaluation.json", "best.safetensors", "best.json", "samples.png"):
        assert ((out / name).read_bytes() == (tiny_run / name).read_bytes()) is same


def test_an_existing_run_is_never_overwritten(copied: Path, digits_root: Path) -> None:
    """Training into a folder that holds files is refused as wrong usage, and the folder stays as it was."""
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    with pytest.raises(ArgumentError, match="run folder exists") as caught:
        train.train(TINY, copied, place(digits_root), command="vae-train")
    assert caught.value.exit_code == 2
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def falling(config: Config, root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose second of three epochs is its best: the third is measured as worse than it is."""
    real = metrics.measure

    def measure(*given: Any) -> dict[str, float]:
        row = real(*given)
        return row if row["epoch"] < 3 else {**row, "test_elbo": row["test_elbo"] - 100}

    monkeypatch.setattr(metrics, "measure", measure)
    train.train(config.replace(epochs=3), out, place(root), command="vae-train")
    return out


def test_the_best_epoch_is_kept_beside_the_last(
    command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """best.safetensors has the weights of the epoch with the highest test ELBO, best.json its figures; both load."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    run = falling(TINY, digits_root, tmp_path / "run", monkeypatch)
    rows = run_folder.read_metrics(run)
    assert state.best(rows)["epoch"] == 2
    best, last = run_folder.load(run, best=True), run_folder.load(run)
    assert not torch.equal(best.vae.state_dict()["decoder.last.bias"], last.vae.state_dict()["decoder.last.bias"])
    drawn = load(digits_root).observed_test(binary=True)
    for loaded, row, fallen in ((best, rows[1], 0), (last, rows[2], 100)):
        measured = bounds.measure(loaded.vae, drawn).terms.elbo.mean().item()
        assert loaded.evaluation["figures"]["elbo"]["mean"] == pytest.approx(measured, rel=1e-6)
        assert row["test_elbo"] == pytest.approx(measured - fallen, rel=1e-6)
    words = ("evaluate", run, "-K", 3, "--data-root", digits_root, "--no-download", "--device", "cpu")
    before = (run / "evaluation.json").read_bytes()
    result = command(main, *words, "--best")
    assert result.code == 0, result.err
    assert (run / "evaluation.json").read_bytes() == before
    figures = read(run / "best.json")["figures"]
    assert f"{figures['log_likelihood_3']['mean']:.2f} +- " in result.out
    assert figures["elbo"] == best.evaluation["figures"]["elbo"]
    assert command(main, *words).out != result.out


def test_the_best_epoch_of_a_run_that_never_fell_is_its_last(tiny_run: Path) -> None:
    """Then both have equal weights and figures."""
    assert (tiny_run / "best.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()
    assert (tiny_run / "best.json").read_bytes() == (tiny_run / "evaluation.json").read_bytes()


@pytest.mark.parametrize("name", ["best.safetensors", "best.json"])
def test_a_best_epoch_that_is_damaged_leaves_the_last_as_it_is(copied: Path, name: str) -> None:
    """Its weights are tied to their figures as the last ones are; a file of it that is missing is named."""
    weights = bytearray((copied / "best.safetensors").read_bytes())
    weights[5000] ^= 1
    (copied / "best.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match=r"damaged.*best\.safetensors"):
        run_folder.load(copied, best=True)
    (copied / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        run_folder.load(copied, best=True)
    assert run_folder.load(copied).config == TINY


def test_networks_of_ones_own_are_made_only_where_they_are_trusted(copied: Path) -> None:
    """A run that names a module has it imported only where the caller names it too, and the error says how."""
    settings = read(copied / "config.json")
    settings["config"]["network"]["model"] = "antigravity:fly"
    (copied / "config.json").write_text(json.dumps(settings))
    for trusted in (None, "other:fly"):
        with pytest.raises(ArgumentError) as caught:
            run_folder.load(copied, trusted)
        what = f"other networks than {trusted}" if trusted else "networks of its own"
        assert str(caught.value) == (
            f"run has {what}: antigravity:fly; if you trust that module, add --model antigravity:fly"
        )
    assert "antigravity" not in sys.modules


def test_loaded_networks_are_in_evaluation_mode(tiny_run: Path) -> None:
    """Dropout of a person's networks is off in reports, figures and exports."""
    assert not any(module.training for module in run_folder.load(tiny_run).vae.modules())


def test_a_finished_run_outlives_what_fails_after_it(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last line cannot be printed, as into a pipe that is closed, the run stays whole."""

    def remove(folder: Path) -> None:
        shutil.rmtree(folder / "checkpoints")
        raise BrokenPipeError

    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    monkeypatch.setattr(checkpoints, "remove", remove)
    with pytest.raises(BrokenPipeError):
        train.train(TINY, tmp_path / "run", place(digits_root), command="vae-train")
    assert run_folder.load(tmp_path / "run").config == TINY


def test_own_images_are_named_without_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into figures, and so into bundles, has the data's name, not the path to it."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    path = tmp_path / "secret" / "images.npy"
    path.parent.mkdir()
    np.save(path, np.random.default_rng(0).integers(0, 256, (90, 1, 8, 8), dtype=np.uint8))
    config = TINY.replace(dataset=str(path), likelihood="gaussian")
    train.train(config, tmp_path / "run", place(tmp_path), command="vae-train")
    run = run_folder.load(tmp_path / "run")
    assert run.evaluation["dataset"] == "images.npy"
    assert "secret" not in json.dumps([run.evaluation, run.provenance, run.settings.preprocessing])
    vae_train.evaluate(tmp_path / "run", 2, data_root=tmp_path, device="cpu")
    np.save(path, np.random.default_rng(1).integers(0, 256, (90, 1, 8, 8), dtype=np.uint8))
    with pytest.raises(InputError) as caught:
        vae_train.evaluate(tmp_path / "run", 2, data_root=tmp_path, device="cpu")
    assert str(caught.value).startswith(f"test images are not the run's: {path}; ")


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "floor"), [("tutorial", -101.2), ("deep", -96.5)])
def test_presets_reach_their_figure(data_root: Path, tmp_path: Path, preset: str, floor: float) -> None:
    """Each preset at its defaults reaches its promised test ELBO on binarised MNIST, in nats."""
    train.train(PRESETS[preset], tmp_path / "run", Place(data_root, download=False), command="vae-train")
    assert read(tmp_path / "run" / "evaluation.json")["figures"]["elbo"]["mean"] >= floor


def test_a_run_of_the_first_release_is_read(tiny_run: Path, copied: Path, digits_root: Path) -> None:
    """Settings in one list, `image_shape`, figures of so many `images`, and nothing of what the network gave."""
    settings, evaluation = read(copied / "config.json"), read(copied / "evaluation.json")
    config = settings.pop("config")
    flat = {"preset": config["preset"], "binarise": True, "network": config["network"].pop("architecture")}
    for part in ("data", "network", "objective", "optimiser"):
        flat |= config[part]
    del settings["dataset_path"], settings["warnings"]
    settings |= {"config": flat, "image_shape": settings.pop("observation")["shape"]}
    (copied / "config.json").write_text(json.dumps(settings))
    (copied / "evaluation.json").write_text(json.dumps({"images": evaluation.pop("observations"), **evaluation}))
    (copied / "fingerprint.npz").unlink()
    lines = (copied / "metrics.jsonl").read_text().replace("observations_per_second", "images_per_second")
    (copied / "metrics.jsonl").write_text(lines)
    run = run_folder.load(copied)
    assert (run.config, run.observation) == (TINY, Observation.image((1, 28, 28)))
    assert (run.evaluation["observations"], run.fingerprint) == (297, None)
    vae_train.evaluate(copied, 2, data_root=digits_root, device="cpu")
    assert read(copied / "evaluation.json")["figures"]["elbo"] == evaluation["figures"]["elbo"]
    assert run_folder.read_metrics(copied) == run_folder.read_metrics(tiny_run)
