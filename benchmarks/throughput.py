"""The importance-weighted bound: the runtime against its decoder alone, PyTorch eager, pythae, and float64.

    python benchmarks/throughput.py [--rounds 5] [--images 1000] [--pythae FOLDER]

FOLDER: where `pip install --target FOLDER pythae` has put pythae (and what it needs); without it pythae is left out.
"""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from side_by_side import exported, in_pytorch, layers, machine, measure, table

from vae_runtime import VAE, noise
from vae_runtime.bundle import DECODER
from vae_train.mlp import LOGSIGMA_RANGE

_ROWS, _ROWS_OF_RESNET = 512, 64  # of the decoder's runs alone: its best size


def decoder_alone(vae: VAE, draws: int, rows: int = _ROWS) -> Callable[[], None]:
    """The decoder's onnxruntime runs for so many draws of z, on all cores, and nothing else."""
    session, output = vae._sessions._session(DECODER), vae.likelihood.output
    z = np.random.default_rng(0).standard_normal((rows, vae.latent_dim)).astype(np.float32)

    def run() -> None:
        with ThreadPoolExecutor(vae.threads) as pool:
            list(pool.map(lambda _: session.run((output,), z), range(draws // rows)))

    return run


def pytorch_eager(x: np.ndarray, num_samples: int) -> Callable[[], torch.Tensor]:
    """The bound as one writes it in PyTorch, as many images at a time as make about 2,048 draws."""
    vae, images = in_pytorch(), torch.from_numpy(x)
    size = max(1, 2048 // num_samples)

    @torch.no_grad()
    def run() -> torch.Tensor:
        parts = [vae.log_weights(images[i : i + size], num_samples).logsumexp(0) for i in range(0, len(images), size)]
        return torch.cat(parts) - np.log(num_samples)

    return run


def pythae_nll(folder: Path, x: np.ndarray, num_samples: int) -> Callable[[], float]:
    """pythae's `get_nll` of the same networks."""
    sys.path.append(str(folder))
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    ours = in_pytorch()

    class Encoder(BaseEncoder):
        def forward(self, x: torch.Tensor) -> ModelOutput:
            mu, logsigma = ours.encoder(x)
            return ModelOutput(embedding=mu, log_covariance=2 * logsigma)

    class Decoder(BaseDecoder):
        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(ours.decoder(z)))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=ours.latent_dim, reconstruction_loss="bce")
    model, images = PythaeVAE(config, encoder=Encoder(), decoder=Decoder()), torch.from_numpy(x)

    @torch.no_grad()
    def run() -> float:
        return float(model.get_nll(images, n_samples=num_samples, batch_size=num_samples))

    return run


def float64_bound(x: np.ndarray, num_samples: int, seed: int = 0) -> np.ndarray:
    """The bound in float64 from the same noise, by the textbook formulas."""
    vae = in_pytorch()
    encode, decode = layers(vae.encoder, np.float64), layers(vae.decoder, np.float64)
    mu, logsigma = encode(x.astype(np.float64))
    logsigma = logsigma.clip(*LOGSIGMA_RANGE)
    bounds = []
    for i, pixels in enumerate(x.reshape(len(x), -1).astype(np.float64)):
        index = noise.index(x[i : i + 1])
        eps = noise.normal(seed, noise.POSTERIOR, index, num_samples * vae.latent_dim).astype(np.float64)
        eps = eps.reshape(num_samples, vae.latent_dim)
        z = mu[i] + np.exp(logsigma[i]) * eps
        (logits,) = decode(z)
        log_likelihood = (pixels * logits - np.logaddexp(0, logits)).sum(axis=1)
        log_weights = log_likelihood + (0.5 * (eps**2 - z**2) + logsigma[i]).sum(axis=1)
        bounds.append(np.logaddexp.reduce(log_weights) - np.log(num_samples))
    return np.array(bounds)


def main() -> None:
    """Print a table for K = 64 and one for K = 512, and how far the bound is from float64."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pythae", type=Path)
    parser.add_argument(
        "--data", type=Path, help="an .npy of binary images [n, 1, 28, 28]; default: the model's samples"
    )
    arguments = parser.parse_args()
    print(machine())
    vae = VAE.load(exported())
    x = np.load(arguments.data).astype(np.float32) if arguments.data else vae.sample(arguments.images, seed=1)
    x = x[: arguments.images]
    torch.set_num_threads(vae.threads)
    for num_samples in (64, 512):
        draws = len(x) * num_samples
        sides: dict[str, Callable[[], object]] = {
            "decoder's onnxruntime runs alone": decoder_alone(vae, draws),
            "vae.log_likelihood": lambda k=num_samples: vae.log_likelihood(x, k),
            "PyTorch eager": pytorch_eager(x, num_samples),
        }
        if arguments.pythae:
            sides["pythae get_nll"] = pythae_nll(arguments.pythae, x, num_samples)
        medians = measure(sides, arguments.rounds)
        table(f"K = {num_samples}, {len(x):,} images, {vae.threads} threads", medians, 1e6 / draws, "us a draw")
        some = x[:50]
        off = np.abs(vae.log_likelihood(some, num_samples) - float64_bound(some, num_samples)).max()
        print(f"  largest difference from float64, {len(some)} images: {off:.1e} nats per image")
    shipped(arguments.rounds)


def shipped(rounds: int, images: int = 100, num_samples: int = 64) -> None:
    """The same table of the model that ships, a ResNet with a learned prior, of the runtime alone."""
    vae = VAE.load("mnist")
    x, draws = vae.sample(images, seed=1), images * num_samples
    sides: dict[str, Callable[[], object]] = {
        "decoder's onnxruntime runs alone": decoder_alone(vae, draws, _ROWS_OF_RESNET),
        "vae.log_likelihood": lambda: vae.log_likelihood(x, num_samples),
    }
    title = f"the shipped mnist, K = {num_samples}, {images} images, {vae.threads} threads"
    table(title, measure(sides, rounds), 1e6 / draws, "us a draw")


if __name__ == "__main__":
    main()
