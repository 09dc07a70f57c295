"""The settings of a run: what cannot be is refused, and presets fill what is not given."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from vae_runtime import images
from vae_runtime.errors import ArgumentError
from vae_runtime.observation import Observation
from vae_train.config import (
    ACTIVATIONS,
    ARCHITECTURES,
    GRADIENTS,
    LIKELIHOODS,
    PART_OF,
    PRECISIONS,
    PRESETS,
    Config,
    DataConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimiserConfig,
    default_preset,
    parse,
)

SIZES = ["latent_dim", "samples", "blocks", "dense", "epochs", "batch_size", "steps", "patience"]
WEIGHTS = ["beta", "warm_up", "free_bits"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *((name, size) for name in SIZES for size in (0, -1, 1_000_001)),
        *((name, weight) for name in WEIGHTS for weight in (-1e-9, math.inf, math.nan)),
        *(("lr", lr) for lr in (0.0, -1.0, math.inf, math.nan)),
        *(("channels", channels) for channels in (0, 2, 4)),
        *(("levels", levels) for levels in (0, -1, images.FULL_SCALE + 1)),
        *(("image_size", size) for size in ((0, 8), (8, -1), (8, 1_000_001), (8,))),
        ("hidden", ()),
        *((name, "other") for name in ("likelihood", "architecture", "activation", "gradient", "precision")),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: Any) -> None:
    """Wrong usage, with the setting and its value in one line that ends in advice."""
    with pytest.raises(ArgumentError) as caught:
        PRESETS["tutorial"].replace(**{setting: value})
    what, which = {"lr": ("learning rate", value), "hidden": ("hidden", value)}.get(setting, (setting, value))
    message = str(caught.value)
    assert what in message.split(":")[0]
    which = next((side for side in which if not 1 <= side <= 1_000_000), which) if setting == "image_size" else which
    assert f": {which}; give " in message


def test_a_hidden_layer_out_of_range_is_named() -> None:
    """The message counts the layers from 0."""
    with pytest.raises(ArgumentError, match="hidden layer 1 out of range: 0; give 1 to"):
        PRESETS["tutorial"].replace(hidden=(8, 0))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        *((name, [1, 1_000_000]) for name in SIZES),
        *((name, [0.0, 3.5]) for name in WEIGHTS),
        ("lr", [1e-30, 1e30]),
        ("channels", [1, 3, None]),
        ("image_size", [None, (1, 1_000_000)]),
        ("levels", [1, 65535, None]),
        ("likelihood", LIKELIHOODS),
        ("architecture", ARCHITECTURES),
        ("activation", ACTIVATIONS),
        ("gradient", GRADIENTS),
        ("precision", PRECISIONS),
    ],
)
def test_the_ends_of_each_range_are_allowed(setting: str, values: list[Any]) -> None:
    """What the messages offer is taken."""
    for value in values:
        part = getattr(PRESETS["tutorial"].replace(**{setting: value}), PART_OF[setting])
        assert getattr(part, setting) == value


@pytest.mark.parametrize("setting", [{"beta": 0.5}, {"warm_up": 1.0}, {"free_bits": 0.1}])
def test_a_weighted_kl_is_for_one_sample(setting: dict[str, float]) -> None:
    """The importance-weighted bound has no KL to weigh; one sample has."""
    assert PRESETS["tutorial"].replace(samples=1, **setting)
    with pytest.raises(ArgumentError, match="--samples 3; leave out --beta, --warm-up and --free-bits, or --samples"):
        PRESETS["tutorial"].replace(samples=3, **setting)


def test_replace_changes_what_is_given_alone() -> None:
    """None means not given; the preset stays as it was."""
    before = PRESETS["deep"]
    changed = before.replace(epochs=9, lr=None, hidden=(7,), beta=0.0)
    assert changed == dataclasses.replace(
        before,
        network=dataclasses.replace(before.network, hidden=(7,)),
        objective=dataclasses.replace(before.objective, beta=0.0),
        optimiser=dataclasses.replace(before.optimiser, epochs=9),
    )
    assert PRESETS["deep"] is before
    assert before.network.hidden == (512, 512)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_know_their_name_and_survive_json(name: str) -> None:
    """Each preset is a valid config under its own name, and comes back from JSON."""
    config = PRESETS[name]
    assert config.preset == name
    assert parse(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_settings_of_the_first_release_are_read() -> None:
    """They lay in one list, a square's size was one number, and `binarise` stood beside the likelihood."""
    values = {
        "preset": "resnet", "dataset": "photos", "image_size": 16, "channels": 3, "likelihood": "bernoulli",
        "binarise": True, "network": "resnet", "hidden": [8, 4], "activation": "silu", "blocks": 2, "dense": 9,
        "model": None, "latent_dim": 3, "samples": 1, "gradient": "total", "beta": 0.5, "warm_up": 1.0,
        "free_bits": 0.1, "epochs": 7, "batch_size": 5, "lr": 0.01, "precision": "float32", "seed": 4,
    }  # fmt: skip
    assert parse(values) == Config(
        "resnet",
        DataConfig("photos", (16, 16), 3),
        NetworkConfig("resnet", (8, 4), "silu", 2, 9, latent_dim=3),
        ObjectiveConfig(gradient="total", beta=0.5, warm_up=1.0, free_bits=0.1),
        OptimiserConfig(7, 5, 0.01, seed=4),
    )
    assert parse({**values, "image_size": [4, 6]}).data.image_size == (4, 6)


def test_the_documentation_has_the_presets() -> None:
    """Its table has each preset's latents, steps, batch size, learning rate and precision of products."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    shown = {
        row[0]: [*(float(cell.replace(",", "")) for cell in row[2:6]), row[6]] for row in rows if row[0] in PRESETS
    }
    sizes = {name: (p.network.latent_dim, p.optimiser) for name, p in PRESETS.items()}
    assert shown == {name: [dim, o.steps, o.batch_size, o.lr, o.precision] for name, (dim, o) in sizes.items()}


def test_the_default_preset_depends_on_the_channels() -> None:
    """Grey images: tutorial. Colour: a network and a likelihood of colours."""
    assert default_preset(Observation.image((1, 8, 8))) == "tutorial"
    assert default_preset(Observation("vector", (5,), None)) == "vector"
    colour = PRESETS[default_preset(Observation.image((3, 8, 8)))].network
    assert (colour.architecture, colour.likelihood) == ("resnet", "discretised-logistic")
