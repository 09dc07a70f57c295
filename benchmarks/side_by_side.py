"""What the benchmarks share: sides that take turns, medians, and one model as bundle, in PyTorch, NumPy and float64."""

import atexit
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vae_export import exporter
from vae_runtime.doctor import describe
from vae_runtime.observation import Observation
from vae_train import bounds, networks, pixels
from vae_train.config import PRESETS
from vae_train.vae import VAE as TorchVAE

_REST = 0.05  # seconds
_CONFIG, _SHAPE = PRESETS["deep"], (1, 28, 28)


def measure(sides: dict[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, float]:
    """Seconds of a call to each side: the median over `rounds` in which every side has its turn.

    Before its turn a side rests, so that no thread of the one before still spins, and runs once unmeasured unless its
    calls take seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(_REST)
            if not times[name] or times[name][-1] < 1:
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


@cache
def in_pytorch() -> TorchVAE:
    """The networks that most benchmarks run: the preset `deep`, 784-512-512-32, with its initial weights."""
    torch.manual_seed(0)
    return networks.build(_CONFIG, _SHAPE).eval().requires_grad_(False)


@cache
def exported() -> Path:
    """The same networks as a bundle, in a folder that is removed at exit."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    probe = np.random.default_rng(0).integers(0, 256, (64, *_SHAPE), dtype=np.uint8)
    measured_on = {"dataset": "none", "split": "none", "observations": len(probe), "binarisation": "fixed draw"}
    summary = bounds.summary(bounds.measure(in_pytorch(), pixels.fixed_draw(torch.from_numpy(probe))))
    out = Path(folder) / "deep"
    exporter.export_vae(in_pytorch(), Observation.image(_SHAPE), probe, out, evaluation={**measured_on, **summary})
    return out


def layers(module: nn.Module, dtype: type = np.float32) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Their encoder or decoder in plain NumPy: two SiLU layers, then its heads (mu and logsigma, or the logits)."""
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    w = [(layer.weight.numpy().T.astype(dtype), layer.bias.numpy().astype(dtype)) for layer in linear]

    def run(x: np.ndarray) -> list[np.ndarray]:
        h = x.reshape(len(x), -1)
        for weight, bias in w[:2]:
            h = h @ weight + bias
            h = h / (1 + np.exp(-h))
        return [h @ weight + bias for weight, bias in w[2:]]

    return run
