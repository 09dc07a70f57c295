"""Fixtures that every part of the tests shares: a small real image set, a run and bundles made from it, commands."""

import gc
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_export import bundle
from vae_runtime.bundle import FILES, dump_manifest
from vae_train import checkpoint, train
from vae_train.config import PRESETS, Place


def pytest_configure() -> None:
    """Hear Ctrl-C again where a shell's background job ignores it, as the processes would that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run an entry point in this process: `command(main, "sample", "-n", 4)`."""

    def call(main: Callable[[], None], *args: object) -> Result:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        gc.unfreeze()  # vae-infer freezes what it has imported, as a process of its own may
        out, err = capsys.readouterr()
        return Result(int(left.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's 1,797 digits at 28x28, in torchvision's MNIST layout: 1,500 to train on, 297 to test on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = (digits.images / 16 * 255).astype(np.uint8)  # [1797, 8, 8]
    images = np.stack([np.asarray(Image.fromarray(x).resize((28, 28), Image.Resampling.BICUBIC)) for x in levels])
    root = tmp_path_factory.mktemp("digits")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        write_idx(raw / f"{name}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{name}-labels-idx1-ubyte", digits.target[part].astype(np.uint8))
    return root


@pytest.fixture(scope="session")
def tiny_run(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder: the tutorial's networks made small, two epochs on the digits."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = PRESETS["tutorial"].replace(hidden=(32,), latent_dim=4, epochs=2)
    train.train(config, out, Place(digits_root, download=False), command="vae-train --epochs 2")
    return out


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_run`, published by the exporter."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    bundle.export(checkpoint.load(tiny_run), out, opset=17, judge=lambda rows, heading: None)
    return out


@pytest.fixture
def forge(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the tiny bundle, replace files and change the manifest, and make every hash in it valid again."""

    def make(files: dict[str, bytes] | None = None, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        out = tmp_path / "forged"
        shutil.copytree(tiny_bundle, out)
        manifest = json.loads((out / "manifest.json").read_bytes())
        del manifest["sha256"]
        for name, data in (files or {}).items():
            (out / name).write_bytes(data)
        for name in FILES:
            data = (out / name).read_bytes()
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if change:
            change(manifest)
        (out / "manifest.json").write_bytes(dump_manifest(manifest))
        return out

    return make


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real image sets, named by VAE_EDGE_DATA; tests that need it skip without it."""
    if "VAE_EDGE_DATA" not in os.environ:
        pytest.skip("VAE_EDGE_DATA does not name the real image sets")
    return Path(os.environ["VAE_EDGE_DATA"])


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array in the IDX format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())
