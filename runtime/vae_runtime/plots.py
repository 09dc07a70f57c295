"""Plots of rows and of series, where matplotlib is installed: walks through latent space, samples, reconstructions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_runtime import extras
from vae_runtime.files import replacing
from vae_runtime.latents import Traversal
from vae_runtime.maps import Places
from vae_runtime.observation import VECTOR
from vae_runtime.vae import VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 500  # observations in a plot: more lines or points hide each other
_COLOURED = 10  # lines that have a colour and a name; the others are grey
_MOST_AXES = 24
_MOST_ROWS = 40  # whose values have a field each
_MOST_WINDOWS = 6  # whose reconstructions are beside them
_ACROSS = 4
_SPREADS = "spreads from the mean"

Values = NDArray[Any]


def reconstructed(vae: VAE) -> int:
    """How many observations `reconstructions` draws: rows are points, and windows have axes of their own."""
    windows = min(_MOST_WINDOWS, max(1, _MOST_AXES // len(vae.names)))
    return MOST if vae.observation.kind == VECTOR else windows


def require() -> None:
    """Raise EnvironmentUnfit, naming the extra, where matplotlib is not installed."""
    extras.require("plot", "a plot", "matplotlib")


def traversal(path: Path, vae: VAE, walked: Traversal, span: float) -> None:
    """An axes for each latent: how the columns of rows move with it, a line for each, in spreads of the column.

    Of series, an axes for each latent and channel, in it a line for each value of the latent over the window's steps.
    """
    values = np.linspace(-span, span, walked.theta.shape[1])
    titles = [f"z{latent}, KL {kl:.2f} nats" for latent, kl in zip(walked.latents, walked.kl, strict=True)]
    if vae.observation.kind == VECTOR:
        figure, axes = _axes(titles, shared=True)  # a latent that moves nothing looks so
        coloured = _moving(scaled := _in_spreads(vae, walked.theta))
        for one, theta in zip(axes, scaled, strict=False):
            _lines(one, values, theta, vae.names, coloured)
        figure.supxlabel("value of the latent", fontsize=8)
        figure.supylabel(_unit(vae), fontsize=8)
    else:
        names = vae.names
        figure, axes = _axes([f"{title}\n{name}" for title in titles for name in names], across=len(names))
        for one, theta in zip(axes, np.concatenate([each.swapaxes(0, 1) for each in walked.theta]), strict=False):
            _fan(one, theta)
        figure.supxlabel(f"step; from z = {-span:g} (dark) to {span:g} (light)", fontsize=8)
    _write(path, figure, axes)


def walk(path: Path, vae: VAE, theta: Values) -> None:
    """The way from one observation to another, theta [steps, *shape]: a line for each column over the steps.

    Of series an axes for each channel, in it a line for each step of the way.
    """
    if vae.observation.kind == VECTOR:
        figure, axes = _axes(["from A to B"], wide=True)
        scaled = _in_spreads(vae, theta)
        _lines(axes[0], np.arange(len(theta)), scaled, vae.names, _moving(scaled))
        axes[0].set_xlabel("step", fontsize=8)
        axes[0].set_ylabel(_unit(vae), fontsize=8)
    else:
        figure, axes = _axes(vae.names, wide=True)
        for one, channel in zip(axes, theta.swapaxes(0, 1), strict=False):
            _fan(one, channel)
        figure.supxlabel("step of the window; from A (dark) to B (light)", fontsize=8)
    _write(path, figure, axes)


def observations(path: Path, vae: VAE, x: Values) -> None:
    """Rows [n, D]: a line for each over its columns, in their spreads. Of windows, an axes for each channel.

    The first MOST of them are drawn.
    """
    x = x[:MOST]
    alpha = max(0.1, min(1.0, 10 / len(x)))
    if vae.observation.kind == VECTOR:
        names = vae.names
        figure, axes = _axes([f"{len(x)} rows"], wide=True)
        axes[0].plot(_in_spreads(vae, x).T, color="C0", alpha=alpha, linewidth=1, marker="." if len(names) < 40 else "")
        axes[0].set_xticks(range(len(names)), [name[:20] for name in names], rotation=90, fontsize=6, parse_math=False)
        axes[0].set_ylabel(_unit(vae), fontsize=8)
    else:
        figure, axes = _axes(vae.names, wide=True)
        for one, channel in zip(axes, x.swapaxes(0, 1), strict=False):
            one.plot(channel.T, alpha=alpha, linewidth=1)
        figure.supxlabel(f"step; {len(x)} windows", fontsize=8)
    _write(path, figure, axes)


def reconstructions(path: Path, vae: VAE, x: Values, theta: Values, names: Sequence[str] = ()) -> None:
    """Rows [n, D] and E[x|z] of each: for each column the one over the other; on the line they are equal.

    Of windows [n, C, T], an axes for each window and channel with both over the steps. The first `reconstructed` are
    drawn. names: of these, by default their numbers.
    """
    if vae.observation.kind == VECTOR:
        figure, axes = _axes(vae.names)
        for one, measured, found in zip(axes, x[:MOST].T, theta[:MOST].T, strict=False):
            ends = [min(measured.min(), found.min()), max(measured.max(), found.max())]
            one.plot(ends, ends, color="0.6", linewidth=1)
            one.plot(measured, found, ".", markersize=3, alpha=max(0.15, min(1.0, 40 / len(measured))))
        figure.supxlabel("measured", fontsize=8)
        figure.supylabel("reconstructed", fontsize=8)
    else:
        few = min(len(x), reconstructed(vae))
        titles = [names[i] if i < len(names) else f"window {i}" for i in range(few)]
        figure, axes = _axes([f"{of}, {name}" for of in titles for name in vae.names], across=len(vae.names))
        pairs = zip(np.concatenate(x[:few]), np.concatenate(theta[:few]), strict=True)
        for one, (measured, found) in zip(axes, pairs, strict=False):
            one.plot(measured, color="0.6", linewidth=1.5, label="measured")
            one.plot(found, color="C0", linewidth=1, label="reconstructed")
        axes[0].legend(frameon=False, fontsize=6)
        figure.supxlabel("step", fontsize=8)
    _write(path, figure, axes)


def mapped(vae: VAE) -> int:
    """How many observations `maps` draws."""
    return _MOST_ROWS if vae.observation.kind == VECTOR else reconstructed(vae)


def maps(path: Path, vae: VAE, x: Values, found: Values, places: Places, names: Sequence[str]) -> None:
    """Where rows or windows x are odd, as `Detector.map` found it: red more, blue less than is usual.

    Of rows [n, D] a field for each value. Of windows [n, C, T] an axes for each and each channel, with the values over
    the steps before their map. The first `mapped` are drawn.
    """
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure

    usual = max(places.high, -places.low)
    most = max(3 * usual, float(np.abs(found).max()))
    colours: dict[str, Any] = {"cmap": "RdBu_r", "norm": SymLogNorm(usual, vmin=-most, vmax=most), "aspect": "auto"}
    called = [Path(name).name for name in names]
    if vae.observation.kind == VECTOR:
        size = (min(14.0, 2.5 + 0.3 * len(vae.names)), 1.4 + 0.18 * len(x))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        axes = [figure.subplots()]
        drawn = axes[0].imshow(found, **colours)
        axes[0].set_xticks(range(len(vae.names)), [name[:24] for name in vae.names], rotation=90, parse_math=False)
        axes[0].set_yticks(range(len(x)), [name[-40:] for name in called], parse_math=False)
        axes[0].tick_params(labelsize=6)
    else:
        titles = [f"{name}, {channel}" for name in called for channel in vae.names]
        figure, axes = _axes(titles, across=len(vae.names), wide=len(vae.names) == 1)
        for one, values, deviations in zip(axes, np.concatenate(x), np.concatenate(found), strict=False):
            low, high = values.min(), values.max() + 1e-9
            drawn = one.imshow(deviations[None], extent=(-0.5, len(values) - 0.5, low, high), alpha=0.6, **colours)
            one.plot(values, color="0.15", linewidth=1)
        figure.supxlabel("step", fontsize=8)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label(f"standard deviations from what is usual there; logarithmic from {usual:.1f} on", fontsize=6)
    bar.ax.tick_params(labelsize=6)
    _write(path, figure, axes)


def _axes(
    titles: Sequence[str], across: int = _ACROSS, wide: bool = False, shared: bool = False
) -> "tuple[Figure, list[Axes]]":
    """A figure with an axes for each title, as many as there is space for.

    wide: one below the other. shared: all with the same range of values.
    """
    from matplotlib.figure import Figure

    shown = titles[:_MOST_AXES]
    across = 1 if wide else max(1, min(across, len(shown)))
    down = math.ceil(len(shown) / across)
    size = (7.0, 1.2 + 1.8 * down) if wide else (2.3 * across + 0.4, 1.8 * down + 0.6)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False, sharey=shared).ravel())
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, title in zip(grid, shown, strict=False):
        axes.set_title(title[:60], fontsize=7, parse_math=False)
        axes.tick_params(labelsize=6)
    left = len(titles) - len(shown)
    if left:
        figure.suptitle(f"the first {len(shown)} of {len(titles)}", fontsize=8)
    return figure, grid[: len(shown)]


def _in_spreads(vae: VAE, x: Values) -> Values:
    """Rows [..., D] in spreads of each column from its mean, where the model knows these."""
    if not vae.columns:
        return x
    mean, scale = (np.array([getattr(column, name) for column in vae.columns]) for name in ("mean", "scale"))
    scaled: Values = (x - mean) / scale
    return scaled


def _unit(vae: VAE) -> str:
    if not vae.columns:
        return "value"
    return _SPREADS + (", or as it is" if any(column.scale == 1 for column in vae.columns) else "")


def _moving(x: Values) -> list[int]:
    """The columns of [..., D] whose values differ most, most first."""
    rows = x.reshape(-1, x.shape[-1])
    order: list[int] = np.argsort(rows.min(axis=0) - rows.max(axis=0), kind="stable")[:_COLOURED].tolist()
    return order


def _lines(axes: "Axes", at: Values, columns: Values, names: Sequence[str], coloured: Sequence[int]) -> None:
    """A line for each column of [n, D]; those that are coloured have a name."""
    for i in range(columns.shape[1]):
        if i not in coloured:
            axes.plot(at, columns[:, i], color="0.85", linewidth=0.7, zorder=1)
    for rank, i in enumerate(coloured):
        axes.plot(at, columns[:, i], color=f"C{rank}", linewidth=1.2, label=names[i].replace("$", r"\$")[:24])
    axes.axhline(0, color="0.7", linewidth=0.5, zorder=0)


def _fan(axes: "Axes", lines: Values) -> None:
    """Lines [n, T] over their steps, the first dark and the last light."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
    for line, colour in zip(lines, colours, strict=True):
        axes.plot(line, color=colour, linewidth=1)


def _write(path: Path, figure: "Figure", axes: "Sequence[Axes]") -> None:
    """The figure as a PNG, in one step; beside the axes the names of the lines of the first, if they have any."""
    handles, names = axes[0].get_legend_handles_labels()
    if names and axes[0].get_legend() is None:
        figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=6)
    with replacing(path) as file:
        figure.savefig(file, format="png")
