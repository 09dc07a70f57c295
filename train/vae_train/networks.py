"""From settings to a VAE: which encoder and decoder."""

from torch import Tensor

from vae_runtime.errors import ArgumentError
from vae_train import likelihoods, mlp, own_networks, resnet
from vae_train.config import Config
from vae_train.mlp import Shape
from vae_train.vae import VAE


def build(config: Config, image_shape: Shape, trusted: str | None = None) -> VAE:
    """The VAE that `config` describes, for images of shape (C, H, W), with PyTorch's default initial weights.

    A person's own networks are those of `network.model`; their module is imported only where `trusted` names it too,
    since settings come from files. Raises ArgumentError where the networks cannot be made.
    """
    network = config.network
    likelihood = likelihoods.BY_NAME[network.likelihood]()
    out = image_shape[0] * likelihood.parameters_per_value
    if network.model is not None:
        encoder, decoder = own_networks.make(network.model, trusted, image_shape, network.latent_dim, out)
    elif network.architecture == "resnet":
        halvings = 2 ** len(network.hidden)
        if image_shape[1] % halvings or image_shape[2] % halvings:
            sides = f"{image_shape[1]}x{image_shape[2]}"
            side = "an --image-size" if config.data.image_size else "sides"
            todo = f"choose {side} divisible by {halvings}, or fewer numbers in --hidden"
            raise ArgumentError("images do not halve", sides, todo)
        sizes = (image_shape, network.hidden, network.blocks, network.dense, network.latent_dim)
        encoder, decoder = resnet.Encoder(*sizes), resnet.Decoder(*sizes, out)
    else:
        encoder = mlp.Encoder(image_shape, network.hidden, network.latent_dim, network.activation)
        decoder = mlp.Decoder(image_shape, network.hidden, network.latent_dim, network.activation, out)
    return VAE(encoder, decoder, network.latent_dim, likelihood)


def to_restore(config: Config) -> str:
    """What to do where the networks that are made now are not those that a run's weights were trained in."""
    if config.network.model is None:
        return "use the release of vae-edge that trained it, or train again"
    return f"restore {config.network.model.partition(':')[0]} as it was when the run was trained, or train again"


def start_at_constant_image(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Let the decoder start from the best constant image, where it has a method `start_at`.

    mean, std: of the training images' pixels, [C, H, W].
    """
    parameters = vae.likelihood.constant(mean, std)
    start_at = getattr(vae.decoder, "start_at", None)
    if start_at is not None:
        start_at(parameters)
