"""From stored values to what a likelihood sees: binary draws, levels / 255 or as they are, in training and in tests.

They are stored as they came: uint8 levels, or float32.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime.observation import IMAGE, Observation

_VALIDATION_START = 50_000  # the literature's split: the last 10,000 training images were its validation set
_SEED = 777  # the literature's


def drawn(binary: bool, observation: Observation) -> bool:
    """Whether a likelihood, `binary` or not, sees draws of what is stored: of images, whose values are probabilities.

    Rows of 0 and 1 are what they are.
    """
    return binary and observation.kind == IMAGE


def binarise(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Draw binary pixels with P(1) = grey, or grey / 255 of levels: float32 {0, 1} of the same shape, new at each call.

    Probabilities are exact to within 2^-16, and of floats to within 2^-24.
    """
    if grey.dtype != torch.uint8:
        draws = torch.rand(grey.shape, generator=generator, device=grey.device)
        return torch.lt(draws, grey, out=torch.empty(grey.shape, device=grey.device))
    words = torch.empty(grey.numel() // 4 + 1, dtype=torch.int64, device=grey.device)
    words.random_(-(2**63), None, generator=generator)  # whole words cost a tenth of one bounded draw per pixel
    draws = words.view(torch.int16)[: grey.numel()].view(grey.shape).clamp_(max=2**15 - 2)
    lowest = torch.full((), -(2**15), dtype=torch.int16, device=grey.device)  # filled there: nothing waits for it
    threshold = torch.add(lowest, grey.short(), alpha=257)  # level 0 is never reached, level 255 always
    return torch.lt(draws, threshold, out=torch.empty(grey.shape, device=grey.device))


def fixed_draw(levels: Tensor, before: int = 0) -> Tensor:
    """One binary draw of pixels [n, C, H, W], as levels 0 and 255.

    NumPy's legacy generator with seed 777 draws so many others `before`: the literature's draw of MNIST's test images
    comes after that of its validation images.
    """
    state = np.random.RandomState(_SEED)
    for _ in range(before):
        state.random_sample(levels[:1].numel())  # a binary draw takes one random number, whatever its probability
    return torch.from_numpy(state.binomial(1, _probabilities(levels)).astype(np.uint8)) * 255


def drawn_before(count: int) -> int:
    """How many images the literature draws before those to test on, where so many are trained on."""
    return max(0, count - _VALIDATION_START)


def unit(pixels: Tensor) -> Tensor:
    """Levels / 255, or floats as they are: float32, exactly 0 and 1 for binary images."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def moments(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over observations [n, *shape] of each value, by `unit`: float32 of their shape."""
    total, squares = (torch.zeros(levels.shape[1:], dtype=torch.float64) for _ in range(2))
    for some in levels.split(1000):
        x = unit(some).double()
        total += x.sum(dim=0)
        squares += x.square().sum(dim=0)
    mean = total / len(levels)
    return mean.float(), (squares / len(levels) - mean.square()).clamp(min=0).sqrt().float()


def coin(pixels: Tensor) -> float:
    """The mean variance of binary draws of pixels, in that of a coin: from 0, black and white, to 1, half-way grey."""
    total = sum(float((4 * x * (1 - x)).sum(dtype=torch.float64)) for x in map(unit, pixels.split(1000)))
    return total / pixels.numel()


def _probabilities(pixels: Tensor) -> NDArray[np.float64]:
    """P(1) of each pixel."""
    values = pixels.numpy()
    return values / 255 if values.dtype == np.uint8 else values.astype(np.float64)


def digest(levels: Tensor) -> str:
    """sha256 of the observations' bytes, 0 and 1 where levels are binary."""
    values = levels.cpu().numpy()
    if values.dtype == np.uint8 and not np.any((values != 0) & (values != 255)):
        values = values // 255
    return hashlib.sha256(values.tobytes()).hexdigest()
