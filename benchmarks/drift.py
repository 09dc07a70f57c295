"""How many false alarms a drift's test raises, and after how many observations it notices what: simulated streams.

Example:
    python benchmarks/drift.py  # some minutes on one core

Many streams of one figure of normal distribution at a time, by the bets and bins of `vae_runtime.drift`.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vae_runtime import drift

Doubles = NDArray[np.float64]
Change = Callable[[Doubles, int], Doubles]

FIGURES = 11  # of an image, each of which has this part of half of the false alarms
CHANGES: dict[str, Change] = {
    "1/4 sd higher": lambda x, since: x + 0.25,
    "1/2 sd": lambda x, since: x + 0.5,
    "1 sd": lambda x, since: x + 1,
    "2 sd": lambda x, since: x + 2,
    "1.5 times as varied": lambda x, since: 1.5 * x,
    "1/1.5": lambda x, since: x / 1.5,
    "by and by, 1 sd in 5,000": lambda x, since: x + since / 5000,
}


def noticed(normal: int, streams: int, length: int, false_alarms: float, change: Change, after: int) -> Doubles:
    """With which observation of a stream, from 1, a drift is noticed, else infinity, [streams].

    normal: how many values a calibration has. change: what happens to values after so many, by how long it has lasted.
    """
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=(streams, normal)))
    wanted = [drift._Z.cdf(z) * (normal + 1) for z in drift._EDGES]
    at = drift._nearest(np.arange(normal) + 1, wanted)
    edges, odds = values[:, at], drift._odds((at + 1) / (normal + 1))  # [bins, bets]
    drawn, gaps = np.full((streams, odds.shape[1]), normal + 1.0), normal + 1
    won, first = np.zeros(drawn.shape), np.full(streams, np.inf)
    for number in range(length):
        x = rng.normal(size=streams)
        bins = ((x if number < after else change(x, number - after))[:, None] > edges).sum(axis=1)
        stake = (drift._unspent(number) - drift._unspent(number + 1)) / odds.shape[1]
        won = np.minimum((won + stake) * odds[bins] * (gaps + number) / drawn, 1e200)
        drawn += odds[bins]
        over = won.sum(axis=1) + drift._unspent(number + 1) >= 1 / false_alarms
        first[over & np.isinf(first)] = number + 1
        if np.isfinite(first).all():
            break
    return first


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("share of 2,000 normal streams of 10,000 observations that are called drifted, tested at 5%")
    for normal in (20, 100, 1000, 20_000):
        share = np.isfinite(noticed(normal, 2000, 10_000, 0.05, lambda x, since: x, 0)).mean()
        print(f"{normal:6} normal ones: {share:.2%}", flush=True)
    print(
        f"\nobservations until a change of one of {FIGURES} figures is noticed, at 0.1% in all: median of 200 streams"
    )
    print("| normal ones | before the change |", " | ".join(CHANGES), "|")
    print("| --- |", " | ".join("---" for _ in range(len(CHANGES) + 1)), "|")
    for normal in (20, 100, 1000):
        for after in (0, 1000, 10_000):
            cells = []
            for change in CHANGES.values():
                first = noticed(normal, 200, after + 10_000, 0.001 / (2 * FIGURES), change, after)
                delay = np.median(np.where(first > after, first - after, np.inf))
                cells.append("never" if np.isinf(delay) else f"{delay:.0f}")
            print(f"| {normal} | {after} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
