"""The runtime's API: a VAE loaded from a bundle, NumPy in and NumPy out, every figure in nats per image."""

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import bundle as bundles
from vae_runtime import checks, likelihoods, noise, threads
from vae_runtime.elbo import Draws, Floats, Nats, Terms, kl_per_dimension, log_ratio
from vae_runtime.errors import ArgumentError, BundleError, InputError, ResourceError
from vae_runtime.images import FULL_SCALE
from vae_runtime.ranks import Ranks
from vae_runtime.session import Session

T = TypeVar("T")
R = TypeVar("R")

MOST_SAMPLES = 1_000_000  # of z per image
MEMORY = 8 << 20  # bytes for the arrays of the chunks in work
# of those arrays, measured, for each of the likelihood's parameters: of an image that is sampled, of an image that is
# scored, and of each draw of z for it
_BYTES_TO_SAMPLE, _BYTES_TO_SCORE, _BYTES_TO_WEIGH = 40, 100, 24
_MOST_ROWS = 512  # per run: more bring no speed
_MOST_DRAWS = 1024  # of z whose noise is made at once: many short calls would keep threads from running side by side


class VAE:
    """An exported VAE. Make one with `VAE.load`.

    Images are float32 [batch, C, H, W] in [0, 1]; `image_shape` is (C, H, W). Wrong shapes, NaN and values out of range
    raise InputError, wrong arguments ArgumentError. The same seed gives the same noise on every machine. What makes
    images (`sample`) draws by position; what takes images (`elbo`, `terms`, `log_likelihood`, `observe`, `binarise`)
    draws by content, so that equal images get equal figures whatever lies beside them.

    One VAE may be used from many threads at once, as a context manager, and after a fork; it pickles and copies as its
    bundle's path and hash, and is opened again from there.
    """

    def __init__(self, bundle: bundles.Bundle, num_threads: int | None = None, memory: int | None = None) -> None:
        self.threads = threads.count(num_threads)
        self.memory = checks.integer(MEMORY if memory is None else memory, "memory", 1, 2**63 - 1)
        self.path = bundle.path.absolute()
        self._manifest = bundle.manifest
        contract = bundle.contract
        self._likelihood = likelihoods.from_contract(contract["likelihood"])
        image = contract["image"]
        self.image_shape: tuple[int, int, int] = (image["channels"], image["height"], image["width"])
        channels = self.image_shape[0] * self._likelihood.parameters_per_pixel
        self._parameter_shape = (channels, *self.image_shape[1:])
        self.latent_dim: int = contract["latent_dim"]
        row = self.threads * math.prod(self._parameter_shape)
        self.rows = max(1, min(_MOST_ROWS, self.memory // (row * _BYTES_TO_SAMPLE)))
        self._most_draws = max(1, min(_MOST_ROWS, self.memory // (row * _BYTES_TO_WEIGH)))
        self._locks: dict[int, threading.Lock] = {}  # one for each process: a fork may copy one that is held
        self._sessions: dict[str, Session] | None = {}
        self._unopened = {name: bundle.files[name] for name in bundles.GRAPHS}
        self._process = os.getpid()

    @classmethod
    def load(
        cls, path: str | PathLike[str] | None = None, threads: int | None = None, memory: int | None = None
    ) -> "VAE":
        """Load the bundle in the folder `path`, or one that ships with the package: "mnist" (None) or "fashion-mnist".

        threads: None for the environment variable VAE_EDGE_THREADS, or else all cores that this process may use.
        memory: about how many bytes the arrays of the chunks in work may take, results and the graphs' own apart; None
        for 8 MiB. It sets `rows`, how many images are drawn or decoded in a run; no result depends on it.
        Raises BundleError where the bundle is missing, damaged or of another format. Each graph is opened when it
        is first used.
        """
        return cls(bundles.read(bundles.locate(path)), threads, memory)

    @property
    def info(self) -> dict[str, Any]:
        """A copy of the bundle's manifest: contract, provenance, metrics, quantiles, parity report."""
        copy: dict[str, Any] = json.loads(json.dumps(self._manifest))
        return copy

    @property
    def full_scale(self) -> int | None:
        """The level of 16-bit images that was 1.0 in training, such as 4095 of a 12-bit camera; None for 65535.

        `sources.Images` takes it. Raises BundleError where the manifest has something else.
        """
        preprocessing = self._manifest.get("preprocessing")
        found = preprocessing.get("full_scale") if isinstance(preprocessing, dict) else None
        if found is None or (type(found) is int and 0 < found <= FULL_SCALE):
            return found
        raise BundleError("bundle's manifest not understood", f"full_scale {found!r}"[:60], "export it again")

    @property
    def likelihood(self) -> likelihoods.Likelihood:
        """p(x|z), as the bundle names it."""
        return self._likelihood

    def encode(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """q(z|x) of each image: (mu, logsigma), float32 [batch, latent_dim] each."""
        images = checks.images(x, self.image_shape)

        def work(chunk: slice) -> Floats:
            return checks.finite(np.hstack(self._posterior(images[chunk])), "image", chunk.start)

        joined = self._gather(len(images), (2 * self.latent_dim,), work)
        mu, logsigma = np.hsplit(joined, 2)
        return np.ascontiguousarray(mu), np.ascontiguousarray(logsigma)

    def decode(self, z: ArrayLike) -> Floats:
        """theta = E[x|z]: float32 [batch, C, H, W], from z [batch, latent_dim]."""
        latents = checks.latents(z, self.latent_dim)

        def work(chunk: slice) -> Floats:
            return self._likelihood.mean(self._finite_parameters(latents[chunk], chunk.start))

        return self._gather(len(latents), self.image_shape, work)

    def parameters(self, z: ArrayLike) -> Floats:
        """The likelihood's natural parameters, for Bernoulli the logits: float32 [batch, C, H, W] from z."""
        latents = checks.latents(z, self.latent_dim)

        def work(chunk: slice) -> Floats:
            return self._finite_parameters(latents[chunk], chunk.start)

        return self._gather(len(latents), self._parameter_shape, work)

    def sample(self, n: int, seed: int = 0, mean: bool = False, start: int = 0) -> Floats:
        """Draw images start..start+n-1 of this seed, x ~ p(x|z) with z ~ p(z): float32 [n, C, H, W].

        With `mean`, E[x|z] instead of draws.
        """
        seed, start, n = self._check_range(seed, start, n)
        return self._gather(n, self.image_shape, lambda chunk: self._draw(chunk, seed, mean, start))

    def sample_batches(self, n: int, seed: int = 0, mean: bool = False, start: int = 0) -> Iterator[Floats]:
        """The images of `sample` as a stream of batches [at most `rows`, C, H, W], in constant memory."""
        seed, start, n = self._check_range(seed, start, n)
        return self._map(lambda chunk: self._draw(chunk, seed, mean, start), _chunks(n, self.rows))

    def reconstruct(self, x: ArrayLike) -> Floats:
        """theta = E[x|z] at z = mu(x): float32 [batch, C, H, W]."""
        return self.decode(self.encode(x)[0])

    def binarise(self, x: ArrayLike, seed: int = 0, start: int = 0) -> Floats:
        """Draw binary images with P(1) = x, as training does: float32 {0, 1} of x's shape.

        Equal images get equal draws. Binary images stay as they are. `start`: the first image's number, for errors.
        """
        seed, start, _ = self._check_range(seed, start)
        images = checks.images(x, self.image_shape, start)
        pixels = math.prod(self.image_shape)

        def draw(chunk: slice) -> Floats:
            uniforms = noise.uniform(seed, noise.BINARISATION, noise.index(images[chunk]), pixels)
            return (uniforms.reshape(images[chunk].shape) < images[chunk]).astype(np.float32)

        return self._gather(len(images), self.image_shape, draw)

    def observe(self, x: ArrayLike, seed: int = 0, start: int = 0) -> Floats:
        """Images as the likelihood knows them and as training took them, ready to be scored.

        Binarised for Bernoulli, rounded to 8-bit levels for the discretised logistic, as they are for others.
        """
        if isinstance(self._likelihood, likelihoods.Bernoulli):
            return self.binarise(x, seed, start)
        images = checks.images(x, self.image_shape, start)
        levels = isinstance(self._likelihood, likelihoods.DiscretisedLogistic)
        return likelihoods.DiscretisedLogistic.rounded(images) if levels else images

    def between_levels(self, x: ArrayLike) -> NDArray[np.bool_]:
        """Which images have a pixel that is no 8-bit level under a likelihood of such levels: bool [batch]."""
        images = checks.images(x, self.image_shape)
        if not isinstance(self._likelihood, likelihoods.DiscretisedLogistic):
            return np.zeros(len(images), np.bool_)
        return np.logical_not(self._likelihood.on_level(images).all(axis=(1, 2, 3)))

    def grey(self, x: ArrayLike) -> NDArray[np.bool_]:
        """Which images have a pixel that is neither 0 nor 1 under a Bernoulli likelihood: bool [batch]."""
        images = checks.images(x, self.image_shape)
        if not isinstance(self._likelihood, likelihoods.Bernoulli):
            return np.zeros(len(images), np.bool_)
        grey: NDArray[np.bool_] = ((images != 0) & (images != 1)).any(axis=(1, 2, 3))
        return grey

    def terms(
        self,
        x: ArrayLike | Iterator[ArrayLike],
        num_samples: int = 1,
        seed: int = 0,
        start: int = 0,
        observe: bool = False,
    ) -> Terms:
        """Both terms of the ELBO: reconstruction averaged over `num_samples` draws of z, and the closed-form KL.

        x must lie in the likelihood's support: for Bernoulli, binary. Equal images get equal figures, alone or among
        others. `start` is the number of the first image, for errors; no figure depends on it.

        With `observe`, images are as `observe` takes them. A grey one under a Bernoulli likelihood is drawn as binary
        anew for each draw of z: the terms are means over k of those of x_k ~ Bernoulli(x), z_k ~ q(z|x_k), and their
        standard error covers both.
        """
        parts = list(self._weigh(self._average if observe else self._terms, x, num_samples, seed, start, observe))
        return Terms(
            _join([part.reconstruction for part in parts]),
            _join([part.kl_per_dimension for part in parts], self.latent_dim),
            _join([part.standard_error for part in parts]),
        )

    def elbo(self, x: ArrayLike | Iterator[ArrayLike], num_samples: int = 1, seed: int = 0, start: int = 0) -> Nats:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats per image, float64 [batch]; higher is better.

        Kingma and Welling (2014, arXiv:1312.6114), eq. 7, with `num_samples` draws of z per image.
        x must lie in the likelihood's support: for Bernoulli, binary. Of grey images, `observe` makes one binary draw,
        and `scores.score` averages over several. An iterator over such batches is scored as one long batch, in constant
        memory. `start` as in `terms`.
        """
        return _join([terms.elbo for terms in self._weigh(self._terms, x, num_samples, seed, start)])

    def log_likelihood(
        self, x: ArrayLike | Iterator[ArrayLike], num_samples: int = 64, seed: int = 0, start: int = 0
    ) -> Nats:
        """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x), K = num_samples: nats per image, float64 [batch].

        Burda et al. (2016, arXiv:1509.00519), eq. 8: a lower bound of log p(x) that tightens as K grows.
        """
        return _join(list(self._weigh(self._bound, x, num_samples, seed, start)))

    def images_per_run(self, num_samples: int) -> int:
        """How many images with `num_samples` draws of z each a thread scores at a time."""
        most = self.memory // (self.threads * math.prod(self._parameter_shape) * (_BYTES_TO_SCORE + _BYTES_TO_WEIGH))
        return max(1, min(_MOST_DRAWS // num_samples, most))

    @property
    def ranks(self) -> Ranks:
        """The quantiles of the test images' ELBO. Raises BundleError where the bundle keeps none."""
        return Ranks.read(self._manifest)

    def percentile(self, elbo: ArrayLike) -> Nats:
        """How many percent of the model's test images have a lower ELBO: float64 of elbo's shape.

        Interpolated between the quantiles that the bundle keeps, of one draw of z for each test image, and no finer
        than these are many: of n images the ends are 100/n and 100 - 100/n, or 0.1 and 99.9 where n is over 1,000; they
        stand for all beyond them. Raises BundleError where it keeps none. A rank by ELBO alone says little of images
        unlike the test images: those that are easy to describe, such as black ones, rank high.
        """
        return self.ranks.percentile(elbo)

    def close(self) -> None:
        """Free the sessions. A closed VAE raises ArgumentError when it is used."""
        with self._lock():
            self._sessions, self._unopened = None, {}

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def __enter__(self) -> "VAE":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        sha256 = self._manifest["sha256"]
        return {"path": self.path, "sha256": sha256, "threads": self.threads, "memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        bundle = _reread(state["path"], state["sha256"])
        self.__init__(bundle, state["threads"], state["memory"])  # type: ignore[misc]

    def _session(self, name: str) -> Session:
        """The session of a graph, opened at its first use, and anew after a fork, where an inherited one may hang."""
        if self._process != os.getpid() or name not in (self._sessions or ()):
            with self._lock():
                self._open(name)
        if (sessions := self._sessions) is None:
            raise ArgumentError("closed VAE", self.path, "load it again")
        return sessions[name]

    def _open(self, name: str) -> None:
        """Open a graph in this process, unless that is done, and check that it is what the contract says."""
        if self._sessions is None:
            return
        if self._process != os.getpid():
            self._sessions, self._process = {}, os.getpid()
        if name in self._sessions:
            return
        graph = self._unopened.get(name) or _reread(self.path, self._manifest["sha256"]).files[name]
        session = Session(graph, str(self.path / name))
        latent = [self.latent_dim]
        if name == bundles.ENCODER:
            _check_shapes(session, {"x": list(self.image_shape)}, {"mu": latent, "logsigma": latent})
        else:
            _check_shapes(session, {"z": latent}, {self._likelihood.output: list(self._parameter_shape)})
        self._sessions[name] = session
        self._unopened.pop(name, None)

    def _posterior(self, x: Floats) -> tuple[Floats, Floats]:
        """mu and logsigma for one chunk of images."""
        mu, logsigma = self._session(bundles.ENCODER).run(("mu", "logsigma"), x)
        return mu, logsigma

    def _parameters(self, z: Floats) -> Floats:
        """The likelihood's natural parameters for one chunk of z."""
        return self._session(bundles.DECODER).run((self._likelihood.output,), z)[0]

    def _finite_parameters(self, z: Floats, start: int) -> Floats:
        """The same for rows start.., or InputError."""
        return checks.finite(self._parameters(z), "row", start)

    def _draw(self, chunk: slice, seed: int, mean: bool, start: int) -> Floats:
        """The samples of one chunk, counted from `start`."""
        index = np.arange(start + chunk.start, start + chunk.stop, dtype=np.uint64)
        z = noise.normal(seed, noise.PRIOR, index, self.latent_dim)
        parameters = self._finite_parameters(z, int(index[0]))
        if mean:
            return self._likelihood.mean(parameters)
        draw = noise.uniform if self._likelihood.noise == "uniform" else noise.normal
        pixels = draw(seed, noise.PIXELS, index, math.prod(self.image_shape))
        return self._likelihood.sample(parameters, pixels.reshape(-1, *self.image_shape))

    def _weigh(
        self,
        work: Callable[[NDArray[np.uint64], Floats, int, int], R],
        x: ArrayLike | Iterator[ArrayLike],
        num_samples: int,
        seed: int,
        start: int,
        observe: bool = False,
    ) -> Iterator[R]:
        """What `work` makes of a few images at a time, given their numbers, themselves, num_samples and seed."""
        seed, start, _ = self._check_range(seed, start)
        num_samples = checks.integer(num_samples, "num_samples", 1, MOST_SAMPLES)
        images_per_run = self.images_per_run(num_samples)
        batches: Iterable[ArrayLike] = x if isinstance(x, Iterator) else [x]

        def blocks() -> Iterator[tuple[NDArray[np.uint64], Floats]]:
            seen = start
            for batch in batches:
                images = checks.images(batch, self.image_shape, seen)
                if not (observe and isinstance(self._likelihood, likelihoods.Bernoulli)):
                    images = self.observe(images, seed, seen) if observe else images
                    self._likelihood.check(images, seen)
                numbers = np.arange(seen, seen + len(images), dtype=np.uint64)
                for i in range(0, len(images), images_per_run):
                    yield numbers[i : i + images_per_run], images[i : i + images_per_run]
                seen += len(images)

        return self._map(lambda block: work(*block, num_samples, seed), blocks())

    @np.errstate(all="ignore")  # what is not finite in the end is refused, with its number
    def _draw_and_weigh(self, numbers: NDArray[np.uint64], x: Floats, num_samples: int, seed: int) -> Draws:
        """Draws of z from q(z|x) for images in the likelihood's support."""
        mu, logsigma = self._posterior(x)  # [images, latent_dim]
        sigma = np.exp(logsigma)[:, None]
        index = noise.index(x)
        log_likelihood, ratio = np.empty((2, len(x), num_samples))
        for k in _chunks(num_samples, _MOST_DRAWS):
            draws = k.stop - k.start
            eps = noise.normal(seed, noise.POSTERIOR, index, draws * self.latent_dim, start=k.start * self.latent_dim)
            eps = eps.reshape(len(x), draws, self.latent_dim)
            z = (mu[:, None] + sigma * eps).astype(np.float32, copy=False)
            ratio[:, k] = log_ratio(z, eps, logsigma[:, None])
            for i, j in _blocks(len(x), draws, self._most_draws):
                threads.go_on()
                parameters = self._parameters(z[i, j].reshape(-1, self.latent_dim))
                parameters = parameters.reshape(*z[i, j].shape[:2], *self._parameter_shape)
                log_likelihood[:, k][i, j] = self._likelihood.log_prob(x[i, None], parameters)
        kl = kl_per_dimension(mu, logsigma)
        _refuse_infinite(numbers, log_likelihood, ratio, kl)
        return Draws(log_likelihood, ratio, kl)

    def _terms(self, numbers: NDArray[np.uint64], x: Floats, num_samples: int, seed: int) -> Terms:
        return self._draw_and_weigh(numbers, x, num_samples, seed).terms()

    def _bound(self, numbers: NDArray[np.uint64], x: Floats, num_samples: int, seed: int) -> Nats:
        return self._draw_and_weigh(numbers, x, num_samples, seed).bound()

    def _average(self, numbers: NDArray[np.uint64], x: Floats, num_samples: int, seed: int) -> Terms:
        """The terms of images of which some may be grey under a Bernoulli likelihood."""
        grey = self.grey(x)
        terms = Terms(np.empty(len(x)), np.empty((len(x), self.latent_dim)), np.empty(len(x)))
        for rows, work in ((~grey, self._terms), (grey, self._terms_of_grey)):
            if rows.any():
                part = work(numbers[rows], x[rows], num_samples, seed)
                terms.reconstruction[rows] = part.reconstruction
                terms.kl_per_dimension[rows] = part.kl_per_dimension
                terms.standard_error[rows] = part.standard_error
        return terms

    @np.errstate(all="ignore")
    def _terms_of_grey(self, numbers: NDArray[np.uint64], x: Floats, num_samples: int, seed: int) -> Terms:
        """Means over k of the terms of x_k ~ Bernoulli(x) with z_k ~ q(z|x_k)."""
        index, pixels, latent_dim = noise.index(x), math.prod(self.image_shape), self.latent_dim
        log_likelihood, kl = np.empty((2, len(x), num_samples))
        total = np.zeros((len(x), latent_dim))  # of the KL per dimension
        for i, k in _blocks(len(x), num_samples, self.images_per_run(1)):
            threads.go_on()
            draws = k.stop - k.start
            uniforms = noise.uniform(seed, noise.BINARISATION, index[i], draws * pixels, start=k.start * pixels)
            observed = (uniforms.reshape(-1, draws, *self.image_shape) < x[i, None]).astype(np.float32)
            observed = observed.reshape(-1, *self.image_shape)  # [images * draws, C, H, W]
            mu, logsigma = self._posterior(observed)
            eps = noise.normal(seed, noise.POSTERIOR, index[i], draws * latent_dim, start=k.start * latent_dim)
            z = (mu + np.exp(logsigma) * eps.reshape(mu.shape)).astype(np.float32, copy=False)
            log_likelihood[i, k] = self._likelihood.log_prob(observed, self._parameters(z)).reshape(-1, draws)
            per_dimension = kl_per_dimension(mu, logsigma).reshape(-1, draws, latent_dim)
            kl[i, k] = per_dimension.sum(axis=2)
            for draw in range(draws):  # one after the other, so that no bit depends on the blocks
                total[i] += per_dimension[:, draw]
        _refuse_infinite(numbers, log_likelihood, total)
        return Terms.mean(log_likelihood, kl, total / num_samples)

    def _map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return threads.ordered_map(self.threads, work, items)

    def _gather(self, n: int, shape: tuple[int, ...], work: Callable[[slice], Floats]) -> Floats:
        """The arrays that `work` makes of each chunk of n rows, joined: [n, *shape]."""
        try:
            result = np.empty((n, *shape), np.float32)
        except (MemoryError, ValueError, OverflowError):
            raise ResourceError("out of memory", f"{n} rows", "ask for fewer at a time") from None
        for chunk, part in zip(_chunks(n, self.rows), self._map(work, _chunks(n, self.rows)), strict=True):
            result[chunk] = part
        return result

    @staticmethod
    def _check_range(seed: int, start: int, n: int = 1) -> tuple[int, int, int]:
        """The three as Python's integers, which do not overflow as NumPy's do."""
        start = checks.integer(start, "start", 0, 2**63 - 1)
        return noise.check_seed(seed), start, checks.integer(n, "number of samples", 1, 2**63 - 1)


def _refuse_infinite(numbers: NDArray[np.uint64], *figures: Nats) -> None:
    """Raise InputError, naming the first image, where one of the figures [images, ...] is NaN or infinite."""
    finite = np.all([np.isfinite(array).all(axis=1) for array in figures], axis=0)
    if not finite.all():
        which = f"image {numbers[np.argmin(finite)]}"
        raise InputError("the model gives no finite figure", which, "check the image and the model")


def _reread(path: Path, sha256: str) -> bundles.Bundle:
    """The same bundle again, for another process."""
    bundle = bundles.read(path)
    if bundle.manifest["sha256"] != sha256:
        raise BundleError("bundle changed since it was loaded", path, "load it again")
    return bundle


def _check_shapes(session: Session, inputs: dict[str, list[int]], outputs: dict[str, list[int]]) -> None:
    """A graph takes and gives what the contract says, batch axis aside."""
    if (session.inputs, session.outputs) != (inputs, outputs):
        found = f"{session.name} ({session.inputs} to {session.outputs})"
        raise BundleError("graph's shapes are not the contract's", found, "export it again")


def _chunks(n: int, rows: int) -> Iterator[slice]:
    """Slices of at most `rows` rows that cover 0..n-1."""
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _blocks(images: int, draws: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of their draws that cover all, with at most `rows` draws each."""
    for i in _chunks(images, max(1, rows // draws)):
        for j in _chunks(draws, rows):
            yield i, j


def _join(parts: list[Nats], *shape: int) -> Nats:
    return np.concatenate(parts) if parts else np.zeros((0, *shape))
