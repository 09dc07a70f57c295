"""What a bundle's contract says of a VAE, and the runtime's twins of what it names."""

from vae_runtime import likelihoods
from vae_runtime import prior as priors
from vae_runtime.likelihoods import Likelihood
from vae_runtime.manifest import Contract
from vae_runtime.observation import Observation
from vae_runtime.prior import Prior
from vae_train.vae import VAE


def of(vae: VAE, observation: Observation, pair: str = "") -> Contract:
    """The contract of a VAE of such observations; `pair` is what its two graphs share."""
    return Contract(pair, observation, vae.latent_shape, vae.prior.contract(), vae.likelihood.contract())


def likelihood(vae: VAE, observation: Observation) -> Likelihood:
    """The runtime's twin of the VAE's likelihood. Raises BundleError where it is not one of such observations."""
    return likelihoods.make(of(vae, observation).likelihood, observation)


def prior(vae: VAE) -> Prior:
    """The runtime's twin of the VAE's prior."""
    return priors.make(vae.prior.contract(), vae.latent_shape)
