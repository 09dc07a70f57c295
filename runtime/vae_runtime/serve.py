"""Serve one VAE over HTTP: a page to try it out on a phone or a desktop, and JSON routes for programs, within limits.

Example:
    from waitress import serve
    from vae_runtime import VAE
    from vae_runtime.serve import app

    serve(app(VAE.load(threads=1)), port=8000)  # any server of WSGI will do
"""

import ipaddress
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path

import numpy as np
from flask import Flask, Response, request
from waitress import create_server
from waitress.server import BaseWSGIServer
from werkzeug.exceptions import HTTPException, SecurityError

from vae_runtime import latents, serve_requests
from vae_runtime.detector import Detector
from vae_runtime.errors import ArgumentError, InputError, ResourceError, VaeError, printable
from vae_runtime.observation import IMAGE
from vae_runtime.outputs import grid, png
from vae_runtime.serve_answers import JSON, model, scored, shown
from vae_runtime.serve_limits import Deadline, Gate, Limits, Refused
from vae_runtime.serve_requests import integer
from vae_runtime.vae import VAE

View = Callable[[Deadline], Response | JSON]

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_MOST_STEPS = 64
_LONGEST = 2000  # characters of a refusal
_MEMORY = 5  # seconds after which there may be more of it
_CONNECTIONS = 256
_SILENT = 30  # seconds after which a connection is closed that says nothing


def app(vae: VAE, detector: Detector | None = None, limits: Limits | None = None) -> Flask:
    """The service of one VAE, for any server of WSGI whose threads share it.

    vae: best loaded with threads=1, since requests run side by side. detector: gives each score a verdict. Answers of
    equal requests are equal, whatever else runs. Errors are {"error": "<what>: <which>; <what to do>"} with status 400,
    403, 404, 405, 413, or 429 and 503 with `Retry-After`. No file is opened that a request names.
    """
    limits = limits or Limits()
    served = Flask("vae_runtime", static_folder=None)
    served.config["MAX_CONTENT_LENGTH"] = limits.bytes
    served.json.sort_keys = False  # type: ignore[attr-defined]
    _add_page(served)
    _add_routes(served, vae, detector, limits)
    _add_refusals(served, limits)

    @served.after_request
    def secure(answer: Response) -> Response:
        answer.headers.update(_HEADERS)
        return answer

    return served


def _add_page(served: Flask) -> None:
    """The page and its files, read once: no path of a request is looked up in a folder."""
    files = {f"/{file.name}": file for file in _PAGE.iterdir() if file.suffix in _TYPES}
    contents = {name: (file.read_bytes(), _TYPES[file.suffix]) for name, file in files.items()}
    contents["/"] = contents.pop("/index.html")

    def page() -> Response:
        content, kind = contents[request.path]
        return Response(content, mimetype=kind)

    for name in contents:
        served.add_url_rule(name, "page", page)


def _add_routes(served: Flask, vae: VAE, detector: Detector | None, limits: Limits) -> None:
    """What programs ask, and the page."""
    gate, most, image = Gate(limits), serve_requests.most(vae, limits), vae.observation.kind == IMAGE
    facts = model(vae, detector, limits)

    def computed(*parameters: str) -> Callable[[View], Callable[[], Response | JSON]]:
        """A view that waits for its turn, and knows these parameters of a query and no others."""

        def decorated(view: View) -> Callable[[], Response | JSON]:
            @wraps(view)
            def call() -> Response | JSON:
                serve_requests.refuse_unknown(request, parameters)
                with gate.enter(request.remote_addr or "") as until:
                    return view(until)

            return call

        return decorated

    @served.get("/health")
    def health() -> JSON:
        return {"status": "ok", "observation": asdict(vae.observation)}

    @served.get("/model")
    def told() -> JSON:
        return facts

    @served.get("/sample")
    @computed("n", "seed", "mean", "format")
    def sample(until: Deadline) -> Response | JSON:
        n, seed = integer(request, "n", min(16, most), 1, most), integer(request, "seed", 0)
        mean = bool(integer(request, "mean", int(image and not vae.likelihood.binary), 0, 1))
        style = request.args.get("format", "png" if image else "json")
        batches = until.within(vae.sample_batches(n, seed, mean))
        if style == "png" and image:
            return Response(png(grid(n, vae.observation.shape, batches), scale=1), mimetype="image/png")
        if style != "json":
            raise ArgumentError("no such format", style[:20], "ask for json" + ", or png" * image)
        return {"observations": [each for batch in batches for each in shown(vae, batch)], "seed": seed, "mean": mean}

    @served.post("/score")
    @computed("samples", "seed", "show")
    def scores(until: Deadline) -> JSON:
        draws, seed = integer(request, "samples", 16, 1, limits.draws), integer(request, "seed", 0)
        show = bool(integer(request, "show", 0, 0, 1))
        sent = serve_requests.observations(vae, request, limits)
        return scored(vae, detector, sent, draws, seed, show, until)

    @served.post("/encode")
    @computed()
    def encode(until: Deadline) -> JSON:
        sent = serve_requests.observations(vae, request, limits)
        parts = map(np.concatenate, zip(*map(vae.encode, until.parts(sent.x, vae.rows)), strict=True))
        each = zip(sent.names, *(part.reshape(len(sent.x), -1).tolist() for part in parts), strict=True)
        return {"latents": [dict(zip(("name", "mu", "logsigma"), row, strict=True)) for row in each]}

    @served.post("/decode")
    @computed()
    def decode(until: Deadline) -> JSON:
        z = serve_requests.latents(vae, request, limits)
        return {"observations": [x for each in until.parts(z, vae.rows) for x in shown(vae, vae.decode(each))]}

    @served.post("/interpolate")
    @computed("steps")
    def interpolate(until: Deadline) -> JSON:
        steps = integer(request, "steps", min(9, most), 2, min(most, _MOST_STEPS))
        sent = serve_requests.observations(vae, request, limits)
        if len(sent.x) != 2:
            raise InputError(f"not two {vae.observation.noun}s", len(sent.x), "send the two ends of the way")
        until.check()
        return {"observations": shown(vae, latents.interpolate(vae, sent.x[0], sent.x[1], steps))}


def _add_refusals(served: Flask, limits: Limits) -> None:
    """What is answered instead: one line of JSON, and the status that belongs to it."""

    @served.before_request
    def refuse_other_sites() -> Response | None:
        if request.method != "POST" or request.headers.get("Sec-Fetch-Site") != "cross-site":
            return None
        return _refusal(f"request of another site: {request.headers.get('Origin')}; use the page of this one", 403)

    @served.errorhandler(VaeError)
    def refuse(error: VaeError) -> Response:
        if isinstance(error, Refused):
            return _refusal(str(error), error.status, error.after)
        if isinstance(error, ResourceError):  # of memory: nothing is written here
            return _refusal(str(error), 503, _MEMORY)
        return _refusal(str(error), 400 if isinstance(error, ArgumentError | InputError) else 500)

    @served.errorhandler(MemoryError)
    def refuse_more(error: MemoryError) -> Response:
        return _refusal("out of memory: this machine has too little; send less at a time", 503, _MEMORY)

    @served.errorhandler(SecurityError)  # of a name that is not in TRUSTED_HOSTS
    def refuse_other_names(error: SecurityError) -> Response:
        todo = "use http://127.0.0.1 or http://localhost, or start it with --host"
        return _refusal(f"not answered by this name: {request.headers.get('Host')}; {todo}", 400)

    @served.errorhandler(HTTPException)  # an unknown path or method, a body that is too long, and what nobody foresaw
    def refuse_by_status(error: HTTPException) -> Response:
        methods = sorted({*(getattr(error, "valid_methods", None) or [])} - {"HEAD", "OPTIONS"})
        sayings = {
            404: f"no such page: {request.path}; see /",
            405: f"no {request.method}: {request.path}; use {' or '.join(methods)}",
            413: f"body too large: {request.content_length or 0:,} bytes; send at most {limits.bytes:,}",
        }
        code = error.code or 500
        return _refusal(sayings.get(code, f"{error.name}: {request.path}; see what the service itself prints"), code)


def _refusal(text: str, status: int, after: int = 0) -> Response:
    """A line of JSON that says what is wrong, and in how many seconds to come again, if that helps."""
    headers = {"Retry-After": str(after)} if after else {}
    line = json.dumps({"error": printable(text[:_LONGEST])}) + "\n"
    return Response(line, status, headers, mimetype="application/json")


def listen(
    vae: VAE,
    host: str = "127.0.0.1",
    port: int = 8000,
    detector: Detector | None = None,
    limits: Limits | None = None,
) -> tuple[BaseWSGIServer, list[str]]:
    """A server of the service that listens, and the addresses at which it is reached; its `run` serves until Ctrl-C.

    vae, detector, limits: as `app` takes them. port: 0 for any that is free. Raises ArgumentError where it cannot
    listen there.
    """
    limits = limits or Limits()
    service = app(vae, detector, limits)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = family == socket.AF_INET6 and ipaddress.ip_address(host).is_unspecified and socket.has_dualstack_ipv6()
        listener = socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=both)
    except (OSError, OverflowError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while ")[0]
        raise ArgumentError(f"cannot listen ({reason})", f"{host}:{port}", "choose another port or host") from None
    bound, port = listener.getsockname()[:2]
    if ipaddress.ip_address(bound).is_loopback:  # a page elsewhere whose name leads here is not answered
        service.config["TRUSTED_HOSTS"] = ["localhost", "127.0.0.1", "[::1]", bound, host]
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a busy service says so to those who ask
    server = create_server(
        service, sockets=[listener], threads=limits.at_once + limits.waiting + 4,  # the last ones say that it is busy
        connection_limit=_CONNECTIONS, channel_timeout=_SILENT, asyncore_use_poll=True, ident=None,
        max_request_header_size=16 << 10, max_request_body_size=2 * limits.bytes, inbuf_overflow=64 << 10,
    )  # fmt: skip
    return server, [f"http://{f'[{each}]' if ':' in each else each}:{port}" for each in _reached(bound)]


def _reached(bound: str) -> list[str]:
    """The addresses behind the one that a server is bound to, which may stand for all."""
    if not ipaddress.ip_address(bound).is_unspecified:
        return [bound]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:  # sends nothing
        try:
            asked.connect(("192.0.2.1", 9))
            return ["127.0.0.1", asked.getsockname()[0]]
        except OSError:  # no network
            return ["127.0.0.1"]
