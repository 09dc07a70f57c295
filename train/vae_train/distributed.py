"""The processes of one training: those that torchrun started, or one alone."""

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn.parallel import DistributedDataParallel

from vae_runtime import command
from vae_runtime.errors import EnvironmentUnfit, VaeError
from vae_train.vae import VAE

T = TypeVar("T")

_FAILED = "vae-train/failed"  # where the first process that fails leaves its number and exit code
_meetings = itertools.count()  # of this process with the others: what one left in the store is not the next one's
_LONGEST_WAIT = timedelta(seconds=20)  # for that; torchrun kills after 30


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
    """Meet the other processes, where torchrun has started some: over gloo, and between GPUs over nccl.

    Where one fails, all leave with its exit code, and only the first to fail says why. Raises EnvironmentUnfit where
    the others cannot be reached, or are lost later.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        store, rank, size = next(torch.distributed.rendezvous("env://"))  # type: ignore[attr-defined]  # it is there
        store = PrefixStore(f"vae-train/{next(_meetings)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentUnfit("other processes not reached", reason, "start all of them with torchrun") from None
    try:
        yield
    except BaseException as error:
        _leave(store, error)
        raise
    finally:
        torch.distributed.destroy_process_group()


def lost(error: RuntimeError) -> bool:
    """Whether it is of the connection to the other processes."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _leave(store: Any, error: BaseException) -> None:
    """Return where this process is the first to fail; else end it silently, with the first's exit code."""
    with suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun's, to those that leave last
            signal.signal(number, signal.SIG_IGN)
    ours = first = f"{rank()} {_exit_code(error)}"
    with suppress(RuntimeError):  # the store may be lost, with torchrun
        if isinstance(error, SystemExit):  # another has the reason, and may still be tidying up
            store.wait([_FAILED], _LONGEST_WAIT)
        else:
            first = store.compare_set(_FAILED, "", ours).decode()
    if first != ours:
        raise SystemExit(int(first.split()[1])) from None
    if isinstance(error, RuntimeError) and "gloo" in str(error):
        reason = str(error).rpartition("] ")[2].partition(". ")[0]
        error = EnvironmentUnfit("another process of the training is lost", reason, "go on with --resume")
    if isinstance(error, VaeError):
        _tell_torchrun(error)
        raise error from None


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Exception):
        return error.exit_code if isinstance(error, VaeError) else 1
    return 128 + (signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)


def _tell_torchrun(error: VaeError) -> None:
    """Let the summary with which torchrun ends say why, in the place of a traceback."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        line = command.line("vae-train", str(error), error.exit_code)
        message = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": message}))


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
    return rows if size() == 1 else rows.tensor_split(size())[rank()]


def mean(values: Tensor) -> Tensor:
    """The mean over the first axis, of all processes together."""
    if size() == 1:
        return values.mean(dim=0)
    total = torch.cat([values.sum(dim=0).flatten(), values.new_tensor([len(values)])])
    torch.distributed.all_reduce(total)
    return (total[:-1] / total[-1]).view(values.shape[1:])


def smallest(value: Tensor) -> Tensor:
    """The smallest of the processes' values; all must ask."""
    if size() > 1:
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MIN)
    return value


def agreed(number: int) -> int:
    """The largest of the processes' numbers; all must ask."""
    if size() == 1:
        return number
    value = torch.tensor(number)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value.item())


def own_device(kind: str) -> torch.device:
    """The CPU, or this process's own GPU. Raises EnvironmentUnfit where it has none."""
    if kind == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= (gpus := torch.cuda.device_count()):
            todo = "start no more processes than GPUs, or use --device cpu"
            raise EnvironmentUnfit("more processes than GPUs", f"{processes_here()} and {gpus}", todo)
        torch.cuda.set_device(local)
    return torch.device(kind)
