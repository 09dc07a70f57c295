"""The most unusual test rows of a run: those of the lowest ELBO, and of each the column that is least likely."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import likelihoods
from vae_train import bounds, pixels
from vae_train.data import Data
from vae_train.vae import VAE

_DRAWS = 16  # of z for each row
_USUAL = 1000  # test rows, over which the mean log p(x|z) of a column is taken, at most

Doubles = NDArray[np.float64]


class Unusual(NamedTuple):
    """Rows, the lowest ELBO first: their values [n, D] in the columns' units, to five digits of each one's spread.

    elbo, kl: of each, nats [n]. column: of each row the column whose log p(x|z) is furthest below its mean over the
    test rows, and below: by how many nats [n].
    """

    names: list[str]
    values: Doubles
    elbo: Doubles
    kl: Doubles
    column: list[int]
    below: Doubles


@torch.no_grad()
def find(vae: VAE, observations: Data, count: int = 10) -> Unusual:
    """The `count` test rows with the lowest ELBO, a mean over 16 draws of z."""
    test = pixels.unit(observations.test)
    first = bounds.measure(vae, test).terms.elbo
    lowest = test[torch.argsort(first, stable=True)[:count]]
    usual, _ = _of_each(vae, observations, test[:: max(1, len(test) // _USUAL)])
    of_each, kl = _of_each(vae, observations, lowest)
    elbo, below = of_each.sum(axis=1) - kl, usual.mean(axis=0) - of_each
    order, column = np.argsort(elbo, kind="stable"), below.argmax(axis=1)
    columns, scaling = observations.columns, observations.scaling
    values = lowest.double().numpy() if scaling is None else scaling.restore(lowest.numpy())
    for i, known in enumerate(columns):  # to the digits that float32 kept of them
        values[:, i] = np.round(values[:, i], 5 - math.floor(math.log10(known.scale))) + 0.0
    names = [each.name for each in columns]
    return Unusual(names, values[order], elbo[order], kl[order], column[order].tolist(), below.max(axis=1)[order])


def _of_each(vae: VAE, observations: Data, x: Tensor) -> tuple[Doubles, Doubles]:
    """log p(x|z) of each value of rows [n, D], and their KL [n], in nats, means over the draws of z."""
    likelihood = likelihoods.make(vae.likelihood.contract(), observations.observation)  # the runtime knows each value's
    generator = torch.Generator().manual_seed(0)
    with bounds.evaluating(vae):
        out = vae(x, torch.randn(_DRAWS, len(x), *vae.latent_shape, generator=generator))
        kl = vae.terms_of(x, out).kl.double().numpy()
    of_each = np.mean([likelihood.log_prob_of_each(x.numpy(), draw.numpy()) for draw in out.parameters], axis=0)
    return of_each, kl
