"""Who is let in to compute, when many want to: fair turns, bounded waiting, and a place that is always given back."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vae_runtime.serve_limits import Deadline, Gate, Limits, Refused

MANY = {"rate": 1e6, "burst": 10**6}


def waiting(gate: Gate) -> dict[str, int]:
    """How many requests of each client wait, in the order of their turns."""
    with gate._lock:
        return {client: len(tickets) for client, tickets in gate._waiting.items()}


def until(condition) -> None:
    """Wait until the other threads have got so far."""
    latest = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.001)


class Crowd:
    """A gate of one place, which is taken, and requests that come one after the other, each in a thread."""

    def __init__(self, pool: ThreadPoolExecutor, waiting: int) -> None:
        self.gate = Gate(Limits(at_once=1, waiting=waiting, patience=60, **MANY))
        self.pool, self.entered, self.refused, self.open = pool, [], [], threading.Event()
        self.come("first")
        until(lambda: self.entered)

    def come(self, client: str) -> None:
        """A request of a client, which stays inside until the gate is told to open."""
        before = len(self.entered) + len(self.refused) + sum(waiting(self.gate).values())
        self.pool.submit(self._stay, client)
        until(lambda: len(self.entered) + len(self.refused) + sum(waiting(self.gate).values()) > before)

    def _stay(self, client: str) -> None:
        try:
            with self.gate.enter(client):
                self.entered.append(client)
                self.open.wait()
        except Refused as error:
            assert (error.status, error.after) == (503, 1)
            self.refused.append(client)


def test_clients_that_wait_take_turns():
    """Behind one client's many requests another one's first is the next but one, and its second waits for its turn."""
    with ThreadPoolExecutor(8) as pool:
        crowd = Crowd(pool, waiting=8)
        for client in "aaabb":
            crowd.come(client)
        assert waiting(crowd.gate) == {"a": 3, "b": 2}
        crowd.open.set()
    assert crowd.entered == ["first", "a", "b", "a", "b", "a"]
    assert crowd.refused == []


def test_whoever_sends_many_keeps_nobody_out():
    """Where all places to wait are taken, the client with most of them loses its last to one with fewer."""
    with ThreadPoolExecutor(8) as pool:
        crowd = Crowd(pool, waiting=3)
        for client in "aaa":
            crowd.come(client)
        crowd.pool.submit(crowd._stay, "b")
        until(lambda: waiting(crowd.gate) == {"a": 2, "b": 1} and crowd.refused == ["a"])
        crowd.come("a")  # which has most of them still
        assert crowd.refused == ["a", "a"]
        crowd.come("b")  # and would have as many
        assert (crowd.refused, waiting(crowd.gate)) == (["a", "a", "b"], {"a": 2, "b": 1})
        crowd.open.set()
    assert crowd.entered == ["first", "a", "b", "a"]


def test_waiting_ends_with_patience_and_leaves_no_trace():
    """Who waited too long is refused, and neither a place nor a turn is lost; an error inside gives the place back."""
    gate = Gate(Limits(at_once=1, waiting=4, patience=0.01, **MANY))
    with gate.enter("a"), pytest.raises(Refused), gate.enter("b"):
        pass
    assert waiting(gate) == {}
    with pytest.raises(ZeroDivisionError), gate.enter("a"):
        raise ZeroDivisionError
    with gate.enter("a") as deadline:
        assert isinstance(deadline, Deadline)


def test_many_threads_never_exceed_the_places():
    """Of 400 requests of 16 threads no more than three are inside at a time, and all are let in or refused."""
    gate = Gate(Limits(at_once=3, waiting=5, patience=60, **MANY))
    inside, most, told = [], [], []

    def ask(number: int) -> None:
        try:
            with gate.enter(str(number % 5)):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.remove(number)
            told.append("in")
        except Refused:
            told.append("refused")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(400)))
    assert max(most) == 3
    assert len(told) == 400 and {*told} == {"in", "refused"}
    assert (gate._inside, waiting(gate)) == (0, {})


def test_a_client_is_known_by_its_rate():
    """A burst, then as many as the rate fills; 5,000 other clients in between are remembered no more than needed."""
    gate = Gate(Limits(rate=1e-9, burst=2))
    for _ in range(2):
        with gate.enter("a"):
            pass
    with pytest.raises(Refused) as refused, gate.enter("a"):
        pass
    assert (refused.value.status, refused.value.after) == (429, 1)
    for i in range(5000):
        with gate.enter(str(i)):
            pass
    assert len(gate._left) == 4096
