"""Walks through latent space: between two observations, and along one latent at a time."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import arguments
from vae_runtime.array_files import read_array
from vae_runtime.draws import Floats, Nats
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import Shape
from vae_runtime.prior import StandardNormal
from vae_runtime.vae import VAE

MOST_STEPS = 1000
_SAMPLES = 500
_WIDEST = 1e6


class Traversal(NamedTuple):
    """theta [latents, steps, *shape], which latents it varies, and the mean KL of these in nats, largest first."""

    theta: Floats
    latents: list[int]
    kl: Nats

    def labelled(self, span: float) -> NDArray[np.float64]:
        """theta with two columns, or channels, before the others: which latent it is of, and how far that is varied."""
        steps, (first, *rest) = self.theta.shape[1], self.theta.shape[2:]
        labelled = np.empty((*self.theta.shape[:2], first + 2, *rest))
        at = (..., *[None] * len(rest))
        labelled[:, :, 0] = np.array(self.latents)[:, None][at]
        labelled[:, :, 1] = np.linspace(-span, span, steps)[at]
        labelled[:, :, 2:] = self.theta
        return labelled


def interpolate(vae: VAE, a: ArrayLike, b: ArrayLike, steps: int = 9, linear: bool = False) -> Floats:
    """E[x|z] along the way from observation a to b, both of the model's shape: float32 [steps, *shape], with both ends.

    z runs from mu(a) to mu(b): straight if `linear`, else on the great circle between them; with a learned prior on
    that between the noises that become them, since noise is what is spherical there.
    """
    ends = np.stack([vae.encode(np.asarray(x)[None])[0][0] for x in (a, b)])
    if linear:
        return vae.decode(path(ends[0], ends[1], steps, linear))
    noise = vae.prior.to_noise(ends)
    z = vae.prior.from_noise(path(noise[0], noise[1], steps))
    z[[0, -1]] = ends  # which go there and back again but for rounding
    return vae.decode(z)


def path(a: Floats, b: Floats, steps: int, linear: bool = False) -> Floats:
    """Points from a to b, both of one shape: float32 [steps, *shape], ends included.

    Spherical interpolation (Shoemake 1985; White 2016, arXiv:1609.04468) keeps to lengths that the prior knows, where a
    straight line cuts through the thinly populated middle. Parallel and opposite ends are joined by a straight line.
    """
    arguments.integer(steps, "steps", 2, MOST_STEPS)
    t = np.linspace(0, 1, steps)[:, None]
    a64, b64 = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    lengths = np.linalg.norm(a64) * np.linalg.norm(b64)
    angle = np.arccos(np.clip(a64 @ b64 / lengths, -1, 1)) if lengths else 0.0
    if linear or np.sin(angle) < 1e-6:
        z = (1 - t) * a64 + t * b64
    else:
        z = (np.sin((1 - t) * angle) * a64 + np.sin(t * angle) * b64) / np.sin(angle)
    return z.astype(np.float32).reshape(steps, *a.shape)


def traverse(
    vae: VAE, x: ArrayLike | None = None, steps: int = 11, span: float = 3.0, most: int = 10, seed: int = 0
) -> Traversal:
    """E[x|z] with one latent at a time running from -span to span and the others at rest, the largest KL first.

    x: observations [batch, *shape] that say how large each latent's KL is, the first of which the others rest at.
    Without them, 500 samples of the model say it, and the others rest at 0. `most`: how many latents at most. Latents
    of several axes are counted in C order.

    A learned prior has no 0 and no unit: each latent runs from its mean - span to its mean + span standard deviations
    of 500 draws from it, the KL is that to the Gaussian of these two, and the others rest at what noise of 0 becomes.
    """
    arguments.integer(steps, "steps", 2, MOST_STEPS)
    arguments.integer(most, "number of latents", 1, 2**31)
    if not 0 < abs(span) <= _WIDEST:
        raise ArgumentError("span out of range", span, f"give a number from -{_WIDEST:g} to {_WIDEST:g}, other than 0")
    mu, logsigma = vae.encode(vae.observation.clip(vae.sample(_SAMPLES, seed)) if x is None else x)
    if not len(mu):
        raise InputError(f"no {vae.observation.noun}s", "an empty array", "give one or more, or none at all")
    centre, unit = spread(vae, seed)
    of_each = StandardNormal(vae.latent_shape).kl((mu - centre) / unit, logsigma - np.log(unit))
    kl = of_each.mean(axis=0).ravel()
    latents = np.argsort(-kl, kind="stable")[:most]
    z = np.tile((rest(vae) if x is None else mu[0]).ravel(), (len(latents), steps, 1))
    for row, latent in enumerate(latents):
        z[row, :, latent] = centre.flat[latent] + unit.flat[latent] * np.linspace(-span, span, steps)
    theta = vae.decode(z.reshape(-1, *vae.latent_shape)).reshape(len(latents), steps, *vae.observation.shape)
    return Traversal(theta, latents.tolist(), kl[latents])


def rest(vae: VAE) -> Floats:
    """Where latents rest, float32 [*latent_shape]: what the prior makes of noise of 0."""
    return vae.prior.from_noise(np.zeros(vae.latent_shape, np.float32))


def spread(vae: VAE, seed: int = 0) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each latent under the prior, float32 [*latent_shape]: of N(0, I) 0 and 1.

    Those of a learned one are measured on draws.
    """
    if not vae.manifest.contract.learned_prior:
        return np.zeros(vae.latent_shape, np.float32), np.ones(vae.latent_shape, np.float32)
    z = vae.prior.sample(seed, np.arange(_SAMPLES))
    return z.mean(axis=0), z.std(axis=0)


def read(source: str, shape: Shape) -> Floats:
    """Latents [n, *shape] from an .npy, or from an .npz as `encode` writes it (its z, its mu, or its only array).

    "-" stands for standard input. Raises InputError, naming the file.
    """
    name, values = read_array(source, "z", "mu")
    try:
        z = arguments.latents(values, shape)
    except InputError as error:
        raise InputError(error.what, f"{name} ({error.which})", error.todo) from None
    if not len(z):
        raise InputError("no latents", name, "give one row or more")
    return z
