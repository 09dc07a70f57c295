"""What a step descends: the gradients of the negative ELBO and of its importance-weighted and weighted kin.

Where the value of a loss is not needed, it is not computed: backpropagation starts from the parameters of p(x|z), z,
mu and logsigma, with their gradients written out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_train import distributed
from vae_train.vae import VAE, Pass


@dataclass(frozen=True)
class Objective:
    """Which bound, and which estimator of its gradient.

    samples: draws K of z for each x; 1 is the ELBO, more the bound of Burda et al. (2016, arXiv:1509.00519, eq. 8).
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


def backward(objective: Objective, vae: VAE, x: Tensor, out: Pass, share: float) -> None:
    """Add the gradients of the negative bound to those of the weights of `vae`, which has made the pass `out`.

    The bound is summed over the observations x [batch, *shape] and divided by `share`.
    """
    if objective.path:
        _path(objective, vae, x, out, share)
    elif objective.samples == 1:
        _closed_form(objective, vae, x, out, share)
    else:
        (-torch.logsumexp(_log_weights(vae, x, out), dim=0).sum() / share).backward()


def _log_weights(vae: VAE, x: Tensor, out: Pass) -> Tensor:
    """Log importance weights of the draws z of a pass, [K, batch]."""
    return vae.likelihood.log_prob(x, out.parameters) + vae.prior.log_ratio(out.mu, out.logsigma, out.z)


def _path(objective: Objective, vae: VAE, x: Tensor, out: Pass, share: float) -> None:
    """-log p(x|z) - log p(z) + log q(z|x) with the parameters of q held still."""
    root, gradient = vae.likelihood.root(x, out.parameters)
    with torch.no_grad():
        kl_gradient = vae.prior.path_gradient(out.z, out.eps, out.logsigma)  # [K, batch, *latent_shape]
        kl_gradient *= _kl_weight(objective, vae, out) / share
        if objective.samples > 1:
            weights = torch.softmax(_log_weights(vae, x, out), dim=0)  # [K, batch]
            of_z = weights.view(*weights.shape, *[1] * len(vae.latent_shape))
            gradient *= weights.view(*weights.shape, *[1] * (gradient.ndim - 2))
            kl_gradient *= of_z
            if out.z.requires_grad:
                out.z.register_hook(lambda through_z: through_z * of_z)
    _descend((root, gradient.div_(share)), (out.z, kl_gradient))


def _closed_form(objective: Objective, vae: VAE, x: Tensor, out: Pass, share: float) -> None:
    """-log p(x|z) + KL."""
    root, gradient = vae.likelihood.root(x, out.parameters)
    with torch.no_grad():
        weight = _kl_weight(objective, vae, out) / share
        in_mu, in_logsigma = (weight * part for part in vae.prior.kl_gradients(out.mu, out.logsigma))
    _descend((root, gradient.div_(share)), (out.mu, in_mu), (out.logsigma, in_logsigma))


def _descend(*roots: tuple[Tensor, Tensor]) -> None:
    """Backpropagate from tensors with their gradients; a person's own encoder may hold mu or logsigma fixed."""
    moving = [(root, gradient) for root, gradient in roots if root.requires_grad]
    torch.autograd.backward([root for root, _ in moving], [gradient for _, gradient in moving])


def _kl_weight(objective: Objective, vae: VAE, out: Pass) -> Tensor | float:
    """beta, and 0 for the latents that have not used up their free bits: of the latents' shape, or one for all."""
    if objective.free_bits == 0:
        return objective.beta
    kl = distributed.mean(vae.prior.kl(out.mu, out.logsigma))  # [*latent_shape]
    return objective.beta * (kl > objective.free_bits).to(kl.dtype)
