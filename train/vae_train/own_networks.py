"""A person's own networks: found, tried out, and explained where they fail."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_runtime.errors import ArgumentError
from vae_runtime.observation import Shape


def make(name: str, trusted: str | None, shape: Shape, latent_dim: int, out: int) -> tuple[nn.Module, nn.Module, Shape]:
    """The encoder and decoder that the function `package.module:function` makes, and the shape of their latents.

    `networks.build` has the arguments. That shape is (latent_dim,), or with more axes whatever the encoder returns.
    The module is imported only where `trusted` is its name. Raises ArgumentError where it cannot be found, fails, or
    makes networks that do not fit.
    """
    if name != trusted:
        what = f"run has other networks than {trusted}" if trusted else "run has networks of its own"
        raise ArgumentError(what, name, f"if you trust that module, add --model {name}")
    factory = found(name, "--model")
    try:
        encoder, decoder = factory(shape, latent_dim, out)
        return encoder, decoder, _try(name, encoder, decoder, shape, latent_dim, out)
    except ArgumentError:
        raise
    except Exception as error:
        raise failed(error, name) from None


def found(name: str, option: str, example: str = "examples/own_networks.py") -> Callable[..., Any]:
    """The function `package.module:function` that `option` names, from the working directory too.

    example: where such a function can be read. Raises ArgumentError where it cannot be found, or its module fails.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a person's module raises
        if isinstance(error, ImportError | AttributeError | ValueError | TypeError) and not _inside(error):
            raise ArgumentError(f"networks not found ({error})", name, _where_to_look(error, module, option)) from None
        raise failed(error, name, f"see {example} of the project's source") from None
    return factory


@torch.no_grad()
def _try(name: str, encoder: nn.Module, decoder: nn.Module, shape: Shape, latent_dim: int, out: int) -> Shape:
    """Send zeros through a person's networks: the shape of their latents.

    Raises ArgumentError where they return something else than they must.
    """
    batch, sides = 2, shape[1:]
    start_at = getattr(decoder, "start_at", None)
    if start_at is not None:
        start_at(torch.zeros(out, *sides))
    encoder.eval()  # running statistics stay as they are
    decoder.eval()
    encoded = encoder(torch.zeros(batch, *shape))
    encoder.train()
    if not (isinstance(encoded, tuple | list) and [isinstance(part, Tensor) for part in encoded] == [True, True]):
        wanted = f"return mu and logsigma, two tensors [batch, {latent_dim}]"
        raise ArgumentError(f"networks do not fit (encoder returns {_kind(encoded)})", name, wanted)
    mu, logsigma = encoded
    latent_shape = (latent_dim,) if mu.ndim < 3 else tuple(mu.shape[1:])
    _check(name, "mu", mu, (batch, *latent_shape))
    _check(name, "logsigma", logsigma, (batch, *latent_shape))
    parameters = decoder(torch.zeros(batch, *latent_shape))
    decoder.train()
    if not isinstance(parameters, Tensor):
        wanted = f"return one tensor {_sizes((batch, out, *sides))}, the likelihood's parameters"
        raise ArgumentError(f"networks do not fit (decoder returns {_kind(parameters)})", name, wanted)
    _check(name, "parameters", parameters, (batch, out, *sides))
    return latent_shape


def _check(name: str, what: str, tensor: Tensor, shape: Shape) -> None:
    """Raise ArgumentError where a tensor has not this shape, or is not of float32."""
    if (tuple(tensor.shape), tensor.dtype) != (shape, torch.float32):
        found = f"{what}: {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, for a batch of {shape[0]}"
        raise ArgumentError(f"networks do not fit ({found})", name, f"return float32 {_sizes(shape)}")


def _sizes(shape: Shape) -> str:
    return f"[batch, {', '.join(map(str, shape[1:]))}]"


def _kind(value: object) -> str:
    """What a network has returned, for people."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"{len(value)} values ({', '.join(map(_kind, value))})"
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _where_to_look(error: Exception, module: str, option: str) -> str:
    """What to do where a module, or the function in it, has not been found."""
    top = module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        return f"run this in the folder that {top} is in, or name that folder in PYTHONPATH"
    return f"give {option} package.module:function"


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
