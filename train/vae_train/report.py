"""The report of a finished run: one page that needs nothing but itself."""

from pathlib import Path

from vae_train import pictures
from vae_train.checkpoint import Run
from vae_train.data import Images

PAGE = "report.html"


def draw(folder: Path, run: Run, images: Images) -> None:
    """Write the pictures of a run into its folder, and the page that shows them."""
    pictures.draw(folder, run, images)
