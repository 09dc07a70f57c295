"""What the benchmarks measure is made as users make it."""

import importlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from support.bundles import TINY
from vae_runtime import Detector, noise
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


def test_each_score_of_each_kind_of_odd_images_is_in_the_tables(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a bundle in the cache: the Detector's are its own scores; a table has a row a score and a column a kind."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    detection, sets = (importlib.import_module(name) for name in ("detection", "detection_sets"))
    train, test = (sets.images(sets.torchvision.datasets.MNIST, digits_root, train=part)[0] for part in (True, False))
    kinds = sets.spoilt(test[-30:])
    parts = sets.Parts(train[:200], test[:100], test[100:130], {kind: kinds[kind] for kind in ("noise", "inverted")})
    shutil.copytree(TINY, tmp_path / "tiny")
    vae = detection.bundled(sets.Set("Digits", "tiny", lambda _: parts), parts, tmp_path)
    detector = Detector.fit(vae, detection.as_taken(parts.usual))
    normal, odd = detection.scored(detector, parts)
    np.testing.assert_array_equal(odd["noise"]["Detector"], detector.score(detection.as_taken(kinds["noise"])))
    assert {name: len(scores) for name, scores in normal.items()} == dict.fromkeys(odd["inverted"], 30)
    found = {kind: detection.mean([detection.figures(normal, scores)]) for kind, scores in odd.items()}
    detection.show_figure("Digits", {kind: figures["AUROC"] for kind, figures in found.items()})
    detection.show_best({"Digits": found})
    title, table, best, summary = capsys.readouterr().out.strip().split("\n\n")
    header, _, *rows = table.splitlines()
    assert (title, header) == ("Digits:", "| score | noise | inverted | mean |")
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(normal)
    assert [row for row in rows if row.startswith("| Detector")] == ["| Detector | **1.000** | **1.000** | **1.000** |"]
    assert [row.split(" | ")[3] for row in summary.splitlines()[2:]] == ["1.000", "1.000"]
    assert best == "Odd ones:"


@pytest.mark.parametrize(("scores", "expected"), [([0, 1, 2, 3], 0.0), ([3, 2, 1, 0], 1.0), ([0, 2, 1, 3], 0.5)])
def test_false_alarms_at_95_percent_caught(
    scores: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the share of normal ones, here the first two, that score at least as the lowest odd one."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    detection = importlib.import_module("detection")
    assert detection.late(np.array([False, False, True, True]), np.array(scores, np.float64)) == expected


def test_what_is_trained_on_is_in_no_other_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a table's rows of one class, each is to train on, to calibrate by, or normal, and once; the others are odd."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    sets = importlib.import_module("detection_sets")
    bunch = sets.load_breast_cancer()
    parts = sets.one_class(sets.load_breast_cancer, 1, 0.5, 0, tmp_path)
    benign = np.concatenate([parts.train, parts.usual, parts.normal])
    for found, label in ((benign, 1), (parts.odd[""], 0)):
        assert sorted(map(tuple, found)) == sorted(map(tuple, bunch.data[bunch.target == label]))


COMMANDS = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - {"side_by_side", "detection_sets"})


@pytest.mark.parametrize("name", COMMANDS)
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
