"""watch --mqtt, against a real broker: what is published, what Home Assistant is told, and brokers that leave."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.bundles import Forge, linear
from support.commands import Command
from vae_runtime import VAE, Detector
from vae_runtime.cli import main
from vae_runtime.errors import ArgumentError, EnvironmentUnfit
from vae_runtime.mqtt import PASSWORD, USER, Mqtt, _slug, address, discovery, usual_name
from vae_runtime.watch_events import Changed, Event, Heartbeat, Observed

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def observed(number: int, score: float = 1.5) -> Observed:
    """An observation of a watch."""
    return Observed(0, f"{number}.png", number, score, 0.25, False, "KL", 1.0, "normal")


def beat(state: str = "normal", drift: str | None = None) -> Heartbeat:
    """A heartbeat of a watch."""
    return Heartbeat(0, state, 60.0, 100, 1, 0, 2, 0.01, 0.002, 0.01, None, drift=drift)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("pi", ("pi", 1883, False)),
        ("pi:2000", ("pi", 2000, False)),
        ("mqtt://10.0.0.2/", ("10.0.0.2", 1883, False)),
        ("mqtts://pi", ("pi", 8883, True)),
        ("mqtts://[::1]:99", ("::1", 99, True)),
    ],
)
def test_addresses_of_brokers(given: str, expected: tuple[str, int, bool]) -> None:
    """Host and port, and by TLS where it is asked for."""
    assert address(given) == expected


@pytest.mark.parametrize("given", ["", "pi:port", "pi:99999", "http://pi", "mqtt://pi/topic", "pi 1883:x"])
def test_what_is_no_address_is_refused(given: str) -> None:
    """With what one is."""
    with pytest.raises(ArgumentError, match="no address of an MQTT broker"):
        address(given)


def test_a_password_does_not_stand_in_a_command() -> None:
    """Where others see it; nor in the error."""
    with pytest.raises(ArgumentError, match=f"set the environment variables {USER} and {PASSWORD}") as caught:
        address("mqtt://me:secret@pi")
    assert "secret" not in str(caught.value)


def test_home_assistant_is_told_of_one_device() -> None:
    """Entities with ids of their own, on topics of letters that it takes."""
    told = discovery("Pi: camera 1", "vae-edge/pi-camera-1")
    assert sorted(told) == [
        "homeassistant/binary_sensor/vae-edge-pi-camera-1-drift/config",
        "homeassistant/binary_sensor/vae-edge-pi-camera-1-state/config",
        "homeassistant/sensor/vae-edge-pi-camera-1-p/config",
        "homeassistant/sensor/vae-edge-pi-camera-1-score/config",
    ]
    state = told["homeassistant/binary_sensor/vae-edge-pi-camera-1-state/config"]
    assert (state["device_class"], state["state_topic"]) == ("problem", "vae-edge/pi-camera-1/state")
    assert len({each["unique_id"] for each in told.values()}) == 4
    assert all(each["availability_topic"] == "vae-edge/pi-camera-1/availability" for each in told.values())
    assert {str(each["device"]) for each in told.values()} == {str(state["device"])}
    assert state["device"]["name"] == "Pi: camera 1"
    assert usual_name("photos/").endswith(" photos")


def test_names_of_other_letters_are_told_apart() -> None:
    """Two watches share no topic, whatever language they are named in."""
    names = ("Halle 1", "K\u00fcche", "K\u00f6che", "\u53a8\u623f", "\u5ba2\u5385", "\udcff")
    slugs = [_slug(name) for name in names]
    assert slugs[0] == "halle-1"
    assert len(set(slugs)) == 6
    assert all(re.fullmatch("[a-z0-9_-]+", slug) for slug in slugs)


def test_certificates_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when the broker is reached."""
    pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install 'vae-edge[mqtt]'")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with pytest.raises(EnvironmentUnfit, match=r"absent.pem \(No such file or directory\); check SSL_CERT_FILE"):
        Mqtt("mqtts://127.0.0.1:1", "Test")


class Broker:
    """Mosquitto on a port of its own; it can be stopped and begun again."""

    def __init__(self, folder: Path, settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        self.config.write_text(f"listener {self.port} 127.0.0.1\nuser root\n{settings}\n")
        self.begin()

    def begin(self) -> None:
        """Begin, and wait until it listens."""
        words = [str(MOSQUITTO), "-c", str(self.config)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: socket.create_connection(("127.0.0.1", self.port)).close() is None)

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@contextmanager
def broker(folder: Path, settings: str = "allow_anonymous true") -> Iterator[Broker]:
    """A broker with these settings."""
    pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt: pip install 'vae-edge[mqtt]'")
    if MOSQUITTO is None:
        pytest.skip("needs mosquitto: apt install mosquitto")
    folder.chmod(0o755)
    running = Broker(folder, settings)
    try:
        yield running
    finally:
        running.end()


def until(done: Callable[[], bool]) -> None:
    """Wait for it, for two minutes at most."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if done():
                return
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError("it did not happen")


class Reader:
    """Somebody who reads all topics of a broker."""

    def __init__(self, port: int, **tls: str) -> None:
        from paho.mqtt.client import CallbackAPIVersion, Client

        self.topics: dict[str, str] = {}  # the latest of each
        self.count = 0
        self.client = Client(CallbackAPIVersion.VERSION2)
        if tls:
            self.client.tls_set(**tls)
        self.client.username_pw_set("me", "secret")
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.on_message = self.read
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def read(self, client: object, data: object, message: object) -> None:
        """Remember a message."""
        self.count += 1
        self.topics[message.topic] = message.payload.decode()  # type: ignore[attr-defined]

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *raised: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_events_are_published_and_kept_by_the_broker(tmp_path: Path) -> None:
    """Who comes later finds the latest of each topic; of many observations a second few are published, and the last."""
    events: list[Event] = [beat(), *(observed(i) for i in range(300))]
    with broker(tmp_path) as running, Reader(running.port) as early:
        with Mqtt(f"127.0.0.1:{running.port}", "Test") as mqtt:
            for event in events:
                mqtt.send(event)
            until(lambda: "vae-edge/test/observation" in early.topics)
            mqtt.send(Changed(0, "odd", 60.0, "299.png", 299, 1.5, 0.25, "KL", 1.0))
            moved = "brightness is lower than usual"
            mqtt.send(beat("odd", drift=moved))
            with Reader(running.port) as late:
                until(lambda: moved in late.topics.get("vae-edge/test/heartbeat", "") and len(late.topics) == 9)
                assert late.topics["vae-edge/test/availability"] == "online"
                assert late.topics["vae-edge/test/state"] == "ON"
                assert json.loads(late.topics["vae-edge/test/observation"])["number"] == 299
                assert late.topics["vae-edge/test/drift"] == "ON"
                assert json.loads(late.topics["vae-edge/test/heartbeat"])["drift"] == moved
                configs = [topic for topic in late.topics if topic.startswith("homeassistant/")]
                assert {json.loads(late.topics[topic])["device"]["name"] for topic in configs} == {"Test"}
        until(lambda: early.topics["vae-edge/test/availability"] == "offline")
        assert early.count < 50


@pytest.mark.slow
def test_a_broker_that_leaves_ends_nothing(tmp_path: Path) -> None:
    """It is said once; when one is there again it is told what is the latest, and nothing was kept but that."""
    notes: list[str] = []
    with broker(tmp_path) as running:
        running.end()
        with Mqtt(f"127.0.0.1:{running.port}", "Test", notes.append) as mqtt:
            until(lambda: len(notes) == 1)
            for i in range(1000):
                mqtt.send(observed(i))
            mqtt.send(beat("odd"))
            assert len(mqtt._latest) == 4
            running.begin()
            until(lambda: len(notes) == 2)
            with Reader(running.port) as reader:
                until(lambda: len(reader.topics) == 9)
                assert reader.topics["vae-edge/test/state"] == "ON"
                assert json.loads(reader.topics["vae-edge/test/observation"])["number"] == 999
            running.end()
            until(lambda: len(notes) == 3)
            mqtt.send(beat())
            running.begin()
            with Reader(running.port) as reader:
                until(lambda: reader.topics.get("vae-edge/test/state") == "OFF")
    where = f"the MQTT broker 127.0.0.1:{running.port}"
    assert notes[0] == f"{where} is not there ([Errno 111] Connection refused): watching goes on, and it is tried again"
    assert notes[1] == notes[3] == f"{where} is there again"
    assert len(notes) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves a refused socket to Python
def test_who_may_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With user and password of the environment, and over TLS; else the broker's refusal is said."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([openssl, *words.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    passwords = [str(shutil.which("mosquitto_passwd")), "-b", "-c", str(tmp_path / "users"), "me", "secret"]
    subprocess.run(passwords, check=True, capture_output=True)
    certificate = str(tmp_path / "cert.pem")
    settings = f"password_file {tmp_path}/users\ncertfile {certificate}\nkeyfile {tmp_path}/key.pem"
    notes: list[str] = []
    with broker(tmp_path, settings) as running:
        with Mqtt(f"mqtts://127.0.0.1:{running.port}", "Test", notes.append):
            until(lambda: len(notes) == 1)
        assert "CERTIFICATE_VERIFY_FAILED" in notes.pop()
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        with Mqtt(f"mqtts://127.0.0.1:{running.port}", "Test", notes.append):
            until(lambda: len(notes) == 1)
        assert "Not authorized" in notes.pop()
        monkeypatch.setenv(USER, "me")
        monkeypatch.setenv(PASSWORD, "secret")
        with (
            Mqtt(f"mqtts://127.0.0.1:{running.port}", "Test", notes.append) as mqtt,
            Reader(running.port, ca_certs=certificate) as reader,
        ):
            mqtt.send(beat())
            until(lambda: reader.topics.get("vae-edge/test/state") == "OFF")
        assert not notes


def test_a_watch_on_a_broker(forge: Forge, tmp_path: Path) -> None:
    """A device that is there as long as the process is: the broker itself says that a killed one is not."""
    vae = VAE.load(linear(forge, "gaussian", (2,)))
    Detector.fit(vae, np.random.default_rng(1).normal(size=(100, 2))).save(tmp_path / "site.json")
    with broker(tmp_path) as running, Reader(running.port) as reader:
        words = ("--bundle", vae.path, "watch", "-", "--calibration", tmp_path / "site.json", "--debounce", "1")
        where = ("--mqtt", f"127.0.0.1:{running.port}", "--mqtt-name", "Site")
        process = subprocess.Popen(
            [sys.executable, "-m", "vae_runtime", *map(str, words + where)], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(b"0,0\n1000,1000\n")
        process.stdin.flush()
        until(lambda: reader.topics.get("vae-edge/site/state") == "ON")
        assert reader.topics["vae-edge/site/availability"] == "online"
        process.send_signal(signal.SIGKILL)
        process.stdin.close()
        process.wait()
        until(lambda: reader.topics["vae-edge/site/availability"] == "offline")


def test_an_address_that_is_none_is_a_wrong_option(command: Command) -> None:
    """In one line, before anything is read."""
    ran = command(main, "watch", "-", "--mqtt", "me:secret@pi")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "--mqtt" in ran.err
    assert USER in ran.err
    assert "secret" not in ran.err
