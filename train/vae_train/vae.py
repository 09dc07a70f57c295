"""The variational autoencoder of Kingma and Welling (2014, arXiv:1312.6114): encoder, decoder and the ELBO.

Example:
    vae = networks.build(config, image_shape=(1, 28, 28))
    loss = -vae.elbo(x).mean()  # x [batch, 1, 28, 28]
    loss.backward()
    images = vae.sample(16)  # [16, 1, 28, 28]
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_train.likelihoods import Bernoulli, Likelihood


class Terms(NamedTuple):
    """The two terms of the ELBO, nats per image, each [batch]: elbo = reconstruction - kl."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, [batch]; higher is better."""
        return self.reconstruction - self.kl


class Pass(NamedTuple):
    """Images once through encoder and decoder, with K draws of z for each."""

    mu: Tensor  # [batch, latent_dim]
    logsigma: Tensor  # [batch, latent_dim]
    eps: Tensor  # [K, batch, latent_dim]
    z: Tensor  # [K, batch, latent_dim]
    parameters: Tensor  # of p(x|z), [K, batch, ...]


class VAE(nn.Module):
    """A VAE with prior p(z) = N(0, I) and posterior q(z|x) = N(mu, diag(sigma^2)).

    `encoder(x)` is q(z|x): it takes images x [batch, C, H, W] in [0, 1] and returns `mu` and `logsigma` = log(sigma),
    both [batch, latent_dim].
    `decoder(z)` is p(x|z): it takes z [batch, latent_dim] and returns the likelihood's parameters, for Bernoulli pixels
    the `logits` [batch, C, H, W], so that theta = sigmoid(logits) = E[x|z].
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, likelihood: Likelihood | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.likelihood = likelihood or Bernoulli()

    def forward(self, x: Tensor, eps: Tensor) -> Pass:
        """Encode x [batch, C, H, W], draw z and decode it.

        eps: standard normal noise [K, batch, latent_dim].
        """
        mu, logsigma = self.encoder(x)
        mu, logsigma = mu.to(eps.dtype), logsigma.to(eps.dtype)  # under autocast they come in fewer bits
        z = self.sample_with_reparam(mu, logsigma, eps)
        parameters = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return Pass(mu, logsigma, eps, z, parameters)

    @staticmethod
    def sample_with_reparam(mu: Tensor, logsigma: Tensor, eps: Tensor | None = None) -> Tensor:
        """z = mu + sigma * eps ~ q(z|x), a draw that gradients flow through (eq. 4 of the paper).

        mu, logsigma: [batch, latent_dim]. eps: standard normal noise, which is drawn where there is none;
        [batch, latent_dim], or [K, batch, latent_dim] for K draws; z has its shape.
        """
        if eps is None:
            eps = torch.randn_like(mu)
        return mu + logsigma.exp() * eps

    @staticmethod
    def kl_divergence(mu: Tensor, logsigma: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)) = 1/2 sum(sigma^2 + mu^2 - 2 logsigma - 1), nats, [batch] (appendix B of the paper)."""
        return kl_per_dimension(mu, logsigma).sum(dim=1)

    def terms(self, x: Tensor, eps: Tensor | None = None) -> Terms:
        """Estimate both terms of the ELBO with one draw of z per image, the KL in closed form.

        x: [batch, C, H, W], binary for the Bernoulli likelihood. eps: [batch, latent_dim], or None to draw it.
        """
        if eps is None:
            eps = torch.randn(len(x), self.latent_dim, device=x.device, dtype=x.dtype)
        return self.terms_of(x, self(x, eps[None]))

    def terms_of(self, x: Tensor, out: Pass) -> Terms:
        """Both terms of the ELBO of images x [batch, C, H, W] from a pass, the first averaged over its K draws of z."""
        log_prob = self.likelihood.log_prob(x, out.parameters)  # [K, batch]
        return Terms(log_prob.mean(dim=0), self.kl_divergence(out.mu, out.logsigma))

    def elbo(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), one draw of z, nats per image, [batch] (eq. 7)."""
        return self.terms(x, eps).elbo

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draw images x ~ p(x|z), z ~ p(z): [num_samples, C, H, W], for Bernoulli pixels 0 or 1."""
        return self.likelihood.sample(self.decoder(self.sample_prior(num_samples)))

    def sample_prior(self, num_samples: int) -> Tensor:
        """Draw z ~ p(z) = N(0, I): [num_samples, latent_dim], where the weights are."""
        weight = next(self.parameters(), torch.empty(()))
        return torch.randn(num_samples, self.latent_dim, device=weight.device, dtype=weight.dtype)

    def log_weights(self, x: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Log importance weights log p(x|z_k) + log p(z_k) - log q(z_k|x), z_k ~ q(z|x): [num_samples, batch], nats.

        `logsumexp(dim=0) - log(num_samples)` is the bound of Burda et al. (2016, arXiv:1509.00519, eq. 8).
        """
        shape = (num_samples, len(x), self.latent_dim)
        eps = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        out = self(x, eps)
        return self.likelihood.log_prob(x, out.parameters) + log_ratio(out.mu, out.logsigma, out.z)


def kl_per_dimension(mu: Tensor, logsigma: Tensor) -> Tensor:
    """The terms of the KL, one for each latent dimension: nats, [batch, latent_dim]."""
    return 0.5 * (torch.exp(2 * logsigma) + mu.square() - 2 * logsigma - 1)


def log_ratio(mu: Tensor, logsigma: Tensor, z: Tensor) -> Tensor:
    """log p(z) - log q(z|x), nats, [K, batch], of z [K, batch, latent_dim]; the 2 pi terms cancel."""
    eps = (z - mu) * torch.exp(-logsigma)
    return (0.5 * (eps.square() - z.square()) + logsigma).sum(dim=-1)
