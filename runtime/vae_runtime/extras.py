"""What an extra of this package needs and this environment lacks, and the command that installs it here."""

import re
import shlex
import sys
from typing import Any

from vae_runtime.errors import EnvironmentUnfit

_DISTRIBUTION = "vae-edge"
_REQUIREMENT = re.compile(r"""(?P<needed>(?P<name>[\w.-]+)[^;]*?) *; *extra *== *["'](?P<extra>[\w-]+)["']""")


def require(extra: str, task: str, *packages: str) -> None:
    """Raise EnvironmentUnfit, with the command that installs what is missing, where an extra is not whole.

    packages: those of the extra that the task does with; without any, it takes all.
    """
    needed = requirements(extra)
    if lacking := [name for name in packages or needed if not _installed(name)]:
        todo = f"install: {pip_install(*(needed.get(name, name) for name in lacking))}"
        raise EnvironmentUnfit(f"{task} needs packages that are not installed", ", ".join(lacking), todo)


def requirements(extra: str) -> dict[str, str]:
    """The packages of an extra by name, as pip takes them, "torch>=2.9" say; from this installation's own metadata."""
    import importlib.metadata  # it takes long, and most commands never ask

    try:
        declared = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        todo = f"install it in the folder of its source: {pip_install(f'.[{extra}]')}"
        raise EnvironmentUnfit("package is not installed", _DISTRIBUTION, todo) from None
    found = filter(None, map(_REQUIREMENT.fullmatch, declared))
    return {match["name"]: match["needed"] for match in found if match["extra"] == extra}


def pip_install(*requirements: str) -> str:
    """The command that installs these for the Python that runs, whichever environment is active."""
    return shlex.join([sys.executable or "python3", "-m", "pip", "install", *requirements])


def _installed(name: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_whole(extra: str, task: str) -> None:
    """Raise EnvironmentUnfit where an extra is not whole, or the system has no locks of files, which the task needs."""
    require_posix(task)
    require(extra, task)


def imported(module: str, name: str, extra: str, task: str) -> Any:
    """What a module of this project calls so. Raises EnvironmentUnfit where it cannot be imported for want of these."""
    from importlib import import_module

    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError:
        require_whole(extra, task)
        raise


def require_posix(task: str) -> None:
    """Raise EnvironmentUnfit on systems without POSIX's locks of files, such as Windows."""
    import importlib.util

    if importlib.util.find_spec("fcntl") is None:
        todo = "do it on Linux or macOS, or in WSL; what it exports runs here too"
        raise EnvironmentUnfit(f"{task} needs a POSIX system", sys.platform, todo)
