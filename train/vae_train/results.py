"""The figures of finished trainings, kept in their run folders: test ELBO, bounds of log p(x), differences of two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from vae_runtime.errors import ArgumentError, BundleError, InputError
from vae_runtime.figures import plus_minus
from vae_runtime.observation import IMAGE, VECTOR, Observation
from vae_train import bounds, checkpoints, data, fingerprint, metrics, networks, pixels, report, run_folder
from vae_train.bounds import Measured
from vae_train.config import Place
from vae_train.data import Data
from vae_train.run_folder import Run
from vae_train.state import TrainingState
from vae_train.vae import VAE

_SAME = 0.1  # of its standard error, by which a test ELBO may differ from one that was measured with the same noise
_ROUNDING = 1e-4  # of the ELBO, or by so much where that is more


def finish(out: Path, training: TrainingState, observations: Data) -> None:
    """Write weights, test figures and the report of a training that has come to its end."""
    config, vae = training.config, training.vae
    test = observations.observed_test(vae.likelihood.binary)
    measured_on = protocol(config.data.dataset, observations.observation, vae, test)
    run_folder.save_weights(out, vae)
    run_folder.save_probe(out, observations.test[:64])
    last = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    try:
        run_folder.read_weights(out, vae, best=True)  # into the network that was trained, not into one made anew
    except BundleError as error:  # damaged since: what was trained must not be lost with it
        click.echo(f"vae-train: warning: {error}; the last epoch's weights take their place", err=True)
        vae.load_state_dict(last)
        run_folder.save_weights(out, vae, best=True)
    if config.optimiser.patient:  # the steps since those of the best epoch were spent on waiting
        last = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
        run_folder.save_weights(out, vae)
    for best in (True, False):  # the last ones' file says that the run is finished
        run_folder.save_fingerprint(out, fingerprint.compute(vae, observations.test[:64].numpy()), best)
        summary = bounds.summary(bounds.measure(vae, test.to(training.device)), observations.overlap)
        run_folder.save_evaluation(out, {**measured_on, **summary}, best)
        vae.load_state_dict(last)
    figure = summary["figures"]["elbo"]
    dimensions = bits(vae, figure["mean"], observations.observation)
    per = f"nats per {observations.observation.noun}{dimensions}"
    click.echo(f"test ELBO {describe(figure)} {per}, {measured_on['binarisation']}")
    top = metrics.best(training.progress.metrics)
    if config.optimiser.patient:
        if line := metrics.outcome(training):
            click.echo(line)
    elif top["epoch"] < training.most_epochs:
        click.echo(
            f"best epoch {top['epoch']:.0f}, test ELBO {top['test_elbo']:.2f}: kept as {run_folder.BEST_WEIGHTS}"
        )
    click.echo(f"{out}: weights and figures are saved; now the report, which takes some seconds", err=True)
    report.draw(out, run_folder.load(out, config.network.model), observations)
    checkpoints.remove(out)  # last, so that a run killed before its pictures goes on to them
    click.echo(f"{out}: weights, metrics, {report.PAGE}")


def evaluate_run(folder: Path, num_samples: int, place: Place, device: torch.device, best: bool = False) -> None:
    """Print the ELBO and the importance-weighted bound of a run on its test observations, and keep them in the run.

    Raises InputError where these are not those that the run was measured on; BundleError, and keeps nothing, where
    the network is not the one that was trained.
    """
    run = run_folder.load(folder, place.trusted, best)
    observations = load_data(folder, run, place)
    test = observations.observed_test(run.vae.likelihood.binary).to(device)
    vae = run.vae.to(device)
    summary = bounds.summary(measure(folder, run, test), observations.overlap)
    bound = bounds.figure(bounds.log_likelihood(vae, test, num_samples), observations.overlap)
    known = {name: figure for name, figure in run.evaluation["figures"].items() if "num_samples" in figure}
    known[f"log_likelihood_{num_samples}"] = {"num_samples": num_samples, **bound}
    figures = {**summary["figures"], **known}
    measured_on = protocol(str(run.evaluation.get("dataset")), run.observation, vae, test)
    run_folder.save_evaluation(folder, {**measured_on, **summary, "figures": figures}, best)
    drawn, prior = measured_on["binarisation"], measured_on["prior"]
    click.echo(f"{measured_on['dataset']} test, {drawn}, {prior} prior, nats per {run.observation.noun}")
    for name, figure in (("ELBO", figures["elbo"]), (f"log p(x) >= (K = {num_samples})", bound)):
        click.echo(name.ljust(26) + describe(figure) + bits(vae, figure["mean"], run.observation))


def report_run(folder: Path, place: Place) -> None:
    """Draw the report of a finished run. Raises InputError where its data is not found, BundleError as above."""
    run = run_folder.load(folder, place.trusted)
    observations = load_data(folder, run, place)
    measure(folder, run, observations.observed_test(run.vae.likelihood.binary))
    report.draw(folder, run, observations)
    click.echo(f"{folder / report.PAGE}")


def compare(
    folders: tuple[Path, Path], num_samples: int, place: Place, device: torch.device, models: Sequence[str] = ()
) -> None:
    """Print the figures of two runs on the same test observations, and the mean of their differences on each.

    models: the functions, "package.module:function", that may make the runs' own networks. The differences vary far
    less than the observations do, so that their standard error is the one to judge by.
    Raises ArgumentError where the runs were measured on different data, or one has densities and one probabilities;
    BundleError where a run's network is not the one that was trained.
    """
    runs = [_load(folder, models) for folder in folders]
    if runs[0].vae.likelihood.discrete != runs[1].vae.likelihood.discrete:
        which = " and ".join(run.config.network.likelihood for run in runs)
        raise ArgumentError("a density and a probability cannot be compared", which, "name runs of one likelihood")
    observations = load_data(folders[0], runs[0], place)
    test = observations.observed_test(runs[0].vae.likelihood.binary)
    if not _measured_on(runs[1], test):
        what = f"runs of different test {runs[0].observation.noun}s cannot be compared"
        raise ArgumentError(what, folders[1], "name runs of one data set")
    test = test.to(device)
    for run in runs:
        run.vae.to(device)
    measured = [measure(folder, run, test).terms for folder, run in zip(folders, runs, strict=True)]
    rows = {name: [getattr(terms, name) for terms in measured] for name in ("elbo", "reconstruction", "kl")}
    if num_samples > 1:
        rows[f"log p(x) >= (K = {num_samples})"] = [bounds.log_likelihood(run.vae, test, num_samples) for run in runs]
    noun = runs[0].observation.noun
    click.echo(f"{len(test):,} test {noun}s, {runs[0].evaluation['binarisation']}, nats per {noun}; b - a in pairs")
    for letter, folder in zip("ab", folders, strict=True):
        click.echo(f"{letter}: {folder}")
    click.echo(f"{'':24}{'a':>18}{'b':>18}{'b - a':>18}")
    for name, (a, b) in rows.items():
        figures = (bounds.figure(values, observations.overlap) for values in (a, b, b.double() - a.double()))
        click.echo(name.ljust(24) + "".join(f"{describe(figure):>18}" for figure in figures))


def _load(folder: Path, models: Sequence[str]) -> Run:
    own = run_folder.read_settings(folder).config.network.model
    return run_folder.load(folder, own if own in models else next(iter(models), None))


def load_data(folder: Path, run: Run, place: Place) -> Data:
    """The run's data, wherever it is now. Raises InputError where the test part is not that of its figures."""
    config = data.located(run.settings, folder, place)
    observations = data.load(config, place.data_root, place.download)
    if not _measured_on(run, observations.observed_test(run.vae.likelihood.binary)):
        noun = run.observation.noun
        raise InputError(f"test {noun}s are not the run's", *data.origin(config, place.data_root, noun))
    return observations


def measure(folder: Path, run: Run, test: Tensor) -> Measured:
    """Both terms of the ELBO of the run's test observations, on the device where these and its VAE are.

    Raises BundleError where their ELBO is not the one that was measured at the end of the training, by the same noise.
    """
    found = bounds.measure(run.vae, test)
    now, then = bounds.figure(found.terms.elbo), run.evaluation["figures"]["elbo"]
    share = _SAME if run.fingerprint else 1.0  # before those were kept, a GPU had noise of its own
    allowed = max(share * (then["standard_error"] or 0), _ROUNDING * abs(then["mean"]))
    if not abs(now["mean"] - then["mean"]) <= allowed:
        which = f"{folder} (test ELBO {now['mean']:.2f} now, {then['mean']:.2f} when its training ended)"
        raise BundleError("not the network that was trained", which, networks.to_restore(run.config))
    return found


def _measured_on(run: Run, test: Tensor) -> bool:
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


def describe(figure: dict[str, Any]) -> str:
    """Mean and standard error for people."""
    return plus_minus(figure["mean"], figure["standard_error"])


def bits(vae: VAE, nats: float, observation: Observation) -> str:
    """The figure in bits per dimension too, where it is of a probability."""
    if not vae.likelihood.discrete:
        return ""
    return f" ({bounds.bits_per_dimension(nats, observation.size):.3f} bits per dimension)"
