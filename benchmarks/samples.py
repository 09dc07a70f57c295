"""Samples that a classifier takes for digits: from the prior, the aggregate posterior, and mixtures fitted to that.

    python benchmarks/samples.py DATA [MODEL...] [-n 10000] [--grid FOLDER]

DATA: folder of the image sets, with MNIST. MODEL: bundles, by name or folder, and run folders; the shipped mnist where
none is named. A small convolutional network learns to tell MNIST's binarised digits. Printed is the share of n binary
images for which its largest probability is above 0.9: test digits, and x ~ p(x|z) with z from the model's prior, from
q(z|x) of training digits x (the aggregate posterior), and from mixtures of Gaussians with full covariances that are
fitted to that. With the latter goes the mean of log p(z), nats, over z ~ q(z|x) of test digits: what a prior in the
place of the model's own would change in the ELBO. --grid: E[x|z] of 64 latents of each, a picture each.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional
from torchvision import datasets

from vae_runtime import VAE, outputs
from vae_train import load_run

SURE = 0.9
EPOCHS, BATCH, LR = 3, 128, 3e-3
COMPONENTS = (1, 10, 50)
SIDE = 8  # of a grid


class Model(NamedTuple):
    """What a bundle and a run have in common: q(z|x), E[x|z], and draws of p(z) with its log-probability."""

    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    log_prob: Callable[[Tensor], Tensor]


def opened(name: str) -> Model:
    """A run's folder, or a bundle's name or folder."""
    if (Path(name) / "model.safetensors").exists():
        vae = load_run(name).vae
        return Model(vae.encoder, lambda z: vae.likelihood.mean(vae.decoder(z)), vae.sample_prior, vae.prior.log_prob)
    bundle = VAE.load(name)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logsigma = bundle.encode(x.numpy())
        return torch.from_numpy(mu), torch.from_numpy(logsigma)

    return Model(
        encode,
        lambda z: torch.from_numpy(bundle.decode(z.numpy())),
        lambda count: torch.from_numpy(bundle.prior.sample(0, np.arange(count))),
        lambda z: torch.from_numpy(bundle.prior.log_prob(z.numpy())),
    )


def binarised(levels: Tensor) -> Tensor:
    """Pixels 0 and 1 of levels [n, 1, 28, 28], drawn with P(1) = level / 255."""
    return torch.bernoulli(levels.float() / 255)


def classifier(levels: Tensor, labels: Tensor) -> nn.Module:
    """A convolutional network that is trained on digits, binarised anew in every batch."""
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    adam = torch.optim.Adam(net.parameters())
    steps = EPOCHS * math.ceil(len(levels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, LR, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(levels)).split(BATCH):
            functional.cross_entropy(net(binarised(levels[rows])), labels[rows]).backward()
            adam.step()
            adam.zero_grad()
            schedule.step()
    return net.eval()


def probabilities(net: nn.Module, x: Tensor) -> Tensor:
    """Of the ten digits, [n, 10]."""
    return torch.cat([net(some).softmax(dim=1) for some in x.split(1000)])


def line(what: str, sure: Tensor, more: str = "") -> None:
    """A row: the share of images with a sure digit, and its standard error."""
    share = sure.float().mean().item()
    error = math.sqrt(share * (1 - share) / len(sure))
    print(f"{what:44}{100 * share:6.1f}% +- {100 * error:.1f}{more}", flush=True)


def drawn(mu: Tensor, logsigma: Tensor) -> Tensor:
    """z ~ q(z|x)."""
    return mu + logsigma.exp() * torch.randn_like(mu)


def latents(model: Model, levels: Tensor) -> Tensor:
    """z ~ q(z|x) of binarised digits, [n, latent_dim]."""
    return torch.cat([drawn(*model.encode(binarised(some))) for some in levels.split(1000)])


def main() -> None:
    """Train the classifier, and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="*", default=["mnist"], metavar="MODEL")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--grid", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    torch.manual_seed(0)
    train, test = (datasets.MNIST(given.data, train=part) for part in (True, False))
    net = classifier(train.data[:, None], train.targets)
    with torch.no_grad():
        found = probabilities(net, binarised(test.data[:, None]))
        accuracy = (found.argmax(dim=1) == test.targets).float().mean().item()
        print(f"classifier: {100 * accuracy:.1f}% of {len(found):,} binarised test digits are told\n")
        print(f"{'binary images':41}a digit with p > {SURE}   mean log p(z)")
        line("test digits", found.amax(dim=1) > SURE)
        for name in given.models:
            rows(name, net, train.data[:, None], test.data[:, None], given.n, given.grid)


def rows(name: str, net: nn.Module, train: Tensor, test: Tensor, count: int, grid: Path | None) -> None:
    """Those of one model; train, test: levels of digits [n, 1, 28, 28]."""
    model = opened(name)
    known, unknown = latents(model, train), latents(model, test)
    chosen = known[torch.randperm(len(known))[:count]]
    sources: dict[str, tuple[Tensor, Tensor | None]] = {
        "prior": (model.sample(count), model.log_prob(unknown)),
        "aggregate posterior": (chosen, None),
    }
    for components in COMPONENTS:
        mixture = GaussianMixture(components, reg_covar=1e-4, random_state=0).fit(known.double().numpy())
        z = torch.from_numpy(mixture.sample(count)[0]).float()
        sources[f"mixture of {components}"] = z, torch.from_numpy(mixture.score_samples(unknown.double().numpy()))
    for source, (z, log_prob) in sources.items():
        theta = torch.cat([model.decode(some) for some in z.split(1000)])
        nats = "" if log_prob is None else f"{log_prob.mean().item():16.2f}"
        sure = probabilities(net, torch.bernoulli(theta)).amax(dim=1) > SURE
        line(f"{Path(name).name}, z of the {source}", sure, nats)
        if grid:
            grid.mkdir(parents=True, exist_ok=True)
            picture = outputs.grid(SIDE**2, tuple(theta.shape[1:]), [theta[: SIDE**2].numpy()])
            (grid / f"{Path(name).name} {source}.png".replace(" ", "-")).write_bytes(outputs.png(picture))


if __name__ == "__main__":
    main()
