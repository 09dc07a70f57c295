"""A person's own networks: found, tried out, and explained where they fail."""

import importlib
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from vae_runtime.errors import ArgumentError
from vae_train.mlp import Shape


def make(name: str, trusted: str | None, image_shape: Shape, latent_dim: int, out: int) -> tuple[nn.Module, nn.Module]:
    """The encoder and decoder that the function `package.module:function` makes; `networks.build` has the arguments.

    The module is looked for in the working directory too, and imported only where `trusted` is its name. Raises
    ArgumentError where it cannot be found, fails, or makes networks that do not fit.
    """
    if name != trusted:
        what = f"run has other networks than {trusted}" if trusted else "run has networks of its own"
        raise ArgumentError(what, name, f"if you trust that module, add --model {name}")
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a person's module raises
        if isinstance(error, ImportError | AttributeError | ValueError | TypeError) and not _inside(error):
            raise ArgumentError(f"networks not found ({error})", name, _where_to_look(error, module)) from None
        raise failed(error, name) from None
    try:
        encoder, decoder = factory(image_shape, latent_dim, out)
        _try(name, encoder, decoder, image_shape, latent_dim, out)
    except ArgumentError:
        raise
    except Exception as error:
        raise failed(error, name) from None
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
    encoded, parameters = encoder(torch.zeros(batch, *image_shape)), decoder(torch.zeros(batch, latent_dim))
    encoder.train()
    decoder.train()
    if not (isinstance(encoded, tuple | list) and [isinstance(part, Tensor) for part in encoded] == [True, True]):
        wanted = f"return mu and logsigma, two tensors [batch, {latent_dim}]"
        raise ArgumentError(f"networks do not fit (encoder returns {_kind(encoded)})", name, wanted)
    if not isinstance(parameters, Tensor):
        wanted = f"return one tensor [batch, {out}, {sides[0]}, {sides[1]}], the likelihood's parameters"
        raise ArgumentError(f"networks do not fit (decoder returns {_kind(parameters)})", name, wanted)
    mu, logsigma = encoded
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


def _kind(value: object) -> str:
    """What a network has returned, for people."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"{len(value)} values ({', '.join(map(_kind, value))})"
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _where_to_look(error: Exception, module: str) -> str:
    """What to do where a module, or the function in it, has not been found."""
    top = module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        return f"run this in the folder that {top} is in, or name that folder in PYTHONPATH"
    return "give --model package.module:function"


def _inside(error: Exception) -> bool:
    """Whether a module that was being imported has raised it, rather than Python, which looked for the module."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(f.filename != __file__ and "importlib" not in f.filename for f in frames)


def failed(
    error: Exception, name: str, todo: str = "see examples/own_networks.py of the project's source"
) -> ArgumentError:
    """What a person's networks raised, and in which line of their module."""
    module = name.partition(":")[0].rpartition(".")[2]
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).stem == module]
    where = f", line {lines[-1]} of {module}.py" if lines else ""
    reason = f"{type(error).__name__}: {error}{where}"
    return ArgumentError(f"networks fail ({reason})", name, todo)
