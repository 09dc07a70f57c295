"""Flips and shifts of the images that are trained on, drawn anew for each batch."""

from collections.abc import Collection

import torch
from torch import Tensor

SHIFT = 8  # a part of the side: the most that an image is moved


def augmented(levels: Tensor, ways: Collection[str], generator: torch.Generator) -> Tensor:
    """Images [batch, C, H, W] as they may have been too; each of `ways` is drawn for each image by itself.

    "flips": left to right, of half of them. "upside-down": of half of them. "shifts": by up to an eighth of the height
    and of the width; what comes in is the mirror image of what it comes in beside.
    """
    batch, channels, height, width = levels.shape
    y, x = (
        _positions(batch, side, flip in ways, "shifts" in ways, generator)
        for side, flip in ((height, "upside-down"), (width, "flips"))
    )
    images = torch.arange(batch, device=levels.device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=levels.device).view(1, -1, 1, 1)
    return levels[images, planes, y[:, None, :, None], x[:, None, None, :]]


def _positions(batch: int, side: int, flips: bool, shifts: bool, generator: torch.Generator) -> Tensor:
    """Where each row or column of the new images comes from: [batch, side]."""
    device = generator.device
    along = torch.arange(side, device=device).expand(batch, side)
    if flips:
        flipped = torch.rand(batch, 1, generator=generator, device=device) < 0.5
        along = torch.where(flipped, side - 1 - along, along)
    if shifts:
        most = side // SHIFT
        along = along + torch.randint(-most, most + 1, (batch, 1), generator=generator, device=device)
        along = torch.where(along < 0, -along, along)
        along = torch.where(along >= side, 2 * (side - 1) - along, along)
    return along
