"""How a run was made, as its folder and its bundle say it: command, device, GPU by name, machine and versions."""

import platform
from typing import Any

import torch

from vae_train import distributed


def of(command: str, where: torch.device) -> dict[str, Any]:
    """What makes a run now: `device` is as PyTorch calls it, and `gpu` its name where it is one."""
    facts = {
        "command": command,
        "device": str(where),
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    return facts | ({"gpu": torch.cuda.get_device_name(where)} if where.type == "cuda" else {})


def changed(begun: dict[str, Any], where: torch.device) -> list[str]:
    """What of it is another now than when a run was begun, and moves the last bits of its weights."""
    now = of("", where)
    named = ("threads", "processes", "torch")
    return [f"{name} {now[name]}, not {begun[name]}" for name in named if begun.get(name, now[name]) != now[name]]
