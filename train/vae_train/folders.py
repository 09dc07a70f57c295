"""A person's own folder of image files, read as the runtime reads them; folders inside it are classes."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_runtime import images, sources, threads
from vae_runtime.errors import InputError
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import IMAGE, Observation
from vae_train import levels
from vae_train.config import Config, DataConfig
from vae_train.data import Data, apart, refuse_options, silent, split
from vae_train.levels import Pixels

DEFAULT_SIZE = 32  # of images whose files differ, or are large
LARGEST_SIDE = 128  # that is taken as it is
_NEARLY_ALL = 0.9
_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"}  # Pillow's modes


def observation(data: DataConfig) -> Observation:
    """The images' kind and shape, as asked for or as their files have it."""
    return _told(data, 1, silent)


def fitted(config: Config, say: Callable[[str], None]) -> Config:
    """The settings with size and channels as the files have them, where these are not given.

    `say` is told where the size is not that of every file.
    """
    network = config.network
    resnet = network.model is None and network.architecture == "resnet"
    channels, height, width = _told(config.data, 2 ** len(network.hidden) if resnet else 1, say).shape
    return config.replace(image_size=(height, width), channels=channels)


def _told(data: DataConfig, multiple: int, say: Callable[[str], None]) -> Observation:
    """An image's shape, told from the headers of the files, with sides that are multiples of a number."""
    if data.channels and data.image_size:
        return Observation.image((data.channels, *data.image_size))
    files = [p for p in sources.walk(Path(data.dataset)) if p.suffix.lower() in sources.SUFFIXES]
    found = [header for header in threads.ordered_map(torch.get_num_threads(), _header, files) if header]
    channels = data.channels or (1 if found and all(mode in _GREY for _, mode in found) else 3)
    size = data.image_size or _size(Counter(sides for sides, _ in found), multiple, say)
    return Observation.image((channels, *size))


def _header(file: Path) -> tuple[tuple[int, int], str] | None:
    """Height, width and mode of an image; None where `load` will say what is wrong."""
    try:
        return sources.picture_header(file)
    except InputError:
        return None


def _size(sizes: Counter[tuple[int, int]], multiple: int, say: Callable[[str], None]) -> tuple[int, int]:
    """Height and width for files of these sizes: that of nearly all of them, unless it is large."""
    if not sizes:
        return DEFAULT_SIZE, DEFAULT_SIZE
    (height, width), count = sizes.most_common(1)[0]
    own, total = f"{height}x{width}", sizes.total()
    chosen = max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)
    if count < _NEARLY_ALL * total:
        chosen, why = (DEFAULT_SIZE, DEFAULT_SIZE), f"files have {len(sizes):,} sizes, {own} is the most frequent"
    elif max(height, width) > LARGEST_SIDE:
        chosen, why = (DEFAULT_SIZE, DEFAULT_SIZE), f"files of {own} are large"
    elif chosen != (height, width):
        why = f"files have {own}, and sides must be divisible by {multiple}"
    elif count < total:
        why = f"{count:,} of {total:,} files have this size"
    else:
        return chosen
    say(f"images are {chosen[0]}x{chosen[1]} (height x width): {why}; --image-size sets another size")
    return chosen


def count(data: DataConfig) -> int:
    """0: images are not counted before they are read."""
    return 0


def load(config: Config, warn: Callable[[str], None], say: Callable[[str], None]) -> Data:
    """The images in the folder that `config.data` names, and in the folders inside.

    `warn` is told which files could not be read, and what is lost, `say` how many images were fitted. The name of the
    first folder inside is an image's class. Raises InputError where none can be read, or they are too few.
    """
    refuse_options(config.data, ("test",))
    kind, full_scale = observation(config.data), config.data.levels
    roots = [Path(path) for path in (config.data.dataset, config.data.test) if path is not None]
    path, kept = roots[0], [p for root in roots[1:] for p in sources.files_in(root, IMAGE)]
    trained = apart(sources.files_in(path, IMAGE), kept, say)
    within = dict.fromkeys(trained, path) | dict.fromkeys(kept, roots[-1])
    files, suffixes = list(within), [p.suffix.lower() for root in roots for p in sources.walk(root)]
    others = Counter(suffix or "no suffix" for suffix in suffixes if suffix not in sources.SUFFIXES)
    if files and others:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common())
        warn(f"{others.total()} files of other kinds are not looked at: {kinds}")
    classes = [p.relative_to(root).parts[0] if p.parent != root else "all" for p, root in within.items()]
    found, bad = [], []
    fitted: dict[Path, str] = {}

    def read(file: Path) -> tuple[Pixels, str] | InputError:
        try:
            batch = sources.Observations([file], kind, Preprocessing(full_scale)).load()
        except InputError as error:
            return error
        return levels.kept(batch.x), batch.fitted.get(str(file), "")

    results = threads.ordered_map(torch.get_num_threads(), read, files)
    for file, label, result in zip(files, classes, results, strict=True):
        if isinstance(result, InputError):
            bad.append(f"{file.relative_to(within[file])} ({result.what})")
        else:
            found.append((result[0], label))
            fitted[file] = result[1]
    if not found:
        which = f"{path} ({bad[0]})" if bad else path
        raise InputError("no image could be read", which, f"put {', '.join(sorted(sources.SUFFIXES))} files there")
    tested = sum(within[file] != path for file in fitted)  # what could be read
    if len(roots) > 1 and not 0 < tested < len(found):
        raise InputError("no image could be read", roots[not tested], "put some there to train and to test on")
    if bad:
        warn(f"{len(bad)} of {len(files)} image files cannot be read: {', '.join(bad)}; left out")
    if changed := [(file, change) for file, change in fitted.items() if change]:
        (first, change), ways = changed[0], len({change for _, change in changed})
        of = f" of {ways} sizes or modes" if ways > 1 else ""
        which = f"{len(changed):,} of {len(files):,} image files{of}, {first.relative_to(within[first])} first,"
        say(f"{which} fitted {change}, cut at the centre where needed; --image-size and --channels set another size")
    if halved := sum(images.READ_AS_8_BITS in change for change in fitted.values()):
        warn(f"{halved} of {len(files)} image files have colours of 16 bits, of which 8 are read")
    names = sorted({label for _, label in found})
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[label] for _, label in found], np.int64)
    pixels, rounded = levels.observed(levels.joined([x for x, _ in found]), config.network.likelihood, warn)
    how = "upright, transparency over black, {} channels, cut at the centre and resized to {}x{} (bicubic)"
    preprocessing: dict[str, Any] = {"levels": how.format(*kind.shape), **rounded}
    preprocessing |= {"full_scale": full_scale} if full_scale else {}
    return split(pixels, labels, names, kind, preprocessing, len(bad), tested)
