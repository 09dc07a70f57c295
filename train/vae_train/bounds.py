"""Figures of a trained VAE: the ELBO, its terms, and the importance-weighted bound, in nats."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vae_train import pixels
from vae_train.listener import bar_hidden
from vae_train.prior import StandardNormal
from vae_train.vae import VAE, Terms

QUANTILES = (0.001, 0.002, 0.005, *(i / 100 for i in range(1, 100)), 0.995, 0.998, 0.999)
_PIXELS = 64 * 784  # decoded at once: convolutions of a core's cache are three times as fast as those of 2,000 images


class Measured(NamedTuple):
    """Both terms of each ELBO [n], nats, the means of q(z|x) and the KL of each latent [n, *latent_shape].

    The latter is to the Gaussian of the latent's mean and variance over all observations where the prior has no closed
    form of it; then their sum is not the KL to the prior.
    """

    terms: Terms
    mu: Tensor
    kl: Tensor


@torch.no_grad()
def measure(vae: VAE, levels: Tensor, seed: int = 0) -> Measured:
    """Both terms of the ELBO of each observation, one draw of z each, float32 [n], nats.

    levels: [n, *shape], uint8 levels or float32; 0 and 255 only for a likelihood of binary pixels. The noise is the
    same on all devices.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with evaluating(vae):
        for some in levels.split(_rows(levels)):
            x = pixels.unit(some)
            eps = torch.randn(1, len(x), *vae.latent_shape, generator=generator)
            out = vae(x, eps.to(x.device))
            parts.append((*vae.terms_of(x, out), out.mu, out.logsigma))
    reconstruction, kl, mu, logsigma = (torch.cat(part) for part in zip(*parts, strict=True))
    return Measured(Terms(reconstruction, kl), mu, kl_of_each(vae, mu, logsigma))


def kl_of_each(vae: VAE, mu: Tensor, logsigma: Tensor) -> Tensor:
    """The KL of each latent of observations with these means and log sigmas, as `Measured` has it."""
    kl = vae.prior.kl(mu, logsigma)
    if kl is None:
        deviation = (mu.var(dim=0, correction=0) + torch.exp(2 * logsigma).mean(dim=0)).sqrt()
        kl = StandardNormal(vae.latent_shape).kl((mu - mu.mean(dim=0)) / deviation, logsigma - deviation.log())
    return kl


@torch.no_grad()
def log_likelihood(vae: VAE, levels: Tensor, num_samples: int, seed: int = 0, quiet: bool = False) -> Tensor:
    """The importance-weighted bound of log p(x) for each observation, float64 [n], nats (Burda et al. 2016, eq. 8)."""
    generator = torch.Generator(levels.device).manual_seed(seed)
    rows = _rows(levels)
    bounds = []
    blocks: Iterable[Tensor] = tqdm(
        levels.split(max(1, rows // num_samples)), f"K = {num_samples}", disable=bar_hidden(not quiet), leave=False
    )
    with evaluating(vae):
        for some in blocks:
            x = pixels.unit(some)
            draws = [vae.log_weights(x, min(rows, num_samples - k), generator) for k in range(0, num_samples, rows)]
            bounds.append(torch.logsumexp(torch.cat(draws).double(), dim=0) - math.log(num_samples))
    return torch.cat(bounds)


def figure(values: Tensor, overlap: float = 1.0) -> dict[str, Any]:
    """Mean and standard error over the observations, nats; of one alone the error is not known, None.

    overlap: in how many of them each value is; the error is that of as many as do not overlap.
    """
    values = values.double()
    error = (values.std() * math.sqrt(overlap / len(values))).item() if len(values) > 1 else None
    return {"mean": values.mean().item(), "standard_error": error}


def summary(test: Measured, overlap: float = 1.0) -> dict[str, Any]:
    """Mean, standard error and quantiles of the ELBO and its terms over the test observations; the KL by dimension.

    overlap as in `figure`.
    """
    terms = test.terms
    named = {"elbo": terms.elbo, "reconstruction": terms.reconstruction, "kl": terms.kl}
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    return {
        "figures": {name: figure(values, overlap) for name, values in named.items()},
        "quantiles": {
            "levels": list(QUANTILES),
            **{name: torch.quantile(values.double().cpu(), levels).tolist() for name, values in named.items()},
        },
        "kl_per_dimension": test.kl.double().mean(dim=0).flatten().tolist(),
    }


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """-log2 p(x) per number of an observation."""
    return -nats / (dimensions * math.log(2))


@contextmanager
def evaluating(vae: nn.Module) -> Iterator[None]:
    """Let layers that differ in training, such as a person's dropout, be as they are afterwards, and each as it was."""
    training = [module.training for module in vae.modules()]
    vae.eval()
    try:
        yield
    finally:
        for module, before in zip(vae.modules(), training, strict=True):
            module.training = before


def _rows(levels: Tensor) -> int:
    return max(1, _PIXELS // math.prod(levels.shape[1:]))
