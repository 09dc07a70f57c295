"""What importing the runtime brings in, measured in fresh processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "sklearn",
    "scipy",
    "matplotlib",
    "tqdm",
    "vae_train",
    "vae_export",
)
REPORT = "import sys, json; json.dump(sorted({m.partition('.')[0] for m in sys.modules}), sys.stderr)"


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh Python holds after running `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def test_the_api_brings_in_numpy_and_onnxruntime_only():
    """`vae_runtime.VAE` loads NumPy and onnxruntime, and none of the packages of the extras, click or Pillow."""
    modules = modules_after("import vae_runtime; vae_runtime.VAE")
    assert modules >= {"vae_runtime", "numpy", "onnxruntime"}
    assert not modules & {*HEAVY, "click", "PIL"}


def test_running_a_model_brings_in_no_more():
    """Loading the shipped bundle, sampling and scoring load no heavy package either."""
    modules = modules_after("import vae_runtime; v = vae_runtime.VAE.load(); v.elbo(v.sample(1)); v.manifest")
    assert "onnxruntime" in modules
    assert not modules & {*HEAVY, "click", "PIL"}


@pytest.mark.parametrize("code", ["import vae_runtime", "from vae_runtime import BundleError, InputError"])
def test_the_bare_package_is_light(code: str):
    """`import vae_runtime`, or its errors, loads neither NumPy nor onnxruntime."""
    modules = modules_after(code)
    assert "vae_runtime" in modules
    assert not modules & {*HEAVY, "click", "PIL", "numpy", "onnxruntime"}


@pytest.mark.parametrize("verb", [["sample", "-o", "x.npy"], ["info"], ["decode", "z.npy", "-o", "x.npz"]])
def test_verbs_without_pictures_do_not_wait_for_pillow(tmp_path: Path, verb: list[str]):
    """`vae-infer` with arrays alone loads neither Pillow nor any heavy package."""
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r})\n"
        "import numpy; numpy.save('z.npy', numpy.zeros((2, 40), 'f4'))\n"
        f"sys.argv = ['vae-infer', *{verb}]\nfrom vae_runtime.cli import main\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code"
    )
    modules = modules_after(code)
    assert modules >= {"numpy", "onnxruntime", "click"}
    assert not modules & {*HEAVY, "PIL"}


@pytest.mark.parametrize(
    ("code", "module"),
    [("import PIL.Image", "PIL"), ("import vae_runtime.cli", "click"), ("import onnxruntime", "onnxruntime")],
)
def test_the_checker_can_fail(code: str, module: str):
    """The same checker does see a package that is imported."""
    assert module in modules_after(code)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([verb, "--help"] for verb in ("sample", "elbo", "decode", "traverse", "bench", "watch"))],
)
def test_help_does_not_wait_for_numpy(arguments: list[str]):
    """`vae-infer --help`, of a verb too, prints its text without importing NumPy, onnxruntime or Pillow."""
    code = f"import sys; sys.argv = ['vae-infer', *{arguments}]\nfrom vae_runtime.cli import main\n"
    modules = modules_after(code + "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code")
    assert "click" in modules
    assert not modules & {*HEAVY, "numpy", "onnxruntime", "PIL"}


def clean_environment(home: Path) -> dict[str, str]:
    """This environment as on a user's machine: no CI, no telemetry switch, an empty home."""
    hidden = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_home_stays_empty_and_the_terminal_quiet(tmp_path: Path):
    """Loading and sampling write nothing into the user's home or working folder and print nothing."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import vae_runtime; vae_runtime.VAE.load().sample(1)"],
        env=clean_environment(home), cwd=work, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
    assert [p for folder in (home, work) for p in folder.rglob("*")] == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_importing_and_a_single_thread_start_no_threads(tmp_path: Path):
    """Importing the runtime, and a VAE with threads=1, start no thread beyond those that NumPy starts."""
    code = (
        "import os, numpy\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        "from vae_runtime import VAE\n"
        "imported = count()\n"
        "VAE.load(threads=1).sample(1)\n"
        "print(before, imported, count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(tmp_path), capture_output=True, text=True, check=True
    )
    before, imported, used = done.stdout.split()
    assert before == imported == used


def test_an_unknown_name_is_an_attribute_error():
    """A misspelt name of the package raises AttributeError with that name; every public name is there."""
    import vae_runtime

    with pytest.raises(AttributeError, match="has no attribute 'VEA'"):
        vae_runtime.VEA  # noqa: B018
    for name in vae_runtime.__all__:
        assert getattr(vae_runtime, name).__name__ == name
