"""The example of a person's own networks through the real commands, and what these refuse to import or to train."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vae_export import exporter
from vae_export.cli import main as vae_export
from vae_runtime import VAE
from vae_runtime.bundle import read
from vae_runtime.cli import main as vae_infer
from vae_runtime.verify import verify
from vae_train import data, pixels, run_folder
from vae_train.cli import main as vae_train

Command = Callable[..., Any]
NAME = "own_networks:networks"
UNTRUSTED = "error: run has networks of its own: {0}; if you trust that module, add --model {0}\n"


def process(module: str, folder: Path, *words: object) -> tuple[int, str, str]:
    """Run an installed command as a process of its own in a folder: exit code, stdout, stderr.

    -P as in the installed commands: Python does not look for modules in the working directory by itself.
    """
    command = [sys.executable, "-P", "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the example's networks on the digits, as its first line says, in the examples' folder."""
    out = tmp_path_factory.mktemp("own") / "run"
    words = (
        "--dataset",
        "digits",
        "--model",
        NAME,
        "--epochs",
        1,
        "--device",
        "cpu",
        "--no-export-check",
        "--out",
        out,
    )
    code, _, err = process("vae_train", examples, *words)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def bundle(examples: Path, run: Path) -> Path:
    """The run's bundle."""
    out = run.parent / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(examples)
        patch.setattr(sys, "path", sys.path.copy())
        exporter.export_run(run_folder.load(run, NAME), out)
    return out


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory for modules, which are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def foreign(run: Path, folder: Path) -> Path:
    """A run that names a module of the working directory, which leaves a file behind when it is imported."""
    copy = Path(shutil.copytree(run, folder / "run"))
    settings = json.loads((copy / "config.json").read_text())
    settings["config"]["network"]["model"] = "trap:networks"
    (copy / "config.json").write_text(json.dumps(settings))
    (folder / "trap.py").write_text("from pathlib import Path\n\nPath('imported').touch()\n")
    return copy


def test_run_keeps_the_name_and_no_code(run: Path, examples: Path) -> None:
    """The settings name the module and function; none of its code is in the run folder."""
    assert json.loads((run / "config.json").read_text())["config"]["network"]["model"] == NAME
    for file in run.rglob("*"):
        assert file.is_dir() or b"ConvTranspose2d" not in file.read_bytes()


@torch.no_grad()
def test_bundle_gives_the_numbers_of_the_persons_networks(
    run: Path, bundle: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle verifies, and its means and latents are those of the run's own encoder and decoder."""
    monkeypatch.syspath_prepend(str(examples))
    trained = run_folder.load(run, NAME).vae
    assert type(trained.encoder).__module__ == "own_networks"
    vae = VAE.load(bundle)
    assert all(row.passed for row in verify(read(bundle)))
    digits = data.load(run_folder.read_settings(run).config, Path("unused"))
    x = pixels.unit(digits.test[:20]).round()
    for got, expected in zip(vae.encode(x.numpy()), trained.encoder(x), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)
    z = vae.encode(x.numpy())[0]
    np.testing.assert_allclose(vae.parameters(z), trained.decoder(torch.from_numpy(z)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_networks_start_at_the_constant_image(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's `start_at` does what its comment says: the first ELBO is far better than without it."""
    from vae_train import networks
    from vae_train.config import PRESETS

    monkeypatch.syspath_prepend(str(examples))
    config = PRESETS["tutorial"].replace(dataset="digits", model=NAME)
    digits = data.load(config, Path("unused"))
    x = pixels.fixed_draw(digits.test).float() / 255
    torch.manual_seed(0)
    vae = networks.build(config, (1, 8, 8), NAME)
    before = vae.elbo(x).mean()
    networks.start_at_constant(vae, *pixels.moments(digits.train))
    assert vae.elbo(x).mean() > before + 10


def test_infer_needs_neither_torch_nor_the_module(command: Command, bundle: Path, examples: Path) -> None:
    """`vae-infer --bundle ... elbo` scores the digits' pictures with the bundle alone."""
    result = command(vae_infer, "--bundle", bundle, "elbo", examples / "digits" / "two.png")
    assert result.code == 0, result.err
    assert re.search(r"-\d+\.\d", result.out)


@pytest.mark.parametrize("words", [[], ["--model", "other:networks"], ["--model", "trap:other"], ["--model", "trap"]])
def test_export_of_untrusted_networks_imports_nothing(
    command: Command, foreign: Path, folder: Path, words: list[str]
) -> None:
    """Without --model, or with another one, the export ends in one line and the module has not been executed."""
    result = command(vae_export, foreign, *words, "--out", folder / "bundle")
    line = UNTRUSTED.format("trap:networks")
    if words:
        line = line.replace("networks of its own", f"other networks than {words[1]}")
    assert (result.code, result.out, result.err) == (2, "", "vae-export: " + line)
    assert not (folder / "imported").exists()
    assert not (folder / "bundle").exists()


@pytest.mark.parametrize("verb", ["evaluate", "report", "compare"])
def test_verbs_on_untrusted_networks_import_nothing(command: Command, foreign: Path, folder: Path, verb: str) -> None:
    """The verbs of vae-train that load a run refuse it in the same line."""
    runs = [foreign, foreign] if verb == "compare" else [foreign]
    result = command(vae_train, verb, *runs)
    assert (result.code, result.out, result.err) == (2, "", "vae-train: " + UNTRUSTED.format("trap:networks"))
    assert not (folder / "imported").exists()


def test_trusted_networks_are_imported(command: Command, foreign: Path, folder: Path) -> None:
    """With the run's own --model the module is executed: the two tests above do not pass for another reason."""
    result = command(vae_export, foreign, "--model", "trap:networks", "--out", folder / "bundle")
    line = "networks not found (module 'trap' has no attribute 'networks'): trap:networks"
    assert (result.code, result.err) == (2, f"vae-export: error: {line}; give --model package.module:function\n")
    assert (folder / "imported").exists()


def test_runs_of_two_modules_are_compared(command: Command, run: Path, folder: Path) -> None:
    """Each --model lets the run of that module be read; with one of the two, the line names the other."""
    source = (Path(__file__).parents[2] / "examples" / "own_networks.py").read_text()
    for name in ("first", "second"):
        (folder / f"{name}.py").write_text(source)
        copy = Path(shutil.copytree(run, folder / name))
        settings = json.loads((copy / "config.json").read_text())
        settings["config"]["network"]["model"] = f"{name}:networks"
        (copy / "config.json").write_text(json.dumps(settings))
    words = ("compare", folder / "first", folder / "second", "--model", "first:networks")
    result = command(vae_train, *words)
    line = "run has other networks than first:networks: second:networks; if you trust that module, add --model"
    assert (result.code, result.err) == (2, f"vae-train: error: {line} second:networks\n")
    result = command(vae_train, *words, "--model", "second:networks")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1].endswith("0.00 +- 0.00")


def test_other_networks_than_the_runs_are_refused(command: Command, run: Path, folder: Path) -> None:
    """Where the module has changed since, its weights do not fit: the export says so in one line."""
    source = (Path(__file__).parents[2] / "examples" / "own_networks.py").read_text()
    (folder / "changed.py").write_text(source.replace("32, kernel_size", "24, kernel_size").replace("32", "24"))
    copy = Path(shutil.copytree(run, folder / "run"))
    settings = json.loads((copy / "config.json").read_text())
    settings["config"]["network"]["model"] = "changed:networks"
    (copy / "config.json").write_text(json.dumps(settings))
    result = command(vae_export, copy, "--model", "changed:networks", "--out", folder / "bundle")
    assert result.code == 3
    assert re.fullmatch(r"vae-export: error: run cannot be read: [^\n]+; [^\n]+\n", result.err), result.err


def test_networks_edited_since_the_training_are_not_published(command: Command, run: Path, folder: Path) -> None:
    """Same shapes, another activation: export, check and all verbs that load the run refuse it; nothing is changed."""
    source = (Path(__file__).parents[2] / "examples" / "own_networks.py").read_text()
    (folder / "edited.py").write_text(source.replace("SiLU", "Tanh"))
    copy = Path(shutil.copytree(run, folder / "run"))
    settings = json.loads((copy / "config.json").read_text())
    settings["config"]["network"]["model"] = "edited:networks"
    (copy / "config.json").write_text(json.dumps(settings))
    before = {path: path.read_bytes() for path in copy.iterdir()}
    trust = ("--model", "edited:networks")
    for main, words in (
        (vae_export, (copy, *trust, "--out", folder / "bundle")),
        (vae_train, ("evaluate", copy, *trust, "--device", "cpu")),
        (vae_train, ("report", copy, *trust, "--device", "cpu")),
        (vae_train, ("compare", copy, copy, *trust, "--device", "cpu")),
    ):
        result = command(main, *words)
        assert (result.code, result.out) == (3, ""), result.err
        assert "not the network that was trained" in result.err
        assert "restore edited as it was" in result.err
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
    assert not (folder / "bundle").exists()
    elbo = json.loads((run / "evaluation.json").read_text())["figures"]["elbo"]["mean"]
    assert f"now, {elbo:.2f} when its training ended" in result.err


def test_a_run_without_outputs_is_published_with_a_note(
    command: Command, run: Path, examples: Path, folder: Path
) -> None:
    """As older releases made them: nothing to hold the network against, which is said."""
    shutil.copy(examples / "own_networks.py", folder)
    copy = Path(shutil.copytree(run, folder / "run"))
    (copy / "fingerprint.npz").unlink()
    result = command(vae_export, copy, "--model", NAME, "--out", folder / "bundle")
    assert result.code == 0, result.err
    assert "note: " in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "model", "line"),
    [
        (
            None,
            "absent:networks",
            "networks not found (No module named 'absent'): {}; "
            "run this in the folder that absent is in, or name that folder in PYTHONPATH",
        ),
        (
            "x = 1",
            "here:networks",
            "networks not found (module 'here' has no attribute 'networks'): {}; give --model package.module:function",
        ),
        (
            "def networks(*sizes):\n    raise ValueError('too small\\nfor me')",
            "here:networks",
            "networks fail (ValueError: too small for me, line 2 of here.py): {}; "
            "see examples/own_networks.py of the project's source",
        ),
        (
            "from torch import nn\n\ndef networks(image_shape, latent_dim, out):\n"
            "    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, latent_dim))\n    return flat, flat",
            "here:networks",
            "networks do not fit (encoder returns a tensor [2, 20]): {}; return mu and logsigma, ",
        ),
    ],
)
def test_networks_that_cannot_be_trained_end_in_one_line(
    command: Command, folder: Path, module: str | None, model: str, line: str
) -> None:
    """A missing module or function, or one that raises, ends in one line; no run folder is left."""
    if module is not None:
        (folder / "here.py").write_text(module)
    result = command(vae_train, "--dataset", "digits", "--model", model, "--device", "cpu", "--out", folder / "run")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith(f"vae-train: error: {line.format(model)}")
    assert result.err.count("\n") == 1
    assert not (folder / "run").exists()


def test_images_that_the_example_cannot_halve_end_in_its_own_words(
    command: Command, examples: Path, folder: Path
) -> None:
    """What the function raises is the error: images of 6x6 cannot be halved twice."""
    shutil.copy(examples / "own_networks.py", folder)
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (60, 6, 6), np.uint8))
    result = command(vae_train, "--dataset", "images.npy", "--model", NAME, "--device", "cpu", "--out", folder / "run")
    assert result.code == 2
    reason = "ValueError: images of 6x6 cannot be halved twice, line [0-9]+ of own_networks.py"
    line = (
        rf"vae-train: error: networks fail \({reason}\): {NAME}; see examples/own_networks.py of the project's source\n"
    )
    assert re.fullmatch(line, result.err), result.err


NORMALISING = """
from torch import nn
from vae_train import mlp

def networks(image_shape, latent_dim, out):
    encoder = mlp.Encoder(image_shape, (8,), latent_dim, "relu")
    encoder.body.append(nn.BatchNorm1d(8))
    return encoder, mlp.Decoder(image_shape, (8,), latent_dim, "relu", out)
"""


def test_networks_that_fail_amid_a_training_end_in_one_line(command: Command, folder: Path) -> None:
    """Batch normalisation cannot take the last batch of an epoch where that is one image: 1,576 = 7 * 225 + 1."""
    (folder / "normalising.py").write_text(NORMALISING)
    words = ("--dataset", "digits", "--model", "normalising:networks", "--batch-size", 225, "--device", "cpu")
    result = command(vae_train, *words, "--no-export-check", "--out", folder / "run")
    assert result.code == 2, result.err
    assert "vae-train: error: networks fail (ValueError: Expected more than 1 value per channel" in result.err
    assert "choose another --batch-size" in result.err
    assert "Traceback" not in result.err
