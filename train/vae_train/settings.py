"""The settings of a training by their names, as `fit` takes them: typed for editors, and a wrong name is told."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from vae_runtime.errors import ArgumentError


class Settings(TypedDict, total=False):
    """What `fit` and `Config.replace` take by name; `vae_train.config` says what each of them means."""

    image_size: int | Sequence[int]
    channels: Literal[1, 3]
    levels: int
    columns: Sequence[str]
    encode: Sequence[str]
    window: int
    stride: int
    label: str
    normal: str
    missing: Literal["refuse", "drop"]
    held_out: Literal["hash", "last", "blocks"]
    augment: Sequence[str]
    architecture: Literal["mlp", "resnet", "conv1d"]
    hidden: int | Sequence[int]
    activation: Literal["relu", "silu", "gated"]
    blocks: int
    dense: int
    model: str | Callable[..., Any]
    latent_dim: int
    likelihood: Literal[
        "bernoulli",
        "gaussian",
        "heteroscedastic-gaussian",
        "student-t",
        "mixed",
        "discretised-logistic",
        "auto",
    ]
    sigma: Literal["one", "column", "value"]
    prior: Literal["standard-normal", "flow"]
    samples: int
    gradient: Literal["path", "total"]
    beta: float
    warm_up: float
    free_bits: float
    epochs: int
    batch_size: int
    lr: float
    precision: Literal["float32", "bfloat16", "auto"]
    seed: int
    steps: int
    patience: int


_SEVERAL = ("image_size", "columns", "encode", "augment", "hidden")


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as `Config.replace` takes them: sequences as tuples, and one number or name as several of one.

    Raises ArgumentError for a name that is none, with the nearest one that is.
    """
    for name in given:
        if name not in Settings.__annotations__:
            near = difflib.get_close_matches(name, Settings.__annotations__, 1, 0.5)
            todo = f"did you mean {near[0]}?" if near else f"give some of {', '.join(Settings.__annotations__)}"
            raise ArgumentError("no such setting", name, todo)
    found = {name: value for name, value in given.items() if value is not None}
    for name in _SEVERAL:
        if name in found:
            one = isinstance(found[name], str | int)
            found[name] = (found[name],) * (2 if name == "image_size" else 1) if one else tuple(found[name])
    return found
