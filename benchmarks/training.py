"""Epochs of training: vae-train against a DataLoader loop, pythae and the floor of the products' flops.

    python benchmarks/training.py DATA [--rounds 7] [--seconds 2] [--pythae FOLDER] [--elbo EPOCHS]
    python benchmarks/training.py DATA --preset resnet [--rounds 7] [--seconds 2]

DATA: folder of the image sets. FOLDER: where `pip install --target FOLDER pythae` has put pythae (with its needs);
without it pythae is left out. In each round every side trains for about so many seconds, on the same cores. With
--elbo no time is taken: each side trains for so many epochs, and its ELBO of the test images is printed. With --preset
both precisions of that preset are compared alone, on one thread, in images per second of processor time.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vae_train.cli import SPIN

os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN))  # as vae-train sets it, before torch is imported

import torch
from side_by_side import machine
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from vae_runtime import threads
from vae_train import data, loop, networks, pixels, precision
from vae_train.config import PRESETS, Config
from vae_train.state import TrainingState

BATCH, HIDDEN, LATENT = 128, 400, 20
EPOCH = 60_000
MACS = 784 * HIDDEN + 2 * HIDDEN * LATENT + LATENT * HIDDEN + HIDDEN * 784  # of one image, forwards
FLOPS = 2 * 3 * MACS * EPOCH - 2 * 784 * HIDDEN * EPOCH  # no gradient of the images is needed: 196.8 GFLOP

Steps = Iterator[int]  # images of each step


class Side(NamedTuple):
    """A training: its steps, and the mean ELBO in nats of binary images x [n, 1, 28, 28] after those so far."""

    steps: Steps
    elbo: Callable[[torch.Tensor], torch.Tensor]


class Tutorial(nn.Module):
    """The VAE of a hundred tutorials: 784-400-20, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mu, self.logvar = nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.back, self.out = nn.Linear(LATENT, HIDDEN), nn.Linear(HIDDEN, 784)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means of the pixels, and the parameters of q(z|x)."""
        h = functional.relu(self.hidden(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(logvar)
        return torch.sigmoid(self.out(functional.relu(self.back(z)))), mu, logvar


def tutorial(root: Path) -> Side:
    """A DataLoader over torchvision's images, ToTensor, binary cross-entropy, Adam, and `.item()` in every step."""
    images = datasets.MNIST(str(root), transform=transforms.ToTensor())
    model = Tutorial()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        theta, mu, logvar = model(x)
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return functional.binary_cross_entropy(theta, x, reduction="sum") + kl

    def steps() -> Steps:
        total = 0.0
        while True:
            for x, _ in DataLoader(images, batch_size=BATCH, shuffle=True):
                x = torch.bernoulli(x.view(-1, 784))
                optimizer.zero_grad()
                loss = loss_of(x)
                loss.backward()
                total += loss.item()
                optimizer.step()
                yield len(x)

    return Side(steps(), lambda x: -loss_of(x.view(-1, 784)) / len(x))


def pythae(root: Path, folder: Path) -> Side:
    """pythae's VAE with networks of the same sizes, stepped as its trainer does."""
    sys.path.append(str(folder))
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU())
            self.mu, self.logvar = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, x: torch.Tensor) -> ModelOutput:
            h = self.body(x)
            return ModelOutput(embedding=self.mu(h), log_covariance=self.logvar(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.body = nn.Sequential(
                nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))
            )

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.body(z))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    return Side(steps_of_pythae(root, model, BATCH), lambda x: -model({"data": x}).loss)


def steps_of_pythae(root: Path, model: nn.Module, batch: int) -> Steps:
    """The steps of a model of pythae's on MNIST, as its trainer makes them."""
    from pythae.data.datasets import BaseDataset

    images = datasets.MNIST(str(root)).data[:, None].float() / 255
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    dataset = BaseDataset(images, torch.zeros(len(images)))
    while True:
        for inputs in DataLoader(dataset, batch_size=batch, shuffle=True):
            inputs["data"] = torch.bernoulli(inputs["data"])
            optimizer.zero_grad()
            loss = model(inputs, epoch=1, dataset_size=len(images)).loss
            loss.backward()
            optimizer.step()
            loss.item()
            yield len(inputs["data"])


def ours(root: Path, config: Config) -> Side:
    """The steps of vae-train's loop."""
    images = data.load(config, root, download=False)
    vae = networks.build(config, images.observation.shape)
    networks.start_at_constant(vae, *pixels.moments(images.train))
    training = TrainingState(vae.to(memory_format=torch.channels_last), config, len(images.train), torch.device("cpu"))

    def steps() -> Steps:
        while True:
            for rows in training.batches():
                loop.step(training, images.train.index_select(0, rows))
                yield len(rows)
            training.end_epoch({})

    return Side(steps(), lambda x: vae.elbo(x).mean())


def best_gemm() -> float:
    """The highest rate of a large float32 product, flops per second."""
    rates = []
    for size in (1024, 2048):
        a = torch.randn(size, size)
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(a, a)
            rates.append(2 * size**3 / (time.perf_counter() - start))
    return max(rates)


def epoch_seconds(steps: Steps, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of an epoch, from steps that take about so long."""
    for _ in range(3):
        next(steps)
    images, start = 0, clock()
    while (passed := clock() - start) < seconds:
        images += next(steps)
    return passed / images * EPOCH


def print_precisions(root: Path, preset: str, rounds: int, seconds: float) -> None:
    """Print the speed of a preset in both precisions, which take turns, and what `auto` is here."""
    torch.set_num_threads(1)  # so that processor time is that of the work, whoever else is at work
    config = PRESETS[preset].replace(dataset="mnist", epochs=1000)
    sides = {name: ours(root, config.replace(precision=name)).steps for name in ("float32", "bfloat16")}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, steps in sides.items():
            rates[name].append(EPOCH / epoch_seconds(steps, seconds, time.process_time))
    print(machine())
    print(f"MNIST, preset {preset}, one thread, median of {rounds} rounds, images per second of processor time")
    for name, values in rates.items():
        print(f"  {name:34} {statistics.median(values):8,.0f}")
    print("  auto is {} here: {}".format(*precision.choose(torch.device("cpu"))))


def print_elbos(root: Path, sides: dict[str, Side], epochs: int) -> None:
    """Train each side and print the ELBO of the fixed draw of the test images, one z each."""
    x = pixels.unit(data.load(PRESETS["tutorial"], root, download=False).observed_test(binary=True))
    for name, (steps, elbo) in sides.items():
        images = 0
        while images < epochs * EPOCH:
            images += next(steps)
        with torch.no_grad():
            print(f"  {name:34} {elbo(x).item():9.2f} nats after {epochs} epochs", flush=True)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pythae", type=Path)
    parser.add_argument("--elbo", type=int)
    parser.add_argument("--preset", choices=list(PRESETS))
    given = parser.parse_args()
    torch.set_num_threads(threads.count())
    torch.manual_seed(0)
    if given.preset:
        print_precisions(given.data, given.preset, given.rounds, given.seconds)
        return
    config = PRESETS["tutorial"].replace(epochs=given.elbo or 1000)
    sides: dict[str, Side] = {"DataLoader tutorial": tutorial(given.data)}
    if given.pythae:
        sides["pythae"] = pythae(given.data, given.pythae)
    sides["vae-train"] = ours(given.data, config)
    sides["vae-train --precision bfloat16"] = ours(given.data, config.replace(precision="bfloat16"))
    if given.elbo:
        print_elbos(given.data, sides, given.elbo)
        return
    floors: list[float] = []
    multiples: dict[str, list[float]] = {name: [] for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        floors.append(FLOPS / best_gemm())
        for name, (steps, _) in sides.items():
            time.sleep(0.05)
            seconds[name].append(epoch_seconds(steps, given.seconds))
            multiples[name].append(seconds[name][-1] / floors[-1])
    print(machine())
    print(
        f"an epoch of 784-400-20 at batch {BATCH}, {torch.get_num_threads()} threads, median of {given.rounds} rounds"
    )
    print(f"  {'floor of the flops':34} {statistics.median(floors):8.2f} s {1:7.2f}x")
    for name in sides:
        print(f"  {name:34} {statistics.median(seconds[name]):8.2f} s {statistics.median(multiples[name]):7.2f}x")


if __name__ == "__main__":
    main()
