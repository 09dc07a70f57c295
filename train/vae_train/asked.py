"""From what a person asks for, a preset and some settings by name, to all settings of a training on this data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_runtime.errors import ArgumentError
from vae_runtime.observation import Observation
from vae_train import data
from vae_train.config import DATASETS, Config, DataConfig, default_preset
from vae_train.config import preset as preset_for
from vae_train.datasets import Streams
from vae_train.given import Arrays
from vae_train.listener import silent

_OF_DATA = ("columns", "encode", "label", "normal", "window", "stride")
_LAYERS = {"resnet": {"blocks", "dense"}, "conv1d": {"dense"}}  # of each architecture, those that others lack


def configured(
    dataset: str,
    preset: str | None,
    settings: dict[str, Any],
    given: Arrays | Streams | None = None,
    say: Callable[[str], None] = silent,
) -> Config:
    """All settings: those in `settings` that are not None, and of the preset, or of the data's own, what they lack.

    dataset: a named set, a path, or what data in memory, `given`, is called. `say` is told of a window that is chosen.
    Raises ArgumentError for settings that do not go together, and what looking at the data raises.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    if preset == "series" and "window" not in settings and (given or Path(dataset).exists()):
        settings["window"] = given.usual_window() if given else data.usual_window(dataset)
        say(f"{settings['window']} rows are a window; --window says otherwise")
    if "window" in settings:
        if settings.get("held_out") == "hash":
            todo = "leave out --split: windows overlap, and those of some blocks of rows are kept"
            raise ArgumentError("--split hash is for rows", f"--window {settings['window']}", todo)
    elif settings.get("held_out") == "blocks":
        raise ArgumentError(
            "--split blocks is for rows that are cut into windows", dataset, "add --window, or leave it out"
        )
    observation, count = _looked_at(dataset, settings, given)
    chosen = preset_for(preset or default_preset(observation), observation, count)
    config = chosen.replace(dataset=dataset, **settings)
    own = _LAYERS.get(config.network.architecture, set())
    if config.network.model is not None:
        own = set()
    if unused := sorted(({"blocks", "dense"} & settings.keys()) - own):
        which = config.network.model or config.network.architecture
        raise ArgumentError(f"--{unused[0]} is for layers that these networks do not have", which, "leave it out")
    return config


def _looked_at(dataset: str, settings: dict[str, Any], given: Arrays | Streams | None) -> tuple[Observation, int]:
    """What is to be trained on, and how many there are; channels are given of a folder's images."""
    known = {name: settings[name] for name in _OF_DATA if name in settings}
    if given:
        config = DataConfig(dataset, **known)
        return given.observation(config), given.count(config)
    if dataset in DATASETS or not Path(dataset).exists():
        return Observation.image((1, 28, 28)), 0
    channels = settings.get("channels") if Path(dataset).is_dir() else None
    return data.look(DataConfig(dataset, channels=channels, **known))
