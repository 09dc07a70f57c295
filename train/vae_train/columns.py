"""Pictures of rows of numbers: the histogram of each column and the columns' correlations, of test rows and samples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from vae_train import pixels
from vae_train.data import Data
from vae_train.pictures import Picture, rendered
from vae_train.vae import VAE

MOST_SHOWN = 24  # columns that have a histogram
_MOST_SAMPLES = 2000
_ACROSS, _BINS = 4, 40
_ENDS = 0.5  # percent of the test rows that a histogram leaves out on either side: few far ones would hide the rest
_NAMED = 30  # columns whose names fit beside their correlations

Doubles = NDArray[np.float64]


class Columns(NamedTuple):
    """Both pictures; `shown` is how many columns have a histogram."""

    histograms: Picture
    correlations: Picture
    shown: int


@torch.no_grad()
def draw(vae: VAE, observations: Data) -> Columns:
    """The pictures of a VAE of rows, beside as many samples x ~ p(x|z), z ~ p(z), as there are test rows, in units."""
    names, scaling = [column.name for column in observations.columns], observations.scaling
    assert scaling is not None  # data of rows have columns, if of mean 0 and scale 1
    test = pixels.unit(observations.test)[:_MOST_SAMPLES]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        drawn = vae.sample(len(test))
    measured, sampled = (_rows(scaling.restore(x.numpy())) for x in (test, drawn))
    return Columns(
        histograms(names, measured, sampled), correlations(names, measured, sampled), min(MOST_SHOWN, len(names))
    )


def _rows(restored: Doubles) -> Doubles:
    """Rows [n, D] as they are, and the steps of series [n, C, T] as rows [n T, C]."""
    return restored if restored.ndim == 2 else restored.transpose(0, 2, 1).reshape(-1, restored.shape[1])


def histograms(names: Sequence[str], test: Doubles, samples: Doubles) -> Picture:
    """For each column, how test rows [n, D] and samples [n, D] are distributed over the range of the former."""
    shown = min(MOST_SHOWN, len(names))
    across = min(_ACROSS, shown)
    down = math.ceil(shown / across)
    figure = Figure(figsize=(2.2 * across, 1.7 * down), dpi=160, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[shown:]:
        axes.set_axis_off()
    for i, axes in enumerate(grid[:shown]):
        low, high = np.percentile(test[:, i], [_ENDS, 100 - _ENDS])
        edges = np.linspace(low, high, _BINS + 1) if low < high else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
        axes.hist(test[:, i], edges, alpha=0.5, label="test")
        axes.hist(samples[:, i], edges, histtype="step", linewidth=1.2, color="black", label="samples")
        axes.set_yticks([])
        axes.tick_params(labelsize=6)
        axes.set_title(names[i][:24], fontsize=8, parse_math=False)
    grid[0].legend(frameon=False, fontsize=6)
    return rendered(figure)


def correlations(names: Sequence[str], test: Doubles, samples: Doubles) -> Picture:
    """Pearson's correlations of the columns, of test rows [n, D] and of samples [n, D] beside each other."""
    side = max(2.6, min(5.0, 0.22 * len(names) + 1.2))
    figure = Figure(figsize=(2 * side + 0.6, side), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, rows, title in ((left, test, "test rows"), (right, samples, "samples")):
        image = _matrix(axes, names, _correlation(rows), title)
    figure.colorbar(image, ax=[left, right], shrink=0.8).ax.tick_params(labelsize=7)
    return rendered(figure)


def _matrix(axes: Axes, names: Sequence[str], values: Doubles, title: str) -> AxesImage:
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_title(title, fontsize=8)
    if len(names) <= _NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=6, parse_math=False)
    return image


def _correlation(rows: Doubles) -> Doubles:
    """[D, D]; 0 where a column does not vary."""
    with np.errstate(all="ignore"):
        found: Doubles = np.atleast_2d(np.corrcoef(rows, rowvar=False))
    return np.nan_to_num(found)
