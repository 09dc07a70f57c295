"""The runtime's API: a VAE loaded from a bundle, NumPy in and NumPy out, every figure in nats per image."""

import json
import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_runtime import bundle as bundles
from vae_runtime import noise
from vae_runtime.errors import ArgumentError, BundleError, InputError, ResourceError
from vae_runtime.likelihoods import LIKELIHOODS
from vae_runtime.session import Session, available_cores

Floats = NDArray[np.float32]
Nats = NDArray[np.float64]

CHUNK = 64  # rows per run: as fast as one large batch, in a fraction of its memory


class Terms(NamedTuple):
    """The two terms of the ELBO, nats per image, float64 [batch] each: elbo = reconstruction - kl."""

    reconstruction: Nats
    kl: Nats

    @property
    def elbo(self) -> Nats:
        """E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, [batch]; higher is better."""
        return self.reconstruction - self.kl


def kl_divergence(mu: Floats, logsigma: Floats) -> Nats:
    """KL(N(mu, sigma^2) || N(0, I)) = 1/2 sum(sigma^2 + mu^2 - 2 logsigma - 1), nats, float64 [batch].

    Kingma and Welling (2014, arXiv:1312.6114), appendix B. mu, logsigma: [batch, latent_dim].
    """
    mu64, logsigma64 = mu.astype(np.float64), logsigma.astype(np.float64)
    total: Nats = 0.5 * (np.exp(2 * logsigma64) + mu64**2 - 2 * logsigma64 - 1).sum(axis=1)
    return total


class VAE:
    """An exported VAE. Make one with `VAE.load`.

    Images are float32 [batch, C, H, W] in [0, 1]; `image_shape` is (C, H, W). Wrong shapes, NaN and values out of range
    raise InputError, wrong arguments ArgumentError. The same seed gives the same noise on every machine, and row i of
    a result does not depend on how many rows were asked for.
    """

    def __init__(self, bundle: bundles.Bundle, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ArgumentError("threads out of range", threads, "give 1 or more")
        contract = bundle.contract
        threads = threads or available_cores()
        encoder, decoder = (Session(bundle.files[name], str(bundle.path / name), threads) for name in bundles.GRAPHS)
        for session, role in ((encoder, "encoder"), (decoder, "decoder")):
            _check_metadata(session, role, contract)
        image, latent = [contract["image"][side] for side in ("channels", "height", "width")], [contract["latent_dim"]]
        parameters = LIKELIHOODS[contract["likelihood"]["name"]].output
        _check_shapes(encoder, {"x": image}, {"mu": latent, "logsigma": latent})
        _check_shapes(decoder, {"z": latent}, {parameters: image})
        self._encoder, self._decoder = encoder, decoder
        self._manifest = bundle.manifest
        self._likelihood = LIKELIHOODS[contract["likelihood"]["name"]]
        image = contract["image"]
        self.image_shape: tuple[int, int, int] = (image["channels"], image["height"], image["width"])
        self.latent_dim: int = contract["latent_dim"]

    @classmethod
    def load(cls, path: str | PathLike[str] | None = None, threads: int | None = None) -> "VAE":
        """Load the bundle in the folder `path`, or the one that ships with the package.

        threads: how many cores a run may use; None for all that this process may use.
        Raises BundleError where the bundle is missing, damaged or of another format.
        """
        return cls(bundles.read(bundles.shipped() if path is None else Path(path)), threads)

    @property
    def info(self) -> dict[str, Any]:
        """A copy of the bundle's manifest: contract, provenance, metrics, quantiles, parity report."""
        copy: dict[str, Any] = json.loads(json.dumps(self._manifest))
        return copy

    def encode(self, x: Floats) -> tuple[Floats, Floats]:
        """q(z|x) of each image: (mu, logsigma), float32 [batch, latent_dim] each."""
        x = self._images(x)
        mu, logsigma = np.empty((2, len(x), self.latent_dim), np.float32)
        for rows in _chunks(len(x)):
            mu[rows], logsigma[rows] = self._encoder.run(("mu", "logsigma"), x[rows])
        return mu, logsigma

    def decode(self, z: Floats) -> Floats:
        """theta = E[x|z]: float32 [batch, C, H, W] in [0, 1], from z [batch, latent_dim]."""
        z = self._latents(z)
        return self._likelihood.mean(self.parameters(z))

    def parameters(self, z: Floats) -> Floats:
        """The likelihood's natural parameters, for Bernoulli the logits: float32 [batch, C, H, W]."""
        z = self._latents(z)
        parameters = np.empty((len(z), *self.image_shape), np.float32)
        for rows in _chunks(len(z)):
            parameters[rows] = self._parameters(z[rows])
        return parameters

    def sample(self, n: int, seed: int = 0, mean: bool = False) -> Floats:
        """Draw n images x ~ p(x|z) with z ~ p(z): float32 [n, C, H, W]; with `mean`, E[x|z] instead of draws."""
        if n < 1:
            raise ArgumentError("number of samples out of range", n, "give 1 or more")
        try:
            images = np.empty((n, *self.image_shape), np.float32)
        except (MemoryError, ValueError, OverflowError):
            raise ResourceError("out of memory", f"{n} images", "ask for fewer at a time") from None
        for rows in _chunks(n):
            index = np.arange(rows.start, rows.stop)
            parameters = self._parameters(noise.normal(seed, noise.PRIOR, index, self.latent_dim))
            if mean:
                images[rows] = self._likelihood.mean(parameters)
            else:
                uniforms = noise.uniform(seed, noise.PIXELS, index, math.prod(self.image_shape))
                images[rows] = self._likelihood.sample(parameters, uniforms.reshape(parameters.shape))
        return images

    def reconstruct(self, x: Floats) -> Floats:
        """theta = E[x|z] at z = mu(x): float32 [batch, C, H, W]."""
        return self.decode(self.encode(x)[0])

    def binarise(self, x: Floats, seed: int = 0) -> Floats:
        """Draw binary images with P(1) = x, as training does: float32 {0, 1} of x's shape.

        Binary images stay as they are.
        """
        x = self._images(x)
        binary = np.empty_like(x)
        for rows in _chunks(len(x)):
            index = np.arange(rows.start, rows.stop)
            uniforms = noise.uniform(seed, noise.BINARISATION, index, math.prod(self.image_shape))
            binary[rows] = uniforms.reshape(x[rows].shape) < x[rows]
        return binary

    def terms(self, x: Floats, num_samples: int = 1, seed: int = 0) -> Terms:
        """Both terms of the ELBO: reconstruction averaged over `num_samples` draws of z, and the closed-form KL."""
        x = self._images(x)
        reconstruction, kl = np.zeros(len(x)), np.zeros(len(x))
        for row, draws in self._weigh(x, num_samples, seed):
            reconstruction[row] = draws.log_likelihood.mean()
            kl[row] = draws.kl
        return Terms(reconstruction, kl)

    def elbo(self, x: Floats, num_samples: int = 1, seed: int = 0) -> Nats:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats per image, float64 [batch]; higher is better.

        Kingma and Welling (2014, arXiv:1312.6114), eq. 7, with `num_samples` draws of z per image.
        x must lie in the likelihood's support: for Bernoulli, binary (see `binarise`).
        """
        return self.terms(x, num_samples, seed).elbo

    def log_likelihood(self, x: Floats, num_samples: int = 64, seed: int = 0) -> Nats:
        """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x), K = num_samples: nats per image, float64 [batch].

        Burda et al. (2016, arXiv:1509.00519), eq. 8: a lower bound of log p(x) that tightens as K grows.
        """
        x = self._images(x)
        bound = np.zeros(len(x))
        for row, draws in self._weigh(x, num_samples, seed):
            log_weights = draws.log_likelihood + draws.log_ratio
            top = log_weights.max()
            bound[row] = top + math.log(np.exp(log_weights - top).mean())
        return bound

    def _weigh(self, x: Floats, num_samples: int, seed: int) -> Iterator[tuple[int, "_Draws"]]:
        """For each image, its index and `num_samples` draws from q(z|x) weighed by the model."""
        if num_samples < 1:
            raise ArgumentError("number of samples out of range", num_samples, "give 1 or more")
        self._likelihood.check(x)
        images_per_run = max(1, CHUNK // num_samples)
        for start in range(0, len(x), images_per_run):
            block = x[start : start + images_per_run]
            mu, logsigma = self._encoder.run(("mu", "logsigma"), block)  # [images, latent_dim]
            kl = kl_divergence(mu, logsigma)
            log_likelihood = np.empty((len(block), num_samples))
            log_ratio = np.empty((len(block), num_samples))
            for k in _chunks(num_samples):
                shape = (len(block), k.stop - k.start, self.latent_dim)
                eps = noise.normal(
                    seed,
                    noise.POSTERIOR,
                    np.arange(start, start + len(block)),
                    shape[1] * shape[2],
                    start=k.start * self.latent_dim,
                ).reshape(shape)
                z = mu[:, None] + np.exp(logsigma)[:, None] * eps  # [images, draws, latent_dim]
                parameters = self._parameters(z.reshape(-1, self.latent_dim))
                repeated = np.repeat(block, shape[1], axis=0)
                log_likelihood[:, k] = self._likelihood.log_prob(repeated, parameters).reshape(shape[:2])
                # log p(z) - log q(z|x): the 2 pi terms cancel
                log_ratio[:, k] = (0.5 * (eps**2 - z**2) + logsigma[:, None]).sum(axis=2, dtype=np.float64)
            for i in range(len(block)):
                yield start + i, _Draws(log_likelihood[i], log_ratio[i], float(kl[i]))

    def _parameters(self, z: Floats) -> Floats:
        """The likelihood's natural parameters for at most CHUNK rows of z."""
        return self._decoder.run((self._likelihood.output,), z)[0]

    def _images(self, x: Floats) -> Floats:
        x = _floats(x, "images")
        if x.ndim != 4 or x.shape[1:] != self.image_shape:
            expected = "[batch, {}, {}, {}]".format(*self.image_shape)
            raise InputError("images of the wrong shape", list(x.shape), f"this model takes {expected}")
        _refuse_rows(x, ~np.isfinite(x), "NaN or infinite pixels", "image", "clean the data")
        _refuse_rows(x, (x < 0) | (x > 1), "pixels outside [0, 1]", "image", "divide 8-bit levels by 255")
        return x

    def _latents(self, z: Floats) -> Floats:
        z = _floats(z, "latents")
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise InputError(
                "latents of the wrong shape", list(z.shape), f"this model takes [batch, {self.latent_dim}]"
            )
        _refuse_rows(z, ~np.isfinite(z), "NaN or infinite latents", "row", "clean the data")
        return z


class _Draws(NamedTuple):
    """For one image: log p(x|z_k) and log p(z_k) - log q(z_k|x), [num_samples] each, and the closed-form KL, nats."""

    log_likelihood: Nats
    log_ratio: Nats
    kl: float


def _check_metadata(session: Session, role: str, contract: dict[str, Any]) -> None:
    """A graph carries its role and its bundle's contract, so that a mixed pair is refused."""
    try:
        metadata = json.loads(session.metadata.get(bundles.METADATA_KEY, "null"))
    except ValueError:
        metadata = None
    if metadata != {**contract, "role": role}:
        raise BundleError("graph belongs to another bundle", session.name, "keep the files of one export together")


def _check_shapes(session: Session, inputs: dict[str, list[int]], outputs: dict[str, list[int]]) -> None:
    """A graph takes and gives what the contract says, batch axis aside."""
    if (session.inputs, session.outputs) != (inputs, outputs):
        found = f"{session.name} ({session.inputs} to {session.outputs})"
        raise BundleError("graph's shapes are not the contract's", found, "export it again")


def _chunks(n: int) -> Iterator[slice]:
    """Slices of at most CHUNK rows that cover 0..n-1."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _floats(values: Any, what: str) -> Floats:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{what} of different lengths", "a ragged list", "give one array") from None
    if array.dtype.kind not in "fbiu":
        raise InputError(f"{what} of the wrong type", array.dtype, "give numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
        return np.ascontiguousarray(array, np.float32)


def _refuse_rows(array: Floats, bad: NDArray[np.bool_], what: str, unit: str, todo: str) -> None:
    if bad.any():
        row = int(np.argmax(bad.reshape(len(array), -1).any(axis=1)))
        raise InputError(what, f"{unit} {row}", todo)
