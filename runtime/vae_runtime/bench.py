"""Measure the runtime on this machine: start-up, latency, throughput, memory, and what more threads bring."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vae_runtime.errors import EnvironmentUnfit
from vae_runtime.threads import count
from vae_runtime.vae import VAE

_LATENCY_RUNS = 300
_CHILD = """
import pathlib, sys
from vae_runtime import VAE
VAE.load(sys.argv[1] or None, threads=1).sample(1)
# not ru_maxrss, which a process inherits from the one that started it
print(*(line.split()[1] for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


@dataclass(frozen=True)
class Measurement:
    """What `bench` found. Seconds, observations per second, and bytes of the largest resident size of a process."""

    startup: float  # of a process that loads the bundle and draws one observation, the median of five
    startup_memory: int
    encode_p50: float  # of one observation
    encode_p95: float
    decode_p50: float
    decode_p95: float
    sampled: dict[int, float]  # observations per second by number of threads
    scored: dict[int, float]  # draws of z per second in the importance-weighted bound, K = 64, by number of threads

    def json(self) -> str:
        """All figures, as one JSON object."""
        return json.dumps(asdict(self), indent=1)

    def table(self) -> str:
        """All figures, for people."""
        lines = [
            f"start-up       {1e3 * self.startup:8.1f} ms, {self.startup_memory / 2**20:.1f} MiB",
            f"encode 1       {1e3 * self.encode_p50:8.3f} ms (p50) {1e3 * self.encode_p95:8.3f} ms (p95)",
            f"decode 1       {1e3 * self.decode_p50:8.3f} ms (p50) {1e3 * self.decode_p95:8.3f} ms (p95)",
        ]
        for threads, sampled in self.sampled.items():
            several = f"{threads} thread{'s' if threads > 1 else ' '}"
            lines.append(f"{several:14} {sampled:8,.0f} samples/s {self.scored[threads]:12,.0f} weighed draws of z/s")
        return "\n".join(lines)


def bench(
    path: Path | None = None, *, threads: int | None = None, memory: int | None = None, seconds: float = 1.0
) -> Measurement:
    """Measure the bundle at `path`, or the one that ships, spending about `seconds` on each figure of throughput.

    threads, memory: as `VAE.load` takes them; the sweep ends at so many threads. Raises what `VAE.load` raises.
    """
    sweep = _sweep(count(threads))
    one = VAE.load(path, 1, memory)
    starts = [_process(path) for _ in range(5)]
    x = one.observation.clip(one.sample(64, seed=1))
    mu, _ = one.encode(x[:1])
    encode, decode = _latency(lambda: one.encode(x[:1])), _latency(lambda: one.decode(mu))
    vaes = {several: VAE.load(path, several, memory) for several in sweep}
    sampled = {several: _rate(lambda: len(vae.sample(1024)), seconds) for several, vae in vaes.items()}  # noqa: B023
    scored = {several: _rate(lambda: 64 * len(vae.log_likelihood(x)), seconds) for several, vae in vaes.items()}  # noqa: B023
    return Measurement(
        statistics.median(elapsed for elapsed, _ in starts), max(memory for _, memory in starts),
        *encode, *decode, sampled, scored,
    )  # fmt: skip


def _process(path: Path | None) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process that draws one observation."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    start = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, str(path or "")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    if done.returncode or not done.stdout.strip().isdecimal():
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, {done.stdout!r}"])[-1]
        raise EnvironmentUnfit("a process of its own cannot be measured", reason, "bench needs Linux and free memory")
    return elapsed, int(done.stdout) * 1024


def _latency(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call: the median and the 95th percentile."""
    times = []
    for _ in range(_LATENCY_RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    cuts = statistics.quantiles(times, n=20)
    return cuts[9], cuts[18]


def _rate(work: Callable[[], int], seconds: float) -> float:
    """How many things a second `work` does, which returns how many it did."""
    work()
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        done += work()
    return done / elapsed


def _sweep(cores: int) -> list[int]:
    """1, 2, 4, ... and all cores."""
    return sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})
