"""What a step descends: the gradients of the negative ELBO and of its importance-weighted and weighted kin.

Where the value of a loss is not needed, it is not computed: backpropagation starts from the parameters of p(x|z), z,
mu and logsigma, with their gradients written out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_train import distributed
from vae_train.likelihoods import Likelihood
from vae_train.vae import Pass, kl_per_dimension, log_ratio


@dataclass(frozen=True)
class Objective:
    """Which bound, and which estimator of its gradient.

    samples: draws K of z for each image; 1 is the ELBO, more the bound of Burda et al. (2016, arXiv:1509.00519, eq. 8).
    path: leave out the gradient through the parameters of log q(z|x), whose expectation is zero or can be made so. For
    one draw this is "sticking the landing" (Roeder et al. 2017, arXiv:1703.09194, eq. 8), for more the doubly
    reparameterised gradient (Tucker et al. 2018, arXiv:1810.04152, eq. 8); near the optimum both have less variance.
    beta: weight of the KL (Higgins et al. 2017). free_bits: nats of KL, averaged over the batch, that each latent
    dimension has for nothing (Kingma et al. 2016, arXiv:1606.04934, appendix C.8). Both for the ELBO alone.
    """

    samples: int = 1
    path: bool = True
    beta: float = 1.0
    free_bits: float = 0.0


def backward(objective: Objective, likelihood: Likelihood, x: Tensor, out: Pass, images: float) -> None:
    """Add the gradients of the negative bound to those of the weights.

    The bound is summed over the images x [batch, C, H, W] and divided by `images`.
    """
    if objective.path:
        _path(objective, likelihood, x, out, images)
    elif objective.samples == 1:
        _closed_form(objective, likelihood, x, out, images)
    else:
        log_weights = likelihood.log_prob(x, out.parameters) + log_ratio(out.mu, out.logsigma, out.z)
        (-torch.logsumexp(log_weights, dim=0).sum() / images).backward()


def _path(objective: Objective, likelihood: Likelihood, x: Tensor, out: Pass, images: float) -> None:
    """-log p(x|z) - log p(z) + log q(z|x) with the parameters of q held still: its gradient in z is z - eps / sigma."""
    root, gradient = likelihood.root(x, out.parameters)
    with torch.no_grad():
        kl_gradient = torch.addcmul(out.z, out.eps, torch.exp(-out.logsigma), value=-1)  # [K, batch, latent_dim]
        kl_gradient *= _kl_weight(objective, out) / images
        if objective.samples > 1:
            log_weights = likelihood.log_prob(x, out.parameters) + log_ratio(out.mu, out.logsigma, out.z)
            weights = torch.softmax(log_weights, dim=0)  # [K, batch]
            gradient *= weights.view(*weights.shape, *[1] * (gradient.ndim - 2))
            kl_gradient *= weights[..., None]
            if out.z.requires_grad:
                out.z.register_hook(lambda through_z: through_z * weights[..., None])
    _descend((root, gradient.div_(images)), (out.z, kl_gradient))


def _closed_form(objective: Objective, likelihood: Likelihood, x: Tensor, out: Pass, images: float) -> None:
    """-log p(x|z) + KL: the KL's gradients are mu and sigma^2 - 1 (appendix B of Kingma and Welling 2014)."""
    root, gradient = likelihood.root(x, out.parameters)
    with torch.no_grad():
        weight = _kl_weight(objective, out) / images
        in_mu, in_logsigma = weight * out.mu, weight * torch.expm1(2 * out.logsigma)
    _descend((root, gradient.div_(images)), (out.mu, in_mu), (out.logsigma, in_logsigma))


def _descend(*roots: tuple[Tensor, Tensor]) -> None:
    """Backpropagate from tensors with their gradients; a person's own encoder may hold mu or logsigma fixed."""
    moving = [(root, gradient) for root, gradient in roots if root.requires_grad]
    torch.autograd.backward([root for root, _ in moving], [gradient for _, gradient in moving])


def _kl_weight(objective: Objective, out: Pass) -> Tensor | float:
    """beta, and 0 for the dimensions that have not used up their free bits: [latent_dim], or one for all."""
    if objective.free_bits == 0:
        return objective.beta
    kl = distributed.mean(kl_per_dimension(out.mu, out.logsigma))  # [latent_dim]
    return objective.beta * (kl > objective.free_bits).to(kl.dtype)
