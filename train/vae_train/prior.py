"""Priors p(z) in PyTorch: draws of z, log-probabilities in nats, and their gradients; `vae_runtime.prior` is the twin.

A latent z has the `shape` of its prior: arrays of them are [batch, *shape], or [K, batch, *shape] for K draws each.
"""

import math

import torch
from torch import Tensor, nn

from vae_runtime.manifest import Named
from vae_runtime.observation import Shape

Root = tuple[Tensor, Tensor]  # where backpropagation starts: a tensor, and the gradient with respect to it


class Prior(nn.Module):
    """What every prior offers; a module, since one may have weights of its own."""

    name: str

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def contract(self) -> Named:
        """What a bundle says of it."""
        return Named(self.name)

    def sample(self, num_samples: int, like: Tensor) -> Tensor:
        """z ~ p(z), [num_samples, *shape], of the type of `like` and on its device."""
        return self.from_noise(torch.randn(num_samples, *self.shape, device=like.device, dtype=like.dtype))

    def from_noise(self, noise: Tensor) -> Tensor:
        """z ~ p(z) that standard normal noise becomes, both [..., *shape]."""
        raise NotImplementedError

    def to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise [..., *shape] that becomes z [..., *shape], and log |d noise / d z|, nats, [...]."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), nats, [..., batch]."""
        raise NotImplementedError

    def log_ratio(self, mu: Tensor, logsigma: Tensor, z: Tensor) -> Tensor:
        """log p(z) - log q(z|x), nats, [K, batch], of z [K, batch, *shape]."""
        eps = (z - mu) * torch.exp(-logsigma)
        return self.log_prob(z) + self._sum(0.5 * (eps.square() + math.log(2 * math.pi)) + logsigma)

    def kl(self, mu: Tensor, logsigma: Tensor) -> Tensor | None:
        """KL(q(z|x) || p(z)) of each latent, nats, [batch, *shape]; None without a closed form."""
        return None

    def root(self, z: Tensor) -> Root:
        """Where backpropagation of -log p(z) starts: a tensor [K, batch, ...], and the gradient with respect to it."""
        log_prob = self.log_prob(z)
        return log_prob, torch.full_like(log_prob, -1)

    def kl_roots(self, mu: Tensor, logsigma: Tensor, z: Tensor) -> list[Root]:
        """Where backpropagation of KL(q(z|x) || p(z)) starts, estimated from one draw z [1, batch, *shape].

        The entropy of q, sum(logsigma) and a constant, is exact.
        """
        return [self.root(z), (logsigma, torch.full_like(logsigma, -1))]

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.flatten(-len(self.shape)).sum(dim=-1)


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    name = "standard-normal"

    def from_noise(self, noise: Tensor) -> Tensor:
        """The noise itself."""
        return noise

    def to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z itself, and 0."""
        return z, z.new_zeros(z.shape[: -len(self.shape)])

    def log_prob(self, z: Tensor) -> Tensor:
        """-1/2 sum(z^2 + log 2 pi), nats, [..., batch]."""
        return self._sum(-0.5 * (z.square() + math.log(2 * math.pi)))

    def log_ratio(self, mu: Tensor, logsigma: Tensor, z: Tensor) -> Tensor:
        """log p(z) - log q(z|x), nats, [K, batch], of z [K, batch, *shape]; the 2 pi terms cancel."""
        eps = (z - mu) * torch.exp(-logsigma)
        return self._sum(0.5 * (eps.square() - z.square()) + logsigma)

    def kl(self, mu: Tensor, logsigma: Tensor) -> Tensor:
        """1/2 (sigma^2 + mu^2 - 2 logsigma - 1) of each latent, nats, [batch, *shape].

        Kingma and Welling (2014, arXiv:1312.6114), appendix B.
        """
        return 0.5 * (torch.exp(2 * logsigma) + mu.square() - 2 * logsigma - 1)

    def root(self, z: Tensor) -> Root:
        """z, and z: the gradient of 1/2 sum(z^2), so that the value is not computed."""
        return z, z.detach()

    def kl_roots(self, mu: Tensor, logsigma: Tensor, z: Tensor) -> list[Root]:
        """mu and logsigma, with the gradients of `kl` in them, mu and sigma^2 - 1: z is not needed."""
        return [(mu, mu.detach()), (logsigma, torch.expm1(2 * logsigma.detach()))]
