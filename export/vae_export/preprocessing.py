"""Preprocessing said as data, of a network trained elsewhere; torchvision's usual transforms are translated into it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from vae_runtime import records
from vae_runtime.errors import ArgumentError
from vae_runtime.manifest import Step
from vae_runtime.observation import IMAGE, Observation

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

COLOURS = ("RGB", "BGR", "grey")
_CHANNELS = "give one number, or one for each channel"
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_SAME = {"ToPILImage", "ToImage", "PILToTensor", "ToPureTensor", "Identity", "RGB"}
_DRAWN = {
    "ColorJitter", "GaussianBlur", "GaussianNoise", "ElasticTransform", "AutoAugment", "RandAugment",
    "TrivialAugmentWide", "AugMix", "ScaleJitter", "MixUp", "CutMix", "JPEG",
}  # fmt: skip
_AS_DATA = (
    "leave it out and say it beside the transforms: x * 2 - 1 is mean=0.5, std=0.5, x[[2, 1, 0]] is colours='BGR'"
)
_TODO = {
    "": _AS_DATA,  # of what is not torchvision's
    "Lambda": _AS_DATA,
    "Pad": "write CenterCrop((height, width)), which puts black around what is smaller",
}
_ELSE = "leave it out, and do to the files what it does"

Numbers = tuple[float, ...]
Said = TypeVar("Said", bound="DataclassInstance")


@dataclass(frozen=True)
class Images:
    """What a network of images takes: (x - mean) / std of images x in [0, 1], and how pictures become such images.

    mean, std: one number, or one for each channel, in the order in which the network takes these. colours: "RGB",
    "BGR" or "grey"; None for RGB where there are three channels, and grey where there is one. steps: how a picture
    reaches the network's size, in order; none where its own size does not matter, or is always the network's.

    Mean and std, and the order of the colours, become part of the graphs: whoever runs them gives images in [0, 1].
    Raises ArgumentError, naming the field, where one is not what it must be.

    Example:
        Images(mean=(0.5,), std=(0.5,))  # a network that takes [-1, 1]
        Images(steps=(Step(resize=(256,)), Step(crop=(224, 224))))  # the shorter side to 256, then the centre
    """

    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    colours: str | None = None
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        object.__setattr__(self, "steps", tuple(_step(step) for step in self.steps))
        if min(self.std) <= 0:
            raise ArgumentError(
                "std that is not positive", list(self.std), "give by what the network's input is divided"
            )
        if 1 not in (counts := {len(self.mean), len(self.std)}) and len(counts) > 1:
            raise ArgumentError(
                "mean and std of different channels", f"{len(self.mean)} and {len(self.std)}", _CHANNELS
            )
        if self.colours not in (None, *COLOURS):
            raise ArgumentError("unknown colours", self.colours, f"choose {', '.join(COLOURS)}")

    def completed(self, observation: Observation) -> "Images":
        """The same, in full: mean and std of each channel, steps to the network's size.

        observation: what the network is of.
        Raises ArgumentError where it is of another number of channels, of another size, or of what is no image.
        """
        if observation.kind != IMAGE:
            raise ArgumentError("preprocessing of images", f"for a {observation.noun}", "leave it out")
        channels, *size = observation.shape
        if self.colours in ("RGB", "BGR") and channels != 3:
            raise ArgumentError(f"{self.colours} of {channels} channels", list(observation.shape), "leave colours out")
        values = {}
        for name in ("mean", "std"):
            if len(given := getattr(self, name)) not in (1, channels):
                raise ArgumentError(f"{name} of {len(given)} channels", list(given), f"the network takes {channels}")
            values[name] = given * channels if len(given) == 1 else given
        return replace(self, **values, steps=self._steps_to((size[0], size[1])))

    def entry(self, observation: Observation) -> dict[str, Any]:
        """What a manifest says of it under `preprocessing`.

        observation: what the bundle is of.
        Raises as `completed` does.
        """
        full = self.completed(observation)
        written: dict[str, Any] = {}
        if full.steps:
            written["steps"] = [_written(step) for step in full.steps]
        if full.colours == "grey" and observation.shape[0] == 3:
            written["grey"] = True
        if {*full.mean} != {0.0} or {*full.std} != {1.0} or full.colours == "BGR":
            written["network_takes"] = {"mean": [*full.mean], "std": [*full.std]}
            if full.colours == "BGR":
                written["network_takes"]["colours"] = "BGR"
        return written

    def _steps_to(self, size: tuple[int, int]) -> tuple[Step, ...]:
        """The steps, and the cut that is left to do where the last one leaves the longer side as it comes."""
        if not self.steps:
            return ()
        last = self.steps[-1].resize or self.steps[-1].crop
        if len(last) == 1 and last[0] == min(size):
            return (*self.steps, Step(crop=size))
        if last != size:
            sides = "x".join(map(str, last)) if len(last) == 2 else f"{last[0]} at the shorter side"
            raise ArgumentError("steps to another size", sides, f"the network takes {size[0]}x{size[1]}")
        return self.steps


def of(given: Any) -> Images:
    """Preprocessing from an `Images`, a mapping of its words, or torchvision's transforms, in a Compose or a list.

        of({"mean": 0.5, "std": 0.5, "steps": [{"resize": 64}, {"crop": 64}]})
        of(transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()]))
        of({"transforms": transforms.Compose([...]), "colours": "BGR"})

    A size may be one number: of a resize that of the shorter side, of a crop that of both. Transforms are those of
    evaluation, of torchvision's first or second version, from a Pillow image to the network's input: Resize,
    CenterCrop, Grayscale, a conversion to floats, Normalize. How a file is opened they do not say: the runtime turns
    pictures upright by their EXIF tag, lays transparency over black, and keeps 16-bit levels. What it makes of a file
    are the levels that the transforms make, but for a bilinear Resize of tensors and a Grayscale after a Resize, which
    are rounded otherwise and may be one level of 255 off.
    Raises ArgumentError, which names the word or the transform that cannot be translated, and says what to do.
    """
    if isinstance(given, Images):
        return given
    if isinstance(given, Mapping):
        return from_words(Images, given, "transforms", of)
    translation = _Translation()
    for number, transform in enumerate(_flat(given), start=1):
        translation.add(transform, f"{number}, {_called(transform)}")
    return translation.images()


def from_words(kind: type[Said], given: Mapping[str, Any], translated: str, translate: Callable[[Any], Said]) -> Said:
    """What a mapping says by the fields of `kind`, and by what is to be translated under the word `translated`.

    Raises ArgumentError for another word, and for one that the translated says too.
    """
    known = {each.name: each.default for each in fields(kind)}
    if unknown := [str(name) for name in given if name not in (*known, translated)]:
        raise ArgumentError("unknown word of preprocessing", unknown[0], f"choose {', '.join([*known, translated])}")
    words = {name: value for name, value in given.items() if name != translated}
    made = translate(given[translated]) if translated in given else kind()
    if twice := [name for name in words if getattr(made, name) != known[name]]:
        raise ArgumentError(f"{twice[0]} said twice", f"as a word, and by the {translated}", "leave one of them out")
    return replace(made, **words)


@dataclass
class _Translation:
    """What the transforms so far do to a Pillow image; its levels, or floats, then become (x - mean) / std."""

    steps: list[Step] = field(default_factory=list)
    grey: bool = False
    tensor: bool = False
    floats: bool = False
    normalised: bool = False
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)

    def add(self, transform: Any, called: str) -> None:
        """Take the next transform; `called`: its number and what it is."""
        match _name(transform):
            case "Resize":
                self._resize(transform.size, transform, called)
            case "CenterCrop":
                self._before_normalize(called)
                self.steps.append(Step(crop=_both(transform.size)))
            case "Grayscale":
                self._before_normalize(called)
                self.grey = True
            case "ToTensor":
                self._to_floats(scaled=True)
            case "ConvertImageDtype":
                self._convert(transform.dtype, True, called)
            case "ToDtype":
                self._convert(_dtype(transform.dtype), transform.scale, called)
            case "Normalize":
                self._normalize(numbers("mean", transform.mean), numbers("std", transform.std), called)
            case "ImageClassification":  # what torchvision's weights come with
                self._resize(transform.resize_size, transform, called)
                self.steps.append(Step(crop=_both(transform.crop_size)))
                self._to_floats(scaled=True)
                self._normalize(numbers("mean", transform.mean), numbers("std", transform.std), called)
            case name if name in _SAME:
                if name == "ToPILImage" and self.floats:
                    raise _misplaced(called, "leave it out, and what made floats before it")
                self.tensor = name != "ToPILImage" and (self.tensor or name in ("ToImage", "PILToTensor"))
            case name if name.startswith("Random") or name in _DRAWN:
                todo = "it is drawn anew each time, as in training; give the transforms of evaluation"
                raise ArgumentError("transform cannot be translated", called, todo)
            case name:
                raise ArgumentError("transform cannot be translated", called, _TODO.get(name, _ELSE))

    def images(self) -> Images:
        """All of it. Raises ArgumentError where the transforms end without floats."""
        if not self.floats:
            todo = "end them with ToTensor(), or ToImage() and ToDtype(torch.float32, scale=True)"
            raise ArgumentError("transforms do not end with floats", "no ToTensor", todo)
        return Images(self.mean, self.std, "grey" if self.grey else None, tuple(self.steps))

    def _before_normalize(self, called: str) -> None:
        if self.normalised:
            raise _misplaced(called, "put it before Normalize")

    def _resize(self, size: Any, transform: Any, called: str) -> None:
        self._before_normalize(called)
        if getattr(transform, "max_size", None) is not None:
            raise ArgumentError("transform cannot be translated", called, "leave max_size out, and cut with CenterCrop")
        mode = getattr(transform.interpolation, "value", transform.interpolation)
        filter = _PILLOW.get(mode, mode)
        if self.tensor and (filter != "bilinear" or getattr(transform, "antialias", None) is not True):
            todo = (
                "put it first: the device resizes pictures, which of tensors only bilinear with antialias=True equals"
            )
            raise ArgumentError("transform cannot be translated", called, todo)
        self.steps.append(Step(resize=_sizes(size), filter=filter.removesuffix("-exact")))

    def _convert(self, dtype: Any, scaled: bool, called: str) -> None:
        if str(dtype) == "torch.uint8" and not self.floats:
            return
        if str(dtype) not in ("torch.float32", "torch.float64"):
            raise ArgumentError("transform cannot be translated", called, "the graphs take torch.float32")
        self._to_floats(scaled)

    def _to_floats(self, scaled: bool) -> None:
        if not self.floats and not scaled:
            self.std = (1 / 255,)
        self.tensor = self.floats = True

    def _normalize(self, mean: Numbers, std: Numbers, called: str) -> None:
        """((x - mean) / std - m) / s is (x - (mean + std m)) / (std s)."""
        if not self.floats:
            raise _misplaced(called, "put it after ToTensor or ToDtype")
        count = max(map(len, (self.mean, self.std, mean, std)))
        m0, s0, m, s = (values * count if len(values) == 1 else values for values in (self.mean, self.std, mean, std))
        if not len(m0) == len(s0) == len(m) == len(s):
            raise ArgumentError("mean and std of different channels", called, _CHANNELS)
        self.mean = tuple(a + b * c for a, b, c in zip(m0, s0, m, strict=True))
        self.std = tuple(a * b for a, b in zip(s0, s, strict=True))
        self.normalised = True


def _misplaced(called: str, todo: str) -> ArgumentError:
    return ArgumentError("transforms in an order that cannot be translated", called, todo)


def _flat(given: Any) -> Iterator[Any]:
    """The transforms of a Compose, of a Sequential, or of a list of these, one after the other."""
    if isinstance(given, list | tuple):
        inside: Iterable[Any] = given
    elif _name(given) == "Compose":
        inside = given.transforms
    elif (type(given).__module__, type(given).__name__) == ("torch.nn.modules.container", "Sequential"):
        inside = given
    else:
        yield given
        return
    for each in inside:
        yield from _flat(each)


def _name(transform: Any) -> str:
    """What torchvision calls it; empty of what is not torchvision's own. Nothing is imported to know it."""
    kind = type(transform)
    return kind.__name__ if kind.__module__.startswith("torchvision.transforms") else ""


def _called(transform: Any) -> str:
    """What to call a transform in a message."""
    if name := getattr(transform, "__name__", ""):  # a function
        return str(name)
    if function := getattr(transform, "lambd", None):
        return f"{type(transform).__name__}({getattr(function, '__name__', function)})"
    return repr(transform)[:200] if _name(transform) else type(transform).__name__


def _dtype(given: Any) -> Any:
    """That of images, where a ToDtype names types for several things."""
    if not isinstance(given, Mapping):
        return given
    named = {getattr(key, "__name__", key): dtype for key, dtype in given.items()}
    return next((named[key] for key in ("Image", "Tensor", "others") if key in named), None)


def _sizes(given: Any) -> tuple[int, ...]:
    return (int(given),) if isinstance(given, int) else tuple(int(size) for size in given)


def _both(given: Any) -> tuple[int, ...]:
    sizes = _sizes(given)
    return sizes * 2 if len(sizes) == 1 else sizes


def _step(given: Any) -> Step:
    """A step from a step, or from a mapping of its words. Raises ArgumentError where it is none."""
    if isinstance(given, Step):
        return given
    try:
        sizes = {name: [*read(given[name])] for name, read in (("resize", _sizes), ("crop", _both)) if name in given}
        return records.parse(Step, {**given, **sizes})
    except (AttributeError, TypeError, ValueError) as error:
        todo = "give {'resize': 256, 'filter': 'bicubic'} or {'crop': [224, 224]}, say"
        raise ArgumentError("step of preprocessing not understood", f"{given!r} ({error})", todo) from None


def _written(step: Step) -> dict[str, Any]:
    return {"crop": [*step.crop]} if step.crop else {"resize": [*step.resize], "filter": step.filter}


def numbers(name: str, given: Any) -> Numbers:
    """One or several finite numbers, from a number, a sequence, an array or a tensor."""
    try:
        given = given.tolist() if hasattr(given, "tolist") else given
        values = tuple(float(value) for value in (given if isinstance(given, Iterable) else (given,)))
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} is not made of numbers", repr(given), _CHANNELS) from None
    if not values or not all(map(math.isfinite, values)):
        raise ArgumentError(f"{name} is not made of finite numbers", list(values), _CHANNELS)
    return values
