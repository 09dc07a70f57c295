"""The runtime's API: a VAE loaded from a bundle, NumPy in and NumPy out, every figure in nats per image."""

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import bundle as bundles
from vae_runtime import likelihoods, noise, threads
from vae_runtime.errors import ArgumentError, BundleError, InputError, ResourceError
from vae_runtime.session import Session

Floats = NDArray[np.float32]
Nats = NDArray[np.float64]
T = TypeVar("T")
R = TypeVar("R")

MOST_SAMPLES = 1_000_000  # of z per image
CHUNK = 512  # rows per run: as fast as one large batch, in a fraction of its memory


@dataclass(frozen=True)
class Terms:
    """The two terms of the ELBO per image, nats: elbo = reconstruction - kl.

    reconstruction, kl: float64 [batch]. kl_per_dimension: float64 [batch, latent_dim], its sum is kl.
    standard_error: float64 [batch], of the reconstruction over the draws of z; NaN for one draw.
    """

    reconstruction: Nats
    kl_per_dimension: Nats
    standard_error: Nats

    @property
    def kl(self) -> Nats:
        """KL(q(z|x) || p(z)), nats, [batch]."""
        total: Nats = self.kl_per_dimension.sum(axis=1)
        return total

    @property
    def elbo(self) -> Nats:
        """E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, [batch]; higher is better."""
        return self.reconstruction - self.kl


def kl_per_dimension(mu: Floats, logsigma: Floats) -> Nats:
    """KL(N(mu, sigma^2) || N(0, 1)) = 1/2 (sigma^2 + mu^2 - 2 logsigma - 1) per dimension, nats, float64.

    Kingma and Welling (2014, arXiv:1312.6114), appendix B. mu, logsigma and the result: [batch, latent_dim].
    """
    mu64, logsigma64 = mu.astype(np.float64), logsigma.astype(np.float64)
    per_dimension: Nats = 0.5 * (np.exp(2 * logsigma64) + mu64**2 - 2 * logsigma64 - 1)
    return per_dimension


class VAE:
    """An exported VAE. Make one with `VAE.load`.

    Images are float32 [batch, C, H, W] in [0, 1]; `image_shape` is (C, H, W). Wrong shapes, NaN and values out of range
    raise InputError, wrong arguments ArgumentError. The same seed gives the same noise on every machine, and row i of
    a result does not depend on how many rows were asked for.

    One VAE may be used from many threads at once, as a context manager, and after a fork; it pickles and copies as its
    bundle's path and hash, and is opened again from there.
    """

    def __init__(self, bundle: bundles.Bundle, num_threads: int | None = None) -> None:
        self.threads = threads.count(num_threads)
        self.path = bundle.path
        self._manifest = bundle.manifest
        contract = bundle.contract
        self._likelihood = likelihoods.from_contract(contract["likelihood"])
        image = contract["image"]
        self.image_shape: tuple[int, int, int] = (image["channels"], image["height"], image["width"])
        channels = self.image_shape[0] * self._likelihood.parameters_per_pixel
        self._parameter_shape = (channels, *self.image_shape[1:])
        self.latent_dim: int = contract["latent_dim"]
        self._sessions: tuple[Session, Session] | None = None
        self._lock = threading.Lock()
        self._open(bundle)

    @classmethod
    def load(cls, path: str | PathLike[str] | None = None, threads: int | None = None) -> "VAE":
        """Load the bundle in the folder `path`, or the one that ships with the package.

        threads: None for the environment variable VAE_EDGE_THREADS, or else all cores that this process may use.
        Raises BundleError where the bundle is missing, damaged or of another format.
        """
        return cls(bundles.read(bundles.shipped() if path is None else Path(path)), threads)

    @property
    def info(self) -> dict[str, Any]:
        """A copy of the bundle's manifest: contract, provenance, metrics, quantiles, parity report."""
        copy: dict[str, Any] = json.loads(json.dumps(self._manifest))
        return copy

    @property
    def likelihood(self) -> likelihoods.Likelihood:
        """p(x|z), as the bundle names it."""
        return self._likelihood

    def encode(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """q(z|x) of each image: (mu, logsigma), float32 [batch, latent_dim] each."""
        images = self._images(x)
        both = (2 * self.latent_dim,)
        joined = self._gather(len(images), both, lambda chunk: np.hstack(self._posterior(images[chunk])))
        mu, logsigma = np.hsplit(joined, 2)
        return np.ascontiguousarray(mu), np.ascontiguousarray(logsigma)

    def decode(self, z: ArrayLike) -> Floats:
        """theta = E[x|z]: float32 [batch, C, H, W], from z [batch, latent_dim]."""
        latents = self._latents(z)
        mean = self._likelihood.mean
        return self._gather(len(latents), self.image_shape, lambda chunk: mean(self._parameters(latents[chunk])))

    def parameters(self, z: ArrayLike) -> Floats:
        """The likelihood's natural parameters, for Bernoulli the logits: float32 [batch, C, H, W] from z."""
        latents = self._latents(z)
        return self._gather(len(latents), self._parameter_shape, lambda chunk: self._parameters(latents[chunk]))

    def sample(self, n: int, seed: int = 0, mean: bool = False, start: int = 0) -> Floats:
        """Draw images start..start+n-1 of this seed, x ~ p(x|z) with z ~ p(z): float32 [n, C, H, W].

        With `mean`, E[x|z] instead of draws.
        """
        self._check_range(seed, start, n)
        return self._gather(n, self.image_shape, lambda chunk: self._draw(chunk, seed, mean, start))

    def sample_batches(self, n: int, seed: int = 0, mean: bool = False, start: int = 0) -> Iterator[Floats]:
        """The images of `sample` as a stream of batches [at most CHUNK, C, H, W], in constant memory."""
        self._check_range(seed, start, n)
        return self._map(lambda chunk: self._draw(chunk, seed, mean, start), _chunks(n))

    def reconstruct(self, x: ArrayLike) -> Floats:
        """theta = E[x|z] at z = mu(x): float32 [batch, C, H, W]."""
        return self.decode(self.encode(x)[0])

    def binarise(self, x: ArrayLike, seed: int = 0) -> Floats:
        """Draw binary images with P(1) = x, as training does: float32 {0, 1} of x's shape.

        Binary images stay as they are.
        """
        images = self._images(x)
        noise.check_seed(seed)
        pixels = math.prod(self.image_shape)

        def draw(chunk: slice) -> Floats:
            uniforms = noise.uniform(seed, noise.BINARISATION, np.arange(chunk.start, chunk.stop), pixels)
            return (uniforms.reshape(images[chunk].shape) < images[chunk]).astype(np.float32)

        return self._gather(len(images), self.image_shape, draw)

    def terms(self, x: ArrayLike | Iterator[ArrayLike], num_samples: int = 1, seed: int = 0) -> Terms:
        """Both terms of the ELBO: reconstruction averaged over `num_samples` draws of z, and the closed-form KL."""
        reconstruction, kl, error = [], [], []
        for draws in self._weigh(x, num_samples, seed):
            reconstruction.append(draws.log_likelihood.mean(axis=1))
            kl.append(draws.kl)
            deviation = draws.log_likelihood.std(axis=1, ddof=1) if num_samples > 1 else np.full(len(draws.kl), np.nan)
            error.append(deviation / math.sqrt(num_samples))
        return Terms(_join(reconstruction), _join(kl, self.latent_dim), _join(error))

    def elbo(self, x: ArrayLike | Iterator[ArrayLike], num_samples: int = 1, seed: int = 0) -> Nats:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats per image, float64 [batch]; higher is better.

        Kingma and Welling (2014, arXiv:1312.6114), eq. 7, with `num_samples` draws of z per image.
        x must lie in the likelihood's support: for Bernoulli, binary (see `binarise`). An iterator over such batches is
        scored as one long batch, in constant memory.
        """
        return self.terms(x, num_samples, seed).elbo

    def log_likelihood(self, x: ArrayLike | Iterator[ArrayLike], num_samples: int = 64, seed: int = 0) -> Nats:
        """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x), K = num_samples: nats per image, float64 [batch].

        Burda et al. (2016, arXiv:1509.00519), eq. 8: a lower bound of log p(x) that tightens as K grows.
        """
        bounds = []
        for draws in self._weigh(x, num_samples, seed):
            log_weights = draws.log_likelihood + draws.log_ratio
            top = log_weights.max(axis=1)
            bounds.append(top + np.log(np.exp(log_weights - top[:, None]).mean(axis=1)))
        return _join(bounds)

    def close(self) -> None:
        """Free the sessions. A closed VAE raises ArgumentError when it is used."""
        self._sessions = None

    def __enter__(self) -> "VAE":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "threads": self.threads, "sha256": self._manifest["sha256"]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(_reread(state["path"], state["sha256"]), state["threads"])  # type: ignore[misc]

    def _open(self, bundle: bundles.Bundle) -> None:
        """Open both sessions in this process, and check that the graphs are what the contract says."""
        encoder, decoder = (Session(bundle.files[name], str(bundle.path / name)) for name in bundles.GRAPHS)
        for session, role in ((encoder, "encoder"), (decoder, "decoder")):
            _check_metadata(session, role, bundle.contract)
        latent = [self.latent_dim]
        _check_shapes(encoder, {"x": list(self.image_shape)}, {"mu": latent, "logsigma": latent})
        _check_shapes(decoder, {"z": latent}, {self._likelihood.output: list(self._parameter_shape)})
        self._sessions = (encoder, decoder)
        self._process = os.getpid()

    def _session(self, role: int) -> Session:
        """The encoder (0) or decoder (1); opened anew after a fork, where an inherited session may hang."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid() and self._sessions is not None:
                    self._open(_reread(self.path, self._manifest["sha256"]))
        if self._sessions is None:
            raise ArgumentError("closed VAE", self.path, "load it again")
        return self._sessions[role]

    def _posterior(self, x: Floats) -> tuple[Floats, Floats]:
        """mu and logsigma for one chunk of images."""
        mu, logsigma = self._session(0).run(("mu", "logsigma"), x)
        return mu, logsigma

    def _parameters(self, z: Floats) -> Floats:
        """The likelihood's natural parameters for one chunk of z."""
        return self._session(1).run((self._likelihood.output,), z)[0]

    def _draw(self, chunk: slice, seed: int, mean: bool, start: int) -> Floats:
        """The samples of one chunk, counted from `start`."""
        index = np.arange(start + chunk.start, start + chunk.stop, dtype=np.uint64)
        parameters = self._parameters(noise.normal(seed, noise.PRIOR, index, self.latent_dim))
        if mean:
            return self._likelihood.mean(parameters)
        draw = noise.uniform if self._likelihood.noise == "uniform" else noise.normal
        pixels = draw(seed, noise.PIXELS, index, math.prod(self.image_shape))
        return self._likelihood.sample(parameters, pixels.reshape(-1, *self.image_shape))

    def _weigh(self, x: ArrayLike | Iterator[ArrayLike], num_samples: int, seed: int) -> Iterator["_Draws"]:
        """For a few images at a time, `num_samples` draws from q(z|x) each, weighed by the model."""
        noise.check_seed(seed)
        if not isinstance(num_samples, int | np.integer) or not 1 <= num_samples <= MOST_SAMPLES:
            raise ArgumentError("num_samples out of range", num_samples, f"give 1 to {MOST_SAMPLES:,}")
        images_per_run = max(1, CHUNK // num_samples)
        batches: Iterable[ArrayLike] = x if isinstance(x, Iterator) else [x]

        def blocks() -> Iterator[tuple[int, Floats]]:
            seen = 0
            for batch in batches:
                images = self._images(batch)
                self._likelihood.check(images)
                for i in range(0, len(images), images_per_run):
                    yield seen + i, images[i : i + images_per_run]
                seen += len(images)

        return self._map(lambda block: self._weigh_block(block[0], block[1], num_samples, seed), blocks())

    def _weigh_block(self, start: int, x: Floats, num_samples: int, seed: int) -> "_Draws":
        mu, logsigma = self._posterior(x)  # [images, latent_dim]
        sigma = np.exp(logsigma)[:, None]
        index = np.arange(start, start + len(x), dtype=np.uint64)
        log_likelihood, log_ratio = np.empty((2, len(x), num_samples))
        for k in _chunks(num_samples):
            draws = k.stop - k.start
            eps = noise.normal(seed, noise.POSTERIOR, index, draws * self.latent_dim, start=k.start * self.latent_dim)
            eps = eps.reshape(len(x), draws, self.latent_dim)
            z = (mu[:, None] + sigma * eps).astype(np.float32, copy=False)
            parameters = self._parameters(z.reshape(-1, self.latent_dim))
            parameters = parameters.reshape(len(x), draws, *self._parameter_shape)
            log_likelihood[:, k] = self._likelihood.log_prob(x[:, None], parameters)
            # log p(z) - log q(z|x): the 2 pi terms cancel
            log_ratio[:, k] = (0.5 * (eps**2 - z**2) + logsigma[:, None]).sum(axis=2, dtype=np.float64)
        kl = kl_per_dimension(mu, logsigma)
        finite = [np.isfinite(figures).all(axis=1) for figures in (log_likelihood, log_ratio, kl)]
        if not np.all(finite):
            row = start + int(np.argmin(np.all(finite, axis=0)))
            raise InputError("the model gives no finite figure", f"image {row}", "check the image and the model")
        return _Draws(log_likelihood, log_ratio, kl)

    def _map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return threads.ordered_map(self.threads, work, items)

    def _gather(self, n: int, shape: tuple[int, ...], work: Callable[[slice], Floats]) -> Floats:
        """The arrays that `work` makes of each chunk of n rows, joined: [n, *shape]."""
        try:
            result = np.empty((n, *shape), np.float32)
        except (MemoryError, ValueError, OverflowError):
            raise ResourceError("out of memory", f"{n} rows", "ask for fewer at a time") from None
        for chunk, part in zip(_chunks(n), self._map(work, _chunks(n)), strict=True):
            result[chunk] = part
        return result

    @staticmethod
    def _check_range(seed: int, start: int, n: int) -> None:
        noise.check_seed(seed)
        if not isinstance(n, int | np.integer) or n < 1:
            raise ArgumentError("number of samples out of range", n, "give 1 or more")
        if not isinstance(start, int | np.integer) or not 0 <= start < 2**63:
            raise ArgumentError("start out of range", start, "give 0 or more")

    def _images(self, values: Any) -> Floats:
        x = _floats(values, "images")
        if x.ndim != 4 or x.shape[1:] != self.image_shape:
            expected = "[batch, {}, {}, {}]".format(*self.image_shape)
            raise InputError("images of the wrong shape", list(x.shape), f"this model takes {expected}")
        _refuse_rows(x, ~np.isfinite(x), "NaN or infinite pixels", "image", "clean the data")
        _refuse_rows(x, (x < 0) | (x > 1), "pixels outside [0, 1]", "image", "divide 8-bit levels by 255")
        return x

    def _latents(self, values: Any) -> Floats:
        z = _floats(values, "latents")
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise InputError(
                "latents of the wrong shape", list(z.shape), f"this model takes [batch, {self.latent_dim}]"
            )
        _refuse_rows(z, ~np.isfinite(z), "NaN or infinite latents", "row", "clean the data")
        return z


class _Draws(NamedTuple):
    """For a few images: log p(x|z_k) and log p(z_k) - log q(z_k|x), [images, num_samples], KL [images, latent_dim]."""

    log_likelihood: Nats
    log_ratio: Nats
    kl: Nats


def _reread(path: Path, sha256: str) -> bundles.Bundle:
    """The same bundle again, for another process."""
    bundle = bundles.read(path)
    if bundle.manifest["sha256"] != sha256:
        raise BundleError("bundle changed since it was loaded", path, "load it again")
    return bundle


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


def _join(parts: list[Nats], *shape: int) -> Nats:
    return np.concatenate(parts) if parts else np.zeros((0, *shape))


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
