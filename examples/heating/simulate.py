"""The readings of a small heating system, eight sensors every ten seconds: a quiet week's night, and one with faults.

    python examples/heating/simulate.py

writes normal.csv and faults.csv beside this file, which are what it wrote before. They are simulated, since real faults
come seldom and unlabelled: a thermostat with hysteresis switches a pump, water and room follow with their lags.
"""

import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

CHANNELS = ("current", "vibration", "flow", "pressure", "supply", "return", "room", "outside")
NOISE = (0.02, 0.03, 0.05, 0.004, 0.15, 0.15, 0.03, 0.05)
DIGITS = (3, 3, 2, 3, 2, 2, 2, 2)
STEP = timedelta(seconds=10)
LASTS = {"spike": 1, "dropout": 12, "stuck": 64, "flat": 64}  # rows
EVERY = 110  # rows from one fault to the next


def readings(rows: int, random: np.random.Generator) -> np.ndarray:
    """Ampere, mm/s, l/min, bar, and four temperatures in degrees Celsius: [rows, 8]."""
    on, flow, supply, back, room = True, 0.0, 30.0, 28.0, 20.0
    outside, load = 4.0, 0.0
    found = np.empty((rows, len(CHANNELS)))
    for i in range(rows):
        load = 0.98 * load + 0.02 * random.normal(0, 3)  # doors, sun, people
        outside += 0.01 * (4 + 3 * np.sin(i / 600) - outside)
        on = room < 21.0 if not on else room < 21.4
        speed = 1.0 + 0.15 * np.sin(i / 90)
        flow += 0.35 * (on * 8.0 * speed - flow)
        supply += 0.10 * ((55.0 if on else room) - supply) * (1.0 if on else 0.3)
        back += 0.08 * (room + 0.6 * (supply - room) - back)
        room += 0.004 * (supply - room) * flow / 8 - 0.0035 * (room - outside) + 0.003 * load
        found[i] = (
            0.05 + 1.3 * on * speed, 0.1 + 0.25 * flow * speed / 2, flow, 1.2 + 0.02 * flow**1.5, supply, back, room,
            outside,
        )  # fmt: skip
    return found + random.normal(size=found.shape) * NOISE


def plant(values: np.ndarray, random: np.random.Generator) -> list[str]:
    """Put faults into readings [rows, 8], a kind after the other in channels at random: which one each row has."""
    faults = ["none"] * len(values)
    kinds = list(LASTS)
    for number, row in enumerate(range(EVERY, len(values) - EVERY, EVERY)):
        kind = kinds[number % len(kinds)]
        rows = slice(row, row + LASTS[kind])
        channels = slice(None) if kind == "flat" else int(random.integers(len(CHANNELS)))
        if kind == "spike":
            values[rows, channels] += 12 * NOISE[channels] * random.choice([-1, 1])
        elif kind == "dropout":
            values[rows, channels] = 0.0
        else:
            values[rows, channels] = values[row - 1, channels]
        faults[rows] = [kind] * LASTS[kind]
    return faults


def write(path: Path, start: datetime, values: np.ndarray, faults: list[str] | None = None) -> None:
    """A row for each reading, with its time first and its fault last."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["time", *CHANNELS, *(["fault"] if faults else [])])
        for i, row in enumerate(values.tolist()):
            written = (f"{value:.{digits}f}" for value, digits in zip(row, DIGITS, strict=True))
            table.writerow([(start + i * STEP).isoformat(), *written, *([faults[i]] if faults else [])])


def main(folder: Path) -> None:
    """Write both files into a folder."""
    random = np.random.default_rng(2026)
    write(folder / "normal.csv", datetime(2026, 3, 2, 20), readings(3600, random))
    values = readings(2000, random)
    faults = plant(values, random)
    write(folder / "faults.csv", datetime(2026, 3, 9, 20), values, faults)


if __name__ == "__main__":
    main(Path(__file__).parent)
