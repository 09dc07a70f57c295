"""A VAE of Keras, written as ONNX by tf2onnx, becomes a bundle with Keras's own ELBO, by the page's command."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support import elsewhere
from support.commands import Command
from vae_export.cli import main
from vae_runtime import VAE, noise

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own.md"
SCRIPT = Path(__file__).parents[1] / "support" / "keras_vae.py"
PYTHON = os.environ.get("KERAS_PYTHON", sys.executable)  # one that has keras, tensorflow and tf2onnx


@pytest.mark.slow
def test_the_pages_command_makes_a_bundle_of_keras_own_elbo(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-3 nats of each observation, with the same noise."""
    if subprocess.run([PYTHON, "-c", "import keras, tf2onnx"], capture_output=True).returncode:
        pytest.skip("needs keras and tf2onnx, or a KERAS_PYTHON that has them")
    monkeypatch.chdir(tmp_path)
    x = elsewhere.digits()
    eps = noise.normal(0, noise.POSTERIOR, noise.index(x), 3)
    np.save("x.npy", x.transpose(0, 2, 3, 1))
    np.save("x_test.npy", x.transpose(0, 2, 3, 1))
    np.save("eps.npy", eps)
    subprocess.run([PYTHON, SCRIPT, "."], check=True, capture_output=True)
    section = PAGE.read_text().partition("\n### Keras, JAX and others, as ONNX\n")[2].partition("\n#")[0]
    (line,) = re.findall(r"^    (vae-export .*?[^\\])$", section, re.MULTILINE | re.DOTALL)
    ran = command(main, *shlex.split(line.replace("\\\n", ""))[1:])
    assert ran.code == 0, ran.err
    got = VAE.load("bundles/mine").elbo(x)
    expected = np.load("elbo.npy")
    print(f"Keras: ELBO {got.mean():.2f}, off by {np.abs(got - expected).max():.1e} nats")
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=0)
