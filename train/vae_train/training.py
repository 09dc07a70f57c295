"""A VAE in training: all that its next step depends on, and how that goes into a checkpoint and comes back."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vae_train.config import Config
from vae_train.vae import VAE


@dataclass
class Progress:
    """Where a training is: `step` steps of epoch `epoch` (from 1) are done, in `seconds`; metrics of those before."""

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, float]] = field(default_factory=list)


class Training:
    """Weights, optimiser, schedule, random generator and position of one run.

    Two trainings with equal state take equal steps, bit for bit, on the same machine with the same number of threads.
    """

    def __init__(self, vae: VAE, config: Config, num_images: int, device: torch.device) -> None:
        self.vae, self.config, self.num_images = vae, config, num_images
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, fused=True)
        steps = -(-num_images // config.batch_size)
        # a one-cycle schedule of 10 steps or fewer divides by zero; so short a run ends before its schedule
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=max(config.epochs * steps, 11), pct_start=0.1
        )
        self.progress = Progress()
        self.total = torch.zeros(2, device=device)  # reconstruction and KL of this epoch so far, nats
        self._epoch_start = self.generator.get_state()

    def batches(self) -> list[Tensor]:
        """The rows of each batch of this epoch that is still to come, in random order."""
        if self.progress.step == 0:
            self._epoch_start = self.generator.get_state()
        now = self.generator.get_state()
        self.generator.set_state(self._epoch_start)
        order = torch.randperm(self.num_images, generator=self.generator, device=self.total.device)
        if self.progress.step:
            self.generator.set_state(now)
        return list(order.split(self.config.batch_size)[self.progress.step :])

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Move on to the next epoch."""
        past = [*self.progress.metrics, metrics]
        self.progress = Progress(self.progress.epoch + 1, metrics=past)
        self.total.zero_()

    def state(self) -> tuple[dict[str, Tensor], str]:
        """All of it: tensors by name, and the rest as JSON."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"vae.{name}": value for name, value in self.vae.state_dict().items()}
        for index, values in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        tensors |= {"total": self.total, "generator": self.generator.get_state(), "epoch_start": self._epoch_start}
        rest = {
            "progress": asdict(self.progress),
            "groups": optimizer["param_groups"],
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not callable(v)},
        }
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, json.dumps(rest)

    def restore(self, tensors: dict[str, Tensor], rest: str) -> None:
        """Take over what `state` gave. Raises KeyError, ValueError or RuntimeError where it is another network's."""
        values: dict[str, Any] = json.loads(rest)
        prefix = "vae."
        self.vae.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                states.setdefault(int(index), {})[key] = value
        groups = [{**group, "betas": tuple(group["betas"])} for group in values["groups"]]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.schedule.load_state_dict(values["schedule"])
        self.generator.set_state(tensors["generator"])
        self._epoch_start = tensors["epoch_start"]
        self.total.copy_(tensors["total"])
        self.progress = Progress(**values["progress"])
