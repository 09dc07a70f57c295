"""Describe this machine and say whether the runtime can work on it."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from vae_runtime.errors import EnvironmentUnfit
from vae_runtime.extras import pip_install
from vae_runtime.threads import available_cores

_SUPPORTED = ("x86_64", "amd64", "aarch64", "arm64")


def describe() -> dict[str, str]:
    """Processor, cores, memory, system and versions, by name."""
    facts = {
        "machine": f"{platform.machine()}, {_processor()}",
        "cores": f"{available_cores()} usable of {os.cpu_count()}",
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, {sys.maxsize.bit_length() + 1}-bit",
    }
    for package in ("vae-edge", "numpy", "onnxruntime", "click", "pillow"):
        facts[package] = _version(package) or "not installed"
    return facts


def check() -> None:
    """Raise EnvironmentUnfit where the runtime cannot work here; onnxruntime is tried in a process of its own.

    A wrong binary may end in a signal (an illegal instruction, say), which no `except` catches.
    """
    if sys.maxsize < 2**32 or platform.machine().lower() not in _SUPPORTED:
        raise EnvironmentUnfit(
            "unsupported processor or 32-bit system",
            f"{platform.machine()}, {sys.maxsize.bit_length() + 1}-bit Python",
            "onnxruntime has no build for it; on a Raspberry Pi 3 or newer install the 64-bit Raspberry Pi OS",
        )
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    tried = subprocess.run(
        [sys.executable, "-c", "import onnxruntime"], capture_output=True, text=True, env=environment, check=False
    )
    if tried.returncode < 0:
        todo = f"install another release of it: {pip_install(_another(_version('onnxruntime') or ''))}"
        raise EnvironmentUnfit("onnxruntime crashes when it is imported", f"signal {-tried.returncode}", todo)
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        todo = f"install it: {pip_install('--upgrade', 'onnxruntime')}"
        raise EnvironmentUnfit("onnxruntime cannot be imported", reason, todo)


def _version(package: str) -> str | None:
    """The release that is installed, if any."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _another(release: str) -> str:
    """Another release of onnxruntime than one that crashes, as pip takes it.

    1.28 and newer crash where they do not know the processor from /proc/cpuinfo, and 1.21.0 on a Raspberry Pi 4.
    """
    known = re.match(r"(\d+)\.(\d+)", release)
    if known is None or (int(known[1]), int(known[2])) >= (1, 28):
        return "onnxruntime<1.28"
    return f"onnxruntime!={release}"


def _processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or "unknown processor"


def _memory() -> str:
    if not hasattr(os, "sysconf"):  # Windows
        return "unknown"
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return "unknown"
    return f"{pages * size / 2**30:.1f} GiB"
