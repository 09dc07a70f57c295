"""A ResNet, in seconds: the one that ships, on the device, and the preset's training against its convolutions' floor.

    python benchmarks/convolutions.py [--rounds 11] [--openvino FOLDER] [--no-compile]
    python benchmarks/convolutions.py --train DATA [--rounds 7] [--seconds 2] [--pythae FOLDER]

On the device: one `encode` and one `decode` of the model that ships, beside its graphs in onnxruntime alone, OpenVINO,
and the same networks in PyTorch. Training: steps of vae-train beside the convolutions and matrix products of such a
step alone, forwards and backwards, and beside pythae's own ResNet in its loop. FOLDER: where `pip install --target
FOLDER` has put the package. All sides take turns on the same cores.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from side_by_side import machine, measure, table
from torch import nn
from training import EPOCH, Steps, epoch_seconds, ours, steps_of_pythae

from vae_runtime import VAE, threads
from vae_train import networks
from vae_train.config import PRESETS

SHAPE = (1, 28, 28)
CONFIG = PRESETS["resnet"].replace(dataset="mnist", epochs=1000)
SHIPPED = CONFIG.replace(hidden=(32, 64), blocks=2, prior="flow")
Floats = np.ndarray


def openvino(graph: Path) -> Callable[[Floats], object]:
    """A graph in OpenVINO, float32, on as many threads as the others have."""
    import openvino as ov

    hints = {
        "INFERENCE_NUM_THREADS": threads.count(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.Core().compile_model(str(graph), "CPU", hints).create_infer_request()
    return lambda values: request.infer([values])


def onnxruntime_alone(graph: Path) -> Callable[[Floats], object]:
    """A graph in onnxruntime as it comes, one call for the whole batch on all threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads.count()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})


def on_the_device(rounds: int, compiled: bool, with_openvino: bool) -> None:
    """Print a table for each of encode and decode, and each batch size."""
    vae = VAE.load("mnist")
    torch.set_grad_enabled(False)
    eager = networks.build(SHIPPED, SHAPE).eval()
    assert sum(weights.numel() for weights in eager.parameters()) == vae.manifest.parameters  # the same networks
    for role, network in (("encode", eager.encoder), ("decode", eager.decoder)):
        graph = vae.path / f"{role}r.onnx"
        others = {"onnxruntime alone": onnxruntime_alone(graph)}
        if with_openvino:
            others["OpenVINO"] = openvino(graph)
        faster = torch.compile(network) if compiled else None
        for batch in (1, 64):
            x = vae.sample(batch, seed=2)
            values = x if role == "encode" else vae.encode(x)[0]
            tensor = torch.from_numpy(values)
            sides: dict[str, Callable[[], object]] = {
                f"vae.{role}": lambda values=values, role=role: getattr(vae, role)(values)
            }
            sides |= {name: lambda side=side, values=values: side(values) for name, side in others.items()}
            sides["PyTorch eager"] = lambda network=network, tensor=tensor: network(tensor)
            if faster is not None:
                sides["torch.compile"] = lambda faster=faster, tensor=tensor: faster(tensor)
            table(f"{role}, batch {batch}", measure(sides, rounds, max(1, 64 // batch)), 1e3, "ms")


def convolutions(batch: int) -> Steps:
    """Steps in which nothing is computed but the convolutions and matrix products of a training step."""
    vae = networks.build(CONFIG, SHAPE).to(memory_format=torch.channels_last)
    x = torch.rand(batch, *SHAPE).contiguous(memory_format=torch.channels_last)
    layers: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entry = inputs[0].detach().requires_grad_(inputs[0].requires_grad)
        layers.append((layer, entry, torch.randn_like(output)))

    hooks = [part.register_forward_hook(keep) for part in vae.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    vae.decoder(vae.encoder(x)[0])
    for hook in hooks:
        hook.remove()
    while True:
        for layer, entry, gradient in layers:
            weights = [*layer.parameters(), *([entry] if entry.requires_grad else [])]
            torch.autograd.grad(layer(entry), weights, gradient)
        yield batch


def training(root: Path, rounds: int, seconds: float, pythae: Path | None) -> None:
    """Print images a second of each side, and as a multiple of the floor's time."""
    torch.manual_seed(0)
    sides = {
        "floor: its convolutions and products alone": convolutions(CONFIG.optimiser.batch_size),
        "vae-train --preset resnet": ours(root, CONFIG.replace(precision="float32")).steps,
        "vae-train --preset resnet --precision bfloat16": ours(root, CONFIG.replace(precision="bfloat16")).steps,
    }
    if pythae:
        sides["pythae, its own ResNet"] = resnet_of_pythae(root, pythae)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, steps in sides.items():
            time.sleep(0.05)
            taken[name].append(epoch_seconds(steps, seconds))
    print(f"\ntraining on MNIST, {torch.get_num_threads()} threads, median of {rounds} rounds")
    floor = statistics.median(next(iter(taken.values())))
    for name, values in taken.items():
        median = statistics.median(values)
        print(f"  {name:48} {EPOCH / median:8,.0f} images/s {median / floor:7.2f}x")


def resnet_of_pythae(root: Path, folder: Path) -> Steps:
    """pythae's VAE with its own ResNets for MNIST, stepped as its trainer does."""
    sys.path.append(str(folder))
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_ResNet_AE_MNIST, Encoder_ResNet_VAE_MNIST

    latent_dim = CONFIG.network.latent_dim
    config = VAEConfig(input_dim=SHAPE, latent_dim=latent_dim, reconstruction_loss="bce")
    model = PythaeVAE(config, encoder=Encoder_ResNet_VAE_MNIST(config), decoder=Decoder_ResNet_AE_MNIST(config))
    return steps_of_pythae(root, model, CONFIG.optimiser.batch_size)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--openvino", type=Path)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    parser.add_argument("--train", type=Path, metavar="DATA")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pythae", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(threads.count())
    print(machine())
    if given.train:
        training(given.train, given.rounds, given.seconds, given.pythae)
        return
    if given.openvino:
        sys.path.append(str(given.openvino))
    on_the_device(given.rounds, not given.no_compile, bool(given.openvino))


if __name__ == "__main__":
    main()
