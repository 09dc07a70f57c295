"""TensorBoard as a recorder: scalars, pictures and settings in the folder `tensorboard` of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_train import recorders
from vae_train.recorders import Pictures
from vae_train.run_folder import TENSORBOARD
from vae_train.state import Metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """A recorder for TensorBoard; needs the extra `tensorboard`.

    Of a training that goes on, what was recorded of later epochs is taken back, and the epochs before are recorded too
    where they were not.
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._epoch = 0

    def start(self, run: Path, settings: Mapping[str, Any], past: Sequence[Metrics]) -> None:
        """As `Recorder.start`."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds, and is an extra

        begun = (run / TENSORBOARD).exists()
        self._epoch = recorders.last_epoch(past)
        self._writer = SummaryWriter(run / TENSORBOARD, purge_step=self._epoch + 1)
        if not begun:
            rows = "".join(f"\n| {name} | {value} |" for name, value in recorders.flat(settings).items())
            self._writer.add_text("settings", f"| setting | value |\n| --- | --- |{rows}", 0)
            for metrics in past:
                self._scalars(metrics)

    def epoch(self, metrics: Metrics, pictures: Pictures) -> None:
        """As `Recorder.epoch`."""
        self._scalars(metrics)
        self._show(pictures)  # and flush, before the checkpoint: a training killed in between repeats the epoch

    def finish(self, figures: Mapping[str, float], pictures: Pictures) -> None:
        """As `Recorder.finish`; the figures are points at the last epoch."""
        assert self._writer is not None
        for name, value in figures.items():
            self._writer.add_scalar(f"final/{name}", value, self._epoch)
        self._show(pictures)

    def close(self) -> None:
        """As `Recorder.close`."""
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, metrics: Metrics) -> None:
        assert self._writer is not None
        self._epoch = recorders.last_epoch([metrics])
        for name, value in recorders.grouped(metrics).items():
            self._writer.add_scalar(name, value, self._epoch)

    def _show(self, pictures: Pictures) -> None:
        assert self._writer is not None
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, self._epoch, dataformats="HWC")
        self._writer.flush()
