"""Every command that the documentation shows runs, in order, and prints what the page says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vae_runtime.bundle import shipped

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {  # command: where it is tested
    "make demo": "test_wheel.py, in a copy of the tree",
    "make test": "it runs this very test",
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, each with the output that the page shows below it."""
    parts = [part for block in blocks(page, "console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command.strip(), output) for command, _, output in (part.partition("\n") for part in parts)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working folder for all commands of a page, since later ones read what earlier ones wrote."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@pytest.mark.parametrize(
    ("command", "shown"),
    [pytest.param(*row, id=row[0]) for page in PAGES for row in commands(page) if row[0] not in ELSEWHERE],
)
def test_a_shown_command_prints_what_the_page_says(
    command: str, shown: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    """The command succeeds, and its output has the shown words; figures may differ a little between machines."""
    program, *arguments = shlex.split(command)
    if program == "vae-train" or command.startswith("vae-export"):
        request.getfixturevalue("data_root")
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments], capture_output=True, text=True, cwd=folder, timeout=900
    )
    assert done.returncode == 0, done.stderr
    printed = (done.stderr + done.stdout).splitlines()
    for line in shown.splitlines():
        if line.strip() not in ("", "..."):
            assert any(same(line, other) for other in printed), f"{line!r} is not in:\n{done.stderr}{done.stdout}"


TIMINGS = re.compile(  # and rounding errors, and what a row of the numeric gate says of them: all machines differ
    r"[\d.]+ s +[\d,]+ images/s|\d\.\de-\d\d|\d+ threads?|(?<=^✓ .{28}).*"
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
    pytest.param(block, id=f"{page.name}-{i}") for page in PAGES for i, block in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("example", PYTHON)
def test_shown_python_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python lines of a page run as they stand, in a folder that holds the shipped decoder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(shipped() / "decoder.onnx", tmp_path)
    exec(compile(example, "page", "exec"), {})
