"""The multilayer perceptrons behind q(z|x) and p(x|z)."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_train.config import Config
from vae_train.vae import VAE

LOGSIGMA_BOUND = (
    10.0  # exp(2 * 10) is far from float32's limit and exp(-10) is a posterior narrower than any pixel needs
)


def layers(sizes: list[int], activation: str) -> nn.Sequential:
    """Fully connected layers sizes[0] -> sizes[1] -> ..., each followed by its nonlinearity."""
    pairs = pairwise(sizes)
    nonlinearity = {"relu": nn.ReLU, "silu": nn.SiLU}[activation]
    return nn.Sequential(*(module for a, b in pairs for module in (nn.Linear(a, b), nonlinearity())))


Shape = tuple[int, int, int]  # channels, height, width


class Encoder(nn.Module):
    """q(z|x): a multilayer perceptron with two heads.

    logsigma is clamped to +-LOGSIGMA_BOUND, so that sigma and the KL stay finite whatever the weights.
    """

    def __init__(self, image_shape: Shape, hidden: tuple[int, ...], latent_dim: int, activation: str) -> None:
        super().__init__()
        self.body = layers([math.prod(image_shape), *hidden], activation)
        self.mu = nn.Linear(hidden[-1], latent_dim)
        self.logsigma = nn.Linear(hidden[-1], latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images x [batch, C, H, W] in [0, 1] to `mu` and `logsigma`, both [batch, latent_dim]."""
        h = self.body(x.flatten(1))  # [batch, hidden]
        return self.mu(h), self.logsigma(h).clamp(-LOGSIGMA_BOUND, LOGSIGMA_BOUND)


class Decoder(nn.Module):
    """p(x|z): the encoder's multilayer perceptron, mirrored."""

    def __init__(self, image_shape: Shape, hidden: tuple[int, ...], latent_dim: int, activation: str) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.body = layers([latent_dim, *reversed(hidden)], activation)
        self.logits = nn.Linear(hidden[0], math.prod(image_shape))

    def forward(self, z: Tensor) -> Tensor:
        """Latents z [batch, latent_dim] to the Bernoulli logits [batch, C, H, W]."""
        logits: Tensor = self.logits(self.body(z)).unflatten(1, self.image_shape)
        return logits

    @torch.no_grad()
    def start_at_pixel_means(self, means: Tensor) -> None:
        """Set the output bias to logit(means), so that training starts from the best constant image.

        means: [C, H, W] in [0, 1], the training images' mean.
        """
        self.logits.bias.copy_(torch.logit(means.flatten(), eps=1e-3))


def build(config: Config, image_shape: Shape, pixel_means: Tensor | None = None) -> VAE:
    """The VAE that `config` describes, for images of shape (C, H, W), with PyTorch's default initial weights.

    pixel_means: the training images' mean [C, H, W] in [0, 1], from which the decoder's bias starts, if given.
    """
    sizes = (image_shape, config.hidden, config.latent_dim, config.activation)
    encoder, decoder = Encoder(*sizes), Decoder(*sizes)
    if pixel_means is not None:
        decoder.start_at_pixel_means(pixel_means)
    return VAE(encoder, decoder, config.latent_dim)
