"""What a bundle's contract says of a VAE."""

from vae_runtime import likelihoods
from vae_runtime.likelihoods import Likelihood
from vae_runtime.manifest import Contract, Named
from vae_runtime.observation import IMAGE, Observation, Shape
from vae_train.vae import VAE


def of(vae: VAE, image_shape: Shape, pair: str = "") -> Contract:
    """The contract of a VAE of images; `pair` is what its two graphs share."""
    settings = vae.likelihood.contract()
    return Contract(
        pair,
        Observation(IMAGE, image_shape),
        (vae.latent_dim,),
        Named("standard-normal"),
        Named(settings.pop("name"), settings),
    )


def likelihood(vae: VAE, image_shape: Shape) -> Likelihood:
    """The runtime's twin of the VAE's likelihood."""
    made = of(vae, image_shape)
    return likelihoods.make(made.likelihood, made.observation)
