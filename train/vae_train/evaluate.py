"""Figures of a trained VAE on test images: the ELBO, its terms, and the importance-weighted bound, in nats."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vae_train.vae import VAE, Terms

QUANTILES = (0.001, 0.002, 0.005, *(i / 100 for i in range(1, 100)), 0.995, 0.998, 0.999)
_ROWS = 2000  # rows of z decoded at once


@torch.no_grad()
def terms(vae: VAE, bits: Tensor, seed: int = 0) -> Terms:
    """Both terms of the ELBO of each binary image [n, C, H, W], one draw of z each, float32 [n], nats."""
    generator = torch.Generator(bits.device).manual_seed(seed)
    parts = []
    for x in bits.split(_ROWS):
        eps = torch.randn(len(x), vae.latent_dim, generator=generator, device=x.device)
        parts.append(vae.terms(x.float(), eps))
    return Terms(*(torch.cat(term) for term in zip(*parts, strict=True)))


@torch.no_grad()
def log_likelihood(vae: VAE, bits: Tensor, num_samples: int, seed: int = 0, quiet: bool = False) -> Tensor:
    """The importance-weighted bound of log p(x) for each binary image, float64 [n], nats (Burda et al. 2016, eq. 8)."""
    generator = torch.Generator(bits.device).manual_seed(seed)
    bounds = []
    blocks: Iterable[Tensor] = tqdm(
        bits.split(max(1, _ROWS // num_samples)), f"K = {num_samples}", disable=True if quiet else None, leave=False
    )
    for x in blocks:
        draws = [
            vae.log_weights(x.float(), min(_ROWS, num_samples - k), generator) for k in range(0, num_samples, _ROWS)
        ]
        bounds.append(torch.logsumexp(torch.cat(draws).double(), dim=0) - math.log(num_samples))
    return torch.cat(bounds)


def figure(values: Tensor) -> dict[str, float]:
    """Mean and standard error over the images, nats."""
    values = values.double()
    return {"mean": values.mean().item(), "standard_error": (values.std() / math.sqrt(len(values))).item()}


def summary(test: Terms) -> dict[str, Any]:
    """Mean, standard error and quantiles of the ELBO and its terms over the test images."""
    named = {"elbo": test.elbo, "reconstruction": test.reconstruction, "kl": test.kl}
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    return {
        "figures": {name: figure(values) for name, values in named.items()},
        "quantiles": {
            "levels": list(QUANTILES),
            **{name: torch.quantile(values.double().cpu(), levels).tolist() for name, values in named.items()},
        },
    }
