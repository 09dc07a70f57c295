"""Single faults in good graphs: whatever changes the ELBO is caught, by the checks, by the loading or by the gate."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

_FEW = 20


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    """The benchmark that makes the faults."""
    path = Path(__file__).parents[2] / "benchmarks" / "mutations.py"
    spec = importlib.util.spec_from_file_location("mutations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def missed(mutations: ModuleType, outcomes: list) -> list[str]:
    """The faults that nobody noticed though they change the ELBO of an image by more than `ENOUGH`."""
    return [outcome.name for outcome in outcomes if outcome.largest > mutations.ENOUGH and not outcome.caught]


def test_faults_that_change_the_elbo_are_caught(mutations: ModuleType, tmp_path: Path) -> None:
    """Of twenty faults of as many kinds as there are, in networks with norms, none that matters is missed."""
    subject = mutations.Subject("norms, gaussian", 30, tmp_path)
    rng = np.random.default_rng(0)
    found = {fault.kind: fault for fault in subject.faults(each=1, rng=rng)}
    outcomes = [subject.put(found[kind]) for kind in rng.permutation(list(found))[:_FEW]]
    assert len(outcomes) == _FEW
    assert missed(mutations, outcomes) == []
    assert sum(outcome.largest > mutations.ENOUGH for outcome in outcomes) >= _FEW / 2
    assert str(_FEW) in mutations.table(outcomes).splitlines()[-1]


@pytest.mark.slow
def test_faults_of_every_kind_in_every_network_are_caught(mutations: ModuleType) -> None:
    """Of hundreds of faults in six trained models none that matters is missed, and few have no effect at all."""
    outcomes = list(mutations.run(mutations.MODELS, each=2, seed=0, steps=300))
    assert len(outcomes) > 400
    assert missed(mutations, outcomes) == []
    assert sum(outcome.largest > mutations.ENOUGH for outcome in outcomes) > 300
    by_kind = Counter(outcome.fault.kind for outcome in outcomes)
    assert len(by_kind) > 20
    assert min(by_kind.values()) >= 2
