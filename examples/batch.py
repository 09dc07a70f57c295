"""Score a folder of images on a Dask cluster: `python examples/batch.py FOLDER -o scores.csv`."""

import argparse
import csv
import io
import shlex
import signal
import sys
from pathlib import Path

try:
    from distributed import Client, KilledWorker

    from vae_runtime import VAE, BundleError, Detector, InputError, VaeError, score
    from vae_runtime.files import check_output, write_lines
    from vae_runtime.scores import NUM_SAMPLES
    from vae_runtime.sources import SUFFIXES
except ImportError as error:
    root = Path(__file__).resolve().parents[1]
    todo = shlex.join([sys.executable, "-m", "pip", "install", f"{root}[examples]"])
    print(f"batch.py: error: {error}; install what it needs: {todo}", file=sys.stderr)
    sys.exit(6)

Row = dict[str, float]  # figures by name: nats, percent, bits per dimension, p, and 1 where it is odd


def score_part(detector: Detector, files: list[Path], samples: int) -> list[Row | VaeError]:
    """The figures of some of the folder's images, the same in whatever parts, or why one cannot be read."""
    results: list[Row | VaeError] = []
    for file in files:
        try:
            x = detector.vae.read([file]).load().x
        except VaeError as error:
            results.append(error)
        else:
            columns, verdict = score(detector.vae, x, samples).columns(), detector.verdict(x)
            judged = {"score": verdict.score[0], "p": verdict.p[0], "odd": int(verdict.odd[0])}
            results.append({name: figure for name, [figure] in columns.items()} | judged)
    return results


def connect(scheduler: str | None, workers: int | None) -> Client:
    """A client of a running cluster, or of one on this machine that ends with it."""
    if scheduler:
        return Client(scheduler, timeout=10)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this, so that Ctrl-C is for this one
    try:
        return Client(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs="CRITICAL")
    finally:
        signal.signal(signal.SIGINT, before)


def score_folder(arguments: argparse.Namespace) -> int:
    """Score the folder, write the table, and return the exit code."""
    check_output(arguments.output, ".csv")
    files = sorted(file for file in arguments.folder.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError("no images in the folder", arguments.folder, "put PNG or JPEG files there")
    vae = VAE.load(arguments.bundle and arguments.bundle.absolute(), threads=1)  # Dask has a thread for each core
    detector = Detector.load(vae, arguments.calibration)
    parts = []
    with connect(arguments.scheduler, arguments.workers) as client:
        try:
            shared = client.scatter(
                detector, broadcast=True
            )  # its bundle travels as path and hash; each process opens it once
        except Exception as error:
            raise BundleError("not all workers have the bundle", error, "put it at the same path on each") from None
        for start in range(0, len(files), arguments.part):
            part = [file.absolute() for file in files[start : start + arguments.part]]
            parts.append(client.submit(score_part, shared, part, arguments.samples, pure=False))
        results = [result for part in parts for result in part.result()]
    scored = [{"image": file, **row} for file, row in zip(files, results, strict=True) if isinstance(row, dict)]
    table = io.StringIO()
    writer = csv.DictWriter(table, scored[0] if scored else ["image"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(scored)
    write_lines(arguments.output, table.getvalue().splitlines())  # in one step, and with names of any bytes
    for unreadable in (result for result in results if isinstance(result, VaeError)):
        print(f"batch.py: {unreadable}", file=sys.stderr)
    odd = sum(row["odd"] for row in scored)
    print(f"{arguments.output}: scores of {len(scored)} of {len(files)} images, {odd} odd")
    return 0 if len(scored) == len(files) else InputError.exit_code


def main() -> int:
    """Read the command line and do as it says."""
    parser = argparse.ArgumentParser(description="Score a folder of images on a Dask cluster.")
    parser.add_argument("folder", type=Path, help="folder of images, which all workers can read")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .csv file")
    parser.add_argument("--samples", type=int, default=NUM_SAMPLES, help="draws per image")
    parser.add_argument("--scheduler", help="address, tcp://... (default: a cluster on this machine, for this run)")
    parser.add_argument("--workers", type=int, help="processes of that local cluster (default: one per core)")
    parser.add_argument("--part", type=int, default=256, help="images per task")
    parser.add_argument("--bundle", type=Path, help="bundle folder, on all workers (default: the package's own)")
    parser.add_argument("--calibration", type=Path, help="what `vae-infer calibrate` wrote (default: the bundle's own)")
    arguments = parser.parse_args()
    if min(arguments.part, arguments.workers or 1, arguments.samples) < 1:
        parser.error("--part, --workers and --samples take 1 or more")
    try:
        return score_folder(arguments)
    except (VaeError, OSError) as error:
        print(f"batch.py: error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 5)
    except KilledWorker as error:
        print(
            f"batch.py: error: a worker was killed: {error.last_worker.address}; give it more memory", file=sys.stderr
        )
        return 5
    except KeyboardInterrupt:
        print("batch.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
