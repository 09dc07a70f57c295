"""The variational autoencoder of Kingma and Welling (2014, arXiv:1312.6114), with the classic names.

Example:
    vae = networks.build(config, shape=(1, 28, 28))
    loss = -vae.elbo(x).mean()  # x [batch, 1, 28, 28]
    loss.backward()
    images = vae.sample(16)  # [16, 1, 28, 28]
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_runtime.errors import ArgumentError
from vae_runtime.observation import Shape
from vae_train.likelihoods import Bernoulli, Likelihood
from vae_train.prior import Prior, StandardNormal


class Terms(NamedTuple):
    """The two terms of the ELBO, nats per observation, each [batch]: elbo = reconstruction - kl."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, [batch]; higher is better."""
        return self.reconstruction - self.kl


class Pass(NamedTuple):
    """Observations once through encoder and decoder, with K draws of z for each."""

    mu: Tensor  # [batch, *latent_shape]
    logsigma: Tensor  # [batch, *latent_shape]
    eps: Tensor  # [K, batch, *latent_shape]
    z: Tensor  # [K, batch, *latent_shape]
    parameters: Tensor  # of p(x|z), [K, batch, ...]


class VAE(nn.Module):
    """A VAE with prior p(z), N(0, I) unless another is given, and posterior q(z|x) = N(mu, diag(sigma^2)).

    `encoder(x)` is q(z|x): it takes observations x [batch, *shape], images [batch, C, H, W] in [0, 1] say, and returns
    `mu` and `logsigma` = log(sigma), both [batch, *latent_shape].
    `decoder(z)` is p(x|z): it takes z [batch, *latent_shape] and returns the likelihood's parameters, for Bernoulli
    pixels the `logits` [batch, C, H, W], so that theta = sigmoid(logits) = E[x|z].
    latent_shape: (20,), or 20 for short, or (C, h, w) of latents in space.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_shape: Shape | int,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_shape = (latent_shape,) if isinstance(latent_shape, int) else latent_shape
        self.likelihood = likelihood or Bernoulli()
        self.prior = prior or StandardNormal(self.latent_shape)

    @property
    def latent_dim(self) -> int:
        """How many numbers a latent has."""
        return math.prod(self.latent_shape)

    def forward(self, x: Tensor, eps: Tensor) -> Pass:
        """Encode x [batch, *shape], draw z and decode it.

        eps: standard normal noise [K, batch, *latent_shape].
        """
        mu, logsigma = self.encoder(x)
        mu, logsigma = mu.to(eps.dtype), logsigma.to(eps.dtype)  # under autocast they come in fewer bits
        z = self.sample_with_reparam(mu, logsigma, eps)
        parameters = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return Pass(mu, logsigma, eps, z, parameters)

    @staticmethod
    def sample_with_reparam(mu: Tensor, logsigma: Tensor, eps: Tensor | None = None) -> Tensor:
        """z = mu + sigma * eps ~ q(z|x), a draw that gradients flow through (eq. 4 of the paper).

        mu, logsigma: [batch, *latent_shape]. eps: standard normal noise, which is drawn where there is none;
        [batch, *latent_shape], or [K, batch, *latent_shape] for K draws; z has its shape.
        """
        if eps is None:
            eps = torch.randn_like(mu)
        return mu + logsigma.exp() * eps

    def kl_divergence(self, mu: Tensor, logsigma: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)), nats, [batch]; of N(0, I) 1/2 sum(sigma^2 + mu^2 - 2 logsigma - 1) (appendix B).

        Raises ArgumentError where the prior has no closed form of it, as a flow has none.
        """
        kl = self.prior.kl(mu, logsigma)
        if kl is None:
            todo = "vae.terms(x).kl estimates it from a draw of z"
            raise ArgumentError("no closed form of the KL", f"{self.prior.name} prior", todo)
        return kl.flatten(1).sum(dim=1)

    def terms(self, x: Tensor, eps: Tensor | None = None) -> Terms:
        """Estimate both terms of the ELBO with one draw of z per observation, the KL in closed form where it has one.

        x: [batch, *shape], binary for the Bernoulli likelihood. eps: [batch, *latent_shape], or None to draw it.
        """
        if eps is None:
            eps = torch.randn(len(x), *self.latent_shape, device=x.device, dtype=x.dtype)
        return self.terms_of(x, self(x, eps[None]))

    def terms_of(self, x: Tensor, out: Pass) -> Terms:
        """Both terms of the ELBO of x [batch, *shape] from its pass `out`, the first averaged over its K draws of z.

        So is the KL where the prior has no closed form of it: `prior.kl` gives None there.
        """
        log_prob = self.likelihood.log_prob(x, out.parameters)  # [K, batch]
        if self.prior.kl(out.mu[:0], out.logsigma[:0]) is None:
            return Terms(log_prob.mean(dim=0), -self.prior.log_ratio(out.mu, out.logsigma, out.z).mean(dim=0))
        return Terms(log_prob.mean(dim=0), self.kl_divergence(out.mu, out.logsigma))

    def elbo(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), one draw of z, nats per observation, [batch] (eq. 7).

        x, eps: as in `terms`.
        """
        return self.terms(x, eps).elbo

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draw x ~ p(x|z), z ~ p(z): [num_samples, *shape], for Bernoulli pixels 0 or 1."""
        return self.likelihood.sample(self.decoder(self.sample_prior(num_samples)))

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draw z ~ p(z): [num_samples, *latent_shape], where the weights are."""
        return self.prior.sample(num_samples, next(self.parameters(), torch.empty(())))

    def log_weights(self, x: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Log importance weights log p(x|z_k) + log p(z_k) - log q(z_k|x), z_k ~ q(z|x): [num_samples, batch], nats.

        generator: of the draws of z, on x's device.
        `logsumexp(dim=0) - log(num_samples)` is the bound of Burda et al. (2016, arXiv:1509.00519, eq. 8).
        """
        shape = (num_samples, len(x), *self.latent_shape)
        eps = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        out = self(x, eps)
        return self.likelihood.log_prob(x, out.parameters) + self.prior.log_ratio(out.mu, out.logsigma, out.z)
