"""Watch frames as from a camera, in constant memory, and flag the odd ones: `python examples/camera.py FOLDER`."""

import argparse
import shlex
import signal
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

try:
    import numpy as np

    from vae_runtime import VAE, ArgumentError, InputError, VaeError, score
    from vae_runtime.draws import Floats
    from vae_runtime.observation import Shape
    from vae_runtime.sources import SUFFIXES
except ImportError as error:
    todo = shlex.join([sys.executable, "-m", "pip", "install", str(Path(__file__).resolve().parents[1])])
    print(f"camera.py: error: {error}; install what it needs: {todo}", file=sys.stderr)
    sys.exit(6)

DRAWS, SEED = 16, 0  # of z for each frame, and of the binary image where it is grey
RECENT = 100  # frames that the last line sums up

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


def watch(vae: VAE, frames: Frames, threshold: float) -> None:
    """Print a line for each frame, ODD where fewer than `threshold` percent of the model's test images score lower.

    Raises ArgumentError where they are too few to rank as low as that.
    """
    ranks = vae.ranks
    if threshold <= ranks.lowest:
        which = f"a threshold of {threshold:g}%, where the {ranks.observations} test images rank no lower"
        raise ArgumentError("no frame can be odd", which, f"give --threshold above {ranks.lowest:.3g}")
    seen = odd = 0
    recent: deque[float] = deque(maxlen=RECENT)  # nats
    try:
        for name, x in frames:
            elbo = score(vae, x, DRAWS, SEED).elbo[0]  # of this frame alone: the others make no difference
            percentile = float(ranks.percentile(elbo))
            is_odd = percentile < threshold
            seen, odd = seen + 1, odd + is_odd
            recent.append(elbo)
            print(f"{name}  {elbo:.2f} nats  {ranks.describe(percentile, 'image')}{'  ODD' * is_odd}", flush=True)
    except KeyboardInterrupt:
        pass
    mean = f", mean ELBO of the last {len(recent)}: {np.mean(recent):.2f} nats" if recent else ""
    print(f"{seen} frames, {odd} odd{mean}")


def main() -> None:
    """Watch a folder, or frames from standard input."""
    parser = argparse.ArgumentParser(description="Flag odd frames.")
    parser.add_argument("frames", help="folder of images, or - for raw frames from standard input")
    parser.add_argument("--threshold", type=float, default=0.5, help="percentile below which a frame is odd")
    parser.add_argument("--bundle", help="bundle folder (default: the one that ships with the package)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may leave early
    try:
        vae = VAE.load(arguments.bundle)
        source = Path(arguments.frames)
        piped = source == Path("-")
        frames = stream(vae.observation.shape) if piped else folder(source, vae)
        watch(vae, frames, arguments.threshold)
    except VaeError as error:
        print(f"camera.py: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
