"""One-dimensional convolutions behind q(z|x) and p(x|z), for series of any length."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_runtime.observation import Shape
from vae_train.mlp import Heads


class Encoder(nn.Module):
    """q(z|x): for each of `hidden` a convolution that halves the series, a layer of width `dense`, and two heads."""

    def __init__(self, shape: Shape, hidden: Sequence[int], dense: int, latent_dim: int) -> None:
        super().__init__()
        into, length = shape
        layers: list[nn.Module] = []
        for out in hidden:
            layers += [nn.Conv1d(into, out, 5, stride=2, padding=2), nn.SiLU()]
            into, length = out, halved(length)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(into * length, dense), nn.SiLU())
        self.heads = Heads(dense, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Series x [batch, C, T] to `mu` and `logsigma`, both [batch, latent_dim]."""
        mu, logsigma = self.heads(self.body(x))
        return mu, logsigma


class Decoder(nn.Module):
    """p(x|z): the encoder mirrored; what doubling makes too long is cut off at the end."""

    def __init__(self, shape: Shape, hidden: Sequence[int], dense: int, latent_dim: int, out: int) -> None:
        super().__init__()
        self.length = length = shape[1]
        for _ in hidden:
            length = halved(length)
        self.smallest = (hidden[-1], length)
        self.first = nn.Sequential(
            nn.Linear(latent_dim, dense), nn.SiLU(), nn.Linear(dense, math.prod(self.smallest)), nn.SiLU()
        )
        layers: list[nn.Module] = []
        for here, above in zip(reversed(hidden), [*reversed(hidden[:-1]), hidden[0]], strict=True):
            layers += [nn.ConvTranspose1d(here, above, 4, stride=2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv1d(hidden[0], out, 5, padding=2))
        self.bias = nn.Parameter(torch.zeros(out, self.length))

    def forward(self, z: Tensor) -> Tensor:
        """Latents z [batch, latent_dim] to the likelihood's parameters [batch, out, T]."""
        h: Tensor = self.body(self.first(z).unflatten(1, self.smallest))
        return h[..., : self.length] + self.bias

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """Let the last bias be these parameters [out, T]: training starts from the best constant series."""
        self.bias.copy_(parameters)


def halved(length: int) -> int:
    """How many steps are left of so many after a convolution that halves them."""
    return -(-length // 2)
