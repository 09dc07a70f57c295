"""The multilayer perceptrons behind q(z|x) and p(x|z)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_runtime.observation import Shape

# exp(-10) is narrower than any pixel needs. A posterior wider than the prior never pays: only images unlike all that
# were trained on get there, and without a bound a KL of many millions of nats.
LOGSIGMA_RANGE = (-10.0, 1.0)


class Gated(nn.Module):
    """A fully connected layer (a x + b) * sigmoid(c x + d) (Dauphin et al. 2017, arXiv:1612.08083, eq. 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.value = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs] to [batch, outputs]."""
        gated: Tensor = self.value(x) * torch.sigmoid(self.gate(x))
        return gated


def layer(inputs: int, outputs: int, activation: str) -> nn.Module:
    """A fully connected layer with its nonlinearity: "relu", "silu" or "gated"."""
    if activation == "gated":
        return Gated(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, outputs), {"relu": nn.ReLU, "silu": nn.SiLU}[activation]())


class Heads(nn.Module):
    """The parameters of q(z|x) from an encoder's last layer.

    logsigma is clamped to LOGSIGMA_RANGE, so that sigma and the KL stay finite whatever the weights.
    """

    def __init__(self, inputs: int, latent_dim: int) -> None:
        super().__init__()
        self.mu = nn.Linear(inputs, latent_dim)
        self.logsigma = nn.Linear(inputs, latent_dim)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, inputs] to `mu` and `logsigma`, both [batch, latent_dim]."""
        return self.mu(h), self.logsigma(h).clamp(*LOGSIGMA_RANGE)


class Encoder(nn.Module):
    """q(z|x): fully connected layers of the widths `hidden`, and two heads."""

    def __init__(self, shape: Shape, hidden: Sequence[int], latent_dim: int, activation: str) -> None:
        super().__init__()
        sizes = [math.prod(shape), *hidden]
        self.body = nn.Sequential(nn.Flatten(), *(layer(a, b, activation) for a, b in pairwise(sizes)))
        self.heads = Heads(sizes[-1], latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations x [batch, *shape] to `mu` and `logsigma`, both [batch, latent_dim]."""
        mu, logsigma = self.heads(self.body(x))
        return mu, logsigma


class Decoder(nn.Module):
    """p(x|z): the encoder mirrored, to parameters of the observations' shape, but for `out` along its first axis."""

    def __init__(self, shape: Shape, hidden: Sequence[int], latent_dim: int, activation: str, out: int) -> None:
        super().__init__()
        self.out_shape = (out, *shape[1:])
        sizes = [latent_dim, *reversed(hidden)]
        self.body = nn.Sequential(*(layer(a, b, activation) for a, b in pairwise(sizes)))
        self.last = nn.Linear(sizes[-1], math.prod(self.out_shape))

    def forward(self, z: Tensor) -> Tensor:
        """Latents z [batch, latent_dim] to the likelihood's parameters [batch, out, *shape[1:]]."""
        parameters: Tensor = self.last(self.body(z)).unflatten(1, self.out_shape)
        return parameters

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """Let the last bias be these parameters: training starts from the best constant observation."""
        self.last.bias.copy_(parameters.flatten())
