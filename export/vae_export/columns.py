"""Columns of rows and of series said as data, of a network trained elsewhere; scikit-learn's scalers are translated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_export.preprocessing import Numbers, from_words, numbers
from vae_runtime import records
from vae_runtime.errors import ArgumentError
from vae_runtime.manifest import Windows
from vae_runtime.observation import SERIES, VECTOR, Observation
from vae_runtime.windows import usual_stride


@dataclass(frozen=True)
class Columns:
    """What a network of rows or series takes: (value - mean) / std of named columns, in an order of its own.

    columns: their names; none where they have none. mean, std: one number, or one for each column. stride: of series,
    rows from a window's start to the next one's; None for the usual. time: of series, the column of the rows' times.
    interval: what usually lies between two of them, in its unit, or seconds of dates; what is longer is a gap.

    The device does it, in float64, and takes tables whose columns are in any order; figures are densities in the
    columns' own units. Raises ArgumentError, naming the field, where one is not what it must be.

    Example:
        Columns(("pulse", "pressure"), mean=(70.0, 120.0), std=(9.0, 15.0))
    """

    columns: tuple[str, ...] = ()
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    stride: int | None = None
    time: str | None = None
    interval: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.columns, str) or not all(isinstance(name, str) and name for name in self.columns):
            raise ArgumentError("columns that are no names", repr(self.columns), "give a list of names")
        object.__setattr__(self, "columns", tuple(self.columns))
        if len({*self.columns}) < len(self.columns):
            raise ArgumentError("a column comes twice", ", ".join(self.columns), "give each one once")
        for name in ("mean", "std"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ArgumentError("std that is not positive", list(self.std), "give what columns are divided by")

    def entry(self, observation: Observation) -> dict[str, Any]:
        """What a manifest says of it under `preprocessing`.

        observation: what the bundle is of.
        Raises ArgumentError where it is of another number of columns, or of windows where there are none.
        """
        if observation.kind not in (VECTOR, SERIES):
            raise ArgumentError("preprocessing of columns", f"for an {observation.noun}", "say mean, std and steps")
        count, written = observation.shape[0], dict[str, Any]()
        for name in ("columns", "mean", "std"):
            if len(given := getattr(self, name)) not in ((0, count) if name == "columns" else (1, count)):
                which = f"{len(given)} for {observation.noun}s of shape {list(observation.shape)}"
                raise ArgumentError(f"{name} of another number", which, f"give {count}")
        mean, std = (given * count if len(given) == 1 else given for given in (self.mean, self.std))
        if self.columns or {*mean} != {0.0} or {*std} != {1.0}:
            names = self.columns or tuple(f"column {i}" for i in range(count))
            each = zip(names, mean, std, strict=True)
            written["columns"] = [{"name": name, "mean": m, "scale": s} for name, m, s in each]
        windows = {name: value for name in ("stride", "time", "interval") if (value := getattr(self, name)) is not None}
        if windows and observation.kind != SERIES:
            raise ArgumentError(f"{next(iter(windows))} of rows", next(iter(windows.values())), "leave it out")
        if windows:
            try:
                records.parse(Windows, windows := {"stride": usual_stride(observation.shape[1]), **windows})
            except ValueError as error:
                raise ArgumentError("windows not understood", error, "give stride, time and interval") from None
            written["windows"] = windows
        return written


def of(given: Any) -> Columns:
    """Columns from a `Columns`, a mapping of its words, or a scaler of scikit-learn.

        of({"columns": ["pulse", "pressure"], "mean": [70, 120], "std": [9, 15]})
        of(StandardScaler().fit(frame))
        of({"scaler": StandardScaler().fit(array), "columns": ["pulse", "pressure"]})

    Scalers are StandardScaler, MinMaxScaler, MaxAbsScaler and RobustScaler, fitted; one that was fitted to a data frame
    knows its columns.
    Raises ArgumentError, which names the word or the scaler that cannot be translated, and says what to do.
    """
    if isinstance(given, Columns):
        return given
    return from_words(Columns, given, "scaler", _of_scaler) if isinstance(given, Mapping) else _of_scaler(given)


def _of_scaler(scaler: Any) -> Columns:
    """A scaler that was fitted, as it scales: known by its class's name, so that nothing is imported."""
    kind = type(scaler)
    name = kind.__name__ if kind.__module__.startswith("sklearn.preprocessing") else ""
    todo = "give columns, mean and std: values are taken as (value - mean) / std, and no otherwise"
    try:
        match name:
            case "StandardScaler":
                mean, std = scaler.mean_ if scaler.with_mean else 0.0, scaler.scale_ if scaler.with_std else 1.0
            case "RobustScaler":
                mean, std = scaler.center_ if scaler.with_centering else 0.0, scaler.scale_
                std = std if scaler.with_scaling else 1.0
            case "MaxAbsScaler":
                mean, std = 0.0, scaler.scale_
            case "MinMaxScaler":
                mean, std = -scaler.min_ / scaler.scale_, 1 / scaler.scale_
            case _:
                raise ArgumentError("scaler cannot be translated", kind.__name__, todo)
    except AttributeError:
        raise ArgumentError(
            "scaler that was not fitted", kind.__name__, "call its fit with what was trained on"
        ) from None
    if getattr(scaler, "clip", False):
        raise ArgumentError("scaler cannot be translated", f"{kind.__name__}(clip=True)", todo)
    names = getattr(scaler, "feature_names_in_", np.empty(0)).tolist()
    return Columns(tuple(map(str, names)), numbers("mean", mean), numbers("std", std))
