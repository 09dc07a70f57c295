"""Priors p(z) in PyTorch: draws of z, log-probabilities in nats, and their gradients; `vae_runtime.prior` is the twin.

A latent z has the `shape` of its prior: arrays of them are [batch, *shape], or [K, batch, *shape] for K draws each.
"""

import math

import torch
from torch import Tensor, nn

from vae_runtime.manifest import Named
from vae_runtime.observation import Shape


class StandardNormal(nn.Module):
    """p(z) = N(0, I); a module, since other priors have weights."""

    name = "standard-normal"

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def contract(self) -> Named:
        """What a bundle says of it."""
        return Named(self.name)

    def sample(self, num_samples: int, like: Tensor) -> Tensor:
        """z ~ p(z), [num_samples, *shape], of the type of `like` and on its device."""
        return torch.randn(num_samples, *self.shape, device=like.device, dtype=like.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """-1/2 sum(z^2 + log 2 pi), nats, [..., batch]."""
        return self._sum(-0.5 * (z.square() + math.log(2 * math.pi)))

    def log_ratio(self, mu: Tensor, logsigma: Tensor, z: Tensor) -> Tensor:
        """log p(z) - log q(z|x), nats, [K, batch], of z [K, batch, *shape]; the 2 pi terms cancel."""
        eps = (z - mu) * torch.exp(-logsigma)
        return self._sum(0.5 * (eps.square() - z.square()) + logsigma)

    def kl(self, mu: Tensor, logsigma: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)) of each latent, 1/2 (sigma^2 + mu^2 - 2 logsigma - 1), nats, [batch, *shape].

        Kingma and Welling (2014, arXiv:1312.6114), appendix B.
        """
        return 0.5 * (torch.exp(2 * logsigma) + mu.square() - 2 * logsigma - 1)

    def kl_gradients(self, mu: Tensor, logsigma: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of `kl` in mu and in logsigma, both [batch, *shape]: mu and sigma^2 - 1."""
        return mu, torch.expm1(2 * logsigma)

    def path_gradient(self, z: Tensor, eps: Tensor, logsigma: Tensor) -> Tensor:
        """The gradient of log q(z|x) - log p(z) in z = mu + sigma * eps, q's parameters held still: z - eps / sigma.

        z, eps and the gradient: [K, batch, *shape]. logsigma: [batch, *shape].
        """
        return torch.addcmul(z, eps, torch.exp(-logsigma), value=-1)

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.flatten(-len(self.shape)).sum(dim=-1)
