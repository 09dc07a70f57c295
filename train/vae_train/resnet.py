"""A small convolutional ResNet behind q(z|x) and p(x|z), without normalisation layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_runtime.observation import Shape
from vae_train.mlp import Heads


class Block(nn.Module):
    """x + conv(silu(conv(silu(x)))), 3x3; the last convolution starts at zero, so that the block starts as identity.

    Starting there is what makes normalisation layers unnecessary (Zhang et al. 2019, arXiv:1901.09321).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]
        self.silu = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, H, W] to the same."""
        h: Tensor = self.second(self.silu(self.first(self.silu(x))))
        return x + h


class Encoder(nn.Module):
    """q(z|x): for each of `channels` a convolution that halves the image and `blocks` residual blocks, then a fully
    connected layer of width `dense` and two heads.
    """

    def __init__(self, image_shape: Shape, channels: Sequence[int], blocks: int, dense: int, latent_dim: int) -> None:
        super().__init__()
        into, height, width = image_shape
        layers: list[nn.Module] = []
        for out in channels:
            layers += [nn.Conv2d(into, out, 4, stride=2, padding=1), *(Block(out) for _ in range(blocks))]
            into = out
        smallest = into * (height >> len(channels)) * (width >> len(channels))
        self.body = nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(smallest, dense), nn.SiLU())
        self.heads = Heads(dense, latent_dim)

    @torch.no_grad()
    def start_at(self, mean: Tensor, std: Tensor) -> None:
        """Let the first convolution see (x - mean) / std: numbers that all lie in a part of [0, 1] say little of z."""
        weight, bias = self.body[0].parameters()
        weight.div_(std)
        bias.sub_(weight.sum(dim=(1, 2, 3)) * mean)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images x [batch, C, H, W] in [0, 1] to `mu` and `logsigma`, both [batch, latent_dim]."""
        mu, logsigma = self.heads(self.body(x))
        return mu, logsigma


class Decoder(nn.Module):
    """p(x|z): the encoder mirrored; images are doubled by a convolution to four times the channels and a shuffle."""

    def __init__(
        self, image_shape: Shape, channels: Sequence[int], blocks: int, dense: int, latent_dim: int, out: int
    ) -> None:
        super().__init__()
        _, height, width = image_shape
        self.smallest = (channels[-1], height >> len(channels), width >> len(channels))
        self.first = nn.Sequential(nn.Linear(latent_dim, dense), nn.SiLU(), nn.Linear(dense, math.prod(self.smallest)))
        layers: list[nn.Module] = []
        for here, above in zip(reversed(channels), [*reversed(channels[:-1]), out], strict=True):
            layers += [Block(here) for _ in range(blocks)]
            layers += [nn.SiLU(), nn.Conv2d(here, 4 * above, 3, padding=1), nn.PixelShuffle(2)]
        self.body = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(out, height, width))

    def forward(self, z: Tensor) -> Tensor:
        """Latents z [batch, latent_dim] to the likelihood's parameters [batch, out, H, W]."""
        parameters: Tensor = self.body(self.first(z).unflatten(1, self.smallest)) + self.bias
        return parameters

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """Let the last bias be these parameters [out, H, W]: training starts from the best constant image."""
        self.bias.copy_(parameters)
