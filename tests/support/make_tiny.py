"""Makes the tiny bundle that the runtime's tests load: a small VAE of scikit-learn's digits at 28x28.

python tests/support/make_tiny.py [FOLDER]

Needs PyTorch; FOLDER is by default tests/support/tiny, where the result is committed.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.bundles import TINY
from support.runs import write_digits
from vae_export import exporter
from vae_train import run_folder, train
from vae_train.config import PRESETS, Place

EPOCHS = 40
CONFIG = PRESETS["tutorial"].replace(hidden=(6,), latent_dim=4, epochs=EPOCHS, batch_size=32)


def make(out: Path, epochs: int = EPOCHS) -> None:
    """Train and export it: the bundle `out`, of the oldest opset."""
    with tempfile.TemporaryDirectory() as folder:
        digits, run = Path(folder) / "digits", Path(folder) / "run"
        write_digits(digits)
        config = CONFIG.replace(epochs=epochs)
        place = Place(digits, download=False, device="cpu", threads=1)
        train.train(config, run, place, command="python tests/support/make_tiny.py")
        exporter.export_run(run_folder.load(run), out)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if sys.argv[1:] else TINY)
