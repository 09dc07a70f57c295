"""Preprocessing said as data: torchvision's transforms translated, or named where they cannot be."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

import vae_export
from vae_export import preprocessing
from vae_export.preprocessing import Images
from vae_runtime import ArgumentError, records
from vae_runtime.manifest import Preprocessing, Step
from vae_runtime.observation import Observation
from vae_runtime.vae import VAE as RuntimeVAE

COLOUR = Observation.image((3, 20, 16))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUARE = (Step(resize=(64,)), Step(crop=(64, 64)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (v1.ToTensor(), Images()),
        (v1.Compose([v1.ToTensor(), v1.Normalize(0.5, 0.5)]), Images((0.5,), (0.5,))),
        (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]),
         Images(MEAN, STD)),
        ([v1.Resize((8, 9)), v1.ToTensor()], Images(steps=(Step(resize=(8, 9)),))),
        (v1.Compose([v1.Resize(64), v1.CenterCrop(64), v1.ToTensor()]), Images(steps=SQUARE)),
        (torch.nn.Sequential(v2.Resize([64]), v2.CenterCrop(64), v1.ConvertImageDtype(torch.float32)),
         Images(steps=SQUARE)),
        ([v1.ToPILImage(), v1.Grayscale(), v1.ToTensor()], Images(colours="grey")),
        ([v2.RGB(), v2.Resize(9, "bicubic"), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)],
         Images(steps=(Step(resize=(9,), filter="bicubic"),))),
        ([v2.ToImage(), v2.ToDtype(torch.uint8, scale=True), v2.Resize(9), v2.ConvertImageDtype()],
         Images(steps=(Step(resize=(9,)),))),
        (ResNet18_Weights.DEFAULT.transforms(), Images(MEAN, STD, None, (Step(resize=(256,)), Step(crop=(224, 224))))),
        ({"mean": 0.5, "std": np.float32(0.5), "steps": [{"resize": 64}, {"crop": 64}]},
         Images((0.5,), (0.5,), None, SQUARE)),
        ({"colours": "BGR", "mean": torch.tensor(MEAN, dtype=torch.float64)}, Images(MEAN, colours="BGR")),
        ({"transforms": [v1.CenterCrop(64), v1.ToTensor()], "colours": "BGR", "mean": 0.5},
         Images((0.5,), colours="BGR", steps=(Step(crop=(64, 64)),))),
        (Images(MEAN, STD), Images(MEAN, STD)),
    ],
)  # fmt: skip
def test_what_is_given_becomes_data(given: Any, expected: Images):
    """Transforms of both versions, in a Compose, a Sequential or a list, a mapping of words, or the data itself."""
    assert preprocessing.of(given) == expected


def test_what_the_network_takes_is_what_the_transforms_give():
    """Levels that are not scaled, and two Normalize, are one mean and std of each channel."""
    levels = torch.randint(0, 256, (3, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    twice = [v2.ToImage(), v2.ToDtype(torch.float32), v2.Normalize([127.5], [127.5]), v2.Normalize(MEAN, STD)]
    found = preprocessing.of(twice).completed(COLOUR)
    mean, std = (torch.tensor(values)[:, None, None] for values in (found.mean, found.std))
    torch.testing.assert_close((levels / 255 - mean) / std, v2.Compose(twice)(levels), rtol=1e-5, atol=1e-5)


def scale_to_one(x: Any) -> Any:
    """A step that a person wrote."""
    return x * 2 - 1


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (v1.Lambda(scale_to_one), ["Lambda(scale_to_one)", "mean=0.5, std=0.5", "colours='BGR'"]),
        (v2.Lambda(lambda x: x[[2, 1, 0]]), ["Lambda(", "colours='BGR'"]),
        (scale_to_one, ["scale_to_one", "mean=0.5, std=0.5"]),
        (torch.nn.Identity(), ["Identity", "beside the transforms"]),
        (v1.ColorJitter(0.1), ["ColorJitter(", "evaluation"]),
        (v1.RandomCrop(8), ["RandomCrop(", "evaluation"]),
        (v2.RandomHorizontalFlip(), ["RandomHorizontalFlip(", "evaluation"]),
        (v2.AutoAugment(), ["AutoAugment(", "evaluation"]),
        (v1.Pad(2), ["Pad(", "CenterCrop"]),
        (v1.FiveCrop(8), ["FiveCrop(", "leave it out"]),
        (v2.Resize(8, max_size=20), ["Resize(", "max_size"]),
    ],
)
def test_what_cannot_be_translated_is_named(transform: Any, words: list[str]):
    """The transform with its place in the list, and what to do instead."""
    with pytest.raises(ArgumentError, match="cannot be translated") as caught:
        preprocessing.of(v1.Compose([v1.Resize(8), transform, v1.ToTensor()]))
    assert all(word in str(caught.value) for word in ["2, ", *words])


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        ([v1.ToTensor(), v1.Normalize(0.5, 0.5), v1.Resize(8)], ["3, Resize(", "before Normalize"]),
        ([v1.Normalize(0.5, 0.5), v1.ToTensor()], ["1, Normalize(", "after ToTensor"]),
        ([v1.ToTensor(), v1.Resize(8, v1.InterpolationMode.BICUBIC)], ["2, Resize(", "put it first"]),
        ([v2.ToImage(), v2.Resize(8, antialias=False)], ["2, Resize(", "antialias=True"]),
        ([v2.ToImage(), v2.Resize(8, "nearest")], ["2, Resize(", "put it first"]),
        ([v2.ToImage(), v2.ToDtype(torch.float16, scale=True)], ["2, ToDtype(", "torch.float32"]),
        ([v1.ToTensor(), v1.ToPILImage(), v1.ToTensor()], ["2, ToPILImage(", "what made floats"]),
        ([v1.Resize(8), v1.PILToTensor()], ["do not end with floats", "ToTensor()"]),
        ([], ["do not end with floats"]),
    ],
)
def test_an_order_that_means_something_else_is_refused(transforms: list[Any], words: list[str]):
    """What would give other numbers on the device than the transforms give is named, with its place."""
    with pytest.raises(ArgumentError) as caught:
        preprocessing.of(transforms)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"means": 0.5}, ["means", "mean, std, colours, steps, transforms"]),
        ({"transforms": [v1.ToTensor(), v1.Normalize(0.5, 0.5)], "std": 0.5}, ["std said twice", "transforms"]),
        ({"mean": "half"}, ["mean", "half"]),
        ({"mean": float("nan")}, ["mean", "nan"]),
        ({"std": [1, 0, 1]}, ["std", "[1.0, 0.0, 1.0]"]),
        ({"mean": [1, 2, 3], "std": [1, 1]}, ["3 and 2"]),
        ({"colours": "CMYK"}, ["CMYK", "RGB, BGR, grey"]),
        ({"steps": [{"scale": 3}]}, ["scale"]),
        ({"steps": [{"resize": 8, "crop": 8}]}, ["either resize"]),
        ({"steps": [{"resize": 8, "filter": "smooth"}]}, ["smooth", "bicubic"]),
        ({"steps": [{"crop": [8, 0]}]}, ["[8, 0]"]),
        ({"steps": ["resize"]}, ["resize"]),
    ],
)
def test_words_that_say_nothing_are_refused(given: dict[str, Any], words: list[str]):
    """An unknown word, and a value that cannot be, are named."""
    with pytest.raises(ArgumentError) as caught:
        preprocessing.of(given)
    assert all(word in str(caught.value) for word in words)


def test_a_shorter_side_ends_in_a_cut_to_the_networks_size():
    """`Resize(S)` alone leaves the longer side as it comes; what the network does not take is cut off."""
    found = preprocessing.of(v1.Compose([v1.Resize(16), v1.ToTensor()])).completed(COLOUR)
    assert found == Images((0.0,) * 3, (1.0,) * 3, None, (Step(resize=(16,)), Step(crop=(20, 16))))


@pytest.mark.parametrize(
    ("given", "observation", "words"),
    [
        (Images(steps=(Step(resize=(16, 20)),)), COLOUR, ["16x20", "20x16"]),
        (Images(steps=(Step(resize=(20,)),)), COLOUR, ["20 at the shorter side", "20x16"]),
        (Images(mean=MEAN), Observation.image((1, 20, 16)), ["3 channels", "takes 1"]),
        (Images(colours="BGR"), Observation.image((1, 20, 16)), ["BGR of 1 channels"]),
        (Images(), Observation("vector", (6,), None), ["for a row"]),
    ],
)
def test_preprocessing_of_another_network_is_refused(given: Images, observation: Observation, words: list[str]):
    """Another size, another number of channels, or no images."""
    with pytest.raises(ArgumentError) as caught:
        given.completed(observation)
    assert all(word in str(caught.value) for word in words)


def test_the_manifest_says_only_what_is_not_usual():
    """Nothing of what the runtime does anyway; else what the device does, and for people what the network takes."""
    assert Images().entry(COLOUR) == Images(colours="RGB").entry(COLOUR) == {}
    given = Images((0.5,), (0.25,), "BGR", (Step(resize=(20, 16), filter="box"),))
    assert given.entry(COLOUR) == {
        "steps": [{"resize": [20, 16], "filter": "box"}],
        "network_takes": {"mean": [0.5] * 3, "std": [0.25] * 3, "colours": "BGR"},
    }
    grey = Images(colours="grey", steps=(Step(crop=(20, 16)),))
    assert grey.entry(COLOUR) == {"steps": [{"crop": [20, 16]}], "grey": True}
    for images in (given, grey):
        read = records.parse(Preprocessing, images.entry(COLOUR))
        assert (read.steps, read.grey) == (images.steps, images.colours == "grey")
    assert grey.entry(Observation.image((1, 20, 16))) == {"steps": [{"crop": [20, 16]}]}


def test_words_are_understood_without_torchvision():
    """Nothing of torchvision is imported, nor of torch."""
    words = "from vae_export.preprocessing import of; of({'mean': 0.5})"
    code = f"import sys; {words}; print({{'torch', 'torchvision'}} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


class Small(torch.nn.Module):
    """Networks of [3, 8, 6] that a person has trained somehow: they take (x - mean) / std, in an order of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = torch.nn.Linear(3 * 8 * 6, 8), torch.nn.Linear(4, 3 * 8 * 6)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mu and log variance."""
        mu, logvar = self.body(x.flatten(1)).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Pixels in the network's units."""
        return self.head(z).view(-1, 3, 8, 6)


@pytest.mark.filterwarnings("ignore::vae_export.DescriptionWarning")  # an untrained network prefers either order
def test_a_bundle_prepares_files_as_the_network_was_given_them(tmp_path: Path):
    """From files to q(z|x), and from z to pixels: the device gives what the transforms and the network give."""
    files, generator = tmp_path / "files", np.random.default_rng(2)
    files.mkdir()
    for i in range(64):
        levels = generator.integers(0, 256, (*generator.integers(7, 40, 2), 3), np.uint8)
        Image.fromarray(levels).save(files / f"{i:02}.png")
    before = [v1.Resize(9), v1.CenterCrop((8, 6)), v1.ToTensor()]
    given = {"transforms": [*before, v1.Normalize(MEAN, STD)], "colours": "BGR"}
    transforms = v1.Compose([*before, v1.Lambda(lambda x: x.flip(0)), v1.Normalize(MEAN, STD)])
    taken = torch.stack([transforms(Image.open(file)) for file in sorted(files.iterdir())])
    network = Small()
    vae_export.export(
        network, observations=taken, likelihood={"name": "gaussian", "sigma": 0.5}, out=tmp_path / "bundle",
        encoder_gives="mu, logvar", preprocessing=given,
    )  # fmt: skip
    vae = RuntimeVAE.load(tmp_path / "bundle")
    mu, logsigma = vae.encode(vae.read([files]).load().x)
    with torch.no_grad():
        expected, logvar = network.encode(taken)
        np.testing.assert_allclose(mu, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(logsigma, logvar.numpy() / 2, atol=1e-5)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        pixels = (network.decode(torch.from_numpy(mu)) * std + mean).flip(1)
    np.testing.assert_allclose(vae.decode(mu), pixels.clip(0, 1).numpy(), atol=1e-5)
