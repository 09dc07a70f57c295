"""Which line of a person's code did it: an exception's, a traced operator's, or the one that fixed the batch size."""

import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from vae_runtime.errors import BundleError

Line = tuple[str, int]  # file and number
Owns = Callable[[str], bool]

_TORCH = str(Path(torch.__file__).parent)
_LIBRARIES = tuple(
    f"{folder}/"
    for folder in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        _TORCH,
        str(Path(__file__).parent),  # what calls the network
    )
)


def owner(module: nn.Module) -> Owns:
    """Whether a file is a person's own: outside of all libraries, or with a network's class where all are libraries."""
    classes = {getattr(sys.modules.get(type(part).__module__), "__file__", None) for part in module.modules()}
    files = {file for file in classes if file and not file.startswith(_TORCH)}
    installed = all(map(_of_library, files))
    return lambda file: not _of_library(file) or (installed and file in files)


def refusal(line: Line | None, reason: str, todo: str, names: str) -> BundleError:
    """The error for one line, or for the network as a whole, by its input and outputs, where none is known."""
    which = shown(line) if line is not None else names
    return BundleError("network cannot be exported", f"{which} ({reason})", todo)


def shown(line: Line) -> str:
    """A line for people: file, number and text."""
    return f"{Path(line[0]).name}:{line[1]} `{linecache.getline(*line).strip()}`"


def of_error(error: BaseException, owns: Owns) -> Line | None:
    """The innermost own line that the exception, or what caused it, was raised in."""
    for e in reversed(chain(error)):
        frames = [(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(e.__traceback__)]
        if own := [line for line in frames if owns(line[0])]:
            return own[-1]
    return None


def of_node(node: fx.Node, owns: Owns) -> Line | None:
    """The innermost own line that called the operator of a traced graph."""
    frames = re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, int(number)) for file, number in frames if owns(file)]
    return own[-1] if own else None


def of_fixed_size(module: nn.Module, call: Callable[[], Any], owns: Owns) -> Line | None:
    """The own line at which tracing `module`, which `call` does and which fails, bound its free batch.

    It turned it into a number, or into one of some numbers only. torch finds that out when tracing has ended. So every
    own line is followed, and the size and what is known of it are looked at after it.
    """
    sizes: list[Any] = []
    known: list[int] = []
    last: list[Line] = []
    found: list[Line] = []

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        if not owns(frame.f_code.co_filename) or found:
            return None
        if last and (str(sizes[-1]).isdigit() or _guards(sizes[-1]) > known[-1]):
            found.append(last[-1])
        if event == "line" and sizes:
            last[:] = [(frame.f_code.co_filename, frame.f_lineno)]
        return follow

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        sizes.append(inputs[0].shape[0])
        known.append(_guards(sizes[-1]))

    hook = module.register_forward_pre_hook(begin)
    before = sys.gettrace()
    sys.settrace(follow)
    try:
        with suppress(Exception):
            call()
    finally:
        sys.settrace(before)
        hook.remove()
    return found[0] if found else None


def _guards(size: Any) -> int:
    """How many conditions torch has put on a size while tracing."""
    symbols = size.node.shape_env if isinstance(size, torch.SymInt) else None
    return len(symbols.guards) if symbols else 0


def chain(error: BaseException) -> list[BaseException]:
    """An exception and what caused it, in turn."""
    links = [error]
    while (cause := links[-1].__cause__ or links[-1].__context__) is not None and cause not in links:
        links.append(cause)
    return links


def _of_library(file: str) -> bool:
    return file.startswith(("<", *_LIBRARIES)) or "/site-packages/" in file or "/dist-packages/" in file
