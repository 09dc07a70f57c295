"""The data of a training, in memory with the precision that it came with, whatever the source: `load` reads it all."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import array_files, records
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.manifest import Column, Preprocessing
from vae_runtime.observation import IMAGE, VECTOR, Observation
from vae_runtime.sources import files_in
from vae_runtime.vectors import Scaling
from vae_train import pixels
from vae_train.config import DATASETS, Config, DataConfig, Place
from vae_train.listener import silent as silent
from vae_train.run_folder import Settings
from vae_train.streamed import Streamed

TEST_SHARE = 0.1
USUAL_WINDOW = 64
GIVE_THEM = "give them to vae_train.evaluate or resume, or name with --dataset the file in which they are saved"
_NAME_THEM = "name with --dataset where the {}s are that the run was trained on"


@dataclass(frozen=True)
class Data:
    """What a training observes: `train` and `test` [n, *shape], labels int64 [n], `names` the classes'.

    Values are float32, of images in [0, 1], or uint8 levels where images have such; a likelihood of these has others
    rounded. What is trained on may be read as it is needed. preprocessing: how files became these values, for the run
    and the bundle. likelihood: what "auto" is here. before: how many others a fixed draw of binary images draws before
    those to test on; None for as many as the literature does.
    """

    train: Tensor | Streamed
    test: Tensor
    test_labels: Tensor
    names: list[str]
    preprocessing: dict[str, Any]
    observation: Observation
    likelihood: str = "gaussian"
    before: int | None = None

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of rows, or channels of series, in order; of images none."""
        return records.parse(Preprocessing, self.preprocessing).columns

    @property
    def scaling(self) -> Scaling | None:
        """From the columns' units to what networks take, and back; None where there are no columns."""
        return Scaling.of(self.columns, self.observation)

    @property
    def overlap(self) -> float:
        """In how many test observations each of their values is: of windows that overlap, more than one."""
        return float(self.preprocessing.get("overlap", 1.0))

    def digest(self) -> str:
        """sha256 of the bytes of all observations, to train on and to test on; of what is streamed a sample's."""
        sha256 = hashlib.sha256()
        for part in (self.sample, self.test):
            sha256.update(part.numpy().tobytes())
        return sha256.hexdigest()

    @property
    def sample(self) -> Tensor:
        """All that is trained on, or where it is streamed a part from all over it."""
        return self.train if isinstance(self.train, Tensor) else self.train.sample

    def observed_test(self, binary: bool) -> Tensor:
        """The test observations as a likelihood sees them: as they are, or the literature's binary draw of images."""
        return self._drawn_test if pixels.drawn(binary, self.observation) else self.test

    @cached_property
    def _drawn_test(self) -> Tensor:
        return pixels.fixed_draw(self.test, self.drawn_before)

    @property
    def drawn_before(self) -> int:
        """How many other images a fixed draw of binary ones draws before those to test on."""
        known = pixels.drawn_before(len(self.train)) if isinstance(self.train, Tensor) else 0
        return known if self.before is None else self.before

    def observed_train(self, binary: bool) -> Tensor:
        """As many of those to train on, as a likelihood sees them; from all over, since files lie in order of class."""
        some = self.sample[:: max(1, len(self.sample) // len(self.test))][: len(self.test)]
        return pixels.fixed_draw(some) if pixels.drawn(binary, self.observation) else some

    def is_grey(self) -> bool:
        """Whether any value of [0, 1] is neither 0 nor 1."""
        parts = (self.sample, self.test)
        return any(bool(((part > 0) & (part < (255 if part.dtype == torch.uint8 else 1))).any()) for part in parts)


def load(
    config: Config,
    root: Path,
    download: bool = True,
    warn: Callable[[str], None] = silent,
    say: Callable[[str], None] = silent,
) -> Data:
    """The data that `config.data` names; named sets lie under `root`, and may be downloaded where missing.

    warn is told what is left out or lost, say what was changed. Raises InputError when files are missing and cannot be
    had, or are damaged; ArgumentError where they do not go with the settings.
    """
    path = Path(config.data.dataset)
    if config.data.dataset in DATASETS:
        refuse_options(config.data)
        from vae_train import named_sets  # torchvision takes seconds

        return named_sets.load(config.data, root, download)
    if not config.data.dataset or not path.exists():
        todo = f"name {', '.join(DATASETS)}, a folder of images or tables, a table or an array"
        raise InputError("data not found", config.data.dataset or "an empty name", todo)
    source, test = _source(path), config.data.test
    if test is not None and not Path(test).exists():
        raise InputError("test data not found", test, "name what --dataset could name")
    if test is not None and _source(Path(test)) is not source:
        raise InputError("test data of another kind", test, f"give such as {path}")
    return source.load(config, warn, say)


class Source(Protocol):
    """What gives data that no path names: arrays in memory, say."""

    def fitted(self, config: Config, say: Callable[[str], None]) -> Config:
        """The settings with what the observations are read with, where it was not given, as `fitted` finds it."""

    def load(self, config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
        """The data, as `load` gives them."""


class _Source(Protocol):
    """A module that reads a person's own data."""

    def observation(self, data: DataConfig) -> Observation: ...
    def count(self, data: DataConfig) -> int: ...
    def load(self, config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data: ...


def _source(path: Path) -> _Source:
    """What reads the person's own data at this path."""
    from vae_train import arrays, folders, tables  # which return what is defined here

    if path.is_dir():
        of_tables = files_in(path, VECTOR) and not files_in(path, IMAGE)
        return tables if of_tables else folders
    return tables if tables.is_table(path) else arrays


def observation(data: DataConfig) -> Observation:
    """Kind and shape of a person's own observations, told without reading them all. Raises what `load` does."""
    return _source(Path(data.dataset)).observation(data)


def apart(files: Sequence[Path], tested: Sequence[Path], say: Callable[[str], None] = silent) -> list[Path]:
    """Those of the files to train on that are not tested on too, wherever links lead; `say` is told of the others.

    Raises InputError where all are tested on.
    """
    known = {path.resolve() for path in tested}
    found = [path for path in files if path.resolve() not in known]
    if files and not found:
        todo = "name others to test on, or leave out --test"
        raise InputError("nothing to train on but the test data", files[0], todo)
    if both := len(files) - len(found):
        say(f"{both:,} of {len(files):,} files are in the test data too, and are not trained on")
    return found


def refuse_options(data: DataConfig, but: tuple[str, ...] = ()) -> None:
    """Raise ArgumentError where a setting for tables was given, `but` for these."""
    usual = DataConfig()
    for name in ("columns", "encode", "label", "normal", "missing", "held_out", "window", "stride", "test"):
        if name not in but and getattr(data, name) != getattr(usual, name):
            option = "--split" if name == "held_out" else f"--{name}"
            raise ArgumentError(f"{option} is for tables", data.dataset, "leave it out")


def look(data: DataConfig) -> tuple[Observation, int]:
    """What a person's own observations are, and about how many there are, told without reading them all.

    A folder's images are not counted: 0. Raises what `load` does.
    """
    source = _source(Path(data.dataset))
    return source.observation(data), source.count(data)


def usual_window(dataset: str) -> int:
    """How many rows are a window of a person's own data where nothing says it: of an array [n, C, T] T, of rows 64."""
    from vae_train import tables

    path = Path(dataset)
    shape = () if path.is_dir() or tables.is_table(path) else array_files.array_shape(dataset, "x")
    return shape[2] if len(shape) == 3 else USUAL_WINDOW


def fitted(config: Config, say: Callable[[str], None] = silent) -> Config:
    """The settings with what their observations are read with, where it was not given.

    Those are a folder's size and channels, and the full scale of 16-bit levels, told from the largest one, which `say`
    is told. Raises ArgumentError where levels are given and no file has 16 bits.
    """
    from vae_train import folders, levels

    data, path = config.data, Path(config.data.dataset)
    if data.dataset in DATASETS or not path.exists():
        return config
    kind = observation(data)
    if data.augment and kind.kind != IMAGE:
        raise ArgumentError("--augment is for images", data.dataset, "leave it out")
    if path.is_dir() and kind.kind == IMAGE:
        config = folders.fitted(config, say)
    paths = [path, *(Path(test) for test in (data.test,) if test is not None)] if kind.kind == IMAGE else []
    found = [levels.largest(each, torch.get_num_threads()) for each in paths if each.exists()]
    largest = max((top for top in found if top is not None), default=None)
    if largest is None:
        if data.levels:
            raise ArgumentError("no 16-bit levels, which --levels is for", data.dataset, "leave it out")
        return config
    return levels.scaled(config, largest, say)


def located(settings: Settings, folder: Path, place: Place) -> Config:
    """The settings of the run in `folder` with its own data's path as it is now, for `load`.

    That is `place.dataset`, or the first that exists: the path as it was then, as it was typed, and seen from the run's
    folder or one above it, for what was moved or copied together. Raises InputError where none does; ArgumentError
    where a named set is given a path.
    """
    config, given = settings.config, place.dataset
    if settings.given and given is None:
        raise InputError("the run's data were given in Python", folder, GIVE_THEM)
    if config.data.dataset in DATASETS:
        if given is not None:
            todo = "leave out --dataset; --data-root names the folder of such sets"
            raise ArgumentError("the run's images are a named set", config.data.dataset, todo)
        return config
    noun = settings.observation.noun
    found = _found(folder, config.data.dataset, settings.dataset_path, noun) if given is None else given
    if not found.exists():
        raise InputError("data not found", found, _NAME_THEM.format(noun))
    test = config.data.test
    return config.replace(dataset=str(found), test=test and str(_found(folder, test, settings.test_path, noun)))


def _found(folder: Path, typed: str, absolute: str | None, noun: str) -> Path:
    """Where the data of the run in `folder` is now. Raises InputError where it is nowhere that it may be."""
    beside = (parent / typed for parent in folder.absolute().parents)
    tried = (Path(absolute or typed), Path(typed), *beside)
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise InputError("data not found", tried[0], _NAME_THEM.format(noun))
    return found


def origin(config: Config, root: Path, noun: str) -> tuple[object, str]:
    """Where data comes from that is not that of a run, and what to do: the end of an error message."""
    if config.data.dataset == "digits":
        return config.data.dataset, "install the scikit-learn that the run used"
    if config.data.dataset in DATASETS:
        return root, "name the --data-root that the run was trained on"
    return config.data.dataset, _NAME_THEM.format(noun)


def in_test(values: NDArray[Any], share: float = TEST_SHARE, seed: int | None = None) -> NDArray[np.bool_]:
    """Which observations [n, *shape] are kept for testing: bool [n], a `share` of them.

    Chosen by each one's own bytes, and by the seed if there is one: equal ones are on one side, and one stays on its
    side when others come or go.
    """
    salt = b"" if seed is None else f"{seed} ".encode()
    digests = (hashlib.sha256(salt + value.tobytes()).digest() for value in values)
    firsts = np.fromiter((int.from_bytes(digest[:4], "big") for digest in digests), np.uint32, len(values))
    return firsts < np.uint32(share * 2**32)


def too_few(values: NDArray[Any], noun: str) -> InputError:
    """What to say of observations that cannot be split."""
    count, distinct = len(values), len({value.tobytes() for value in values})
    what = f"too few {noun}s" if distinct == count else f"too few different {noun}s"
    which = f"{count} of them" if distinct == count else f"of {count}, {distinct} differ"
    which = which if distinct > 1 or count == 1 else f"all {count} are equal"
    return InputError(f"{what} to keep a tenth for testing", which, "give some dozens")


def split(
    values: NDArray[Any],
    labels: NDArray[np.int64],
    names: list[str],
    observation: Observation,
    preprocessing: dict[str, Any],
    unreadable: int = 0,
    kept: int = 0,
) -> Data:
    """Keep the tenth that `in_test` chooses for testing, or the last `kept` ones, where somebody has chosen them.

    Raises InputError where that leaves one side empty.
    """
    test = np.arange(len(values)) >= len(values) - kept if kept else in_test(values)
    if test.all() or not test.any():
        raise too_few(values, observation.noun)
    how = "given" if kept else f"a tenth, by the sha256 of the {observation.parts}"
    preprocessing = {**preprocessing, "split": how, "unreadable": unreadable}
    border = len(values) - kept
    parts = (slice(border), slice(border, None)) if kept else (~test, test)  # slices copy nothing
    train, tested = (torch.from_numpy(values[part]) for part in parts)
    return Data(train, tested, torch.from_numpy(labels[test]), names, preprocessing, observation)
