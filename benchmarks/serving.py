"""`vae-infer serve` under load, on this machine alone: what is answered, how fast, and how much memory it takes.

    python benchmarks/serving.py [--connections 200] [--seconds 60] [--clients 10]

The service is started on a free port of the loopback address. The connections stay open and ask to score a digit as
soon as they have their answer, or when `Retry-After` says; they come from addresses 127.0.0.2 and on, as so many
clients would. Beside them one user draws, from 127.0.0.1, as the page does: the next request 60 ms after the last
answer. What has no answer, or another one than 200, or 429 or 503 with `Retry-After`, is lost. Needs Linux, which has
all of 127.0.0.0/8.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from side_by_side import machine

DIGIT = Path(__file__).parents[1] / "examples" / "digits" / "seven.png"
PAUSE = 0.06  # seconds between two requests of a user who draws
PATIENCE = 30.0  # seconds after which a request is lost


@dataclass
class Client:
    """What one client was answered: how often which status, and the seconds that answers with 200 took."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


async def ask(port: int, source: str, path: str, until: float, pause: float, told: Client) -> None:
    """Ask again and again over one connection, opened anew where it was closed, until the time is over."""
    body = DIGIT.read_bytes()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    stream = None
    while (begun := time.monotonic()) < until:
        try:
            stream = stream or await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            stream[1].write(head + body)
            status, after, closed = await asyncio.wait_for(answer(stream[0]), PATIENCE)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            told.statuses[f"lost ({type(error).__name__})"] += 1
            stream = None
            continue
        refused = status in (429, 503) and after
        told.statuses[str(status) if status == 200 or refused else f"lost ({status})"] += 1
        if status == 200:
            told.seconds.append(time.monotonic() - begun)
        if closed:
            stream[1].close()
            stream = None
        await asyncio.sleep(after or pause)
    if stream:
        stream[1].close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, float, bool]:
    """Status, the seconds of Retry-After, and whether the connection ends; the body is read and left."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    named = dict(re.findall(r"^([\w-]+): (.*)\r$", head, re.MULTILINE))
    await reader.readexactly(int(named["Content-Length"]))
    return int(head.split()[1]), float(named.get("Retry-After", 0)), named.get("Connection") == "close"


async def load(port: int, pid: int, arguments: argparse.Namespace) -> tuple[Client, Client, list[float]]:
    """The user who draws, all others together, and the service's MiB, at the start and ten times on the way."""
    until = time.monotonic() + arguments.seconds
    user, others = Client(), Client()
    sources = [f"127.0.0.{2 + i % arguments.clients}" for i in range(arguments.connections)]
    asking = [ask(port, source, "/score", until, 0.0, others) for source in sources]
    memory = [resident(pid)]

    async def watch() -> None:
        for _ in range(10):
            await asyncio.sleep(arguments.seconds / 10)
            memory.append(resident(pid))

    await asyncio.gather(watch(), ask(port, "127.0.0.1", "/score?show=1", until, PAUSE, user), *asking)
    return user, others, memory


def resident(pid: int) -> float:
    """A process's resident MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def computed(pid: int) -> float:
    """The seconds of processor time that a process has taken."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def row(name: str, client: Client, seconds: float) -> str:
    """What a client was answered, in a line."""
    took = 1000 * np.array(client.seconds or [np.nan])
    lost = sum(count for status, count in client.statuses.items() if status.startswith("lost"))
    counts = [client.statuses[status] for status in ("200", "429", "503")]
    rate = counts[0] / seconds
    middle, late = np.percentile(took, [50, 99])
    return f"{name:18}" + "".join(f"{count:8,}" for count in [*counts, lost]) + f"{rate:9.1f}{middle:9.0f}{late:9.0f}"


def main() -> None:
    """Print a line for the user, one for the others, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=10)
    arguments = parser.parse_args()
    service = subprocess.Popen(
        [sys.executable, "-m", "vae_runtime", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert service.stdout is not None
        port = int(re.findall(r":(\d+),", service.stdout.readline())[0])
        alone, _, _ = asyncio.run(load(port, service.pid, argparse.Namespace(connections=0, seconds=5, clients=1)))
        before = computed(service.pid)
        user, others, memory = asyncio.run(load(port, service.pid, arguments))
        share = (computed(service.pid) - before) / arguments.seconds
    finally:
        service.terminate()
        service.wait()
    print(machine())
    print(f"{'':18}{'200':>8}{'429':>8}{'503':>8}{'lost':>8}{'200 / s':>9}{'p50 ms':>9}{'p99 ms':>9}")
    print(row("drawing, alone", alone, 5))
    print(row("drawing", user, arguments.seconds))
    print(row(f"{arguments.connections} connections", others, arguments.seconds))
    for status, count in sorted((user.statuses + others.statuses).items()):
        if status.startswith("lost"):
            print(f"  {status}: {count:,}")
    print(f"the service computed on {share:.2f} cores, of {len(os.sched_getaffinity(0))}")
    print(f"resident MiB over the {arguments.seconds:g} seconds: " + " ".join(f"{each:.0f}" for each in memory))


if __name__ == "__main__":
    main()
