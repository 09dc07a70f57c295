"""What TensorBoard shows of a training: the figures of each epoch, and pictures of samples and reconstructions.

It is imported only where it is asked for, since it takes seconds and is an extra.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vae_train import pictures, pixels
from vae_train.bounds import evaluating
from vae_train.run_folder import TENSORBOARD
from vae_train.state import Metrics
from vae_train.vae import VAE

_IMAGES = 16

Record = Callable[[Metrics, VAE, Tensor], None]


@contextmanager
def recorder(out: Path, past: list[Metrics]) -> Iterator[Record]:
    """A function that writes an epoch into the folder `tensorboard` of the run `out`: its metrics, VAE and test data.

    past: the metrics of the epochs before. Later ones, which a killed training may have written, are taken back, and
    those before are written too where there is no such folder yet. The images are pixels as the likelihood sees
    them, [n, C, H, W].
    """
    begun = (out / TENSORBOARD).exists()
    writer = SummaryWriter(out / TENSORBOARD, purge_step=len(past) + 1)

    def record(row: Metrics, vae: VAE, levels: Tensor) -> None:
        _scalars(writer, row)
        pictured = levels.ndim == 4  # images
        with evaluating(vae):
            images = (
                {}
                if not pictured
                else {
                    "samples": pictures.samples(vae, _IMAGES),
                    "reconstructions": pictures.reconstructions(vae, pixels.unit(levels[:_IMAGES])),
                }
            )
        for name, picture in images.items():
            writer.add_image(name, picture, int(row["epoch"]), dataformats="HWC")
        writer.flush()  # before the checkpoint, so that a training killed in between repeats the epoch

    try:
        for row in [] if begun else past:
            _scalars(writer, row)
        yield record
    finally:
        writer.close()


def _scalars(writer: SummaryWriter, row: Metrics) -> None:
    """The metrics of an epoch, grouped as TensorBoard groups names: train/elbo, test/elbo, epoch/seconds."""
    for name, value in row.items():
        part, _, figure = name.partition("_")
        tag = f"{part}/{figure}" if part in ("train", "test") else f"epoch/{name}"
        if name != "epoch":
            writer.add_scalar(tag, value, int(row["epoch"]))
