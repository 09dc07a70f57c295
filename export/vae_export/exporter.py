"""Make a bundle of a VAE: graphs, golden vectors and manifest, published only if they pass the numeric gate."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from vae_export import (
    candidate,
    contract,
    failing,
    gate,
    measured,
    onnx_graph,
    publish,
    requirements,
    tradeoff,
    trained,
)
from vae_export.candidate import Candidate
from vae_export.gate import Comparison, GateFailed, Verdict
from vae_export.measured import Measure
from vae_export.tradeoff import Samples, Tradeoff, Tried
from vae_runtime import arguments, bundle, likelihoods, records
from vae_runtime import manifest as manifests
from vae_runtime.bundle import CALIBRATION, MANIFEST
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.manifest import Manifest, Preprocessing
from vae_runtime.measured import Evaluation, Figure, Provenance
from vae_runtime.observation import IMAGE, Observation
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import bounds, data, pixels
from vae_train.config import Config
from vae_train.fingerprint import Fingerprint
from vae_train.run import Run
from vae_train.vae import VAE

PRECISIONS = ("fp32", "fp16", "int8", "auto")
MAX_NATS = 0.5  # per observation
GATED = 64  # observations that go through the gate

Json = dict[str, Any]
Told = Mapping[str, Any] | None


@dataclass(frozen=True, repr=False)
class Exported:
    """A bundle that was published, and how.

    path: its folder. verdicts: the gate's on the float32 graphs and, where smaller ones took their place, on those.
    tried: the smaller precisions that were weighed against float32; cost: of the published one, None of float32.
    manifest: what the bundle says of itself. uncalibrated: why it carries no calibration, where the observations that
    were kept for one did not do; else None.
    """

    path: Path
    verdicts: list[Verdict]
    tried: list[Tried]
    cost: Tradeoff | None
    manifest: Manifest
    uncalibrated: InputError | None = None

    @property
    def precision(self) -> str:
        """Of the published graphs: "fp32", "fp16" or "int8"."""
        return self.verdicts[-1].precision

    @property
    def comparisons(self) -> list[Comparison]:
        """What the gate compared of the published graphs; all have passed."""
        return self.verdicts[-1].comparisons

    @property
    def figures(self) -> dict[str, Figure]:
        """The ELBO, its terms and bounds of log p(x) by name, nats per observation; none where none were measured."""
        return self.manifest.evaluation.figures if self.manifest.evaluation else {}

    def __repr__(self) -> str:
        noun, elbo = self.manifest.contract.observation.noun, self.figures.get("elbo")
        measured = f", ELBO {elbo.mean:.2f} nats per {noun}" if elbo else ""
        passed = f"{len(self.comparisons)} comparisons passed"
        return f"<vae_export.Exported {str(self.path)!r}: {self.precision}, {passed}{measured}>"


def export_vae(
    vae: VAE,
    observation: Observation,
    observations: ArrayLike,
    out: str | PathLike[str],
    *,
    opset: int = onnx_graph.OLDEST_OPSET,
    precision: str = "fp32",
    max_nats: float = MAX_NATS,
    samples: Samples | None = None,
    provenance: Told = None,
    settings: Told = None,
    preprocessing: Told = None,
    evaluation: Told | Measure = None,
    normal: ArrayLike | None = None,
    fingerprint: Fingerprint | None = None,
    keep_failing: Path | None = None,
    reference: str = candidate.NETWORK,
) -> Exported:
    """Export `vae`, compare its graphs with it in float64, and publish them as the folder `out` if all numbers agree.

    observation: their kind, shape and range. observations: real ones [n, *shape], uint8 levels or floats; the first 64
    go through the gate. opset: of the graphs, 17 to the newest that this torch writes. precision: "fp32", "fp16",
    "int8", or "auto" for the one that pays most; what one costs, at most `max_nats` per observation, is
    measured on `samples`, or on all observations. provenance, settings, preprocessing, evaluation: what the manifest
    says of the training, as far as it is known (docs/bundle.md); an evaluation may be what measures it. normal:
    observations that the VAE was not trained on, of which the bundle carries what is usual. fingerprint: what the
    trained network gave for the first observations. keep_failing: a new folder for what repeats a failure of the gate.
    reference: what the report says that the numbers were compared with.

    The VAE is left on its device and in its mode.

    Raises GateFailed where a number is further off than rounding explains; BundleError where the network is not one
    that a bundle can hold, not the one that was trained, or a precision costs too much; InputError, ArgumentError. A
    failed or killed export leaves what was at `out` as it was.
    """
    onnx_graph.check_opset(opset)
    if precision not in PRECISIONS:
        raise ArgumentError("unknown precision", precision, f"choose {', '.join(PRECISIONS)}")
    x = _checked(observations, observation, vae)
    if keep_failing:
        failing.check_new(keep_failing)
    out = Path(out).resolve()  # a link is followed, so that its target is replaced
    publish.check_target(out)
    measure = evaluation if callable(evaluation) else None
    about = _about(vae, provenance, settings, preprocessing, None if callable(evaluation) else evaluation)
    probe, kept = x[:GATED], None if normal is None else _checked(normal, observation, vae)
    with at_rest(vae):
        made = candidate.fp32(vae, observation, opset, reference)
        if fingerprint is not None:
            trained.check(vae, probe, fingerprint, observation.noun)
        with publish.staging(out) as staging:
            verdict, uncalibrated = _stage(staging, made, about, probe, measure, kept, keep_failing)
            verdicts = [verdict]
            smaller, cost, tried = None, None, list[Tried]()
            if precision != "fp32":
                samples = samples or tradeoff.samples_of(vae, x)
                smaller, cost, tried = tradeoff.pick(precision, made, samples, max_nats)
            if smaller and cost:
                about["precision"] = cost.report()
                verdict, uncalibrated = _stage(staging, smaller, about, probe, measure, kept, keep_failing)
                verdicts.append(verdict)
            publish.swap(staging, out)
    publish.remove_leftovers(out)
    return Exported(out, verdicts, tried, cost, bundle.read(out).manifest, uncalibrated)


def export_run(
    run: Run,
    out: str | PathLike[str],
    *,
    opset: int = onnx_graph.OLDEST_OPSET,
    precision: str = "fp32",
    max_nats: float = MAX_NATS,
    observed: data.Data | None = None,
    keep_failing: Path | None = None,
) -> Exported:
    """`export_vae` of a finished run, with all that it knows; raises what that raises.

    observed: its data, to weigh a precision on. out, opset, precision, max_nats, keep_failing: as in `export_vae`.
    """
    with trained.named(run.config):
        return export_vae(
            run.vae,
            run.observation,
            run.held_out,
            out,
            opset=opset,
            precision=precision,
            max_nats=max_nats,
            samples=tradeoff.samples_of_run(run, observed) if observed else None,
            provenance=run.provenance,
            settings=asdict(_without_folders(run.config)),
            preprocessing=run.settings.preprocessing,
            evaluation=run.evaluation,
            normal=run.held_out,
            fingerprint=run.fingerprint,
            keep_failing=keep_failing,
        )


def _without_folders(config: Config) -> Config:
    """The settings with the names of data files, and not the folders above them, which are nobody's business."""
    dataset, test = (path and Path(path).name for path in (config.data.dataset, config.data.test))
    return config.replace(dataset=dataset, test=test)


def _checked(observations: ArrayLike, observation: Observation, vae: VAE) -> NDArray[Any]:
    """The observations as uint8 levels or float32. Raises InputError where they are not of that shape and range.

    The values of images that are drawn as binary may lie between 0 and 1; others must be in the likelihood's support.
    """
    if isinstance(observations, torch.Tensor):
        observations = observations.detach().cpu().numpy()
    levels = observation.kind == IMAGE and observation.range == (0, 1)
    if levels and isinstance(observations, np.ndarray) and observations.dtype == np.uint8:
        values: NDArray[Any] = np.ascontiguousarray(observations)
        arguments.observations(values[:1] / np.float32(255), observation)  # whose shape may be wrong, and nothing else
    else:
        values = arguments.observations(observations, observation)
        if not pixels.drawn(vae.likelihood.binary, observation):
            likelihoods.check(contract.likelihood(vae, observation), values, observation.noun)
    if not len(values):
        raise InputError(f"no {observation.noun}s", "an empty array", "give real ones, 64 for the whole gate")
    return values


def _about(vae: VAE, provenance: Told, settings: Told, preprocessing: Told, evaluation: Told) -> Json:
    """What a manifest says of a VAE's training, as far as it is known.

    Raises ArgumentError where an entry is not one that a runtime would understand.
    """
    told = {
        "provenance": provenance or {},
        "settings": settings,
        "preprocessing": preprocessing,
        "evaluation": evaluation,
    }
    try:
        known = {name: json.loads(json.dumps(dict(it), allow_nan=False)) for name, it in told.items() if it is not None}
        records.parse(Provenance, known["provenance"], "provenance")
        records.parse(Preprocessing, known.get("preprocessing", {}), "preprocessing")
        if "evaluation" in known:
            records.parse(Evaluation, known["evaluation"], "evaluation")
    except (TypeError, ValueError) as error:
        raise ArgumentError("entry of the manifest not understood", error, "docs/bundle.md has the fields") from None
    return {
        "parameters": sum(weight.numel() for weight in vae.parameters()),
        **known,
        "provenance": {**known["provenance"], **_versions("vae-edge", "onnx", "onnxscript", "onnxruntime")},
    }


def _stage(
    staging: Path,
    made: Candidate,
    about: Json,
    probe: NDArray[Any],
    measure: Measure | None,
    normal: NDArray[Any] | None,
    keep_failing: Path | None,
) -> tuple[Verdict, InputError | None]:
    """Write the candidate's bundle into the folder `staging`, let it pass the gate there, and keep the gate's report.

    measure: what gives its figures, where they are not known. normal: observations of which it keeps what is usual, and
    with the verdict comes why it cannot.

    Raises GateFailed where it does not pass.
    """
    manifest = {
        "contract": made.contract.json(),
        "files": {name: _file(data) for name, data in made.files.items()},
        "onnx": requirements.describe(made.graphs),
        **about,
    }
    publish.write(staging, {**made.files, MANIFEST: manifests.dump(manifest)})
    runtime = RuntimeVAE.load(staging, standardised=True)
    comparisons = gate.compare(made.vae, runtime, probe)
    verdict = Verdict(made.precision, made.reference, comparisons)
    if not all(comparison.passed for comparison in comparisons):
        if keep_failing:
            failing.keep(keep_failing, staging, comparisons)
        raise GateFailed(verdict)
    manifest |= {"evaluation": measure(made.vae, runtime)} if measure else {}
    uncalibrated = None
    if normal is not None:
        try:
            calibration = measured.usual(runtime, normal)
        except InputError as error:
            uncalibrated = error
        else:
            manifest["files"] |= {CALIBRATION: _file(calibration)}
            publish.write(staging, {CALIBRATION: calibration})
    publish.write(staging, {MANIFEST: manifests.dump({**manifest, "parity": gate.report(comparisons, made.reference)})})
    return verdict, uncalibrated


@contextmanager
def at_rest(vae: nn.Module) -> Iterator[None]:
    """Networks on the CPU and in evaluation mode; afterwards where and as they were."""
    device = next((weight.device for weight in vae.parameters()), torch.device("cpu"))
    try:
        with bounds.evaluating(vae.cpu()):
            yield
    finally:
        vae.to(device)


def _file(data: bytes) -> Json:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
