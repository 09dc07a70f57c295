"""A VAE in training: weights, optimiser, schedule and position, which go into a checkpoint and come back."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vae_runtime.errors import ArgumentError
from vae_train import distributed, precision
from vae_train.config import Config
from vae_train.objectives import Objective
from vae_train.vae import VAE, Pass

Metrics = dict[str, float]
_NORM_EVERY = 10  # steps
_LONGEST, _NEW = 10.0, 0.01  # of a gradient, in usual ones; the weight of a new one in what is usual
_RUNNING = ("norms", "usual", "skipped", "skipped_in_a_row")  # measured on the way
_MEASURE_EVERY = 100  # steps at least, where the number of passes is not given


def best(metrics: list[Metrics]) -> Metrics:
    """The epoch with the highest test ELBO."""
    return max(metrics, key=lambda row: row["test_elbo"])


@dataclass
class Progress:
    """Where a training is: `step` steps of epoch `epoch` (from 1) are done, and metrics of epochs before.

    seconds: spent on steps since the last metrics.
    """

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    metrics: list[Metrics] = field(default_factory=list)


class TrainingState:
    """Weights, optimiser, schedule, random generator and position of one run.

    Two trainings with equal state take equal steps, bit for bit, on the same machine with the same number of threads.
    """

    def __init__(
        self, vae: VAE, config: Config, num_observations: int, device: torch.device, overlap: float = 1.0
    ) -> None:
        """overlap: of test observations, as `bounds.figure` takes it."""
        self.vae, self.num_observations, self.device, self.overlap = vae, num_observations, device, overlap
        self.config = config.replace(precision=precision.resolved(config.optimiser.precision, device))
        adam = self.config.optimiser
        self.model = distributed.parallel(vae)
        self.weights = list(vae.parameters())
        self.generator = torch.Generator(device).manual_seed(adam.seed)
        self.optimizer = torch.optim.Adam(self.weights, lr=adam.lr, fused=True)
        self.steps_per_epoch = adam.steps_per_epoch(num_observations)
        self.most_epochs = adam.most_epochs(num_observations)
        # a one-cycle schedule of 10 steps or fewer divides by zero; so short a run ends before its schedule
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, adam.lr, total_steps=max(self.most_epochs * self.steps_per_epoch, 11), pct_start=0.1
        )
        self.progress = Progress()
        self.norms = torch.zeros(3, device=device)  # of gradients since the last metrics: sum, number, the largest
        self.usual = torch.zeros((), device=device)  # running mean of the norm of vectors' gradients; 0: none yet
        self.skipped = torch.zeros((), device=device)  # steps since then
        self.skipped_in_a_row = torch.zeros((), device=device)
        self._epoch_start = self.generator.get_state()

    def batches(self) -> list[Tensor]:
        """The rows of each batch of this epoch that is still to come, in random order."""
        if self.progress.step == 0:
            self._epoch_start = self.generator.get_state()
        now = self.generator.get_state()
        self.generator.set_state(self._epoch_start)
        order = torch.randperm(self.num_observations, generator=self.generator, device=self.device)
        if self.progress.step:
            self.generator.set_state(now)
        return list(order.split(self.config.optimiser.batch_size)[self.progress.step :])

    def objective(self) -> Objective:
        """What the next step descends: beta grows from 0 in the epochs of the warm-up."""
        asked = self.config.objective
        done = self.progress.epoch - 1 + (self.progress.step + 1) / self.steps_per_epoch
        beta = asked.beta * min(1.0, done / asked.warm_up if asked.warm_up else 1.0)
        return Objective(asked.samples, asked.gradient == "path", beta, asked.free_bits)

    @torch.no_grad()
    def step(self, out: Pass) -> None:
        """Move the weights along their gradients, unless the pass `out` was not finite; nothing waits for the device.

        Every tenth step measures the norm of all gradients, which a small network notices; the others look at those of
        vectors, such as biases, alone: what is not finite in a layer, or jumps, nearly always reaches its bias.
        A gradient ten times as long as usual is cut to that, or one bad batch would throw all weights off.
        """
        gradients = [w.grad for w in self.weights if w.grad is not None]
        finite = (out.parameters.sum() + out.z.sum()).isfinite()
        of_vectors = torch.nn.utils.get_total_norm([g for g in gradients if g.ndim < 2]).float()
        finite &= of_vectors.isfinite()
        if self.progress.step % _NORM_EVERY == 0:
            norm = torch.nn.utils.get_total_norm(gradients)
            finite &= norm.isfinite()
            measured = torch.stack([norm, torch.ones_like(norm), torch.clamp(norm - self.norms[2], min=0)])
            self.norms += torch.where(finite, measured, 0)
        bad = 1 - distributed.smallest(finite.float())
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # what torch.amp.GradScaler sets: 1 skips the step
        self.optimizer.grad_scale = self._excess(of_vectors, bad)  # type: ignore[attr-defined]  # which it divides by
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += bad
        self.skipped_in_a_row += 1
        self.skipped_in_a_row *= bad
        self.progress.step += 1

    def _excess(self, norm: Tensor, bad: Tensor) -> Tensor:
        """By how many times a gradient is too long whose vectors have this norm, or 1; takes it into what is usual."""
        longest = torch.where(self.usual > 0, _LONGEST * self.usual, norm)
        usual = torch.where(self.usual > 0, self.usual.lerp(norm.minimum(longest), _NEW), norm)
        self.usual.copy_(torch.where(bad > 0, self.usual, usual))
        return (norm / longest).nan_to_num(1.0).clamp(min=1.0)

    @property
    def measured(self) -> bool:
        """Whether this epoch ends with metrics: the last does, and in between every one, or where they were not
        counted beforehand and are short, one in several.
        """
        each = -(-_MEASURE_EVERY // self.steps_per_epoch) if self.config.optimiser.epochs is None else 1
        return self.progress.epoch % each == 0 or self.progress.epoch == self.most_epochs

    @property
    def out_of_patience(self) -> bool:
        """Whether the test ELBO has not risen for as many steps as it is waited for."""
        past, asked = self.progress.metrics, self.config.optimiser
        if not (asked.patient and asked.patience and past):
            return False
        return (past[-1]["epoch"] - best(past)["epoch"]) * self.steps_per_epoch >= asked.patience

    @property
    def over(self) -> bool:
        """Whether no epoch is to come."""
        return self.progress.epoch > self.most_epochs or self.out_of_patience

    def end_epoch(self, metrics: Metrics | None) -> None:
        """Move on to the next epoch; None where this one is not `measured`."""
        progress = self.progress
        if metrics is None:
            self.progress = Progress(progress.epoch + 1, seconds=progress.seconds, metrics=progress.metrics)
            return
        self.progress = Progress(progress.epoch + 1, metrics=[*progress.metrics, metrics])
        self.norms.zero_()
        self.skipped.zero_()

    def state(self) -> tuple[dict[str, Tensor], str]:
        """All of it: tensors by name, and the rest as JSON. Raises ArgumentError where the weights are not finite."""
        if not all(weight.isfinite().all() for weight in self.weights):
            raise ArgumentError("training diverged", "weights are not finite", "choose a lower --lr")
        optimizer = self.optimizer.state_dict()
        tensors = {f"vae.{name}": value for name, value in self.vae.state_dict().items()}
        for index, values in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        tensors |= {name: getattr(self, name) for name in _RUNNING}
        tensors |= {"generator": self.generator.get_state(), "epoch_start": self._epoch_start}
        tensors["default_generator"] = self._default_generator().get_state()
        rest = {
            "progress": asdict(self.progress),
            "groups": optimizer["param_groups"],
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not callable(v)},
        }
        # clones, since safetensors refuses tensors that share memory, as a person's tied weights do
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, json.dumps(rest)

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
        for weight, state in self.optimizer.state.items():  # fused Adam pairs numbers by their place in memory
            for name, value in state.items():
                if value.shape == weight.shape:
                    state[name] = torch.empty_like(weight).copy_(value)
        self.schedule.load_state_dict(values["schedule"])
        self.generator.set_state(tensors["generator"])
        self._default_generator().set_state(tensors["default_generator"])
        self._epoch_start = tensors["epoch_start"]
        for name in _RUNNING:
            if name in tensors:  # an older checkpoint has no `usual`
                getattr(self, name).copy_(tensors[name])
        self.progress = Progress(**values["progress"])

    def _default_generator(self) -> torch.Generator:
        """The generator that a person's own layers, such as dropout, draw from."""
        if self.device.type == "cuda":
            return torch.cuda.default_generators[torch.cuda.current_device()]
        return torch.default_generator
