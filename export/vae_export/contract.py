"""What a bundle's contract says of a VAE, and the runtime's twins of what it names."""

from typing import Any

from vae_runtime import likelihoods
from vae_runtime import prior as priors
from vae_runtime.likelihoods import Likelihood
from vae_runtime.manifest import Contract, Named
from vae_runtime.observation import Observation
from vae_runtime.prior import Prior
from vae_train.vae import VAE


def of(vae: VAE, observation: Observation, pair: str = "") -> Contract:
    """The contract of a VAE of such observations; `pair` is what its two graphs share."""
    prior, likelihood = (_named(part.contract()) for part in (vae.prior, vae.likelihood))
    return Contract(pair, observation, vae.latent_shape, prior, likelihood)


def likelihood(vae: VAE, observation: Observation) -> Likelihood:
    """The runtime's twin of the VAE's likelihood. Raises BundleError where it is not one of such observations."""
    return likelihoods.make(of(vae, observation).likelihood, observation)


def prior(vae: VAE) -> Prior:
    """The runtime's twin of the VAE's prior."""
    return priors.make(_named(vae.prior.contract()), vae.latent_shape)


def _named(said: dict[str, Any]) -> Named:
    """What is called so, and what else is said of it."""
    return Named(said["name"], {name: value for name, value in said.items() if name != "name"})
