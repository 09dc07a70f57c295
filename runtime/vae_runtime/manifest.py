"""The manifest of a bundle, each part parsed once into typed objects; what a bundle may lack is None."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vae_runtime import records
from vae_runtime.errors import BundleError
from vae_runtime.observation import IMAGE, Observation, Shape

if TYPE_CHECKING:
    from vae_runtime.measured import Evaluation, Parity, Precision, Provenance

T = TypeVar("T")
FORMAT = 2  # that the exporter writes; format 1, of images alone, is read too
LEARNED_PRIORS = ("flow",)  # which have a graph
_NO_DIGEST = "0" * 64
_MOST = 2**31  # of any size
_NAMED = 8  # columns in a line
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # as Pillow calls them


@dataclass(frozen=True)
class Named:
    """A likelihood or a prior: its name, and what else the contract says of it."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contract:
    """What the graphs of a bundle agree on; the JSON that it was read from is in each graph's metadata.

    pair: what graphs that belong together share. latent_shape: of z, the batch aside.
    """

    pair: str
    observation: Observation
    latent_shape: Shape
    prior: Named
    likelihood: Named

    def __post_init__(self) -> None:
        if not self.latent_shape or not all(0 < size < _MOST for size in self.latent_shape):
            raise ValueError(f"latent_shape is {list(self.latent_shape)}")

    @property
    def learned_prior(self) -> bool:
        """Whether the prior has a graph of its own."""
        return self.prior.name in LEARNED_PRIORS

    def json(self) -> dict[str, Any]:
        """The contract as it is written, in the manifest and in each graph."""
        written: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self)}))  # lists for tuples
        for part in (written["prior"], written["likelihood"]):
            if not part["settings"]:
                del part["settings"]
        return written


@dataclass(frozen=True)
class File:
    """One file of a bundle: its size in bytes, and its sha256."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not 0 < self.size < _MOST:
            raise ValueError(f"size is {self.size}")


@dataclass(frozen=True)
class Column:
    """A column of rows of numbers, or a channel of series: the networks take (value - mean) / scale of it.

    of, value: of a column of 0 and 1 that is made of another, that one's name and the value for which it is 1.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    of: str | None = None
    value: str | None = None

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale:g}")


@dataclass(frozen=True)
class Windows:
    """How rows in order of time become series: a window begins at every `stride`th row.

    time: the column of the rows' times, where there is one; interval: what usually lies between two of them, in its
    unit, or seconds of dates; None where that varies, or is not known.
    """

    stride: int
    time: str | None = None
    interval: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.stride < _MOST:
            raise ValueError(f"stride is {self.stride}")
        if self.interval is not None and self.interval <= 0:
            raise ValueError(f"interval is {self.interval:g}")

    def in_words(self) -> str:
        """How often one begins, and how far apart in time rows are."""
        begins = "at every row" if self.stride == 1 else f"every {self.stride} rows"
        times = "" if self.interval is None else f", rows are {self.interval:g} apart in time"
        return f"windows begin {begins}" + times + (f" (column {self.time})" if times and self.time else "")


@dataclass(frozen=True)
class Step:
    """A step on the way from a picture to the model's size: `resize`, or `crop` about the centre.

    resize: (H, W), or (S,) for the shorter side, the other one in proportion; filter: Pillow's, antialiased but for
    nearest. crop: (H, W), with black around a smaller picture.
    """

    resize: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    filter: str = "bilinear"
    others: dict[str, Any] = field(default_factory=dict, metadata=records.OTHERS, repr=False)

    def __post_init__(self) -> None:
        _refuse(self.others)
        sizes = self.resize or self.crop
        if bool(self.resize) == bool(self.crop) or len(sizes) > 2 or len(self.crop) == 1:
            raise ValueError("a step has either resize, [S] or [H, W], or crop, [H, W]")
        if not all(0 < size < _MOST for size in sizes):
            raise ValueError(f"{'resize' if self.resize else 'crop'} is {list(sizes)}")
        if self.filter not in FILTERS:
            raise ValueError(f"filter is {self.filter!r}, and none of {', '.join(FILTERS)}")

    def in_words(self) -> str:
        """What it does to a picture."""
        height, *width = self.resize or self.crop
        if self.crop:
            return f"cut to the {height} x {width[0]} at the centre"
        to = f"{height} x {width[0]}" if width else f"{height} at the shorter side"
        return f"resized to {to} ({self.filter})"


@dataclass(frozen=True)
class NetworkTakes:
    """For people: a network's input, which its graphs make of images: (x - mean) / std of each of its channels.

    colours: their order where it is not that of the images, "BGR".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    colours: str | None = None

    def __post_init__(self) -> None:
        if not (self.mean and self.std):
            raise ValueError("mean or std has no numbers")

    def in_words(self) -> str:
        """What it takes: a number, or where they differ one for each channel."""
        mean, std = (
            f"{each[0]:.4g}" if len({*each}) == 1 else f"[{', '.join(f'{value:.4g}' for value in each)}]"
            for each in (self.mean, self.std)
        )
        return f"(x - {mean}) / {std}" + (f", in {self.colours}" if self.colours else "")


@dataclass(frozen=True)
class Preprocessing:
    """How files become observations. full_scale: the level of 16-bit images that is 1.0; None for 65535.

    steps: how pictures reach the model's size; none for a cut at the centre to its aspect ratio, and a bicubic resize.
    grey: whether colours become grey, of a model of three channels too. columns: those of an observation, in order;
    none where arrays are taken as they are. windows: of series.
    levels, split, rounded, overlap, network_takes: for people, what was done in training, and is in the graphs.
    unreadable: how many files were left out there.
    Raises ValueError for what else there is, since a runtime that knows it would prepare files otherwise.
    """

    full_scale: int | None = None
    columns: tuple[Column, ...] = ()
    windows: Windows | None = None
    steps: tuple[Step, ...] = ()
    grey: bool = False
    levels: str | None = None
    split: str | None = None
    rounded: str | None = None
    overlap: float | None = None
    network_takes: NetworkTakes | None = None
    unreadable: int = 0
    others: dict[str, Any] = field(default_factory=dict, metadata=records.OTHERS, repr=False)

    def __post_init__(self) -> None:
        if self.full_scale is not None and not 0 < self.full_scale < 2**16:
            raise ValueError(f"full_scale is {self.full_scale}")
        _refuse(self.others)

    def in_words(self) -> str:
        """What becomes of a picture, or of columns, before the network sees them; empty where that is the usual."""
        words = []
        if self.steps:
            words.append("pictures are " + ", then ".join(step.in_words() for step in self.steps))
        if self.grey:
            words.append("colours become grey")
        if self.network_takes is not None:
            words.append(f"the graphs give the network {self.network_takes.in_words()}")
        if self.columns:
            names = [column.name for column in self.columns]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            words.append(f"(value - mean) / scale of each column, {', '.join(names[:_NAMED])}{more}")
        if self.windows is not None:
            words.append(self.windows.in_words())
        return "; ".join(words)


@dataclass(frozen=True)
class Graphs:
    """What the graphs ask of a runtime. operators: how many of each, by name, of each graph.

    working_bytes: of each graph, what the values between its layers take for each observation.
    """

    opset: int
    ir_version: int
    min_onnxruntime: str
    operators: dict[str, dict[str, int]] = field(default_factory=dict)
    working_bytes: dict[str, int] = field(default_factory=dict)


def _refuse(others: dict[str, Any]) -> None:
    """Raise ValueError for what this release would leave aside, and a later one follow."""
    if others:
        raise ValueError(f"{next(iter(others))} is not known to this release")


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of itself. raw: the JSON that it was parsed from.

    parameters: how many numbers were trained. settings: those of the training by name, for people. What was measured
    is parsed when it is first asked for, which raises BundleError where it is not what it must be: whoever draws a
    sample waits for none of it.
    """

    sha256: str
    contract: Contract
    files: dict[str, File]
    parameters: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = Preprocessing()
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shape, steps = self.contract.observation.shape, self.preprocessing.steps
        if steps and (steps[-1].resize or steps[-1].crop) != shape[1:]:
            raise ValueError(f"preprocessing.steps do not end at {list(shape[1:])}")

    @cached_property
    def onnx(self) -> Graphs | None:
        """What the graphs ask of a runtime."""
        return self._part(Graphs, "onnx")

    @cached_property
    def provenance(self) -> "Provenance | None":
        """How the model was made."""
        from vae_runtime.measured import Provenance

        return self._part(Provenance, "provenance")

    @cached_property
    def evaluation(self) -> "Evaluation | None":
        """What the model was measured on, and its figures."""
        from vae_runtime.measured import Evaluation

        return self._part(Evaluation, "evaluation")

    @cached_property
    def parity(self) -> "Parity | None":
        """The numeric gate's report."""
        from vae_runtime.measured import Parity

        return self._part(Parity, "parity")

    @cached_property
    def precision(self) -> "Precision | None":
        """What smaller graphs than float32's cost."""
        from vae_runtime.measured import Precision

        return self._part(Precision, "precision")

    def _part(self, kind: type[T], name: str) -> T | None:
        if (written := self.raw.get(name)) is None:
            return None
        of_format_1 = self.raw["contract"]["format"] == 1
        if of_format_1 and isinstance(written, dict) and "images" in written:  # as that format calls them
            written = {**written, "observations": written["images"]}
        try:
            return records.parse(kind, written, name)
        except (ValueError, RecursionError) as error:
            raise _not_understood("a part of it", error) from None


def parse(raw: bytes, file: Path, needed: tuple[str, ...]) -> Manifest:
    """The manifest that these bytes are; `needed` are the files that it must name.

    Raises BundleError, with `file`, where its own digest differs, its format is not known, or a part of it is not what
    it must be.
    """
    try:
        found = json.loads(raw, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
        digest = found["sha256"]
        if not isinstance(digest, str) or _digest(raw, digest) != digest:
            raise BundleError("bundle damaged (the manifest's sha256 differs)", file, "copy or export it again")
        if type(written := found["contract"]["format"]) is not int or written not in (1, FORMAT):
            known = f"this release reads format {FORMAT}, and 1"
            raise BundleError(f"bundle of format {repr(written)[:40]}", file, known)
        manifest = of(found)
        if missing := [name for name in needed if name not in manifest.files]:
            raise ValueError(f"files.{missing[0]} is missing")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_understood(str(file), error) from None
    return manifest


def _not_understood(which: str, error: Exception) -> BundleError:
    reason = f"{type(error).__name__}: {error}"[:120]
    return BundleError("bundle's manifest not understood", f"{which} ({reason})", "copy or export it again")


def of(written: dict[str, Any]) -> Manifest:
    """The manifest that such JSON is, of either format. Raises ValueError, KeyError or TypeError where it is none."""
    contract = written["contract"]
    now = {**written, "contract": _upgraded(contract)} if contract["format"] == 1 else written
    return records.parse(Manifest, {**now, "raw": written})


def dump(manifest: dict[str, Any]) -> bytes:
    """The manifest as JSON with its own `sha256` filled in."""
    raw = json.dumps({"sha256": _NO_DIGEST, **manifest}, indent=1, allow_nan=False).encode() + b"\n"
    return raw.replace(_NO_DIGEST.encode(), hashlib.sha256(raw).hexdigest().encode(), 1)


def _upgraded(contract: dict[str, Any]) -> dict[str, Any]:
    """A contract of format 1, as one of format 2."""
    image, likelihood = contract["image"], contract["likelihood"]
    settings = {name: value for name, value in likelihood.items() if name != "name"}
    return {
        "pair": contract.get("pair", ""),
        "observation": {
            "kind": IMAGE,
            "shape": [image[side] for side in ("channels", "height", "width")],
            "range": [0, 1],
        },
        "latent_shape": [contract["latent_dim"]],
        "prior": {"name": contract["prior"]},
        "likelihood": {"name": likelihood["name"], "settings": settings},
    }


def _digest(raw: bytes, digest: str) -> str:
    """sha256 of the manifest's bytes with its own `sha256` value replaced by zeros."""
    return hashlib.sha256(raw.replace(digest.encode(), _NO_DIGEST.encode(), 1)).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of two equal keys, one reader would take the first and another the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice")
    return made


def _finite(text: str) -> float:
    """A number that JSON can hold: not NaN, and not infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number is {number}")
    return number
