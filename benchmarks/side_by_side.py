"""What the benchmarks share: sides that take turns, medians, and the shipped model in PyTorch, NumPy and float64."""

import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from vae_runtime.bundle import shipped
from vae_runtime.doctor import describe
from vae_train import networks
from vae_train.config import PRESETS
from vae_train.vae import VAE as TorchVAE

_REST = 0.05  # seconds


def measure(sides: dict[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, float]:
    """Seconds of a call to each side: the median over `rounds` in which every side has its turn.

    Before its turn a side rests, so that no thread of the one before still spins, and runs once unmeasured where its
    calls are short.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(_REST)
            if calls > 1 or not times[name]:
                side()
            start = time.perf_counter()
            for _ in range(calls):
                side()
            times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, medians: dict[str, float], scale: float, unit: str) -> None:
    """Print each side's median, times `scale`, and as a multiple of the first side's."""
    print(f"\n{title}")
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"  {name:44} {scale * median:10.2f} {unit} {median / first:7.2f}x")


def machine() -> str:
    """This machine and the versions that matter."""
    facts = describe()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "onnxruntime", "torch"))
    return f"{facts['machine']}, {facts['cores']} cores, Python {facts['python']}, {packages}"


def weights(graph: str) -> dict[str, np.ndarray]:
    """The weights of one of the shipped graphs, by name."""
    model = onnx.load(shipped() / graph)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if "." in tensor.name}


def in_pytorch() -> TorchVAE:
    """The shipped model as PyTorch modules."""
    vae = networks.build(PRESETS["deep"], (1, 28, 28))
    for module, graph in ((vae.encoder, "encoder.onnx"), (vae.decoder, "decoder.onnx")):
        module.load_state_dict({name: torch.tensor(value) for name, value in weights(graph).items()})
    return vae.eval().requires_grad_(False)


def layers(graph: str, dtype: type = np.float32) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A shipped graph in plain NumPy: two SiLU layers, then its heads (mu and logsigma, or the logits)."""
    w = {name: value.astype(dtype) for name, value in weights(graph).items()}
    heads = ["mu", "logsigma"] if graph == "encoder.onnx" else ["logits"]

    def run(x: np.ndarray) -> list[np.ndarray]:
        h = x.reshape(len(x), -1)
        for name in ("body.0", "body.2"):
            h = h @ w[f"{name}.weight"].T + w[f"{name}.bias"]
            h = h / (1 + np.exp(-h))
        return [h @ w[f"{name}.weight"].T + w[f"{name}.bias"] for name in heads]

    return run
