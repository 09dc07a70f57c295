"""Rows of numbers to train on, from arrays and tables: constant columns are left out, the others scaled."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.indicators import Indicator
from vae_runtime.manifest import Column
from vae_runtime.observation import VECTOR, Observation
from vae_runtime.tables import as_label
from vae_runtime.vectors import Scaling
from vae_train.config import AUTO, Config
from vae_train.data import TEST_SHARE, Data, in_test, too_few

_NORMAL_SHARE = 0.5
_AT_A_TIME = 1024
_FEW = 200  # rows, below which figures and columns' scales mean little

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


def observation(names: Sequence[str | Indicator], likelihood: str) -> Observation:
    """What rows of these columns are under a likelihood: of 0 and 1, or of any real numbers."""
    return Observation(VECTOR, (len(names),), (0.0, 1.0) if likelihood == "bernoulli" else None)


def prepared(
    config: Config,
    name: str,
    columns: Sequence[str | Indicator],
    values: Doubles,
    labels: NDArray[np.str_] | None,
    say: Callable[[str], None],
    test: NDArray[np.bool_] | None = None,
) -> Data:
    """The data of a training from rows [n, D] of finite numbers, and a label for each if there are any.

    Constant columns are left out, and `say` is told. Where `config.data.normal` names a label, half of the rows that
    have it are trained on and the other half is tested on; else nine in ten are trained on. Each column is scaled to
    mean 0 and spread 1 by the rows that are trained on, but for those that a likelihood takes as binary. name: of the
    source, for errors. values: are used up, since what is trained on is kept in their memory. test: which rows are
    kept for testing, bool [n], where somebody has chosen them.

    Raises InputError for values that the likelihood does not know, and for too few rows; ArgumentError for a likelihood
    of other observations.
    """
    data, likelihood = config.data, config.network.likelihood
    refuse_levels(likelihood, name)
    numbers = np.arange(len(values))
    if data.normal is not None:
        which = _normal(labels, data.normal, name, say)
        keep(values, which)
        numbers = numbers[which]
        labels = None if labels is None else labels[which]
        test = None if test is None else test[which]
    split = _how(config) if test is None else "given"
    test = _test(config, values) if test is None else test
    if test.all() or not test.any():
        raise too_few(values, "row")
    if len(values) - test.sum() < _FEW:
        say(f"{len(values) - test.sum()} rows to train on are few: some hundreds make figures that mean something")
    living = alive(columns, values, ~test, name, say)
    if likelihood == "bernoulli":
        refuse_others(values, columns, living, name, numbers)
    flags = [columns[i] for i in living if holds_flags(values[:, i])]
    if likelihood == AUTO:
        likelihood = chosen(flags, len(living), say)
    unscaled = {"bernoulli": columns, "mixed": flags}.get(likelihood, ())
    known = [column(columns[i], values[~test, i], scaled=columns[i] not in unscaled) for i in living]
    kind = observation([column.name for column in known], likelihood)
    train, kept = map(torch.from_numpy, _standardised(values, test, living, known, kind))
    names, numbers = ["all"], np.zeros(test.sum(), np.int64)
    if labels is not None:
        classes, of_each = np.unique(labels, return_inverse=True)
        names, numbers = classes.tolist(), of_each.astype(np.int64)[test]
    how = {"columns": [written(column) for column in known], "split": split}
    return Data(train, kept, torch.from_numpy(numbers), names, how, kind, likelihood)


def holds_flags(column: Doubles) -> bool:
    """Whether a column holds only 0 and 1."""
    return bool(((column == 0) | (column == 1)).all())


def chosen(flags: Sequence[str | Indicator], columns: int, say: Callable[[str], None]) -> str:
    """The likelihood of rows of so many columns, of which those named hold only 0 and 1, as `say` is told."""
    if not flags:
        return "gaussian"
    todo = "--likelihood gaussian takes them as real numbers"
    if len(flags) == columns:
        say(f"all columns hold 0 and 1 alone, the likelihood is bernoulli; {todo}")
        return "bernoulli"
    which = "a column of 0 and 1 is" if len(flags) == 1 else f"{len(flags)} columns of 0 and 1 are"
    say(f"{which} taken as such, the likelihood is mixed: {', '.join(map(str, flags))[:200]}; {todo}")
    return "mixed"


def _test(config: Config, values: Doubles) -> NDArray[np.bool_]:
    """Which rows are kept for testing: bool [n]."""
    if config.data.held_out == "last":
        return np.arange(len(values)) >= len(values) - max(1, round(TEST_SHARE * len(values)))
    return in_test(values) if config.data.normal is None else in_test(values, _NORMAL_SHARE, config.optimiser.seed)


def _how(config: Config) -> str:
    """How rows were split, in words."""
    if config.data.held_out == "last":
        return "the last tenth"
    if config.data.normal is None:
        return "a tenth, by the sha256 of the values"
    of = f"{config.data.label} {config.data.normal}"
    return f"half of the rows of {of}, by the sha256 of the values and seed {config.optimiser.seed}"


def _normal(labels: NDArray[np.str_] | None, normal: str, name: str, say: Callable[[str], None]) -> NDArray[np.bool_]:
    """Which rows have a label, bool [n]. Raises InputError where none has it."""
    if labels is None:
        raise ArgumentError("--normal without labels", name, "name their column with --label")
    which: NDArray[np.bool_] = labels == as_label(normal)
    if not which.any():
        found = ", ".join(np.unique(labels).tolist()[:9])
        raise InputError(f"no row is labelled {normal}", name, f"name one of its labels: {found}")
    if odd := int(len(labels) - which.sum()):
        say(f"{odd:,} rows with another label than {normal} are left out; {which.sum():,} have it")
    return which


def keep(values: Doubles, which: NDArray[np.bool_]) -> None:
    """Leave out the other rows of an array of its own memory, [n, D], in its place, and give their memory back."""
    count = 0
    for start in range(0, len(values), _AT_A_TIME):
        some = values[start : start + _AT_A_TIME][which[start : start + _AT_A_TIME]]
        values[count : count + len(some)] = some
        count += len(some)
    values.resize((count, values.shape[1]), refcheck=False)


def alive(
    columns: Sequence[str | Indicator], values: Doubles, train: NDArray[np.bool_], name: str, say: Callable[[str], None]
) -> list[int]:
    """The columns that are not constant among the rows that are trained on. Raises InputError where none is left."""
    first = values[np.argmax(train)]
    alive = [i for i in range(len(columns)) if (values[train, i] != first[i]).any()]
    if not alive:
        raise InputError("all columns are constant", name, "give columns that differ from row to row")
    if constant := [f"{columns[i]} ({first[i]:g})" for i in range(len(columns)) if i not in alive]:
        say(f"constant columns are left out: {', '.join(constant)}")
    return alive


def written(column: Column) -> dict[str, Any]:
    """A column as a run and a bundle have it."""
    return {name: value for name, value in asdict(column).items() if value is not None}


def column(of: str | Indicator, values: Doubles, scaled: bool) -> Column:
    """A column with the mean and the spread of these values of it; with 0 and 1 where values are not scaled."""
    name, made = str(of), of._asdict() if isinstance(of, Indicator) else {}
    if not scaled:
        return Column(name, **made)
    with np.errstate(over="ignore", invalid="ignore"):
        return scaled_column(name, float(values.mean()), float(values.std()), **made)


def scaled_column(name: str, mean: float, spread: float, **made: Any) -> Column:
    """A column with this mean and spread; made: of which column and value, where it is one of 0 and 1.

    Raises InputError for a spread that float64 can hardly divide by.
    """
    if not 1e-150 < spread < 1e150:
        raise InputError(f"a spread of {spread:.0e}", f"column {name}", "give it in another unit, or leave it out")
    return Column(name, mean, spread, **made)


def _standardised(
    values: Doubles, test: NDArray[np.bool_], alive: list[int], columns: list[Column], kind: Observation
) -> tuple[Floats, Floats]:
    """These columns as the networks take them, of the rows to train on and of those to test on.

    There may be millions: those to train on are written over the values that have been read, whose other half is given
    back, so that no more is ever held than these and the rows to test on.
    """
    scaling, n = Scaling.of(columns, kind), len(columns)
    assert scaling is not None
    kept = np.empty((int(test.sum()), n), np.float32)
    size = n * (len(test) - len(kept))  # of what is trained on, in numbers
    train, tested = values.reshape(-1).view(np.float32), 0
    for start in range(0, len(test), _AT_A_TIME):
        some, of_test = values[start : start + _AT_A_TIME], test[start : start + _AT_A_TIME]
        x = scaling.standardise(some[:, alive])
        if len(bad := np.argwhere(~np.isfinite(x))):
            which = f"column {columns[bad[0, 1]].name}, {some[bad[0, 0], alive[bad[0, 1]]]:g}"
            raise InputError("value too far from all others", which, "clean the data, or leave that row out")
        begin, trained = n * (start - tested), x[~of_test].ravel()
        train[begin : begin + len(trained)] = trained  # a float32 takes half the room: never reaches what is unread
        kept[tested : tested + of_test.sum()] = x[of_test]
        tested += int(of_test.sum())
    values.resize((size + 1) // 2, refcheck=False)
    return values.view(np.float32)[:size].reshape(-1, n), kept


def refuse_levels(likelihood: str, name: str) -> None:
    """Raise ArgumentError for a likelihood of levels; name: of the source of the numbers."""
    if likelihood == "discretised-logistic":
        todo = "add --likelihood gaussian"
        raise ArgumentError(f"{likelihood} is a likelihood of 8-bit levels, not of rows of numbers", name, todo)


def refuse_others(
    values: Doubles, columns: Sequence[str | Indicator], alive: list[int], name: str, numbers: NDArray[np.int64]
) -> None:
    """Raise InputError where a value [n, D] of a column that is alive is neither 0 nor 1; numbers: the rows'."""
    for start in range(0, len(values), _AT_A_TIME):
        some = values[start : start + _AT_A_TIME, alive]
        if len(bad := np.argwhere((some != 0) & (some != 1))):
            row, column = bad[0].tolist()
            what = "values other than 0 and 1 under a Bernoulli likelihood"
            which = f"{name}[{numbers[start + row]}], column {columns[alive[column]]}, is {some[row, column]:g}"
            raise InputError(what, which, "add --likelihood gaussian")
