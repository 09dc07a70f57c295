"""Pictures of series: test windows with E[x|z] at their means, and samples, as lines over the steps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vae_train import pixels
from vae_train.data import Data
from vae_train.pictures import Picture, rendered
from vae_train.vae import VAE

MOST_SHOWN = 12  # channels
_ACROSS = 4  # windows beside each other

Doubles = NDArray[np.float64]


class Lines(NamedTuple):
    """Both pictures; `shown` is how many channels they have."""

    reconstructions: Picture
    samples: Picture
    shown: int


@torch.no_grad()
def draw(vae: VAE, observations: Data) -> Lines:
    """The pictures of a VAE of series, in the channels' units: windows from all over the test part, and samples."""
    names, scaling = [column.name for column in observations.columns], observations.scaling
    assert scaling is not None  # data of series have columns, if of mean 0 and scale 1
    chosen = np.linspace(0, len(observations.test) - 1, min(_ACROSS, len(observations.test))).astype(int)
    test = pixels.unit(observations.test[chosen])
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        parameters = vae.decoder(vae.sample_prior(_ACROSS))
        drawn, mean = vae.likelihood.sample(parameters), vae.likelihood.mean(parameters)
    theta = vae.likelihood.mean(vae.decoder(vae.encoder(test)[0]))
    measured, reconstructed, sampled, expected = (scaling.restore(x.numpy()) for x in (test, theta, drawn, mean))
    return Lines(
        lines(names, measured, reconstructed, "test window"), lines(names, sampled, expected, "sample"),
        min(MOST_SHOWN, len(names)),
    )  # fmt: skip


def lines(names: Sequence[str], x: Doubles, theta: Doubles, what: str) -> Picture:
    """Windows x [n, C, T], each with theta = E[x|z] of the same shape: a column for each, a row for each channel."""
    shown, across = min(MOST_SHOWN, len(names)), len(x)
    figure = Figure(figsize=(2.4 * across, 0.9 * shown + 0.6), dpi=160, layout="constrained")
    grid = figure.subplots(shown, across, squeeze=False, sharex=True, sharey="row")
    for i, row in enumerate(grid):
        for axes, values, expected in zip(row, x[:, i], theta[:, i], strict=True):
            axes.plot(values, linewidth=0.8, label=what)
            axes.plot(expected, linewidth=1.0, color="black", label="E[x|z]")
            axes.tick_params(labelsize=5)
        row[0].set_ylabel(names[i][:16], fontsize=6, parse_math=False)
    grid[0, 0].legend(frameon=False, fontsize=5)
    return rendered(figure)
