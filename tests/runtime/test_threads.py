"""The ordered map over threads, and how many threads there are."""

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from vae_runtime import ArgumentError, threads

EVERY = pytest.mark.parametrize("number", [1, 2, 3, 4])


@EVERY
def test_results_keep_their_order(number: int):
    """Results come in the order of the items although later items finish first."""

    def work(i: int) -> int:
        time.sleep(0.004 * (3 - i % 4))
        return i * i

    assert list(threads.ordered_map(number, work, range(20))) == [i * i for i in range(20)]
    assert list(threads.ordered_map(number, work, [])) == []


@EVERY
def test_the_map_is_lazy_and_bounded(number: int):
    """Of infinitely many items none is taken before the first result is asked for, then two a thread ahead at most."""
    taken: list[int] = []
    items = (taken.append(i) or i for i in itertools.count())
    results = threads.ordered_map(number, lambda i: -i, items)
    assert taken == []
    for k in range(1, 11):
        assert next(results) == 1 - k
        assert len(taken) <= k + 2 * number
    before = threading.active_count()
    results.close()
    assert threading.active_count() == before - (number if number > 1 else 0)


@EVERY
def test_the_first_exception_is_raised(number: int):
    """The results before it are delivered, then the exception of the first failing item, by order, is raised."""

    def work(i: int) -> int:
        if i in (3, 4, 9):
            time.sleep(0.02 * (i == 3))  # 4 fails before 3 does
            raise LookupError(i)
        return i

    results = threads.ordered_map(number, work, itertools.count())
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(LookupError, match="3"):
        next(results)


def test_one_item_runs_in_the_callers_thread():
    """A single item, or a single thread, needs no pool; two items on two threads leave the caller's."""
    here = threading.get_ident()
    assert list(threads.ordered_map(4, lambda _: threading.get_ident(), [0])) == [here]
    assert list(threads.ordered_map(1, lambda _: threading.get_ident(), [0, 0])) == [here] * 2
    assert here not in list(threads.ordered_map(2, lambda _: threading.get_ident(), [0, 0]))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_numpys_integers_count():
    """A number of threads may be NumPy's integer; what is no integer is refused."""
    assert threads.count(np.int64(3)) == 3
    for wrong in (np.int64(0), 2.0, "2"):
        with pytest.raises(ArgumentError, match="threads out of range"):
            threads.count(wrong)  # type: ignore[arg-type]


def test_available_cores_respect_the_affinity():
    """At least one core, no more than the affinity allows, and one where a process is bound to one."""
    assert 1 <= threads.available_cores() <= len(os.sched_getaffinity(0))
    script = (
        "import os; from vae_runtime.threads import available_cores\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(available_cores())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"
