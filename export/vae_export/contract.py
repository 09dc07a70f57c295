"""What a bundle's contract says of a VAE, and the runtime's twin of the likelihood that it names."""

from vae_runtime import likelihoods
from vae_runtime.likelihoods import Likelihood
from vae_runtime.manifest import LEARNED_PRIORS, Contract
from vae_runtime.observation import Observation
from vae_train.vae import VAE


def of(vae: VAE, observation: Observation, pair: str = "") -> Contract:
    """The contract of a VAE of such observations; `pair` is what its graphs share."""
    return Contract(pair, observation, vae.latent_shape, vae.prior.contract(), vae.likelihood.contract())


def learned_prior(vae: VAE) -> bool:
    """Whether the VAE's prior has a graph of its own."""
    return vae.prior.name in LEARNED_PRIORS


def likelihood(vae: VAE, observation: Observation) -> Likelihood:
    """The runtime's twin of the VAE's likelihood. Raises BundleError where it is not one of such observations."""
    return likelihoods.make(of(vae, observation).likelihood, observation)
