"""A finished run: its VAE, its settings, its figures and pictures, and what one does with it."""

from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike, NDArray

from vae_runtime.errors import VaeError
from vae_runtime.observation import Observation
from vae_train.config import Config
from vae_train.fingerprint import Fingerprint
from vae_train.state import Metrics
from vae_train.vae import VAE

if TYPE_CHECKING:
    from PIL import Image

    from vae_export.exporter import Exported
    from vae_train.data import Data
    from vae_train.results import Evaluation
    from vae_train.run_folder import Settings


PROBED = 64  # observations on which an export compares numbers


@dataclass(repr=False)
class Run:
    """A finished run, as `vae_train.fit` and `vae_train.load_run` give it. In a notebook it shows itself.

    path: its folder. vae: with the weights of its end, or those of its best epoch where `best`. provenance: how it was
    made. evaluation: its test figures, nats per observation. held_out: test observations [n, *shape], 1,000 at most,
    uint8 levels or float32. fingerprint: what the network gave for the first 64 when its training ended; None of a run
    that was made before 0.2. data: what it was trained and tested on, where that is in memory still.
    """

    path: Path
    vae: VAE
    settings: "Settings"
    provenance: dict[str, Any]
    evaluation: dict[str, Any]
    held_out: NDArray[Any]
    fingerprint: Fingerprint | None = None
    best: bool = False
    data: "Data | None" = field(default=None, compare=False)

    @property
    def probe(self) -> NDArray[Any]:
        """The first 64 of the held-out observations, on which an export compares numbers."""
        return self.held_out[:PROBED]

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.settings.config

    @property
    def observation(self) -> Observation:
        """Kind, shape and range of what the VAE takes."""
        return self.settings.observation

    @property
    def metrics(self) -> list[Metrics]:
        """What was measured after each epoch, a dict each, as `vae_train.metrics.Epoch` describes it."""
        from vae_train.run_folder import read_metrics

        return read_metrics(self.path)

    def evaluate(
        self,
        samples: int = 500,
        *,
        test: ArrayLike | Any = None,
        dataset: str | PathLike[str] | None = None,
        device: str = "auto",
        threads: int | None = None,
        data_root: str | PathLike[str] | None = None,
        download: bool = False,
        progress: bool = True,
    ) -> "Evaluation":
        """As `vae_train.evaluate`, of this run."""
        from vae_train.api import evaluate

        return evaluate(
            self, samples, test=test, dataset=dataset, device=device, threads=threads, data_root=data_root,
            download=download, progress=progress,
        )  # fmt: skip

    def figures(self) -> "dict[str, Image.Image]":
        """The pictures of the run's report, by name: `samples`, `reconstructions`, `latents`, `curves` and others.

        Which there are depends on what the run observes. They are of the weights of the training's end. In a temporary
        folder they are drawn when they are first asked for, which takes seconds. Raises InputError where that needs
        data that are not found.
        """
        from PIL import Image

        from vae_train.api import draw_report
        from vae_train.pictures import NAMES
        from vae_train.report import PAGE

        if not (self.path / PAGE).exists():
            draw_report(self)
        found = {}
        for name in NAMES:
            if (path := self.path / f"{name}.png").exists():
                with Image.open(path) as image:
                    found[name] = image.copy()
        return found

    def export(self, out: str | PathLike[str], **options: Any) -> "Exported":
        """Export the VAE as a bundle of ONNX graphs, published at `out` if it passes the numeric gate.

        options: those of `vae_export.export_run`, such as opset=18 or precision="int8". Raises EnvironmentUnfit where
        the packages for it are not installed, and what `vae_export.export_run` does.
        """
        from vae_runtime import extras

        extras.require("export", "export")
        from vae_export import export_run

        if options.get("precision", "fp32") != "fp32" and "observed" not in options:
            from vae_train.api import place
            from vae_train.results import load_data

            options["observed"] = load_data(self, place())  # what a precision costs is weighed on it
        return export_run(self, out, **options)

    def _repr_html_(self) -> str:
        from vae_train.notebook import html

        with suppress(VaeError):  # then there are no pictures, or those that there were
            self.figures()
        return html(self)

    def __repr__(self) -> str:
        figure = self.evaluation["figures"]["elbo"]["mean"]
        of, noun = f"{self.config.data.dataset}, {self.config.made_by}", self.observation.noun
        return f"<vae_train.Run {str(self.path)!r}: {of}, test ELBO {figure:.2f} nats per {noun}>"
