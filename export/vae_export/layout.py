"""How an observation of a VAE becomes what a person's network takes, and back: order of axes, flat or not, units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime.errors import ArgumentError
from vae_runtime.observation import AXES, IMAGE, Observation, Shape

_KINDS = {len(axes): kind for kind, axes in AXES.items()}
_IN_RANGE = 1e-4  # by which values may leave [0, 1] where they are put back into it: rounding


@dataclass(frozen=True)
class Layout:
    """An observation [*shape] of ours, and the same as the network takes it.

    taken: the network's shape, the batch aside. order: for each of the network's axes which one of ours it is. mean,
    std: the network takes (x - mean) / std of x, one for each channel, or one. reverse: it takes the channels the other
    way round, blue, green, red.
    """

    observation: Observation
    taken: Shape
    order: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    reverse: bool = False

    @property
    def scales(self) -> bool:
        """Whether the network's values are others than ours."""
        return any(self.mean) or any(std != 1 for std in self.std)

    def channel_axis(self, values: Tensor) -> int:
        """Which axis of a batch of the network's counts channels; of flat ones the only one."""
        return 1 + self.order.index(0) if values.ndim == 1 + len(self.order) else 1

    def to_network(self, x: Tensor) -> Tensor:
        """What the network takes, [batch, *taken], of x [batch, *shape]."""
        if self.scales:
            x = (x - self._per_channel(self.mean, x)) / self._per_channel(self.std, x)
        return self._arranged(x.flip(1) if self.reverse else x)

    def to_ours(self, values: Tensor) -> Tensor:
        """Values that the network gives, one for each of an observation's, [batch, *shape]: moved, and not scaled.

        Sides of 1 may be left out. Raises ArgumentError where there are not as many, or along other axes.
        """
        permuted = [self.observation.shape[axis] for axis in self.order]
        given, wanted = ([side for side in sides if side != 1] for sides in (values.shape[1:], permuted))
        if given not in (wanted, [math.prod(wanted)]):
            which = f"{list(values.shape[1:])} for an observation of shape {list(self.taken)}"
            todo = "it gives one number, or as many as the likelihood has parameters, for each value, in the same order"
            raise ArgumentError("decoder's output does not fit", which, todo)
        x = values.reshape(-1, *permuted)
        if self.order != tuple(range(len(self.order))):
            x = x.permute(0, *(1 + self.order.index(axis) for axis in range(len(self.order))))
        return x.flip(1) if self.reverse else x

    def unscaled(self, x: Tensor) -> Tensor:
        """mean + std x of values [batch, *shape] in the network's units."""
        return x * self._per_channel(self.std, x) + self._per_channel(self.mean, x) if self.scales else x

    def log_std(self, x: Tensor) -> Tensor:
        """The logarithm of what 1 in the network's units is in ours, to be added to a log sigma."""
        return self._per_channel(tuple(map(math.log, self.std)), x)

    def observed(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Observations of ours [n, *shape], float32, of those that the network takes [n, *taken]; uint8 levels as such.

        Levels are not scaled and have the channels of image files. Raises ArgumentError where the values are none of
        the range that ours have.
        """
        given = torch.from_numpy(np.ascontiguousarray(values))
        if given.dtype == torch.uint8 and self.observation.kind == IMAGE:
            x = self.to_ours(given)
            return np.ascontiguousarray((x.flip(1) if self.reverse else x).numpy())
        x = self.unscaled(self.to_ours(given.double()) if self.scales else self.to_ours(given.float())).float()
        if self.observation.range is not None:
            low, high = self.observation.range
            if self.scales and min(self._ends) < -0.1 and given.min() >= 0 and given.max() <= 1:
                ends = f"the network takes [{min(self._ends):.3g}, {max(self._ends):.3g}]"
                todo = "give them as the network takes them, or as uint8 levels"
                raise ArgumentError("observations are not below 0 anywhere, as pixels in [0, 1] are", ends, todo)
            if x.min() < low - _IN_RANGE or x.max() > high + _IN_RANGE:
                raise self._out_of_range(given)
            x = x.clamp(low, high) if self.scales else x
        return np.ascontiguousarray(x.numpy())

    def _out_of_range(self, given: Tensor) -> ArgumentError:
        low, high = float(given.min()), float(given.max())
        which = f"they lie in [{low:.3g}, {high:.3g}]"
        if self.scales:
            which += f", and by this mean and std they would in [{min(self._ends):.3g}, {max(self._ends):.3g}]"
            todo = "give them as the network takes them, or as uint8 levels, or correct mean and std"
        elif low >= 0 and high <= 255 and high > 1:
            todo = "give levels as uint8, or divide them by 255"
        elif low >= -1 - _IN_RANGE and high <= 1 + _IN_RANGE:
            todo = 'add preprocessing={"mean": 0.5, "std": 0.5}, which says that the network takes [-1, 1]'
        else:
            todo = 'say what was subtracted and divided by, as preprocessing={"mean": ..., "std": ...}'
        return ArgumentError("pixels outside of [0, 1]", which, todo)

    @property
    def _ends(self) -> list[float]:
        """What 0 and 1 are to the network, of each channel."""
        return [(end - mean) / std for mean, std in zip(self.mean, self.std, strict=True) for end in (0, 1)]

    def _arranged(self, x: Tensor) -> Tensor:
        if self.order != tuple(range(len(self.order))):
            x = x.permute(0, *(1 + axis for axis in self.order))
        return x.reshape(-1, *self.taken) if len(self.taken) != len(self.order) else x

    def _per_channel(self, values: Sequence[float], x: Tensor) -> Tensor:
        axes = len(self.observation.shape)
        return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (axes - 1))


def of(taken: Shape, shape: Shape | None = None, axes: str | None = None) -> Layout:
    """The layout of observations that a network takes as [batch, *taken].

    shape: an observation's own, where the network takes it flat. axes: the network's order of them by their letters,
    "HWC" of images and "TC" of series, where it is not ours. Raises ArgumentError where these do not fit together.
    """
    if not taken or (len(taken) not in _KINDS and shape is None):
        which = f"observations of shape {list(taken)}, the batch aside"
        raise ArgumentError("neither rows, windows nor images", which, "give [n, D], [n, C, T] or [n, C, H, W]")
    kind = _KINDS.get(len(shape or taken))
    if kind is None:
        raise ArgumentError("shape not understood", list(shape or ()), "give (C, H, W), (C, T) or (D,)")
    ours = "".join(AXES[kind])
    order = _order(axes, ours) if axes else tuple(range(len(ours)))
    if shape is None:
        of_each = dict(zip(order, taken, strict=True))
        shape = tuple(of_each[axis] for axis in range(len(order)))
    permuted = tuple(shape[axis] for axis in order)
    if taken not in (permuted, (math.prod(shape),)):
        which = f"observations of shape {list(taken)} and shape={tuple(shape)}"
        raise ArgumentError("shapes do not go together", which, f"the network takes {list(permuted)}, or it flat")
    bounds = (0.0, 1.0) if kind == IMAGE else None
    if kind == IMAGE and shape[0] > 4 >= shape[2] and axes is None:
        which = f"observations of shape {list(taken)}"
        raise ArgumentError("channels come last", which, 'add axes="HWC", or give [n, C, H, W]')
    if kind == IMAGE and axes and order[0] != 0 and shape[0] > 4 >= taken[0]:
        which = f"observations of shape {list(taken)}, which is {shape[0]} channels by axes={axes!r}"
        raise ArgumentError("channels come first", which, "leave axes out")
    return Layout(Observation(kind, shape, bounds), taken, order)


def _order(axes: str, ours: str) -> tuple[int, ...]:
    last = ours[1:] + ours[0]  # with channels last; height and width, in this order, are never exchanged
    if axes not in (ours, last):
        raise ArgumentError("axes not understood", axes, f"say {last!r} where channels come last, or nothing")
    return tuple(map(ours.index, axes))
