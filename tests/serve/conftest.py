"""The service in this process, asked without a network, and as a process of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from support.programs import Start, starting
from vae_runtime import VAE, Detector
from vae_runtime.serve import app


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the examples."""
    return Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    """The shipped model's service, asked in this process."""
    vae = VAE.load(threads=1)
    return app(vae, Detector.load(vae)).test_client()


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start `vae-infer serve` with more words, and words before the verb as `bundle`; what still runs is killed."""
    with starting(sys.executable, "-m", "vae_runtime") as program:
        yield lambda *words, before=(): program(*before, "serve", *words)
