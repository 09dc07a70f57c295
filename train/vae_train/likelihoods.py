"""Log-likelihoods p(x|z) in PyTorch, from the natural parameters that a decoder returns."""

from torch import Tensor
from torch.nn.functional import softplus


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Sum over pixels of log Bernoulli(x; sigmoid(logits)) = x * logits - softplus(logits), nats.

    x: [batch, C, H, W] in {0, 1}. logits: [..., batch, C, H, W]. Returns [..., batch].
    Finite for every finite logit: log(sigmoid(.)) is never formed.
    """
    return (x * logits - softplus(logits)).flatten(-3).sum(dim=-1)
