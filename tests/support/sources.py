"""Images of files as a model of some shape takes them."""

from collections.abc import Iterable

from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import Observation, Shape
from vae_runtime.sources import Batch, Observations, Source


def images_in(sources: Iterable[Source], shape: Shape, full_scale: int | None = None) -> Observations:
    """The images of these sources, for a model of images of this shape."""
    return Observations(sources, Observation.image(shape), Preprocessing(full_scale))


def load(sources: Iterable[Source], shape: Shape, full_scale: int | None = None) -> Batch:
    """All of them at once."""
    return images_in(sources, shape, full_scale).load()
