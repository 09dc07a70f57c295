"""A likelihood that is stated by its name and parameters, in the units of a person's network, as one of ours."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_export.layout import Layout
from vae_runtime.errors import ArgumentError
from vae_train import likelihoods, pixels
from vae_train.config import LIKELIHOODS
from vae_train.likelihoods import Gaussian, Likelihood, Mixed, StudentT
from vae_train.vae import VAE

Stated = str | Mapping[str, Any] | Likelihood
_TAKES = {"gaussian": {"sigma"}, "student-t": {"sigma", "df"}, "mixed": {"sigma", "binary"}}


def likelihood(stated: Stated, layout: Layout) -> Likelihood:
    """Ours, of observations of this layout.

    stated: a name out of vae_train.config.LIKELIHOODS, a mapping such as {"name": "gaussian", "sigma": 0.1}, or one of
    vae_train.likelihoods. sigma, in the network's units: a number, one for each channel or column, or one for each
    value; df: Student's degrees of freedom, as many; binary: of a mixed one, which columns are of 0 and 1, a bool each.
    A Gaussian whose sigma is not stated has NaN, which `fit_sigma` replaces. Raises ArgumentError.
    """
    if isinstance(stated, Likelihood):
        named = stated.contract()
        settings = {k.removeprefix("log"): v for k, v in named.settings.items() if k not in ("log_unit", "binary")}
        given = {k: np.exp(v).tolist() for k, v in settings.items()} | {"name": named.name}
        given |= {"binary": named.settings["binary"]} if "binary" in named.settings else {}
    else:
        given = dict(stated) if isinstance(stated, Mapping) else {"name": stated}
    if (name := given.pop("name", None)) not in LIKELIHOODS:
        todo = f"give one of {', '.join(LIKELIHOODS)}; binary cross-entropy is bernoulli, squared errors are gaussian"
        raise ArgumentError("likelihood not known", name, todo)
    if unknown := sorted(set(given) - (takes := _TAKES.get(name, set()))):
        todo = f"give {', '.join(sorted(takes))} or nothing" if takes else "leave it out: it has no parameters"
        raise ArgumentError(f"parameter of a {name} likelihood not known", unknown[0], todo)
    shape = layout.observation.shape
    made = likelihoods.make(name, shape, "one")
    if isinstance(made, Gaussian | StudentT | Mixed):
        if missing := sorted(takes - set(given) - ({"sigma"} if name == "gaussian" else set())):
            todo = f'give {{"name": "{name}", "{missing[0]}": ...}}'
            raise ArgumentError(f"a {name} likelihood without {missing[0]}", name, todo)
        sigma = _settings(given.get("sigma", math.nan), layout, "sigma")
        made.logsigma = torch.nn.Parameter(_in_our_units(sigma, layout).log().float())
    if isinstance(made, StudentT):
        df = _settings(given["df"], layout, "df").expand_as(made.logsigma)
        made.logdf = torch.nn.Parameter(df.log().float().clone())
    if isinstance(made, Mixed):
        made.logsigma = torch.nn.Parameter(made.logsigma.expand_as(made.binary_columns).clone())
        flags = torch.tensor([bool(flag) for flag in np.atleast_1d(given["binary"])])
        if len(flags) != shape[0] or flags.all() or not flags.any():
            raise ArgumentError("binary does not fit", f"{len(flags)} flags", f"give {shape[0]}, True and False")
        made.binary_columns.copy_(flags.reshape(made.binary_columns.shape))
    _refuse_clamped(made)
    return made


def _refuse_clamped(likelihood: Likelihood) -> None:
    """Raise ArgumentError where a parameter is beyond what a likelihood clamps it to, so that figures would differ."""
    for name, kept in likelihood.contract().settings.items():
        if name in ("logsigma", "logdf"):
            stated = getattr(likelihood, name).detach().flatten()
            kept = torch.tensor(kept).flatten()
            if bool((stated != kept).logical_and(~stated.isnan()).any()):
                at = int((stated - kept).abs().nan_to_num().argmax())
                which = f"{name.removeprefix('log')} {float(stated[at].exp()):.3g}"
                todo = f"a bundle's is {float(kept[at].exp()):.3g} there: scale the values, or state another"
                raise ArgumentError(f"parameter of a {likelihood.name} likelihood out of range", which, todo)


@torch.no_grad()
def fit_sigma(vae: VAE, observations: NDArray[Any]) -> float | None:
    """Give a Gaussian likelihood without a sigma the likeliest one for these, and return it, in our units; else None.

    It is the root of the mean square of x - loc(z), z the mean of q(z|x) (Rybkin, Daniilidis and Levine 2021,
    arXiv:2006.13202, eq. 4).
    """
    if not (isinstance(vae.likelihood, Gaussian) and bool(vae.likelihood.logsigma.isnan().any())):
        return None
    x = pixels.unit(torch.from_numpy(observations))
    off = (some - vae.decoder(vae.encoder(some)[0]) for some in x.split(64))
    squares = torch.cat([each.square().double().flatten(1).mean(dim=1) for each in off])
    sigma = max(1e-3, float(squares.mean().sqrt()))
    vae.likelihood.logsigma = torch.nn.Parameter(torch.tensor(math.log(sigma)))
    return sigma


def _settings(value: Any, layout: Layout, what: str) -> Tensor:
    """A number, or numbers for each channel, or each value, of ours. Raises ArgumentError for others."""
    try:
        numbers = torch.as_tensor(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        raise ArgumentError(f"{what} is no number", value, "give a number, or one for each channel") from None
    shape = layout.observation.shape
    if not bool(((numbers > 0) | numbers.isnan()).all()) or bool(numbers.isinf().any()):
        raise ArgumentError(f"{what} out of range", value, "give positive numbers")
    if numbers.ndim == 0:
        return numbers
    if numbers.numel() == shape[0]:
        per_channel = numbers.reshape(-1, *[1] * (len(shape) - 1))
        return per_channel.flip(0) if layout.reverse else per_channel
    if numbers.numel() == math.prod(shape):
        return layout.to_ours(numbers.reshape(1, *layout.taken))[0]
    todo = f"give a number, {shape[0]} of them or {math.prod(shape)}"
    raise ArgumentError(f"{what} does not fit observations of shape {list(shape)}", f"{numbers.numel()} numbers", todo)


def _in_our_units(sigma: Tensor, layout: Layout) -> Tensor:
    if len(set(layout.std)) == 1:
        return sigma * layout.std[0]
    return sigma * torch.tensor(layout.std, dtype=sigma.dtype).reshape(-1, *[1] * (len(layout.observation.shape) - 1))
