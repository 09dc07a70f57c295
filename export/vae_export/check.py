"""Check a bundle that exists: against the run that it was exported from, or, without PyTorch, against itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from vae_export import graphs
from vae_runtime import noise, verify
from vae_runtime.bundle import GRAPHS, Bundle
from vae_runtime.elbo import kl_per_dimension
from vae_runtime.errors import BundleError
from vae_runtime.vae import VAE

if TYPE_CHECKING:
    from vae_export import gate
    from vae_train.checkpoint import Run

BATCHES = (1, 2, 7, 64)
SEED = 2  # the golden vectors have 1
_KNOWS_QUANTISING = 19  # the oldest opset of which the reference evaluator knows the quantising operators

Arrays = dict[str, NDArray[Any]]
Evaluator = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


@dataclass(frozen=True)
class Row:
    """One comparison: how far a tensor is off at most, and how far it may be, in its own unit (nats for the ELBO)."""

    name: str
    max_abs: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.max_abs <= self.tolerance


def with_run(bundle: Bundle, run: "Run") -> "list[gate.Row]":
    """Repeat the numeric gate: PyTorch with the run's weights against the shipped runtime with the bundle's bytes.

    Raises BundleError where the graphs are not what the manifest says, or the bundle is of another model.
    """
    from vae_export import gate

    check_graphs(bundle)
    image = bundle.contract["image"]
    facts = {
        "image shape": (tuple(image[side] for side in ("channels", "height", "width")), run.image_shape),
        "latent_dim": (bundle.contract["latent_dim"], run.vae.latent_dim),
        "likelihood": (bundle.contract["likelihood"], run.vae.likelihood.contract()),
        "parameters": (bundle.manifest.get("parameters"), sum(weight.numel() for weight in run.vae.parameters())),
    }
    if different := [f"{name} {here}, not {there}" for name, (here, there) in facts.items() if here != there]:
        todo = "name the run that it was exported from"
        raise BundleError("bundle of another run", f"{bundle.path} ({'; '.join(different)})", todo)
    return gate.compare(run.vae, VAE(bundle), run.probe)


def alone(bundle: Bundle) -> list[Row]:
    """Compare the runtime with the golden vectors and with ONNX's reference evaluator, on what the model itself draws.

    Tolerances are the manifest's for the golden vectors, which are draws from the same model.
    Raises BundleError where the graphs are not what the manifest says, or it lacks what this needs.
    """
    check_graphs(bundle)
    golden = verify.verify(bundle)
    rows = [Row(f"{row.name}, golden", row.max_abs, row.tolerance) for row in golden]
    tolerance = {row.name: row.tolerance for row in golden}
    for batch, expected, got in _references(bundle):
        for name in expected:
            off = np.abs(got[name].astype(np.float64) - expected[name]).max()
            rows.append(Row(f"{name}, reference, batch {batch}", float(off), tolerance[name]))
    return rows


def table(rows: list[Row]) -> str:
    """The rows for people."""
    lines = [f"  {'tensor':30}{'max abs':>11}{'tolerance':>11}"]
    lines += [f"{'✓' if row.passed else '✗'} {row.name:30}{row.max_abs:11.1e}{row.tolerance:11.1e}" for row in rows]
    return "\n".join(lines)


def check_graphs(bundle: Bundle) -> None:
    """Raise BundleError unless both graphs are valid, deterministic, self-contained, and of the manifest's opset."""
    try:
        opset, ir_version = (bundle.manifest["onnx"][name] for name in ("opset", "ir_version"))
    except (KeyError, TypeError) as error:
        raise BundleError("bundle's manifest lacks what is checked", error, "export it again") from None
    for name in GRAPHS:
        try:
            model = onnx.load_from_string(bundle.files[name])
        except Exception as error:  # protobuf's own
            which = f"{bundle.path / name} ({type(error).__name__})"
            raise BundleError("graph damaged", which, "export it again") from None
        try:
            graphs.check(model, opset)
            if model.ir_version != ir_version:
                raise BundleError(
                    f"ir_version {model.ir_version}", f"the manifest says {ir_version}", "export it again"
                )
        except BundleError as error:
            which = f"{bundle.path / name} ({error.what}: {error.which})"
            raise BundleError("graph is not what the manifest says", which, "export it again") from None


def _references(bundle: Bundle) -> Iterator[tuple[int, Arrays, Arrays]]:
    """For each batch size, what the reference evaluator gives by name, and what the runtime gives."""
    vae = VAE(bundle)
    encode, decode = (_evaluator(bundle, name) for name in GRAPHS)
    rows = np.arange(max(BATCHES))
    z, eps = (noise.normal(SEED, stream, rows, vae.latent_dim) for stream in (noise.PRIOR, noise.POSTERIOR))
    x = vae.sample(len(rows), SEED).clip(0, 1)  # Gaussian pixels may leave the range that the runtime takes
    output = vae.likelihood.output
    for batch in BATCHES:
        images = x[:batch]
        mu, logsigma = encode(images)
        of_posterior = (mu + np.exp(logsigma) * eps[:batch]).astype(np.float32)
        log_likelihood = vae.likelihood.log_prob(images, decode(of_posterior)[0])
        elbo = log_likelihood - kl_per_dimension(mu, logsigma).sum(axis=1)
        expected = {"mu": mu, "logsigma": logsigma, output: decode(z[:batch])[0], "elbo": elbo}
        got = dict(zip(("mu", "logsigma"), vae.encode(images), strict=True))
        yield batch, expected, {**got, output: vae.parameters(z[:batch]), "elbo": vae.elbo(images, seed=SEED)}


def _evaluator(bundle: Bundle, name: str) -> Evaluator:
    """One graph as ONNX's own evaluator runs it, operator by operator in NumPy."""
    model = onnx.load_from_string(bundle.files[name])
    if model.opset_import[0].version < _KNOWS_QUANTISING and any("Quantize" in it.op_type for it in model.graph.node):
        model = onnx.version_converter.convert_version(model, _KNOWS_QUANTISING)

    @np.errstate(all="ignore")  # the sigmoid of a large number, say; what is not finite fails
    def evaluate(inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        try:
            evaluator = ReferenceEvaluator(model)
            return list(evaluator.run(None, {evaluator.input_names[0]: inputs}))
        except Exception as error:  # there is no saying what a rare operator raises
            which = f"{bundle.path / name} ({type(error).__name__}: {str(error)[:120]})"
            raise BundleError("reference evaluator cannot run the graph", which, "check it with its run") from None

    return evaluate
