"""A learned prior p(z): a normalising flow of affine couplings between z and standard normal noise."""

import math

import torch
from torch import Tensor, nn

from vae_runtime.observation import Shape
from vae_train.prior import Prior

# Of a coupling's log scale, and of the latents that decide, which are seldom beyond 6: what is done to far latents is
# affine, and sixteen couplings scale none of them by more than exp(4).
LOG_SCALE_BOUND, SEEN_BOUND = 0.5, 10.0


class Coupling(nn.Module):
    """z to z * exp(log_scale) + shift, of which the latents `kept` [size] decide and are left as they are.

    Dinh, Sohl-Dickstein and Bengio (2017, arXiv:1605.08803, eq. 7 to 9). The last layer starts at zero, so that the
    coupling starts as identity.
    """

    kept: Tensor

    def __init__(self, kept: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("kept", kept.float(), persistent=False)  # its place in the flow says it
        last = nn.Linear(width, 2 * len(kept))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(nn.Linear(len(kept), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """shift and log_scale, both [..., size], and 0 where z is kept, of z [..., size] or of what it becomes."""
        seen = z.clamp(-SEEN_BOUND, SEEN_BOUND)
        shift, log_scale = self.body(seen * self.kept).chunk(2, dim=-1)
        moved = 1 - self.kept
        return shift * moved, LOG_SCALE_BOUND * torch.tanh(log_scale / LOG_SCALE_BOUND) * moved


class Flow(Prior):
    """p(z) as the density of what `couplings` of them make of standard normal noise; it starts as N(0, I).

    The latents, in a row, are split anew by each two couplings, of which each moves one part: even and odd ones first,
    then by twos, by fours, and so on, and over again.
    """

    name = "flow"

    def __init__(self, shape: Shape, couplings: int = 16, width: int = 128) -> None:
        super().__init__(shape)
        place = torch.arange(math.prod(shape))
        bits = max(1, (len(place) - 1).bit_length())
        split = (((place >> (i // 2 % bits)) & 1) == i % 2 for i in range(couplings))
        self.couplings = nn.ModuleList(Coupling(kept, width) for kept in split)

    def to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise [..., *shape] that becomes z [..., *shape], and log |d noise / d z|, nats, [...]."""
        noise = z.flatten(-len(self.shape))
        log_det = torch.zeros_like(noise)
        for coupling in self.couplings:
            shift, log_scale = coupling(noise)
            noise = noise * torch.exp(log_scale) + shift
            log_det = log_det + log_scale
        return noise.reshape(*noise.shape[:-1], *self.shape), log_det.sum(dim=-1)

    def from_noise(self, noise: Tensor) -> Tensor:
        """z [..., *shape] of standard normal noise [..., *shape]: `to_noise` undone, coupling by coupling."""
        z = noise.flatten(-len(self.shape))
        for coupling in reversed(self.couplings):
            shift, log_scale = coupling(z)
            z = (z - shift) * torch.exp(-log_scale)
        return z.reshape(*z.shape[:-1], *self.shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(noise; 0, I) + log |d noise / d z|, nats, [..., batch] (eq. 2 and 3 of the paper)."""
        noise, log_det = self.to_noise(z)
        return self._sum(-0.5 * (noise.square() + math.log(2 * math.pi))) + log_det
