"""How many threads to use, and a bounded, ordered map over them.

One rule: the argument, else the environment variable VAE_EDGE_THREADS, else the cores that this process may use. Each
thread runs whole chunks through a session that itself uses one thread; NumPy and onnxruntime both release the
interpreter's lock, so the chunks run side by side, and no thread waits in a spinning loop.
"""

import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from vae_runtime.errors import ArgumentError

VARIABLE = "VAE_EDGE_THREADS"
_MOST = 1024

T = TypeVar("T")
R = TypeVar("R")


def count(given: int | None = None) -> int:
    """The number of threads by the rule above. Raises ArgumentError where it is no positive integer."""
    if given is None and (text := os.environ.get(VARIABLE)):
        if not text.isdecimal() or len(text) > 9:
            raise ArgumentError(f"{VARIABLE} is no number", text, f"set it to 1 to {_MOST}, or not at all")
        given = int(text)
        if not 1 <= given <= _MOST:
            raise ArgumentError(f"{VARIABLE} out of range", text, f"set it to 1 to {_MOST}, or not at all")
    if given is None:
        return available_cores()
    try:
        threads = operator.index(given)  # NumPy's integers too
    except TypeError:
        threads = 0
    if not 1 <= threads <= _MOST:
        raise ArgumentError("threads out of range", given, f"give an integer from 1 to {_MOST}")
    return threads


def available_cores() -> int:
    """The cores that this process may use: its affinity, or less where a container's quota allows less; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control groups, or no quota ("max")
        return cores


_pool = threading.local()


def go_on() -> None:
    """Asked amid long work of an `ordered_map`: raises CancelledError where nobody waits for the result any more."""
    if getattr(_pool, "left", None) is not None and _pool.left.is_set():
        from concurrent.futures import CancelledError

        raise CancelledError


def ordered_map(threads: int, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `work` in the order of `items`, at most two items a thread ahead of the consumer.

    One item alone, or one thread, runs in the caller's thread.
    """
    items = iter(items)
    first = list(islice(items, 2))
    if threads == 1 or len(first) < 2:
        yield from map(work, chain(first, items))
        return
    from concurrent.futures import Future, ThreadPoolExecutor  # milliseconds that a short run need not wait for

    pending: deque[Future[R]] = deque()
    left = threading.Event()
    with ThreadPoolExecutor(threads, initializer=setattr, initargs=(_pool, "left", left)) as pool:
        try:
            for item in chain(first, items):
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            left.set()
            pool.shutdown(cancel_futures=True)
