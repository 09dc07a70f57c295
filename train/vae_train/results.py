"""The figures of finished trainings, kept in their run folders: test ELBO, bounds of log p(x), differences of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_runtime.errors import ArgumentError, BundleError, InputError
from vae_runtime.figures import plus_minus
from vae_runtime.observation import IMAGE, VECTOR, Observation
from vae_train import bounds, checkpoints, data, fingerprint, kept, metrics, networks, pixels, report, run_folder, state
from vae_train.bounds import Measured
from vae_train.config import Place
from vae_train.data import Data
from vae_train.listener import SILENT, Listener
from vae_train.prior import StandardNormal
from vae_train.run import Run
from vae_train.state import TrainingState
from vae_train.vae import VAE

_SAME = 0.1  # of its standard error, by which a test ELBO may differ from one that was measured with the same noise
_ROUNDING = 1e-4  # of the ELBO, or by so much where that is more


class Figure(NamedTuple):
    """A mean over test observations and its standard error, nats per observation; of one alone there is no error."""

    mean: float
    standard_error: float | None

    def __str__(self) -> str:
        return plus_minus(self.mean, self.standard_error)


@dataclass(frozen=True)
class Evaluation:
    """The ELBO of test observations, its terms, and the importance-weighted bound of log p(x), nats per observation.

    log_likelihood: the bound with `samples` draws of z for each (Burda et al. 2016, eq. 8). dataset, binarisation,
    prior: what the figures are of, and `observations` how many, each a `noun`. size: how many numbers one has.
    discrete: whether the figures are of probabilities, and not of densities. `str` is what the command prints.
    """

    elbo: Figure
    reconstruction: Figure
    kl: Figure
    log_likelihood: Figure
    samples: int
    dataset: str
    binarisation: str
    prior: str
    observations: int
    noun: str
    size: int
    discrete: bool

    def __str__(self) -> str:
        lines = [f"{self.dataset} test, {self.binarisation}, {self.prior} prior, nats per {self.noun}"]
        for name, figure in (("ELBO", self.elbo), (f"log p(x) >= (K = {self.samples})", self.log_likelihood)):
            lines.append(name.ljust(26) + str(figure) + bits(self.discrete, figure.mean, self.size))
        return "\n".join(lines)


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same test observations: rows by name, each with a's figure, b's, and that of b - a in pairs.

    The differences on each observation vary far less than these do, so that their standard error is the one to judge
    by. The rows are `elbo`, `reconstruction`, `kl` and, where it was asked for, the bound of log p(x). priors: a's and
    b's, by name. `str` is what the command prints, which names those that are not N(0, I).
    """

    a: Path
    b: Path
    rows: dict[str, tuple[Figure, Figure, Figure]]
    binarisation: str
    observations: int
    noun: str
    priors: tuple[str, str] = (StandardNormal.name, StandardNormal.name)

    def __str__(self) -> str:
        noun = self.noun
        learned = ("" if prior == StandardNormal.name else f", {prior} prior" for prior in self.priors)
        head = f"{self.observations:,} test {noun}s, {self.binarisation}, nats per {noun}; b - a in pairs"
        a, b = (f"{name}: {path}{prior}" for name, path, prior in zip("ab", (self.a, self.b), learned, strict=True))
        lines = [head, a, b, f"{'':24}{'a':>18}{'b':>18}{'b - a':>18}"]
        lines += [name.ljust(24) + "".join(f"{figure!s:>18}" for figure in row) for name, row in self.rows.items()]
        return "\n".join(lines)


def finish(
    out: Path, training: TrainingState, observations: Data, listener: Listener = SILENT, draw: bool = True
) -> None:
    """Write weights, test figures and, unless it is not to be drawn, the report of a training that has ended."""
    config, vae = training.config, training.vae
    test = observations.observed_test(vae.likelihood.binary)
    facts = protocol(config.data.dataset, observations.observation, vae, test)
    run_folder.save_weights(out, vae)
    run_folder.save_held_out(out, observations.test)
    last = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    try:
        run_folder.read_weights(out, vae, best=True)  # into the network that was trained, not into one made anew
    except BundleError as error:  # damaged since: what was trained must not be lost with it
        listener.warn(f"{error}; the last epoch's weights take their place")
        vae.load_state_dict(last)
        run_folder.save_weights(out, vae, best=True)
    if config.optimiser.patient:  # the steps since those of the best epoch were spent on waiting
        last = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
        run_folder.save_weights(out, vae)
    for best in (True, False):  # the last ones' file says that the run is finished
        run_folder.save_fingerprint(out, fingerprint.compute(vae, observations.test[:64].numpy()), best)
        summary = bounds.summary(bounds.measure(vae, test.to(training.device)), observations.overlap)
        run_folder.save_evaluation(out, {**facts, **summary}, best)
        vae.load_state_dict(last)
    figure, kind = Figure(**summary["figures"]["elbo"]), observations.observation
    dimensions = bits(vae.likelihood.discrete, figure.mean, kind.size)
    listener.result(f"test ELBO {figure} nats per {kind.noun}{dimensions}, {facts['binarisation']}")
    if not metrics.few_steps(config, len(observations.train)):  # else that was said, and is why
        for line in kept.poor(kept.measure(vae, observations), observations):
            listener.warn(line)
    top = state.best(training.progress.metrics)
    if config.optimiser.patient:
        if line := metrics.outcome(training):
            listener.result(line)
    elif top["epoch"] < training.most_epochs:
        best_one = f"best epoch {top['epoch']:.0f}, test ELBO {top['test_elbo']:.2f}"
        listener.result(f"{best_one}: kept as {run_folder.BEST_WEIGHTS}")
    if draw:
        listener.say(f"{out}: weights and figures are saved; now the report, which takes some seconds")
        report.draw(out, run_folder.load(out, config.network.model), observations)
    checkpoints.remove(out)  # last, so that a run killed before its pictures goes on to them
    listener.result(f"{out}: weights, metrics{f', {report.PAGE}' if draw else ''}")


def evaluate_run(
    run: Run, num_samples: int, observations: Data, device: torch.device, quiet: bool = False
) -> Evaluation:
    """The ELBO and the importance-weighted bound of a run on its test observations, which are kept in its folder too.

    observations: as `load_data` gives them. Raises BundleError, and keeps nothing, where the network is not the one
    that was trained.
    """
    test = observations.observed_test(run.vae.likelihood.binary).to(device)
    vae = run.vae.to(device)
    summary = bounds.summary(measure(run, test), observations.overlap)
    log_likelihood = bounds.log_likelihood(vae, test, num_samples, quiet=quiet)
    bound = bounds.figure(log_likelihood, observations.overlap)
    known = {name: figure for name, figure in run.evaluation["figures"].items() if "num_samples" in figure}
    known[f"log_likelihood_{num_samples}"] = {"num_samples": num_samples, **bound}
    facts = protocol(str(run.evaluation.get("dataset")), run.observation, vae, test)
    run.evaluation |= {**facts, **summary, "figures": {**summary["figures"], **known}}
    run_folder.save_evaluation(run.path, run.evaluation, run.best)
    return _evaluation(summary, bound, num_samples, facts, run)


def _evaluation(
    summary: dict[str, Any], bound: dict[str, Any], num_samples: int, facts: dict[str, Any], run: Run
) -> Evaluation:
    """Figures as `bounds.summary` and `bounds.figure` give them, of what `protocol` says."""
    elbo, reconstruction, kl = (Figure(**summary["figures"][name]) for name in ("elbo", "reconstruction", "kl"))
    of = (facts[name] for name in ("dataset", "binarisation", "prior", "observations"))
    kind = run.observation
    about = (*of, kind.noun, kind.size, run.vae.likelihood.discrete)
    return Evaluation(elbo, reconstruction, kl, Figure(**bound), num_samples, *about)


def evaluate_others(
    run: Run, num_samples: int, observations: Data, device: torch.device, quiet: bool = False
) -> Evaluation:
    """The figures of a run's VAE on other test observations than its own; nothing is kept."""
    test = observations.observed_test(run.vae.likelihood.binary).to(device)
    vae = run.vae.to(device)
    summary = bounds.summary(bounds.measure(vae, test), observations.overlap)
    bound = bounds.figure(bounds.log_likelihood(vae, test, num_samples, quiet=quiet), observations.overlap)
    return _evaluation(summary, bound, num_samples, protocol("given", run.observation, vae, test), run)


def report_run(run: Run, observations: Data) -> Path:
    """Draw the report of a finished run anew, and return its page. Raises BundleError as `evaluate_run` does."""
    measure(run, observations.observed_test(run.vae.likelihood.binary))
    report.draw(run.path, run, observations)
    return run.path / report.PAGE


def refuse_other_likelihoods(runs: Sequence[Run]) -> None:
    """Raise ArgumentError where one of two runs has densities and the other probabilities."""
    if runs[0].vae.likelihood.discrete != runs[1].vae.likelihood.discrete:
        which = " and ".join(run.config.network.likelihood for run in runs)
        raise ArgumentError("a density and a probability cannot be compared", which, "name runs of one likelihood")


def compare_runs(
    runs: Sequence[Run], num_samples: int, observations: Data, device: torch.device, quiet: bool = False
) -> Comparison:
    """The figures of two runs on the same test observations, and those of their differences on each.

    observations: the first one's, as `load_data` gives them. Raises ArgumentError where the runs were measured on
    different data, or one has densities and one probabilities; BundleError where a run's network is not the one that
    was trained.
    """
    refuse_other_likelihoods(runs)
    test, noun = observations.observed_test(runs[0].vae.likelihood.binary), runs[0].observation.noun
    if not measured_on(runs[1], test):
        what = f"runs of different test {noun}s cannot be compared"
        raise ArgumentError(what, runs[1].path, "name runs of one data set")
    test = test.to(device)
    for run in runs:
        run.vae.to(device)
    measured = [measure(run, test).terms for run in runs]
    values = {name: [getattr(terms, name) for terms in measured] for name in ("elbo", "reconstruction", "kl")}
    if num_samples > 1:
        both = [bounds.log_likelihood(run.vae, test, num_samples, quiet=quiet) for run in runs]
        values[f"log p(x) >= (K = {num_samples})"] = both
    overlap = observations.overlap

    def row(a: Tensor, b: Tensor) -> tuple[Figure, Figure, Figure]:
        one, other, paired = (Figure(**bounds.figure(x, overlap)) for x in (a, b, b.double() - a.double()))
        return one, other, paired

    rows = {name: row(*pair) for name, pair in values.items()}
    priors = runs[0].vae.prior.name, runs[1].vae.prior.name
    return Comparison(runs[0].path, runs[1].path, rows, runs[0].evaluation["binarisation"], len(test), noun, priors)


def load_data(run: Run, place: Place) -> Data:
    """The run's data, wherever it is now. Raises InputError where the test part is not that of its figures."""
    if run.data is not None:
        return run.data
    config = data.located(run.settings, run.path, place)
    observations = data.load(config, place.data_root, place.download)
    if not measured_on(run, observations.observed_test(run.vae.likelihood.binary)):
        noun = run.observation.noun
        raise InputError(f"test {noun}s are not the run's", *data.origin(config, place.data_root, noun))
    return observations


def measure(run: Run, test: Tensor) -> Measured:
    """Both terms of the ELBO of the run's test observations, on the device where these and its VAE are.

    Raises BundleError where their ELBO is not the one that was measured at the end of the training, by the same noise.
    """
    found = bounds.measure(run.vae, test)
    now, then = bounds.figure(found.terms.elbo), run.evaluation["figures"]["elbo"]
    share = _SAME if run.fingerprint else 1.0  # before those were kept, a GPU had noise of its own
    allowed = max(share * (then["standard_error"] or 0), _ROUNDING * abs(then["mean"]))
    if not abs(now["mean"] - then["mean"]) <= allowed:
        which = f"{run.path} (test ELBO {now['mean']:.2f} now, {then['mean']:.2f} when its training ended)"
        raise BundleError("not the network that was trained", which, networks.to_restore(run.config))
    return found


def measured_on(run: Run, test: Tensor) -> bool:
    """Whether the run's figures are of this data, by its number and hash: a path may have another name now."""
    values = str(run.evaluation.get("binarisation"))
    return run.evaluation.get("observations") == len(test) and values.endswith(f"sha256 {pixels.digest(test)[:16]}")


def protocol(dataset: str, observation: Observation, vae: VAE, test: Tensor) -> dict[str, Any]:
    """What a figure in nats must name: dataset, split, binarisation, prior."""
    values = "8-bit levels as they are" if test.dtype == torch.uint8 else "values as they are"
    if observation.kind != IMAGE and not vae.likelihood.binary:  # scaled they are, but figures are as if they were not
        values = f"{'columns' if observation.kind == VECTOR else 'channels'} in their units"
    kind = "fixed draw, seed 777" if pixels.drawn(vae.likelihood.binary, observation) else values
    return {
        "dataset": Path(dataset).absolute().name,  # without the folders above: it goes into what is published
        "split": "test",
        "observations": len(test),
        "binarisation": f"{kind}, sha256 {pixels.digest(test)[:16]}",
        "prior": vae.prior.name,
    }


def bits(discrete: bool, nats: float, size: int) -> str:
    """A figure of observations of so many numbers in bits per dimension too, where it is of a probability."""
    return f" ({bounds.bits_per_dimension(nats, size):.3f} bits per dimension)" if discrete else ""
