"""A person's own arrays: images [n, C, H, W] or [n, H, W], or rows of numbers [n, D]; the runtime reads the files.

An .npz may hold the classes `y` of its observations `x`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import array_files, sources, vectors
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import VECTOR, Observation
from vae_train import levels
from vae_train.config import Config, DataConfig
from vae_train.data import Data, split

_WIDE = 30  # how many times a column's spread may be another's, and a mean its spread, before that is noted
_USUAL = (0.1, 10)  # spreads that the networks' first weights are made for


def observation(data: DataConfig) -> Observation:
    """Kind and shape of an array's observations, from its header alone; rows of numbers have no range.

    Raises InputError for an array of another shape; ArgumentError where it would need resizing.
    """
    path = Path(data.dataset)
    if data.image_size or data.channels:
        raise ArgumentError("an array's observations are not resized", path, "leave out --image-size and --channels")
    found = array_files.array_shape(str(path), "x")
    what = f"array of shape {list(found)}"
    if len(found) == 2:
        return Observation(VECTOR, found[1:], None)
    if len(found) not in (3, 4):
        raise InputError(what, path, "give images [n, C, H, W] or [n, H, W], or rows of numbers [n, D]")
    channels = found[1] if len(found) == 4 else 1
    if channels not in (1, 3) and found[3] in (1, 3):
        raise InputError(what, path, "put the channels first: x.transpose(0, 3, 1, 2)")
    if channels not in (1, 3):
        raise InputError(what, path, "give images of 1 (grey) or 3 (RGB) channels")
    return Observation.image((channels, *found[-2:]))


def load(config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
    """The observations of the array that `config.data` names; `warn` is told what is lost, `say` what is noticed.

    Raises InputError where they cannot be read, are no numbers or are too few; ArgumentError where the likelihood is
    not one of such values.
    """
    path, kind = Path(config.data.dataset), observation(config.data)
    if kind.kind == VECTOR:
        x, kind, preprocessing = _rows(config, kind, say)
    else:
        read = sources.Observations([path], kind, Preprocessing(config.data.levels))
        pixels = levels.joined([levels.kept(x) for x in read.batches(1024)])
        x, rounded = levels.observed(pixels, config.network.likelihood, warn)
        preprocessing = {"levels": "as they are"}
        preprocessing |= {"full_scale": config.data.levels} if config.data.levels else {}
        preprocessing |= rounded
    labels, names = _classes(path, len(x), kind.noun)
    return split(x, labels, names, kind, preprocessing)


def _rows(
    config: Config, kind: Observation, say: Callable[[str], None]
) -> tuple[NDArray[np.float32], Observation, dict[str, Any]]:
    """Rows [n, D] as float32, what they are under the likelihood, and how they were read."""
    name, values = array_files.read_array(config.data.dataset, "x")
    x = vectors.from_numbers(values, name, 0)
    likelihood = config.network.likelihood
    if likelihood == "bernoulli":
        if len(bad := np.argwhere((x != 0) & (x != 1))):
            row, column = bad[0].tolist()
            what = "values other than 0 and 1 under a Bernoulli likelihood"
            which = f"{name}[{row}], column {column}, is {x[row, column]:g}"
            raise InputError(what, which, "add --likelihood gaussian")
        kind = Observation(VECTOR, kind.shape, (0.0, 1.0))
    elif likelihood == "discretised-logistic":
        todo = "add --likelihood gaussian"
        raise ArgumentError(f"{likelihood} is a likelihood of 8-bit levels, not of rows of numbers", name, todo)
    if (lost := np.abs(x.astype(np.float64) - values.astype(np.float64)).max(initial=0)) > 0:
        say(f"{values.dtype} values are taken as float32; the largest change is {lost:.1g}")
    if likelihood == "gaussian" and (note := _unlike(x)):
        say(note)
    return x, kind, {"values": f"{values.dtype} as float32"}


def _unlike(x: NDArray[np.float32]) -> str:
    """A note where columns differ so much that one sigma, and weights of one size, cannot serve them all."""
    means, spreads = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    alive = np.flatnonzero(spreads > 0)
    if not len(alive):
        return ""
    low, high = (alive[int(pick(spreads[alive]))] for pick in (np.argmin, np.argmax))
    far = alive[int(np.argmax(np.abs(means[alive]) / spreads[alive]))]
    todo = "one sigma is learned for all: scale the columns first, (x - mean) / spread"
    if spreads[high] > _WIDE * spreads[low]:
        return f"columns' spreads are from {spreads[low]:.2g} (column {low}) to {spreads[high]:.2g} ({high}); {todo}"
    if abs(means[far]) > _WIDE * spreads[far]:
        return f"column {far} has a mean of {means[far]:.2g} and a spread of {spreads[far]:.2g}; {todo}"
    if not _USUAL[0] < spreads[low] <= spreads[high] < _USUAL[1]:
        return f"columns' spreads are about {spreads[high]:.2g}, which networks learn slowly or not at all; {todo}"
    return ""


def _classes(path: Path, observations: int, noun: str) -> tuple[NDArray[np.int64], list[str]]:
    """The label of each observation, and the names of the classes: one class where none are given."""
    labelled = False
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            labelled = "y" in archive.files
    if not labelled:
        return np.zeros(observations, np.int64), ["all"]
    y = array_files.read_array(str(path), "y")[1]
    if y.shape != (observations,):
        todo = f"give one for each of its {observations:,} {noun}s"
        raise InputError(f"labels y of shape {list(y.shape)}", path, todo)
    found, labels = np.unique(y, return_inverse=True)
    return labels.astype(np.int64), [str(name) for name in found]
