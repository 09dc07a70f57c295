"""A watch on MQTT: its state, scores and drift as topics of a broker, and as a device that Home Assistant finds."""

import json
import os
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vae_runtime import extras
from vae_runtime.errors import ArgumentError, EnvironmentUnfit
from vae_runtime.watch_events import ODD, Changed, Event, Observed

if TYPE_CHECKING:
    from paho.mqtt.client import Client

USER, PASSWORD = "VAE_EDGE_MQTT_USER", "VAE_EDGE_MQTT_PASSWORD"  # environment variables
ONLINE, OFFLINE = "online", "offline"

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_DISCOVERY = "homeassistant"  # the prefix where Home Assistant looks unless it is told another one
_EVERY = 1.0  # seconds between two observations that are published, unless the state changes with one
_ALIVE = 30  # seconds of silence, after which the broker is asked whether it is there, and half as long until it is not
_LONGEST = 30  # seconds from one try to reach the broker to the next
_FAREWELL = 2.0  # seconds for the last messages


class Mqtt:
    """Publishes the events of a watch, each topic's latest one retained, for as long as a broker is there.

    Under `vae-edge/<name>/`: availability, "online" or "offline", by the connection's will too; state and drift, "ON"
    or "OFF"; observation and heartbeat, the events as JSON. Of observations one each second is published, the latest,
    and at once that with which the state changes. Where the broker is away, nothing waits and nothing is kept but what
    is the latest, which is published when it is back.
    """

    def __init__(self, broker: str, name: str, note: Callable[[str], None] = lambda text: None) -> None:
        """Connect in the background.

        broker: "HOST", "HOST:PORT" or "mqtts://HOST", over TLS with the certificates that the system trusts, or those
        of the file SSL_CERT_FILE. name: of the device, one for each watch. User and password are those of the
        environment variables VAE_EDGE_MQTT_USER and VAE_EDGE_MQTT_PASSWORD. note: is told when the broker leaves and
        comes back, perhaps from another thread. Raises ArgumentError for a broker that is no address, and
        EnvironmentUnfit where paho-mqtt is not installed, or the certificates cannot be read.
        """
        extras.require("mqtt", "MQTT", "paho-mqtt")
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        host, port, tls = address(broker)
        self.base = f"vae-edge/{_slug(name)}"
        self._broker, self._name, self._note = f"{host}:{port}", name, note
        self._latest: dict[str, str] = {}  # by topic, of which some are not published yet
        self._unsent: set[str] = set()
        self._lock = threading.Lock()
        self._due = 0.0  # when the next observation may be published, on the clock of time.monotonic
        self._timer: threading.Timer | None = None
        self._connected = self._away = False
        self._client: Client = Client(CallbackAPIVersion.VERSION2)
        if user := os.environ.get(USER):
            self._client.username_pw_set(user, os.environ.get(PASSWORD))
        if tls:
            certificates = os.environ.get("SSL_CERT_FILE")
            try:
                self._client.tls_set(ca_certs=certificates)
            except OSError as error:
                which = f"{certificates} ({error.strerror or error})"
                raise EnvironmentUnfit("certificates cannot be read", which, "check SSL_CERT_FILE") from None
        self._client.will_set(f"{self.base}/availability", OFFLINE, qos=1, retain=True)
        self._client.reconnect_delay_set(1, _LONGEST)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.connect_async(host, port, keepalive=_ALIVE)
        self._client.loop_start()

    def __enter__(self) -> "Mqtt":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def send(self, event: Event) -> None:
        """Publish what an event says."""
        if isinstance(event, Observed):
            payloads = {"observation": event.json()}
        elif isinstance(event, Changed):
            payloads = {"state": _on(event.state == ODD)}
        else:
            drift = _on(event.drift is not None)
            payloads = {"heartbeat": event.json(), "state": _on(event.state == ODD), "drift": drift}
        with self._lock:
            self._latest |= payloads
            self._unsent |= payloads.keys()
            wait = self._due - time.monotonic() if isinstance(event, Observed) else 0.0
            if wait <= 0:
                self._publish(self._unsent)
            elif self._timer is None:
                self._timer = threading.Timer(wait, self._catch_up)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Say that the watch has ended, and leave."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connected:
            self._catch_up()
            farewell = self._client.publish(f"{self.base}/availability", OFFLINE, qos=1, retain=True)
            with suppress(RuntimeError, ValueError):  # the connection has gone
                farewell.wait_for_publish(_FAREWELL)
        self._connected = False
        self._client.disconnect()
        self._client.loop_stop()

    def _catch_up(self) -> None:
        """Publish what has waited."""
        with self._lock:
            self._timer = None
            self._publish(self._unsent)

    def _publish(self, names: set[str]) -> None:
        """Publish the latest of these topics, if there is a broker, and else nothing: all are published once it is."""
        if "observation" in names:
            self._due = time.monotonic() + _EVERY
        if self._connected:
            for name in sorted(names):
                self._client.publish(f"{self.base}/{name}", self._latest[name], retain=True)
        self._unsent = set()

    def _on_connect(self, client: "Client", data: object, flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            self._say(f"{reason}")
            return
        with self._lock:
            for topic, payload in discovery(self._name, self.base).items():
                client.publish(topic, json.dumps(payload), retain=True)
            client.publish(f"{self.base}/availability", ONLINE, qos=1, retain=True)
            self._connected = True
            self._publish(set(self._latest))
        if self._away:
            self._away = False
            self._note(f"the MQTT broker {self._broker} is there again")

    def _on_disconnect(self, client: "Client", data: object, flags: object, reason: Any, properties: object) -> None:
        if self._connected:
            self._connected = False
            self._say(f"{reason}")

    def _on_connect_fail(self, client: "Client", data: object) -> None:
        self._say(str(sys.exc_info()[1]))

    def _say(self, why: str) -> None:
        """Say once that the broker is not there."""
        if not self._away:
            self._away = True
            self._note(f"the MQTT broker {self._broker} is not there ({why}): watching goes on, and it is tried again")


def address(broker: str) -> tuple[str, int, bool]:
    """Host, port and whether by TLS, of HOST, HOST:PORT or either after mqtt:// or mqtts://.

    Raises ArgumentError for what is no address, and where a user is in it, whom others on this machine would see.
    """
    parts = urlsplit(broker if "://" in broker else f"mqtt://{broker}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.username is not None or parts.password is not None:
        todo = f"set the environment variables {USER} and {PASSWORD}"
        raise ArgumentError("user or password in the address of a broker", host, todo)
    if parts.scheme not in _PORTS or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise ArgumentError("no address of an MQTT broker", broker, "give HOST, HOST:PORT or mqtts://HOST:PORT")
    return host, port or _PORTS[parts.scheme], parts.scheme == "mqtts"


def discovery(name: str, base: str) -> dict[str, dict[str, Any]]:
    """By topic, what Home Assistant is told: one device of that name, whose entities read the topics below `base`.

    Its format: home-assistant.io/integrations/mqtt/#mqtt-discovery, a topic for each entity.
    """
    unique = _slug(base)
    shared = {
        "availability_topic": f"{base}/availability",
        "device": {"identifiers": [unique], "name": name, "manufacturer": "vae-edge"},
        "origin": {"name": "vae-edge"},
    }
    observation = {"state_topic": f"{base}/observation", "state_class": "measurement"}
    entities: dict[tuple[str, str], dict[str, str]] = {
        ("binary_sensor", "state"): {
            "name": "Odd", "device_class": "problem",
            "state_topic": f"{base}/state", "json_attributes_topic": f"{base}/observation",
        },
        ("binary_sensor", "drift"): {
            "name": "Drift", "device_class": "problem", "entity_category": "diagnostic",
            "state_topic": f"{base}/drift", "json_attributes_topic": f"{base}/heartbeat",
        },
        ("sensor", "score"): {"name": "Score", "value_template": "{{ value_json.score }}", **observation},
        ("sensor", "p"): {"name": "p", "value_template": "{{ value_json.p }}", **observation},
    }  # fmt: skip
    return {
        f"{_DISCOVERY}/{kind}/{unique}-{each}/config": {"unique_id": f"{unique}-{each}", **entity, **shared}
        for (kind, each), entity in entities.items()
    }


def usual_name(source: str) -> str:
    """What to call the watch of a source: this machine and the last part of the source's name."""
    return f"{socket.gethostname()} {'stdin' if source == '-' else Path(source).resolve().name}"


def _on(on: bool) -> str:
    return "ON" if on else "OFF"


def _slug(name: str) -> str:
    """The name of letters, digits, _ and -, as topics and unique ids may have it; others are told apart by a hash."""
    slug = re.sub(r"[^\w-]+", "-", name, flags=re.ASCII).strip("-").lower()
    if slug and name.isascii():
        return slug
    return f"{slug}-{zlib.crc32(name.encode(errors='surrogateescape')):08x}".strip("-")
