"""Pictures of a run: samples, reconstructions, the latent space and the training curves."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from vae_runtime import outputs
from vae_runtime.files import replacing
from vae_train import pixels
from vae_train.checkpoint import Run, read_metrics
from vae_train.data import Images


@torch.no_grad()
def draw(folder: Path, run: Run, images: Images) -> None:
    """Write samples.png, reconstructions.png, latents.png and curves.png of a run into its folder."""
    vae = run.vae.cpu()
    x = pixels.unit(images.observed_test(run.config.binarise))
    torch.manual_seed(0)
    samples = vae.sample(64).numpy()
    outputs.write(folder / "samples.png", len(samples), samples.shape[1:], [samples])
    mu = torch.cat([vae.encoder(some)[0] for some in x.split(1000)])
    means = vae.likelihood.mean(vae.decoder(mu[:32]))
    pairs = torch.stack([x[:32], means], dim=1).flatten(0, 1)  # image, reconstruction, image, ...
    outputs.write(folder / "reconstructions.png", len(pairs), samples.shape[1:], [pairs.numpy()], columns=8)
    _curves(folder)
    _latents(folder, mu.numpy(), images.test_labels.numpy(), images.names)


def _latents(folder: Path, mu: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    from sklearn.manifold import TSNE  # slow to import, and needed here only

    mu, labels = mu[::2], labels[::2]  # half of them show the same clusters in a third of the time
    start = "pca" if mu.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(mu) - 1) / 3)
    points = TSNE(random_state=0, n_jobs=-1, init=start, perplexity=perplexity).fit_transform(mu)  # [n, 2]
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(names):
        axes.scatter(points[labels == i, 0], points[labels == i, 1], s=3, color=f"C{i}", label=name)
    axes.set(title=f"t-SNE of the {len(mu):,} test means mu", xticks=[], yticks=[])
    axes.legend(markerscale=5, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, folder / "latents.png")


def _curves(folder: Path) -> None:
    metrics = read_metrics(folder)
    epochs = [row["epoch"] for row in metrics]
    figure = Figure(figsize=(9, 4), layout="constrained")
    elbo, terms = figure.subplots(1, 2)
    elbo.plot(epochs, [row["train_elbo"] for row in metrics], ".-", label="train")
    elbo.plot(epochs, [row["test_elbo"] for row in metrics], ".-", label="test")
    elbo.set(title="ELBO", xlabel="epoch", ylabel="nats per image")
    elbo.legend(frameon=False)
    terms.plot(epochs, [-row["test_reconstruction"] for row in metrics], ".-", label="-reconstruction")
    terms.plot(epochs, [row["test_kl"] for row in metrics], ".-", label="KL")
    terms.set(title="test terms: ELBO = reconstruction - KL", xlabel="epoch", ylim=(0, None))
    terms.legend(frameon=False)
    for axes in (elbo, terms):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    _save(figure, folder / "curves.png")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
