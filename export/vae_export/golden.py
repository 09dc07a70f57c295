"""Golden vectors: inputs from the model's own prior and seeded noise, and the networks' outputs in float64."""

import io

import numpy as np
import torch
from numpy.typing import NDArray

from vae_export import contract
from vae_export.rounding import Precise
from vae_runtime import likelihoods, noise
from vae_runtime.observation import Observation
from vae_runtime.prior import standard_normal
from vae_train.vae import VAE

SEED = 1
_ROWS = 2

Floats = NDArray[np.float32]


def inputs(precise: Precise, observation: Observation) -> tuple[Floats, Floats, Floats]:
    """z [2, *latent_shape] from the prior, x [2, *shape] drawn from p(x|z), and eps [2, *latent_shape], all float32."""
    vae, rows = precise.vae, np.arange(_ROWS)
    z = latents(precise, standard_normal(vae.latent_shape, SEED, rows))
    likelihood = contract.likelihood(vae, observation)
    parameters = precise.evaluate(vae.decoder, torch.from_numpy(z)).numpy().astype(np.float32)
    x = observation.clip(likelihoods.draw(likelihood, parameters, SEED, rows, observation.shape))
    return z, x, noise.normal(SEED, noise.POSTERIOR, rows, vae.latent_dim).reshape(z.shape)


def latents(precise: Precise, drawn: Floats) -> Floats:
    """z that standard normal noise becomes under the prior, both float32 [n, *latent_shape]."""
    z: Floats = precise.evaluate(precise.vae.prior.from_noise, torch.from_numpy(drawn)).float().numpy()
    return z


def archive(vae: VAE, observation: Observation) -> bytes:
    """The bytes of golden.npz: these inputs and the networks' outputs, which are rounded from float64 to float32."""
    precise = Precise(vae)
    z, x, eps = inputs(precise, observation)
    mu, logsigma = precise.evaluate(vae.encoder, torch.from_numpy(x))
    parameters = precise.evaluate(vae.decoder, torch.from_numpy(z))
    outputs = {"mu": mu, "logsigma": logsigma, vae.likelihood.output: parameters}
    outputs["elbo"] = precise.evaluate(vae.elbo, torch.from_numpy(x), torch.from_numpy(eps))
    arrays = {"seed": np.array(SEED, np.uint64), "z": z, "x": x, "eps": eps}
    if contract.learned_prior(vae):
        arrays["noise"] = standard_normal(vae.latent_shape, SEED, np.arange(_ROWS))
        outputs["log_prob"] = precise.evaluate(vae.prior.log_prob, torch.from_numpy(z))
    arrays |= {name: output.float().numpy() for name, output in outputs.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
