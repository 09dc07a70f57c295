"""Walks through latent space: between two images, and along one latent at a time."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vae_runtime import checks
from vae_runtime.elbo import Floats, Nats, kl_per_dimension
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.sources import read_array
from vae_runtime.vae import VAE

MOST_STEPS = 1000
_SAMPLES = 500
_WIDEST = 1e6


class Traversal(NamedTuple):
    """Images [latents, steps, C, H, W], which latents they vary, and the mean KL of these in nats, largest first."""

    images: Floats
    latents: list[int]
    kl: Nats


def interpolate(vae: VAE, a: ArrayLike, b: ArrayLike, steps: int = 9, linear: bool = False) -> Floats:
    """E[x|z] along the way from image a to image b, both [C, H, W]: float32 [steps, C, H, W], ends included.

    z runs from mu(a) to mu(b), on the great circle between them unless `linear`.
    """
    start, end = (vae.encode(np.asarray(image)[None])[0][0] for image in (a, b))
    return vae.decode(path(start, end, steps, linear))


def path(a: Floats, b: Floats, steps: int, linear: bool = False) -> Floats:
    """Points from a to b, both [latent_dim]: float32 [steps, latent_dim], ends included.

    Spherical interpolation (Shoemake 1985; White 2016, arXiv:1609.04468) keeps to lengths that the prior knows, where a
    straight line cuts through the thinly populated middle. Parallel and opposite ends are joined by a straight line.
    """
    checks.integer(steps, "steps", 2, MOST_STEPS)
    t = np.linspace(0, 1, steps)[:, None]
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a64) * np.linalg.norm(b64)
    angle = np.arccos(np.clip(a64 @ b64 / lengths, -1, 1)) if lengths else 0.0
    if linear or np.sin(angle) < 1e-6:
        z = (1 - t) * a64 + t * b64
    else:
        z = (np.sin((1 - t) * angle) * a64 + np.sin(t * angle) * b64) / np.sin(angle)
    return z.astype(np.float32)


def traverse(
    vae: VAE, x: ArrayLike | None = None, steps: int = 11, span: float = 3.0, most: int = 10, seed: int = 0
) -> Traversal:
    """E[x|z] with one latent at a time running from -span to span and the others at rest, the largest KL first.

    x: images [batch, C, H, W] that say how large each latent's KL is, the first of which the others rest at. Without
    them, 500 samples of the model say it, and the others rest at 0. `most`: how many latents at most.
    """
    checks.integer(steps, "steps", 2, MOST_STEPS)
    checks.integer(most, "number of latents", 1, 2**31)
    if not 0 < abs(span) <= _WIDEST:
        raise ArgumentError("span out of range", span, f"give a number from -{_WIDEST:g} to {_WIDEST:g}, other than 0")
    # a Gaussian likelihood's samples may leave [0, 1]
    mu, logsigma = vae.encode(np.clip(vae.sample(_SAMPLES, seed), 0, 1) if x is None else x)
    if not len(mu):
        raise InputError("no images", "an empty array", "give one or more, or none at all")
    kl = kl_per_dimension(mu, logsigma).mean(axis=0)
    latents = np.argsort(-kl, kind="stable")[:most]
    z = np.tile(np.zeros_like(mu[0]) if x is None else mu[0], (len(latents), steps, 1))
    for row, latent in enumerate(latents):
        z[row, :, latent] = np.linspace(-span, span, steps)
    theta = vae.decode(z.reshape(-1, vae.latent_dim)).reshape(len(latents), steps, *vae.image_shape)
    return Traversal(theta, latents.tolist(), kl[latents])


def read(source: str, latent_dim: int) -> Floats:
    """Latents [n, latent_dim] from an .npy, or from an .npz as `encode` writes it (its z, its mu, or its only array).

    "-" stands for standard input. Raises InputError, naming the file.
    """
    name, values = read_array(source, "z", "mu")
    try:
        z = checks.latents(values, latent_dim)
    except InputError as error:
        raise InputError(error.what, f"{name} ({error.which})", error.todo) from None
    if not len(z):
        raise InputError("no latents", name, "give one row or more")
    return z
