"""Start-up time, peak memory and throughput of the runtime, each beside what it is compared with, in one run.

    python benchmarks/runtime.py [--rounds 7]

Every ratio is of medians over rounds in which both sides alternate. Peak memory is the child process's own.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vae_runtime import VAE
from vae_runtime.vae import CHUNK

INFER = str(Path(sys.executable).parent / "vae-infer")
TORCH = """
import torch, torchvision
torch.set_num_threads(2)
decoder = torch.nn.Sequential(torch.nn.Linear(32, 512), torch.nn.SiLU(), torch.nn.Linear(512, 512), torch.nn.SiLU(),
                              torch.nn.Linear(512, 784))
with torch.no_grad():
    x = torch.bernoulli(torch.sigmoid(decoder(torch.randn(16, 32)))).view(16, 1, 28, 28)
torchvision.utils.save_image(x, "t.png", nrow=4)
"""


def child(command: list[str], folder: str) -> tuple[float, float]:
    """Seconds and peak resident MiB of one process."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # both sides with their bytecode cached, as installed
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def processes(rounds: int) -> None:
    """Whole processes: the command line against bare imports and against PyTorch."""
    commands = {
        "import numpy, onnxruntime": [sys.executable, "-c", "import numpy, onnxruntime"],
        "vae-infer sample -n 16": [INFER, "sample", "-n", "16", "-o", "x.png"],
        "vae-infer --help": [INFER, "--help"],
        "the same in PyTorch": [sys.executable, "-c", TORCH],
        "vae-infer sample -n 100000 -o x.npy": [INFER, "sample", "-n", "100000", "-o", "x.npy"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, command in commands.items():
                elapsed, peak = child(command, folder)
                seconds[name].append(elapsed)
                memory[name].append(peak)
    floor = statistics.median(seconds["import numpy, onnxruntime"])
    for name in commands:
        median = statistics.median(seconds[name])
        print(f"{name:38} {median:7.3f} s  {median / floor:6.2f}x  {statistics.median(memory[name]):7.1f} MiB")


def throughput(rounds: int, images: int) -> None:
    """The importance-weighted bound against the decoder's runs alone on all cores, microseconds a draw of z."""
    vae = VAE.load()
    x = vae.binarise(vae.sample(images, seed=1, mean=True))
    session, output = vae._session(1), vae.likelihood.output
    z = np.random.default_rng(0).standard_normal((CHUNK, vae.latent_dim)).astype(np.float32)

    def decoder(draws: int) -> None:
        with ThreadPoolExecutor(vae.threads) as pool:
            list(pool.map(lambda _: session.run((output,), z), range(draws // CHUNK)))

    for num_samples in (64, 512):
        draws = images * num_samples
        sides: dict[str, Callable[[], object]] = {
            "decoder alone": lambda draws=draws: decoder(draws),
            f"log_likelihood, K = {num_samples}": lambda k=num_samples: vae.log_likelihood(x, k),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                start = time.perf_counter()
                side()
                times[name].append(time.perf_counter() - start)
        floor = statistics.median(times["decoder alone"])
        for name in sides:
            median = statistics.median(times[name])
            print(f"{name:38} {1e6 * median / draws:7.2f} us a draw  {median / floor:6.2f}x")
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    processes(arguments.rounds)
    throughput(arguments.rounds, arguments.images)
