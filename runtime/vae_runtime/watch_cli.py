"""The verb `vae-infer watch`: what happens as JSON lines on stdout, what goes wrong on stderr, signals heard."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_runtime import terminal
from vae_runtime.errors import ArgumentError, VaeError
from vae_runtime.observation import IMAGE

if TYPE_CHECKING:
    from vae_runtime.detector import Detector
    from vae_runtime.follow import Frames
    from vae_runtime.vae import VAE
    from vae_runtime.watch_clock import Clock
    from vae_runtime.watch_events import Event

_PATH = click.Path(path_type=Path)
_SECONDS = click.FloatRange(0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _debounce(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int | None, float]:
    """How many in a row, None for as many as is usual, and how many seconds."""
    if text is None:
        return None, 0.0
    if re.fullmatch(r"0*[1-9]\d{0,8}", text):
        return int(text), 0.0
    if re.fullmatch(r"\d{1,9}(\.\d+)?s", text):
        return 1, float(text[:-1])
    raise click.BadParameter(f"{text!r} is neither a number, such as 3, nor a time, such as 10s")


def _size(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,6}x\d{1,6}", text):
        raise click.BadParameter(f"{text!r} is no size, such as 640x480")
    width, _, height = text.partition("x")
    return int(width), int(height)


def _broker(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    if text is not None:
        from vae_runtime import mqtt

        try:
            mqtt.address(text)
        except ArgumentError as error:
            raise click.BadParameter(str(error)) from None
    return text


@click.command(short_help="Judge what comes, for as long as it comes.")
@click.argument("source")
@click.option("--calibration", type=_PATH, help="What `calibrate` wrote.  [default: what the bundle carries]")
@click.option("--debounce", metavar="N|TIME", callback=_debounce,
    help="How many odd ones in a row, such as 3, or for how long nothing but odd ones, such as 10s, make the state odd;"
    " as many normal ones make it normal again.  [default: 3; 1 for a folder, whose files stand for themselves]",
)  # fmt: skip
@click.option("--cooldown", type=_SECONDS, default=0.0, show_default=True,
    help="Seconds after an alarm within which there is no second one.",
)  # fmt: skip
@click.option("--heartbeat", type=_SECONDS, default=60.0, show_default=True,
    help="Seconds from one heartbeat to the next; 0 for one at the start and one at the end.",
)  # fmt: skip
@click.option(
    "--keep", type=_PATH, help="Folder for the oddest of the odd ones, as PNG or CSV files with their figures."
)
@click.option("--keep-size", type=click.IntRange(1, 2**30), default=16, show_default=True,
    help="MiB that this folder may take, across restarts too.",
)  # fmt: skip
@click.option("--from-start", is_flag=True, help="Judge what is in the folder or file already, and then what comes.")
@click.option("--size", metavar="WIDTHxHEIGHT", callback=_size, help="Of raw frames.  [default: the model's own]")
@click.option("--pixels", type=click.Choice(["gray", "rgb24", "yuv420p"]),
    help="Of raw frames, as FFmpeg calls them.  [default: gray or rgb24, as the model has it]",
)  # fmt: skip
@click.option("--mqtt", metavar="HOST[:PORT]", callback=_broker,
    help="Publish on this broker too, and as a device that Home Assistant finds; mqtts://HOST by TLS. User and password"
    " are those of VAE_EDGE_MQTT_USER and VAE_EDGE_MQTT_PASSWORD.",
)  # fmt: skip
@click.option("--mqtt-name", help="Of the device, one for each watch.  [default: this machine and the source]")
@terminal.with_stride
@click.pass_obj
def watch(
    options: terminal.Options,
    source: str,
    calibration: Path | None,
    debounce: tuple[int | None, float],
    cooldown: float,
    heartbeat: float,
    keep: Path | None,
    keep_size: int,
    from_start: bool,
    size: tuple[int, int] | None,
    pixels: str | None,
    mqtt: str | None,
    mqtt_name: str | None,
    stride: int | None,
) -> None:
    """Judge what comes from SOURCE, for as long as it comes, and print a line of JSON for everything that happens.

    \b
    SOURCE is
      a folder that fills: its images, new or written anew, each when it is
        whole, or for a model of rows or series its tables, each after two
        seconds without a change;
      a table in a file that grows, followed through rotation and truncation;
      - for standard input, or a named pipe, or a device such as a serial
        port: raw frames for a model of images, else the lines of a table.
    No window of a series goes from one file into the next.

    \b
    Each line has an "event" and its "time" (UTC):
      observation: its name, number, score, p, whether it is odd, its oddest
        trait, by how many standard deviations that deviates, and the state
        with it;
      state: the state has changed to odd, which is an alarm, or back to
        normal, and how long the other one lasted;
      heartbeat: how many were seen, odd, alarms and skipped since the start,
        the share of normal ones that is called odd, the latency since the
        last heartbeat (median and highest, seconds), the memory of the
        process (bytes), and of a drift what has moved, since about which
        number, and its evidence (log of an e-value, drift from 6.9 on).

    What cannot be read is left out, counted and said on stderr; a folder or a file that vanishes is waited for, and a
    full disk too. The watch ends when a pipe ends, and with SIGTERM or SIGINT, after a last heartbeat: exit code 0.
    SIGHUP reads bundle and calibration anew; where one of them is bad, those from before stay in force.

    \b
    From cameras and sensors:
      rpicam-vid -t 0 --width 640 --height 480 --codec yuv420 -o - |
        vae-infer --bundle BUNDLE watch - --size 640x480 --pixels yuv420p
      (a width that is a multiple of 64: others are padded)
      ffmpeg -i rtsp://camera/stream -vf scale=64:64 -pix_fmt rgb24 \\
        -f rawvideo - | vae-infer --bundle BUNDLE watch -
      vae-infer --bundle BUNDLE watch readings.csv \\
        --calibration site.json --debounce 10s --keep odd/
    """
    from vae_runtime import watching
    from vae_runtime.watch_clock import Clock

    in_a_row, lasting = debounce
    with closing(Clock()) as clock, _Signals(clock) as signals:
        detector = _load(options, calibration)
        if keep is not None:
            terminal.say_pictured(detector.vae)
        events = watching.watch(
            detector, source, frames=_frames(detector.vae, size, pixels), stride=stride, from_start=from_start,
            in_a_row=in_a_row, lasting=lasting, cooldown=cooldown, heartbeat=heartbeat,
            keep=keep, keep_bytes=keep_size << 20, note=_note,
            renew=lambda: _renewed(options, calibration) if signals.hung_up() else None, clock=clock,
        )  # fmt: skip
        output = _Output(sys.stdout.fileno())
        with closing(events), _mqtt(mqtt, mqtt_name, source) as publish:
            for event in events:
                output.write(event.json())
                publish(event)


@contextmanager
def _mqtt(broker: str | None, name: str | None, source: str) -> "Iterator[Callable[[Event], None]]":
    """What publishes events on a broker, or does nothing without one."""
    if broker is None:
        yield lambda event: None
        return
    from vae_runtime.mqtt import Mqtt, usual_name

    with Mqtt(broker, name or usual_name(source), _note) as mqtt:
        yield mqtt.send


def _load(options: terminal.Options, calibration: Path | None) -> "Detector":
    """The detector, which has judged an observation of the model's own: what cannot be run is found out here.

    Where it cannot tell as finely as it was asked to, it is said.
    """
    from vae_runtime.detector import Detector

    vae = terminal.load(options)
    detector = Detector.load(vae, calibration)
    detector.score(vae.observation.clip(vae.sample(1)))
    if detector.coarse:
        _note(detector.coarse)
    return detector


def _renewed(options: terminal.Options, calibration: Path | None) -> "Detector | None":
    """What `_load` gives, or a word on why it cannot."""
    try:
        return _load(options, calibration)
    except VaeError as error:
        _note(f"the calibration and bundle from before stay in force: {error}")
        return None


def _frames(vae: "VAE", size: tuple[int, int] | None, pixels: str | None) -> "Frames | None":
    """How raw frames are written, where that is not as the model's own are."""
    if size is None and pixels is None:
        return None
    from vae_runtime.follow import Frames

    if vae.observation.kind != IMAGE:
        which = f"this one takes {vae.observation.noun}s"
        raise click.UsageError(f"--size and --pixels are for models of images, and {which}")
    channels, height, width = vae.observation.shape
    return Frames(*(size or (width, height)), pixels or ("gray" if channels == 1 else "rgb24"))


def _note(text: str) -> None:
    """Say something on stderr, if it can be said."""
    with suppress(OSError):
        terminal.note(text)


class _Signals:
    """SIGTERM and SIGINT stop the clock, and a second one the process; SIGHUP is kept until it is asked for."""

    def __init__(self, clock: "Clock") -> None:
        self._clock, self._hung_up = clock, False
        handlers = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop}
        if sys.platform != "win32":
            handlers[signal.SIGHUP] = self._renew
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def __enter__(self) -> "_Signals":
        return self

    def __exit__(self, *raised: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def hung_up(self) -> bool:
        """Whether there was a SIGHUP since this was asked last."""
        hung_up, self._hung_up = self._hung_up, False
        return hung_up

    def _stop(self, number: int, frame: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._before[each])
        self._clock.stop()

    def _renew(self, number: int, frame: object) -> None:
        self._hung_up = True
        self._clock.wake()


class _Output:
    """Writes lines at once. Those for which a disk has no room are lost, which is said, and the next ones are whole."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._lost, self._torn = descriptor, 0, False

    def write(self, line: str) -> None:
        """Write a line. Raises OSError where not the disk is at fault: a reader that has left, say."""
        left = memoryview(b"\n" * self._torn + line.encode() + b"\n")
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
                self._torn = True
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if not self._lost:
                _note(f"events are lost: standard output ({error.strerror}); free some space")
            self._lost += 1
            return
        self._torn = False
        if self._lost:
            _note(f"{terminal.count(self._lost, 'event')} could not be written, and from here they are again")
            self._lost = 0
