"""Pictures of a run: grids of images with hard pixels, the latent space, and charts of the training."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import bidirectional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_runtime import outputs
from vae_runtime.files import replacing
from vae_runtime.observation import IMAGE, SERIES
from vae_train import pixels
from vae_train.data import Data
from vae_train.prior import StandardNormal
from vae_train.run import Run
from vae_train.run_folder import read_metrics
from vae_train.state import Metrics
from vae_train.vae import VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # whose package takes a second to import
    from matplotlib.figure import Figure

    from vae_train.columns import Columns
    from vae_train.lines import Lines

WIDTH = 800  # pixels of a grid, at most: a page shows it as it is
_DRAWN = 500  # draws from a learned prior, which say where its latents lie
TRAVERSED, SPAN = 10, 3.0  # latent dimensions that are traversed, at most, and from minus to plus where
_STEPS = 11
FEWEST_MAPPED = 16  # test means: t-SNE takes three times its perplexity as neighbours, and 5 is the least usual
_MAPPED = 2000  # test means that t-SNE places, at most: seconds; its time grows faster than their number
_ENCODED = 200  # observations at once, for the memory that large ones take
_NAMED, _LONGEST = 20, 24  # classes that a legend holds, and letters of a name
_AROUND, _WITHIN = 4, 2  # grey pixels around a pair of images, and within it
_INDEXED = 32  # bars that fit with their numbers

NAMES = (  # of the files in a run's folder, those that there are
    "samples", "reconstructions", "traversals", "columns", "correlations", "latents", "kl", "scores", "curves",
)  # fmt: skip

Picture = NDArray[np.uint8]  # [height, width, C], C is 1 or 3


class Grids(NamedTuple):
    """Pictures of images; `traversed` are the latent dimensions in the rows of `traversals`."""

    samples: Picture
    reconstructions: Picture
    traversals: Picture
    traversed: list[int]


class Pictures(NamedTuple):
    """All pictures of a run: grids of images, columns of rows and of series, lines of series; None of others."""

    grids: Grids | None
    columns: "Columns | None"
    lines: "Lines | None"
    latents: Picture
    kl: Picture
    scores: Picture
    curves: list[Picture]


@torch.no_grad()
def draw(folder: Path, run: Run, observations: Data) -> Pictures:
    """Draw a run and write the pictures into its folder, each as a PNG; curves.png holds all charts of the training."""
    vae, kl = run.vae.cpu(), run.evaluation["kl_per_dimension"]
    observed = observations.observed_test(vae.likelihood.binary)
    every = math.ceil(len(observed) / _MAPPED)
    mu = torch.cat([vae.encoder(pixels.unit(some))[0] for some in observed[::every].split(_ENCODED)])
    noun = run.observation.noun
    grids = columns = lines = None
    if run.observation.kind != IMAGE:
        from vae_train import columns as of_rows  # which draws with what is defined here

        columns = of_rows.draw(vae, observations)
    if run.observation.kind == SERIES:
        from vae_train import lines as of_series

        lines = of_series.draw(vae, observations)
    if run.observation.kind == IMAGE:
        shown = reconstructions(vae, pixels.unit(observed[:32]))
        grids = Grids(samples(vae, 32), shown, *traversals(vae, kl, mu[0]))
    drawn = Pictures(
        grids,
        columns,
        lines,
        latents(mu.flatten(1).numpy(), observations.test_labels[::every].numpy(), observations.names, noun),
        _chart((5.5, 2.8), lambda axes: _kl(axes, kl, noun)),
        _chart((5.5, 2.8), lambda axes: _scores(axes, run.evaluation["quantiles"], noun)),
        curves(read_metrics(folder), vae.latent_dim, noun),
    )
    rows = [np.concatenate(drawn.curves[i : i + 2], axis=1) for i in range(0, len(drawn.curves), 2)]
    files = {"latents": drawn.latents, "kl": drawn.kl, "scores": drawn.scores, "curves": np.concatenate(rows)}
    if grids:
        files |= {"samples": grids.samples, "reconstructions": grids.reconstructions, "traversals": grids.traversals}
    if columns:
        files |= {"columns": columns.histograms, "correlations": columns.correlations}
    if lines:
        files |= {"reconstructions": lines.reconstructions, "samples": lines.samples}
    for name, picture in files.items():
        with replacing(folder / f"{name}.png") as file:
            file.write(outputs.png(picture, scale=1))
    return drawn


@torch.no_grad()
def samples(vae: VAE, count: int) -> Picture:
    """Pairs of a draw x ~ p(x|z) and E[x|z], z ~ p(z), four beside each other: the same noise at each call."""
    weight = next(vae.parameters())
    with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
        torch.manual_seed(0)
        parameters = vae.decoder(vae.sample_prior(count))
        return _pairs(vae.likelihood.sample(parameters), vae.likelihood.mean(parameters))


@torch.no_grad()
def reconstructions(vae: VAE, x: Tensor) -> Picture:
    """Pairs of an image x [n, C, H, W] and E[x|z] of z = mu(x), four beside each other."""
    return _pairs(x, vae.likelihood.mean(vae.decoder(vae.encoder(x)[0])))


@torch.no_grad()
def traversals(vae: VAE, kl: list[float], rest: Tensor) -> tuple[Picture, list[int]]:
    """E[x|z] with one z_i from -3 to 3 and the others at `rest`, a row each: those of the largest `kl` first.

    kl: [latent_dim]. rest: [*latent_shape]. Under a learned prior, 3 standard deviations to either side of the mean.
    """
    centre, unit = _spread(vae)
    chosen = np.argsort(-np.array(kl), kind="stable")[:TRAVERSED].tolist()
    z = rest.flatten().repeat(len(chosen), _STEPS, 1)
    for row, latent in enumerate(chosen):
        z[row, :, latent] = centre[latent] + unit[latent] * torch.linspace(-SPAN, SPAN, _STEPS)
    means = vae.likelihood.mean(vae.decoder(z.reshape(-1, *rest.shape)))
    return _grid(_enlarged(means, _STEPS), _STEPS), chosen


def _spread(vae: VAE) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent under the prior, [latent_dim]: of a learned one those of draws."""
    if isinstance(vae.prior, StandardNormal):
        return torch.zeros(vae.latent_dim), torch.ones(vae.latent_dim)
    noise = torch.randn(_DRAWN, *vae.latent_shape, generator=torch.Generator().manual_seed(0))
    z = vae.prior.from_noise(noise).flatten(1)
    return z.mean(dim=0), z.std(dim=0)


def _pairs(a: Tensor, b: Tensor) -> Picture:
    """Images a and b, both [n, C, H, W], in pairs."""
    left, right = _enlarged(a, 8), _enlarged(b, 8)
    pairs = torch.cat([left, left.new_full((*left.shape[:3], _WITHIN), outputs.GREY / 255), right], dim=3)
    return _grid(torch.nn.functional.pad(pairs, [_AROUND] * 4, value=outputs.GREY / 255), 4)


def _enlarged(images: Tensor, columns: int) -> Tensor:
    """Images [n, C, H, W] with each pixel as large as `columns` of them beside each other may have it."""
    scale = max(1, (WIDTH // columns - 2 * _AROUND) // max(images.shape[2:]))
    return images.float().cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)


def _grid(images: Tensor, columns: int) -> Picture:
    count, channels, height, width = images.shape
    return outputs.grid(count, (channels, height, width), [images.numpy()], columns)


def latents(mu: NDArray[np.float32], labels: NDArray[np.int64], names: list[str], noun: str = "image") -> Picture:
    """t-SNE of the means mu [n, latent_dim], coloured by class where there are several; words where they are few."""
    if len(mu) < FEWEST_MAPPED:
        return _chart((5.5, 1), lambda axes: _words(axes, f"test {noun}s: {len(mu)}, too few for t-SNE"))
    points = _tsne(mu)

    def scatter(axes: "Axes") -> None:
        import matplotlib

        colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "hsv"]
        shown = [colours(i if len(names) <= 20 else i / len(names)) for i in range(len(names))]
        places = [points[labels == i] for i in range(len(names))]
        size = 4 if len(points) > 500 else 12
        dots = [axes.scatter(p[:, 0], p[:, 1], s=size, color=[c]) for p, c in zip(places, shown, strict=True)]
        axes.set(title=f"t-SNE of {len(points):,} test means mu", xticks=[], yticks=[])
        if 1 < len(names) <= _NAMED:
            # a space first, since a legend leaves out what begins with an underscore
            words = [f" {name[:_LONGEST]}{'…' if len(name) > _LONGEST else ''}" for name in labelled(names)]
            legend = axes.legend(
                dots, words, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0
            )
            for text in legend.get_texts():
                text.set_parse_math(False)  # a name may hold dollar signs

    return _chart((5.5, 4.5), scatter)


def labelled(names: list[str]) -> list[str]:
    """The classes' names as the map has them: their numbers, from 0, where its font cannot write all of the names."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))

    def legible(character: str) -> bool:
        return font.get_char_index(ord(character)) > 0 and bidirectional(character) not in ("R", "AL")

    return names if all(map(legible, "".join(names))) else [str(number) for number in range(len(names))]


def _words(axes: "Axes", words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center")
    axes.set_axis_off()


def _tsne(mu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Places [n, 2] of the means mu [n, latent_dim]."""
    from sklearn.manifold import TSNE  # slow to import, and needed here only
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

    start = "pca" if mu.shape[1] > 1 and mu.std(axis=0).max() > 1e-6 else "random"
    tsne = TSNE(random_state=0, init=start, perplexity=min(30.0, (len(mu) - 1) / 3))
    with threadpool_limits(1):  # its threads wait for each other thousands of times, for long where cores are busy
        placed: NDArray[np.float32] = tsne.fit_transform(mu)
    return placed


def curves(rows: list[Metrics], latent_dim: int, noun: str = "image") -> list[Picture]:
    """Six charts over the epochs: the ELBO and its terms, gradient norms, active units, speed."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    both = {"train": "train_", "test": "test_"}
    charts = [
        ("ELBO", f"nats per {noun}", {label: f"{part}elbo" for label, part in both.items()}),
        ("reconstruction, E log p(x|z)", f"nats per {noun}", {k: f"{part}reconstruction" for k, part in both.items()}),
        ("KL", f"nats per {noun}", {label: f"{part}kl" for label, part in both.items()}),
        ("gradient norm", "", {"largest step's": "largest_gradient_norm", "mean": "gradient_norm"}),
        ("active units", f"of {latent_dim} dimensions", {"": "active_units"}),
        ("speed", f"{noun}s per second", {"": "observations_per_second"}),
    ]

    def lines(title: str, ylabel: str, names: dict[str, str]) -> "Callable[[Axes], None]":
        def onto(axes: "Axes") -> None:
            for label, name in names.items():
                axes.plot(epochs, [row[name] for row in rows], ".-", label=label)
            axes.set(title=title, xlabel="epoch", ylabel=ylabel, xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
            axes.grid(alpha=0.3)
            if len(names) > 1:
                axes.legend(frameon=False)
                axes.set_ylim(_limits([row[name] for row in rows[len(rows) // 10 :] for name in names.values()]))
            else:
                axes.set_ylim(0, 1.05 * (latent_dim if name == "active_units" else max(row[name] for row in rows)))

        return onto

    return [_chart((4.5, 3), lines(*chart)) for chart in charts]


def _limits(values: list[float]) -> tuple[float, float] | None:
    """An axis that just holds the values: the first tenth of the epochs, left out of them, may leave it."""
    finite = [value for value in values if math.isfinite(value)]
    margin = 0.05 * (max(finite) - min(finite)) if finite else 0
    return (min(finite) - margin, max(finite) + margin) if margin else None  # None: as matplotlib has it


def _kl(axes: "Axes", kl: list[float], noun: str) -> None:
    """Bars, the largest first."""
    order = np.argsort(-np.array(kl), kind="stable")
    ranks = range(1, len(kl) + 1)
    axes.bar(ranks, np.array(kl)[order])
    axes.set(title=f"KL of each latent dimension, mean over the test {noun}s", ylabel="nats")
    if len(kl) <= _INDEXED:
        axes.set_xticks(ranks, [str(i) for i in order], fontsize=7)
        axes.set_xlabel("latent dimension")
    else:
        axes.set_xlabel(f"rank among {len(kl)} latent dimensions")


def _scores(axes: "Axes", quantiles: dict[str, list[float]], noun: str) -> None:
    """The share of the test observations whose ELBO is lower, from the quantiles that a run keeps."""
    axes.plot(quantiles["elbo"], 100 * np.array(quantiles["levels"]))
    axes.set(title=f"ELBO of the test {noun}s", xlabel="nats", ylabel=f"% of the {noun}s below", ylim=(0, 100))
    axes.grid(alpha=0.3)


def _chart(size: tuple[float, float], onto: "Callable[[Axes], None]") -> Picture:
    """What `onto` plots, at a size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=200, layout="constrained")
    onto(figure.add_subplot())
    return rendered(figure)


def rendered(figure: "Figure") -> Picture:
    """The pixels of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # classes may have names in any script
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
