"""Judge frames as from a camera, in constant memory, and flag the odd ones: `python examples/camera.py FOLDER`."""

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import numpy as np

    from vae_runtime import VAE, Detector, InputError, VaeError
    from vae_runtime.draws import Floats
    from vae_runtime.observation import Shape
    from vae_runtime.sources import SUFFIXES
except ImportError as error:
    todo = shlex.join([sys.executable, "-m", "pip", "install", str(Path(__file__).resolve().parents[1])])
    print(f"camera.py: error: {error}; install what it needs: {todo}", file=sys.stderr)
    sys.exit(6)

# Names and frames, float32 [1, C, H, W] in [0, 1]. Your camera is a generator in place of the two below;
# vae_runtime.images.fit(picture, shape, vae.manifest.preprocessing) turns any Pillow image into a frame.
Frames = Iterator[tuple[str, Floats]]


def folder(path: Path, vae: VAE) -> Frames:
    """The images of a folder in the order of their names, passing over those that cannot be read."""
    files = sorted(file for file in path.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError("no images in the folder", path, "put PNG or JPEG files there")
    for file in files:
        try:
            yield str(file), vae.read([file]).load().x
        except VaeError as error:
            print(f"camera.py: {error}", file=sys.stderr)


def stream(shape: Shape) -> Frames:
    """Frames from standard input, H x W x C bytes each, as `ffmpeg -f rawvideo -pix_fmt gray -s 28x28` writes them."""
    channels, height, width = shape
    size, number = height * width * channels, 0
    while data := sys.stdin.buffer.read(size):
        number += 1
        if len(data) < size:
            raise InputError("stream ends within a frame", f"frame {number}", f"send {width}x{height}, {size} bytes")
        levels = np.frombuffer(data, np.uint8).reshape(1, height, width, channels)
        yield f"frame {number}", levels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def watch(detector: Detector, frames: Frames) -> None:
    """Print a line for each frame: score, p-value, and where it is odd the figure that is oddest."""
    seen = odd = 0
    try:
        for name, x in frames:
            verdict = detector.verdict(x)  # on this frame alone: the others make no difference
            seen, odd = seen + 1, odd + int(verdict.odd[0])
            why = f"  ODD: {verdict.oddest[0]}" if verdict.odd[0] else ""
            print(f"{name}  score {verdict.score[0]:.2f}  p {verdict.p[0]:.4f}{why}", flush=True)
    except KeyboardInterrupt:
        pass
    print(f"{seen} frames, {odd} odd")


def main() -> None:
    """Watch a folder, or frames from standard input."""
    parser = argparse.ArgumentParser(description="Flag odd frames.")
    parser.add_argument("frames", help="folder of images, or - for raw frames from standard input")
    parser.add_argument("--calibration", help="what `vae-infer calibrate` wrote (default: what the bundle carries)")
    parser.add_argument("--bundle", help="bundle folder (default: the one that ships with the package)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may leave early
    try:
        vae = VAE.load(arguments.bundle)
        detector = Detector.load(vae, arguments.calibration)
        source = Path(arguments.frames)
        piped = source == Path("-")
        frames = stream(vae.observation.shape) if piped else folder(source, vae)
        watch(detector, frames)
    except VaeError as error:
        print(f"camera.py: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
