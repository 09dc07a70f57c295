"""Fixtures that every part of the tests shares: commands, the tiny bundle, a run and its bundle, image sets.

Nothing but the runtime is imported until a fixture needs more.
"""

import gc
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support import bundles
from support.bundles import Forge, Loaded
from support.commands import Command, Result
from vae_runtime import VAE, noise
from vae_runtime.bundle import shipped

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as vae-train does: threads that wait leave the core to others


def pytest_configure() -> None:
    """Hear Ctrl-C again where a shell's background job ignores it, as the processes would that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hangup() -> Iterator[None]:
    """Hear SIGHUP where nohup has it ignored, as the processes would that a test starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Commands set PyTorch's number of threads for the whole process; on it depend the last bits of its results."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch:
        torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[object]:
    """What a test does to the number of threads ends with it."""
    with threads_as_before():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[object]:
    """Nor does a shared run or bundle, made when it is first asked for, change it for the test that asks."""
    with nullcontext() if fixturedef.scope == "function" else threads_as_before():
        return (yield)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
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


@pytest.fixture
def without_report() -> Iterator[None]:
    """Trainings that the test begins end without a report, which takes longer than they do."""
    from support import runs

    with runs.without_report():
        yield


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The committed bundle of scikit-learn's digits at 28x28, which support/make_tiny.py makes; nobody changes it."""
    return bundles.TINY


@pytest.fixture(scope="session", params=["tiny", pytest.param("shipped", marks=pytest.mark.slow)])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    """The tiny bundle and the one that ships, whose graphs are 85 times as large, each loaded once."""
    path = bundles.TINY if request.param == "tiny" else shipped()
    vae = VAE.load(path)
    samples = vae.sample(100, seed=5)
    pixels = noise.uniform(6, noise.PIXELS, np.arange(30), samples[0].size).reshape(30, *vae.observation.shape)
    return Loaded(path, vae, np.concatenate([samples, (pixels < 0.2).astype(np.float32)]))


@pytest.fixture
def forge(tiny_bundle: Path, tmp_path: Path) -> Forge:
    """`forge(files, change)`: the tiny bundle with other files and another manifest, every hash in it valid."""
    return partial(bundles.forge, tiny_bundle, tmp_path / "forged")


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's 1,797 digits at 28x28, in torchvision's MNIST layout: 1,500 to train on, 297 to test on."""
    from support import runs

    root = tmp_path_factory.mktemp("digits")
    runs.write_digits(root)
    return root


@pytest.fixture(scope="session")
def tiny_run(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder: the tutorial's networks made small, two epochs on the digits."""
    from support import runs

    out = tmp_path_factory.mktemp("runs") / "tiny"
    runs.train_tiny(digits_root, out)
    return out


@pytest.fixture(scope="session")
def run_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_run`, published by the exporter."""
    from support import operators
    from vae_export import exporter
    from vae_train import run_folder

    operators.remember()
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    exporter.export_run(run_folder.load(tiny_run), out)
    return out


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], object]], int]:
    """The most bytes that Python and NumPy hold at a time during a call, beyond those held before."""

    def measure(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real image sets, named by VAE_EDGE_DATA; tests that need it skip without it."""
    if "VAE_EDGE_DATA" not in os.environ:
        pytest.skip("needs the real image sets: VAE_EDGE_DATA=FOLDER, as CONTRIBUTING.md says")
    return Path(os.environ["VAE_EDGE_DATA"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the real image sets, so that `pytest -m data` runs just that."""
    for item in items:
        if "data_root" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
