"""A VAE from elsewhere through the real command: the example, wrong functions, and observations of one's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from support.commands import Command
from vae_export.cli import main as vae_export
from vae_runtime import VAE
from vae_runtime.bundle import read
from vae_runtime.cli import main as vae_infer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory for modules, which are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None)]:
        if str(sys.modules[name].__file__).startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_example_becomes_a_bundle(
    examples: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its first line; it has figures on the digits that it names, and ranks observations among these."""
    monkeypatch.chdir(examples)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    out = tmp_path / "mine"
    ran = command(vae_export, "--from", "bring_your_own:networks", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].startswith("✓ 40 comparisons passed")
    evaluation = read(out).manifest.evaluation
    assert evaluation is not None
    assert (evaluation.dataset, evaluation.observations) == ("digits", 297)
    assert -25 < evaluation.figures["elbo"].mean < evaluation.figures["log_likelihood_64"].mean < -20
    ran = command(vae_infer, "--bundle", out, "info")
    assert "297 given images of digits" in ran.out
    image = (load_digits().images[1500] / 16).astype(np.float32)[None, None]
    vae = VAE.load(out)
    assert vae.reconstruct(image).shape == (1, 1, 8, 8)
    assert 0 < vae.percentile(vae.elbo(vae.binarise(image)))[0] < 100


MODULE = """
import numpy as np, torch
from torch import nn

def networks():
    torch.manual_seed(0)
    given = {"encoder": nn.Linear(6, 4), "decoder": nn.Linear(2, 6), "encoder_gives": "moments"}
    return {**given, "likelihood": "gaussian", "observations": np.random.default_rng(0).normal(size=(70, 6))}

def none():
    return None

def other():
    return {"modle": 1}

def broken():
    return 1 / 0
"""


def test_observations_may_be_a_file(folder: Path, command: Command) -> None:
    """They take the place of the function's; a sigma that is fitted to them is said on stderr."""
    (folder / "mine.py").write_text(MODULE)
    np.save("x.npy", np.random.default_rng(1).normal(size=(80, 6)))
    ran = command(vae_export, "--from", "mine:networks", "--observations", "x.npy")
    assert ran.code == 0
    assert ran.err.startswith("vae-export: warning: sigma 1.")
    assert "published bundles/mine: opset 17, fp32" in ran.out
    evaluation = read(Path("bundles/mine")).manifest.evaluation
    assert evaluation is not None
    assert evaluation.observations == 80


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--from", "mine:none"), 2, "function returns a NoneType: mine:none; return a dict of export's arguments"),
        (("--from", "mine:other"), 2, "mine:other says what is not known: modle; give axes, decoder, "),
        (("--from", "mine:broken"), 2, "networks fail (ZeroDivisionError: division by zero, line 16 of mine.py)"),
        (("--from", "mine:absent"), 2, "networks not found (module 'mine' has no attribute 'absent'): mine:absent; "),
        (("--from", "absent:networks"), 2, "networks not found (No module named 'absent'): absent:networks; "),
        (("--from", "mine:networks", "run"), 2, "--from goes without RUN"),
        (
            ("mine.py",),
            3,
            "not a training run: mine.py; name the run that it is from; for a VAE that was trained elsewhere",
        ),
        (("--observations", "x.npy"), 2, "--observations goes with --from"),
        (("--from", "mine:networks", "--observations", "x.npy"), 4, "file not found: x.npy; check the path"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    folder: Path, command: Command, words: tuple[str, ...], code: int, message: str
) -> None:
    """And nothing is published."""
    (folder / "mine.py").write_text(MODULE.lstrip())
    ran = command(vae_export, *words)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not (folder / "bundles").exists()
