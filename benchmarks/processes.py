"""Start-up time and peak memory of whole processes: the command line, the bare imports, and the same in PyTorch.

python benchmarks/processes.py [--rounds 11] [--images 1000000]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import exported

from vae_runtime import VAE

# Peak resident size of a process itself: ru_maxrss would begin at that of the process which started it.
PEAK = """
import atexit, pathlib, sys
def peak():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    pathlib.Path("peak").write_text(next(line.split()[1] for line in status if "VmHWM" in line))
atexit.register(peak)
"""
COMMAND = "from vae_runtime.cli import main; main()"
TORCH = """
import torch
from PIL import Image
decoder = torch.nn.Sequential(torch.nn.Linear(32, 512), torch.nn.SiLU(), torch.nn.Linear(512, 512), torch.nn.SiLU(),
                              torch.nn.Linear(512, 784))
decoder.load_state_dict(torch.load("decoder.pt"))
with torch.no_grad():
    x = torch.bernoulli(torch.sigmoid(decoder(torch.randn(16, 32)))).view(4, 4, 28, 28)
Image.fromarray((x.transpose(1, 2).reshape(112, 112) * 255).byte().numpy()).resize((336, 336)).save("t.png")
"""
WEIGHTS = TORCH.split("decoder.load")[0] + "torch.save(decoder.state_dict(), 'decoder.pt')"


def run(command: list[str], folder: str) -> float:
    """Seconds of one process."""
    environment = {"VAE_EDGE_BUNDLE": str(exported()), **os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # all sides with their bytecode cached, as installed
    start = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - start


def peak(code: str, arguments: list[str], folder: str) -> float:
    """Peak resident MiB of a Python process."""
    run([sys.executable, "-c", PEAK + code, *arguments], folder)
    return int((Path(folder) / "peak").read_text()) / 1024


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--images", type=int, default=1_000_000, help="of the long stream")
    arguments = parser.parse_args()
    infer = str(Path(sys.executable).parent / "vae-infer")
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-c", WEIGHTS], folder)
        commands = {
            "import numpy, onnxruntime": [sys.executable, "-c", "import numpy, onnxruntime"],
            "vae-infer sample -n 16 -o x.png": [infer, "sample", "-n", "16", "-o", "x.png"],
            "the same of the shipped model": [infer, "--bundle", "mnist", "sample", "-n", "16", "-o", "x.png"],
            "vae-infer --help": [infer, "--help"],
            "the same samples in PyTorch": [sys.executable, "-c", TORCH],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for i in range(arguments.rounds + 1):
            for name, command in commands.items():
                elapsed = run(command, folder)
                if i:  # the first round fills the caches
                    seconds[name].append(elapsed)
        floor = statistics.median(seconds["import numpy, onnxruntime"])
        print(f"start-up, whole process, median of {arguments.rounds}")
        for name, values in seconds.items():
            median = statistics.median(values)
            print(f"  {name:44} {1e3 * median:8.1f} ms {median / floor:7.2f}x")

        levels = (255 * VAE.load(exported()).sample(60_000, seed=1, mean=True)).astype(np.uint8)
        np.save(Path(folder) / "images.npy", levels)
        streams = {
            "vae-infer sample -n 16 -o x.png": (COMMAND, ["sample", "-n", "16", "-o", "x.png"]),
            f"vae-infer sample -n {arguments.images} -o x.npy": (
                COMMAND, ["sample", "-n", str(arguments.images), "-o", "x.npy"]
            ),
            "vae-infer elbo, 60,000 images": (COMMAND, ["elbo", "images.npy", "--samples", "1", "-o", "scores.csv"]),
            "16 samples of the shipped model": (COMMAND, ["--bundle", "mnist", "sample", "-n", "16", "-o", "x.png"]),
            "the same 16 samples in PyTorch": (TORCH, []),
        }  # fmt: skip
        print("peak resident size, median of 5")
        medians = {name: statistics.median(peak(*stream, folder) for _ in range(5)) for name, stream in streams.items()}
        for name, median in medians.items():
            print(f"  {name:44} {median:8.1f} MiB {median / next(iter(medians.values())):6.2f}x")


if __name__ == "__main__":
    main()
