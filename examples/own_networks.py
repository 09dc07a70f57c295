"""Train networks of your own: `vae-train --dataset digits --model own_networks:networks`, in this file's folder.

`vae-train` calls the function that --model names and trains what it returns, under any likelihood and objective. The
run keeps that name, not the code: to load the run again, `vae-export` and the other commands want the same --model.
"""

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """q(z|x): two convolutions that halve the image, and a fully connected layer."""

    def __init__(self, channels: int, height: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
            nn.SiLU(),
        )
        self.last = nn.Linear(32 * (height // 4) * (width // 4), 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images x [batch, C, H, W] in [0, 1] to `mu` and `logsigma`, both [batch, latent_dim]."""
        mu, logsigma = self.last(self.convolutions(x).flatten(1)).chunk(2, dim=1)
        return mu, logsigma.clamp(-10, 10)  # so that sigma stays finite, whatever the weights


class Decoder(nn.Module):
    """p(x|z): the encoder backwards."""

    def __init__(self, height: int, width: int, latent_dim: int, out: int) -> None:
        super().__init__()
        self.smallest = (32, height // 4, width // 4)
        self.first = nn.Linear(latent_dim, 32 * (height // 4) * (width // 4))
        self.convolutions = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, kernel_size=4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(16, out, kernel_size=4, stride=2, padding=1),
        )
        self.bias = nn.Parameter(torch.zeros(out, height, width))

    def forward(self, z: Tensor) -> Tensor:
        """Latents z [batch, latent_dim] to the parameters of p(x|z), [batch, out, H, W].

        Not passed through a sigmoid: for binary pixels they are logits.
        """
        return self.convolutions(self.first(z).unflatten(1, self.smallest)) + self.bias

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """Optional: begin at these parameters [out, H, W], those of the best constant image; it saves some epochs."""
        self.bias.copy_(parameters)


def networks(image_shape: tuple[int, int, int], latent_dim: int, out: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder for images of shape (C, H, W); the likelihood wants `out` numbers for each pixel.

    What is raised here ends the command in one line.
    """
    channels, height, width = image_shape
    if height % 4 or width % 4:
        raise ValueError(f"images of {height}x{width} cannot be halved twice")
    return Encoder(channels, height, width, latent_dim), Decoder(height, width, latent_dim, out)
