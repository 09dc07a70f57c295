"""What pages and docstrings say of the code is so: options, files, names, targets, and numbers that stand in both."""

import importlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from vae_export import cli as export_cli
from vae_export import exporter, gate, requirements, tradeoff, trained
from vae_runtime import VAE, Detector, bundle, errors, manifest, sources, traits
from vae_runtime import cli as runtime_cli
from vae_runtime.likelihoods import LOG_SCALE_BOUND, LOGSIGMA_BOUNDS
from vae_runtime.observation import Observation
from vae_train import checkpoints, loop, mlp, state, train
from vae_train import cli as train_cli

ROOT = Path(__file__).parents[2]
PAGES = {page.name: page.read_text() for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
FOLDERS = ("runtime", "train", "export", "artifacts", "benchmarks", "examples")
MODULES = {str(path): path.read_text() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}

OF_OTHERS = {  # pip, build, ruff, npm, curl, dpkg, torchrun, tensorboard, and of an older release
    "--no-binarise",
    *("--editable", "--target", "--wheel", "--fix", "--ignore-scripts", "--data-binary", "--print-architecture"),
    "--logdir",
    *("--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"),
}


def mentioned(pattern: str, texts: dict[str, str] = PAGES | MODULES) -> dict[str, str]:
    """What matches in pages and modules, each with the last of those that say it."""
    found = {match: name for name, text in texts.items() for match in re.findall(pattern, text, re.MULTILINE)}
    assert len(found) > 1, "nothing is looked at"
    return found


def options(command: click.Command) -> Iterator[str]:
    """Every option of a command and of the commands in it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for inner in getattr(command, "commands", {}).values():
        yield from options(inner)


def test_options_exist() -> None:
    """Each option that a page names is one of a tool, a script of this repository, or another program."""
    known = {"--help", "--version", *OF_OTHERS}
    for command in (runtime_cli.cli, train_cli.cli, export_cli.cli, export_cli.on_bundles):
        known |= set(options(command))
    for script in (path for folder in ("examples", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")):
        known |= set(re.findall(r'add_argument\(\s*(?:"-\w", )?"(--[\w-]+)"', script.read_text()))
    now = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}  # which names what has gone, too
    named = mentioned(r"(?<![\w-])--[a-z][\w-]*", now)
    assert {option: page for option, page in named.items() if option not in known} == {}


def test_files_exist() -> None:
    """Each file of this repository that a page or a module names is there."""
    folders = "train|export|runtime|artifacts|tests|benchmarks|examples|docs"
    named = mentioned(rf"(?<![\w/.~-])(?:{folders})/[\w./-]*\.(?:py|md|mjs|html|png)")
    assert {path: by for path, by in named.items() if not (ROOT / path).exists()} == {}


def links(name: str) -> list[str]:
    """Where the links of a page lead, those on the web left out."""
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[name])) if not re.match("https?:", to)]


def without_code(text: str) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub("^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall("^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """A link within the repository names a file that is there, and a heading that this file has."""
    here = ROOT if name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") else ROOT / "docs"
    for link in links(name):
        file, _, anchor = link.partition("#")
        target = here / (file or name)
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def in_nav(part: str) -> list[str]:
    """The pages of one part of the site, in their order."""
    _, _, rest = (ROOT / "mkdocs.yml").read_text().partition(f"\n  - {part}:\n")
    return re.findall(r"^      - (?:[^:\n]+: )?(\S+\.md)$", rest.partition("\n  - ")[0], re.MULTILINE)


def test_every_page_is_on_the_site() -> None:
    """Once each, in one of its four parts."""
    shown = [page for part in ("Start here", "Guides", "Reference", "How it works") for page in in_nav(part)]
    assert sorted(shown) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", in_nav("Guides"))
def test_a_guide_says_for_whom_it_is_and_what_comes_next(name: str) -> None:
    """In its first sentence and in its last paragraph."""
    title, first, *_, last = PAGES[name].strip().split("\n\n")
    assert title.startswith("# ")
    assert first.startswith("This page is for ")
    assert last.startswith("Next: ")
    assert links(name)


def test_the_front_page_is_short() -> None:
    """It is read in a minute, on any screen."""
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 120


def test_names_exist() -> None:
    """Each dotted name of these packages that stands in backticks can be imported."""
    for dotted in mentioned(r"`(vae_(?:runtime|train|export|artifacts)(?:\.\w+)*)[`(]"):
        first, *parts = dotted.split(".")
        found = importlib.import_module(first)
        for part in parts:
            found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")


def test_targets_exist() -> None:
    """Each `make` target that a page names is in the Makefile."""
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = mentioned(r"(?:`|^\$ )make ([a-z0-9-]+)", PAGES)
    assert {target: page for target, page in named.items() if target not in targets} == {}


def rows(page: str, first: str) -> list[list[str]]:
    """The rows of the table of a page whose first heading is this, without the headings."""
    table = PAGES[page].partition(f"\n| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in table]


def test_every_verb_is_on_the_runtimes_page_with_what_it_calls() -> None:
    """Its table has the verbs of `vae-infer`, and the functions behind them exist."""
    verbs = set()
    for cell, _, behind in rows("runtime.md", "verb"):
        verbs |= set(re.findall(r"`(\w+)`", cell))
        for owner, function in re.findall(r"`(\w+)\.(\w+)`", behind):
            holder = {"VAE": VAE, "Detector": Detector}.get(owner) or importlib.import_module(f"vae_runtime.{owner}")
            assert hasattr(holder, function), behind
    assert verbs == set(runtime_cli.cli.commands)


def test_the_traits_of_a_detector() -> None:
    """The table of what `oddest` says has the traits of each kind of data, in the code's order, and no others."""
    shown = [(name.strip("`").replace("\\|", "|"), of) for name, of, *_ in rows("detect.md", "trait")]
    kinds = {
        "images": Observation.image((1, 8, 8)),
        "windows": Observation("series", (1, 8), None),
        "rows of numbers": Observation("vector", (3,), None),
    }
    for kind, observation in kinds.items():
        assert [name for name, of in shown if of in ("all", kind)] == traits.names(observation, ["CHANNEL"])
    binary = Observation("vector", (3,), (0, 1))
    assert [name for name, of in shown if of == "all"] == traits.names(binary, [])
    assert {of for _, of in shown} == {"all", *kinds}


def test_the_errors_and_their_exit_codes() -> None:
    """The table for programs that embed the runtime has every class of the tree."""
    shown = {name.strip("`"): int(code) for name, code, *_ in rows("embedding.md", "class")}
    tree = [each for each in vars(errors).values() if isinstance(each, type) and errors.VaeError in each.__bases__]
    assert shown == {each.__name__: each.exit_code for each in tree}


def test_the_releases_of_onnxruntime_that_an_opset_needs() -> None:
    """The bundle's page has for each opset its IR version, and the first releases by the exporter's own tables."""
    shown = [[tuple(map(int, cell.split("."))) for cell in cells[1:]] for cells in rows("bundle.md", "opset")]
    for opset, (ir,), first, needed in zip(requirements._OPSETS, *shown, strict=True):
        assert first == max(requirements._OPSETS[opset], requirements._IR_VERSIONS[ir])
        assert needed == max(first, requirements._FIRST_FOR_PYTHON)


def test_kinds_of_pictures() -> None:
    """The page on training names all kinds of picture that are read from a folder."""
    (cell,) = [what for dataset, what, _ in rows("training.md", "dataset") if dataset == "a folder"]
    short = {"jpeg": {".jpeg", ".jpg"}, "tiff": {".tiff", ".tif"}}
    named = [kind.lower() for kind in re.findall(r"\b(PNG|JPEG|GIF|BMP|TIFF|WebP|PGM|PPM)\b", cell)]
    assert set().union(*(short.get(kind, {f".{kind}"}) for kind in named)) == set(sources.SUFFIXES)


def lines(path: str) -> int:
    """How many lines a file has."""
    return len((ROOT / path).read_text().splitlines())


FACTS: dict[str, tuple[str, Callable[[], str]]] = {
    "clamp of logsigma": ("mathematics.md", lambda: r"\log \sigma \in [{:g}, {:g}]".format(*mlp.LOGSIGMA_RANGE)),
    "clamp of log_scale": ("mathematics.md", lambda: rf"\log s \in [{-LOG_SCALE_BOUND:g}, {LOG_SCALE_BOUND:g}]"),
    "the least sigma": ("training.md", lambda: f"it is at least {math.exp(LOGSIGMA_BOUNDS[0]):.3f}, of the spread"),
    "steps that were skipped": ("training.md", lambda: f"after {loop.MOST_SKIPPED} in a row the training stops"),
    "turns of a thread": ("benchmarks.md", lambda: f"lets them turn {train_cli.SPIN:,} times"),
    "checkpoints": ("training.md", lambda: {60: "each minute"}[int(checkpoints.SAVE_EVERY)]),
    "measured gradients": ("training.md", lambda: {10: "every tenth step"}[state._NORM_EVERY]),
    "questions between processes": ("multi-node.md", lambda: {10: "every ten steps"}[train._AGREE_EVERY]),
    "format of a bundle": ("bundle.md", lambda: f"`format` ({manifest.FORMAT})"),
    "the JavaScript module": ("browser.md", lambda: f"a module of {lines('examples/javascript/vae.mjs')} lines"),
    "batch sizes of the gate": ("numeric-gate.md", lambda: "at batch sizes {}, {}, {} and {},".format(*gate.BATCHES)),
    "false alarms of the gate": (
        "numeric-gate.md",
        lambda: f"a chance\nof {gate.FALSE_ALARM:.0e}".replace("e-0", "e-"),
    ),
    "z that is far": ("numeric-gate.md", lambda: f"{gate._FAR:g} along its axis, {-gate._FAR / 2:g} along the next"),
    "margin of a run's own outputs": ("numeric-gate.md", lambda: f"is {trained.MARGIN} times the tolerance"),
    "images that say what a precision costs": ("precision.md", lambda: f"up to {tradeoff.MOST:,} test images"),
    "what a precision may cost": ("precision.md", lambda: f"`--max-nats`, {exporter.MAX_NATS} nats per image by"),
    "files of a bundle": ("bundle.md", lambda: {4: "one folder with four files"}[len(bundle.FILES) + 1]),
}


@pytest.mark.parametrize("fact", FACTS)
def test_numbers_of_the_code(fact: str) -> None:
    """A page has the number that the code has."""
    page, sentence = FACTS[fact]
    assert sentence() in PAGES[page]
