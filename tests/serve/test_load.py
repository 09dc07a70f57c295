"""The benchmark of the service, made short: nothing is lost under load, and memory stays where it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the clients have addresses that Linux gives them")
def test_nothing_is_lost_under_load():
    """40 connections for six seconds: each request is answered, many with 503, and the user who draws is too."""
    command = [sys.executable, SCRIPT, "--connections", "40", "--clients", "4", "--seconds", "6"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^(drawing|40 connections) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) ", printed, re.MULTILINE)
    counts = {name: [int(count.replace(",", "")) for count in each] for name, *each in rows}
    assert all(answered > 0 and lost == 0 for answered, _, _, lost in counts.values())
    assert counts["40 connections"][2] > 0  # busy
    memory = [int(each) for each in printed.rpartition(": ")[2].split()]
    assert len(memory) == 11 and max(memory[2:]) - memory[2] <= 4
