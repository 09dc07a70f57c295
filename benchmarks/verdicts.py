"""What a verdict costs beside one ELBO with as many draws, and what it takes to learn from a million normal rows.

python benchmarks/verdicts.py [--rounds 9] [--rows 1000000]
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from side_by_side import machine, measure, table

import vae_train
from vae_runtime import VAE, Detector

BATCHES = (1, 64)
COLUMNS, PIECE = 8, 10_000  # of a table, and rows of it that are given at once


def sides(vae: VAE, detector: Detector, batch: int) -> dict[str, Callable[[], object]]:
    """An ELBO of so many observations, and a verdict on them."""
    x, draws = vae.sample(batch, seed=1), detector.calibration.num_samples
    return {
        f"ELBO, {draws} draws": lambda: vae.elbo(x, num_samples=draws),
        "verdict": lambda: detector.verdict(x),
        "map": lambda: detector.map(x),
    }


def rows(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Rows of a table whose columns depend on each other, some at a time."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(3, COLUMNS))
    for start in range(0, count, PIECE):
        size = (min(PIECE, count - start), COLUMNS)
        yield (rng.normal(size=(size[0], 3)) @ mixing + 0.1 * rng.normal(size=size)).astype(np.float32)


def fits(vae: VAE, most: int) -> Detector:
    """Print seconds and peak memory of learning what is usual, of more and more rows."""
    print("\nlearning what is usual of rows that come in pieces")
    for count in (most // 100, most // 10, most):
        start = time.perf_counter()
        detector = Detector.fit(vae, rows(count, seed=1))
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {count:9,} rows {seconds:8.1f} s {count / seconds:10,.0f} a second {peak:8.0f} MiB at most so far")
    return detector


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        run = vae_train.fit(np.concatenate(list(rows(20_000))), epochs=5, progress=False)
        table_vae = VAE.load(run.export(Path(folder) / "rows").path)
        detectors = {name: Detector.load(VAE.load(name)) for name in ("mnist", "fashion-mnist")}
        detectors[f"rows of {COLUMNS}"] = fits(table_vae, options.rows)
        for name, detector in detectors.items():
            for batch in BATCHES:
                medians = measure(sides(detector.vae, detector, batch), options.rounds)
                table(f"{name}, batch of {batch}", medians, 1e3, "ms")


if __name__ == "__main__":
    main()
