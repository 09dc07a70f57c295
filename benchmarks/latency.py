"""Latency of one `decode` and one `encode`: the runtime, PyTorch eager and compiled, NumPy, and the floor of the flops.

    python benchmarks/latency.py [--rounds 31]

The floor: the matrix products' flops at the best rate of a large float32 product, NumPy's or PyTorch's, measured in the
same rounds on as many threads. Every side may use all cores.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from side_by_side import exported, in_pytorch, layers, machine, measure, table

from vae_runtime import VAE

_PRODUCT = 1024  # rows and columns of the large product
_FLOPS = 2 * (784 * 512 + 512 * 512 + 512 * 32)  # of a row through the decoder; the encoder has a second head


def sides(role: str, vae: VAE, batch: int, compiled: bool) -> dict[str, Callable[[], object]]:
    """The ways to encode or decode one batch."""
    z = vae.encode(vae.sample(batch, seed=1))[0]
    x = vae.sample(batch, seed=2)
    eager = in_pytorch()
    plain = layers(eager.decoder if role == "decode" else eager.encoder)
    if role == "decode":
        values = z

        def torch_side(z: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(eager.decoder(z))

        def numpy_side() -> object:
            return 1 / (1 + np.exp(-plain(values)[0]))

        ours: Callable[[], object] = lambda: vae.decode(values)  # noqa: E731
    else:
        values, torch_side = x, eager.encoder

        def numpy_side() -> object:
            return plain(values)

        ours = lambda: vae.encode(values)  # noqa: E731
    tensor = torch.from_numpy(values)
    square = np.random.default_rng(0).standard_normal((_PRODUCT, _PRODUCT)).astype(np.float32)
    tensors = torch.from_numpy(square)
    ways = {
        "large product, NumPy": lambda: square @ square,
        "large product, PyTorch": lambda: tensors @ tensors,
        f"vae.{role}": ours,
        "PyTorch eager": lambda: torch_side(tensor),
    }
    if compiled:
        faster = torch.compile(torch_side)
        ways["torch.compile"] = lambda: faster(tensor)
    return {**ways, "NumPy": numpy_side}


def main() -> None:
    """Print a table for each of decode and encode, and each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    arguments = parser.parse_args()
    print(machine())
    vae = VAE.load(exported())
    torch.set_num_threads(vae.threads)
    torch.set_grad_enabled(False)
    for role in ("decode", "encode"):
        for batch in (1, 16, 256, 1024):
            ways = sides(role, vae, batch, not arguments.no_compile)
            calls = max(1, 256 // batch)
            medians = measure(ways, arguments.rounds, calls)
            rate = 2 * _PRODUCT**3 / min(medians.pop(f"large product, {name}") for name in ("NumPy", "PyTorch"))
            flops = batch * (_FLOPS + (role == "encode") * 2 * 512 * 32)
            table(f"{role}, batch {batch}", {"floor of the flops": flops / rate, **medians}, 1e6, "us")


if __name__ == "__main__":
    main()
