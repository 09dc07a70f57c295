"""Serve one VAE over HTTP, pictures of samples and scores of images: `python examples/service.py --port 8000`."""

import argparse
import shlex
import socket
import sys
from dataclasses import asdict
from pathlib import Path

try:
    from flask import Flask, Response, request
    from waitress import create_server
    from werkzeug.exceptions import HTTPException

    from vae_runtime import VAE, ArgumentError, InputError, VaeError, score
    from vae_runtime.outputs import grid, png
except ImportError as error:
    root = Path(__file__).resolve().parents[1]
    todo = shlex.join([sys.executable, "-m", "pip", "install", f"{root}[examples]"])
    print(f"service.py: error: {error}; install what it needs: {todo}", file=sys.stderr)
    sys.exit(6)

MOST_IMAGES, MOST_DRAWS, MOST_BYTES = 256, 1000, 4 << 20
UNITS = {
    **{name: f"{name}_nats" for name in ("elbo", "standard_error", "reconstruction", "kl")},
    "percentile": "percentile_percent",
}


def make_app(vae: VAE) -> Flask:
    """The service of one VAE, which all request threads share."""
    app = Flask("service")
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES

    @app.get("/health")
    def health() -> dict[str, object]:
        return {"status": "ok", "observation": asdict(vae.observation)}

    @app.get("/sample")
    def sample() -> Response:
        n, seed = integer("n", 16, 1, MOST_IMAGES), integer("seed", 0)
        x = vae.sample(n, seed)  # float32 [n, C, H, W]
        return Response(png(grid(n, vae.observation.shape, [x]), scale=1), mimetype="image/png")

    @app.post("/score")
    def scores() -> dict[str, object]:
        draws, seed = integer("samples", 16, 1, MOST_DRAWS), integer("seed", 0)
        images = vae.read([request.get_data()])
        if len(images) > MOST_IMAGES:
            raise InputError("too many images", f"{len(images):,}", f"send at most {MOST_IMAGES} at a time")
        columns = score(vae, images.batches(MOST_IMAGES), draws, seed).columns()
        named = {UNITS.get(name, name): column for name, column in columns.items()}
        rows = [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
        answer: dict[str, object] = {"images": rows} if len(rows) > 1 else rows[0]
        return {**answer, "samples": draws, "seed": seed}

    @app.errorhandler(VaeError)
    @app.errorhandler(HTTPException)  # an unknown path, a body that is too long
    def refuse(error: VaeError | HTTPException) -> tuple[dict[str, str], int]:
        status = 400 if isinstance(error, ArgumentError | InputError) else 500
        return {"error": str(error)}, getattr(error, "code", status)

    return app


def integer(name: str, default: int, least: int = 0, most: int = 2**64 - 1) -> int:
    """An integer from the request's query."""
    text = request.args.get(name, str(default))
    if not (text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
        raise ArgumentError(f"{name} out of range", text[:20], f"give an integer from {least} to {most:,}")
    return int(text)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve one VAE over HTTP, to this machine.")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--bundle", help="bundle folder (default: the one that ships with the package)")
    arguments = parser.parse_args()
    try:
        vae = VAE.load(arguments.bundle, threads=1)  # a request keeps one core busy; eight run side by side
        vae.reconstruct(vae.sample(1))  # opens both graphs: a bad bundle shows now, and the first request is fast
        listener = socket.create_server(("127.0.0.1", arguments.port))
        most = 4 * MOST_BYTES  # a body that is longer still is not even read
        server = create_server(make_app(vae), sockets=[listener], threads=8, max_request_body_size=most)
        print("serving http://{}:{}, Ctrl-C ends it".format(*listener.getsockname()), flush=True)
        server.run()
    except (VaeError, OSError, OverflowError) as error:
        print(f"service.py: error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
