"""`vae-infer verify` and `vae-infer doctor`: what a device says about a bundle and about itself."""

import importlib.metadata
import io
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vae_runtime import BundleError
from vae_runtime.bundle import read
from vae_runtime.cli import main
from vae_runtime.verify import verify

NAMES = ["z", "eps", "mu", "logsigma", "logits", "elbo"]


def changed_golden(bundle: Path, **changes: Any) -> bytes:
    """The bundle's golden.npz with some arrays replaced, or left out where the change is None."""
    arrays: dict[str, Any] = {**read(bundle).golden(), **changes}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: values for name, values in arrays.items() if values is not None})
    return buffer.getvalue()


def test_every_golden_row_is_reproduced(loaded: Any) -> None:
    """All golden arrays are within tolerance here, and the noise agrees to the last bit."""
    rows = verify(read(loaded.path))
    assert [row.name for row in rows] == NAMES
    assert all(row.passed for row in rows)
    assert [row.ulps for row in rows[:2]] == [0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_row_is_named(command: Any, forge: Callable[..., Path], tiny_bundle: Path, name: str) -> None:
    """One golden value off by 0.01 under valid hashes: exit code 3, and that row is named, with its cross."""
    values = read(tiny_bundle).golden()[name].copy()
    values.flat[-1] += 0.01
    bundle = forge({"golden.npz": changed_golden(tiny_bundle, **{name: values})})
    result = command(main, "--bundle", bundle, "verify")
    assert result.code == 3
    assert f"✗ {name} " in result.out
    assert result.err.startswith("vae-infer: error: golden vectors not reproduced: ")
    assert name in result.err


@pytest.mark.parametrize("change", [{"seed": None}, {"mu": None}, {"x": np.zeros((2, 3))}, {"elbo": np.zeros(5)}])
def test_unusable_golden_vectors_are_refused(
    forge: Callable[..., Path], tiny_bundle: Path, change: dict[str, Any]
) -> None:
    """Missing arrays and wrong shapes end in a BundleError that names the bundle."""
    bundle = forge({"golden.npz": changed_golden(tiny_bundle, **change)})
    with pytest.raises(BundleError, match=f"no usable golden vectors: {bundle} "):
        verify(read(bundle))


def test_ulps_count_float32_steps_of_the_rows_scale(forge: Callable[..., Path], tiny_bundle: Path) -> None:
    """A golden value moved by three steps of the largest value of its row is three ulps off, however small it is."""
    z = read(tiny_bundle).golden()["z"].copy()
    largest = np.abs(z[1]).max()
    small = np.abs(z[1]).argmin()
    moved = z.copy()
    moved[1, small] += 3 * (np.nextafter(largest, np.float32(np.inf)) - largest)
    rows = {row.name: row for row in verify(read(forge({"golden.npz": changed_golden(tiny_bundle, z=moved)})))}
    assert rows["z"].ulps == 3
    assert not rows["z"].passed


def test_tolerances_are_the_gates(forge: Callable[..., Path], tiny_bundle: Path) -> None:
    """Each row is judged by the gate's tolerance for that array: just below it passes, just above it fails."""
    stored = read(tiny_bundle).manifest.parity.tolerance
    rows = {row.name: row for row in verify(read(tiny_bundle))}
    assert {name: row.tolerance for name, row in rows.items()} == {"z": 0, "eps": 0} | {n: stored[n] for n in NAMES[2:]}
    off = rows["mu"].max_abs
    assert off > 0
    for factor, passed in ((1, True), (0.999, False)):
        bundle = forge(change=lambda manifest, factor=factor: manifest["parity"]["tolerance"].update(mu=off * factor))
        assert {row.name for row in verify(read(bundle)) if not row.passed} == (set() if passed else {"mu"})
        shutil.rmtree(bundle)


def test_doctor_names_machine_and_versions(command: Any) -> None:
    """`doctor` prints the machine, the versions in use and a verdict."""
    result = command(main, "doctor")
    assert (result.code, result.err) == (0, "")
    for word in (os.uname().machine, importlib.metadata.version("onnxruntime"), importlib.metadata.version("numpy")):
        assert word in result.out
    assert "fit" in result.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "crashes when it is imported: signal 4"),
        ("raise ImportError('no such symbol')", "cannot be imported: ImportError: no such symbol"),
    ],
)
def test_doctor_survives_a_broken_onnxruntime(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    """An onnxruntime that dies on an illegal instruction, or fails to import, is exit code 6 with what to do."""
    (tmp_path / "onnxruntime.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = command(main, "doctor")
    assert result.code == 6
    assert f"onnxruntime {words}" in result.err
    python, *pip, requirement = shlex.split(result.err.partition("install")[2].partition(": ")[2])
    assert python == sys.executable
    assert pip[:3] == ["-m", "pip", "install"]
    assert requirement.startswith("onnxruntime")


@pytest.mark.parametrize(
    ("release", "another"),
    [("1.21.0", "onnxruntime!=1.21.0"), ("1.32.0", "onnxruntime<1.28"), ("1.28.0", "onnxruntime<1.28")],
)
def test_doctor_offers_another_release_than_the_one_that_crashes(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, another: str
) -> None:
    """What pip is asked for is not what is installed, so that the command does something."""
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    information = tmp_path / f"onnxruntime-{release}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {release}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    result = command(main, "doctor")
    assert result.code == 6
    assert shlex.split(result.err)[-1] == another
