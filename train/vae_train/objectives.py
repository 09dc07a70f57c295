"""What a step descends: the gradients of the negative ELBO and of its importance-weighted and weighted kin.

Where the value of a loss is not needed, it is not computed: backpropagation starts from the parameters of p(x|z), z,
mu and logsigma, with their gradients written out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_train import distributed
from vae_train.prior import Root
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
    of_x, of_prior = vae.likelihood.root(x, out.parameters), vae.prior.root(out.z)
    with torch.no_grad():
        of_q = (out.z, -out.eps * torch.exp(-out.logsigma))  # [K, batch, *latent_shape]
        weight = _kl_weight(objective, vae, out)
        roots = [of_x, *((root, gradient * weight) for root, gradient in (of_prior, of_q))]
        if objective.samples > 1:
            weights = torch.softmax(_log_weights(vae, x, out), dim=0)  # [K, batch]
            roots = [(root, gradient.mul_(_along(weights, gradient))) for root, gradient in roots]
            if out.z.requires_grad:
                out.z.register_hook(lambda through_z: through_z * _along(weights, through_z))
    _descend(roots, share)


def _closed_form(objective: Objective, vae: VAE, x: Tensor, out: Pass, share: float) -> None:
    """-log p(x|z) + KL, or of the KL what has a closed form."""
    of_x, of_kl = vae.likelihood.root(x, out.parameters), vae.prior.kl_roots(out.mu, out.logsigma, out.z)
    with torch.no_grad():
        weight = _kl_weight(objective, vae, out)
        _descend([of_x, *((root, gradient * weight) for root, gradient in of_kl)], share)


def _along(weights: Tensor, gradient: Tensor) -> Tensor:
    """Weights of draws [K, batch], as they multiply a gradient [K, batch, ...]."""
    return weights.view(*weights.shape, *[1] * (gradient.ndim - 2))


def _descend(roots: list[Root], share: float) -> None:
    """Backpropagate from tensors with their gradients, divided by `share`; a person's own encoder may hold mu or
    logsigma fixed.
    """
    moving = [(root, gradient.div_(share)) for root, gradient in roots if root.requires_grad]
    torch.autograd.backward([root for root, _ in moving], [gradient for _, gradient in moving])


def _kl_weight(objective: Objective, vae: VAE, out: Pass) -> Tensor | float:
    """beta, and 0 for the latents that have not used up their free bits: of the latents' shape, or one for all."""
    if objective.free_bits == 0:
        return objective.beta
    kl = vae.prior.kl(out.mu, out.logsigma)
    assert kl is not None, "free bits are of a KL by latent"
    return objective.beta * (distributed.mean(kl) > objective.free_bits).to(kl.dtype)  # [*latent_shape]
