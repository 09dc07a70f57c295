"""What a model keeps of how its observations differ, beside independent values, and words where that is little."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_runtime.observation import IMAGE
from vae_train import bounds, pixels
from vae_train.data import Data
from vae_train.likelihoods import Likelihood
from vae_train.vae import VAE

_TESTED = 1000  # test observations that are looked at, and samples
_LITTLE = 0.1  # of how observations differ
_FEW = 1000  # training images, of which a network can learn each by heart


@dataclass(frozen=True)
class Kept:
    """What a model makes of its test observations.

    reconstructions: the share of the variance of test observations that E[x|z] at their means mu explains; at most 1.
    samples: how much the means E[x|z] of samples differ, as a share of that variance. gain: by how many nats the ELBO
    is above log p(x) of independent values, fitted to what was trained on; error: its standard error.
    """

    reconstructions: float
    samples: float
    gain: float
    error: float

    def line(self, noun: str) -> str:
        """All of it in a sentence."""
        side = "above" if self.gain >= 0 else "below"
        return (
            f"Reconstructions explain {max(0, self.reconstructions):.0%} of how test {noun}s differ, samples differ "
            f"{self.samples:.0%} as much, and the ELBO is {abs(self.gain):,.1f} nats {side} that of independent values"
        )


@torch.no_grad()
def measure(vae: VAE, observations: Data) -> Kept:
    """Look at up to 1,000 test observations of a VAE, where it is, and at as many of its samples."""
    device = next(vae.parameters()).device
    levels = observations.observed_test(vae.likelihood.binary)
    levels = levels[:: math.ceil(len(levels) / _TESTED)].to(device)
    train = observations.sample
    mean, std = (part.to(device) for part in pixels.moments(train))
    x = pixels.unit(levels)
    with bounds.evaluating(vae), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        again = _means(vae, vae.encoder(x)[0])
        samples = _means(vae, vae.sample_prior(_TESTED))
        elbo = bounds.measure(vae, levels).terms.elbo.double()
    variance = (x - mean).square().sum()
    gain = elbo - independent(vae.likelihood, train.to(device), levels, mean, std)
    return Kept(
        float(1 - (x - again).square().sum() / variance.clamp(min=1e-30)),
        float(samples.var(dim=0, correction=0).sum() * len(x) / variance.clamp(min=1e-30)),
        float(gain.mean()),
        float(gain.std(correction=0) * math.sqrt(observations.overlap / len(gain))),
    )


@torch.no_grad()
def independent(likelihood: Likelihood, train: Tensor, levels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log p(x) of `levels` [n, *shape] under a model of independent values, float64 [n], nats.

    train: what it is fitted to, with the mean and std of each value. They have this likelihood, with what is learned of
    it fitted anew, at the same parameters for all; of 8-bit levels each has a histogram, or those of a channel have
    one where that describes `levels` better.
    """
    if likelihood.name == "discretised-logistic":
        return max((histograms(train, levels, pooled) for pooled in (False, True)), key=lambda found: found.mean())
    constant = copy.deepcopy(likelihood)
    return constant.log_prob(pixels.unit(levels), constant.constant(mean, std)[None]).double()


def poor(kept: Kept, observations: Data) -> list[str]:
    """What is to be said of a model that keeps hardly anything, and what to try; nothing of another."""
    found = []
    if kept.gain <= 2 * kept.error:
        found.append("hardly better than independent values: the latents tell next to nothing of what is observed")
    if kept.reconstructions < _LITTLE:
        found.append(f"reconstructions are nearly the same for all {observations.observation.noun}s")
    elif kept.samples < _LITTLE:
        found.append("samples are nearly all the same")
    if found:
        image = observations.observation.kind == IMAGE
        own = "--augment flips,shifts, " if image and len(observations.train) < _FEW else ""
        found.append(f"try {own}more --epochs, another --preset or --latent-dim, or a lower --beta")
    return found


def _means(vae: VAE, z: Tensor) -> Tensor:
    """E[x|z] of z [n, *latent_shape], a few at a time."""
    return torch.cat([vae.likelihood.mean(vae.decoder(some)) for some in z.split(64)])


def histograms(train: Tensor, levels: Tensor, pooled: bool) -> Tensor:
    """log p of 8-bit levels [n, C, H, W], float64 [n], nats, by histograms of those of `train`, with add-one smoothing.

    There is one for each value, or with `pooled` one for all values of a channel.
    """
    known, seen = ((some if some.dtype == torch.uint8 else (some * 255).round()).long() for some in (train, levels))
    known = known.transpose(0, 1).flatten(1).T if pooled else known.flatten(1)  # [n * H * W, C] or [n, C * H * W]
    cells = known + 256 * torch.arange(known.shape[1], device=known.device)
    counts = torch.bincount(cells.flatten(), minlength=256 * known.shape[1]).double().reshape(-1, 256) + 1
    nats = torch.log(counts / counts.sum(dim=1, keepdim=True))  # [values, 256]
    if pooled:
        nats = nats.repeat_interleave(levels[0, 0].numel(), dim=0)
    return nats.gather(1, seen.flatten(1).T).sum(dim=0)
