"""What a network gives for the observations that its run keeps, by which the same network is known again later."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import noise
from vae_train import bounds, pixels
from vae_train.vae import VAE

SEED = 1  # of the ELBO's noise

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """Float32, each row an observation's: mu and logsigma [n, *latent_shape], elbo [n] of one draw of z, nats."""

    mu: Floats
    logsigma: Floats
    elbo: Floats


@torch.no_grad()
def compute(vae: VAE, observations: NDArray[Any]) -> Fingerprint:
    """The fingerprint of `vae` in evaluation mode: computed in float32 on the CPU, where no product is of fewer bits.

    observations: as a run keeps them, [n, *shape]. The VAE is left on its device and in its mode.
    """
    device, precision = next(vae.parameters()).device, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # a person's module may have asked for less
    x, eps = inputs(vae, observations)
    try:
        with bounds.evaluating(vae.cpu()):
            out = vae(x, eps[None])
            return Fingerprint(out.mu.numpy(), out.logsigma.numpy(), vae.terms_of(x, out).elbo.numpy())
    finally:
        vae.to(device)
        torch.set_float32_matmul_precision(precision)


def inputs(vae: VAE, observations: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """What the network is given: x [n, *shape] as its likelihood sees them, and eps [n, *latent_shape].

    Binary pixels are `pixels.fixed_draw`'s; row i of eps is `noise.normal(SEED, noise.POSTERIOR, i, latent_dim)`.
    """
    levels = torch.from_numpy(observations)
    x = pixels.unit(pixels.fixed_draw(levels) if vae.likelihood.binary else levels)
    eps = noise.normal(SEED, noise.POSTERIOR, np.arange(len(x)), vae.latent_dim)
    return x, torch.from_numpy(eps).reshape(-1, *vae.latent_shape)
