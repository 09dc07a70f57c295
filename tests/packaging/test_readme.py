"""Every command that the documentation shows runs, once what it reads is made, and prints what the page says."""

import gc
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_runtime.bundle import shipped

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BY_ORIGIN = ROOT / "docs" / "bring-your-own.md"  # its Python needs what an origin has: test_origins.py runs it
ELSEWHERE = {  # command: where it is tested
    "make demo": "test_wheel.py, in a copy of the tree",
    "make test": "it runs this very test",
    **dict.fromkeys(
        ["vae-train", "vae-export --opset 17", "vae-infer sample -n 16"], "test_newest.py, in a folder of theirs"
    ),
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, each with the output that the page shows below it."""
    parts = [part for block in blocks(page, "console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command.strip(), output) for command, _, output in (part.partition("\n") for part in parts)]


SHOWN = [(page, *row) for page in PAGES for row in commands(page) if row[0] not in ELSEWHERE]
MAINS = {"vae-train": "vae_train.cli", "vae-export": "vae_export.cli", "vae-infer": "vae_runtime.cli"}


def made_by(page: Path, word: str) -> str | None:
    """The command that writes this file or folder: of the same page if there is one, or of another."""
    for _page, command, _shown in sorted(SHOWN, key=lambda row: row[0] != page):
        if re.search(rf" (-o|--out) {re.escape(word)}( |$)", command):
            return command
    return None


def needed(page: Path, command: str) -> list[str]:
    """The commands, first to last, that make what this one reads, and itself."""
    words = re.sub(r" (-o|--out) \S+", "", command).split()[1:]
    before = [needed(page, maker) for word in words if (maker := made_by(page, word)) and maker != command]
    return [*dict.fromkeys([each for chain in before for each in chain]), command]


def marks(page: Path, command: str) -> list[pytest.MarkDecorator]:
    """Trainings take some time, and those on MNIST, not on what is at hand everywhere, the image sets too."""
    long = ("vae-train --", "torchrun", "vae-export --from")
    trainings = [each for each in needed(page, command) if each.startswith(long)]
    if not trainings:
        return []
    at_hand = all(re.search("--dataset (digits|examples/|clothes )|--from", each) for each in trainings)
    return [pytest.mark.slow] if at_hand else [pytest.mark.slow, pytest.mark.data]


class Shell:
    """A folder in which commands run, each once, and what they have printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed: dict[str, tuple[int, str]] = {}

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output; the package's own commands run in this process, which has imported PyTorch already.

        A watch of a folder has no end: it is interrupted when it has judged something.
        """
        if command not in self.printed:
            program, *arguments = shlex.split(command)
            if "|" in arguments or "watch" in arguments:
                self.printed[command] = self._in_bash(command)
            else:
                run = self._here if program in MAINS else self._there
                self.printed[command] = run(program, *arguments)
        return self.printed[command]

    def _in_bash(self, command: str) -> tuple[int, str]:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        call = ["bash", "-c", f"exec {command}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(call, text=True, cwd=self.folder, env=environment, **pipes) as process:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "|" not in command and '"event": "observation"' in line:
                    process.send_signal(signal.SIGINT)
        return process.returncode, "".join(lines)

    def _here(self, program: str, *arguments: str) -> tuple[int, str]:
        printed = io.TextIOWrapper(io.BytesIO(), write_through=True)
        with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed), redirect_stderr(printed):
            patched.chdir(self.folder)
            patched.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as left, warnings.catch_warnings():
                warnings.simplefilter("default")
                importlib.import_module(MAINS[program]).main()
            gc.unfreeze()  # vae-infer freezes what it has imported, as a process of its own may
        return int(left.value.code or 0), printed.buffer.getvalue().decode()

    def _there(self, program: str, *arguments: str) -> tuple[int, str]:
        call = [Path(sys.executable).parent / program, *arguments]
        done = subprocess.run(call, capture_output=True, text=True, cwd=self.folder)
        return done.returncode, done.stderr + done.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """One for all commands of all pages."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return Shell(folder)


@pytest.fixture(scope="module")
def vae_elsewhere(shell: Shell) -> None:
    """What the reader of the page about it has: weights, their code and observations; and the file that it shows."""
    example = runpy.run_path(str(ROOT / "examples" / "bring_your_own.py"))["networks"]()
    torch.save(example["encoder"].state_dict(), shell.folder / "vae.pt")
    np.save(shell.folder / "x_test.npy", example["observations"].numpy())
    shutil.copy(ROOT / "examples" / "bring_your_own.py", shell.folder / "model.py")
    (file,) = (block for block in blocks(BY_ORIGIN, "python") if block.startswith("# mine.py\n"))
    (shell.folder / "mine.py").write_text(file)


@pytest.mark.parametrize(
    ("page", "command", "shown"),
    [pytest.param(*row, id=f"{row[0].name}: {row[1]}", marks=marks(*row[:2])) for row in SHOWN],
)
def test_a_shown_command_prints_what_the_page_says(
    page: Path, command: str, shown: str, shell: Shell, request: pytest.FixtureRequest
) -> None:
    """The command succeeds once what it reads is made, and its output has the shown words; figures may differ a little
    between machines.
    """
    if request.node.get_closest_marker("data"):
        request.getfixturevalue("data_root")
    if any("--from mine:" in each for each in needed(page, command)):
        request.getfixturevalue("vae_elsewhere")
    for each in needed(page, command):
        code, printed = shell.run(each)
        assert code == 0, f"{each}\n{printed}"
    for line in shown.splitlines():
        if line.strip() not in ("", "..."):
            assert any(same(line, other) for other in printed.splitlines()), f"{line!r} is not in:\n{printed}"


TIMINGS = re.compile(  # and rounding errors, and what a row of the numeric gate says of them: all machines differ
    r"[\d.]+ s +[\d,]+ (?:images|rows)/s|[\d.]+ s +[\d,]+/s|\d\.\de-\d\d|\d+ threads?|(?<=^✓ .{28}).*"
)
FIGURE = re.compile(r"-?\d+\.\d+")


def same(shown: str, printed: str) -> bool:
    """Whether two lines have the same words, and figures that agree to 5 percent, and to 1 where they are large."""
    shown, printed = (TIMINGS.sub("", line) for line in (shown, printed))
    if FIGURE.sub("#", shown).split() != FIGURE.sub("#", printed).split():
        return False
    pairs = zip(FIGURE.findall(shown), FIGURE.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= min(0.05 * abs(float(a)), 1) + 0.02 for a, b in pairs)


PYTHON = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    if page != BY_ORIGIN and page.name != "api.md"  # which shows signatures, and the examples of docstrings
    for i, block in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("example", PYTHON)
def test_shown_python_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python lines of a page run as they stand, in a folder that holds the shipped decoder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(shipped() / "decoder.onnx", tmp_path)
    exec(compile(example, "page", "exec"), {})
