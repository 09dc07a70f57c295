"""The HTTP example, on its real server: its answers, its limits, its threads and how it ends."""

import http.client
import io
import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_runtime.cli import main

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names, or named
NAMES = {
    "elbo": "elbo_nats",
    "standard_error": "standard_error_nats",
    "reconstruction": "reconstruction_nats",
    "kl": "kl_nats",
    "percentile": "percentile_percent",
}


def named(line: str) -> dict[str, float]:
    """The figures of a line of `vae-infer elbo --format jsonl`, as the service names them."""
    figures = json.loads(line)
    del figures["image"]
    return {NAMES.get(name, name): figure for name, figure in figures.items()}


@pytest.fixture(scope="module")
def service(start) -> str:
    """The address of a running service."""
    words = start("service.py", "--port", 0).process.stdout.readline().decode().split()
    return words[1].rstrip(",")


def ask(address: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of the answer to a GET, or with a body to a POST."""
    try:
        with DIRECT.open(address, body, timeout=600) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()


def black(width: int, height: int, kind: str = "PNG") -> bytes:
    """The file of a black image."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, kind)
    return file.getvalue()


def test_health_is_ok(service: str):
    """/health answers that the service is up, and which images it takes."""
    status, body = ask(f"{service}/health")
    assert (status, json.loads(body)) == (
        200,
        {"status": "ok", "observation": {"kind": "image", "shape": [1, 28, 28], "range": [0, 1]}},
    )


def test_samples_are_those_of_the_command(service: str, command, tmp_path: Path):
    """/sample gives the grid that `vae-infer sample` draws with the same seed, a third as large."""
    assert command(main, "sample", "-n", 10, "--seed", 7, "-o", tmp_path / "samples.png").code == 0
    status, body = ask(f"{service}/sample?n=10&seed=7")
    assert status == 200
    large = np.asarray(Image.open(tmp_path / "samples.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), large[::3, ::3])


@pytest.mark.parametrize("name", ["two", "not-a-digit"])
@pytest.mark.parametrize(("query", "samples", "seed"), [("", 16, 0), ("?samples=1&seed=5", 1, 5)])
def test_scores_are_those_of_the_command(
    service: str, command, examples: Path, name: str, query: str, samples: int, seed: int
):
    """/score gives the figures of `vae-infer elbo`, to the last bit."""
    file = examples / "digits" / f"{name}.png"
    printed = command(main, "elbo", file, "--samples", samples, "--seed", seed, "--format", "jsonl").out
    status, body = ask(f"{service}/score{query}", file.read_bytes())
    answer = json.loads(body)
    assert status == 200
    assert (answer.pop("samples"), answer.pop("seed")) == (samples, seed)
    assert answer == named(printed)


def array(n: int) -> bytes:
    """An .npy of n grey images, all different."""
    file = io.BytesIO()
    np.save(file, np.linspace(0, 1, n * 784, dtype=np.float32).reshape(n, 28, 28))
    return file.getvalue()


def test_all_images_of_an_array_are_scored(service: str, command, tmp_path: Path):
    """Three images get three scores, in their order; each is the one that it gets alone."""
    (tmp_path / "three.npy").write_bytes(array(3))
    printed = command(main, "elbo", tmp_path / "three.npy", "--samples", 4, "--format", "jsonl").out
    status, body = ask(f"{service}/score?samples=4", array(3))
    assert status == 200
    assert json.loads(body) == {"images": [named(line) for line in printed.splitlines()], "samples": 4, "seed": 0}
    assert len(json.loads(body)["images"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/sample?n=0", None, 400, "n out of range: 0; give an integer from 1 to 256"),
        ("/sample?n=257", None, 400, "n out of range: 257; give an integer from 1 to 256"),
        ("/sample?n=many", None, 400, "n out of range: many;"),
        ("/sample?seed=-1", None, 400, "seed out of range: -1;"),
        (f"/sample?seed={2**64}", None, 400, f"seed out of range: {2**64};"),
        ("/score?samples=0", black(28, 28), 400, "samples out of range: 0; give an integer from 1 to 1,000"),
        ("/score?samples=1001", black(28, 28), 400, "samples out of range: 1001;"),
        ("/score", array(257), 400, "too many images: 257; send at most 256 at a time"),
        ("/score", b"", 400, "not an image or array: bytes; give a PNG, JPEG"),
        ("/score", b"P4 this is no image", 400, "file cannot be read"),
        ("/score", black(280, 280)[:100], 400, "file cannot be read"),
        ("/score", b"%!PS-Adobe-3.0 EPSF-3.0", 400, "not an image or array"),
        ("/score", black(8001, 8000), 400, "64,000,000 pixels at most"),
        ("/score", bytes(5 << 20), 413, "413 Request Entity Too Large"),
        ("/score", None, 405, "405 Method Not Allowed"),
        ("/elsewhere", None, 404, "404 Not Found"),
    ],
)
def test_wrong_requests_are_refused(service: str, path: str, body: bytes | None, status: int, words: str):
    """What the client got wrong is answered with a 4xx and one line as JSON."""
    got, answer = ask(f"{service}{path}", body)
    message = json.loads(answer)["error"]
    assert got == status
    assert words in message
    assert "\n" not in message


def test_a_body_that_is_far_too_long_is_not_read(service: str):
    """An announced gigabyte is refused before it is sent."""
    connection = http.client.HTTPConnection(service.removeprefix("http://"), timeout=600)
    connection.putrequest("POST", "/score")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_parallel_requests_get_the_same_bytes(service: str, examples: Path):
    """Eight requests at once are answered with the bytes of the same requests one after the other."""
    digits = [file.read_bytes() for file in sorted((examples / "digits").iterdir())]
    requests = [(f"{service}/score?samples=300&seed={i}", digits[i]) for i in range(4)]
    requests += [(f"{service}/sample?n=200&seed={i}", None) for i in range(4)]
    alone = [ask(*request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda request: ask(*request), requests)) == alone
    assert {status for status, _ in alone} == {200}
    assert len(set(alone)) == 8


def test_ctrl_c_ends_the_service(start):
    """The service prints where it is, and after Ctrl-C ends with exit code 0 and no word of it on stderr."""
    service = start("service.py", "--port", 0)
    address = service.process.stdout.readline().decode().split()[1].rstrip(",")
    assert ask(f"{address}/health")[0] == 200
    code, out, err = service.interrupt()
    assert (code, out) == (0, "")
    assert all("Task queue depth" in line for line in err.splitlines()), err  # waitress's word for a busy machine
    with pytest.raises(urllib.error.URLError):
        ask(f"{address}/health")


@pytest.mark.parametrize(
    ("words", "expected", "message"),
    [
        (["--port", "{taken}"], 2, "[Errno 98] Address already in use"),
        (["--port", "99999"], 2, "bind(): port must be 0-65535"),
        (["--bundle", "nowhere"], 3, "bundle not found: nowhere"),
    ],
)
def test_what_cannot_be_served_ends_in_one_line(start, words: list[str], expected: int, message: str):
    """A port that is taken or no port, and a bundle that is not there, are named in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = start("service.py", *(word.format(taken=taken.getsockname()[1]) for word in words)).end()
    assert (code, out, err.count("\n")) == (expected, "", 1)
    assert err.startswith(f"service.py: error: {message}")
