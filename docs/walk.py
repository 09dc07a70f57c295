"""Write docs/images/walk.gif, the moving picture of the README: samples of the models that ship, one into another.

Example:
    python docs/walk.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from vae_runtime import VAE
from vae_runtime.latents import path
from vae_runtime.outputs import grid

OUT = Path(__file__).parent / "images" / "walk.gif"
COLUMNS, STOPS, STEPS, REST, FRAME = 12, 4, 7, 6, 90  # FRAME in milliseconds; a sample rests for REST of them


def frames(name: str, seed: int) -> np.ndarray:
    """A row of images on their way around a ring of samples: float32 [frames, COLUMNS, C, H, W]."""
    vae = VAE.load(name)
    mu, _ = vae.encode(vae.sample(COLUMNS * STOPS, seed))
    rings = vae.prior.to_noise(mu).reshape(COLUMNS, STOPS, *mu.shape[1:])
    noise = [
        [
            point
            for i in range(STOPS)
            for point in [*path(ring[i], ring[(i + 1) % STOPS], STEPS), *[ring[(i + 1) % STOPS]] * REST]
        ]
        for ring in rings
    ]
    rows = np.array(noise, np.float32).swapaxes(0, 1)  # [frames, COLUMNS, latents]
    return np.stack([vae.decode(vae.prior.from_noise(row)) for row in rows])


def main() -> None:
    """Draw, and write."""
    rows = [frames("mnist", seed) for seed in (1,)] + [frames("fashion-mnist", seed) for seed in (1,)]
    pictures = []
    for parts in zip(*rows, strict=True):
        images = np.concatenate(parts)
        levels = grid(len(images), images.shape[1:], [images], COLUMNS)[..., 0]
        large = Image.fromarray(levels).resize((2 * levels.shape[1], 2 * levels.shape[0]), Image.Resampling.BICUBIC)
        pictures.append(large.quantize(16))
    pictures[0].save(OUT, save_all=True, append_images=pictures[1:], duration=FRAME, loop=0, optimize=True)


if __name__ == "__main__":
    main()
