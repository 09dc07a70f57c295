"""Whether a watch stays as fast and as small as it was: `vae-infer watch -`, fed through a pipe and read line by line.

python benchmarks/watch.py [--bundle FOLDER] [--observations 1000000] [--gap 0.02]

The observations are the model's own samples, rows as CSV lines or images as raw frames, again and again. First some
come one at a time, `--gap` seconds apart: the latency is from an observation's having been written to its line's having
been read. Then all come as fast as they are taken, and then some one at a time again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np

from vae_runtime import VAE, Detector

NORMAL, DIFFERENT, ALONE = 300, 2000, 500  # to calibrate with; that are fed again and again; that come one at a time
PIECE = 100  # observations that are written at once when all come
LINE = b'{"event": "observation"'


def encoded(vae: VAE, x: np.ndarray) -> list[bytes]:
    """Each observation as it goes through a pipe."""
    if vae.observation.kind == "image":
        return [np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8).tobytes() for image in x]
    return [(",".join(map(repr, row)) + "\n").encode() for row in x.tolist()]


class Reader(threading.Thread):
    """Reads the lines, and when those of observations came."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.stream, self.seen, self.last = stream, 0, 0.0
        self.arrived = threading.Condition()

    def run(self) -> None:
        """To the end."""
        for line in self.stream:
            if line.startswith(LINE):
                with self.arrived:
                    self.seen, self.last = self.seen + 1, time.perf_counter()
                    self.arrived.notify()

    def wait(self, number: int) -> float:
        """Until so many were read: when the last one was."""
        with self.arrived:
            self.arrived.wait_for(lambda: self.seen >= number)
            return self.last


def alone(pipe: IO[bytes], reader: Reader, observations: Iterator[bytes], gap: float) -> list[float]:
    """Seconds from written to read, of some that come one at a time."""
    latencies = []
    for each in (next(observations) for _ in range(ALONE)):
        time.sleep(gap)
        begun, before = time.perf_counter(), reader.seen
        pipe.write(each)
        latencies.append(reader.wait(before + 1) - begun)
    return latencies


def resident(process: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def said(latencies: list[float]) -> str:
    """A line's part of median and 99th percentile."""
    return "{:8.2f} ms median {:8.2f} ms p99".format(*(1e3 * np.quantile(latencies, [0.5, 0.99])))


def main() -> None:
    """Print latencies, throughput and resident memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="Folder or name of a bundle of images or rows.  [mnist]", default="mnist")
    parser.add_argument("--observations", type=int, default=1_000_000)
    parser.add_argument("--gap", type=float, default=0.02)
    options = parser.parse_args()
    vae = VAE.load(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "site.json"
        Detector.fit(vae, vae.sample(NORMAL, seed=1)).save(calibration)
        different = encoded(vae, vae.sample(DIFFERENT, seed=2))
        observations = (different[i % DIFFERENT] for i in count())
        command = [sys.executable, "-m", "vae_runtime", "--bundle", options.bundle, "watch", "-"]
        process = subprocess.Popen(
            [*command, "--calibration", calibration], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert process.stdin and process.stdout
        reader = Reader(os.fdopen(os.dup(process.stdout.fileno()), "rb", buffering=1 << 16))
        reader.start()
        if vae.names:
            process.stdin.write((",".join(vae.names) + "\n").encode())
        alone(process.stdin, reader, observations, 0)  # what is new to a process is not what is meant
        print(f"{options.observations:,} {vae.observation.noun}s through a pipe")
        print(f"  one at a time, before {said(alone(process.stdin, reader, observations, options.gap))}")
        begun, before = time.perf_counter(), reader.seen
        for tenth in range(10):
            for _ in range(options.observations // 10 // PIECE):
                process.stdin.write(b"".join(next(observations) for _ in range(PIECE)))
            done = before + (tenth + 1) * (options.observations // 10 // PIECE * PIECE)
            took = reader.wait(done) - begun
            rate = (done - before) / took
            print(f"  after {done - before:9,}  {rate:10,.0f} a second {resident(process.pid):8.1f} MiB", flush=True)
        print(f"  one at a time, after  {said(alone(process.stdin, reader, observations, options.gap))}")
        process.stdin.close()
        sys.exit(process.wait())


if __name__ == "__main__":
    main()
