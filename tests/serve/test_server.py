"""`vae-infer serve` as a process: its threads, how it refuses to begin, and how it ends."""

import http.client
import json
import signal
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waitress.server import BaseWSGIServer
from waitress.trigger import trigger

from support.programs import Start
from vae_runtime import serve
from vae_runtime.cli import main

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
INTERRUPTED = "vae-infer: interrupted: run it again when it suits\n"


def ask(address: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of the answer to a GET, or with a body to a POST."""
    try:
        with DIRECT.open(urllib.request.Request(address, body, headers or {}), timeout=600) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()


@pytest.fixture(scope="module")
def service(start: Start) -> str:
    """The address of a running service."""
    words = start("--port", 0).process.stdout.readline().decode().split()
    return words[1].rstrip(",")


def test_parallel_requests_get_the_same_bytes(service: str, examples: Path):
    """Eight requests at once are answered with the bytes of the same requests one after the other."""
    digits = [file.read_bytes() for file in sorted((examples / "digits").iterdir())]
    requests = [(f"{service}/score?samples=100&seed={i}", digits[i]) for i in range(4)]
    requests += [(f"{service}/sample?n=100&seed={i}", None) for i in range(4)]
    alone = [ask(*request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda request: ask(*request), requests)) == alone
    assert {status for status, _ in alone} == {200}
    assert len(set(alone)) == 8


def test_a_body_that_is_far_too_long_is_not_read(service: str):
    """An announced gigabyte is refused before it is sent."""
    connection = http.client.HTTPConnection(service.removeprefix("http://"), timeout=600)
    connection.putrequest("POST", "/score")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_name_that_only_leads_to_this_machine_is_not_answered(service: str):
    """On the loopback address, a page elsewhere whose name was turned to it gets nothing; localhost is this machine."""
    port = service.rpartition(":")[2]
    assert ask(f"{service}/health", headers={"Host": f"localhost:{port}"})[0] == 200
    status, body = ask(f"{service}/health", headers={"Host": f"evil.example:{port}"})
    assert status == 400
    assert json.loads(body)["error"].startswith(f"not answered by this name: evil.example:{port}; use http://127.0.0.1")


def test_ctrl_c_ends_the_service(start: Start):
    """The service prints where it is, and after Ctrl-C ends with exit code 130 and one line, as the other verbs do."""
    service = start("--port", 0)
    address = service.process.stdout.readline().decode().split()[1].rstrip(",")
    assert ask(f"{address}/health")[0] == 200
    assert service.interrupt() == (130, "", INTERRUPTED)
    with pytest.raises(urllib.error.URLError):
        ask(f"{address}/health")


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_that_comes_amid_a_connection_ends_the_service(
    command, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, number: signal.Signals, code: int
):
    """Waitress drops what is raised while it reads from a connection: the first signal counts all the same."""
    numbers, servers, create = [number, signal.SIGINT], [], serve.create_server

    def create_with_work(*given: object, **named: object) -> BaseWSGIServer:
        servers.append(create(*given, **named))
        servers[0].pull_trigger()
        return servers[0]

    monkeypatch.setattr(serve, "create_server", create_with_work)
    monkeypatch.setattr(trigger, "handle_read", lambda self: signal.raise_signal(numbers.pop(0)))
    monkeypatch.setattr(trigger, "handle_error", lambda self: signal.raise_signal(numbers.pop(0)))  # where it is lost
    done = command(main, "--bundle", tiny_bundle, "serve", "--port", 0)
    servers[0].close()
    assert (done.code, numbers) == (code, [signal.SIGINT])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_all_addresses_of_both_families_are_answered(start: Start, tiny_bundle: Path):
    """`--host ::` stands for IPv4 too: each address that it prints answers, and so does [::1]."""
    service = start("--host", "::", "--port", 0, before=("--bundle", tiny_bundle))
    printed = [word.rstrip(",") for word in service.process.stdout.readline().decode().split() if "http" in word]
    port = printed[0].rpartition(":")[2]
    for address in (*printed, f"http://[::1]:{port}"):
        assert ask(f"{address}/health")[0] == 200
    assert service.interrupt()[0] == 130


def test_on_other_addresses_it_says_who_may_come(start: Start, tiny_bundle: Path):
    """With --host 0.0.0.0 it says in a line that the network reaches it, and by which address; without a calibration
    there are no verdicts."""
    service = start("--host", "0.0.0.0", "--port", 0, before=("--bundle", tiny_bundle))
    line = service.process.stdout.readline().decode()
    assert line.startswith("serving http://127.0.0.1:")
    address = line.split()[1].rstrip(",")
    assert json.loads(ask(f"{address}/model")[1])["detector"] is None
    assert ask(f"{address}/health", headers={"Host": "pi.local"})[0] == 200
    code, _, err = service.interrupt()
    note = "whoever reaches this machine by network may use it; there is no password and no encryption"
    assert (code, err) == (130, f"vae-infer: note: {note}\n{INTERRUPTED}")


@pytest.mark.parametrize(
    ("words", "before", "expected", "message"),
    [
        (["--port", "{taken}"], [], 2, "cannot listen (Address already in use): 127.0.0.1:{taken};"),
        (["--port", "99999"], [], 2, "wrong usage: Invalid value for '--port'"),
        (["--host", "no.such.host.invalid"], [], 2, "cannot listen ("),
        ([], ["--bundle", "nowhere"], 3, "bundle not found: nowhere"),
        (["--calibration", "nowhere.json"], [], 3, "calibration not read: nowhere.json"),
    ],
)
def test_what_cannot_be_served_ends_in_one_line(
    command, words: list[str], before: list[str], expected: int, message: str
):
    """A port that is taken or no port, and a bundle that is not there, are named in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(main, *before, "serve", *(word.format(taken=port) for word in words))
    assert (done.code, done.out, done.err.count("\n")) == (expected, "", 1)
    assert done.err.startswith(f"vae-infer: error: {message.format(taken=port)}")
