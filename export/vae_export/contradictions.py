"""What is said of a person's networks, held against what their graphs and numbers say: each contradiction in words."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vae_export import ends
from vae_export.described import Decoder, Encoder
from vae_runtime.errors import ArgumentError, VaeError
from vae_runtime.likelihoods import LOG_SCALE_BOUND, LOGSIGMA_BOUNDS
from vae_runtime.observation import IMAGE
from vae_train import bounds, pixels
from vae_train.vae import VAE

_POSITIVE = frozenset({"softplus", "exp", "relu", "sigmoid", "square", "abs"})
_LOG_SCALES = (-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
_AT_LEAST = 0.5  # nats per observation by which another reading must be better to be spoken of
_ERRORS = 4.0  # and standard errors of that difference


class _Named(nn.Module):
    """A network's outputs by our words, in a fixed order, to be traced."""

    def __init__(self, part: Encoder | Decoder, words: list[str]) -> None:
        super().__init__()
        self.part, self.words = part, words

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        named = self.part.named(values)
        return tuple(named[word] for word in self.words)


class _Reread(nn.Module):
    """An encoder whose outputs are others than is said: the words for which they were taken, and what they are."""

    def __init__(self, encoder: Encoder, words: dict[str, str]) -> None:
        super().__init__()
        self.encoder, self.words = encoder, words

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.read({self.words.get(word, word): value for word, value in self.encoder.named(x).items()})


@torch.no_grad()
def of_decoder(decoder: Decoder, z: Tensor) -> None:
    """Raise ArgumentError where a decoder does not end as its outputs are said to. z: an example [2, *latent_shape]."""
    words = list(decoder.named(z))
    end = dict(zip(words, ends.of(_Named(decoder, words), z, "decoder"), strict=True))
    layout = decoder.layout
    for word, operator in end.items():
        if word == "logits" and operator in ("sigmoid", "hardsigmoid", "softmax", "_softmax"):
            raise _says(f"logits that end in {operator}", word, 'say decoder_gives="theta", whose sigmoid is cut off')
        if word == "logits" and operator == "tanh":
            todo = 'say likelihood="gaussian" and preprocessing={"mean": 0.5, "std": 0.5}, or what tanh is for'
            raise _says("logits that end in tanh, within [-1, 1]", word, todo)
        if word == "theta" and operator != "sigmoid":
            value = decoder.named(1000 * z)[word]
            bounded = bool((value >= 0).all()) and bool((value <= 1).all())
            todo = "give what is before that as logits" if bounded else 'say decoder_gives="logits" if these are it'
            raise _says(f"theta that ends in {operator}, not in a sigmoid", word, todo)
        unscaled = layout.observation.range is not None and not layout.scales
        if word in ("loc", "pixels") and operator == "tanh" and unscaled:
            todo = 'add preprocessing={"mean": 0.5, "std": 0.5}: the network takes and gives pixels in [-1, 1]'
            raise _says(f"{word} that ends in tanh, within [-1, 1], of pixels in [0, 1]", word, todo)
        if word == "pixels" and operator == "tanh" and layout.observation.range is not None:
            todo = 'say decoder_gives="loc": it is in the units that the encoder takes'
            raise _says("pixels that end in tanh, within [-1, 1]", word, todo)
        if word == "loc" and operator == "sigmoid" and layout.observation.range is not None and layout.scales:
            todo = 'say decoder_gives="pixels", which are in [0, 1] whatever the encoder takes'
            raise _says("loc that ends in sigmoid, within [0, 1], of scaled pixels", word, todo)
        _check_spread("decoder", word, operator)


@torch.no_grad()
def of_encoder(encoder: Encoder, x: Tensor) -> None:
    """Raise ArgumentError where an encoder does not end as its outputs are said to. x: real ones [n, *shape]."""
    named = encoder.named(x)
    words = list(named)
    for word, operator in zip(words, ends.of(_Named(encoder, words), x[:2], "encoder"), strict=True):
        _check_spread("encoder", word, operator)
    for word in ("sigma", "scale", "variance"):
        if word in named and not bool((named[word] > 0).all()):
            todo = 'say encoder_gives="logvar" or "logsigma", whichever it is'
            raise ArgumentError(
                f"encoder's {word} is not above 0", f"{float(named[word].min()):.3g} of real ones", todo
            )


def other_reading(vae: VAE, observed: Tensor) -> tuple[str, str] | None:
    """The words for outputs that nothing but their place says, where others than those said are likelier; and why.

    The one of log sigma and log variance with the higher ELBO is meant, or the two outputs the other way round, where
    that is beyond doubt. observed: what the likelihood sees [n, *shape].
    """
    encoder = vae.encoder
    if not isinstance(encoder, Encoder):
        return None
    words = set(encoder.named(observed[:2].float()))
    said = next((word for word in ("logsigma", "logvar") if word in words), None)
    if said is None:
        return None
    other = "logvar" if said == "logsigma" else "logsigma"
    tried = []
    for first, second in (("mu", other), (said, "mu"), (other, "mu")):
        reread = _Reread(encoder, {"mu": first, said: second})
        read = VAE(reread, vae.decoder, vae.latent_shape, vae.likelihood, vae.prior)
        if better := _better(read, vae, observed, observed):
            tried.append((better, second if first == "mu" else f"{first}, mu"))
    if not tried:
        return None
    (theirs, ours), right = max(tried)
    return right, f"as {right} its ELBO is {theirs:.2f} nats, as {said} {ours:.2f}"


@torch.no_grad()
def strangers(vae: VAE, observed: Tensor) -> str | None:
    """Whether a decoder knows nothing of an observation by its own z, in a sentence's half."""
    own, others = (_of_means(vae, observed, shift) for shift in (0, 1))
    gain = own - others
    if float(gain.mean()) > _ERRORS * float(gain.std()) / math.sqrt(len(gain)):
        return None
    return f"log p(x|z) is {own.mean():.2f} nats by an observation's own z, and {others.mean():.2f} by another's"


def other_range(vae: VAE, observed: Tensor) -> str | None:
    """Whether networks that are said to take pixels in [0, 1] do better on [-1, 1], in a sentence's half."""
    encoder, decoder = vae.encoder, vae.decoder
    if not isinstance(encoder, Encoder) or encoder.layout.observation.kind != IMAGE or encoder.layout.scales:
        return None
    scaled = replace(encoder.layout, mean=(0.5,), std=(0.5,))
    encoder, decoder = copy.copy(encoder), copy.copy(decoder)
    for part in (encoder, decoder):
        if isinstance(part, Encoder | Decoder):
            part.layout = scaled
    better = _better(VAE(encoder, decoder, vae.latent_shape, vae.likelihood, vae.prior), vae, observed, observed)
    return f"of pixels in [-1, 1] their ELBO is {better[0]:.2f} nats, and so {better[1]:.2f}" if better else None


def unscaled_columns(vae: VAE, observed: Tensor, columns: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether observations fit the networks better once their columns are scaled, in a sentence's half.

    columns: as a manifest has them, each with mean and scale.
    """
    mean, scale = (
        torch.tensor([float(column[name]) for column in columns]).reshape(-1, *[1] * (observed.ndim - 2))
        for name in ("mean", "scale")
    )
    better = _better(vae, vae, (observed - mean) / scale, observed)
    return f"scaled their ELBO is {better[0]:.2f} nats, and so {better[1]:.2f}" if better else None


@torch.no_grad()
def clamped(vae: VAE, z: Tensor) -> str | None:
    """How many of a decoder's own spreads lie beyond what its likelihood clamps them to, in a sentence's half.

    Where they do, figures are others than the network's own. z: of real observations [n, *latent_shape].
    """
    low, high = {"heteroscedastic-gaussian": LOGSIGMA_BOUNDS, "discretised-logistic": _LOG_SCALES}.get(
        vae.likelihood.name, (-math.inf, math.inf)
    )
    if math.isinf(high):
        return None
    spread = vae.decoder(z).chunk(2, dim=1)[1]
    beyond = ((spread < low) | (spread > high)).double().mean().item()
    return f"{beyond:.2%} of them lie outside of [{low:.3g}, {high:.3g}]" if beyond else None


def reversed_channels(vae: VAE, observed: Tensor) -> str | None:
    """Whether images of three channels fit the networks better the other way round, in a sentence's half."""
    if observed.ndim != 4 or observed.shape[1] != 3:
        return None
    better = _better(vae, vae, observed.flip(1), observed)
    return f"the other way round their ELBO is {better[0]:.2f} nats, and so {better[1]:.2f}" if better else None


@torch.no_grad()
def _better(other: VAE, vae: VAE, of_other: Tensor, observed: Tensor) -> tuple[float, float] | None:
    """Both mean ELBOs, nats, where the other's is surely the higher one, and that of an encoder that was trained."""
    try:
        theirs = bounds.measure(other, of_other).terms.elbo.double()
    except (VaeError, ValueError, RuntimeError):
        return None
    ours = bounds.measure(vae, observed).terms.elbo.double()
    gain = theirs - ours
    error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    sure = float(gain.mean()) > max(_AT_LEAST, _ERRORS * error)
    trained = float(theirs.mean()) > float(_of_means(other, of_other, 1).mean())
    return (float(theirs.mean()), float(ours.mean())) if sure and trained else None


def _of_means(vae: VAE, observed: Tensor, shift: int) -> Tensor:
    """log p(x|z), nats, of each, for the mean of q(z|x) of the observation so many before it.

    For another's, it is less than for its own where encoder and decoder were trained together.
    """
    x = pixels.unit(observed)
    pairs = [(some, vae.decoder(vae.encoder(some)[0].roll(shift, dims=0))) for some in x.split(64)]
    return torch.cat([vae.likelihood.log_prob(*pair) for pair in pairs]).double()


def _check_spread(which: str, word: str, operator: str) -> None:
    if word in ("logsigma", "logvar", "log_scale") and operator in _POSITIVE:
        todo = f'say {which}_gives="sigma" or "variance", whichever it is'
        raise ArgumentError(f"{which}'s {word} is never below 0", f"it ends in {operator}", todo)


def _says(what: str, word: str, todo: str) -> ArgumentError:
    return ArgumentError("decoder contradicts its description", what, todo)
