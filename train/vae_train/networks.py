"""From settings to a VAE: which encoder and decoder, and a person's own."""

import importlib
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from vae_runtime.errors import ArgumentError
from vae_train import likelihoods, mlp, resnet
from vae_train.config import Config
from vae_train.mlp import Shape
from vae_train.vae import VAE


def build(config: Config, image_shape: Shape, trusted: str | None = None) -> VAE:
    """The VAE that `config` describes, for images of shape (C, H, W), with PyTorch's default initial weights.

    A person's own networks are those of `config.model`; their module is imported only where `trusted` names it too,
    since settings come from files. Raises ArgumentError where the networks cannot be made.
    """
    likelihood = likelihoods.BY_NAME[config.likelihood]()
    out = image_shape[0] * likelihood.parameters_per_pixel
    if config.model is not None:
        encoder, decoder = _own(config.model, trusted, image_shape, config.latent_dim, out)
    elif config.network == "resnet":
        halvings = 2 ** len(config.hidden)
        if image_shape[1] % halvings or image_shape[2] % halvings:
            sides = f"{image_shape[1]}x{image_shape[2]}"
            raise ArgumentError(
                "images do not halve", sides, f"choose sides divisible by {halvings}, or fewer --hidden"
            )
        sizes = (image_shape, config.hidden, config.blocks, config.dense, config.latent_dim)
        encoder, decoder = resnet.Encoder(*sizes), resnet.Decoder(*sizes, out)
    else:
        encoder = mlp.Encoder(image_shape, config.hidden, config.latent_dim, config.activation)
        decoder = mlp.Decoder(image_shape, config.hidden, config.latent_dim, config.activation, out)
    return VAE(encoder, decoder, config.latent_dim, likelihood)


def start_at_constant_image(vae: VAE, mean: Tensor, std: Tensor) -> None:
    """Let the decoder start from the best constant image, where it has a method `start_at`.

    mean, std: of the training images' pixels, [C, H, W].
    """
    parameters = vae.likelihood.constant(mean, std)
    start_at = getattr(vae.decoder, "start_at", None)
    if start_at is not None:
        start_at(parameters)


def _own(name: str, trusted: str | None, image_shape: Shape, latent_dim: int, out: int) -> tuple[nn.Module, nn.Module]:
    """What the function `package.module:function` makes; it is looked for in the working directory too."""
    if name != trusted:
        raise ArgumentError("run has networks of its own", name, f"if you trust that module, add --model {name}")
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ArgumentError(f"networks not found ({error})", name, "give --model package.module:function") from None
    except Exception as error:  # whatever a person's module raises
        raise _failed(error, name) from None
    try:
        encoder, decoder = factory(image_shape, latent_dim, out)
        _try(name, encoder, decoder, image_shape, latent_dim, out)
    except ArgumentError:
        raise
    except Exception as error:
        raise _failed(error, name) from None
    return encoder, decoder


@torch.no_grad()
def _try(name: str, encoder: nn.Module, decoder: nn.Module, image_shape: Shape, latent_dim: int, out: int) -> None:
    """Send zeros through a person's networks. Raises ArgumentError where they return something else than they must."""
    batch, sides = 2, image_shape[1:]
    start_at = getattr(decoder, "start_at", None)
    if start_at is not None:
        start_at(torch.zeros(out, *sides))
    encoder.eval()  # running statistics stay as they are
    decoder.eval()
    mu, logsigma = encoder(torch.zeros(batch, *image_shape))
    parameters = decoder(torch.zeros(batch, latent_dim))
    encoder.train()
    decoder.train()
    per_image = {
        "mu": (mu, [latent_dim]),
        "logsigma": (logsigma, [latent_dim]),
        "parameters": (parameters, [out, *sides]),
    }
    for what, (tensor, shape) in per_image.items():
        if [*tensor.shape, tensor.dtype] != [batch, *shape, torch.float32]:
            wanted = f"return float32 [batch, {', '.join(map(str, shape))}]"
            found = f"{what}: {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, for a batch of {batch}"
            raise ArgumentError(f"networks do not fit ({found})", name, wanted)


def _failed(error: Exception, name: str) -> ArgumentError:
    """What a person's networks raised, and in which line of their module."""
    module = name.partition(":")[0].rpartition(".")[2]
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).stem == module]
    where = f", line {lines[-1]} of {module}.py" if lines else ""
    reason = f"{type(error).__name__}: {error}{where}"
    return ArgumentError(f"networks fail ({reason})", name, "see the example in docs/training.md")
