"""What the benchmarks measure is made as users make it."""

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_runtime import noise
from vae_runtime.bundle import read
from vae_runtime.verify import verify
from vae_train import mlp, networks
from vae_train.config import PRESETS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPIN = "GOMP_SPINCOUNT"


def test_the_benchmarks_bundle_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks that latency, throughput and memory are measured on can be exported, and give their numbers."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    side_by_side = importlib.import_module("side_by_side")
    assert all(row.passed for row in verify(read(side_by_side.exported())))


def test_the_reference_bound_has_the_networks_clamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the encoder asks for a sigma past its range, the float64 formulas give what the networks do in float64."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    throughput = importlib.import_module("throughput")
    torch.manual_seed(0)
    vae = networks.build(PRESETS["deep"].replace(hidden=(16, 16), latent_dim=3), (1, 28, 28)).requires_grad_(False)
    vae.encoder.heads.logsigma.bias += torch.tensor([3.0, 0.0, -20.0])
    monkeypatch.setattr(throughput, "in_pytorch", lambda: vae)
    x = np.random.default_rng(0).integers(0, 2, (5, 1, 28, 28)).astype(np.float32)
    found = throughput.float64_bound(x, 4)
    eps = noise.normal(0, noise.POSTERIOR, noise.index(x), 4 * 3).reshape(5, 4, 3).transpose(1, 0, 2)
    out = vae.double()(torch.from_numpy(x).double(), torch.from_numpy(eps.copy()).double())
    assert out.logsigma[:, 0].tolist() == [mlp.LOGSIGMA_RANGE[1]] * 5
    assert out.logsigma[:, 2].tolist() == [mlp.LOGSIGMA_RANGE[0]] * 5
    weights = vae.likelihood.log_prob(torch.from_numpy(x), out.parameters)
    weights += vae.prior.log_ratio(out.mu, out.logsigma, out.z)
    np.testing.assert_allclose(found, weights.logsumexp(dim=0) - np.log(4), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "side_by_side"))
def test_every_benchmark_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` of each script imports all that it measures, and shows how to call it."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    monkeypatch.setenv(SPIN, "1000")  # which one of them sets
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert left.value.code in (None, 0)
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_threads_that_wait_spin_briefly(given: str | None, expected: str) -> None:
    """vae-train says so to libgomp before torch is imported, unless the person has said something else."""
    code = (
        "import os, sys\n"
        "from vae_train import cli\n"
        "sys.argv = ['vae-train', '--version']\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit:\n"
        f"    print(os.environ['{SPIN}'], 'torch' in sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != SPIN} | ({SPIN: given} if given else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{expected} False"
