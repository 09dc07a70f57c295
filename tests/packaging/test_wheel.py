"""The built package: what is in it, and that it works in a clean environment without PyTorch."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from vae_runtime.bundle import CALIBRATION, FILES, MANIFEST, PRIOR

ROOT = Path(__file__).parents[2]
BUNDLES = ("vae_artifacts/mnist/", "vae_artifacts/fashion-mnist/")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that make the package, so that nothing is built inside the working tree."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("train", "export", "runtime", "artifacts", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """The wheel, built from the sdist as an index would get it."""
    dist = checkout / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, checkout)
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def demo(checkout: Path) -> str:
    """What `make demo` prints in a fresh copy, with no environment active."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(checkout)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    python = Path(getattr(sys, "_base_executable", sys.executable))
    return run("make", "demo", f"PYTHON={python}", cwd=checkout, env=environment)


@pytest.fixture(scope="module")
def light(demo: str, checkout: Path) -> Path:
    """The bin folder of the virtual environment that it makes, with the package and its base dependencies."""
    return checkout / ".venv-demo" / "bin"


def test_the_wheel_holds_packages_types_and_the_bundles(wheel: Path) -> None:
    """The wheel has all packages, their py.typed, and the files of each bundle, at most 6 MB."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    for package in ("vae_train", "vae_export", "vae_runtime"):
        assert f"{package}/py.typed" in sizes
    assert {f"vae_runtime/page/{file.name}" for file in (ROOT / "runtime" / "vae_runtime" / "page").iterdir()} <= {
        *sizes
    }
    for folder in BUNDLES:
        bundle = {name.removeprefix(folder): size for name, size in sizes.items() if name.startswith(folder)}
        assert set(bundle) == {*FILES, PRIOR, MANIFEST, CALIBRATION}
        assert sum(bundle.values()) <= 6_000_000
    assert not [name for name in sizes if name.startswith(("tests", "docs", "train/", "runtime/"))]


def test_the_sdist_holds_the_bundles(wheel: Path) -> None:
    """The sdist carries the models too, whatever .gitignore says."""
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        for folder in BUNDLES:
            assert any(name.endswith(f"artifacts/{folder}decoder.onnx") for name in archive.getnames())


def test_base_dependencies_are_few(light: Path) -> None:
    """Nothing of PyTorch, ONNX or plotting comes with the base install."""
    installed = {p["name"].lower() for p in json.loads(run(light / "pip", "list", "--format=json"))}
    assert {"numpy", "onnxruntime", "click", "pillow", "vae-edge"} <= installed
    assert not installed & {"torch", "torchvision", "onnx", "onnxscript", "matplotlib", "scikit-learn", "safetensors"}


def test_the_verbs_work_without_torch(light: Path, tmp_path: Path) -> None:
    """In the clean environment sample, reconstruct, elbo, encode and info do their work on the shipped model."""
    infer = light / "vae-infer"
    digits = ROOT / "examples" / "digits"
    assert "16 samples" in run(infer, "sample", "-n", "16", "-o", "samples.png", cwd=tmp_path)
    assert "6 reconstructions" in run(infer, "reconstruct", digits, "-o", "pairs.png", cwd=tmp_path)
    for picture in ("samples.png", "pairs.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    scores = json.loads(run(infer, "elbo", digits, "--samples", "20", "--format", "json", cwd=tmp_path))["images"]
    ranks = {Path(row["image"]).stem: row["percentile"] for row in scores}
    assert ranks["not-a-digit"] < 1 < min(rank for name, rank in ranks.items() if name != "not-a-digit")
    assert run(infer, "encode", digits, cwd=tmp_path).startswith("image,mu_0")
    assert "vae-train" in run(infer, "info", cwd=tmp_path)


@pytest.mark.parametrize(("tool", "extra"), [("vae-train", "train"), ("vae-export", "export")])
def test_a_tool_without_its_extra_names_the_install_command(light: Path, tmp_path: Path, tool: str, extra: str) -> None:
    """vae-train and vae-export without PyTorch end in one line and exit code 6, and leave nothing behind."""
    arguments = ["a-run"] if tool == "vae-export" else []
    done = subprocess.run([light / tool, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 6
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    asked = shlex.split(done.stderr.partition("; install: ")[2])
    assert Path(asked[0]).parent == light
    assert asked[1:4] == ["-m", "pip", "install"]
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    needed = {*extras["train"], *(extras["export"] if extra == "export" else ())} - {"vae-edge[train]"}
    assert set(asked[4:]) == needed
    assert not list(tmp_path.iterdir())
    assert "pip" in run(*asked[:3], "--version")  # and so the command can be run


def test_a_card_is_written_without_the_extra(light: Path) -> None:
    """vae-export card works in the clean environment; check names the install command, as it needs ONNX."""
    assert run(light / "vae-export", "card", "mnist").startswith('---\nlibrary_name: "vae-edge"\n')
    done = subprocess.run([light / "vae-export", "check", "mnist"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (6, "")
    assert shlex.split(done.stderr)[-3:] == ["pip", "install", "onnx>=1.19"]


def test_the_service_without_its_extra_ends_in_one_line(light: Path) -> None:
    """Where Flask is missing, `vae-infer serve` says how to install it and its server."""
    done = subprocess.run([light / "vae-infer", "serve"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (6, "", 1)
    assert shlex.split(done.stderr)[-4:] == ["pip", "install", "flask>=3.1", "waitress>=3.0.1"]


def test_an_example_without_its_extra_ends_in_one_line(light: Path, checkout: Path) -> None:
    """Where Dask is missing, a program of examples/ says how to install what it needs."""
    done = subprocess.run(
        [light / "python", checkout / "examples" / "batch.py", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("batch.py: error: No module named ")
    assert shlex.split(done.stderr)[-5:] == [str(light / "python"), "-m", "pip", "install", f"{checkout}[examples]"]


def test_make_demo_needs_only_python(demo: str, checkout: Path) -> None:
    """It draws, reconstructs and scores digits."""
    assert "not-a-digit.png" in demo
    for picture in ("samples.png", "reconstructions.png"):
        assert (checkout / "demo" / picture).read_bytes().startswith(b"\x89PNG")


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """The command's stdout; its output is the failure's message."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
