"""The systemd unit of a watch: its command is one that there is, it may write what it writes, and systemd takes it."""

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vae_runtime import watch_cli
from vae_runtime.cli import cli

UNIT = Path(__file__).parents[2] / "examples" / "watch" / "vae-infer-watch.service"


@pytest.fixture(scope="module")
def service() -> configparser.SectionProxy:
    """Its section of the service."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    return unit["Service"]


def test_its_command_is_one_that_there_is(service: configparser.SectionProxy) -> None:
    """With options that the command knows, and a folder to keep odd ones in where the service may write."""
    _, *words = shlex.split(service["ExecStart"])
    at = words.index("watch")
    with cli.make_context("vae-infer", [*words]) as context:
        assert context.params["threads"] == 1
        found = watch_cli.watch.make_context("watch", words[at + 1 :], parent=context).params
    assert found["keep"].is_relative_to(f"/var/lib/{service['StateDirectory']}")
    assert (found["source"], found["calibration"]) == ("/srv/photos", Path("/etc/vae-edge/site.json"))


def test_it_comes_back_and_stays_small(service: configparser.SectionProxy) -> None:
    """It is started again when it fails, reads a calibration anew on a reload, and may not take all memory."""
    assert service["Restart"] == "on-failure"
    assert service["ExecReload"].split()[1:] == ["-HUP", "$MAINPID"]
    assert 128 <= int(service["MemoryHigh"].removesuffix("M")) < int(service["MemoryMax"].removesuffix("M"))
    assert "TimeoutStopSec" in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_it(tmp_path: Path) -> None:
    """It knows every setting, and finds little that is exposed."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/vae-edge/bin/vae-infer", sys.executable))
    ran = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, [line for line in ran.stderr.splitlines() if UNIT.name in line]) == (0, "", [])
    limits = ["--offline=true", "--threshold=30"]
    ran = subprocess.run(["systemd-analyze", "security", *limits, unit], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 or "unrecognized option" in ran.stderr, ran.stdout + ran.stderr
