"""The verb `vae-infer serve`: a page and JSON routes of one model, on this machine or in its network."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from vae_runtime import extras, terminal
from vae_runtime.command import Terminated, when_ended

if TYPE_CHECKING:
    from waitress.server import BaseWSGIServer

_OWN = ("127.0.0.1", "localhost", "::1")


@click.command(short_help="Serve a page to try the model out, and JSON routes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen to; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any that is free.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="What `calibrate` wrote.  [default: what the bundle carries]"
)
@click.pass_obj
def serve(options: terminal.Options, host: str, port: int, calibration: Path | None) -> None:
    """Serve the model over HTTP: a page to try it out in a browser, and JSON routes for programs.

    --threads is how many requests are computed at a time. Without --host, only this machine reaches it.
    """
    extras.require("serve", "a service")
    bundle, threads, memory = options
    vae = terminal.load((bundle, 1, memory))
    from vae_runtime.bundle import CALIBRATION
    from vae_runtime.detector import Detector
    from vae_runtime.serve import listen
    from vae_runtime.serve_limits import Limits
    from vae_runtime.threads import count

    carried = calibration is not None or CALIBRATION in vae.manifest.files
    detector = Detector.load(vae, calibration) if carried else None
    server, addresses = listen(vae, host, port, detector, Limits(at_once=count(threads)))
    if host not in _OWN:
        terminal.note("whoever reaches this machine by network may use it; there is no password and no encryption")
    click.echo(f"serving {' and '.join(addresses)}, Ctrl-C ends it")
    _run(server)


def _run(server: "BaseWSGIServer") -> NoReturn:
    """Serve until a signal ends it, which is raised again: waitress takes Terminated for an error of one connection."""
    heard: list[int] = []

    def terminate(number: int, frame: object) -> NoReturn:
        heard.append(number)
        raise SystemExit

    when_ended(terminate)
    with suppress(SystemExit, KeyboardInterrupt):  # of a second signal, while requests come to their ends
        server.run()
    raise Terminated(heard[0]) if heard else KeyboardInterrupt
