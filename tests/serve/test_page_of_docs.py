"""The commands of docs/serve.md, with curl, against the service that it starts."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.programs import Start

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text()
SHOWN = re.findall(r"^\$ (.+)\n((?:[^$`].*\n)*)", PAGE, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_each_curl_of_the_page_gets_what_it_shows(start: Start, tmp_path: Path):
    """The service says where it is as the page does; each answer is the one below its curl, figures to rounding,
    and a file that it writes is there.
    """
    line = start("--port", 0).process.stdout.readline().decode()
    assert re.sub(r":\d+,", ":8000,", line) == dict(SHOWN)["vae-infer serve"]
    address = line.split()[1].rstrip(",")
    shutil.copytree(ROOT / "examples" / "digits", tmp_path / "examples" / "digits")
    curls = [each for each in SHOWN if each[0].startswith("curl ")]
    assert len(curls) == PAGE.count("$ curl ") > 3
    for command, shown in curls:
        ask = command.replace("http://127.0.0.1:8000", address)
        done = subprocess.run(ask, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if shown:
            assert approximately(json.loads(done.stdout)) == json.loads(shown)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    names = [score["name"] for score in json.loads((tmp_path / "scores.json").read_text())["scores"]]
    assert names == ["two.png", "not-a-digit.png"]


def approximately(value: object) -> object:
    """JSON whose figures are equal to others but for a hundredth."""
    if isinstance(value, dict):
        return {name: approximately(each) for name, each in value.items()}
    if isinstance(value, list):
        return [approximately(each) for each in value]
    return pytest.approx(value, rel=0.01) if isinstance(value, float) else value
