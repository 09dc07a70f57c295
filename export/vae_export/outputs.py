"""What a person's networks return, in whatever form, as tensors by the words that this package has for them.

A tensor, several, a dict, a named tuple, a dataclass, a distribution of torch, or an object that holds one of these.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_runtime.errors import ArgumentError

Named = dict[str, Tensor]
Gives = str | Mapping[str, str]  # "logvar", "mu, logvar, _", or {"logvar": "their_name"}

SPREADS = ("logsigma", "logvar", "sigma", "scale", "variance")  # of a Gaussian; scale is torch's word for sigma
ENCODER = ("mu", *SPREADS, "moments")  # moments: mu and logvar in one tensor, one after the other
DECODER = ("logits", "theta", "loc", "pixels", *SPREADS, "moments", "log_scale", "parameters")

_CALLED = {  # what people call them
    "mu": ("mean", "means", "loc", "mu_z", "z_mu", "z_mean", "q_mu", "embedding"),
    "loc": ("mu", "mean", "means", "x_mean", "x_mu", "x_loc"),
    "logsigma": ("log_sigma", "logstd", "log_std"),
    "logvar": ("log_var", "lv", "logvariance", "log_variance", "log_covariance", "z_logvar", "z_log_var"),
    "sigma": ("std", "stddev", "z_sigma", "z_std"),
    "variance": ("var", "z_var"),
    "logits": ("logit", "x_logits"),
    "theta": ("probs", "probabilities"),
}
_HOLDERS = ("latent_dist", "base_dist")  # where diffusers and torch's Independent keep the distribution itself
_DISTRIBUTIONS = ("Normal", "Bernoulli", "StudentT")


def named(output: Any, gives: Gives | None, usual: Sequence[Sequence[str]], words: Sequence[str], which: str) -> Named:
    """The tensors of an output by the `words` for them.

    gives: what the caller says that they are; usual: what so many are where neither caller nor output says it.
    which: "encoder" or "decoder", for messages. Raises ArgumentError where that is not
    understood, or contradicts the output.
    """
    said = said_of(gives, words)
    if unknown := [word for word in said if word not in (*words, "_")]:
        raise ArgumentError(f"{which}_gives not known", unknown[0], f"say {', '.join(words)}, or _ of what is not used")
    found = _taken_apart(output, words)
    if not found:
        todo = "return a tensor, a tuple, a dict or a distribution of torch"
        raise ArgumentError(f"{which}'s output not understood", describe(output), todo)
    if isinstance(gives, Mapping):
        if missing := [name for name in gives.values() if name not in found]:
            todo = f"name some of {', '.join(map(str, found))}"
            raise ArgumentError(f"{which} gives no {missing[0]}", describe(output), todo)
        return {word: found[name] for word, name in zip(said, gives.values(), strict=True)}
    ours = {word: found[name] for name in found if (word := _word(name, words))}
    if ours and not set(said) - {*ours, "_"}:
        return ours
    if ours and len(found) > 1:
        (wrong, *_), names = sorted(set(said) - {*ours, "_"}), ", ".join(map(str, found))
        todo = f'say {which}_gives={{"{wrong}": "the name of it"}} if one of these is it, or leave {which}_gives out'
        raise ArgumentError(f"{which} gives no {wrong} by its names", names, todo)
    if which == "encoder" and len(found) == 1 and said != ("moments",):
        todo = 'say encoder_gives="moments" if it is mu and log variance, one after the other'
        raise ArgumentError("encoder gives one tensor", describe(output), todo)
    order = said or next((tuple(each) for each in usual if len(each) == len(found)), tuple(usual[0]))
    if which == "encoder" and len(order) == 1 and len(found) == 2:
        order = ("mu", *order)
    if len(order) != len(found):
        example = "mu, logvar, _" if which == "encoder" else "loc, logvar"
        todo = f'say what each is, in order, such as {which}_gives="{example}"'
        many = "one word" if len(order) == 1 else f"{len(order)} words"
        raise ArgumentError(f"{which} gives {len(found)} tensors, and {many} is said", describe(output), todo)
    return {word: tensor for word, tensor in zip(order, found.values(), strict=True) if word != "_"}


def said_of(gives: Gives | None, words: Sequence[str]) -> tuple[str, ...]:
    """The words for a network's outputs that the caller says, in order; people's own words are taken for ours."""
    said = tuple(gives) if isinstance(gives, Mapping) else tuple(map(str.strip, gives.split(","))) if gives else ()
    return tuple(_word(word, words) or word for word in said)


def says(output: Any, words: Sequence[str]) -> bool:
    """Whether an output says itself, by its names, what some of it is."""
    return any(_word(name, words) for name in _taken_apart(output, words))


def describe(output: Any) -> str:
    """What a network has returned, for people."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, Mapping):
        return f"a dict of {', '.join(map(str, output))}"
    if isinstance(output, tuple | list):
        return f"{len(output)} values ({', '.join(map(describe, output))})"
    return f"a {type(output).__name__}"


def _taken_apart(output: Any, words: Sequence[str]) -> dict[Any, Tensor]:
    """The tensors of an output by their names, or by their numbers where they have none."""
    for holder in _HOLDERS:
        if (held := getattr(output, holder, None)) is not None:
            return _taken_apart(held, words)
    if isinstance(output, torch.distributions.Distribution):
        if (kind := type(output).__name__) not in _DISTRIBUTIONS:
            todo = f"give one of {', '.join(_DISTRIBUTIONS)}, or its parameters as tensors"
            raise ArgumentError("distribution that no bundle has", kind, todo)
        output = {name: getattr(output, name) for name in output.arg_constraints if name in vars(output)}
    elif hasattr(output, "_asdict"):
        output = output._asdict()
    elif dataclasses.is_dataclass(output) and not isinstance(output, Mapping):
        output = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, Mapping):
        return {name: part for name, part in output.items() if isinstance(part, Tensor)}
    if isinstance(output, Tensor | tuple | list):
        parts = (output,) if isinstance(output, Tensor) else output
        if len(parts) == 1 and not isinstance(parts[0], Tensor):
            return _taken_apart(parts[0], words)
        return {i: part for i, part in enumerate(parts) if isinstance(part, Tensor)}
    names = [name for word in words for name in (word, *_CALLED.get(word, ()))]
    return {name: part for name in names if isinstance(part := getattr(output, name, None), Tensor)}


def _word(name: Any, words: Sequence[str]) -> str | None:
    """Our word for what a person's output is called."""
    lower = str(name).lower()
    return next((word for word in words if lower == word or lower in _CALLED.get(word, ())), None)
