"""Fixtures of the training's tests."""

import pytest
import torch


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch and commands take one thread for the time of a test: small networks are slower on more."""
    monkeypatch.setenv("VAE_EDGE_THREADS", "1")
    torch.set_num_threads(1)
