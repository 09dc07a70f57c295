"""The one error tree of vae-edge: every failure says what, which, and what to do, and knows its exit code."""

_LONGEST = 2000  # characters of what a message quotes: a screen, not a book


def printable(text: str) -> str:
    """The text with every character that would steer a terminal written as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class VaeError(Exception):
    """Base of all errors that vae-edge raises on purpose.

    `str(error)` is one line: `<what>: <which>; <what to do>`. Its parts are `what`, `which` and `todo`, and
    `exit_code` is what the commands leave with.
    """

    exit_code = 1

    def __init__(self, what: str, which: object, todo: str) -> None:
        super().__init__(what, str(which), todo)
        self.what, self.which, self.todo = what, str(which), todo

    def __str__(self) -> str:
        what, which = (part if len(part) <= _LONGEST else f"{part[:_LONGEST]}..." for part in (self.what, self.which))
        return printable(" ".join(f"{what}: {which}; {self.todo}".split()))


class ArgumentError(VaeError, ValueError):
    """An argument or option that cannot be: a negative count, an unknown name, an output that cannot be written."""

    exit_code = 2


class BundleError(VaeError):
    """A bundle or checkpoint that is missing, damaged, mixed up or refused by the numeric gate."""

    exit_code = 3


class InputError(VaeError, ValueError):
    """Input data of the wrong shape, type, range or content."""

    exit_code = 4


class ResourceError(VaeError):
    """Out of memory or disk."""

    exit_code = 5


class EnvironmentUnfit(VaeError):
    """This machine or Python environment lacks what the task needs."""

    exit_code = 6
