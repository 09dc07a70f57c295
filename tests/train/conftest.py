"""Fixtures of the training's tests: PyTorch's number of threads, which commands set for the whole process."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """What a test does to PyTorch's number of threads ends with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads_as_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch and commands take one thread for the time of a test: small networks are slower on more."""
    monkeypatch.setenv("VAE_EDGE_THREADS", "1")
    torch.set_num_threads(1)
