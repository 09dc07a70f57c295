"""Bring a VAE of your own: `vae-export --from bring_your_own:networks --out bundles/mine`, in this file's folder.

`vae-export` calls the function that --from names. It returns a dict with what `vae_export.export` takes: the networks
as they are, real observations, and words for what the networks give. Here a VAE as in most tutorials is fitted to
scikit-learn's digits in some seconds; in your place would be `model.load_state_dict(torch.load("mine.pt"))`.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


class VAE(nn.Module):
    """Two perceptrons over flat images, which give the log variance, and theta through a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(64, 128), nn.Linear(128, 8), nn.Linear(128, 8)
        self.fc3, self.fc4 = nn.Linear(8, 128), nn.Linear(128, 64)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x), [batch, 8] each, of images x [batch, 64]."""
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def decode(self, z: Tensor) -> Tensor:
        """P(x = 1), [batch, 64]."""
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))


def fitted(x: Tensor, steps: int = 600) -> VAE:
    """A VAE after a loop as people write it, on grey images x [n, 64] that are drawn as binary at each step."""
    torch.manual_seed(0)
    model = VAE()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = torch.bernoulli(x[torch.randint(len(x), (128,))])
        mu, logvar = model.encode(batch)
        theta = model.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))
        bce = F.binary_cross_entropy(theta, batch, reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        optimiser.zero_grad()
        ((bce + kld) / len(batch)).backward()
        optimiser.step()
    return model


def networks() -> dict[str, Any]:
    """What `vae_export.export` takes."""
    levels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8).reshape(-1, 64)
    x = torch.from_numpy(levels) / 255
    return {
        "encoder": fitted(x[:1500]),  # has encode() and decode()
        "encoder_gives": "logvar",
        "decoder_gives": "theta",
        "likelihood": "bernoulli",
        "observations": x[1500:],  # that it was not trained on
        "shape": (1, 8, 8),  # the networks take them flat
        "name": "digits",
    }
