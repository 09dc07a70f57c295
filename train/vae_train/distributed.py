"""The processes of one training: those that torchrun started, or one alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vae_runtime.errors import EnvironmentUnfit, VaeError
from vae_train.vae import VAE

T = TypeVar("T")


def size() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes_here() -> int:
    """How many of the processes share this machine, and so its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes, where torchrun has started some: over gloo on CPUs, over nccl on GPUs.

    Raises EnvironmentUnfit where they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentUnfit("other processes not reached", reason, "start all of them with torchrun") from None
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, for all; where it raises there, all stop, and only it says why."""
    if size() == 1:
        return make()
    answer: list[Any] = [None, True]
    error: VaeError | None = None
    if rank() == 0:
        try:
            answer = [make(), True]
        except VaeError as raised:
            error, answer = raised, [raised.exit_code, False]
    torch.distributed.broadcast_object_list(answer)
    if error is not None:
        raise error
    if not answer[1]:
        raise SystemExit(answer[0])
    made: T = answer[0]
    return made


def parallel(vae: VAE) -> nn.Module:
    """The VAE, whose gradients are averaged over the processes after each backward pass."""
    if size() == 1:
        return vae
    return DistributedDataParallel(vae, gradient_as_bucket_view=True)


def part(rows: Tensor) -> Tensor:
    """This process's part of a batch's rows, along the first axis."""
    return rows.tensor_split(size())[rank()]


def mean(values: Tensor) -> Tensor:
    """The mean over the first axis, of all processes together."""
    if size() == 1:
        return values.mean(dim=0)
    total = torch.cat([values.sum(dim=0), values.new_tensor([len(values)])])
    torch.distributed.all_reduce(total)
    return total[:-1] / total[-1]


def agreed(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers; all must ask."""
    if size() == 1:
        return number
    value = torch.tensor(number, device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value.item())


def own_device(kind: str) -> torch.device:
    """The CPU, or this process's own GPU."""
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(kind)
