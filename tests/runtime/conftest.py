"""Fixtures of the runtime's tests: a bundle to damage."""

import shutil
from pathlib import Path

import pytest

from support.hostile import Bench


@pytest.fixture(scope="module")
def bench(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A copy of the tiny bundle to damage."""
    return Bench(Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("hostile") / "bench")))
