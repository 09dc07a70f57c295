"""How much room the numeric gate's tolerances leave: the largest difference over its tolerance, by who computes.

    python benchmarks/headroom.py [--only PRESET | --run RUN]

For every preset under every likelihood, with the networks and images of tests/export/test_presets.py: the shipped
runtime, and in place of its sessions onnxruntime without graph optimisations, ONNX's reference evaluator in NumPy,
PyTorch, and PyTorch with every product of matrices and every convolution added up strictly one term after the other,
without and with fused multiply-add. The last two stand for processors that nobody would build.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from side_by_side import machine
from torch import Tensor, nn

from vae_export import bundle, gate
from vae_runtime.bundle import DECODER, ENCODER
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import checkpoint
from vae_train.checkpoint import Run
from vae_train.config import LIKELIHOODS
from vae_train.vae import VAE

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "export"))
from test_presets import SHAPES, make_run
from test_rounding import InOrder

Floats = NDArray[np.float32]
Runner = Callable[[Floats], list[Floats]]


class Session:
    """What the runtime wants of a session, with another way to run."""

    def __init__(self, outputs: Sequence[str], run: Runner) -> None:
        self.names, self.runner = list(outputs), run

    def run(self, outputs: Sequence[str], x: Floats) -> list[Floats]:
        """The outputs asked for."""
        found = dict(zip(self.names, self.runner(x), strict=True))
        return [found[name] for name in outputs]


def onnx_runner(graph: bytes, output: str, reference: bool) -> Runner:
    """A graph without onnxruntime, or without its optimisations."""
    if reference:
        evaluator = ReferenceEvaluator(graph)
        return lambda x: evaluator.run(None, {evaluator.input_names[0]: x})
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})


def torch_runner(module: nn.Module, fused: bool | None) -> Runner:
    """A module in PyTorch's own float32, or in order."""

    @torch.no_grad()
    def run(x: Floats) -> list[Floats]:
        if fused is None:
            outputs = module(torch.from_numpy(x))
        else:
            with InOrder(fused):
                outputs = module(torch.from_numpy(x))
        return [output.numpy() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]

    return run


def sides(vae: VAE, folder: Path) -> dict[str, RuntimeVAE]:
    """The runtime of the bundle in `folder`, computed by everyone."""
    found = {"onnxruntime": RuntimeVAE.load(folder)}
    graphs = {name: (folder / name).read_bytes() for name in (ENCODER, DECODER)}
    outputs = {ENCODER: ["mu", "logsigma"], DECODER: [vae.likelihood.output]}
    modules = {ENCODER: vae.encoder, DECODER: vae.decoder}
    runners: dict[str, Callable[[str], Runner]] = {
        "unoptimised": lambda name: onnx_runner(graphs[name], name, reference=False),
        "reference": lambda name: onnx_runner(graphs[name], name, reference=True),
        "PyTorch": lambda name: torch_runner(modules[name], None),
        "in order": lambda name: torch_runner(modules[name], False),
        "fused": lambda name: torch_runner(modules[name], True),
    }
    for side, runner in runners.items():
        found[side] = RuntimeVAE.load(folder)
        found[side]._sessions = {name: Session(outputs[name], runner(name)) for name in graphs}  # type: ignore[misc]
    return found


def measure(run: Run) -> dict[str, float]:
    """The largest difference over its tolerance, by side."""
    cases = gate.expect(run.vae, run.probe)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        bundle.export(run, out, 17, lambda rows, heading: None)
        for side, runtime in sides(run.vae, out).items():
            rows = gate.judge(cases, runtime)
            found[side] = max(row.max_abs / row.tolerance for row in rows)
            assert not math.isnan(found[side])
        scored = [row for row in rows if (row.tensor, row.inputs) == ("ELBO", gate.REAL)]
        found["nats"], found["of"] = scored[-1].tolerance, float(np.abs(cases[-4].expected["ELBO"]).mean())
    return found


def made_up(only: str | None) -> Iterator[tuple[str, Run]]:
    """A run of every preset under every likelihood, and two of large images, by name."""
    large = [] if only else [(preset, "gaussian", (3, 64, 64)) for preset in ("tutorial", "resnet-colour")]
    presets = [only] if only else list(SHAPES)
    for preset, likelihood, shape in [*((p, like, SHAPES[p]) for p in presets for like in LIKELIHOODS), *large]:
        yield f"{preset}, {likelihood}, {'x'.join(map(str, shape))}", make_run(preset, likelihood, shape)[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHAPES, help="one of the presets")
    parser.add_argument("--run", type=Path, help="a trained run in place of all that")
    given = parser.parse_args()
    runs: Iterable[tuple[str, Run]] = (
        [(str(given.run), checkpoint.load(given.run))] if given.run else made_up(given.only)
    )
    print(machine())
    for i, (name, run) in enumerate(runs):
        found = measure(run)
        if i == 0:
            print(f"{'':45}" + "".join(f"{side:>12}" for side in found))
        print(f"{name:45}" + "".join(f"{x:12.2g}" for x in found.values()), flush=True)


if __name__ == "__main__":
    main()
