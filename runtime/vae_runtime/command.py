"""Run a click command so that every failure ends in one line on stderr and the exit code that belongs to it."""

import atexit
import errno
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from vae_runtime.errors import VaeError

_NAMES = {"INTEGER RANGE": "N", "INTEGER": "N", "FLOAT RANGE": "NUMBER", "FLOAT": "NUMBER"}  # for click's types
_TYPES = re.compile(rf"\b({'|'.join(_NAMES)})$")
_RANGE = re.compile(r"\b([\d.]+)(<=?)x<=?([\d.]+)|\bx(>=?)([\d.]+)")
_NO_LIMIT = 2**30  # what is higher is there for the machine


class Terminated(BaseException):
    """SIGTERM or SIGHUP, its number, raised so that what is half-written is cleaned up on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(command: click.Command, prog: str) -> None:
    """Run `command` as the program `prog` and exit.

    0 fine, 2 usage, 3 bundle, 4 input, 5 resources, 6 environment; 129, 130 and 143 where SIGHUP, SIGINT or SIGTERM
    ended it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed, as in some services
            stream = Path(os.devnull).open(mode, encoding="utf-8", errors="replace")  # noqa: SIM115, open to the end
            setattr(sys, name, stream)
    when_ended(_terminate)
    click.Context.formatter_class = _Help
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a tick or a block that the terminal's encoding lacks
    code = _guarded(command, prog)
    try:
        sys.stdout.flush()
    except OSError as error:  # a full disk, or a reader, `head` say, that has what it wanted
        if error.errno != errno.EPIPE:
            code = _fail(prog, f"cannot write: standard output ({error.strerror}); free some space", 5)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def ending() -> list[signal.Signals]:
    """The signals that end a command: SIGTERM, and SIGHUP where it is not ignored, as by nohup."""
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)  # which Windows has not
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, hangup]


def when_ended(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have this called with the signals that end a command."""
    for number in ending():
        signal.signal(number, handler)


def alone(main: Callable[[], None]) -> None:
    """Run a command's `main` as all that its process is for; it leaves no thread and no file that is still at work.

    The system takes a process's memory back at once. Python, NumPy and onnxruntime would free it piece by piece, for
    longer than it takes to draw 16 samples.
    """
    try:
        main()
    except SystemExit as left:
        if not isinstance(left.code, int) or sys.getprofile() or sys.gettrace():  # who looks on has more to do
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(left.code)


def _guarded(command: click.Command, prog: str) -> int:
    try:
        if instruction := os.environ.get(variable := f"_{prog}_COMPLETE".replace("-", "_").upper()):
            from click.shell_completion import shell_complete

            return shell_complete(command, {}, prog, variable, instruction)
        with command.make_context(prog, sys.argv[1:]) as context:
            command.invoke(context)
        return 0
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.exceptions.NoArgsIsHelpError:
        return _fail(prog, f"wrong usage: no command named; see '{prog} --help'", 2)
    except click.UsageError as error:
        return _fail(prog, f"wrong usage: {_describe(error, prog)}", 2)
    except VaeError as error:
        return _fail(prog, str(error), error.exit_code)
    except MemoryError:
        return _fail(prog, "out of memory: this machine has too little; free memory or ask for less", 5)
    except BrokenPipeError:
        return 0
    except OSError as error:
        code = 5 if error.errno == errno.ENOSPC else 4
        where = error.filename or "the output"
        return _fail(prog, f"{error.strerror}: {where}; check the path, its permissions and the disk", code)
    except Terminated as ended:
        return _fail(prog, "run it again when it suits", 128 + ended.number)
    except (KeyboardInterrupt, click.Abort):
        return _fail(prog, "run it again when it suits", 130)


def _describe(error: click.UsageError, prog: str) -> str:
    """What is wrong with the usage, and what to do; an option that the verb lacks may go before it."""
    if isinstance(error, click.NoSuchOption) and error.ctx and (above := error.ctx.parent):
        option = error.option_name
        if any(option in known.opts for known in above.command.params):
            return f"{option} in the wrong place; give it before the verb: {prog} {option} ..."
    where = error.ctx.command_path if error.ctx else prog
    meant = getattr(error, "possibilities", None)  # of an option, and of a command where click is new
    message, guess = (error.message, f"use {' or '.join(meant)}, or ") if meant else (error.format_message(), "")
    for kind, plain in (("integer range", "integer"), ("float range", "number")):  # click's names of its own types
        message = message.replace(f"is not a valid {kind}", f"is not a valid {plain}")
    return f"{message.rstrip('.')}; {guess}see '{where} --help'"


def as_typed(prog: str) -> str:
    """The command line of this process, with the folders of absolute paths left out: it goes into what is published."""
    return shlex.join([prog, *map(_without_folders, sys.argv[1:])])


def _without_folders(word: str) -> str:
    """The word, or `--option=word`, with only the name of an absolute path."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


class _Help(click.HelpFormatter):
    """Help that calls an integer N, and says ranges in words."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write options, or commands, and what they are, in two columns."""
        written = [
            (_TYPES.sub(lambda kind: _NAMES[kind[0]], option), _RANGE.sub(_in_words, told)) for option, told in rows
        ]
        super().write_dl(written, col_max, col_spacing)


def _in_words(found: re.Match[str]) -> str:
    """A range as click writes it, such as 0<x<1 or x>=1, in words."""
    least, _, most, beyond, only = found.groups()
    if only is not None:
        return f"above {only}" if beyond == ">" else f"{only} or more"
    if float(most) >= _NO_LIMIT:
        return f"{least} or more"
    return f"between {least} and {most}" if "=" not in found[0] else f"{least} to {most}"


def line(prog: str, message: str, code: int) -> str:
    """What a command that leaves with the exit code `code` says last; to be stopped by a signal is no error."""
    kind = {129: "terminated", 130: "interrupted", 143: "terminated"}.get(code, "error")
    return f"{prog}: {kind}: {' '.join(message.split())}"


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


def _fail(prog: str, message: str, code: int) -> int:
    with suppress(OSError):  # the exit code says it too
        print(line(prog, message, code), file=sys.stderr, flush=True)
    return code
