"""A small set of one's own: 300 tiles of 32x32 out of an image, trained on, beside the best independent-pixel model.

    python benchmarks/tiles.py OUT IMAGE... [-- OPTIONS OF VAE-TRAIN]

Such as scikit-image's ihc, brick, grass, gravel and coffee, PNG files in the folder of its `data` module. The tiles of
each lie in a folder in OUT, the run beside it. Those that vae-train keeps for testing are cut out of the right fifth of
the image, the others out of the rest: none of one side overlaps one of the other. Printed are bits per dimension of the
test tiles, of their ELBO and of two histograms of the 256 levels, each fitted to the training tiles with add-one
smoothing: one for each pixel and channel, and one for all pixels of a channel.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vae_train import kept, run_folder
from vae_train.bounds import bits_per_dimension
from vae_train.data import in_test

TILES, SIDE, TEST = 300, 32, 30
Levels = NDArray[np.uint8]


def cut(image: Levels, seed: int = 0) -> Levels:
    """Tiles [300, C, 32, 32] at random places of an image [H, W, C]: where one lies follows from its part by hash."""
    noise = np.random.default_rng(seed)
    height, width = image.shape[0] - SIDE + 1, image.shape[1]
    border = width * 4 // 5
    found: dict[bool, list[Levels]] = {False: [], True: []}
    while (done := sum(map(len, found.values()))) < TILES:
        right = done < TEST
        y = noise.integers(height)
        x = noise.integers(border, width - SIDE + 1) if right else noise.integers(border - SIDE + 1)
        tile = np.ascontiguousarray(image[y : y + SIDE, x : x + SIDE].transpose(2, 0, 1))
        if in_test(tile[None])[0] == right:
            found[right].append(tile)
    return np.stack([*found[False], *found[True]])


def independent(train: Levels, test: Levels, pooled: bool) -> float:
    """Bits per dimension of the test tiles under a histogram for each pixel and channel, or for each channel."""
    nats = kept.histograms(torch.from_numpy(train), torch.from_numpy(test), pooled)
    return bits_per_dimension(float(nats.mean()), test[0].size)


def main() -> None:
    """Cut, train, and print a line for each image."""
    words, options = sys.argv[1:], []
    if "--" in words:
        words, options = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    given = parser.parse_args(words)
    out, paths = given.out, given.images
    print(f"{'bits/dimension':14}{'by pixel':>9}{'pooled':>8}{'ELBO':>8}{'better by':>10}{'steps':>8}{'minutes':>9}")
    for path in paths:
        with Image.open(path) as image:
            levels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        tiles = cut(levels.reshape(*levels.shape[:2], -1))
        folder, run = out / path.stem, out / f"{path.stem}-run"
        folder.mkdir(parents=True, exist_ok=True)
        for i, tile in enumerate(tiles):
            Image.fromarray(np.squeeze(tile.transpose(1, 2, 0))).save(folder / f"{i:03d}.png")
        words = ["vae-train", "--dataset", folder, "--preset", "resnet-colour", *options, "--out", run]
        subprocess.run(list(map(str, words)), check=True, stdout=subprocess.DEVNULL)
        tested = in_test(tiles)
        models = [independent(tiles[~tested], tiles[tested], pooled) for pooled in (False, True)]
        settings, rows = run_folder.read_settings(run), run_folder.read_metrics(run)
        steps = rows[-1]["epoch"] * settings.config.optimiser.steps_per_epoch(int((~tested).sum()))
        minutes = sum(row["seconds"] for row in rows) / 60
        elbo = json.loads((run / run_folder.EVALUATION).read_text())["figures"]["elbo"]["mean"]
        bits = bits_per_dimension(elbo, tiles[0].size)
        cells = f"{models[0]:9.3f}{models[1]:8.3f}{bits:8.3f}{min(models) - bits:10.3f}{steps:8,.0f}{minutes:9.1f}"
        print(f"{path.stem:14}{cells}", flush=True)


if __name__ == "__main__":
    main()
