"""From settings to a VAE: which encoder, decoder, likelihood and prior."""

from typing import Any

import torch
from torch import Tensor, nn

from vae_runtime.errors import ArgumentError
from vae_runtime.observation import AXES, IMAGE, Shape
from vae_train import conv1d, likelihoods, mlp, own_networks, resnet
from vae_train.config import AUTO, Config
from vae_train.flow import Flow
from vae_train.likelihoods import Mixed
from vae_train.prior import Prior, StandardNormal
from vae_train.vae import VAE

PRIORS: dict[str, type[Prior]] = {prior.name: prior for prior in (StandardNormal, Flow)}
_AT_A_TIME = 4096  # rows


def build(config: Config, shape: Shape, trusted: str | None = None) -> VAE:
    """The VAE that `config` describes, for observations of this shape, with PyTorch's default initial weights.

    A person's own networks are those of `network.model`; their module is imported only where `trusted` names it too,
    since settings come from files. Raises ArgumentError where the networks cannot be made.
    """
    network = config.network
    if network.likelihood == AUTO:
        raise ArgumentError(
            "likelihood not settled", AUTO, "config.replace(likelihood=data.likelihood) takes the data's"
        )
    sigma = network.sigma or ("one" if len(shape) == len(AXES[IMAGE]) else "column")
    likelihood = likelihoods.make(network.likelihood, shape, sigma)
    out = shape[0] * likelihood.parameters_per_value
    latent_shape: Shape = (network.latent_dim,)
    if network.model is not None:
        encoder, decoder, latent_shape = own_networks.make(network.model, trusted, shape, network.latent_dim, out)
    else:
        make = {"mlp": _mlp, "resnet": _resnet, "conv1d": _conv1d}[network.architecture]
        encoder, decoder = make(config, shape, out)
    return VAE(encoder, decoder, latent_shape, likelihood, PRIORS[network.prior](latent_shape))


def _mlp(config: Config, shape: Shape, out: int) -> tuple[nn.Module, nn.Module]:
    network = config.network
    sizes = (shape, network.hidden, network.latent_dim, network.activation)
    return mlp.Encoder(*sizes), mlp.Decoder(*sizes, out)


def _resnet(config: Config, shape: Shape, out: int) -> tuple[nn.Module, nn.Module]:
    network, halvings = config.network, 2 ** len(config.network.hidden)
    if len(shape) != 3:
        raise ArgumentError("a resnet is for images", f"observations of shape {list(shape)}", "choose another --preset")
    if shape[1] % halvings or shape[2] % halvings:
        side = "an --image-size" if config.data.image_size else "sides"
        todo = f"choose {side} divisible by {halvings}, or fewer numbers in --hidden"
        raise ArgumentError("images do not halve", f"{shape[1]}x{shape[2]}", todo)
    sizes = (shape, network.hidden, network.blocks, network.dense, network.latent_dim)
    return resnet.Encoder(*sizes), resnet.Decoder(*sizes, out)


def _conv1d(config: Config, shape: Shape, out: int) -> tuple[nn.Module, nn.Module]:
    network = config.network
    if len(shape) != 2:
        which = f"observations of shape {list(shape)}"
        raise ArgumentError("convolutions over time are for series", which, "choose another --preset")
    sizes = (shape, network.hidden, network.dense, network.latent_dim)
    return conv1d.Encoder(*sizes), conv1d.Decoder(*sizes, out)


def tell_binary(vae: VAE, train: Tensor) -> None:
    """Let a mixed likelihood know which columns, or channels, of observations [n, *shape] hold only 0 and 1.

    Raises ArgumentError where none or all of them do.
    """
    if not isinstance(vae.likelihood, Mixed):
        return
    flags = torch.ones(train.shape[1], dtype=torch.bool)
    for some in train.split(_AT_A_TIME):
        flags &= ((some == 0) | (some == 1)).transpose(0, 1).flatten(1).all(dim=1)
    if flags.all() or not flags.any():
        which, other = ("all columns hold", "bernoulli") if flags.all() else ("no column holds", "gaussian")
        raise ArgumentError("a mixed likelihood of one kind", f"{which} 0 and 1 alone", f"add --likelihood {other}")
    vae.likelihood.binary_columns.copy_(flags.reshape(vae.likelihood.binary_columns.shape))


def in_units(vae: VAE, preprocessing: dict[str, Any]) -> None:
    """Let log p(x|z) be a density in the units that the observations' columns came in."""
    scales = [column["scale"] for column in preprocessing.get("columns", ())]
    unit = getattr(vae.likelihood, "log_unit", None)
    if scales and unit is not None:
        log = torch.tensor(scales, dtype=torch.float64).log().to(unit)
        vae.likelihood.log_unit = log.reshape(-1, *[1] * (vae.likelihood.axes - 1))


def to_restore(config: Config) -> str:
    """What to do where the networks that are made now are not those that a run's weights were trained in."""
    if config.network.model is None:
        return "use the release of vae-edge that trained it, or train again"
    return f"restore {config.network.model.partition(':')[0]} as it was when the run was trained, or train again"


def start_at_constant(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Let the decoder start from the best constant observation, where it has a method `start_at`.

    So does an encoder that has one, from the mean and spread of all values, unless they are binary and far apart.
    mean, std: of the training observations' values, of their shape.
    """
    parameters = vae.likelihood.constant(mean, std)
    start_at = getattr(vae.decoder, "start_at", None)
    if start_at is not None:
        start_at(parameters)
    start_at = getattr(vae.encoder, "start_at", None)
    if start_at is not None and not vae.likelihood.binary:
        spread = (std.square() + (mean - mean.mean()).square()).mean().sqrt()
        start_at(mean.mean(), spread.clamp(min=1 / 255))
