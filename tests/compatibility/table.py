"""Score the same images with the same graphs in every runtime to be had here, and compare the ELBO with float64's.

    python tests/compatibility/table.py [BUNDLE ...]

BUNDLE is a bundle's folder; without one, those that ship with the package. Needs node and npm, whose packages go into
build/javascript, Chromium, and what arm64.py needs; a runtime that cannot be had is listed with the reason. Exit code
1: a runtime failed, or an ELBO is further off than the tolerance in the bundle's manifest.
"""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae_export import check
from vae_runtime import VAE, VaeError, bundle, images, noise
from vae_runtime.manifest import Manifest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SHIPPED = ("mnist", "fashion-mnist")
DRAWN, SEED = 64, 7  # images drawn from the model, besides those of examples/digits
ARRAYS = ("mu", "logsigma", "parameters")
PATIENCE = 900  # seconds for a bundle

ARM64, PROCESSOR = REPOSITORY / "build" / "arm64", "cortex-a72"
JAVASCRIPT = REPOSITORY / "build" / "javascript"
PACKAGES = {"onnxruntime-node": "1.30.0", "onnxruntime-web": "1.30.0"}
MODULES = [
    REPOSITORY / "examples/javascript/vae.mjs",
    *(HERE / name for name in ("score.mjs", "node.mjs", "page.html")),
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ALONE = ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]

Doubles = NDArray[np.float64]
Scores = dict[str, Any]  # version, platform, elbo [images] in nats, ARRAYS, flat, and from JavaScript the noise's index
Scorer = Callable[[Path], Scores]  # of a job's folder


class NotHere(Exception):
    """Why a runtime cannot be had on this machine."""


class Failed(Exception):
    """Why a runtime gave no scores."""


@dataclass(frozen=True)
class Job:
    """A folder with a bundle's files and the inputs x.f32 and eps.f32, and what float64 makes of them."""

    name: str
    folder: Path
    manifest: Manifest
    expected: Scores


@dataclass(frozen=True)
class Row:
    """One runtime on one bundle. passed: None where it was not run. problem: why there are no figures, if so."""

    runtime: str
    passed: bool | None
    problem: str = ""
    version: str = ""
    platform: str = ""
    nats: float = np.nan  # largest |difference| of the ELBO
    share: float = np.nan  # of the tolerance, at most
    arrays: tuple[float, ...] = ()  # largest |difference| of each of ARRAYS


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", metavar="BUNDLE", nargs="*", help="a folder  [default: those that ship]")
    names = parser.parse_args(arguments).bundles or [name for name in SHIPPED if bundle.shipped(name).is_dir()]
    if not names:
        parser.error(f"none of {', '.join(SHIPPED)} ships here; name a bundle")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            jobs = [make_job(name, work / f"job{i}") for i, name in enumerate(names)]
        except VaeError as error:
            print(f"compatibility: {error}", file=sys.stderr)
            return error.exit_code
        except Failed as error:
            print(f"compatibility: no reference in float64: {error}; mend reference.py", file=sys.stderr)
            return 1
        rows = compare_all(jobs, work)
    print("\n\n".join(table(job, rows_of_job) for job, rows_of_job in zip(jobs, rows, strict=True)))
    return 1 if any(row.passed is False for rows_of_job in rows for row in rows_of_job) else 0


def make_job(name: str, folder: Path) -> Job:
    """Copy the bundle, and write images that its likelihood knows and noise, as raw little-endian float32."""
    source = bundle.locate(name)
    vae = VAE.load(source)
    folder.mkdir()
    for file in (*bundle.files_of(vae.manifest.contract), "manifest.json"):
        shutil.copy(source / file, folder)
    drawn = vae.observation.clip(vae.sample(DRAWN, SEED))
    digits = [Image.open(path) for path in sorted((REPOSITORY / "examples" / "digits").glob("*.png"))]
    fitted = np.stack([images.fit(digit, vae.observation.shape)[0] for digit in digits])
    x = np.concatenate([drawn, vae.observe(fitted, SEED)])
    x.astype("<f4").tofile(folder / "x.f32")
    noise.normal(SEED, noise.POSTERIOR, noise.index(x), vae.latent_dim).astype("<f4").tofile(folder / "eps.f32")
    return Job(name, folder, vae.manifest, ask(reference(folder, "float64")))


def compare_all(jobs: list[Job], work: Path) -> list[list[Row]]:
    """Every runtime's row of each job."""
    rows: list[list[Row]] = [[] for _ in jobs]
    for name, runtime in RUNTIMES.items():
        try:
            with runtime(work) as score:
                for job, rows_of_job in zip(jobs, rows, strict=True):
                    print(f"{name}: {job.name}", file=sys.stderr, flush=True)
                    rows_of_job.append(compare(name, job, score))
        except NotHere as reason:
            for rows_of_job in rows:
                rows_of_job.append(Row(name, None, f"not run: {reason}"))
    return rows


def compare(name: str, job: Job, score: Scorer) -> Row:
    """One runtime against float64."""
    try:
        scores = score(job.folder)
    except Failed as error:
        return Row(name, False, f"failed: {error}")
    sizes = {array: (scores[array].size, job.expected[array].size) for array in ("elbo", *ARRAYS)}
    if wrong := [f"{array} of {got} numbers for {size}" for array, (got, size) in sizes.items() if got != size]:
        return Row(name, False, f"failed: {', '.join(wrong)}")
    x = np.fromfile(job.folder / "x.f32", "<f4").reshape(len(scores["elbo"]), -1)
    if scores.get("index", index := list(map(str, noise.index(x)))) != index:
        return Row(name, False, "failed: the noise's index of an image is not the one of vae_runtime")
    off = {array: np.abs(scores[array] - job.expected[array]) for array in ("elbo", *ARRAYS)}
    share = float(off["elbo"].max()) / tolerance(job)
    arrays = tuple(float(off[array].max()) for array in ARRAYS)
    passed = share <= 1  # False for NaN
    return Row(name, passed, "", scores["version"], scores["platform"], float(off["elbo"].max()), share, arrays)


def tolerance(job: Job) -> float:
    """How far an image's ELBO may be off, nats: what the bundle's own manifest allows."""
    return check.tolerances(job.manifest)["elbo"]


def table(job: Job, rows: list[Row]) -> str:
    """The rows of a bundle for people: a tick, a cross, or a dash for what was not run."""
    made, elbo, allowed = job.manifest.onnx, job.expected["elbo"], tolerance(job)
    heading = (
        f"{job.name}: opset {made.opset}, ir {made.ir_version}, {len(elbo)} images,"
        f" ELBO {elbo.min():.2f} to {elbo.max():.2f} nats, allowed {allowed:.1e} nats"
    )
    figures = ("nats", "of allowed", *ARRAYS)
    widths = [max(len(getattr(row, column)) for row in rows) + 2 for column in ("runtime", "version", "platform")]

    def line(mark: str, texts: Sequence[str], cells: Sequence[str]) -> str:
        text = "".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=False))
        return f"{mark} {text}" + "".join(f"{cell:>12}" for cell in cells)

    lines = [heading, line(" ", ("runtime", "version", "platform"), figures)]
    for row in rows:
        mark = {True: "✓", False: "✗", None: "-"}[row.passed]
        if row.problem:
            lines.append(f"{line(mark, [row.runtime], [])}{row.problem}")
        else:
            cells = [f"{row.nats:.1e}", f"{row.share:.2%}", *(f"{value:.1e}" for value in row.arrays)]
            lines.append(line(mark, (row.runtime, row.version, row.platform), cells))
    return "\n".join(lines)


@contextmanager
def here(_: Path) -> Iterator[Scorer]:
    """The project's runtime on this machine."""
    yield lambda job: ask([sys.executable, str(HERE / "score.py"), str(job), str(SEED)])


@contextmanager
def emulated_arm(_: Path) -> Iterator[Scorer]:
    """The project's runtime in the userland of arm64.py."""
    sys.path.append(str(REPOSITORY / "tests" / "emulated"))
    import arm64

    try:
        with redirect_stdout(sys.stderr), arm64.userland(ARM64, PROCESSOR) as environment:
            folder = ARM64 / arm64.HOME / "compatibility"

            def score(job: Path) -> Scores:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(job, folder)
                shutil.copy(HERE / "score.py", folder)
                python = arm64.inside(ARM64, f"/{arm64.HOME}/venv/bin/python", f"/{arm64.HOME}/compatibility")
                return ask([*python, "score.py", ".", str(SEED)], environment)

            yield score
    except arm64.Failure as failure:
        raise NotHere(failure) from None


@contextmanager
def evaluator(_: Path) -> Iterator[Scorer]:
    """onnx's own evaluator, NumPy in float32."""
    yield lambda job: ask(reference(job, "float32"))


@contextmanager
def node(work: Path) -> Iterator[Scorer]:
    """onnxruntime for Node.js."""
    lay_out(work)
    yield lambda job: ask(["node", str(work / "node.mjs"), str(job)])


@contextmanager
def browser(work: Path) -> Iterator[Scorer]:
    """onnxruntime-web's WebAssembly in headless Chromium, which can reach nothing but the server of `work`."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise NotHere(f"no {BROWSERS[0]}; apt-get install {BROWSERS[0]}")
    lay_out(work)
    with serve(work) as (address, results):
        yield lambda job: visit(program, f"{address}/page.html?{job.name}", results)


RUNTIMES: dict[str, Callable[[Path], AbstractContextManager[Scorer]]] = {
    "onnxruntime (Python)": here,
    "onnxruntime (Python), emulated ARM": emulated_arm,
    "onnx ReferenceEvaluator": evaluator,
    "onnxruntime-node": node,
    "onnxruntime-web": browser,
}


def reference(job: Path, dtype: str) -> list[str]:
    """The command that scores a job with onnx's evaluator."""
    return [sys.executable, str(HERE / "reference.py"), str(job), dtype]


def ask(command: list[str], environment: dict[str, str] | None = None) -> Scores:
    """The scores that a command prints. Raises Failed with the last line of its errors where it prints none."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no scores within {PATIENCE} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no word"]
        raise Failed(f"exit code {done.returncode}, {lines[-1]}")
    return parse(done.stdout)


def parse(text: str) -> Scores:
    """Scores from JSON, where NaN and infinity are null or as Python writes them. Raises Failed where it has none."""
    try:
        scores = json.loads(text)
        return scores | {name: np.array(scores[name], np.float64) for name in ("elbo", *ARRAYS)}
    except (ValueError, KeyError):
        raise Failed(f"no scores but {text[:200]!r}") from None


def lay_out(work: Path) -> None:
    """Put npm's packages and the JavaScript modules into `work`, once."""
    modules = work / "node_modules"
    if modules.exists():
        return
    if shutil.which("npm") is None:
        raise NotHere("no npm; apt-get install npm")
    if not all(installed(package, version) for package, version in PACKAGES.items()):
        # the packages have their binaries inside: the scripts would download those for GPUs
        command = ["npm", "install", "--prefix", str(JAVASCRIPT), "--ignore-scripts", "--no-audit", "--no-fund"]
        JAVASCRIPT.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, *map("@".join, PACKAGES.items())], stdout=sys.stderr)
        if done.returncode:
            raise NotHere(f"npm cannot install the packages, exit code {done.returncode}; see its output")
    for path in MODULES:
        shutil.copy(path, work)
    modules.symlink_to(JAVASCRIPT / "node_modules")


def installed(package: str, version: str) -> bool:
    """Whether build/javascript has the package in this version."""
    file = JAVASCRIPT / "node_modules" / package / "package.json"
    return file.exists() and json.loads(file.read_bytes())["version"] == version


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, "queue.Queue[bytes]"]]:
    """A web server of the folder on this machine alone: its address, and what is posted to it."""
    posted: queue.Queue[bytes] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_POST(self) -> None:
            """Keep the body."""
            posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posted
        finally:
            server.shutdown()


def visit(program: str, url: str, posted: "queue.Queue[bytes]") -> Scores:
    """Open a page in a headless browser with a profile of its own, and wait for the scores that it posts."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        arguments = ["--headless", "--disable-gpu", f"--user-data-dir={profile}", *ALONE]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # as root it starts in no other way
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            [program, *arguments, url], stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        latest = time.monotonic() + PATIENCE
        try:
            while process.poll() is None and time.monotonic() < latest:
                with suppress(queue.Empty):
                    return parse(posted.get(timeout=1).decode())
            raise Failed(f"{program} left, or posted nothing within {PATIENCE} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))  # an exception, so that everything is undone
    sys.exit(main())
