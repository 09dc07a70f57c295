"""Check a bundle that exists: against the run that it was exported from, or, without PyTorch, against itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_export import onnx_graph, reference
from vae_runtime import likelihoods, noise, verify
from vae_runtime import prior as priors
from vae_runtime.bundle import DECODER, ENCODER, PRIOR, Bundle, graphs_of
from vae_runtime.errors import BundleError
from vae_runtime.manifest import Graphs, Manifest
from vae_runtime.prior import kl_of_draw, standard_normal
from vae_runtime.vae import VAE

if TYPE_CHECKING:
    from vae_export import gate
    from vae_train.run import Run

BATCHES = (1, 2, 7, 64)
SEED = 2  # the golden vectors have 1
_LIKELY = ("golden", "prior z", "posterior z")  # of what the gate compares, the module of torch; and real ones

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Deviation:
    """One comparison: how far a tensor is off at most, and how far it may be, in its own unit (nats for the ELBO)."""

    name: str
    max_abs: float
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.max_abs <= self.tolerance


def with_run(bundle: Bundle, run: "Run") -> "list[gate.Comparison]":
    """Repeat the numeric gate: PyTorch with the run's weights against the shipped runtime with the bundle's bytes.

    8-bit graphs are compared with ONNX's own evaluator, as at their export, and their weights with the run's, in steps.
    Raises BundleError where the graphs are not what the manifest says, or the bundle is of another model, or
    the run's network is not the one that was trained.
    """
    from vae_export import candidate, contract, gate, quantise, trained

    check_graphs(bundle)
    here, there = bundle.manifest.contract, contract.of(run.vae, run.observation)
    facts = {
        "kind": (here.observation.kind, there.observation.kind),
        "shape": (here.observation.shape, there.observation.shape),
        "range": (here.observation.range, there.observation.range),
        "prior": (here.json()["prior"], there.json()["prior"]),
        "latent shape": (here.latent_shape, there.latent_shape),
        "likelihood": (here.json()["likelihood"], there.json()["likelihood"]),
        "parameters": (bundle.manifest.parameters, sum(weight.numel() for weight in run.vae.parameters())),
    }
    if different := [f"{name} {ours}, not {theirs}" for name, (ours, theirs) in facts.items() if ours != theirs]:
        todo = "name the run that it was exported from"
        raise BundleError("bundle of another run", f"{bundle.path} ({'; '.join(different)})", todo)
    if run.fingerprint is not None:
        with trained.named(run.config):
            trained.check(run.vae, run.probe, run.fingerprint, run.observation.noun)
    runtime, smaller = VAE(bundle, standardised=True), bundle.manifest.precision
    if not smaller:
        return gate.compare(run.vae, runtime, run.probe)
    if smaller.precision == "fp16":
        return gate.compare(quantise.rounded(run.vae), runtime, run.probe)
    quantised = {role: onnx.load_from_string(bundle.files[f"{role}.onnx"]) for role in ("encoder", "decoder")}
    rows = gate.compare(quantise.evaluated(run.vae, **quantised), runtime, run.probe)
    plain = candidate.export(run.vae, there.observation.shape, said_of(bundle).opset)
    for name, model in quantised.items():
        steps = quantise.steps_off(plain[name], model)
        rows.append(
            gate.Comparison(
                name, "weights", 1, tolerance=quantise.ROUNDED, pytorch=0.0, max_abs=steps, ulps=0.0, nats=0.0
            )
        )
    return rows


def alone(bundle: Bundle) -> list[Deviation]:
    """Compare the runtime with the golden vectors and with ONNX's reference evaluator, on what the model itself draws.

    Tolerances are the manifest's: for the golden vectors their own, else the largest for what is as likely.
    Raises BundleError where the graphs are not what the manifest says, or it lacks what this needs.
    """
    check_graphs(bundle)
    golden = verify.verify(bundle)
    rows = [Deviation(f"{row.name}, golden", row.max_abs, row.tolerance) for row in golden]
    tolerance = tolerances(bundle.manifest)
    for batch, expected, got in _references(bundle):
        for name in expected:
            off = np.abs(got[name].astype(np.float64) - expected[name]).max()
            rows.append(Deviation(f"{name}, reference, batch {batch}", float(off), tolerance[name]))
    return rows


def tolerances(manifest: Manifest) -> dict[str, float]:
    """How far each tensor may be off, on what is likely under the model. Raises BundleError where that is missing."""
    largest: dict[str, float] = {}
    for row in manifest.parity.rows if manifest.parity else ():
        if row.inputs in _LIKELY or row.is_real:
            name = row.tensor.lower()
            largest[name] = max(largest.get(name, 0.0), row.tolerance)
    output = likelihoods.make(manifest.contract.likelihood, manifest.contract.observation).output
    if missing := [tensor for tensor in ("mu", "logsigma", output, "elbo") if tensor not in largest]:
        raise BundleError("bundle's manifest lacks what is checked", f"parity of {missing[0]}", "export it again")
    return largest


def table(rows: list[Deviation]) -> str:
    """The rows for people."""
    lines = [f"  {'tensor':30}{'max abs':>11}{'tolerance':>11}"]
    lines += [f"{'✓' if row.passed else '✗'} {row.name:30}{row.max_abs:11.1e}{row.tolerance:11.1e}" for row in rows]
    return "\n".join(lines)


def check_graphs(bundle: Bundle) -> None:
    """Raise BundleError unless all graphs are valid, deterministic, self-contained, and of the manifest's opset."""
    said = said_of(bundle)
    for name in graphs_of(bundle.manifest.contract):
        try:
            model = onnx.load_from_string(bundle.files[name])
        except Exception as error:  # protobuf's own
            which = f"{bundle.path / name} ({type(error).__name__})"
            raise BundleError("graph damaged", which, "export it again") from None
        try:
            onnx_graph.check(model, said.opset, scans=name == PRIOR)
            if model.ir_version != said.ir_version:
                which = f"the manifest says {said.ir_version}"
                raise BundleError(f"ir_version {model.ir_version}", which, "export it again")
        except BundleError as error:
            which = f"{bundle.path / name} ({error.what}: {error.which})"
            raise BundleError("graph is not what the manifest says", which, "export it again") from None


def said_of(bundle: Bundle) -> Graphs:
    """What the manifest says of the graphs. Raises BundleError where that is missing."""
    if bundle.manifest.onnx is None:
        raise BundleError("bundle's manifest lacks what is checked", f"{bundle.path} (onnx)", "export it again")
    return bundle.manifest.onnx


def _references(bundle: Bundle) -> Iterator[tuple[int, Arrays, Arrays]]:
    """For each batch size, what the reference evaluator gives by name, and what the runtime gives."""
    vae = VAE(bundle, standardised=True)
    encode, decode = (_evaluator(bundle, name) for name in (ENCODER, DECODER))
    learned = bundle.manifest.contract.learned_prior
    prior = priors.make(bundle.manifest.contract.prior, vae.latent_shape, _EvaluatedPrior(bundle))
    rows = np.arange(max(BATCHES))
    drawn, z = standard_normal(vae.latent_shape, SEED, rows), vae.prior.sample(SEED, rows)
    x = vae.observation.clip(vae.sample(len(rows), SEED))
    eps = noise.normal(SEED, noise.POSTERIOR, noise.index(x), vae.latent_dim).reshape(z.shape)  # as `elbo` draws it
    output = vae.likelihood.output
    for batch in BATCHES:
        some = x[:batch]
        mu, logsigma = encode(some)
        of_posterior = (mu + np.exp(logsigma) * eps[:batch]).astype(np.float32)
        log_likelihood = vae.likelihood.log_prob(some, decode(of_posterior)[0])
        elbo = log_likelihood - kl_of_draw(prior, mu, logsigma, eps[:batch])
        expected: Arrays = {"mu": mu, "logsigma": logsigma, output: decode(z[:batch])[0], "elbo": elbo}
        got: Arrays = dict(zip(("mu", "logsigma"), vae.encode(some), strict=True))
        got |= {output: vae.parameters(z[:batch]), "elbo": vae.elbo(some, seed=SEED)}
        for side, of_side in ((prior, expected), (vae.prior, got)) if learned else ():
            of_side |= {"z_of_noise": side.from_noise(drawn[:batch]), "log_prob": side.log_prob(z[:batch])}
        yield batch, expected, got


class _EvaluatedPrior:
    """The graph of a learned prior as ONNX's own evaluator runs it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def from_noise(self, noise: Floats) -> Floats:
        """z of noise, both [rows, *latent shape]."""
        return _evaluator(self.bundle, PRIOR)(noise, "noise")[0]

    def to_noise(self, z: Floats) -> tuple[Floats, Floats]:
        """Noise of z, [rows, *latent shape] both, and log p(z), [rows]."""
        _, noise, log_prob = _evaluator(self.bundle, PRIOR)(z, "z")
        return noise, log_prob


def _evaluator(bundle: Bundle, name: str) -> Callable[..., list[Floats]]:
    """One graph as ONNX's own evaluator runs it, operator by operator in NumPy, of rows and which input they are."""
    model = reference.readable(onnx.load_from_string(bundle.files[name]))

    def evaluate(inputs: Floats, given: str | None = None) -> list[Floats]:
        try:
            return reference.run(model, inputs, given)
        except Exception as error:  # there is no saying what a rare operator raises
            which = f"{bundle.path / name} ({type(error).__name__}: {str(error)[:120]})"
            raise BundleError("reference evaluator cannot run the graph", which, "check it with its run") from None

    return evaluate
