"""The command vae-train: what it writes and prints, its exit codes, and what it does without its extra."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vae_runtime import threads
from vae_train import results, run_folder
from vae_train.cli import cli, main
from vae_train.config import PART_OF, PRESETS

Command = Callable[..., Any]
DIGITS = ("--dataset", "digits", "--device", "cpu")
SMALL = (*DIGITS, "--hidden", 4, "--latent-dim", 2, "--batch-size", 1000, "--epochs", 1)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what follows a training, figures and report, which tests of settings do not look at."""
    monkeypatch.setattr(results, "finish", lambda *given: None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 colour pictures."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    for i, levels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 9, 11, 3), dtype=np.uint8)):
        Image.fromarray(levels).save(folder / f"{i}.png")
    return folder


def stored(run: Path) -> dict[str, Any]:
    """What config.json says."""
    values: dict[str, Any] = json.loads((run / "config.json").read_text())
    return values


def assert_one_line(err: str) -> None:
    """Stderr is exactly one error line that ends in advice."""
    assert re.fullmatch(r"vae-train: error: [^\n;]+; [^\n]+\n", err), err


def test_one_epoch_writes_a_run(command: Command, digits_root: Path, tmp_path: Path) -> None:
    """The command trains, prints its figures in nats and leaves a run that knows the command line."""
    out = tmp_path / "runs" / "first"
    result = command(
        main,
        *("--epochs", 1, "--hidden", "16,8", "--latent-dim", 2, "--seed", 5, "--device", "cpu"),
        *("--out", out, "--data-root", digits_root, "--no-download"),
    )
    assert result.code == 0, result.err
    settings = stored(out)
    network, optimiser = settings["config"]["network"], settings["config"]["optimiser"]
    assert (network["hidden"], network["latent_dim"]) == ([16, 8], 2)
    assert (optimiser["epochs"], optimiser["seed"]) == (1, 5)
    assert "--latent-dim 2" in settings["provenance"]["command"]
    elbo = json.loads((out / "evaluation.json").read_text())["figures"]["elbo"]
    bits = f"{-elbo['mean'] / (784 * math.log(2)):.3f} bits per dimension"
    assert f"test ELBO {elbo['mean']:.2f} +- {elbo['standard_error']:.2f} nats per image ({bits}), fixed" in result.out
    assert str(out) in result.out.splitlines()[-1]


OPTIONS: list[tuple[str, str, Any]] = [  # what is typed, the setting in config.json, its value there
    ("--preset tutorial", "activation", "relu"),
    ("--preset deep", "activation", "silu"),
    ("--preset gated", "activation", "gated"),
    ("--preset resnet --dense 8", "architecture", "resnet"),
    ("--epochs 2", "epochs", 2),
    ("--augment shifts,flips", "augment", ["shifts", "flips"]),
    ("--seed 9223372036854775807", "seed", 2**63 - 1),
    ("--likelihood gaussian", "likelihood", "gaussian"),
    ("--likelihood discretised-logistic", "likelihood", "discretised-logistic"),
    ("--likelihood gaussian --sigma value", "sigma", "value"),
    ("--latent-dim 3", "latent_dim", 3),
    ("--prior flow", "prior", "flow"),
    ("--hidden 6", "hidden", [6]),
    ("--hidden 6,5,4", "hidden", [6, 5, 4]),
    ("--preset resnet --dense 8 --blocks 3", "blocks", 3),
    ("--preset resnet --dense 9", "dense", 9),
    ("--samples 3", "samples", 3),
    ("--gradient total", "gradient", "total"),
    ("--gradient path", "gradient", "path"),
    ("--beta 0.25", "beta", 0.25),
    ("--beta 0", "beta", 0.0),
    ("--warm-up 0.5", "warm_up", 0.5),
    ("--free-bits 0.1", "free_bits", 0.1),
    ("--batch-size 700", "batch_size", 700),
    ("--lr 1e-3", "lr", 1e-3),
    ("--precision bfloat16", "precision", "bfloat16"),
]


@pytest.mark.parametrize(("words", "setting", "value"), OPTIONS, ids=[f"{row[0]} {row[1]}" for row in OPTIONS])
@pytest.mark.usefixtures("unmeasured")
def test_every_setting_reaches_the_run(command: Command, tmp_path: Path, words: str, setting: str, value: Any) -> None:
    """An option changes its setting in config.json, and no other than those typed; the rest is the preset's."""
    result = command(main, *SMALL, *words.split(), "--out", tmp_path / "run")
    assert result.code == 0, result.err
    config = stored(tmp_path / "run")["config"]
    assert config[PART_OF[setting]][setting] == value
    typed = {str(word)[2:].replace("-", "_") for word in (*SMALL, *words.split()) if str(word).startswith("--")}
    typed |= {"architecture"} & {setting}  # the preset's
    preset = json.loads(json.dumps(asdict(PRESETS[config["preset"]])))
    typed |= {"precision"} if preset["optimiser"]["precision"] == "auto" else set()  # a run records what it was
    assert {name for name, part in PART_OF.items() if config[part][name] != preset[part][name]} <= typed


def test_every_setting_has_an_option() -> None:
    """Settings without one are those that presets alone choose: the networks' architecture, and how long they train."""
    options = {parameter.name for parameter in cli.params}
    assert PART_OF.keys() - options == {"architecture", "activation", "steps", "patience"}
    covered = {setting for _, setting, _ in OPTIONS} | {
        "dataset",
        "image_size",
        "channels",
        "levels",
        "model",
        "columns",
        "encode",
        "label",
        "normal",
        "missing",
        "held_out",
        "window",
        "stride",
        "test",
    }
    assert PART_OF.keys() - covered == {"steps", "patience"}


@pytest.mark.parametrize(
    ("words", "preset", "shape"),
    [
        ("--hidden 4", "resnet-colour", [3, 8, 10]),
        ("--hidden 4 --channels 1", "tutorial", [1, 9, 11]),
        ("--hidden 4 --channels 3 --image-size 8", "resnet-colour", [3, 8, 8]),
        ("--hidden 4 --preset gated --image-size 7", "gated", [3, 7, 7]),
    ],
)
@pytest.mark.usefixtures("unmeasured")
def test_a_folder_of_images_is_trained_on(
    command: Command,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    preset: str,
    shape: list[int],
) -> None:
    """Size and channels as asked for; the preset by channels, the run folder by the folder's name, unless named."""
    monkeypatch.chdir(tmp_path)
    result = command(main, "--dataset", f"{photos.name}/", *words.split(), "--epochs", 1, "--device", "cpu")
    assert result.code == 0, result.err
    settings = stored(tmp_path / "runs" / f"my photos-{preset}")
    assert (settings["config"]["preset"], settings["observation"]["shape"]) == (preset, shape)
    data = settings["config"]["data"]
    assert [data["channels"], *data["image_size"]] == shape  # what was used, typed or not
    assert data["dataset"] == f"{photos.name}/"
    assert settings["preprocessing"]["levels"].startswith("upright, transparency over black")


def test_photos_may_be_fitted_to_another_shape_than_a_square(command: Command, photos: Path, tmp_path: Path) -> None:
    """Height comes first, as it does wherever a shape is printed, and a run that is read again has the same shape."""
    options = ("--preset", "tutorial", "--hidden", 4, "--epochs", 1, "--device", "cpu", "--out", tmp_path / "run")
    result = command(main, "--dataset", photos, "--image-size", "4x6", "--channels", 1, *options)
    assert result.code == 0, result.err
    assert run_folder.load(tmp_path / "run").observation.shape == (1, 4, 6)
    assert run_folder.read_settings(tmp_path / "run").config.data.image_size == (4, 6)


@pytest.mark.parametrize("size", ["0", "-3", "4x", "x4", "4x0", "4x5x6", "1e3", "big", "4,6"])
def test_a_size_that_is_none_is_wrong_usage(command: Command, photos: Path, size: str) -> None:
    """The message has the word that was typed, and how sizes are written."""
    result = command(main, "--dataset", photos, "--image-size", size)
    assert (result.code, result.out) == (2, "")
    assert size in result.err
    assert "16x24" in result.err


def test_photos_that_do_not_halve_are_fitted_to_another_size(command: Command, photos: Path, tmp_path: Path) -> None:
    """The size to which a folder's images are fitted is an option, which the message names."""
    result = command(main, "--dataset", photos, "--image-size", 12, "--device", "cpu", "--out", tmp_path / "run")
    line = "images do not halve: 12x12; choose an --image-size divisible by 8, or fewer numbers in --hidden"
    assert (result.code, result.out, result.err.splitlines()[-1]) == (2, "", f"vae-train: error: {line}")
    assert not (tmp_path / "run").exists()


DRAWN = "grey levels are drawn as binary, P(1) = level / 255"
NOISE = "which is mostly noise for images as grey as these"


@pytest.mark.parametrize(
    ("likelihood", "grey", "told"),
    [
        ("bernoulli", 0, ""),
        ("bernoulli", 30, f"vae-train: note: {DRAWN}; --likelihood discretised-logistic keeps them\n"),
        (
            "bernoulli",
            255,
            f"vae-train: warning: {DRAWN}, {NOISE}; --preset resnet-colour, made for photos, keeps them\n",
        ),
        ("gaussian", 255, ""),
    ],
)
@pytest.mark.usefixtures("unmeasured")
def test_grey_images_of_ones_own_become_binary_with_a_word(
    command: Command, tmp_path: Path, likelihood: str, grey: int, told: str
) -> None:
    """Where a likelihood of binary pixels gets grey levels, up to `grey`, one line names what keeps them.

    It is a warning where they are as grey as photos, and names the preset for these.
    """
    levels = np.random.default_rng(0).integers(0, 256, (60, 8, 8)) * max(grey, 1) // 255
    np.save(tmp_path / "own.npy", (levels * 255 if not grey else levels).astype(np.uint8))
    words = ("--likelihood", likelihood, "--epochs", 1, "--device", "cpu", "--out", tmp_path / "run")
    result = command(main, "--dataset", tmp_path / "own.npy", *words)
    assert result.code == 0, result.err
    assert told in result.err
    assert (DRAWN in result.err) is bool(told)


@pytest.mark.parametrize(("channels", "preset"), [(1, "tutorial"), (3, "resnet-colour")])
@pytest.mark.usefixtures("unmeasured")
def test_the_channels_of_an_array_choose_the_preset(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, preset: str
) -> None:
    """Grey: tutorial. Colour: resnet-colour, which needs sides that halve three times, and says so."""
    monkeypatch.chdir(tmp_path)
    arrays = np.random.default_rng(0).integers(0, 256, (60, channels, 12, 12), dtype=np.uint8)
    np.save("faces.npy", arrays)
    words = ("--dataset", "faces.npy", "--epochs", 1, "--device", "cpu")
    if channels == 3:
        result = command(main, *words)
        assert (result.code, result.out) == (2, "")
        assert result.err == (
            "vae-train: error: images do not halve: 12x12; choose sides divisible by 8, or fewer numbers in --hidden\n"
        )
        assert not Path("runs").exists()
    assert command(main, *words, "--hidden", 4).code == 0
    assert stored(Path("runs") / f"faces-{preset}")["config"]["preset"] == preset


NETWORKS = """
import torch
from torch import nn
class Encoder(nn.Module):
    def __init__(self, pixels, latent_dim):
        super().__init__()
        self.layer = nn.Linear(pixels, 2 * latent_dim)
    def forward(self, x):
        mu, logsigma = self.layer(x.flatten(1)).chunk(2, dim=1)
        return mu, logsigma
def make(image_shape, latent_dim, out):
    _, height, width = image_shape
    decoder = nn.Sequential(nn.Linear(latent_dim, out * height * width), nn.Unflatten(1, (out, height, width)))
    return Encoder(image_shape[0] * height * width, latent_dim), decoder
"""


def test_networks_of_ones_own(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--model trains them and reaches config.json; later commands take them only where it is given again."""
    monkeypatch.setattr(results.report, "draw", lambda *given: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets_of_test_cli.py").write_text(NETWORKS)
    model = ("--model", "nets_of_test_cli:make")
    try:
        result = command(main, *SMALL, *model, "--no-export-check", "--out", "run")
        assert result.code == 0, result.err
        assert stored(Path("run"))["config"]["network"]["model"] == model[1]
        assert "\nnetworks nets_of_test_cli:make: " in result.err
        words = ("evaluate", "run", "-K", 1, "--device", "cpu")
        refused = command(main, *words)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.endswith(f": {model[1]}; if you trust that module, add --model {model[1]}\n")
        assert command(main, *words, *model).code == 0
    finally:
        sys.modules.pop("nets_of_test_cli", None)


@pytest.mark.parametrize(
    ("words", "variable", "expected"), [("--threads 1", "2", 1), ("", "1", 1), ("--threads 2", "1", 2)]
)
@pytest.mark.usefixtures("unmeasured")
def test_threads(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, variable: str, expected: int
) -> None:
    """--threads goes before VAE_EDGE_THREADS; what is used is printed, set in PyTorch and kept in the run."""
    monkeypatch.setenv("VAE_EDGE_THREADS", variable)
    result = command(main, *SMALL, *words.split(), "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert stored(tmp_path / "run")["provenance"]["threads"] == torch.get_num_threads() == expected
    assert f"training on cpu, {expected} thread{'s' if expected > 1 else ''}, into" in result.err


@pytest.mark.usefixtures("unmeasured")
def test_without_a_word_on_threads_all_cores_are_used(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as this process may use."""
    monkeypatch.delenv("VAE_EDGE_THREADS", raising=False)
    assert command(main, *SMALL, "--out", tmp_path / "run").code == 0
    assert stored(tmp_path / "run")["provenance"]["threads"] == threads.available_cores()


def test_evaluate_adds_the_bound_to_the_run(
    command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path
) -> None:
    """`evaluate RUN -K 10` prints the bound with its standard error and keeps it beside the older figures."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = json.loads((run / "evaluation.json").read_text())
    result = command(main, "evaluate", run, "-K", 10, "--data-root", digits_root, "--no-download", "--device", "cpu")
    assert result.code == 0, result.err
    after = json.loads((run / "evaluation.json").read_text())
    bound = after["figures"].pop("log_likelihood_10")
    assert after == before
    assert bound["num_samples"] == 10
    assert math.isfinite(bound["standard_error"])
    assert bound["mean"] > before["figures"]["elbo"]["mean"]
    bits = f"{-bound['mean'] / (784 * math.log(2)):.3f} bits per dimension"
    assert f"K = 10)      {bound['mean']:.2f} +- {bound['standard_error']:.2f} ({bits})\n" in result.out
    again = command(main, "evaluate", run, "-K", 10, "--data-root", digits_root, "--no-download", "--device", "cpu")
    assert (again.code, again.out) == (0, result.out)


@pytest.mark.parametrize(
    ("code", "names", "arguments"),
    [
        (4, "imagenet", "--dataset imagenet"),
        (4, "{absent}", "--dataset {absent}"),
        (4, "an empty name", "--dataset="),
        (4, "{full}", "--dataset {full}"),
        (2, "digits", "--dataset digits --image-size 8"),
        (2, "--image-size", "--image-size 0"),
        (2, "channels", "--dataset {full} --channels 2"),
        (2, "--channels", "--channels 4"),
        (2, "'1', '3'", "--dataset {full} --channels 2"),
        (2, "No such option '--epoch'; use --epochs, or see 'vae-train --help'", "--epoch 3"),
        (2, "use --preset or --resume or ", "--prese 3"),
        (2, "--likelihood", "--likelihood poisson"),
        (2, "--samples", "--samples 0"),
        (2, "--samples 2", "--samples 2 --beta 2"),
        (2, "--samples 2", "--samples 2 --warm-up 1"),
        (2, "--gradient", "--gradient reinforce"),
        (2, "--beta", "--beta -1"),
        (2, "beta", "--beta nan"),
        (2, "free_bits", "--free-bits inf"),
        (2, "--precision", "--precision float16"),
        (2, "--blocks", "--blocks 0"),
        (2, "--dense", "--dense 0"),
        (2, "not_there", "--dataset digits --model not_there:make"),
        (2, "8x8", "--dataset digits --preset resnet --hidden 4,4,4,4"),
        (2, "--threads", "--threads 0"),
        (2, "5000", "--dataset digits --threads 5000"),
        (2, "tiny", "--preset tiny"),
        (2, "--epochs", "--epochs 0"),
        (2, "--batch-size", "--batch-size -3"),
        (2, "--lr", "--lr 0"),
        (2, "--latent-dim", "--latent-dim 0"),
        (2, "1,x", "--hidden 1,x"),
        (2, "0", "--hidden 0"),
        (2, "hidden", "--hidden ''"),
        (2, "--seed", "--seed -1"),
        (2, "--device", "--device tpu"),
        (2, "--surprise", "--surprise"),
        (2, "{full}", "--out {full} --data-root {digits}"),
        (4, "{empty}", "--out {out} --data-root {empty} --no-download"),
        *((3, where, f"{verb} {where}") for verb in ("evaluate", "report") for where in ("{empty}", "{absent}")),
        (3, "{absent}", "evaluate {absent} --best"),
        (3, "{absent}", "--resume {absent}"),
        (3, "{absent}", "compare {absent} {empty}"),
        (2, "--samples", "evaluate {absent} -K 0"),
        (2, "--epochs", "evaluate {absent} --epochs 3"),
        (2, "RUN", "evaluate"),
        (2, "RUN", "report"),
        (2, "evalute", "evalute {absent}"),
        (2, "--dataset photos/", "photos/"),
        (2, "--dataset {full}", "{full}"),
        (2, "--dataset mnist", "mnist --epochs 3"),
        (2, "--dataset digits", "--epochs 3 digits"),
    ],
)
def test_errors_end_in_one_line(
    command: Command,
    digits_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    names: str,
    arguments: str,
) -> None:
    """Every failure has its exit code, one line on stderr that names the culprit and gives advice, and no stdout."""
    places = {name: tmp_path / name for name in ("full", "empty", "absent", "out")} | {"digits": digits_root}
    places["full"].mkdir()
    (places["full"] / "precious.txt").write_text("kept")
    places["empty"].mkdir()
    monkeypatch.chdir(tmp_path)
    words = [word.strip("'").format(**places) for word in arguments.split()]
    result = command(main, *words)
    assert result.code == code, result.err
    assert_one_line(result.err)
    assert names.format(**places) in result.err
    assert result.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"full", "empty"}
    assert [path.name for path in places["full"].iterdir()] == ["precious.txt"]


def test_missing_data_without_a_network(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where data is missing and its download fails: exit code 4, one line, no run folder."""
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    result = command(main, "--data-root", tmp_path / "data", "--out", tmp_path / "run")
    assert result.code == 4
    assert_one_line(result.err)
    assert str(tmp_path / "data" / "MNIST" / "raw") in result.err
    assert "refused" in result.err  # why
    assert "--dataset digits" in result.err
    assert result.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_cuda_where_there_is_none(
    command: Command, digits_root: Path, tiny_run: Path, tmp_path: Path, verb: str
) -> None:
    """`--device cuda` without CUDA: exit code 6, one line, nothing written."""
    words = ["--out", tmp_path / "run"] if verb == "train" else ["evaluate", tiny_run]
    result = command(main, *words, "--device", "cuda", "--data-root", digits_root)
    assert result.code == 6
    assert_one_line(result.err)
    assert not (tmp_path / "run").exists()


def test_diverged_training_ends_in_one_line(command: Command, digits_root: Path, tmp_path: Path) -> None:
    """A learning rate that drives the weights to NaN ends in advice about --lr, not in a traceback."""
    result = command(
        main,
        *("--lr", "1e30", "--epochs", 1, "--hidden", 16, "--latent-dim", 2, "--device", "cpu"),
        *("--out", tmp_path / "run", "--data-root", digits_root, "--no-download"),
    )
    assert result.code == 2
    errors = [line for line in result.err.splitlines() if line.startswith("vae-train: error: ")]
    assert len(errors) == 1
    assert "--lr" in errors[0]


@pytest.mark.parametrize("option", [("--epochs", 3), ("--device", "cpu"), ("--no-download",), ("--resume", "run")])
@pytest.mark.parametrize("verb", ["evaluate", "report", "compare"])
def test_options_before_a_verb_are_refused(command: Command, verb: str, option: tuple[object, ...]) -> None:
    """An option in front of a verb is wrong usage, not silently ignored, and the message says where it goes."""
    words = ("run",) if verb != "compare" else ("run", "run")
    result = command(main, *option, verb, *words)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"vae-train: error: wrong usage: options go after '{verb}'; see 'vae-train --help'\n"


KEPT = {"resume", "dataset", "device", "threads", "data_root", "no_download", "model", "version", "help"}
KEPT |= {"tensorboard", "wandb", "mlflow"}


@pytest.mark.parametrize("name", sorted({parameter.name for parameter in cli.params} - KEPT))
def test_resume_takes_no_setting(command: Command, tmp_path: Path, name: str) -> None:
    """Whatever a training depends on is the run's, and refused beside --resume; where it runs may change."""
    (parameter,) = (parameter for parameter in cli.params if parameter.name == name)
    example = {"hidden": "3", "out": "x", "preset": "deep"}.get(name)
    example = example or {"choice": None, "boolean": ""}.get(parameter.type.name, "1")
    values = [example] if example else [] if example == "" else [parameter.type.choices[0]]
    result = command(main, "--resume", tmp_path, parameter.opts[0], *values)
    assert (result.code, result.out) == (2, "")
    assert f"a run keeps its settings: --resume goes without {parameter.opts[0]};" in result.err
    assert_one_line(result.err)


TITLES = [
    "The common case",
    "Images",
    "Rows of numbers",
    "Series",
    "Networks",
    "Objective",
    "Machine",
    "Options",
    "Commands",
]


def test_help_lists_every_option_in_its_section(command: Command) -> None:
    """`--help` has all sections in order, each option once with words on what it does, and all verbs."""
    result = command(main, "--help")
    assert (result.code, result.err) == (0, "")
    assert re.findall(r"^(\S.*):$", result.out, re.MULTILINE) == TITLES
    body = dict(zip(TITLES, re.split(r"^\S.*:$", result.out, flags=re.MULTILINE)[1:], strict=True))
    words = "".join(result.out.split())  # lines break within words that have a hyphen
    for parameter in cli.get_params(cli.make_context("vae-train", ["evaluate"])):
        (title,) = (
            title for title in TITLES if re.search(rf"^  {parameter.opts[0]}\b(?!-)", body[title], re.MULTILINE)
        )
        assert (title == "Options") is (parameter.opts[0] in ("--version", "--help"))
        assert "".join(parameter.help.split()) in words
    assert {"--latent-dim", "--hidden"} <= set(re.findall(r"--[a-z-]+", body["Networks"]))
    assert [line.split()[0] for line in body["Commands"].strip().splitlines()] == ["compare", "evaluate", "report"]


def test_help_has_the_defaults_that_all_presets_share() -> None:
    """Where presets differ it says that the value is the preset's."""
    names = {name for name, part in PART_OF.items() if part != "data"} - {"model", "sigma", "epochs"}  # in words
    for parameter in (parameter for parameter in cli.params if parameter.name in names):
        values = {str(getattr(getattr(preset, PART_OF[parameter.name]), parameter.name)) for preset in PRESETS.values()}
        expected = values.pop() if len(values) == 1 else "of the preset"
        assert parameter.help.endswith(f"  [default: {expected}]")


@pytest.mark.parametrize(
    ("verb", "own"), [("evaluate", ["--best", "--samples"]), ("report", []), ("compare", ["--samples"])]
)
def test_help_of_a_verb_lists_its_options(command: Command, verb: str, own: list[str]) -> None:
    """Each verb has where it works, and what is its own."""
    result = command(main, verb, "--help")
    assert (result.code, result.err) == (0, "")
    places = ["--device", "--threads", "--data-root", "--no-download", "--model", "--dataset", "--help"]
    assert sorted(set(re.findall(r"--[a-z-]+", result.out))) == sorted([*places, *own])


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a fresh process."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_module_help_works() -> None:
    """`python -m vae_train --help` is `vae-train --help`."""
    result = python("-m", "vae_train", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--latent-dim" in result.stdout


@pytest.mark.parametrize("words", [["--help"], ["compare", "--help"], ["--version"], ["photos/"]])
def test_help_is_fast(words: list[str]) -> None:
    """Half a second of processor time at most, of which Python and click take a fifth here; torch alone takes two."""
    before = os.times()
    python("-m", "vae_train", *words)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0 < spent < 0.5


@pytest.mark.parametrize(
    ("code", "heavy", "words"),
    [
        ("main()", False, ["--help"]),
        ("main()", False, ["evaluate", "--help"]),
        ("import vae_train.likelihoods; main()", True, ["--help"]),
    ],
)
def test_help_does_not_wait_for_torch(code: str, heavy: bool, words: list[str]) -> None:
    """`--help` imports neither torch nor NumPy; the last case shows that the check would notice."""
    script = (
        f"import atexit, sys; sys.argv = ['vae-train', *{words}]; from vae_train.cli import main\n"
        "atexit.register(lambda: print([m for m in ('torch', 'numpy') if m in sys.modules], file=sys.stderr))\n" + code
    )
    result = python("-c", script)
    assert result.returncode == 0
    assert (result.stderr.strip() != "[]") is heavy


@pytest.mark.parametrize("words", [["--out", "run"], ["evaluate", "run"], ["report", "run"], ["compare", "a", "b"]])
def test_without_its_extra(tmp_path: Path, words: list[str]) -> None:
    """Where torch is not installed: exit code 6 and one line with the command that installs it, nothing written."""
    site = tmp_path / "site"  # the base install: no torch in sight
    site.mkdir()
    information = site / "vae_edge-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(str(metadata.distribution("vae-edge").read_text("METADATA")))
    for package in ("click", "vae_train", "vae_runtime"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        (site / package).symlink_to(next(iter(spec.submodule_search_locations)))
    script = f"import os, sys; os.chdir({str(tmp_path)!r}); sys.argv = ['vae-train', *{words!r}]\n"
    script += "from vae_train.cli import main; main()"
    result = python("-S", "-c", script, PYTHONPATH=str(site))
    assert result.returncode == 6
    assert_one_line(result.stderr)
    asked = shlex.split(result.stderr.partition("; install: ")[2])
    assert asked[:4] == [sys.executable, "-m", "pip", "install"]
    assert {re.split("[<>=!]", requirement)[0] for requirement in asked[4:]} >= {"torch", "scikit-learn", "matplotlib"}
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("words", [["--out", "run"], ["evaluate", "run"], ["report", "run"], ["compare", "a", "b"]])
def test_where_files_have_no_locks(command: Command, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """On a system without fcntl, such as Windows: exit code 6 and one line that says where a training can be."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    result = command(main, *words)
    assert (result.code, result.out) == (6, "")
    assert_one_line(result.err)
    assert "Linux" in result.err


@pytest.mark.parametrize(
    "words",
    [
        "--batch-size 750 --epochs 5 --latent-dim 2",  # 10 steps, where PyTorch's one-cycle schedule divides by zero
        "--batch-size 500 --epochs 1 --latent-dim 1",
    ],
)
def test_the_smallest_runs_work(command: Command, digits_root: Path, tmp_path: Path, words: str) -> None:
    """A run of exactly 10 steps, and one with a single latent dimension, work to the last picture."""
    where = ("--out", tmp_path / "run", "--data-root", digits_root, "--no-download", "--device", "cpu")
    result = command(main, *words.split(), "--hidden", 8, *where)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == f"{tmp_path / 'run'}: weights, metrics, report.html"
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert math.isfinite(json.loads((tmp_path / "run" / "evaluation.json").read_text())["figures"]["elbo"]["mean"])
    assert len(list((tmp_path / "run").glob("*.png"))) >= 4


@pytest.mark.parametrize("words", ["--lr nan", f"--hidden {10**11}", f"--batch-size {10**23}"])
def test_absurd_settings_leave_no_run(command: Command, digits_root: Path, tmp_path: Path, words: str) -> None:
    """NaN and sizes beyond all memory are wrong usage: exit code 2, one line, no run folder."""
    result = command(main, *words.split(), "--out", tmp_path / "run", "--data-root", digits_root, "--no-download")
    assert (result.code, result.out) == (2, "")
    assert_one_line(result.err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_training_leaves_no_run(
    digits_root: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and SIGTERM before the first step: exit code 130 or 143, one error line, no run folder."""
    script = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # where a shell ignores it
    )
    script += "from vae_train import data; data.Data.observed_test = lambda *given: time.sleep(600)\n"
    script += "from vae_train.cli import main; main()"
    words = ["--epochs", "1000000", "--hidden", "8", "--device", "cpu", "--no-download"]
    words += ["--out", str(tmp_path / "run"), "--data-root", str(digits_root)]
    arguments = [sys.executable, "-c", script, *words]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=600)
        finally:
            process.kill()
    assert first.startswith("training on cpu")
    assert process.returncode == code
    kind = "interrupted" if number == signal.SIGINT else "terminated"
    assert re.fullmatch(rf"vae-train: {kind}: [^\n]+", err.splitlines()[-1])
    assert not (tmp_path / "run").exists()


def test_report_draws_a_finished_run_again(command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path) -> None:
    """`report RUN` writes the page and the pictures with the figures that the run has by then, and nothing else."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    pictures = [path for path in run.iterdir() if path.suffix in (".png", ".html")]
    kept = {path: path.read_bytes() for path in run.iterdir() if path not in pictures}
    for path in pictures:
        path.unlink()
    evaluation = json.loads(kept[run / "evaluation.json"])
    evaluation["figures"]["log_likelihood_9"] = {"num_samples": 9, "mean": -123.45, "standard_error": 0.67}
    kept[run / "evaluation.json"] = json.dumps(evaluation).encode()
    (run / "evaluation.json").write_bytes(kept[run / "evaluation.json"])
    result = command(main, "report", run, "--data-root", digits_root, "--no-download", "--device", "cpu")
    assert result.code == 0, result.err
    assert result.out == f"{run / 'report.html'}\n"
    assert set(run.iterdir()) == {*pictures, *kept}
    assert {path: path.read_bytes() for path in kept} == kept
    assert "123.45" in (run / "report.html").read_text()


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_other_images_are_refused(
    command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path, verb: str
) -> None:
    """A verb on test images that are not the run's: exit code 4, one line that names the folder, nothing written."""
    run, root = shutil.copytree(tiny_run, tmp_path / "run"), shutil.copytree(digits_root, tmp_path / "other")
    images = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    raw = images.read_bytes()
    images.write_bytes(raw[:16] + raw[:15:-1])  # upside down, behind the same header
    before = {path: path.read_bytes() for path in Path(run).iterdir()}
    result = command(main, verb, run, "--data-root", root, "--no-download", "--device", "cpu")
    assert (result.code, result.out) == (4, "")
    assert_one_line(result.err)
    assert str(root) in result.err
    assert {path: path.read_bytes() for path in Path(run).iterdir()} == before
