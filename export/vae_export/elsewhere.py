"""Export a VAE that was trained elsewhere: its networks as they are, and what they take and give, said in words."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.utils import data

from vae_export import (
    candidate,
    columns,
    contradictions,
    ends,
    exporter,
    layout,
    measured,
    onnx_graph,
    onnx_network,
    outputs,
    preprocessing,
    stated,
)
from vae_export.described import Decoder, Encoder, Part
from vae_export.exporter import GATED, MAX_NATS, Exported, Told
from vae_export.layout import Layout
from vae_export.onnx_network import OnnxNetwork
from vae_export.outputs import Gives
from vae_export.stated import Stated
from vae_runtime.errors import ArgumentError, InputError, VaeError
from vae_runtime.observation import IMAGE, Shape
from vae_train import networks, own_networks, pixels
from vae_train.likelihoods import Gaussian
from vae_train.vae import VAE

NUM_SAMPLES = 64  # draws of z, of the bound
_EXAMPLE = "examples/bring_your_own.py"
_OPTIONS = ("opset", "precision", "max_nats", "keep_failing")  # which the command has
_SMALLEST = 8  # side of flat images that are asked about
_TRIED = 256  # observations on which another reading of the outputs is tried


class DescriptionWarning(UserWarning):
    """What is said of a person's networks may be wrong: another reading of their outputs fits their data better."""


def export(
    encoder: Any,
    decoder: Callable[..., Any] | None = None,
    *,
    observations: ArrayLike,
    likelihood: Stated | None = None,
    out: str | PathLike[str],
    encoder_gives: Gives | None = None,
    decoder_gives: Gives | None = None,
    shape: Shape | None = None,
    axes: str | None = None,
    latent_scale: float = 1.0,
    preprocessing: Any | None = None,
    name: str = "observations",
    num_samples: int = NUM_SAMPLES,
    opset: int = onnx_graph.OLDEST_OPSET,
    precision: str = "fp32",
    max_nats: float = MAX_NATS,
    provenance: Told = None,
    keep_failing: Path | None = None,
) -> Exported:
    """Export a trained VAE as it is, and publish the bundle `out` if the runtime gives its numbers.

    encoder, decoder: modules, methods of one, or functions; or one object with encode() and decode(), or with an
    encoder and a decoder, in the place of the former. They are left on their device and in their mode. Or ONNX graphs
    that were made elsewhere, paths of files or onnx.ModelProto: each of one input, float32, outputs by their names.

    observations: real ones [n, *shape], n >= 64, as the encoder takes them, or images as uint8 levels, and not those
    that it was trained on: the first 64 go through the gate, at most 2,000 are what figures are measured on, and what
    is usual of 1,000 is the bundle's calibration.
    likelihood: what the decoder was trained for: a name such as "bernoulli", or one with its parameters, {"name":
    "gaussian", "sigma": 0.1}; a Gaussian without a sigma is given the likeliest one, and that is said.
    encoder_gives: what it returns besides mu, where names do not say it: "logsigma", "logvar", "sigma", "scale" or
    "variance"; "moments" for mu and log variance in one tensor; several in order as "mu, logvar, _"; or names of a dict
    by these words, {"logvar": "their_name"}.
    decoder_gives: in the same way "logits", "theta" (its sigmoid is cut off the graph), "loc" in the units that the
    encoder takes, "pixels" in [0, 1], "logsigma" and the like besides, "moments", "log_scale", "parameters".
    shape: an observation's, (1, 28, 28) say, where the networks take it flat. axes: the order of an observation's axes
    that they take, "HWC" or "TC". latent_scale: z is that many times what the encoder gives, as with diffusers'
    scaling_factor.
    preprocessing: how pictures became what the encoder takes: torchvision's transforms, or words such as {"mean": 0.5,
    "std": 0.5} of pixels in [0, 1], as `vae_export.preprocessing.of` takes them. How values became it: one of
    scikit-learn's scalers, or words such as {"columns": [...], "mean": [...], "std": [...]}, as
    `vae_export.columns.of` takes them; the device then takes the columns as they are measured.
    name: what the figures call the observations. num_samples: draws of z of the bound, K. provenance: what the manifest
    says of the training. opset, precision, max_nats, keep_failing: as in `export_vae`.

    Raises GateFailed with its rows; ArgumentError where the description contradicts the networks; BundleError where
    they cannot be exported. Warns, with a DescriptionWarning, where another description fits better.
    """
    if isinstance(encoder, VAE):
        likelihood = encoder.likelihood if likelihood is None else likelihood
    if likelihood is None:
        raise ArgumentError("no likelihood", "None", 'say what the decoder was trained for, such as "bernoulli"')
    if not (isinstance(latent_scale, int | float) and math.isfinite(latent_scale) and latent_scale):
        raise ArgumentError("latent_scale out of range", latent_scale, "give by what number z is multiplied, not 0")
    if not (isinstance(num_samples, int) and num_samples > 0):
        raise ArgumentError("num_samples out of range", num_samples, "give a positive integer")
    encoder, decoder = _both(encoder, decoder)
    encoder, encoder_gives = _opened(encoder, "encoder", encoder_gives)
    decoder, decoder_gives = _opened(decoder, "decoder", decoder_gives)
    parts = [Part(part) for part in (encoder, decoder)]
    of_graphs = any(isinstance(part, OnnxNetwork) for part in (encoder, decoder))
    with exporter.at_rest(nn.ModuleList(parts)):
        values = _array(observations)
        arranged, prepared = _layout(values, shape, axes, preprocessing)
        x = arranged.observed(values)
        ours = stated.likelihood(likelihood, arranged)
        if ours.binary and arranged.observation.kind != IMAGE:  # grey images are drawn, rows are what they are
            arranged = _of_binary(arranged, x)
        vae = _vae(parts, arranged, ours, encoder_gives, decoder_gives, latent_scale, x)
        networks.in_units(vae, prepared or {})
        sigma = stated.fit_sigma(vae, x)
        if sigma is not None:
            units = " of pixels in [0, 1]" if len(set(arranged.std)) > 1 else ""
            sigma = sigma if units else sigma / arranged.std[0]  # in the network's units, as it is stated
            todo = 'likelihood={"name": "gaussian", "sigma": ...} states another'
            said = f"sigma {sigma:.4g}{units} was fitted to the observations; {todo}"
            warnings.warn(said, DescriptionWarning, stacklevel=2)
        _check_encoder(vae, x, encoder_gives, fitted=sigma is not None)
        _check_readings(vae, x, (prepared or {}).get("columns", []))
        figures = measured.on(x, name, num_samples)
        return exporter.export_vae(
            vae, arranged.observation, x, out, opset=opset, precision=precision, max_nats=max_nats,
            provenance=provenance, preprocessing=prepared, evaluation=figures, normal=x, keep_failing=keep_failing,
            reference=onnx_network.REFERENCE if of_graphs else candidate.NETWORK,
        )  # fmt: skip


def described(name: str) -> dict[str, Any]:
    """What the function `package.module:function` says of a VAE: the arguments of `export`, but for `out`.

    Raises ArgumentError where it cannot be found, fails, or says something else.
    """
    function = own_networks.found(name, "--from", _EXAMPLE)
    try:
        given = function()
    except Exception as error:  # whatever a person's function raises
        raise own_networks.failed(error, name, f"see {_EXAMPLE} of the project's source") from None
    if not isinstance(given, dict):
        raise ArgumentError(f"function returns a {type(given).__name__}", name, "return a dict of export's arguments")
    known = sorted(set(inspect.signature(export).parameters) - {"out", *_OPTIONS})
    if unknown := sorted(set(given) - set(known)):
        raise ArgumentError(f"{name} says what is not known", unknown[0], f"give {', '.join(known)}")
    return given


def _both(encoder: Any, decoder: Callable[..., Any] | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Both networks, of one object or as given."""
    for part in (encoder, decoder):
        if isinstance(part, type):
            raise ArgumentError("a class, not a network", part.__name__, "make one, and load its weights")
        if isinstance(part, Mapping):
            todo = "make the network, load them with load_state_dict, and give it"
            raise ArgumentError("weights, not a network", type(part).__name__, todo)
    if decoder is not None:
        return encoder, decoder
    if any(True for _ in getattr(getattr(encoder, "prior", None), "parameters", tuple)()):
        todo = "give encoder and decoder each by itself, whose prior then is N(0, I)"
        if isinstance(encoder, VAE):
            todo = "give the VAE to export_vae, which takes it"
        raise ArgumentError("a learned prior", type(encoder.prior).__name__, todo)
    for names in (("encode", "decode"), ("encoder", "decoder")):
        if all(callable(getattr(encoder, each, None)) for each in names) and not isinstance(encoder, VAE):
            return getattr(encoder, names[0]), getattr(encoder, names[1])
    if isinstance(encoder, VAE):
        return encoder.encoder, encoder.decoder
    todo = "give encoder and decoder, or one object with encode() and decode()"
    raise ArgumentError("no decoder", type(encoder).__name__, todo)


def _opened(part: Any, role: str, gives: Gives | None) -> tuple[Any, Gives | None]:
    """A network, read where it is an ONNX graph, and what it gives without what is random in it."""
    if not onnx_network.is_graph(part):
        return part, gives
    network = onnx_network.read(part, role)
    if network.stored != "FLOAT":
        said = f"{network.which} is of {network.stored}: the bundle computes in float32"
        warnings.warn(said, DescriptionWarning, stacklevel=3)
    return network, network.without_random(gives)


def _array(observations: ArrayLike) -> NDArray[Any]:
    """The observations as an array of uint8 levels or of numbers."""
    if isinstance(observations, torch.Tensor):
        observations = observations.detach().cpu().numpy()
    if isinstance(observations, str | PathLike | data.Dataset | data.DataLoader):
        todo = "give the numbers [n, *shape], as np.load(path) does, or torch.stack([x for x, *_ in dataset])"
        raise InputError("no array of observations", type(observations).__name__, todo)
    try:
        values = np.asarray(observations)
    except ValueError:
        raise InputError("observations of different shapes", "one array is needed", "give [n, *shape]") from None
    if values.dtype.kind not in "fbiu" or values.ndim < 2:
        which = f"an array of {values.dtype}, {list(values.shape)}"
        raise InputError("no observations", which, "give numbers [n, *shape] as the encoder takes them")
    if (odd := np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))).size:
        raise InputError("observation that is not finite", f"number {odd[0]}, counted from 0", "leave out what is NaN")
    if len(values) < GATED:
        todo = f"give {GATED} or more: the gate compares numbers on so many, and figures rest on them"
        raise InputError("too few observations", len(values), todo)
    return values if values.dtype == np.uint8 else values.astype(np.float32)


def _vae(
    parts: list[Part],
    arranged: Layout,
    likelihood: Any,
    encoder_gives: Gives | None,
    decoder_gives: Gives | None,
    latent_scale: float,
    x: NDArray[Any],
) -> VAE:
    """Both networks as a VAE. Raises ArgumentError where they are not what is said of them."""
    some = pixels.unit(torch.from_numpy(x[:GATED]))
    encoder = Encoder(parts[0], arranged, encoder_gives, latent_scale)
    with torch.no_grad():
        mu, logsigma = _called(encoder, some, "encoder")
        if mu.shape != logsigma.shape or mu.ndim < 2 or len(mu) != len(some):
            which = f"mu {list(mu.shape)}, spread {list(logsigma.shape)}, for {len(some)} observations"
            todo = 'give [batch, *latent shape] of both; "moments" is one tensor of both'
            raise ArgumentError("encoder's outputs do not fit", which, todo)
        if isinstance(network := getattr(parts[0], "network", None), OnnxNetwork):
            network.check(arranged.to_network(some))
        contradictions.of_encoder(encoder, some)
        decoder = Decoder(parts[1], arranged, likelihood, decoder_gives, latent_scale)
        _called(decoder, mu[:2], "decoder")
        if isinstance(network := getattr(parts[1], "network", None), OnnxNetwork):
            network.check(mu / latent_scale)
        contradictions.of_decoder(decoder, mu[:2])
        latents = tuple(mu.shape[1:])
        to_logits = ends.without_sigmoid(decoder, mu[:2], "z to logits") if "theta" in decoder.named(mu[:2]) else None
    return VAE(encoder, to_logits or decoder, latents, likelihood)


def _called(network: nn.Module, values: torch.Tensor, which: str) -> Any:
    """What a network gives. Raises ArgumentError with what it raised."""
    try:
        return network(values)
    except VaeError:
        raise
    except Exception as error:  # whatever a person's network raises
        reason = f"{type(error).__name__}: {error}"
        todo = "give observations as the encoder takes them, and shape= where an image's networks are flat"
        kinds = {weight.dtype for weight in network.parameters() if weight.is_floating_point()}
        if other := sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32}):
            todo = f"the bundle computes in float32, and the network has weights of {other[0]}: give model.float()"
        raise ArgumentError(f"{which} fails", reason, todo) from error


def _layout(
    values: NDArray[Any], shape: Shape | None, axes: str | None, given: Any | None
) -> tuple[Layout, dict[str, Any] | None]:
    """How observations lie, and what the manifest says of their preprocessing: columns are scaled by the device."""
    arranged = layout.of(values.shape[1:], shape, axes)
    if arranged.observation.kind == IMAGE and values.dtype == np.uint8 and values.max() <= 1:
        todo = "give binary images as booleans or floats: levels are of 255"
        raise InputError("levels that are all 0 or 1", f"an array of uint8, {list(values.shape)}", todo)
    side = math.isqrt(values.shape[1])
    if shape is None and values.ndim == 2 and side >= _SMALLEST and side**2 == values.shape[1]:
        which = f"observations are taken as rows of {side**2} numbers"
        if values.min() >= 0 and values.max() <= (255 if values.dtype == np.uint8 else 1):
            warnings.warn(f"{which}; of images, add shape=(1, {side}, {side})", DescriptionWarning, stacklevel=3)
    if given is None:
        return arranged, None
    if arranged.observation.kind != IMAGE:
        return arranged, columns.of(given).entry(arranged.observation) or None
    images = preprocessing.of(given).completed(arranged.observation)
    reverse = images.colours == "BGR"
    mean, std = (each[:: -1 if reverse else 1] for each in (images.mean, images.std))  # in our order
    entry = images.entry(arranged.observation)
    return replace(arranged, mean=mean, std=std, reverse=reverse), entry or None


def _of_binary(arranged: Layout, x: NDArray[Any]) -> Layout:
    """Rows and windows of 0 and 1 as such. Raises InputError for others, which a Bernoulli likelihood has none of."""
    noun = arranged.observation.noun
    if (others := np.flatnonzero(((x != 0) & (x != 1)).any(axis=tuple(range(1, x.ndim))))).size:
        todo = "choose another likelihood, or say of images what they are, shape=(1, 28, 28) for one"
        raise InputError(f"a {noun} of other values than 0 and 1", f"number {others[0]}, counted from 0", todo)
    return replace(arranged, observation=replace(arranged.observation, range=(0.0, 1.0)))


def _check_encoder(vae: VAE, x: NDArray[Any], gives: Gives | None, fitted: bool) -> None:
    """Raise or warn where the encoder's outputs are likelier to be something else than what they are taken for.

    fitted: whether sigma was. It is smaller than the one that was trained with: narrower posteriors look better by it.
    """
    encoder = vae.encoder
    assert isinstance(encoder, Encoder)
    raw = encoder.part(encoder.layout.to_network(pixels.unit(torch.from_numpy(x[:2]))))
    if outputs.says(raw, outputs.ENCODER) or isinstance(gives, Mapping):
        return
    if fitted:
        if gives is None:
            todo = 'say encoder_gives="logvar" or encoder_gives="logsigma", or state the sigma'
            raise ArgumentError("encoder's second output has no name", "with a fitted sigma nothing tells it", todo)
        return
    if likelier := contradictions.other_reading(vae, _observed(vae, x)):
        words, why = likelier
        if gives is None:
            todo = f'say encoder_gives="{words}" or encoder_gives="logsigma"'
            raise ArgumentError("encoder's second output has no name", why, todo)
        other = ", if sigma is the one that it was trained with" if isinstance(vae.likelihood, Gaussian) else ""
        warnings.warn(f"encoder_gives={gives!r} may be wrong{other}: {why}", DescriptionWarning, stacklevel=3)


def _observed(vae: VAE, x: NDArray[Any]) -> torch.Tensor:
    """Some of the observations as the likelihood sees them."""
    levels = torch.from_numpy(x[:_TRIED])
    return pixels.fixed_draw(levels) if vae.likelihood.binary and x.ndim == 4 else levels


def _check_readings(vae: VAE, x: NDArray[Any], scaled: Sequence[Mapping[str, Any]]) -> None:
    """Warn where another description of the networks fits the observations better."""
    levels, observed, encoder = torch.from_numpy(x[:_TRIED]), _observed(vae, x), vae.encoder
    assert isinstance(encoder, Encoder)
    of_graph = isinstance(getattr(encoder.part, "network", None), OnnxNetwork)
    if of_graph and (doubt := contradictions.strangers(vae, observed)):
        said = f"encoder and decoder may be of different models, or untrained: {doubt}"
        warnings.warn(said, DescriptionWarning, stacklevel=3)
    if doubt := contradictions.clamped(vae, encoder(pixels.unit(levels))[0]):
        why = f"the decoder's log spreads are clamped, so that figures are not the network's own: {doubt}"
        warnings.warn(why, DescriptionWarning, stacklevel=3)
    if doubt := contradictions.other_range(vae, observed):
        todo = 'preprocessing={"mean": 0.5, "std": 0.5} says that they take these'
        warnings.warn(f"the range of the pixels may be wrong: {doubt}; {todo}", DescriptionWarning, stacklevel=3)
    if scaled and (doubt := contradictions.unscaled_columns(vae, observed, scaled)):
        said = f"the columns may not be scaled yet, as the encoder takes them: {doubt}"
        warnings.warn(said, DescriptionWarning, stacklevel=3)
    if doubt := contradictions.reversed_channels(vae, observed):
        warnings.warn(f"the order of colours may be wrong: {doubt}", DescriptionWarning, stacklevel=3)
