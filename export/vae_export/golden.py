"""Golden vectors: inputs from the model's own prior and seeded noise, and the networks' outputs in float64."""

import io
import math

import numpy as np
import torch
from numpy.typing import NDArray

from vae_export import contract
from vae_export.rounding import Precise
from vae_runtime import noise
from vae_runtime.observation import Shape
from vae_train.vae import VAE

SEED = 1
_IMAGES = 2

Floats = NDArray[np.float32]


def inputs(precise: Precise, image_shape: Shape) -> tuple[Floats, Floats, Floats]:
    """z [2, latent_dim] from the prior, x [2, C, H, W] drawn from p(x|z), and eps [2, latent_dim], all float32."""
    vae, rows = precise.vae, np.arange(_IMAGES)
    z = noise.normal(SEED, noise.PRIOR, rows, vae.latent_dim)
    likelihood = contract.likelihood(vae, image_shape)
    draw = noise.uniform if likelihood.noise == "uniform" else noise.normal
    pixels = draw(SEED, noise.PIXELS, rows, math.prod(image_shape)).reshape(-1, *image_shape)
    parameters = precise.evaluate(vae.decoder, torch.from_numpy(z)).numpy().astype(np.float32)
    x = likelihood.sample(parameters, pixels).clip(0, 1)  # Gaussian pixels may leave the range that the runtime takes
    return z, x, noise.normal(SEED, noise.POSTERIOR, rows, vae.latent_dim)


def archive(vae: VAE, image_shape: Shape) -> bytes:
    """The bytes of golden.npz: these inputs and the networks' outputs, which are rounded from float64 to float32."""
    precise = Precise(vae)
    z, x, eps = inputs(precise, image_shape)
    images, noises = torch.from_numpy(x), torch.from_numpy(eps)
    mu, logsigma = precise.evaluate(vae.encoder, images)
    parameters = precise.evaluate(vae.decoder, torch.from_numpy(z))
    outputs = {"mu": mu, "logsigma": logsigma, vae.likelihood.output: parameters}
    outputs["elbo"] = precise.evaluate(vae.elbo, images, noises)
    arrays = {"seed": np.array(SEED, np.uint64), "z": z, "x": x, "eps": eps}
    arrays |= {name: output.float().numpy() for name, output in outputs.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
