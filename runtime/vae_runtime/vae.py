"""The runtime's API: a VAE loaded from a bundle, NumPy in and NumPy out, every figure in nats per observation."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import arguments, draws, given, likelihoods, noise, threads
from vae_runtime import bundle as bundles
from vae_runtime import prior as priors
from vae_runtime.draws import Block, Floats, Model, Nats, Terms, chunks
from vae_runtime.errors import ArgumentError, ResourceError
from vae_runtime.given import Given
from vae_runtime.manifest import Manifest
from vae_runtime.observation import IMAGE
from vae_runtime.sessions import Sessions
from vae_runtime.vectors import Scaling

if TYPE_CHECKING:  # whoever reads no files need not wait for what does
    from vae_runtime.ranks import Ranks
    from vae_runtime.scores import Scores
    from vae_runtime.sources import Observations, Source
    from vae_runtime.streams import Bytes, Part

T = TypeVar("T")
R = TypeVar("R")
Measured = NDArray[Any]  # float32, or float64 in the units of the columns

MOST_SAMPLES = 1_000_000  # of z per observation
MEMORY = 8 << 20  # bytes for the arrays of the chunks in work
# of those arrays, measured, for each of the likelihood's parameters: of an observation that is sampled, of one that is
# scored, and of each draw of z for it
_BYTES_TO_SAMPLE, _BYTES_TO_SCORE, _BYTES_TO_WEIGH = 40, 100, 24
_MOST_ROWS = 512  # per run: more bring no speed
_MOST_DRAWS = 1024  # of z in a run that scores


class VAE:
    """An exported VAE. Make one with `VAE.load`.

    Observations x are float32 [batch, *shape]: `observation` says their kind, shape and range; images are [batch, C, H,
    W] in [0, 1]. What takes them takes a path, a list of paths, and of images a Pillow image, a list of these and uint8
    levels [H, W, C] too; FittedWarning says what was cut or resized. Where the model knows the `columns` of its rows,
    these are taken and given as they were measured, float64, and figures are densities in their units. Latents z are
    [batch, *latent_shape], and `latent_dim` is how many numbers one has. `likelihood` and `prior` are what the graphs
    are of, in NumPy; `manifest` is what the bundle says, in typed parts, and `path` its folder. Wrong shapes, NaN and
    values out of range raise InputError, wrong arguments ArgumentError. The same seed gives the same noise on every
    machine. What makes observations (`sample`) draws by position; what takes them (`elbo`, `terms`, `log_likelihood`,
    `observe`, `binarise`) draws by content, so that equal ones get equal figures whatever lies beside them.

    One VAE may be used from many threads at once, as a context manager, and after a fork; it pickles and copies as its
    bundle's path and hash, and is opened again from there.
    """

    def __init__(
        self,
        bundle: bundles.Bundle,
        num_threads: int | None = None,
        memory: int | None = None,
        standardised: bool = False,
    ) -> None:
        self.threads = threads.count(num_threads)
        self.memory = arguments.integer(MEMORY if memory is None else memory, "memory", 1, 2**63 - 1)
        self.path = bundle.path.absolute()
        self.manifest: Manifest = bundle.manifest
        contract = bundle.manifest.contract
        self.observation = contract.observation
        self.columns = bundle.manifest.preprocessing.columns
        self.standardised = standardised
        self._scaling = None if standardised else Scaling.of(self.columns, self.observation)
        self.latent_shape = contract.latent_shape
        self.latent_dim = math.prod(self.latent_shape)
        self.likelihood = likelihoods.make(contract.likelihood, self.observation)
        self._parameter_shape = likelihoods.parameter_shape(self.likelihood, self.observation.shape)
        graphs = bundle.manifest.onnx
        self._working_bytes = max(graphs.working_bytes.values(), default=0) if graphs else 0
        self.rows = min(_MOST_ROWS, self._rows_of(_BYTES_TO_SAMPLE))
        self._sessions = Sessions(bundle, self.likelihood.output, self._parameter_shape)
        self.prior = priors.make(contract.prior, self.latent_shape, self._sessions)
        self._model = Model(
            self._sessions, self.likelihood, self.prior, self.observation,
            min(_MOST_ROWS, self._rows_of(_BYTES_TO_WEIGH)), self.rows_per_run(1),
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        path: str | PathLike[str] | None = None,
        threads: int | None = None,
        memory: int | None = None,
        standardised: bool = False,
    ) -> "VAE":
        """Load the bundle in the folder `path`, or one that ships with the package: "mnist" (None) or "fashion-mnist".

        threads: None for the environment variable VAE_EDGE_THREADS, or else all cores that this process may use.
        memory: about how many bytes the arrays of the chunks in work may take, results and the graphs' own apart; None
        for 8 MiB. It sets `rows`, how many observations are drawn or decoded in a run; no result depends on it.
        standardised: take and give observations as the networks do, (value - mean) / scale of each column, float32.
        Raises BundleError where the bundle is missing, damaged or of another format. Each graph is opened when it
        is first used.
        """
        return cls(bundles.read(bundles.locate(path)), threads, memory, standardised)

    def read(
        self, sources: "Iterable[Source] | Source", stride: int | None = None, drop_missing: bool = False
    ) -> "Observations":
        """The observations in `sources`, files, folders, patterns, arrays and bytes, as this model takes them.

        `Observations` says which there are; its `batches` are what the methods here take, a few at a time. One path
        alone may be given as it is. stride: of series, the rows from a window's start to the next one's; None for the
        model's own. drop_missing: whether rows with a missing value are left out, or refused.
        """
        from vae_runtime.sources import Observations

        sources = [sources] if isinstance(sources, str | bytes | Path) else sources
        return Observations(sources, self.observation, self.manifest.preprocessing, stride, drop_missing)

    def follow(
        self,
        stream: "Bytes",
        stride: int | None = None,
        note: Callable[[str], None] = lambda text: None,
        drop_missing: bool = False,
    ) -> "Iterator[Part]":
        """The rows or windows of a table whose lines come one by one, each as soon as it is whole, with their names.

        stream: of bytes, such as sys.stdin.buffer. note: is told what is to be said of the rows. stride,
        drop_missing: as in `read`.
        """
        from vae_runtime import streams

        return streams.observations(stream, self.observation, self.manifest.preprocessing, stride, note, drop_missing)

    def standardise(self, x: Given, start: int = 0) -> Floats:
        """Observations as the networks take them, float32 [batch, *shape], each column scaled where it has a scale.

        `start`: the first one's number, for errors. Raises InputError where they are not of the model's shape and
        range, and where a column of 0 and 1 holds another value under a mixed likelihood.
        """
        array = given.array(self, x)
        observations = arguments.observations(array, self.observation, start, self._scaling)
        if not self.likelihood.discrete:  # other values are drawn as binary, or rounded, where they are asked for
            likelihoods.check(self.likelihood, observations, self.observation.noun, start, self.names)
        return observations

    def encode(self, x: Given) -> tuple[Floats, Floats]:
        """q(z|x) of each observation: (mu, logsigma), float32 [batch, *latent_shape] each."""
        observations = self.standardise(x)

        def work(chunk: slice) -> Floats:
            both = np.stack(self._sessions.encode(observations[chunk]), axis=1)
            return arguments.finite(both, self.observation.noun, chunk.start)

        joined = self._gather(len(observations), (2, *self.latent_shape), work)
        return np.ascontiguousarray(joined[:, 0]), np.ascontiguousarray(joined[:, 1])

    def decode(self, z: ArrayLike) -> Measured:
        """theta = E[x|z]: [batch, *shape], from z [batch, *latent_shape]."""
        latents = arguments.latents(z, self.latent_shape)

        def work(chunk: slice) -> Floats:
            return self.likelihood.mean(self._finite_parameters(latents[chunk], chunk.start))

        return self._restore(self._gather(len(latents), self.observation.shape, work))

    def parameters(self, z: ArrayLike) -> Floats:
        """The likelihood's natural parameters, for Bernoulli the logits: float32, from z [batch, *latent_shape].

        They have the observations' shape, or, where a value has several, that many times its first axis.
        """
        latents = arguments.latents(z, self.latent_shape)

        def work(chunk: slice) -> Floats:
            return self._finite_parameters(latents[chunk], chunk.start)

        return self._gather(len(latents), self._parameter_shape, work)

    def sample(self, n: int, seed: int = 0, mean: bool = False, start: int = 0) -> Measured:
        """Draw observations start..start+n-1 of this seed, x ~ p(x|z) with z ~ p(z): [n, *shape].

        With `mean`, E[x|z] instead of draws.
        """
        seed, start, n = self._check_range(seed, start, n)
        return self._restore(
            self._gather(n, self.observation.shape, lambda chunk: self._draw(chunk, seed, mean, start))
        )

    def sample_batches(self, n: int, seed: int = 0, mean: bool = False, start: int = 0) -> Iterator[Measured]:
        """What `sample(n, seed, mean, start)` gives, in batches [at most `rows`, *shape], in constant memory."""
        seed, start, n = self._check_range(seed, start, n)
        return self._map(lambda chunk: self._restore(self._draw(chunk, seed, mean, start)), chunks(n, self.rows))

    def reconstruct(self, x: Given) -> Measured:
        """theta = E[x|z] at z = mu(x): [batch, *shape]."""
        return self.decode(self.encode(x)[0])

    def binarise(self, x: Given, seed: int = 0, start: int = 0) -> Floats:
        """Draw binary observations with P(1) = x, as training does: float32 {0, 1} of x's shape.

        Equal ones get equal draws. Binary ones stay as they are. `start`: the first one's number, for errors. Raises
        ArgumentError where the observations' values are no probabilities.
        """
        if self.observation.range != (0, 1):
            raise ArgumentError("values that are no probabilities", self.observation.range, "use observe instead")
        seed, start, _ = self._check_range(seed, start)
        observations = self.standardise(x, start)

        def draw(chunk: slice) -> Floats:
            grey = observations[chunk]
            uniforms = noise.uniform(seed, noise.BINARISATION, noise.index(grey), self.observation.size)
            return (uniforms.reshape(grey.shape) < grey).astype(np.float32)

        return self._gather(len(observations), self.observation.shape, draw)

    def observe(self, x: Given, seed: int = 0, start: int = 0) -> Measured:
        """Observations as the likelihood knows them and as training took them, ready to be scored.

        Binarised for Bernoulli, rounded to 8-bit levels for the discretised logistic, as they are for others. `start`
        as in `binarise`.
        """
        if self.likelihood.binary:
            return self.binarise(x, seed, start)
        return self._restore(self.likelihood.nearest(self.standardise(x, start)))

    def off_support(self, x: Given) -> NDArray[np.bool_]:
        """Which observations `observe` changes: those with a value off the likelihood's support, bool [batch].

        Under a Bernoulli likelihood these are the grey ones, under one of 8-bit levels those between the levels.
        """
        return likelihoods.outside(self.likelihood, self.standardise(x))

    def terms(
        self,
        x: Given | Iterator[Given],
        num_samples: int = 1,
        seed: int = 0,
        start: int = 0,
        observe: bool = False,
        contributions: bool = False,
    ) -> Terms:
        """Both terms of the ELBO: reconstruction averaged over `num_samples` draws of z, and the KL, in closed form.

        Where the prior has no closed form of it, the KL is averaged over the draws too.

        x must lie in the likelihood's support: for Bernoulli, binary. Equal observations get equal figures, alone or
        among others. `start` is the number of the first one, for errors; no figure depends on it.

        With `observe`, they are as `observe` takes them. A grey one under a Bernoulli likelihood is drawn as binary
        anew for each draw of z: the terms are means over k of those of x_k ~ Bernoulli(x), z_k ~ q(z|x_k), and their
        standard error covers both. With `contributions`, the terms have those of each value too.
        """
        work = partial(draws.averaged_terms if observe else draws.terms, contributions=contributions)
        parts = list(self._map_blocks(work, x, num_samples, seed, start, observe))
        return Terms.joined(parts or [draws.no_terms(self.prior)])

    def elbo(self, x: Given | Iterator[Given], num_samples: int = 1, seed: int = 0, start: int = 0) -> Nats:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, float64 [batch]; higher is better.

        Kingma and Welling (2014, arXiv:1312.6114), eq. 7, with `num_samples` draws of z per observation.
        x must lie in the likelihood's support: for Bernoulli, binary. Of grey ones, `observe` makes one binary draw,
        and `scores.score` averages over several. An iterator over such batches is scored as one long batch, in constant
        memory. `start` as in `terms`.
        """
        return _join([terms.elbo for terms in self._map_blocks(draws.terms, x, num_samples, seed, start)])

    def log_likelihood(self, x: Given | Iterator[Given], num_samples: int = 64, seed: int = 0, start: int = 0) -> Nats:
        """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x), K = num_samples: nats, float64 [batch].

        Burda et al. (2016, arXiv:1509.00519), eq. 8: a lower bound of log p(x) that tightens as K grows. x and
        `start` as in `elbo`.
        """
        return _join(list(self._map_blocks(draws.bound, x, num_samples, seed, start)))

    def score(self, x: Given | Iterator[Given], num_samples: int | None = None, seed: int = 0) -> "Scores":
        """The ELBO of observations, its terms and rank, grey ones too: `scores.score` of them, in nats, [batch].

        num_samples: None takes `scores.NUM_SAMPLES` draws of z.
        """
        from vae_runtime import scores

        return scores.score(self, x, scores.NUM_SAMPLES if num_samples is None else num_samples, seed)

    def contributions(self, x: Given | Iterator[Given], num_samples: int = 16, seed: int = 0, start: int = 0) -> Nats:
        """What each value adds to log p(x|z), a mean over the draws of z that `terms` takes: nats, float64 [n, *shape].

        Over an observation they sum to its reconstruction term. x, `num_samples` and `start` as in `elbo`.
        """
        each = self.terms(x, num_samples, seed, start, contributions=True).contributions
        return np.zeros((0, *self.observation.shape)) if each is None else each

    def _map_blocks(
        self,
        work: Callable[[Model, Block, int, int], R],
        x: Given | Iterator[Given],
        num_samples: int = 1,
        seed: int = 0,
        start: int = 0,
        observe: bool = False,
    ) -> Iterator[R]:
        """What `work` makes of a few observations at a time, given the model, them, num_samples and seed; in order.

        A few are what `rows_per_run` says, as the networks take them; `work` runs in threads. The rest as in `terms`.
        """
        seed, start, _ = self._check_range(seed, start)
        num_samples = arguments.integer(num_samples, "num_samples", 1, MOST_SAMPLES)
        rows = self.rows_per_run(num_samples)

        def blocks() -> Iterator[Block]:
            seen = start
            for batch in given.batches(self, x):
                observations = self.standardise(batch, seen)
                if observe and not self.likelihood.binary:  # binary ones are drawn while they are weighed
                    observations = self.likelihood.nearest(observations)
                elif not observe:
                    likelihoods.check(self.likelihood, observations, self.observation.noun, seen)
                numbers = np.arange(seen, seen + len(observations), dtype=np.uint64)
                for i in chunks(len(observations), rows):
                    yield Block(numbers[i], observations[i])
                seen += len(observations)

        return self._map(lambda block: work(self._model, block, num_samples, seed), blocks())

    def rows_per_run(self, num_samples: int) -> int:
        """How many observations with `num_samples` draws of z each a thread scores at a time."""
        return max(1, min(_MOST_DRAWS // num_samples, self._rows_of(_BYTES_TO_SCORE + _BYTES_TO_WEIGH)))

    def _rows_of(self, bytes_for_each: int) -> int:
        """How many rows a thread may have in work, of so many bytes for each parameter, besides those in the graph."""
        row = math.prod(self._parameter_shape) * bytes_for_each + self._working_bytes
        return max(1, self.memory // (self.threads * row))

    @property
    def names(self) -> list[str]:
        """What the columns of a row, or the channels of a series, are called; of images none."""
        numbered = [] if self.observation.kind == IMAGE else [f"column {i}" for i in range(self.observation.shape[0])]
        return [column.name for column in self.columns] or numbered

    @property
    def ranks(self) -> "Ranks":
        """The quantiles of the test observations' ELBO. Raises BundleError where the bundle keeps none."""
        from vae_runtime.ranks import Ranks

        return Ranks.of(self.manifest.evaluation)

    def percentile(self, elbo: ArrayLike) -> Nats:
        """How many percent of the model's test observations have a lower ELBO: float64 of elbo's shape.

        Interpolated between the quantiles that the bundle keeps, of one draw of z for each of them, and no finer
        than these are many: of n the ends are 100/n and 100 - 100/n, or 0.1 and 99.9 where n is over 1,000; they
        stand for all beyond them. Raises BundleError where it keeps none. A rank by ELBO alone says little of
        observations unlike those: what are easy to describe, such as black ones, rank high.
        """
        return self.ranks.percentile(elbo)

    def close(self) -> None:
        """Free the sessions. A closed VAE raises ArgumentError when it is used."""
        self._sessions.close()

    def __enter__(self) -> "VAE":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        x = f"{self.observation.noun}s {list(self.observation.shape)}, {self.likelihood.name}"
        return f"<vae_runtime.VAE {self.path.name!r}: {x}; latents {list(self.latent_shape)}, {self.prior.name}>"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path, "sha256": self.manifest.sha256, "threads": self.threads, "memory": self.memory,
            "standardised": self.standardised,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        bundle = bundles.reread(state["path"], state["sha256"])
        self.__init__(bundle, state["threads"], state["memory"], state["standardised"])  # type: ignore[misc]

    def _restore(self, x: Floats) -> Measured:
        """What the networks speak of, as it is measured."""
        return x if self._scaling is None else self._scaling.restore(x)

    def _finite_parameters(self, z: Floats, start: int) -> Floats:
        """The likelihood's natural parameters for rows start.. of z, or InputError."""
        return arguments.finite(self._sessions.decode(z), "row", start)

    def _draw(self, chunk: slice, seed: int, mean: bool, start: int) -> Floats:
        """The samples of one chunk, counted from `start`."""
        index = np.arange(start + chunk.start, start + chunk.stop, dtype=np.uint64)
        parameters = self._finite_parameters(self.prior.sample(seed, index), int(index[0]))
        if mean:
            return self.likelihood.mean(parameters)
        return likelihoods.draw(self.likelihood, parameters, seed, index, self.observation.shape)

    def _map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return threads.ordered_map(self.threads, work, items)

    def _gather(self, n: int, shape: tuple[int, ...], work: Callable[[slice], Floats]) -> Floats:
        """The arrays that `work` makes of each chunk of n rows, joined: [n, *shape]."""
        try:
            result = np.empty((n, *shape), np.float32)
        except (MemoryError, ValueError, OverflowError):
            raise ResourceError("out of memory", f"{n} rows", "ask for fewer at a time") from None
        for chunk, part in zip(chunks(n, self.rows), self._map(work, chunks(n, self.rows)), strict=True):
            result[chunk] = part
        return result

    @staticmethod
    def _check_range(seed: int, start: int, n: int = 1) -> tuple[int, int, int]:
        """The three as Python's integers, which do not overflow as NumPy's do."""
        start = arguments.integer(start, "start", 0, 2**63 - 1)
        return noise.check_seed(seed), start, arguments.integer(n, "number of samples", 1, 2**63 - 1)


def _join(parts: list[Nats]) -> Nats:
    return np.concatenate(parts) if parts else np.zeros(0)
