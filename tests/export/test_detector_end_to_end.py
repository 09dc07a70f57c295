"""Raw files to verdicts: PyTorch, the exporter, the runtime's API and its command say the same of the same files.

A score that is another one on the device makes its threshold mean nothing. So each file is read by training's own
loaders and judged by the networks in float64, and by `vae-infer detect` from the exported bundle.
"""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributions

from support import raw
from support.commands import Command
from support.raw import Raw
from vae_export import quantise
from vae_runtime import VAE, Detector, noise
from vae_runtime.bundle import CALIBRATION
from vae_runtime.cli import main
from vae_runtime.density import Density, surprise_of_each
from vae_runtime.traits import NUM_SAMPLES
from vae_train import data, pixels
from vae_train.run import Run
from vae_train.vae import VAE as Network

NATS, SHARE = 1e-3, 1e-5  # by which scores may differ: so many nats, or that share of a score where that is more

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Exported = Callable[[str, str], tuple[Raw, Run, Path]]

slow = pytest.mark.slow
CASES = [
    pytest.param("image", "fp32"),
    pytest.param("series", "int8"),
    *(pytest.param("image", precision, marks=slow) for precision in ("fp16", "int8")),
    *(pytest.param("vector", precision, marks=slow) for precision in ("fp32", "fp16", "int8")),
    *(pytest.param("series", precision, marks=slow) for precision in ("fp32", "fp16")),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Raw files of a kind, a run that was trained on them, and its bundle in a precision, each made once."""

    @cache
    def trained(kind: str) -> tuple[Raw, Run]:
        folder = tmp_path_factory.mktemp(kind)
        files = raw.write(kind, folder)
        return files, raw.fit(files, folder / "run")

    @cache
    def in_precision(kind: str, precision: str) -> tuple[Raw, Run, Path]:
        files, run = trained(kind)
        return files, run, run.export(files.train.parent / precision, precision=precision).path

    return in_precision


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_raw_files_are_judged_alike_from_training_to_the_device(
    kind: str, precision: str, exported: Exported, command: Command
) -> None:
    """Scores of 200 files, rows or windows within a thousandth of a nat, and the same p-values and verdicts.

    Where a score lies as close as that to one of the calibration's, its p may count that one or not. Of 8-bit integers
    one or two may be off by more, where a value lies in the middle between two levels, and is rounded to either.
    """
    files, run, bundle = exported(kind, precision)
    vae = VAE.load(bundle, threads=1)
    x, normal = (read_by_training(run, path) for path in (files.new, files.normal))
    np.testing.assert_array_equal(vae.standardise(vae.read([str(files.new)]).load().x), x)

    network = evaluated(run.vae, bundle, precision)
    score, usual = scores(*(traits(network, given, kind) for given in (x, normal)), kind)
    done = command(main, "--bundle", bundle, "detect", files.new, "--format", "jsonl")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert len(found) == len(x) == 200
    off = np.maximum(NATS, SHARE * score)
    differ = np.abs([row["score"] for row in found] - score)
    assert (differ > off).sum() <= (2 if precision == "int8" else 0)
    off = np.maximum(off, differ)

    p, least = np.array([row["p"] for row in found]), 1 / (len(normal) + 1)
    lowest, highest = ((1 + (usual >= bound[:, None]).sum(axis=1)) * least for bound in (score + off, score - off))
    assert ((lowest - 1e-12 < p) & (p < highest + 1e-12)).all()
    odd = lowest < 1.5 * least  # at 1% of false alarms, of 120
    assert (odd != (highest < 1.5 * least)).sum() <= 1
    assert [row["odd"] for row in found] == (p < 1.5 * least).tolist()
    assert 0 < odd[9::10].sum() <= odd.sum() < 100

    judged = Detector.load(VAE.load(bundle, threads=2)).verdict(vae.read([str(files.new)]).load().x)
    assert judged.score.tolist() == [row["score"] for row in found]
    alone = Detector.load(vae).score(vae.read([str(files.new)]).load().x[7:8])
    assert alone.tolist() == judged.score[7:8].tolist()


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_a_calibration_on_the_device_is_the_exporters(
    kind: str, precision: str, exported: Exported, command: Command, tmp_path: Path
) -> None:
    """From the files that were held out, to the last bit."""
    files, _, bundle = exported(kind, precision)
    done = command(main, "--bundle", bundle, "calibrate", files.normal, "-o", tmp_path / "site.json")
    assert done.code == 0
    assert (tmp_path / "site.json").read_bytes() == (bundle / CALIBRATION).read_bytes()


def read_by_training(run: Run, files: Path) -> Floats:
    """What `vae-train` makes of files, with the run's scaling: float32 [n, *shape]."""
    return pixels.unit(data.load(run.config.replace(test=str(files)), run.path).test).numpy()


def evaluated(network: Network, bundle: Path, precision: str) -> Network:
    """What the graphs of a bundle stand for, without onnxruntime: in float64, of integers by ONNX's evaluator."""
    if precision == "int8":
        return quantise.evaluated(network, *(onnx.load(bundle / f"{name}.onnx") for name in ("encoder", "decoder")))
    return (quantise.rounded(network) if precision == "fp16" else copy.deepcopy(network)).double()


def scores(new: Doubles, normal: Doubles, kind: str) -> tuple[Doubles, Doubles]:
    """Those of new observations, and of each normal one by the others, from their traits."""
    both = Density.of(normal).surprise(new), surprise_of_each(normal)
    if kind != "vector":
        return both
    score, usual = (found - some @ [1, -1, 0, 0, 0, -1] for found, some in zip(both, (new, normal), strict=True))
    return score, usual  # without the ELBO, and with the values by themselves


@torch.no_grad()
def traits(network: Network, x: Floats, kind: str) -> Doubles:
    """What a detector looks at, of observations as training reads them, by PyTorch: [n, traits].

    Only the noise, and which of it an observation gets, is the runtime's own.
    """
    index, total, size, latents = noise.index(x), torch.zeros(()), x[0].size, int(np.prod(network.latent_shape))
    for k in range(NUM_SAMPLES):
        observed = x
        if network.likelihood.binary:
            observed = noise.uniform(0, noise.BINARISATION, index, size, start=k * size).reshape(x.shape) < x
        given = torch.from_numpy(np.asarray(observed, np.float64))
        mu, logsigma = network.encoder(given)
        eps = noise.normal(0, noise.POSTERIOR, index, latents, start=k * latents).reshape(mu.shape)
        total = total + _traits_of_draw(network, kind, torch.from_numpy(x).double(), given, mu, logsigma, eps)
    own = {"image": _of_image, "series": _of_series, "vector": _of_rows}[kind]
    return torch.cat([total / NUM_SAMPLES, own(torch.from_numpy(x).double())], dim=1).numpy()


def _traits_of_draw(
    network: Network, kind: str, x: Tensor, given: Tensor, mu: Tensor, logsigma: Tensor, eps: Floats
) -> Tensor:
    posterior, prior = distributions.Normal(mu, logsigma.exp()), distributions.Normal(0.0, 1.0)
    parameters = network.decoder(mu + logsigma.exp() * torch.from_numpy(eps))
    if network.likelihood.binary:
        likelihood = distributions.Bernoulli(logits=parameters)
        entropy = likelihood.entropy().flatten(1).sum(1)
    else:
        likelihood, entropy = distributions.Normal(parameters, network.likelihood.logsigma.exp()), torch.zeros(len(x))
    nats = likelihood.log_prob(given).flatten(1)
    if not network.likelihood.binary:
        nats = nats - network.likelihood.log_unit.expand(x.shape[1:]).flatten()
    error = (x - likelihood.mean).flatten(1)
    found = [
        nats.sum(1),
        distributions.kl_divergence(posterior, prior).flatten(1).sum(1),
        entropy,
        (error.square().mean(1) + 1e-6).log(),
        (nats.std(1, correction=0) + 1e-6).log(),
    ]
    if kind == "image":
        found += [(mu.flatten(1).square().mean(1) + 1e-6).log(), logsigma.flatten(1).sum(1)]
    return torch.stack(found, dim=1)


def _of_image(x: Tensor) -> Tensor:
    levels = (x * 255).round()

    def entropy(values: Tensor) -> Tensor:
        share = values.unique(return_counts=True)[1] / values.numel()
        return distributions.Categorical(share.double()).entropy()

    edges = [torch.cat([row.diff(dim=1).flatten(), row.diff(dim=2).flatten()]) for row in levels]
    flat = x.flatten(1)
    return torch.stack(
        [
            torch.stack([entropy(row) for row in levels]),
            torch.stack([entropy(row) for row in edges]),
            flat.mean(1),
            (flat.std(1, correction=0) + 1 / 256).log(),
        ],
        dim=1,
    )


def _of_series(x: Tensor) -> Tensor:
    roughness = x.diff(dim=2).square().mean(2).sqrt()
    return (torch.stack([x.std(2, correction=0), roughness], dim=2) + 1e-3).log().flatten(1)


def _of_rows(x: Tensor) -> Tensor:
    alone = distributions.StudentT(3)
    return (alone.log_prob(torch.zeros(())) - alone.log_prob(x)).sum(1, keepdim=True)
