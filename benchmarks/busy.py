"""What a busy neighbour costs: the importance-weighted bound with and without another process that takes one core.

python benchmarks/busy.py [--rounds 5]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from side_by_side import exported, machine, measure, table
from throughput import pytorch_eager

from vae_runtime import VAE
from vae_runtime.threads import count


def main() -> None:
    """Print a table for an idle machine, one beside a busy process, and what an idle VAE costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    print(machine())
    vaes = {threads: VAE.load(exported(), threads) for threads in sorted({1, count()})}
    x = vaes[1].sample(arguments.images, seed=1)
    torch.set_num_threads(max(vaes))
    sides: dict[str, Callable[[], object]] = {
        f"vae.log_likelihood, threads={threads}": lambda vae=vae: vae.log_likelihood(x, 64)
        for threads, vae in vaes.items()
    }
    sides["PyTorch eager"] = pytorch_eager(x, 64)
    draws = 64 * len(x)
    table("alone", measure(sides, arguments.rounds), 1e6 / draws, "us a draw")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        table("beside a busy process", measure(sides, arguments.rounds), 1e6 / draws, "us a draw")
    finally:
        busy.kill()
        busy.wait()
    vaes[max(vaes)].log_likelihood(x, 64)
    start = time.process_time()
    time.sleep(1)
    print(f"\nprocessor time of an idle second after the work: {1e3 * (time.process_time() - start):.1f} ms")


if __name__ == "__main__":
    main()
