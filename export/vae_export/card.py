"""A model card: what a bundle's manifest says, in Markdown, below the front matter that model hubs read."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vae_export import facts as of_manifest
from vae_export import front_matter
from vae_export.facts import Facts
from vae_runtime.bundle import FILES, MANIFEST
from vae_runtime.errors import BundleError, printable
from vae_runtime.figures import plus_minus
from vae_runtime.manifest import Manifest

_ABOUT = """\
A variational autoencoder ([Kingma and Welling 2014](https://arxiv.org/abs/1312.6114)){of}, as two ONNX graphs that run
on any CPU with NumPy and onnxruntime. It draws images like those that it was trained on, encodes and reconstructs
images, and says in nats how well it explains an image."""
_PIXELS = {
    "bernoulli": "Bernoulli: pixels are 0 or 1",
    "gaussian": "Gaussian: real-valued pixels, one standard deviation for all of them",
    "discretised-logistic": "discretised logistic: 256 levels for each pixel and channel",
}
_USE = """\
## How to use

With vae-edge installed, in the folder of these files:

```console
$ vae-infer --bundle . sample -n 16 --seed 7 -o samples
$ vae-infer --bundle . reconstruct samples -o reconstructions.png
$ vae-infer --bundle . elbo samples
$ vae-infer --bundle . verify
```

The last one computes the golden vectors again and says how far this device is off. In Python:

```python
from vae_runtime import VAE

vae = VAE.load(".")
x = vae.sample(16, seed=7){clip}  # float32 [16, {shape}]
elbo = vae.elbo(x, num_samples=10)  # float64 [16], nats, higher is better
```"""
_LEVELS = {0.01, 0.25, 0.75, 0.99}
_EIGHT_BITS = (
    "The comparison above says that onnxruntime computes these 8-bit graphs as ONNX defines them. The same image may\n"
    "score nats apart on another processor: compare means over many images only."
)
_DENSITIES = (
    "These are log-densities, which may be above 0. They do not compare with log-probabilities, and have no bits."
)
_LIMITS = """\
## Intended use and limits

For drawing, encoding, reconstructing and scoring images like {those}, and for tests and demonstrations.

- It knows only such images, of the shape {shape}. It gives figures for all others too; nothing here says what they are
  worth.
- An ELBO says how hard an image is to describe, compared with the test images, not what is wrong with it: one of
  another kind that is easier to describe ranks high. Nothing here measures how well that finds faults or forgeries, or
  tells people or classes apart: decide nothing by it where a mistake does harm.
- Its samples are made up. They are evidence of nothing, and nothing here measures how much they resemble single images
  that it was trained on."""
_BINARY = "- Its images are black and white. The score of a grey one is the mean over its binary draws."
_TRAINING, _MACHINE = ("command", "training_seconds"), ("device", "threads", "processes")  # the rest are versions
_KINGMA = """\
@inproceedings{kingma2014auto,
  title = {Auto-Encoding Variational {B}ayes},
  author = {Kingma, Diederik P. and Welling, Max},
  booktitle = {International Conference on Learning Representations},
  year = {2014},
  note = {arXiv:1312.6114}
}"""
_BURDA = """\
@inproceedings{burda2016importance,
  title = {Importance Weighted Autoencoders},
  author = {Burda, Yuri and Grosse, Roger and Salakhutdinov, Ruslan},
  booktitle = {International Conference on Learning Representations},
  year = {2016},
  note = {arXiv:1509.00519}
}"""


def write(manifest: Manifest) -> str:
    """The card of the bundle that has this manifest. What the manifest does not say is left out.

    Raises BundleError where an entry is not of the kind that the exporter writes.
    """
    parts = (front_matter.lines, _model, _use, _figures, _data, _training, _parity, _limits, _files, _citation)
    try:
        facts = of_manifest.read(manifest)
        return "\n\n".join(section for part in parts if (section := "\n".join(part(facts)))) + "\n"
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise BundleError("bundle's manifest not understood", f"{MANIFEST} ({reason})", "export it again") from None


def _model(facts: Facts) -> Iterator[str]:
    dataset = _text(facts.dataset)
    yield f"# VAE of {dataset or f'images of {facts.images}'}"
    yield ""
    yield _ABOUT.format(of=f", trained on {dataset}" if dataset else "")
    yield ""
    rows = [
        ("images", f"{facts.images} (channels, height, width), values in [0, 1]"),
        ("latents", f"{facts.latent_dim} dimensions, {_text(facts.prior)} prior"),
        ("likelihood", _PIXELS[facts.likelihood_name]),
    ]
    if "parameters" in facts.manifest:
        rows.append(("parameters", f"{facts.manifest['parameters']:,}"))
    if "onnx" in facts.manifest:
        onnx = {name: _text(value) for name, value in facts.manifest["onnx"].items() if name != "operators"}
        versions = f"opset {onnx['opset']}, ir_version {onnx['ir_version']}"
        rows.append(("graphs", f"{versions}, onnxruntime {onnx['min_onnxruntime']} or newer, any batch size"))
    yield from _table(("model", ""), rows)


def _use(facts: Facts) -> Iterator[str]:
    clip = "" if facts.likelihood.discrete else ".clip(0, 1)"  # Gaussian pixels may leave the range
    yield _USE.format(clip=clip, shape=", ".join(map(str, facts.shape)))


def _figures(facts: Facts) -> Iterator[str]:
    if not facts.figures:
        return
    yield "## Figures"
    yield ""
    yield f"Means over {_measured_on(facts)}, +- their standard errors."
    yield "Higher is better for the ELBO and for log p(x)."
    yield ""
    rows = []
    for figure in facts.figures:
        bits = "" if figure.bits is None else plus_minus(*figure.bits, ".4f")
        rows.append((_text(figure.label), plus_minus(figure.mean, figure.error), bits))
    yield from _table(("figure", "nats per image", "bits per dimension"), rows)
    if facts.quantiles.keys() >= _LEVELS and facts.evaluation.get("images", 0) >= 100:  # one in 100 is one image
        low, first, third, high = (f"{facts.quantiles[level]:.1f}" for level in sorted(_LEVELS))
        yield ""
        yield f"Half of the test images have an ELBO from {first} to {third}, and 98 in 100 from {low} to {high}."
    if facts.used_latents is not None:
        yield ""
        yield f"{facts.used_latents} of the {facts.latent_dim} latents carry more than 0.01 nats on average."
    if not facts.likelihood.discrete:
        yield ""
        yield _DENSITIES


def _measured_on(facts: Facts) -> str:
    """What a figure in nats must name: data set, split, binarisation and prior."""
    measured = facts.evaluation
    words = [
        "the",
        f"{measured['images']:,}" if "images" in measured else "",
        _text(measured.get("split", "test")),
        "images",
    ]
    words += ["of", _text(facts.dataset)] if facts.dataset else []
    details = [_text(measured["binarisation"])] if "binarisation" in measured else []
    details += [f"{_text(measured['prior'])} prior"] if "prior" in measured else []
    return " ".join(filter(None, words)) + (f" ({', '.join(details)})" if details else "")


def _data(facts: Facts) -> Iterator[str]:
    measured, prepared = facts.evaluation, facts.manifest.get("preprocessing", {})
    rows = [
        ("data set", measured.get("dataset")),
        ("measured on its split", measured.get("split")),
        ("images in that split", f"{measured['images']:,}" if "images" in measured else None),
        ("binarisation of those", measured.get("binarisation")),
        ("training and test images", prepared.get("split")),
        ("levels of grey or colour", prepared.get("levels")),
        ("files left out as unreadable", prepared.get("unreadable")),
    ]
    if known := [(name, _text(value)) for name, value in rows if value is not None]:
        yield "## Data"
        yield ""
        yield from _table(("data", ""), known)


def _training(facts: Facts) -> Iterator[str]:
    provenance = facts.manifest.get("provenance", {})
    if not provenance:
        return
    yield "## Training"
    if "command" in provenance:
        yield ""
        yield f"    {printable(str(provenance['command']))}"
    if "training_seconds" in provenance:
        machine = ", ".join(f"{name} {_text(provenance[name])}" for name in _MACHINE if name in provenance)
        yield ""
        yield f"It took {provenance['training_seconds'] / 60:.1f} minutes{f' ({machine})' * bool(machine)}."
    versions = {name: value for name, value in provenance.items() if name not in (*_TRAINING, *_MACHINE)}
    settings: dict[str, Any] = {}
    for name, value in facts.manifest.get("settings", {}).items():  # in parts, but for those of release 0.1
        settings |= value if isinstance(value, dict) else {name: value}
    for title, named in (("Settings", settings), ("Versions", versions)):
        if words := [f"{_text(name)} {_setting(value)}" for name, value in named.items() if value is not None]:
            yield ""
            yield f"{title}: {', '.join(words)}."


def _parity(facts: Facts) -> Iterator[str]:
    rows = facts.manifest.get("parity", {}).get("rows", [])
    if not rows:
        return
    passed = sum(row["passed"] is True for row in rows)
    batches = ", ".join(map(str, sorted({row["batch"] for row in rows})))
    yield "## Parity"
    yield ""
    reference = _text(facts.manifest["parity"]["reference"])
    yield "Before it was published, the numbers that onnxruntime gives were compared with those of"
    yield f"{reference}, at batch sizes {batches}:"
    yield f"{passed} of {len(rows)} comparisons are within tolerance."
    if nats := [row["nats"] for row in rows if row["tensor"] == "ELBO" and row["inputs"] == "real images"]:
        yield f"The ELBO of real images is {max(nats):.1e} nats off at most."
    if smaller := facts.manifest.get("precision"):
        yield ""
        lost = f"{plus_minus(smaller['nats'], smaller['standard_error'], '.4f')} nats per image"
        which = _text(smaller["precision"])
        yield f"The graphs are {which}. Against float32, of which the figures above are, they lose {lost}"
        worst = f"the worst of them loses {smaller['most_nats']:.1f} nats"
        yield f"of the ELBO, on {smaller['images']:,} test images; {worst}."
        if smaller["precision"] == "int8":
            yield _EIGHT_BITS


def _limits(facts: Facts) -> Iterator[str]:
    those = f"those of {_text(facts.dataset)}" if facts.dataset else "those that it was trained on"
    yield _LIMITS.format(those=those, shape=facts.images)
    if facts.likelihood_name == "bernoulli":
        yield _BINARY


def _files(facts: Facts) -> Iterator[str]:
    channels, height, width = facts.shape
    outputs = channels * facts.likelihood.parameters_per_value
    inside = {
        "encoder.onnx": f"`x` [n, {channels}, {height}, {width}] to `mu`, `logsigma` [n, {facts.latent_dim}]",
        "decoder.onnx": f"`z` [n, {facts.latent_dim}] to `{facts.likelihood.output}` [n, {outputs}, {height}, {width}]",
        "golden.npz": "inputs, and what the graphs must give for them",
    }
    rows = []
    for name in FILES:
        file = facts.manifest["files"][name]
        rows.append((f"`{name}`", inside[name], f"{file['size']:,}", f"`{_text(file['sha256'])}`"))
    rows.append((f"`{MANIFEST}`", "all that this card says, and more", "", ""))
    yield "## Files"
    yield ""
    yield from _table(("file", "what", "bytes", "sha256"), rows)


def _citation(facts: Facts) -> Iterator[str]:
    yield "## Citation"
    yield ""
    yield "```bibtex"
    yield _KINGMA
    if any(figure.num_samples for figure in facts.figures):
        yield _BURDA
    yield "```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def _text(value: object) -> str:
    """Text of the manifest in which nothing is markup."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", printable(str(value)))


def _setting(value: object) -> str:
    """A setting as one types it."""
    return _text(",".join(map(str, value)) if isinstance(value, list) else value)
