"""Pitfalls of a person's own networks: what would train for hours and be wrong is said before the first step."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vae_runtime import noise
from vae_runtime.observation import Shape
from vae_train import fingerprint, networks
from vae_train.bounds import evaluating
from vae_train.config import Config
from vae_train.vae import VAE

Found = dict[str, str]  # what is wrong and what to write, by the place: "likelihood", "posterior", and so on
Export = Callable[[VAE, Shape], Found]

LOGITS = "return logits, without the sigmoid: the likelihood has its own"
LOG = "return torch.log(sigma), or 0.5 * torch.log(variance)"
_FACTORS = (1.0, 10.0, 1000.0)  # near and far
_ROWS = 64


def try_out(vae: VAE, config: Config, levels: Tensor, export: Export | None) -> Found:
    """What looks wrong in the networks of `network.model`, in seconds; the VAE and all generators stay as they are.

    levels: some observations [n, *shape], as the training holds them. export: tries the export of a VAE on the CPU, if
    given; where it says more of a place than the numbers do, that is kept.
    """
    shape = tuple(levels.shape[1:])
    with torch.random.fork_rng():
        tried = copy.deepcopy(vae).cpu().eval()
        found = signs(tried, shape) | _made_anew(tried, config, levels)
        return found | (export(tried, shape) if export else {})


@torch.no_grad()
def signs(vae: VAE, shape: Shape) -> Found:
    """What the numbers say: a decoder that gives theta for logits, an encoder that gives sigma for its logarithm.

    Both are tried near and far, where what nothing bounds has numbers on both sides.
    """
    found, rows = {}, np.arange(_ROWS)
    with evaluating(vae):
        if vae.likelihood.binary:
            z = torch.from_numpy(noise.normal(0, noise.PRIOR, rows, vae.latent_dim)).unflatten(1, vae.latent_shape)
            theta = torch.cat([vae.decoder(factor * vae.prior.from_noise(z)) for factor in _FACTORS])
            if theta.min() >= 0 and theta.max() <= 1 and theta.min() < theta.max():
                found["likelihood"] = f"the decoder's outputs are in [0, 1] for any z, as a sigmoid's; {LOGITS}"
        size = math.prod(shape)
        x = torch.from_numpy(noise.normal(0, noise.PIXELS, rows, size)).reshape(-1, *shape)
        sigma = torch.cat([vae.encoder(images)[1] for images in (x.sigmoid(), *(factor * x for factor in _FACTORS))])
        if sigma.min() >= 0 and sigma.max() > 0:
            found["posterior"] = f"the encoder's second output is never below 0, as a sigma or a variance; {LOG}"
    return found


def _made_anew(vae: VAE, config: Config, levels: Tensor) -> Found:
    """Whether the weights alone make the network: what loads the run makes it anew, and gives it the weights."""
    probe = levels[:_ROWS].numpy()
    first, again = (fingerprint.compute(vae, probe).elbo for _ in range(2))
    anew = networks.build(config, tuple(levels.shape[1:]), config.network.model)
    anew.load_state_dict(vae.state_dict())
    elbo = fingerprint.compute(anew, probe).elbo
    if np.allclose(first, again) and not np.allclose(first, elbo, rtol=1e-4, atol=1e-4):
        todo = "keep with register_buffer what is drawn or counted when they are made"
        return {"weights": f"networks that are made anew with the same weights give other numbers; {todo}"}
    return {}
