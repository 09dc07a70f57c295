"""Run the runtime in an emulated 64-bit ARM userland, and compare its numbers with this machine's.

    python tests/emulated/arm64.py [--root FOLDER] [--cpu cortex-a72]

Needs an x86-64 Linux machine, root and the network, and is no part of the default tests. FOLDER gets Debian 12 for
arm64 (debootstrap; a later run uses it again) and, newly made in each run, a virtual environment with the wheel of this
repository, in which the quick part of tests/runtime runs too. QEMU has the processor's instructions and their results,
not its speed. Exit code 1: a comparison, a command or a test failed.
"""

import argparse
import configparser
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
from PIL import Image

from vae_runtime import VAE, noise

REPOSITORY = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
MARK = ".vae-edge-arm64"  # a file in each userland that this program made
PACKAGES = "python3,python3-venv,ca-certificates"
INFER = Path(sys.executable).with_name("vae-infer")
HOME = "vae-edge"  # in the userland: the wheel, the virtual environment and what the commands write
BINFMT = Path("/proc/sys/fs/binfmt_misc")
TOOLS = {  # program: the Debian package that has it
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROCESSORS = {  # QEMU's name: the part number and the features that the kernel prints, on a Raspberry Pi 3, 4 and 5
    "cortex-a53": ("0xd03", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a72": ("0xd08", "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}

NUMBER, SEED, DRAWS = 16, 7, 100
KINDS, PRECISIONS = ("image", "vector", "series"), ("fp32", "fp16", "int8")
JUDGED = {f"{kind} {precision}": f"{kind}-{precision}.jsonl" for kind in KINDS for precision in PRECISIONS}
COMMANDS = [
    "doctor",
    "verify",
    f"sample -n {NUMBER} --seed {SEED} -o samples.npy",
    f"sample -n {NUMBER} --seed {SEED} -o samples.png",
    "reconstruct examples/digits -o reconstructions.npy",
    "detect examples/digits -o digits.jsonl",
    *(
        f"--bundle raw/{kind}/{p} detect raw/{kind}/new{'' if kind == 'image' else '.csv'} -o {kind}-{p}.jsonl"
        for kind in KINDS
        for p in PRECISIONS
    ),
    f"elbo examples/digits --samples {DRAWS} --format json",
]
TIE = 1e-5  # a draw this close to theta may fall on either side
RECONSTRUCTION = 1e-5
NATS, SHARE = 1e-3, 1e-5  # of scores the share, where that is more
TESTS = ["noise", "likelihoods", "latents", "images", "verify", "bundle", "vae"]  # minutes each, emulated


class Failure(Exception):
    """What, which, and what to do."""

    def __init__(self, what: str, which: object, todo: str) -> None:
        super().__init__(f"{what}: {which}; {todo}")


@dataclass(frozen=True)
class Results:
    """What the commands left in one machine's working folder, and the scores that `elbo` printed."""

    folder: Path
    scores: dict[str, float]  # ELBO by image, nats


@dataclass(frozen=True)
class Row:
    """One comparison: what was compared, what was found, what is allowed."""

    name: str
    found: str
    limit: str
    passed: bool


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY / "build" / "arm64", help="folder of the userland")
    parser.add_argument("--cpu", choices=PROCESSORS, default="cortex-a72", help="a Raspberry Pi 3's, 4's or 5's")
    options = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))  # an exception, so that everything is unmounted
    try:
        rows = compare_machines(options.root.absolute(), options.cpu)
    except Failure as failure:
        print(f"arm64: {failure}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0 if all(row.passed for row in rows) else 1


def compare_machines(root: Path, cpu: str) -> list[Row]:
    """Run the commands in the userland and here, and compare."""
    with userland(root, cpu) as environment, tempfile.TemporaryDirectory() as here:
        print("training and exporting what raw files are judged by", flush=True)
        raw_files = make_raw_files(Path(here) / "raw")
        print(f"\narm64, {cpu} emulated by QEMU:\n")
        work = make_work_folder(root / HOME / "work", raw_files)
        arm64 = run_commands(work, inside(root, f"/{HOME}/venv/bin/vae-infer", f"/{HOME}/work"), environment)
        print(f"\nThis machine, {platform.machine()}:\n")
        native = run_commands(make_work_folder(Path(here) / "work", raw_files), [str(INFER)], own_environment())
        rows = compare(arm64, native)
        run_tests(root, environment)
        return rows


@contextmanager
def userland(root: Path, cpu: str) -> Iterator[dict[str, str]]:
    """The userland in `root`, made where it is missing, with this wheel installed: its commands' environment."""
    check_machine()
    with emulation():
        if not root.exists():
            bootstrap(root)
        elif not (root / MARK).exists():  # what follows writes and unmounts there, as root
            raise Failure("folder is no userland of this program", root, "name one that does not exist, or its own")
        unmount_below(root)  # what a killed run has left
        copy_settings(root)
        with mounted(root, cpu):
            environment = userland_environment(cpu)
            install(root, environment)
            yield environment


def check_machine() -> None:
    """Raise Failure where something that the emulation needs is missing here."""
    if platform.machine() != "x86_64":
        raise Failure("not an x86-64 machine", platform.machine(), "run the comparison on one")
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        raise Failure("missing", ", ".join(missing), f"install with: apt-get install {' '.join(missing)}")
    if not KEYRING.exists():
        raise Failure("missing", KEYRING, "install with: apt-get install debian-archive-keyring")
    missing = [module for module in ("build", "hatchling") if importlib.util.find_spec(module) is None]
    if missing := missing + [INFER.name] * (not INFER.exists()):
        raise Failure("missing", ", ".join(missing), "install with: pip install --editable '.[dev]'")
    if os.geteuid() != 0:
        raise Failure("not root", f"user {os.geteuid()}", "run it as root: chroot and mount ask for it")


@contextmanager
def emulation() -> Iterator[None]:
    """Let the kernel start arm64 programs with QEMU."""
    handler = BINFMT / "qemu-aarch64"
    with mounted_binfmt():
        if not handler.exists():
            call(["update-binfmts", "--enable", "qemu-aarch64"], "cannot register QEMU")
        if not handler.exists():
            raise Failure("QEMU is not registered", handler, "install qemu-user-static and binfmt-support again")
        yield


@contextmanager
def mounted_binfmt() -> Iterator[None]:
    """The kernel's list of program formats, mounted while it is needed unless it is already."""
    if (BINFMT / "register").exists():
        yield
        return
    call(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], "cannot mount")
    try:
        yield
    finally:
        unmount_below(BINFMT)


def bootstrap(root: Path) -> None:
    """Make the userland; `root` appears only when it is complete."""
    partial = root.with_name(root.name + ".partial")
    unmount_below(partial)  # debootstrap's own /proc, if a former run was killed
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    mirror = apt_mirror()
    arguments = ["--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", f"--keyring={KEYRING}"]
    try:
        log = f"see {partial}/debootstrap/debootstrap.log"
        call(["debootstrap", *arguments, SUITE, str(partial), *mirror], "debootstrap failed", log)
    finally:
        unmount_below(partial)
    (partial / MARK).touch()
    partial.rename(root)


def apt_mirror() -> list[str]:
    """The Debian mirror that this machine's apt uses; none for the one that debootstrap knows."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = re.sub("^#.*\n", "", path.read_text(), flags=re.MULTILINE)
            for source in text.splitlines(keepends=True) if path.suffix == ".list" else text.split("\n\n"):
                found = re.search(r"(https?://\S+/debian)/?\s", source)
                if found and re.search(r"\bmain\b", source):  # other projects' packages are not in "main"
                    return [found[1]]
    return []


@contextmanager
def mounted(root: Path, cpu: str) -> Iterator[None]:
    """/proc and, read-only, /sys and what pip's settings name, inside the userland; unmounted whatever happens."""
    cpuinfo = root / "run" / "cpuinfo"
    cpuinfo.write_text(describe_processors(cpu))
    try:
        call(["mount", "-t", "proc", "proc", str(root / "proc")], "cannot mount")
        call(["mount", "-t", "sysfs", "-o", "ro", "sysfs", str(root / "sys")], "cannot mount")
        # QEMU 7 shows this machine's /proc/cpuinfo, without an ARM field, and onnxruntime 1.28 to 1.32 crash on that
        bind(cpuinfo, root / "proc" / "cpuinfo")
        for path in pip_paths():
            bind(path, root / path.relative_to("/"))
        yield
    finally:
        unmount_below(root)


def describe_processors(cpu: str) -> str:
    """/proc/cpuinfo as an ARM kernel writes it, for as many processors as this machine has."""
    part, features = PROCESSORS[cpu]
    fields = {"BogoMIPS": "108.00", "Features": features, "CPU implementer": "0x41", "CPU architecture": "8"}
    fields |= {"CPU variant": "0x0", "CPU part": part, "CPU revision": "3"}
    lines = "".join(f"{name}\t: {value}\n" for name, value in fields.items())
    return "".join(f"processor\t: {i}\n{lines}\n" for i in range(os.cpu_count() or 1))


def bind(source: Path, target: Path) -> None:
    """Show a file or folder at another place, read-only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir(exist_ok=True)
    elif not target.exists():
        target.touch()
    call(["mount", "--bind", "-o", "ro", str(source), str(target)], "cannot mount")


def unmount_below(folder: Path) -> None:
    """Unmount `folder` and everything below it."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [Path(line.split()[1].replace("\\040", " ")) for line in lines]
    for point in reversed(points):
        if point.is_relative_to(folder.resolve()):
            # lazy: at once gone from the tree, even if a process that was interrupted still ends
            call(["umount", "--lazy", str(point)], "cannot unmount")


def pip_files() -> dict[Path, str]:
    """pip's configuration files of this machine, and where they go in the userland."""
    return {Path("/etc/pip.conf"): "etc/pip.conf", Path.home() / ".config/pip/pip.conf": "root/.config/pip/pip.conf"}


def pip_paths() -> list[Path]:
    """Files and folders that pip's settings name: certificates, folders of wheels, local indexes."""
    values = [value for name, value in os.environ.items() if name.startswith("PIP_")]
    for path in pip_files():
        if path.is_file():
            settings = configparser.RawConfigParser()
            settings.read(path)
            values += [value for section in settings.sections() for _, value in settings.items(section)]
    paths = set()
    for word in " ".join(values).split():
        if word.startswith("file://"):
            paths.add(Path(unquote(urlparse(word).path)).parent)  # an index's pages link to files beside it
        elif word.startswith("/"):
            paths.add(Path(word))
    paths = {path for path in paths if path.exists() and path != Path("/")}
    return sorted(path for path in paths if not paths & set(path.parents))


def copy_settings(root: Path) -> None:
    """Give the userland this machine's name servers and pip configuration."""
    for path, name in {Path("/etc/resolv.conf"): "etc/resolv.conf", **pip_files()}.items():
        target = root / name
        target.unlink(missing_ok=True)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def own_environment() -> dict[str, str]:
    """This machine's environment, without what would choose another bundle or number of threads."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VAE_EDGE_")}


def userland_environment(cpu: str) -> dict[str, str]:
    """A plain environment, and this machine's settings of pip and proxies."""
    plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "QEMU_CPU": cpu}
    passed = {n: v for n, v in os.environ.items() if n.startswith("PIP_") or n.lower().endswith("_proxy")}
    return {**passed, **plain}


def inside(root: Path, program: str, folder: str = "/") -> list[str]:
    """The start of a command line that runs `program` in a folder of the userland."""
    return ["chroot", str(root), "env", "-C", folder, program]


def install(root: Path, environment: dict[str, str]) -> None:
    """Build the wheel, and install it and its base dependencies in a new virtual environment of the userland."""
    shutil.rmtree(root / HOME, ignore_errors=True)
    print("building the wheel", flush=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(root / HOME), str(REPOSITORY)]
    call(build, "cannot build the wheel", quiet=True)
    wheel = next((root / HOME).glob("*.whl"))
    print(f"installing {wheel.name} in the userland", flush=True)
    call([*inside(root, "python3"), "-m", "venv", f"/{HOME}/venv"], "cannot make the environment", env=environment)
    pip = [*inside(root, f"/{HOME}/venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    call([*pip, f"/{HOME}/{wheel.name}"], "cannot install the wheel", env=environment)
    size = subprocess.run(["du", "-sm", str(root / HOME / "venv")], capture_output=True, text=True, check=True)
    print(f"the virtual environment takes {size.stdout.split()[0]} MiB")


def make_raw_files(folder: Path) -> Path:
    """Files of each kind, of which every tenth is odd, and bundles that were trained on others like them."""
    sys.path.append(str(REPOSITORY / "tests"))
    from support import raw

    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        run = raw.fit(raw.write(kind, folder / kind), folder / kind / "run")
        for precision in PRECISIONS:
            run.export(folder / kind / precision, precision=precision)
    return folder


def make_work_folder(folder: Path, raw_files: Path) -> Path:
    """A new working folder with the example images, raw files and bundles."""
    shutil.copytree(REPOSITORY / "examples" / "digits", folder / "examples" / "digits")
    shutil.copytree(raw_files, folder / "raw")
    return folder


def run_commands(folder: Path, infer: list[str], environment: dict[str, str]) -> Results:
    """Run every command in `folder`, print what it prints, and collect the results."""
    printed = ""
    for command in COMMANDS:
        print(f"$ vae-infer {command}", flush=True)
        done = subprocess.run(
            [*infer, *command.split()], capture_output=True, text=True, cwd=folder, env=environment, check=False
        )
        print(done.stderr + done.stdout, end="", flush=True)
        if done.returncode:
            raise Failure("command failed", f"vae-infer {command}, exit code {done.returncode}", "see its output above")
        printed = done.stdout  # of elbo in the end
    return Results(folder, {row["image"]: row["elbo"] for row in json.loads(printed)["images"]})


def run_tests(root: Path, environment: dict[str, str]) -> None:
    """The runtime's tests that need no minutes on a machine of its own, in the userland."""
    home = root / HOME
    for name in ("runtime", "support"):
        shutil.copytree(REPOSITORY / "tests" / name, home / "tests" / name)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", home / "tests")
    shutil.copy(REPOSITORY / "pyproject.toml", home)  # pytest's settings
    python = inside(root, f"/{HOME}/venv/bin/python", f"/{HOME}")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pytest"]
    call([*python, *pip], "cannot install pytest", env=environment)
    files = [f"tests/runtime/test_{name}.py" for name in TESTS]
    call([*python, "-m", "pytest", "-q", *files], "tests failed", env=environment)


def compare(arm64: Results, native: Results) -> list[Row]:
    """All comparisons of the two machines' results."""
    judged = (
        compare_verdicts(name, file, arm64, native) for name, file in {"digits": "digits.jsonl", **JUDGED}.items()
    )
    figures = (compare_reconstructions(arm64, native), compare_scores(arm64, native))
    return [*compare_samples(arm64, native), *figures, *judged]


def compare_samples(arm64: Results, native: Results) -> list[Row]:
    """Equal pixels, except where the uniform draw is so close to theta that rounding decides."""
    ours, theirs = (np.load(results.folder / "samples.npy") for results in (native, arm64))
    to_tie, drawn = distances_to_tie()
    if not np.array_equal(ours, drawn):
        raise Failure("samples are not draws from theta", "samples.npy of this machine", "mend this script")
    differ = ours != theirs
    farthest = float(to_tie[differ].max(initial=0))
    found = f"{differ.sum():,} of {differ.size:,} pixels differ"
    if differ.any():
        found += f", up to {farthest:.1e} from a tie"
    pictures = [np.asarray(Image.open(results.folder / "samples.png")) for results in (native, arm64)]
    pixels = int((pictures[0] != pictures[1]).sum())
    allowed = 9 * int(differ.sum())  # the grid shows a pixel as 3 x 3
    return [
        Row("samples.npy", found, f"draws within {TIE:.0e} of a tie", farthest < TIE),
        Row("samples.png", f"{pixels:,} of {pictures[0].size:,} pixels differ", f"{allowed}", pixels <= allowed),
    ]


def distances_to_tie() -> tuple[np.ndarray, np.ndarray]:
    """|uniform - theta| of every pixel of the samples, and the pixels that follow, as this machine computes both."""
    vae = VAE.load()
    rows = np.arange(NUMBER)
    theta = vae.decode(vae.prior.sample(SEED, rows))
    uniform = noise.uniform(SEED, noise.PIXELS, rows, math.prod(vae.observation.shape)).reshape(theta.shape)
    return np.abs(uniform.astype(np.float64) - theta), (uniform < theta).astype(np.float32)


def compare_reconstructions(arm64: Results, native: Results) -> Row:
    """E[x|z] of the example images."""
    ours, theirs = (np.load(results.folder / "reconstructions.npy") for results in (native, arm64))
    off = float(np.abs(ours.astype(np.float64) - theirs).max())
    return Row("reconstructions.npy", f"{off:.1e} at most", f"{RECONSTRUCTION:.0e}", off < RECONSTRUCTION)


def compare_scores(arm64: Results, native: Results) -> Row:
    """ELBO of the example images, in nats."""
    off = np.max([abs(arm64.scores[name] - elbo) for name, elbo in native.scores.items()])
    return Row("ELBO per image", f"{off:.1e} nats at most", f"{NATS:.0e} nats", bool(off < NATS))


def compare_verdicts(name: str, file: str, arm64: Results, native: Results) -> Row:
    """Scores of raw files, in nats, and verdicts on them.

    Of 8-bit integers a value in the middle between two levels may be rounded to either, in one score of a hundred.
    """
    theirs, ours = (
        [json.loads(line) for line in (results.folder / file).read_text().splitlines()] for results in (arm64, native)
    )
    score = np.array([row["score"] for row in ours])
    off = np.abs(score - [row["score"] for row in theirs])
    beyond = int((off > np.maximum(NATS, SHARE * np.abs(score))).sum())
    differ = sum(a["odd"] != b["odd"] for a, b in zip(theirs, ours, strict=True))
    may = len(ours) // 100 if name.endswith("int8") else 0
    found = f"{off[score < NATS / SHARE].max():.1e} nats at most, {differ} of {len(ours)} verdicts"
    allowed = f"{NATS:.0e} nats, no verdict" + f"; {may} scores by more" * bool(may)
    return Row(f"detect {name}", found, allowed, beyond <= may and not differ)


def table(rows: list[Row]) -> str:
    """The comparisons for people."""
    width = max(len(row.found) for row in rows) + 3
    lines = [f"\n  {'arm64 against x86-64':23}{'difference':{width}}allowed"]
    lines += [f"{'✓' if row.passed else '✗'} {row.name:23}{row.found:{width}}{row.limit}" for row in rows]
    return "\n".join(lines)


def call(
    command: list[str], what: str, todo: str = "see its output above", env: dict[str, str] | None = None,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Run a command, its output on stderr and with `quiet` only its errors there; raise Failure if it fails."""
    stdout = subprocess.DEVNULL if quiet else sys.stderr
    if code := subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stdout, env=env, check=False).returncode:
        raise Failure(what, f"{command[0]}, exit code {code}", todo)


if __name__ == "__main__":
    sys.exit(main())
