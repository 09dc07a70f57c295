"""A model card: what a bundle's manifest says, in Markdown, below the front matter that model hubs read."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vae_export import facts, front_matter
from vae_export.facts import CardFigure
from vae_runtime import likelihoods
from vae_runtime.bundle import MANIFEST
from vae_runtime.errors import printable
from vae_runtime.figures import plus_minus
from vae_runtime.manifest import Contract, Manifest
from vae_runtime.measured import Evaluation, Provenance
from vae_runtime.observation import IMAGE, SERIES, VECTOR

_ABOUT = """\
A variational autoencoder ([Kingma and Welling 2014](https://arxiv.org/abs/1312.6114)){of}, as {graphs} ONNX graphs that
run on any CPU with NumPy and onnxruntime. It draws {noun}s like those that it was trained on, encodes and reconstructs
{noun}s, and says in nats how well it explains each of them."""
_AXES = {IMAGE: "channels, height, width", VECTOR: "columns", SERIES: "channels, time steps"}
_LIKELIHOODS = {
    "bernoulli": "Bernoulli: {parts} are 0 or 1",
    "gaussian": "Gaussian: {parts} are real numbers, with {sigma}",
    "heteroscedastic-gaussian": "Gaussian: {parts} are real numbers, whose standard deviations the decoder gives",
    "student-t": "Student's t: {parts} are real numbers with heavy tails, with {sigma}",
    "mixed": "Bernoulli of columns of 0 and 1, Gaussian of real numbers in the others, with {sigma}",
    "discretised-logistic": "discretised logistic: 256 levels for each of the {parts}",
}
_USE = """\
## How to use

With vae-edge installed, in the folder of these files:

```console
$ vae-infer --bundle . sample -n 16 --seed 7 -o {samples}
$ vae-infer --bundle . reconstruct {samples} -o reconstructions.{ending}
$ vae-infer --bundle . elbo {samples}
$ vae-infer --bundle . verify
```

The last one computes the golden vectors again and says how far this device is off. In Python:

```python
from vae_runtime import VAE

vae = VAE.load(".")
x = vae.sample(16, seed=7){clip}  # {type} [16, {shape}]
elbo = vae.elbo(x, num_samples=10)  # float64 [16], nats, higher is better
```"""
_LEVELS = (0.01, 0.25, 0.75, 0.99)
_EIGHT_BITS = (
    "The comparison above says that onnxruntime computes these 8-bit graphs as ONNX defines them. The same {noun} may\n"
    "score nats apart on another processor: compare means over many {noun}s only."
)
_DENSITIES = (
    "These are log-densities, which may be above 0. They do not compare with log-probabilities, and have no bits."
)
_LIMITS = """\
## Intended use and limits

For drawing, encoding, reconstructing and scoring {noun}s like {those}, and for tests and demonstrations.

- It knows only such {noun}s, of the shape {shape}. It gives figures for all others too; nothing here says what they are
  worth.
- An ELBO says how hard {one} is to describe, compared with the test {noun}s, not what is wrong with it: one of
  another kind that is easier to describe ranks high. Nothing here measures how well that finds faults or forgeries, or
  tells people or classes apart: decide nothing by it where a mistake does harm.
- Its samples are made up. They are evidence of nothing, and nothing here measures how much they resemble single {noun}s
  that it was trained on."""
_BINARY = "- Its {noun}s are binary. The score of a grey one is the mean over its binary draws."
_USED = 0.01  # nats of KL from which on a latent is counted as used
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

    Raises BundleError where its likelihood is not known.
    """
    figures = facts.figures(manifest)
    sections = [
        front_matter.lines(manifest, figures),
        _model(manifest),
        _use(manifest),
        _figures(manifest, figures),
        _data(manifest),
        _training(manifest),
        _parity(manifest),
        _limits(manifest),
        _files(manifest),
        _citation(figures),
    ]
    return "\n\n".join(text for lines in sections if (text := "\n".join(lines))) + "\n"


def _model(manifest: Manifest) -> Iterator[str]:
    contract, observation = manifest.contract, manifest.contract.observation
    dataset, shape = _dataset(manifest), _times(observation.shape)
    yield f"# VAE of {dataset or f'{observation.noun}s of {shape}'}"
    yield ""
    graphs = "three" if contract.learned_prior else "two"
    yield _ABOUT.format(of=f", trained on {dataset}" if dataset else "", graphs=graphs, noun=observation.noun)
    yield ""
    values = "real values" if observation.range is None else "values in [{:g}, {:g}]".format(*observation.range)
    known = _LIKELIHOODS.get(contract.likelihood.name)
    described = known and known.format(parts=observation.parts, sigma=_sigma(contract))
    learned = ", which was learned" if contract.learned_prior else ""
    rows = [
        (f"{observation.noun}s", f"{shape} ({_AXES[observation.kind]}), {values}"),
        ("latents", f"{_times(contract.latent_shape)} dimensions, {_text(contract.prior.name)} prior{learned}"),
        ("likelihood", described or _text(contract.likelihood.name)),
    ]
    if manifest.parameters is not None:
        rows.append(("parameters", f"{manifest.parameters:,}"))
    if onnx := manifest.onnx:
        oldest = f"onnxruntime {_text(onnx.min_onnxruntime)} or newer"
        rows.append(("graphs", f"opset {onnx.opset}, ir_version {onnx.ir_version}, {oldest}, any batch size"))
    yield from _table(("model", ""), rows)


def _sigma(contract: Contract) -> str:
    """Which values share a learned standard deviation."""
    several = contract.likelihood.settings.get("logsigma")
    if not isinstance(several, list):
        return "one standard deviation"
    shape = contract.observation.shape
    each = "column" if len(shape) == 1 else "channel" if len(several) == shape[0] else contract.observation.parts[:-1]
    return f"a standard deviation for each {each}"


def _use(manifest: Manifest) -> Iterator[str]:
    observation, images = manifest.contract.observation, manifest.contract.observation.kind == IMAGE
    likelihood = likelihoods.make(manifest.contract.likelihood, observation)
    clipped = not likelihood.discrete and observation.range  # what the model draws may leave the range
    yield _USE.format(
        samples="samples" if images else "samples.npy",
        ending="png" if images else "npy",
        clip=".clip({:g}, {:g})".format(*clipped) if clipped else "",
        shape=", ".join(map(str, observation.shape)),
        type="float64" if manifest.preprocessing.columns else "float32",
    )


def _figures(manifest: Manifest, figures: list[CardFigure]) -> Iterator[str]:
    measured, noun = manifest.evaluation, manifest.contract.observation.noun
    if not measured or not figures:
        return
    yield "## Figures"
    yield ""
    yield f"Means over {_measured_on(measured, noun)}, +- their standard errors."
    yield "Higher is better for the ELBO and for log p(x)."
    yield ""
    rows = []
    for figure in figures:
        bits = "" if figure.bits is None else plus_minus(*figure.bits, ".4f")
        rows.append((_text(figure.label), plus_minus(figure.mean, figure.error), bits))
    yield from _table(("figure", f"nats per {noun}", "bits per dimension"), rows)
    levels = dict(zip(measured.quantiles.levels, measured.quantiles.elbo, strict=True)) if measured.quantiles else {}
    if levels.keys() >= set(_LEVELS) and measured.observations >= 100:  # one in 100 is one observation
        low, first, third, high = (f"{levels[level]:.1f}" for level in _LEVELS)
        yield ""
        yield f"Half of the test {noun}s have an ELBO from {first} to {third}, and 98 in 100 from {low} to {high}."
    if measured.kl_per_dimension is not None:
        used, latents = sum(kl > _USED for kl in measured.kl_per_dimension), math.prod(manifest.contract.latent_shape)
        yield ""
        yield f"{used} of the {latents} latents carry more than {_USED:g} nats on average."
    if all(figure.bits is None for figure in figures):
        yield ""
        yield _DENSITIES


def _measured_on(measured: Evaluation, noun: str) -> str:
    """What a figure in nats must name: data set, split, binarisation and prior."""
    words = f"the {measured.observations:,} {_text(measured.split or 'test')} {noun}s"
    words += f" of {_text(measured.dataset)}" if measured.dataset else ""
    details = [_text(measured.binarisation)] if measured.binarisation else []
    details += [f"{_text(measured.prior)} prior"] if measured.prior else []
    return words + (f" ({', '.join(details)})" if details else "")


def _data(manifest: Manifest) -> Iterator[str]:
    noun, prepared = manifest.contract.observation.noun, manifest.preprocessing
    rows: list[tuple[str, object]] = []
    if measured := manifest.evaluation:
        rows = [
            ("data set", measured.dataset),
            ("measured on its split", measured.split),
            (f"{noun}s in that split", f"{measured.observations:,}"),
            ("binarisation of those", measured.binarisation),
        ]
    rows += [
        (f"training and test {noun}s", prepared.split),
        ("levels of grey or colour", prepared.levels),
        ("preprocessing", prepared.in_words()),
        ("files left out as unreadable", prepared.unreadable),
    ]
    if known := [(name, _text(value)) for name, value in rows if value]:
        yield "## Data"
        yield ""
        yield from _table(("data", ""), known)


def _training(manifest: Manifest) -> Iterator[str]:
    made = manifest.provenance
    if made is None or made == Provenance():
        return
    yield "## Training"
    if made.command is not None:
        yield ""
        yield f"    {printable(made.command)}"
    if made.training_seconds is not None:
        facts = {"device": made.device, "gpu": made.gpu, "threads": made.threads, "processes": made.processes}
        machine = ", ".join(f"{name} {_text(value)}" for name, value in facts.items() if value is not None)
        yield ""
        yield f"It took {made.training_seconds / 60:.1f} minutes{f' ({machine})' * bool(machine)}."
    settings: dict[str, Any] = {}
    for name, value in manifest.settings.items():  # in parts, but for those of release 0.1
        settings |= value if isinstance(value, dict) else {name: value}
    for title, named in (("Settings", settings), ("Versions", made.others)):
        if words := [f"{_text(name)} {_setting(value)}" for name, value in named.items() if value is not None]:
            yield ""
            yield f"{title}: {', '.join(words)}."


def _parity(manifest: Manifest) -> Iterator[str]:
    parity, smaller, noun = manifest.parity, manifest.precision, manifest.contract.observation.noun
    if not parity or not parity.rows:
        return
    batches = ", ".join(map(str, sorted({row.batch for row in parity.rows})))
    yield "## Parity"
    yield ""
    yield "Before it was published, the numbers that onnxruntime gives were compared with those of"
    yield f"{_text(parity.reference)}, at batch sizes {batches}:"
    yield f"{sum(row.passed for row in parity.rows)} of {len(parity.rows)} comparisons are within tolerance."
    if nats := [row.nats for row in parity.rows if row.tensor == "ELBO" and row.is_real]:
        yield f"The ELBO of real {noun}s is {max(nats):.1e} nats off at most."
    if smaller:
        yield ""
        lost = f"{plus_minus(smaller.nats, smaller.standard_error, '.4f')} nats per {noun}"
        which = _text(smaller.precision)
        yield f"The graphs are {which}. Against float32, of which the figures above are, they lose {lost}"
        on = f", on {smaller.observations:,} test {noun}s" if smaller.observations else ""
        worst = "" if smaller.most_nats is None else f"; the worst of them loses {smaller.most_nats:.1f} nats"
        yield f"of the ELBO{on}{worst}."
        if smaller.precision == "int8":
            yield _EIGHT_BITS.format(noun=noun)


def _limits(manifest: Manifest) -> Iterator[str]:
    noun, dataset = manifest.contract.observation.noun, _dataset(manifest)
    those = f"those of {dataset}" if dataset else "those that it was trained on"
    one = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    yield _LIMITS.format(noun=noun, one=one, those=those, shape=_times(manifest.contract.observation.shape))
    if likelihoods.make(manifest.contract.likelihood, manifest.contract.observation).binary:
        yield _BINARY.format(noun=noun)


def _files(manifest: Manifest) -> Iterator[str]:
    contract = manifest.contract
    likelihood = likelihoods.make(contract.likelihood, contract.observation)
    x, z = (", ".join(map(str, shape)) for shape in (contract.observation.shape, contract.latent_shape))
    outputs = ", ".join(map(str, likelihoods.parameter_shape(likelihood, contract.observation.shape)))
    inside = {
        "encoder.onnx": f"`x` [n, {x}] to `mu`, `logsigma` [n, {z}]",
        "decoder.onnx": f"`z` [n, {z}] to `{likelihood.output}` [n, {outputs}]",
        "prior.onnx": f"`noise` [m, {z}] to `z_of_noise`, `z` [n, {z}] to `noise_of_z` and `log_prob` [n]",
        "golden.npz": "inputs, and what the graphs must give for them",
        "calibration.json": "what is usual, as statistics: for `vae-infer detect`",
    }
    rows = []
    for name in (name for name in inside if name in manifest.files):
        file = manifest.files[name]
        rows.append((f"`{name}`", inside[name], f"{file.size:,}", f"`{_text(file.sha256)}`"))
    rows.append((f"`{MANIFEST}`", "all that this card says, and more", "", ""))
    yield "## Files"
    yield ""
    yield from _table(("file", "what", "bytes", "sha256"), rows)


def _citation(figures: list[CardFigure]) -> Iterator[str]:
    yield "## Citation"
    yield ""
    yield "```bibtex"
    yield _KINGMA
    if any(figure.num_samples for figure in figures):
        yield _BURDA
    yield "```"


def _dataset(manifest: Manifest) -> str:
    """The name of the data set, empty where it is not known."""
    return _text(manifest.evaluation.dataset) if manifest.evaluation else ""


def _times(shape: tuple[int, ...]) -> str:
    """A shape for people."""
    return " x ".join(map(str, shape))


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
