"""A training, from settings and data to a run folder; begun or gone on with, by one process or by several."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_runtime import threads as cores
from vae_runtime.errors import ArgumentError, EnvironmentUnfit, InputError, ResourceError
from vae_runtime.observation import IMAGE, SERIES
from vae_train import (
    checkpoints,
    data,
    distributed,
    loop,
    metrics,
    networks,
    pitfalls,
    pixels,
    precision,
    provenance,
    results,
    run_folder,
    signals,
    state,
)
from vae_train.config import AUTO, DATASETS, Config, Place
from vae_train.data import Data, Source
from vae_train.listener import SILENT, Listener
from vae_train.recorders import Recorder, recording
from vae_train.state import Metrics, TrainingState

_PHOTOS = 0.4  # `pixels.coin` of scikit-image's photos is 0.52 to 0.97; of MNIST 0.07, digits 0.28, clothes 0.32
_AGREE_EVERY = 10  # steps between the processes' questions to each other whether to stop


def train(
    config: Config,
    out: Path,
    place: Place,
    command: str,
    recorders: Sequence[Recorder] = (),
    export: pitfalls.Export | None = None,
    listener: Listener = SILENT,
    given: Source | None = None,
    report: bool = True,
    shared: bool = False,
) -> None:
    """Fit the VAE of `config` and write the run folder `out`; it is removed again where no checkpoint was reached.

    recorders: what records it besides, `TensorBoard()` say. export: tries the export of a person's own networks before
    their first step, as `vae_export.trial.try_out` does. listener: hears of it, in the first process. given: the data,
    where they are not what `config.data` names. report: whether it is drawn at the end, which takes seconds. shared:
    whether each process will read the run. Raises EnvironmentUnfit where one then does not find its folder.
    """
    with machine(place) as where:
        listener = listener if distributed.rank() == 0 else SILENT
        config = given.fitted(config, listener.note) if given else data.fitted(config, listener.note)
        if distributed.from_first(lambda: _begin(out, config)) != config:
            raise ArgumentError("settings are not the first process's", out, "start all with the same options")
        observations = _load(config, place, given, listener)
        digest = observations.digest()
        if distributed.from_first(lambda: digest) != digest:
            todo = "give every machine the same"
            raise InputError(f"{observations.observation.noun}s are not the first process's", place.data_root, todo)
        if config.network.likelihood == AUTO:
            config = config.replace(likelihood=observations.likelihood)
        config, products = distributed.from_first(lambda: _settle(config, where))
        training = _prepare(config, observations, where, config.network.model)
        named = given is not None or config.data.dataset in DATASETS
        path, test = (
            None if named or it is None else str(Path(it).absolute()) for it in (config.data.dataset, config.data.test)
        )
        tried = _try_out(training, observations, export) if config.network.model and distributed.rank() == 0 else ()
        settings = run_folder.Settings(
            config, observations.observation, observations.preprocessing, digest, provenance.of(command, where), path,
            tried, given is not None, test, len(observations.test), observations.drawn_before,
        )  # fmt: skip
        with run_folder.start(out, settings) if distributed.rank() == 0 else contextlib.nullcontext():
            listener.say(f"training on {where}, {_threads()}, into {out}")
            listener.say(_describe(training, observations))
            if config.optimiser.patient:
                patience = f"until the test ELBO has not risen for {config.optimiser.patience:,} steps"
                listener.say(f"{patience}, or these are spent; --epochs N makes N passes")
            if products:
                listener.say(products)
            if config.data.dataset not in DATASETS:
                _say_grey(training, observations, listener)
            noun, count = observations.observation.noun, len(observations.train)
            if few := metrics.few_observations(noun, count):
                listener.warn(few)
            if few := metrics.few_steps(config, count):
                listener.warn(few)
            for line in tried:
                listener.warn(line)
            if shared:
                distributed.from_first(lambda: None)  # whose folder is there now
                _refuse_elsewhere(out)
            _run(training, observations, out, place, recorders, bool(tried), listener, report)


def _refuse_elsewhere(out: Path) -> None:
    """Raise EnvironmentUnfit where the run folder of the first process is not on this machine too."""
    if not out.exists():
        todo = "give an out on a disk that all machines share, or train with vae-train, which needs none"
        raise EnvironmentUnfit("the first process's run folder is not on this machine", out, todo)


def _say_grey(training: TrainingState, observations: Data, listener: Listener) -> None:
    """Say that a person's own grey levels are drawn as binary, where they are, and what suits photos better."""
    if not (pixels.drawn(training.vae.likelihood.binary, observations.observation) and observations.is_grey()):
        return
    levels = observations.sample.dtype == torch.uint8
    what, other = ("level / 255", "discretised-logistic") if levels else ("value", "gaussian")
    drawn = f"grey levels are drawn as binary, P(1) = {what}"
    if pixels.coin(observations.sample) < _PHOTOS:
        listener.note(f"{drawn}; --likelihood {other} keeps them")
    else:
        kept = "--preset resnet-colour, made for photos," if levels else f"--likelihood {other}"
        listener.warn(f"{drawn}, which is mostly noise for images as grey as these; {kept} keeps them")


def resume(
    out: Path,
    place: Place,
    recorders: Sequence[Recorder] = (),
    listener: Listener = SILENT,
    given: Source | None = None,
    shared: bool = False,
) -> None:
    """Go on with the training of the run folder `out` from its newest checkpoint, as if it had never stopped.

    listener, given and shared as in `train`. Raises ArgumentError where the run is finished or another training is at
    work in it.
    """
    with machine(place) as where:
        listener = listener if distributed.rank() == 0 else SILENT
        settings = distributed.from_first(lambda: run_folder.read_settings(out))
        if shared:
            _refuse_elsewhere(out)
        _compare(settings.provenance, where, listener)
        with run_folder.locked(out) if distributed.rank() == 0 else contextlib.nullcontext():
            state = distributed.from_first(lambda: _unfinished(out, listener))
            config = settings.config if given else data.located(settings, out, place)
            observations = _load(config, place, given, listener)
            split = settings.tested_on in (None, len(observations.test))
            if not split or settings.data_sha256 != observations.digest():
                noun, todo = settings.observation.noun, "give those that it was trained on, in their order"
                origin = (out, todo) if given else data.origin(config, place.data_root, noun)
                raise InputError(f"{noun}s are not the run's", *origin)
            training = _prepare(settings.config, observations, where, place.trusted)
            checkpoints.restore(out, training, state)
            if distributed.rank() == 0:
                run_folder.write_metrics(out, training.progress.metrics)
            progress = training.progress
            at = f"epoch {progress.epoch}, step {progress.step}, on {where}, {_threads()}"
            listener.say(f"going on at {at}, in {out}")
            _run(training, observations, out, place, recorders, bool(settings.warnings), listener)


def _compare(begun: dict[str, Any], where: torch.device, listener: Listener) -> None:
    """Say what differs from where a training began. Raises ArgumentError where its generator is another device's."""
    kind = str(begun.get("device", where)).partition(":")[0]
    if kind != where.type:
        raise ArgumentError("run was begun on another device", kind, f"resume it with --device {kind}")
    if changed := provenance.changed(begun, where):
        listener.warn(f"weights will not be those of an unbroken training to the last bit: {', '.join(changed)}")


def _begin(out: Path, config: Config) -> Config:
    """The settings, where the run folder is free."""
    run_folder.check_new(out)
    return config


def _settle(config: Config, where: torch.device) -> tuple[Config, str]:
    """The settings with the precision that `auto` is on this device, and what is to be said of it."""
    chosen, why = precision.choose(where)
    if config.optimiser.precision == "auto":
        return config.replace(precision=chosen), f"products in {chosen}: {why}"
    if config.optimiser.precision == "bfloat16" and chosen == "float32":
        return config, f"vae-train: note: products in bfloat16, but {why}; --precision auto may be far faster"
    return config, ""


def _unfinished(out: Path, listener: Listener) -> tuple[dict[str, torch.Tensor], str]:
    """The state of a run that has not ended yet."""
    left = any((out / checkpoints.FOLDER).glob("*"))  # an empty folder stays where their removal was cut short
    if (out / run_folder.EVALUATION).exists() and not left:
        raise ArgumentError("run is finished", out, "train anew with another --out")
    return checkpoints.newest(out, listener.warn)


def _load(config: Config, place: Place, given: Source | None, listener: Listener) -> Data:
    """The data: the first process may download it, the others find it then."""
    if given:
        return given.load(config, listener.warn, listener.note)
    if distributed.rank() == 0:
        observations = data.load(config, place.data_root, place.download, listener.warn, listener.note)
    distributed.from_first(lambda: None)
    if distributed.rank() > 0:
        observations = data.load(config, place.data_root, download=False)
    return observations


def _prepare(config: Config, observations: Data, where: torch.device, trusted: str | None) -> TrainingState:
    torch.manual_seed(config.optimiser.seed)
    with memory_errors():
        vae = networks.build(config, observations.observation.shape, trusted)
        networks.tell_binary(vae, observations.sample)
        networks.in_units(vae, observations.preprocessing)
        networks.start_at_constant(vae, *pixels.moments(observations.sample))
        if config.network.model is None:  # a person's own layers may rely on the order
            vae.to(memory_format=torch.channels_last)  # twice the speed for convolutions of few channels
        vae.to(where)
        return TrainingState(vae, config, len(observations.train), where, observations.overlap)


def _try_out(training: TrainingState, observations: Data, export: pitfalls.Export | None) -> tuple[str, ...]:
    """What looks wrong in a person's own networks; nothing that happens there ends a training."""
    try:
        found = pitfalls.try_out(training.vae, training.config, observations.sample[:64], export)
    except Exception as error:  # whatever the networks, or torch on them, may raise
        found = {"trial": f"the networks could not be tried out ({type(error).__name__}: {error})"}
    return tuple(" ".join(text.split()) for text in found.values())


def _run(
    training: TrainingState,
    observations: Data,
    out: Path,
    place: Place,
    recorders: Sequence[Recorder],
    warned: bool,
    listener: Listener,
    report: bool = True,
) -> None:
    """Train to the end, with a checkpoint after each measured epoch, each minute and at a signal; then measure.

    warned: whether something was said of the networks before their first step.
    """
    where, first = training.device, distributed.rank() == 0
    binary = training.vae.likelihood.binary
    with memory_errors():
        test = observations.observed_test(binary)
        seen = [levels.to(where) for levels in (observations.observed_train(binary), test)]
    recorders, past = recorders if first else (), training.progress.metrics
    with recording(recorders, out, training.config, past, listener.warn) as recorded:
        with signals.deferred() as received, memory_errors():
            noun, levels = observations.observation.noun, observations.train.to(where)
            between = _Between(training, out, place, seen, recorded.epoch, received, warned, listener)
            loop.fit(training, levels, between.epochs, between.steps, noun, quiet=not listener.bar)
            between.steps()  # a signal may have come while the last epoch was measured
        if first:
            with signals.told(out, place.options), memory_errors():
                results.finish(out, training, observations, listener, report)
                recorded.finish(out)


class _Between:
    """What is done between epochs and between steps: measuring, saving, and stopping at a signal.

    seen: what is trained and tested on, as the likelihood sees it. record: takes an epoch's metrics, the VAE and the
    latter. received: the signals so far. listener: hears of each epoch.
    """

    def __init__(
        self,
        training: TrainingState,
        out: Path,
        place: Place,
        seen: list[Tensor],
        record: Callable[..., None],
        received: list[int],
        warned: bool,
        listener: Listener,
    ) -> None:
        self.training, self.out, self.place, self.warned, self.listener = training, out, place, warned, listener
        self.seen, self.record, self.received = seen, record, received
        self.first = distributed.rank() == 0
        self.saved, self.parent = time.monotonic(), os.getppid()

    def epochs(self) -> None:
        """Measure the epoch, move on, and keep what is new."""
        training = self.training
        training.end_epoch(distributed.from_first(self._measure))
        if not self.first:
            return
        past = training.progress.metrics
        if state.best(past) is past[-1]:
            run_folder.save_weights(self.out, training.vae, best=True)
        self.record(past[-1], training.vae, self.seen[1])
        self._save()
        run_folder.write_metrics(self.out, past)
        self.listener.result(metrics.describe(past[-1]))
        config = training.config
        few = bool(metrics.few_steps(config, training.num_observations))
        epochs, patient = None if training.over else training.most_epochs, config.optimiser.patient
        for line in metrics.news(past, epochs, training.vae.latent_dim, few, self.warned, patient):
            self.listener.warn(line)
        self.listener.epoch(past[-1])

    def steps(self) -> None:
        """Stop where a signal has come; save each minute."""
        if number := self._signal():
            distributed.from_first(lambda: self._stop(number))
        if self.first and time.monotonic() - self.saved > checkpoints.SAVE_EVERY:
            self._save()

    def _measure(self) -> Metrics:
        found = metrics.measure(self.training, *self.seen)
        if not math.isfinite(found["train_elbo"] + found["test_elbo"]):
            raise ArgumentError("training diverged", f"epoch {found['epoch']}", "choose a lower --lr")
        return found

    def _save(self) -> None:
        checkpoints.save(self.out, self.training)
        self.saved = time.monotonic()

    def _signal(self) -> int:
        """The number of the signal that ends the training after this step, in all processes at once; 0 for none."""
        number = self.received[0] if self.received else 0
        if distributed.size() == 1:
            return number
        if os.getppid() != self.parent:
            number = signal.SIGTERM  # torchrun was killed, and nobody else would end its processes
        step = self.training.progress.step
        asked = step % _AGREE_EVERY == 0 or step == self.training.steps_per_epoch
        return distributed.agreed(number) if asked else 0

    def _stop(self, number: int) -> None:
        self._save()
        raise signals.Stopped(number, self.out, self.place.options)


@contextlib.contextmanager
def machine(place: Place) -> Iterator[torch.device]:
    """The device to use, as `device` has it, with the other processes of this training reached.

    Raises EnvironmentUnfit where CUDA is asked for and absent.
    """
    where = device(place)
    with distributed.joined(where):
        yield where


def device(place: Place) -> torch.device:
    """The device to use, with the number of threads set. Raises EnvironmentUnfit where CUDA is asked for and absent."""
    threads = place.threads or max(1, cores.count() // distributed.processes_here())
    torch.set_num_threads(cores.count(threads))
    return choose_device(place.device)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, and this process's own where there are several.

    Raises EnvironmentUnfit where CUDA is asked for and absent.
    """
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise EnvironmentUnfit("no CUDA device", "--device cuda", "use --device cpu, or install a driver")
    return distributed.own_device("cuda" if cuda and name != "cpu" else "cpu")


@contextlib.contextmanager
def memory_errors(
    todo: str = "free memory; a training can do with smaller --hidden, --batch-size or --samples",
) -> Iterator[None]:
    """Turn PyTorch's failed allocations into ResourceError."""
    try:
        yield
    except RuntimeError as error:
        if loop.out_of_memory(error):
            raise ResourceError("out of memory", "the networks or the batch", todo) from None
        raise


def _describe(training: TrainingState, observations: Data) -> str:
    config, kind = training.config, observations.observation
    columns_of = f"{kind.shape[0]} column{'s' * (kind.shape[0] > 1)}"
    shape = "x".join(map(str, kind.shape)) if kind.kind == IMAGE else columns_of
    shape += f" in windows of {kind.shape[1]} rows" if kind.kind == SERIES else ""
    columns = observations.preprocessing.get("columns", ())
    scaled = sum(column["scale"] != 1 for column in columns)
    which = "each" if scaled == len(columns) else f"{scaled} of them"
    values = f"{which} scaled to mean 0 and spread 1" if scaled else "values as they are"
    if observations.sample.dtype == torch.uint8:
        values = "8-bit levels as they are" if training.vae.likelihood.discrete else "x = level / 255"
    drawn = "drawn as binary in every batch" if pixels.drawn(training.vae.likelihood.binary, kind) else values
    weights = sum(weight.numel() for weight in training.weights)
    steps = training.most_epochs * training.steps_per_epoch
    density = "" if training.vae.likelihood.discrete else " (log density)"
    return (
        f"{config.data.dataset}: {len(observations.train):,} {kind.noun}s to train on in {steps:,} steps, "
        f"{len(observations.test):,} to test, {shape}, {drawn}\n"
        f"{config.made_by}: {weights:,} weights, {config.network.likelihood} likelihood, seed {config.optimiser.seed}; "
        f"ELBO = reconstruction - KL, nats per {kind.noun}{density}"
    )


def _threads() -> str:
    number = torch.get_num_threads()
    processes = f" in each of {distributed.size()} processes" if distributed.size() > 1 else ""
    return f"{number} thread{'s' if number > 1 else ''}{processes}"
