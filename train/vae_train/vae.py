"""The variational autoencoder of Kingma and Welling (2014, arXiv:1312.6114): encoder, decoder and the ELBO.

Example:
    vae = networks.build(config, image_shape=(1, 28, 28))
    loss = -vae.elbo(x).mean()
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_train import likelihoods


class Terms(NamedTuple):
    """The two terms of the ELBO, nats per image, each [batch]: elbo = reconstruction - kl."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), nats, [batch]; higher is better."""
        return self.reconstruction - self.kl


class VAE(nn.Module):
    """A VAE with prior p(z) = N(0, I) and posterior q(z|x) = N(mu, diag(sigma^2)).

    `encoder(x)` takes images x [batch, C, H, W] in [0, 1] and returns `mu` and `logsigma`, both [batch, latent_dim].
    `decoder(z)` takes z [batch, latent_dim] and returns the natural parameters of the likelihood p(x|z):
    for Bernoulli pixels the `logits` [batch, C, H, W], so that theta = sigmoid(logits) = E[x|z].
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim

    def sample_with_reparam(self, mu: Tensor, logsigma: Tensor, eps: Tensor | None = None) -> Tensor:
        """Draw z = mu + sigma * eps with eps ~ N(0, I), so that gradients reach mu and logsigma (eq. 4 of the paper).

        mu, logsigma: [batch, latent_dim]. eps: the same shape, or None to draw it. Returns z [batch, latent_dim].
        """
        eps = torch.randn_like(mu) if eps is None else eps
        return mu + logsigma.exp() * eps

    @staticmethod
    def kl_divergence(mu: Tensor, logsigma: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)) = 1/2 sum(sigma^2 + mu^2 - 2 logsigma - 1), nats, [batch] (appendix B of the paper)."""
        return 0.5 * (torch.exp(2 * logsigma) + mu.square() - 2 * logsigma - 1).sum(dim=1)

    def terms(self, x: Tensor, eps: Tensor | None = None, stl: bool = False) -> Terms:
        """Estimate both terms of the ELBO with one draw of z per image.

        x: [batch, C, H, W], binary for the Bernoulli likelihood. eps: [batch, latent_dim], or None to draw it.
        stl: replace the closed-form KL by log q(z|x) - log p(z) at the drawn z, with no gradient through the parameters
        of q. The expectation is the same, and near the optimum the gradient has less variance ("sticking the landing",
        Roeder et al. 2017, arXiv:1703.09194, eq. 8).
        """
        mu, logsigma = self.encoder(x)
        z = self.sample_with_reparam(mu, logsigma, eps)
        if stl:
            eps_of_z = (z - mu.detach()) / logsigma.detach().exp()
            kl = (0.5 * (z.square() - eps_of_z.square()) - logsigma.detach()).sum(dim=1)
        else:
            kl = self.kl_divergence(mu, logsigma)
        return Terms(likelihoods.bernoulli_log_prob(x, self.decoder(z)), kl)

    def elbo(self, x: Tensor, eps: Tensor | None = None, stl: bool = False) -> Tensor:
        """ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)), one draw of z, nats per image, [batch] (eq. 7)."""
        return self.terms(x, eps, stl).elbo

    def log_weights(self, x: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Log importance weights log p(x|z_k) + log p(z_k) - log q(z_k|x), z_k ~ q(z|x): [num_samples, batch], nats.

        `logsumexp(dim=0) - log(num_samples)` is the bound of Burda et al. (2016, arXiv:1509.00519, eq. 8).
        """
        mu, logsigma = self.encoder(x)
        eps = torch.randn(num_samples, *mu.shape, generator=generator, device=mu.device)  # [K, batch, latent_dim]
        z = mu + logsigma.exp() * eps
        logits = self.decoder(z.flatten(0, 1)).unflatten(0, (num_samples, -1))  # [K, batch, C, H, W]
        log_ratio = (0.5 * (eps.square() - z.square()) + logsigma).sum(dim=2)  # the 2 pi terms cancel
        weights: Tensor = likelihoods.bernoulli_log_prob(x, logits) + log_ratio
        return weights

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draw images x ~ p(x|z), z ~ N(0, I): [num_samples, C, H, W], values 0 and 1."""
        weight = next(self.parameters())
        z = torch.randn(num_samples, self.latent_dim, device=weight.device, dtype=weight.dtype)
        return torch.bernoulli(torch.sigmoid(self.decoder(z)))
