"""`vae-export card`: a model card that hubs can read, whose every figure is the manifest's and whose commands work."""

import copy
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from support import runs
from vae_export import card, exporter
from vae_export.cli import main
from vae_runtime import manifest as manifests
from vae_runtime.bundle import FILES, shipped
from vae_runtime.errors import BundleError
from vae_train import run_folder, train
from vae_train.config import PRESETS, Place

Command = Callable[..., Any]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def gaussian_bundle(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of grey digits under a Gaussian likelihood, which is a density."""
    folder = tmp_path_factory.mktemp("gaussian")
    config = PRESETS["tutorial"].replace(hidden=(16,), latent_dim=3, epochs=1, likelihood="gaussian")
    with runs.without_report():
        train.train(config, folder / "run", Place(digits_root, download=False), "vae-train --likelihood gaussian")
    exporter.export_run(run_folder.load(folder / "run"), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def rows_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of rows of numbers."""
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "readings.npy", 3 * np.random.default_rng(0).standard_normal((300, 5), np.float32) + 7)
    config = PRESETS["tutorial"].replace(
        dataset=str(folder / "readings.npy"), hidden=(16,), latent_dim=3, epochs=1, likelihood="gaussian"
    )
    with runs.without_report():
        train.train(config, folder / "run", Place(folder, download=False), "vae-train --likelihood gaussian")
    exporter.export_run(run_folder.load(folder / "run"), folder / "bundle")
    return folder / "bundle"


def test_a_card_of_rows_speaks_of_rows(rows_bundle: Path, tmp_path: Path) -> None:
    """No word of images or pixels; its commands run as they stand; the hub is told no task for images."""
    text = write(manifest_of(rows_bundle))
    assert not re.search("image|pixel", text, re.IGNORECASE)
    assert dict(cells(text, "model"))["rows"] == "5 (columns), real values"
    assert "nats per row" in text
    assert "pipeline_tag" not in front_matter(text)
    folder = Path(shutil.copytree(rows_bundle, tmp_path / "downloaded"))
    commands = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    assert len(commands) == 4
    for command in commands:
        call = [sys.executable, "-m", "vae_runtime", *shlex.split(command)[1:]]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert {"samples.npy", "reconstructions.npy"} <= {path.name for path in folder.iterdir()}


@pytest.fixture(params=["shipped", "tiny", "gaussian"])
def any_bundle(request: pytest.FixtureRequest) -> Path:
    """The bundle that ships, and fresh ones of two likelihoods."""
    return shipped() if request.param == "shipped" else Path(request.getfixturevalue(f"{request.param}_bundle"))


def manifest_of(path: Path) -> Json:
    """A bundle's manifest."""
    manifest: Json = json.loads((path / "manifest.json").read_bytes())
    return manifest


def write(manifest: Json) -> str:
    """The card of the bundle that has this manifest, whose digest is made right."""
    raw = manifests.dump({key: value for key, value in manifest.items() if key != "sha256"})
    return card.write(manifests.parse(raw, Path("manifest.json"), FILES))


def front_matter(text: str) -> Json:
    """What a YAML parser makes of the card's first lines."""
    start, front, _ = text.split("---\n", 2)
    assert start == ""
    data: Json = yaml.safe_load(front)
    return data


def cells(text: str, head: str) -> list[list[str]]:
    """The rows of the table with that first cell, each as its cells."""
    _, _, rest = text.partition(f"| {head} |")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines]


def test_the_front_matter_is_what_hubs_read(any_bundle: Path) -> None:
    """The hub's schema (huggingface/hub-docs, modelcard.md): known keys, of the right types, and no licence made up."""
    manifest = manifest_of(any_bundle)
    data = front_matter(write(manifest))
    assert data.keys() <= {"library_name", "pipeline_tag", "tags", "datasets", "metrics", "model-index"}
    assert (data["library_name"], data["pipeline_tag"]) == ("vae-edge", "unconditional-image-generation")
    assert {"vae", "onnx", manifest["contract"]["likelihood"]["name"]} <= set(data["tags"])
    assert data["datasets"] == ["ylecun/mnist"]  # as which the digits of the tests are named too
    (model,) = data["model-index"]
    assert model["name"] == "vae-mnist"
    (result,) = model["results"]
    assert result["task"] == {"type": "unconditional-image-generation"}
    assert result["dataset"] == {"type": "ylecun/mnist", "name": "mnist", "split": "test"}
    assert {metric["type"] for metric in result["metrics"]} == set(data["metrics"])
    for metric in result["metrics"]:
        assert metric.keys() == {"type", "value", "name"}
        assert isinstance(metric["value"], float)


def test_the_figures_are_the_manifests(any_bundle: Path) -> None:
    """Means and standard errors, in the table and for the hub; bits per dimension from them, for probabilities only."""
    manifest = manifest_of(any_bundle)
    figures, image = manifest["evaluation"]["figures"], manifest["contract"]["observation"]["shape"]
    text = write(manifest)
    rows = cells(text, "figure")
    discrete = manifest["contract"]["likelihood"]["name"] != "gaussian"
    assert len(rows) == len(figures)
    for row, (name, figure) in zip(rows, figures.items(), strict=True):
        assert row[1] == f"{figure['mean']:.2f} +- {figure['standard_error']:.2f}"
        if discrete and name not in ("reconstruction", "kl"):
            per_bit = math.prod(image) / math.log2(math.e)
            assert row[2] == f"{-figure['mean'] / per_bit:.4f} +- {figure['standard_error'] / per_bit:.4f}"
        else:
            assert row[2:] in ([""], [])
    assert ("log-densities" in text) is not discrete
    metrics = front_matter(text)["model-index"][0]["results"][0]["metrics"]
    means = [metric["value"] for metric in metrics if "nats" in metric["name"]]
    assert means == [round(figure["mean"], 3) for figure in figures.values()]
    samples = {figure["num_samples"] for figure in figures.values() if "num_samples" in figure}
    assert all(f"log p(x), at least (K = {k:,})" in text for k in samples)
    assert ("burda2016" in text) is bool(samples)
    assert "kingma2014" in text
    levels = manifest["evaluation"]["quantiles"]
    median_half = [f"{levels['elbo'][levels['levels'].index(level)]:.1f}" for level in (0.25, 0.75)]
    assert f"from {' to '.join(median_half)}," in text


def test_a_card_of_one_test_image_knows_no_errors() -> None:
    """Where a standard error is null there is none, in the table and for the hub, nor quantiles of one image in 100."""
    manifest = manifest_of(shipped())
    for figure in manifest["evaluation"]["figures"].values():
        figure["standard_error"] = None
    manifest["evaluation"]["observations"] = 1
    text = write(manifest)
    assert [row[1] for row in cells(text, "figure")] == [
        f"{figure['mean']:.2f}" for figure in manifest["evaluation"]["figures"].values()
    ]
    assert "standard error" not in str(front_matter(text))
    assert "98 in 100" not in text


def test_the_card_says_what_the_manifest_says(tiny_bundle: Path) -> None:
    """Data, training, settings, versions, parity, and every file with its size and sha256."""
    manifest = manifest_of(tiny_bundle)
    text = write(manifest)
    measured = f"297 test images of mnist ({manifest['evaluation']['binarisation']}, standard-normal prior)"
    assert f"Means over the {measured}, +- their standard errors." in text
    assert "\n    vae-train --epochs 2\n" in text
    assert "preset tutorial, dataset mnist" in text
    assert "hidden 32," in text
    (versions,) = (line for line in text.splitlines() if line.startswith("Versions: "))
    named = ("python", "torch", "platform", "vae-edge", "onnx", "onnxscript", "onnxruntime")
    known = ", ".join(f"{name} {manifest['provenance'][name]}" for name in named)
    assert versions == f"Versions: {known}."
    assert re.search(r"\nIt took \d+\.\d minutes \(device cpu, threads \d+, processes 1\)\.\n", text)
    assert dict(cells(text, "data"))["images in that split"] == "297"
    assert dict(cells(text, "data"))["training and test images"] == "the set's own"
    assert dict(cells(text, "model"))["latents"] == "4 dimensions, standard-normal prior"
    rows = manifest["parity"]["rows"]
    assert f"{len(rows)} of {len(rows)} comparisons" in text
    nats = max(row["nats"] for row in rows if (row["tensor"], row["inputs"]) == ("ELBO", "real images"))
    assert f"{nats:.1e} nats off at most" in text
    files = {row[0].strip("`"): row for row in cells(text, "file")}
    assert files.keys() == {*manifest["files"], "manifest.json"}
    for name, entry in manifest["files"].items():
        assert files[name][2:] == [f"{entry['size']:,}", f"`{entry['sha256']}`"]


def test_the_card_says_how_pictures_are_prepared(tiny_bundle: Path) -> None:
    """In the words of `vae-infer info`, where that is not what is always done."""
    manifest = manifest_of(tiny_bundle)
    assert "preprocessing" not in dict(cells(write(manifest), "data"))
    manifest["preprocessing"]["steps"] = [{"resize": [28, 28], "filter": "box"}]
    assert dict(cells(write(manifest), "data"))["preprocessing"] == "pictures are resized to 28 x 28 (box)"


def test_the_card_says_what_the_model_is_not_for(any_bundle: Path) -> None:
    """Intended use and limits: its own kind of images and shape, no decisions about people, and binary pixels if so."""
    manifest = manifest_of(any_bundle)
    _, limits = write(manifest).split("## Intended use and limits\n")
    limits = " ".join(limits.partition("\n## ")[0].split())
    image = manifest["contract"]["observation"]["shape"]
    shape = " x ".join(map(str, image))
    assert f"images like those of {manifest['evaluation']['dataset']}" in limits
    assert f"of the shape {shape}" in limits
    assert "tells people or classes apart: decide nothing by it where a mistake does harm" in limits
    assert ("binary draws" in limits) == (manifest["contract"]["likelihood"]["name"] == "bernoulli")


def test_a_smaller_precision_is_named_with_its_cost(tiny_bundle: Path) -> None:
    """What graphs of another precision lose, with its standard error."""
    smaller = {"precision": "fp16", "observations": 1000, "nats": 0.0123, "standard_error": 0.0011, "most_nats": 0.51}
    text = " ".join(write({**manifest_of(tiny_bundle), "precision": smaller}).split())
    assert (
        "The graphs are fp16. Against float32, of which the figures above are, they lose 0.0123 +- 0.0011 nats" in text
    )
    assert "of the ELBO, on 1,000 test images; the worst of them loses 0.5 nats." in text


def test_the_shown_commands_work(any_bundle: Path, tmp_path: Path) -> None:
    """In a folder with the bundle's files, every command and the lines of Python run as they stand."""
    folder = Path(shutil.copytree(any_bundle, tmp_path / "downloaded"))
    text = write(manifest_of(any_bundle))
    commands = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(commands) == 4
    assert len([line for line in lines.splitlines() if line]) == 4
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "vae-infer"
        call = [sys.executable, "-m", "vae_runtime", *arguments]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert {"samples", "reconstructions.png"} <= {path.name for path in folder.iterdir()}
    shape = ", ".join(map(str, manifest_of(any_bundle)["contract"]["observation"]["shape"]))
    assert f"float32 [16, {shape}]" in lines
    call = [sys.executable, "-W", "error", "-c", f"{lines}\nassert elbo.shape == (16,) and x.shape == (16, {shape})"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON tree, of lists the first three entries."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:3]
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


OPTIONAL = ["settings", "preprocessing", "provenance", "evaluation", "parity", "onnx", "parameters"]


@pytest.mark.parametrize("name", ["shipped", "gaussian"])
def test_what_the_manifest_lacks_is_left_out(gaussian_bundle: Path, name: str) -> None:
    """Without any one entry, and without all that need not be there, a card is shorter and makes nothing up."""
    manifest = manifest_of(shipped() if name == "shipped" else gaussian_bundle)
    full = write(manifest)
    made = 0
    for i in range(len(list(places(manifest)))):
        tree = copy.deepcopy(manifest)
        container, key = list(places(tree))[i]
        del container[key]
        try:
            text = write(tree)
        except BundleError:  # half a figure, or a part that every bundle has
            assert container is not tree or key not in OPTIONAL
            continue
        made += 1
        assert len(text) <= len(full)
        assert not re.search(r"\b(None|nan|null|\{\}|\[\])\b", text)
    assert made > 50
    text = write({key: value for key, value in manifest.items() if key not in OPTIONAL})
    assert text.count("\n## ") == 4  # use, limits, files, citation
    assert "model-index" not in front_matter(text)
    assert "nats per image" not in text


@pytest.mark.parametrize("value", [None, "words", -1, 0.5, 10**400, [], [1], {}, True, "\x1b[2J\u202e", "A" * 1000])
def test_an_odd_entry_ends_in_a_card_or_an_error(tiny_bundle: Path, value: Any) -> None:
    """With any one entry replaced by anything: a card of printable lines that hubs can read, or a BundleError."""
    manifest = manifest_of(tiny_bundle)
    written = 0
    for i in range(len(list(places(manifest)))):
        tree = copy.deepcopy(manifest)
        container, key = list(places(tree))[i]
        container[key] = value
        try:
            text = write(tree)
        except BundleError as error:
            assert len(str(error)) < 500
        else:
            written += 1
            assert front_matter(text)["library_name"] == "vae-edge"
            assert all(line.isprintable() for line in text.splitlines())
    assert written > 20


def test_names_are_no_markup(tiny_bundle: Path) -> None:
    """A folder's name that is full of Markdown, HTML and YAML changes neither the tables nor the front matter."""
    manifest = manifest_of(tiny_bundle)
    name = 'a|b`c<script>*x*\n---\n": [d](e) # \u202e 😀'
    manifest["evaluation"]["dataset"] = name
    manifest["provenance"]["command"] = "vae-train\n# heading"
    text = write(manifest)
    shown = name.replace("\n", "\\n").replace("\u202e", "\\u202e")
    (result,) = front_matter(text)["model-index"][0]["results"]
    assert result["dataset"] == {"type": shown, "name": shown, "split": "test"}
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body.replace("\\<", "")
    assert [line.split("\\|")[0] for line in body.splitlines() if line.startswith("# ")] == ["# VAE of a"]
    assert len(cells(text.replace("\\|", "/"), "data")[0]) == 2
    assert "\n    vae-train\\n# heading\n" in text


def test_the_command_prints_or_writes_the_card(command: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    """On stdout, or with -o in an .md file; by the name of a bundle that ships too."""
    text = write(manifest_of(tiny_bundle))
    result = command(main, "card", tiny_bundle)
    assert (result.code, result.out, result.err) == (0, text, "")
    result = command(main, "card", tiny_bundle, "-o", tmp_path / "card.md")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{tmp_path}/card.md: model card of {tiny_bundle}\n"
    assert (tmp_path / "card.md").read_text() == text
    assert command(main, "card", "mnist").out == write(manifest_of(shipped()))


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, []),
        (2, ["{bundle}", "-o", "{tmp}/card.txt"]),
        (2, ["{bundle}", "-o", "{tmp}/absent/card.md"]),
        (3, ["{tmp}"]),
        (3, ["no-such-bundle", "-o", "{tmp}/card.md"]),
    ],
)
def test_errors_end_in_one_line(
    command: Command, tiny_bundle: Path, tmp_path: Path, code: int, arguments: list[str]
) -> None:
    """Wrong usage and folders that are no bundle: the exit code, one line, an empty stdout, nothing written."""
    result = command(main, "card", *(word.format(tmp=tmp_path, bundle=tiny_bundle) for word in arguments))
    assert (result.code, result.out) == (code, "")
    assert re.fullmatch(r"vae-export: error: [^\n;]+; [^\n]+\n", result.err), result.err
    assert not any(tmp_path.iterdir())


def test_a_card_needs_neither_pytorch_nor_onnx(tiny_bundle: Path) -> None:
    """Where torch, onnx and onnxruntime cannot be imported, the card is the same."""
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxruntime'])); "
    call = [sys.executable, "-c", f"{code}from vae_export.cli import main; main()", "card", str(tiny_bundle)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, write(manifest_of(tiny_bundle)), "")
