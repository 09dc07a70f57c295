"""How much room the numeric gate's tolerances leave: the largest difference over its tolerance, by who computes.

    python benchmarks/headroom.py [--only PRESET | --run RUN ...]

For every preset under every likelihood, with the networks and images of tests/support/runs.py: the shipped
runtime, and in place of its sessions onnxruntime without graph optimisations, ONNX's reference evaluator in NumPy,
PyTorch, and PyTorch with every product of matrices and every convolution added up strictly one term after the other,
without and with fused multiply-add. The last two stand for processors that nobody would build. Further columns:
how many nats the ELBO of a real image may be off, of how many, and the processor's seconds that the gate takes.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from side_by_side import machine
from torch import Tensor, nn

from vae_export import candidate, gate
from vae_export.candidate import Candidate
from vae_runtime.bundle import DECODER, ENCODER, GRAPHS
from vae_runtime.observation import Observation
from vae_runtime.vae import VAE as RuntimeVAE
from vae_train import run_folder
from vae_train.config import LIKELIHOODS
from vae_train.vae import VAE

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from support.arithmetic import InOrder
from support.runs import SHAPES, make_vae

Floats = NDArray[np.float32]
Runner = Callable[[Floats], list[Floats]]
Subject = tuple[VAE, Observation, NDArray[Any]]  # with some observations


class Session:
    """What the runtime wants of a session, with another way to run."""

    def __init__(self, outputs: Sequence[str], run: Runner) -> None:
        self.names, self.runner = list(outputs), run

    def run(self, outputs: Sequence[str], x: Floats) -> list[Floats]:
        """The outputs asked for."""
        found = dict(zip(self.names, self.runner(x), strict=True))
        return [found[name] for name in outputs]


def onnx_runner(graph: bytes, reference: bool) -> Runner:
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


def sides(made: Candidate) -> dict[str, RuntimeVAE]:
    """The runtime of these graphs, computed by everyone."""
    graphs = {name: made.files[name] for name in GRAPHS}
    modules = {ENCODER: made.vae.encoder, DECODER: made.vae.decoder}
    outputs = {ENCODER: ["mu", "logsigma"], DECODER: [made.vae.likelihood.output]}
    runners: dict[str, Callable[[str], Runner]] = {
        "unoptimised": lambda name: onnx_runner(graphs[name], reference=False),
        "reference": lambda name: onnx_runner(graphs[name], reference=True),
        "PyTorch": lambda name: torch_runner(modules[name], None),
        "in order": lambda name: torch_runner(modules[name], False),
        "fused": lambda name: torch_runner(modules[name], True),
    }
    found = {"onnxruntime": made.runtime()}
    for side, runner in runners.items():
        found[side] = made.runtime()
        opened = {name: Session(outputs[name], runner(name)) for name in graphs}
        found[side]._sessions._opened = opened  # type: ignore[assignment]
    return found


def measure(vae: VAE, observation: Observation, probe: NDArray[Any]) -> dict[str, float]:
    """The largest difference over its tolerance, by side; then of real images the tolerance of the ELBO and its size.

    Last, the processor's seconds that the gate takes.
    """
    computed = sides(candidate.fp32(vae, observation, 17))
    start = time.process_time()
    cases = gate.expect(vae, observation, probe)
    gate.judge(cases, computed["onnxruntime"])
    seconds = time.process_time() - start
    found = {}
    for side, runtime in computed.items():
        rows = gate.judge(cases, runtime)
        found[side] = max(row.max_abs / row.tolerance for row in rows)
        assert not math.isnan(found[side])
    (scored,) = [case for case in cases if gate.is_real(case.kind) and "ELBO" in case.expected]
    nats = next(row.tolerance for row in rows if row.tensor == "ELBO" and gate.is_real(row.inputs))
    return {**found, "nats": nats, "of": float(np.abs(scored.expected["ELBO"]).mean()), "seconds": seconds}


def made_up(only: str | None) -> Iterator[tuple[str, Subject]]:
    """A VAE of every preset under every likelihood, and two of large images, by name."""
    large = [] if only else [(preset, "gaussian", (3, 64, 64)) for preset in ("tutorial", "resnet-colour")]
    presets = [only] if only else list(SHAPES)
    for preset, likelihood, shape in [
        *((p, like, SHAPES[p]) for p in presets for like in LIKELIHOODS if like != "mixed"),
        *large,
    ]:
        vae, levels = make_vae(preset, likelihood, shape)
        yield f"{preset}, {likelihood}, {'x'.join(map(str, shape))}", (vae, Observation.image(shape), levels.numpy())


def trained(folders: Iterable[Path]) -> Iterator[tuple[str, Subject]]:
    """The VAEs of runs, by their folders."""
    for folder in folders:
        run = run_folder.load(folder)
        yield str(folder), (run.vae, run.observation, run.probe)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHAPES, help="one of the presets")
    parser.add_argument("--run", type=Path, nargs="+", help="trained runs in place of all that")
    given = parser.parse_args()
    print(machine())
    largest: dict[str, float] = {}
    for name, subject in trained(given.run) if given.run else made_up(given.only):
        found = measure(*subject)
        if not largest:
            print(f"{'':45}" + "".join(f"{column:>12}" for column in found))
        print(line(name, found), flush=True)
        largest = {column: max(value, largest.get(column, 0.0)) for column, value in found.items()}
    print(line("largest", largest))


def line(name: str, found: dict[str, float]) -> str:
    """A line of the table."""
    return f"{name:45}" + "".join(f"{value:12.2g}" for value in found.values())


if __name__ == "__main__":
    main()
