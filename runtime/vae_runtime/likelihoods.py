"""Likelihoods p(x|z) in NumPy: from a decoder's natural parameters to means, draws and log-probabilities in nats."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vae_runtime.errors import InputError

Floats = NDArray[np.float32]


class Likelihood(Protocol):
    """What every likelihood offers; `parameters` is what the decoder graph returns."""

    name: str
    output: str  # the decoder graph's output name

    def mean(self, parameters: Floats) -> Floats:
        """E[x|z], the shape of the images."""

    def sample(self, parameters: Floats, uniforms: Floats) -> Floats:
        """x ~ p(x|z) from uniform draws in [0, 1) of the images' shape."""

    def log_prob(self, x: Floats, parameters: Floats) -> NDArray[np.float64]:
        """log p(x|z), nats, [batch], summed over the pixels."""

    def check(self, x: Floats) -> None:
        """Raise InputError, naming the row, where x is outside the likelihood's support."""


class Bernoulli:
    """Binary pixels with parameters `logits`: p(x = 1) = theta = sigmoid(logits)."""

    name = "bernoulli"
    output = "logits"

    def mean(self, logits: Floats) -> Floats:
        """theta = sigmoid(logits), float32 of the same shape; finite for every logit."""
        e = np.exp(-np.abs(logits))
        theta: Floats = np.where(logits >= 0, np.float32(1), e) / (1 + e)
        return theta

    def sample(self, logits: Floats, uniforms: Floats) -> Floats:
        """1 where uniforms < theta, else 0; float32 of the same shape."""
        return (uniforms < self.mean(logits)).astype(np.float32)

    def log_prob(self, x: Floats, logits: Floats) -> NDArray[np.float64]:
        """Sum over pixels of x * logits - softplus(logits), nats, float64 [batch]; finite for every logit."""
        softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
        log_prob: NDArray[np.float64] = (x * logits - softplus).reshape(len(logits), -1).sum(axis=1, dtype=np.float64)
        return log_prob

    def check(self, x: Floats) -> None:
        """Raise InputError at the first image with a pixel that is neither 0 nor 1."""
        grey = ~((x == 0) | (x == 1)).all(axis=tuple(range(1, x.ndim)))
        if grey.any():
            row = int(np.argmax(grey))
            raise InputError("grey pixels under a Bernoulli likelihood", f"image {row}", "use binarise(x, seed) first")


LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": Bernoulli()}
