"""What defines a training run: frozen dataclasses of settings, and the named presets that fill them."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vae_runtime import records
from vae_runtime.errors import ArgumentError
from vae_runtime.observation import IMAGE, SERIES, VECTOR, Observation, Shape

DATASETS = ("mnist", "fashion-mnist", "kmnist", "digits")  # anything else is a path
ARCHITECTURES = ("mlp", "resnet", "conv1d")
ACTIVATIONS = ("relu", "silu", "gated")
LIKELIHOODS = ("bernoulli", "gaussian", "heteroscedastic-gaussian", "student-t", "mixed", "discretised-logistic")
LEARN_SIGMA = ("gaussian", "student-t", "auto")
PRIORS = ("standard-normal", "flow")
AUTO = "auto"
SIGMAS = ("one", "column", "value")
MISSING = ("refuse", "drop")
SPLITS = ("hash", "last", "blocks")
AUGMENTS = ("flips", "upside-down", "shifts")
GRADIENTS = ("path", "total")
PRECISIONS = ("float32", "bfloat16", "auto")
_LARGEST = 1_000_000
_MANY_ROWS, _STEPS = 5_000, 10_000  # of the preset for rows
FULL_SCALE = 65535  # of 16-bit levels


def _check_sizes(sizes: Iterable[tuple[str, int]]) -> None:
    for name, size in sizes:
        if not 1 <= size <= _LARGEST:
            raise ArgumentError(f"{name} out of range", size, f"give 1 to {_LARGEST:,}")


def _check_choices(part: object, **choices: tuple[str, ...]) -> None:
    for name, known in choices.items():
        if getattr(part, name) not in known:
            raise ArgumentError(f"{name} not known", getattr(part, name), f"give one of {', '.join(known)}")


@dataclass(frozen=True)
class DataConfig:
    """What is observed.

    dataset: one of DATASETS, or the path of a folder of images or tables, of a table, or of an array of images or rows
    of numbers. image_size (height and width) and channels are for folders. levels: the 16-bit level that is 1.0, such
    as 4095 of 12 bits. window: how many rows in order of time are one observation, a series; None where each row is
    one. stride: from how many rows on the next window begins; None for what suits the number of rows. columns: of a
    table, those to train on, and None for all of numbers; encode: those of which columns of 0 and 1 are made, one for
    each value; label: its column of classes. normal: the label of the rows to train on, half of them, or of series all
    but a tenth. missing: whether to "refuse" rows with a missing value or to "drop" them. held_out: which tenth of the
    rows is kept for testing, by their "hash", or the "last" one, or of series in "blocks" of two windows' length from
    all over. augment: how images that are trained on are changed anew in every batch, ways out of AUGMENTS. test: the
    path of what to test on, of the same kind, where all of `dataset` is trained on; None for a part of that.
    """

    dataset: str = "mnist"
    image_size: tuple[int, ...] | None = None
    channels: int | None = None
    levels: int | None = None
    columns: tuple[str, ...] | None = None
    encode: tuple[str, ...] | None = None
    window: int | None = None
    stride: int | None = None
    label: str | None = None
    normal: str | None = None
    missing: str = "refuse"
    held_out: str = "hash"
    augment: tuple[str, ...] = ()
    test: str | None = None

    def __post_init__(self) -> None:
        _check_sizes(("image_size", side) for side in self.image_size or ())
        if self.image_size is not None and len(self.image_size) != 2:
            raise ArgumentError("image_size out of range", self.image_size, "give height and width")
        if self.levels is not None and not 1 <= self.levels <= FULL_SCALE:
            raise ArgumentError("levels out of range", self.levels, f"give 1 to {FULL_SCALE}")
        if self.channels not in (None, 1, 3):
            raise ArgumentError("channels out of range", self.channels, "give 1 (grey) or 3 (RGB)")
        _check_sizes((name, size) for name in ("window", "stride") if (size := getattr(self, name)) is not None)
        if self.stride is not None and self.window is None:
            raise ArgumentError("a stride without a window", self.stride, "add --window, or leave it out")
        if self.test is not None and self.dataset in DATASETS:
            raise ArgumentError("a named set has its own test images", self.dataset, "leave out --test")
        if self.window is not None and self.dataset in DATASETS:
            raise ArgumentError("a window of images", self.dataset, "leave out --window, or name a table or an array")
        _check_choices(self, missing=MISSING, held_out=SPLITS)
        if self.window is not None and self.held_out == "hash":  # overlapping windows of both sides would share rows
            object.__setattr__(self, "held_out", "blocks")
        if unknown := sorted(set(self.augment) - set(AUGMENTS)):
            raise ArgumentError("augment not known", unknown[0], f"give some of {','.join(AUGMENTS)}")


@dataclass(frozen=True)
class NetworkConfig:
    """The encoder, the decoder and the likelihood between them.

    architecture: "mlp" with layers `hidden` and `activation`; "resnet" with `hidden` channels at each halving of the
    image, `blocks` residual blocks there, and a layer of width `dense`; or "conv1d" with `hidden` channels at each
    halving of the series and a layer of width `dense`. The decoder mirrors the encoder.
    model: a person's own networks in its place, "package.module:function".
    likelihood: that of the observations; where it is one of binary values, grey pixels are drawn as such, anew in every
    batch, with P(1) = level / 255; "auto" is settled by what the columns of rows hold, and a run records what it was.
    sigma: whether all values share a learned sigma ("one"), those of a "column" or
    channel do, or each "value" has its own; None for one of images, and one for each column of others.
    prior: "standard-normal", or "flow", which is learned with the networks.
    """

    architecture: str = "mlp"
    hidden: tuple[int, ...] = (400,)
    activation: str = "relu"
    blocks: int = 1
    dense: int = 256
    model: str | None = None
    latent_dim: int = 20
    likelihood: str = "bernoulli"
    sigma: str | None = None
    prior: str = "standard-normal"

    def __post_init__(self) -> None:
        _check_sizes((name, getattr(self, name)) for name in ("latent_dim", "blocks", "dense"))
        _check_sizes((f"hidden layer {i}", width) for i, width in enumerate(self.hidden))
        if not self.hidden:
            raise ArgumentError("no hidden layers", self.hidden, "give at least one width")
        _check_choices(
            self, architecture=ARCHITECTURES, activation=ACTIVATIONS, likelihood=(*LIKELIHOODS, AUTO), prior=PRIORS
        )
        if self.sigma is not None:
            _check_choices(self, sigma=SIGMAS)
            if self.likelihood not in LEARN_SIGMA:
                todo = f"leave it out, or add --likelihood {LEARN_SIGMA[0]}"
                raise ArgumentError("--sigma does not go with this likelihood", self.likelihood, todo)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What training descends; `vae_train.objectives` explains it. warm_up: epochs in which beta grows from 0."""

    samples: int = 1
    gradient: str = "path"
    beta: float = 1.0
    warm_up: float = 0.0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        _check_sizes([("samples", self.samples)])
        for name in ("beta", "warm_up", "free_bits"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ArgumentError(f"{name} out of range", value, "give 0 or more")
        _check_choices(self, gradient=GRADIENTS)
        if self.samples > 1 and (self.beta != 1 or self.warm_up or self.free_bits):
            todo = "leave out --beta, --warm-up and --free-bits, or --samples"
            raise ArgumentError("a weighted KL in the importance-weighted bound", f"--samples {self.samples}", todo)


@dataclass(frozen=True)
class OptimiserConfig:
    """How training descends it: Adam under a one-cycle schedule, whose peak is `lr`.

    epochs: passes over what is trained on; None for as many as make `steps`, or fewer: a training ends there when the
    test ELBO has not risen for `patience` steps, unless that is None, and keeps the weights with the highest one.
    precision: in which products are computed; weights are always float32. "auto" is settled when a training begins, and
    a run records what it was.
    """

    epochs: int | None = None
    batch_size: int = 128
    lr: float = 7e-3
    precision: str = "float32"
    seed: int = 0
    steps: int = 2345  # five passes over MNIST in batches of 128
    patience: int | None = 1000

    def __post_init__(self) -> None:
        sizes = ((name, getattr(self, name)) for name in ("epochs", "batch_size", "steps", "patience"))
        _check_sizes((name, size) for name, size in sizes if size is not None)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ArgumentError("learning rate out of range", self.lr, "give a positive --lr")
        _check_choices(self, precision=PRECISIONS)

    def steps_per_epoch(self, observations: int) -> int:
        """For so many observations to train on; the last batch may be smaller."""
        return -(-observations // self.batch_size)

    @property
    def patient(self) -> bool:
        """Whether the test ELBO says when a training ends and which weights are kept."""
        return self.epochs is None and self.patience is not None

    def most_epochs(self, observations: int) -> int:
        """Over so many observations to train on: `epochs`, or what makes `steps`."""
        return self.epochs or -(-self.steps // self.steps_per_epoch(observations))


@dataclass(frozen=True)
class Config:
    """All settings of a run; each part raises ArgumentError for what cannot be. preset: what filled them."""

    preset: str
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()

    def __post_init__(self) -> None:
        if self.network.prior == "flow" and self.objective.free_bits:
            todo = "leave them out, or take --warm-up"
            raise ArgumentError("a flow's KL has no parts by latent to be free", "--free-bits", todo)

    @property
    def made_by(self) -> str:
        """What made the networks: the preset, or a person's own function."""
        return f"networks {self.network.model}" if self.network.model else f"preset {self.preset}"

    def replace(self, **given: Any) -> "Config":
        """A copy with those settings in `given` that are not None, each by its name in the part that has it."""
        changed: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            if value is not None:
                changed.setdefault(PART_OF[name], {})[name] = value
        return replace(self, **{part: replace(getattr(self, part), **values) for part, values in changed.items()})


_PARTS = {"data": DataConfig, "network": NetworkConfig, "objective": ObjectiveConfig, "optimiser": OptimiserConfig}
PART_OF = {field.name: part for part, kind in _PARTS.items() for field in fields(kind)}  # of each setting by its name


def parse(values: dict[str, Any]) -> Config:
    """The settings in a run's config.json or a bundle's manifest, of this release or of 0.1.

    Raises ValueError for what are no settings, and ArgumentError, which is one, for what cannot be.
    """
    return records.parse(Config, upgraded(values), "config")


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON in parts, from those of release 0.1, which lay in one list; others as they are."""
    if "data" in values:
        return values
    size = values.get("image_size")
    size = [size, size] if isinstance(size, int) else size
    flat = {**values, "architecture": values.get("network"), "image_size": size}
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, part in PART_OF.items():
        if name in flat:
            parts[part][name] = flat[name]
    return {"preset": values.get("preset"), **parts}


@dataclass(frozen=True)
class Place:
    """Where a command works; the same settings mean the same training at every place.

    data_root: folder of the named image sets. download: whether to use the network. device: "auto", "cpu" or "cuda".
    threads: on the CPU; None for the cores there are. trusted: the module of a run's own networks that may be imported.
    dataset: where a run's own images are now; None for where they were.
    """

    data_root: Path
    download: bool = True
    device: str = "auto"
    threads: int | None = None
    trusted: str | None = None
    dataset: Path | None = None

    @property
    def options(self) -> list[str]:
        """What names this place on a command line, but for what is so by default."""
        usual = (None, "auto", "data", os.environ.get("VAE_EDGE_DATA"))
        named = {
            "--model": self.trusted, "--dataset": self.dataset, "--data-root": str(self.data_root),
            "--device": self.device, "--threads": self.threads,
        }  # fmt: skip
        return [word for name, value in named.items() if value not in usual for word in (name, str(value))]


def vector(columns: int, rows: int) -> Config:
    """The preset for rows of numbers: half as many latents as columns, from 2 to 32, and some 10,000 steps.

    These are 4 passes at least and 200 at most, and all are made: a few rows with extreme values, which tables have,
    set the mean test ELBO, so that it says little of when to end. The gradient is the whole one: where sigma is far
    below the prior's, as with sharp columns, that of the path alone jumps (docs/training.md).
    """
    width = 128 if columns <= 32 else 256 if columns <= 128 else 512
    optimiser = OptimiserConfig(batch_size=256 if rows >= _MANY_ROWS else 64, lr=1e-3, patience=None)
    each = optimiser.steps_per_epoch(max(1, rows))
    steps = each * min(200, max(4, math.ceil(_STEPS / each)))
    latents = min(32, max(2, columns // 2))
    return Config(
        "vector",
        network=NetworkConfig(hidden=(width, width), activation="silu", latent_dim=latents, likelihood=AUTO),
        objective=ObjectiveConfig(gradient="total"),
        optimiser=replace(optimiser, steps=steps),
    )


def series(shape: Shape, windows: int) -> Config:
    """The preset for series [C, T], so many of them: a convolution for each halving down to some 8 steps.

    A latent for 4 numbers of a window, from 4 to 32; 10,000 steps at most. The rate is twice as high: sigma
    starts at the values' spread, is far smaller in the end where series are smooth, and moves with the rate.
    """
    rows = vector(math.prod(shape), windows)
    halvings = min(5, max(1, (shape[1] // 8).bit_length() - 1))
    hidden = (32, *(64 for _ in range(halvings - 1)))
    latents = min(32, max(4, math.prod(shape) // 4))
    network = replace(
        rows.network, architecture="conv1d", hidden=hidden, dense=128, latent_dim=latents, likelihood="gaussian"
    )
    optimiser = replace(rows.optimiser, lr=2e-3, steps=_STEPS, patience=2000)
    return replace(rows, preset="series", network=network, optimiser=optimiser)


PRESETS = {
    "tutorial": Config("tutorial"),
    "deep": Config(
        "deep",
        network=NetworkConfig(hidden=(512, 512), activation="silu", latent_dim=32),
        optimiser=OptimiserConfig(batch_size=64, lr=3e-3, steps=4690),
    ),
    "gated": Config(
        "gated",
        network=NetworkConfig(hidden=(300, 300), activation="gated", latent_dim=40),
        optimiser=OptimiserConfig(batch_size=64, lr=3e-3, steps=4690),
    ),
    "resnet": Config(
        "resnet",
        network=NetworkConfig("resnet", hidden=(32, 32), latent_dim=40),
        optimiser=OptimiserConfig(lr=2e-3, precision="auto"),
    ),
    "resnet-colour": Config(
        "resnet-colour",
        network=NetworkConfig("resnet", hidden=(32, 64, 128), latent_dim=64, likelihood="discretised-logistic"),
        objective=ObjectiveConfig(gradient="total"),  # colours have a posterior far sharper than the prior
        optimiser=OptimiserConfig(batch_size=32, lr=1e-3, precision="auto", steps=8000, patience=2000),
    ),
    "vector": vector(columns=9, rows=20_000),
    "series": series((1, 64), 10_000),
}


def preset(name: str, observation: Observation, count: int) -> Config:
    """The preset of this name, in the sizes that so many observations need. Raises ArgumentError for an unknown one."""
    if name not in PRESETS:
        raise ArgumentError("unknown preset", name, f"give one of {', '.join(PRESETS)}")
    if name == "series" and observation.kind != SERIES:
        which = f"--preset series for {observation.noun}s"
        raise ArgumentError("a preset of windows", which, "add --window, how many rows in order are one")
    if name == "series":
        return series(observation.shape, count)
    return vector(observation.size, count) if name == "vector" else PRESETS[name]


def default_preset(observation: Observation) -> str:
    """The preset for such observations where none is named."""
    if observation.kind != IMAGE:
        return "vector" if observation.kind == VECTOR else "series"
    return "tutorial" if observation.shape[0] == 1 else "resnet-colour"
