"""Training from Python: `fit`, `resume`, `load_run`, `evaluate`, `compare` and `presets`, which print nothing."""

import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import click
import torch
from numpy.typing import ArrayLike

from vae_runtime import extras
from vae_runtime.errors import ArgumentError, VaeError
from vae_train import checkpoints, pitfalls, results, run_folder
from vae_train import train as trainer
from vae_train.asked import configured
from vae_train.config import PRESETS, Config, Place
from vae_train.data import Data
from vae_train.datasets import Streams, gathered, is_stream
from vae_train.given import Arrays, given_to, is_frame, of_run
from vae_train.listener import Listener
from vae_train.recorders import Recorder, several
from vae_train.results import Comparison, Evaluation
from vae_train.run import Run
from vae_train.settings import Settings, checked
from vae_train.signals import Stopped
from vae_train.state import Metrics

IN_MEMORY = "arrays"  # what such data is called where nobody names it
Model = str | Callable[..., Any]  # a function of own networks, or its name "package.module:function"
_TEMPORARY: list["tempfile.TemporaryDirectory[str]"] = []  # which go when this process ends
_OPTION = re.compile(r"--([a-z][a-z-]*[a-z])")
_RESUME = re.compile(r"vae-train --resume (\S+)")
_RENAMED = {"split": "held_out"}  # from the command's options to settings


class TrainingWarning(UserWarning):
    """What looks wrong in a training, in its data or in networks."""


class TrainingNote(TrainingWarning):
    """What a training has chosen, found in its data or left out: nothing that needs mending."""


class Interrupted(Stopped, KeyboardInterrupt):
    """A training was interrupted, by Ctrl-C or a notebook's stop, with its state saved."""


def fit(
    train: ArrayLike | str | PathLike[str] | Any,
    test: ArrayLike | Any = None,
    *,
    preset: str | None = None,
    out: str | PathLike[str] | None = None,
    labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    name: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | PathLike[str] | None = None,
    download: bool = False,
    progress: bool = True,
    callback: Callable[[Metrics], None] | None = None,
    listener: Listener | None = None,
    recorder: Recorder | Sequence[Recorder] = (),
    export_check: bool = True,
    **settings: Unpack[Settings],
) -> Run:
    """Train a VAE and return its run, which `out` keeps.

    Example:
        run = vae_train.fit(x_train, x_test, preset="tutorial", epochs=5)
        images = run.vae.sample(16)  # [16, 1, 28, 28]

    train: what to train on, an array, a tensor or a data frame:
        images [n, C, H, W] or [n, H, W], uint8 or uint16 levels, booleans or floats in [0, 1];
        rows of numbers [n, D], or rows in order [n, C] with `window`, or windows [n, C, T] with `window=T`;
        or the path of such files as `vae-train --dataset` takes, or the name of a set: one of `config.DATASETS`;
        or images or rows that are read as they are trained on, and never held as a whole: a `torch.utils.data.Dataset`
        of items x or (x, label), or batches of them that can be iterated over again, as a DataLoader can.
    test: what to test on, as `train`, and held in memory; None for a part of `train`, chosen as the command does, or of
        a Dataset a tenth, 10,000 at most, which the seed chooses. Batches need it.
    preset: one of `presets()`; None for the usual one for such data. settings: any of `Config`, by its name, such as
        epochs, likelihood, latent_dim, seed; `vae_train.config` explains them. `columns` names the columns of an array,
        and chooses those of a data frame, whose classes are the column `label`.
    out: a new folder for the run; None for a temporary one, which goes when this process ends, and in which pictures
        are drawn when they are first asked for.
    labels, test_labels: the class of each, for the map of latents and for `normal`. name: what arrays are called.
    device: "auto", "cpu" or "cuda". threads: on the CPU; None for VAE_EDGE_THREADS, or the cores there are.
    data_root: folder of the named sets; None for VAE_EDGE_DATA, or `data`. download: whether they may be downloaded.
    progress: whether to show a bar, on a terminal or in a notebook; nothing else is printed.
    callback: is called with the metrics of each epoch that was measured, as `vae_train.metrics.Epoch` has them.
    listener: hears all that is said, in the place of a bar, `callback`, and warnings of the categories TrainingNote and
        TrainingWarning.
    recorder: what records the training besides its run folder, such as TensorBoard(), or several. export_check: whether
        the export of a person's own networks is tried before their first step.

    Raises Interrupted, which is a KeyboardInterrupt, where it is stopped: what was done is kept, and `resume` goes on.
    The same data, settings and seed give the same weights on the same machine with as many threads.
    Raises InputError for data that cannot be trained on, ArgumentError for settings that cannot be, or a run folder
    that exists; EnvironmentUnfit, ResourceError.
    """
    hears = listener or _listener(progress, callback)
    named = isinstance(train, str | PathLike)
    with _asked_from_python(() if named else ("train",) if test is None else ("train", "test")):
        extras.require_whole("train", "training")
        asked = checked({**settings, "model": _named(settings.get("model"))})
        said = {"preset": preset, **asked}
        given = None
        if isinstance(train, str | PathLike):
            dataset = os.fspath(train)
            if test is not None:
                asked["test"] = _path(test)
            if labels is not None or test_labels is not None or name is not None:
                todo = (
                    "leave out labels and name: a folder's names, a table's column label and an archive's y are classes"
                )
                raise ArgumentError("labels or a name beside a path", dataset, todo)
        else:
            of = {"columns": asked.pop("columns", None), "label": asked.get("label")}
            given = _given(train, test, labels, test_labels, **of)
            dataset = name or (IN_MEMORY if isinstance(given, Arrays) else type(train).__name__)
        config = configured(dataset, preset, asked, given, hears.note)
        folder = _temporary() if out is None else Path(out)
        where = place(data_root, download, device, threads, config.network.model)
        export = exports() if config.network.model and export_check else None
        with _as_before():
            recorders = several(recorder)
            drawn = out is not None or bool(recorders)
            call = _call(dataset, said)
            trainer.train(config, folder, where, call, recorders, export, hears, given, drawn, shared=True)
            return _finished(folder, config.network.model, given)


def resume(
    run: str | PathLike[str],
    train: ArrayLike | Any = None,
    test: ArrayLike | Any = None,
    *,
    labels: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    model: Model | None = None,
    dataset: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | PathLike[str] | None = None,
    download: bool = False,
    progress: bool = True,
    callback: Callable[[Metrics], None] | None = None,
    listener: Listener | None = None,
    recorder: Recorder | Sequence[Recorder] = (),
) -> Run:
    """Go on with a training that was stopped, and end with the weights that it would have had without the break.

    run: its folder. train, test, labels, test_labels: as they were given to `fit`, where no path names them. model:
    the function of a person's own networks, which may be imported. dataset: where the run's own files are now. The
    others are as in `fit`, and so is what is raised; ArgumentError too where the run is finished, or of batches.
    """
    hears = listener or _listener(progress, callback)
    again = [name for name, value in (("train", train), ("test", test)) if value is not None]
    with _asked_from_python(again):
        folder = Path(run)
        given = None
        if train is not None:
            of = of_run(run_folder.read_settings(folder)) if is_frame(train) else {}
            given = _given(train, test, labels, test_labels, **of)
            if given.once:
                todo = "train anew, or give a Dataset with len() and items by number"
                raise ArgumentError("a training on batches cannot go on exactly where it was", folder, todo)
        where = place(data_root, download, device, threads, _named(model), dataset)
        with _as_before():
            trainer.resume(folder, where, several(recorder), hears, given, shared=True)
            return _finished(folder, _named(model), given)


def load_run(run: str | PathLike[str], *, best: bool = False, model: Model | None = None) -> Run:
    """A finished run from its folder; nothing in it is executed.

    best: with the weights of its best epoch instead of the last. model: the function of a person's own networks, which
    may be called, or its name, "package.module:function", which may be imported.

    Raises BundleError where the run is missing, not finished or damaged; ArgumentError where its networks are not
    trusted.
    """
    with _asked_from_python(), _as_before():
        return run_folder.load(Path(run), _named(model), best)


def evaluate(
    run: Run | str | PathLike[str],
    samples: int = 500,
    *,
    test: ArrayLike | None = None,
    best: bool = False,
    model: Model | None = None,
    dataset: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | PathLike[str] | None = None,
    download: bool = False,
    progress: bool = True,
) -> Evaluation:
    """The ELBO of a run's test observations and, with `samples` draws of z, a bound of log p(x), nats per observation.

    The figures are kept in the run too. test: these observations again, where they were in memory; figures of others
    are returned and not kept. best, model: as in `load_run`, where `run` is a folder; the others as in `resume`.

    Raises InputError where the test observations are not found, or not those of the run; BundleError, and keeps
    nothing, where the network is not the one that was trained.
    """
    with _asked_from_python(), _as_before():
        found = run if isinstance(run, Run) else run_folder.load(Path(run), _named(model), best)
        where = place(data_root, download, device, threads, _named(model), dataset)
        at = trainer.device(where)
        with trainer.memory_errors(), _left_in_place(found):
            if test is not None:
                observations = _test_of(found, test)
                if not results.measured_on(found, observations.observed_test(found.vae.likelihood.binary)):
                    note = "these are not the run's own test observations: their figures are not kept in it"
                    _listener(progress).note(note)
                    return results.evaluate_others(found, samples, observations, at, not progress)
            else:
                observations = results.load_data(found, where)
            return results.evaluate_run(found, samples, observations, at, not progress)


def compare(
    a: Run | str | PathLike[str],
    b: Run | str | PathLike[str],
    samples: int = 1,
    *,
    test: ArrayLike | None = None,
    models: Sequence[Model] = (),
    dataset: str | PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | PathLike[str] | None = None,
    download: bool = False,
    progress: bool = True,
) -> Comparison:
    """The figures of two runs on the same test observations, and their differences one by one, nats per observation.

    samples: draws of z of the bound of log p(x), which is compared too where they are more than 1. test: the runs' own
    test observations, where they were in memory. models: the functions of own networks, which may be imported. The
    others as in `evaluate`.

    Raises ArgumentError where the runs were measured on different data, or one has densities and one probabilities;
    what `evaluate` raises.
    """
    with _asked_from_python():
        where = place(data_root, download, device, threads, None, dataset)
        with _as_before(), trainer.memory_errors():
            at = trainer.device(where)
            trusted = [name for model in models if (name := _named(model))]
            runs = [run if isinstance(run, Run) else _trusted(Path(run), trusted) for run in (a, b)]
            results.refuse_other_likelihoods(runs)
            observations = results.load_data(runs[0], where) if test is None else _test_of(runs[0], test)
            with _left_in_place(*runs):
                return results.compare_runs(runs, samples, observations, at, not progress)


def presets() -> dict[str, Config]:
    """The presets by name, with the settings that they fill; those for rows and series take sizes from the data."""
    return dict(PRESETS)


def place(
    data_root: str | PathLike[str] | None = None,
    download: bool = False,
    device: str = "auto",
    threads: int | None = None,
    model: str | None = None,
    dataset: str | PathLike[str] | None = None,
) -> Place:
    """Where to work, from what a person says of it. Raises ArgumentError for a device that is none."""
    if device not in ("auto", "cpu", "cuda"):
        raise ArgumentError("unknown device", device, "give auto, cpu or cuda")
    root = Path(data_root or os.environ.get("VAE_EDGE_DATA") or "data")
    return Place(root, download, device, threads, model, None if dataset is None else Path(dataset))


def exports() -> "pitfalls.Export | None":
    """What tries an export, where its packages are installed."""
    if any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxscript")):
        return None
    from vae_export.trial import try_out

    return try_out


def draw_report(run: Run | str | PathLike[str], *, model: Model | None = None, **places: Any) -> Path:
    """Draw the pictures and the page of a finished run anew, with the figures that it has now; return the page's path.

    model as in `load_run`; places: the others of `evaluate`. Raises what `evaluate` does.
    """
    with _asked_from_python(), _as_before():
        found = run if isinstance(run, Run) else run_folder.load(Path(run), _named(model))
        where = place(model=_named(model), **places)
        trainer.device(where)
        with trainer.memory_errors():
            return results.report_run(found, results.load_data(found, where))


def _named(model: Model | None) -> str | None:
    """A function of a person's own networks as "package.module:function". Raises ArgumentError where it has no name."""
    if model is None or isinstance(model, str):
        return model
    module, name = getattr(model, "__module__", ""), getattr(model, "__qualname__", "")
    if getattr(sys.modules.get(module), name, None) is not model:
        todo = "define it at the top of a module or a notebook"
        raise ArgumentError("networks that cannot be made again", name or type(model).__name__, todo)
    return f"{module}:{name}"


def _path(test: Any) -> str:
    """The path of what to test on. Raises ArgumentError for what is none."""
    if not isinstance(test, str | PathLike):
        todo = "give two paths, or two arrays"
        raise ArgumentError("a path to train on, and none to test on", type(test).__name__, todo)
    return os.fspath(test)


def _test_of(run: Run, test: Any) -> Data:
    """Test observations that are given, as those of a run."""
    return given_to(run, gathered(test)[0] if is_stream(test) else test)


@contextmanager
def _left_in_place(*runs: Run) -> Iterator[None]:
    """Leave the networks of runs on the devices where they are."""
    before = [(run.vae, next(run.vae.parameters()).device) for run in runs]
    try:
        yield
    finally:
        for vae, device in before:
            vae.to(device)


def _given(train: Any, *others: Any, **columns: Any) -> Arrays | Streams:
    """Observations that are given in Python, in memory or to be read as they are trained on."""
    return (Streams if is_stream(train) else Arrays)(train, *others, **columns)


def _finished(folder: Path, model: str | None, given: Arrays | Streams | None) -> Run:
    """The run that was just trained, with its data where they are in memory alone."""
    finished = folder / run_folder.EVALUATION
    while int(os.environ.get("RANK", "0")) and (checkpoints.found(folder) or not finished.exists()):
        time.sleep(0.1)  # the first process of several still measures and draws
    run = run_folder.load(folder, model)
    run.data = given.loaded if given else None
    return run


def _trusted(folder: Path, models: Sequence[str]) -> Run:
    own = run_folder.read_settings(folder).config.network.model
    return run_folder.load(folder, own if own in models else next(iter(models), None))


def _temporary() -> Path:
    """A new folder that is removed when this process ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ArgumentError("several processes need one folder", "out=None", "give out")
    _TEMPORARY.append(tempfile.TemporaryDirectory(prefix="vae-train-", ignore_cleanup_errors=True))
    return Path(_TEMPORARY[-1].name)


def _call(dataset: str, settings: dict[str, Any]) -> str:
    """What made a run, as its folder and its bundle say it, without the folders above its data."""
    words = [f"{name}={value!r}" for name, value in settings.items() if value is not None]
    return f"vae_train.fit({', '.join([repr(Path(dataset).name), *words])})"


@contextmanager
def _as_before() -> Iterator[None]:
    """Leave PyTorch's number of threads and its random numbers as they were."""
    threads = torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # a seed is that of all
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_num_threads(threads)


def _listener(progress: bool, callback: Callable[[Metrics], None] | None = None) -> Listener:
    """Notes and warnings become Python's, which name the caller's line; each epoch's metrics go to the callback."""

    def told(category: type[TrainingWarning]) -> Callable[[str], None]:
        def warn(text: str) -> None:
            frame, level = sys._getframe(1), 2
            while frame.f_back and frame.f_globals.get("__name__", "").startswith("vae_"):
                frame, level = frame.f_back, level + 1
            warnings.warn(_in_python(text), category, level)

        return warn

    listener = Listener(note=told(TrainingNote), warn=told(TrainingWarning), bar=progress)
    return listener if callback is None else replace(listener, epoch=callback)


def _in_python(text: str) -> str:
    """What the command says, with the names of settings in the place of its options."""
    text = _RESUME.sub(lambda found: f"vae_train.resume({found[1]!r})", text)
    return _OPTION.sub(lambda found: _RENAMED.get(found[1], found[1].replace("-", "_")), text)


@contextmanager
def _asked_from_python(again: Sequence[str] = ()) -> Iterator[None]:
    """Let errors name settings, and an interruption be Python's own, where no command is asking.

    again: the data that `resume` would need.
    """
    try:
        yield
    except VaeError as error:
        if click.get_current_context(silent=True) is not None:
            raise
        if isinstance(error, Stopped) and error.number == signal.SIGINT:
            error = Interrupted(error.number, error.folder, error.options)
        error.what, error.which, error.todo = (_in_python(part) for part in (error.what, error.which, error.todo))
        if isinstance(error, Stopped):
            named = zip(error.options[::2], error.options[1::2], strict=True)
            said = {name.lstrip("-").replace("-", "_"): value for name, value in named}
            at = (f"{name}={value if value.isdecimal() else repr(value)}" for name, value in said.items())
            error.todo = f"go on with: vae_train.resume({', '.join([repr(str(error.folder)), *again, *at])})"
        error.args = error.what, error.which, error.todo
        raise error from None
