"""A learned prior, a graph of its own: densities, samples and scores against Gaussians, whose every figure is known."""

import json
import math
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support import bundles, graphs
from support.bundles import LOGSIGMA, Forge, changed, linear
from support.commands import Command
from support.graphs import Affine, contract_of, stamped
from vae_runtime import VAE, ArgumentError, BundleError, latents, noise, score
from vae_runtime.bundle import read
from vae_runtime.cli import main

ROWS = (5,)
FLOW = Affine(np.array([[1.5, 0.4, -0.2], [0.0, 0.7, 0.3], [0.0, 0.0, 0.5]]), np.array([0.3, -1.0, 0.5]))


@pytest.fixture
def bundle(forge: Forge) -> Path:
    """Rows under a Gaussian likelihood, with a flow that makes N(shift, matrix.T @ matrix) of N(0, I)."""
    return linear(forge, "gaussian", ROWS, flow=FLOW)


@pytest.fixture
def vae(bundle: Path) -> VAE:
    """The runtime's."""
    return VAE.load(bundle, threads=2)


def log_normal(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """log N(x; mean, covariance) of rows, in float64."""
    off = np.float64(x) - mean
    squares = np.einsum("...i,ij,...j", off, np.linalg.inv(covariance), off)
    return -0.5 * (squares + np.linalg.slogdet(2 * math.pi * covariance)[1])


def rows(n: int, seed: int = 0) -> np.ndarray:
    """Seeded observations."""
    return np.random.default_rng(seed).standard_normal((n, *ROWS)).astype(np.float32)


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1)])
def test_densities_are_the_gaussians(forge: Forge, shape: tuple[int, ...]):
    """Samples are the flow of their index's noise; log p(z) is that of the Gaussian, for any leading axes."""
    prior = VAE.load(linear(forge, "gaussian", ROWS, shape, flow=FLOW)).prior
    drawn = noise.normal(3, noise.PRIOR, np.arange(1300), 3)
    z = prior.sample(3, np.arange(1300))
    assert (prior.name, z.shape, z.dtype) == ("flow", (1300, *shape), np.float32)
    np.testing.assert_allclose(z.reshape(-1, 3), drawn @ FLOW.matrix + FLOW.shift, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(prior.sample(3, [1299]), z[1299:])
    np.testing.assert_allclose(prior.to_noise(z).reshape(-1, 3), drawn, rtol=0, atol=1e-5)
    expected = log_normal(z.reshape(-1, 3), FLOW.shift, FLOW.matrix.T @ FLOW.matrix)
    np.testing.assert_allclose(prior.log_prob(z), expected, rtol=0, atol=1e-4)
    apart = z.reshape(13, 100, *shape)
    np.testing.assert_array_equal(prior.log_prob(apart), prior.log_prob(z).reshape(13, 100))
    np.testing.assert_array_equal(prior.from_noise(drawn.reshape(13, 100, *shape)), apart)
    assert prior.log_prob(z[:0]).shape == (0,)


def test_the_kl_is_estimated_and_its_error_said(vae: VAE):
    """Over 4,000 draws it is the closed form's to 5 standard errors; the ELBO's error is that of both terms' draws."""
    x = rows(6)
    mu, logsigma = (np.float64(array) for array in vae.encode(x))
    precision = np.linalg.inv(FLOW.matrix.T @ FLOW.matrix)
    off = mu - FLOW.shift
    kl = 0.5 * (
        np.exp(2 * logsigma) @ np.diag(precision)
        + np.einsum("ni,ij,nj->n", off, precision, off)
        - 3
        - 2 * logsigma.sum(axis=1)
        - np.linalg.slogdet(precision)[1]
    )
    terms = vae.terms(x, num_samples=4000)
    assert terms.kl_per_dimension is None
    eps = noise.normal(0, noise.POSTERIOR, noise.index(x), 4000 * 3).reshape(6, 4000, 3)
    z = mu[:, None] + np.exp(logsigma)[:, None] * eps
    of_q = -0.5 * (eps.astype(np.float64) ** 2 + math.log(2 * math.pi)) - logsigma[:, None]
    of_draws = of_q.sum(axis=2) - log_normal(z, FLOW.shift, FLOW.matrix.T @ FLOW.matrix)  # [6, 4000]
    assert (np.abs(terms.kl - kl) < 5 * of_draws.std(axis=1) / math.sqrt(4000)).all()
    np.testing.assert_allclose(terms.kl, of_draws.mean(axis=1), rtol=0, atol=1e-4)
    log_likelihood = vae.likelihood.log_prob(x[:, None], vae.parameters(z.reshape(-1, 3)).reshape(6, 4000, -1))
    error = (log_likelihood - of_draws).std(axis=1, ddof=1) / math.sqrt(4000)
    np.testing.assert_allclose(terms.standard_error, error, rtol=1e-3)
    np.testing.assert_allclose(vae.elbo(x, 4000), terms.elbo)


def test_the_bound_comes_near_the_likelihood(vae: VAE):
    """log p(x) of a linear Gaussian model is a Gaussian's; the ELBO is below it, and 20,000 draws come near."""
    x = vae.sample(4, seed=1)
    at = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    bias, *columns = np.float64(vae.parameters(at))
    matrix = FLOW.matrix @ (np.array(columns) - bias)  # from noise to an observation
    covariance = matrix.T @ matrix + math.exp(2 * LOGSIGMA) * np.eye(5)
    exact = log_normal(x, bias + FLOW.shift @ (np.array(columns) - bias), covariance)
    elbo, bound = vae.terms(x, 2000), vae.log_likelihood(x, 20_000)
    assert (elbo.elbo < exact).all()
    np.testing.assert_allclose(bound, exact, rtol=0, atol=0.1)


def test_no_bit_depends_on_chunks_or_threads(bundle: Path):
    """Samples and figures are the same whatever is computed at once, and beside whom."""
    x, results = rows(20), []
    for threads, memory in ((1, 1 << 30), (3, 1)):
        vae = VAE.load(bundle, threads, memory)
        results.append([vae.sample(600, 1), vae.elbo(x, 7), vae.log_likelihood(x[:3], 1500), vae.terms(x, 3).kl])
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda start, vae=vae: vae.sample(100, 1, start=start), range(0, 600, 100)))
        results.append([np.concatenate(parts), np.concatenate([vae.elbo(x[i : i + 9], 7) for i in range(0, 20, 9)])])
    for one in results[1:]:
        for got, expected in zip(one, results[0], strict=False):
            np.testing.assert_array_equal(got, expected)


def test_each_graph_is_opened_when_it_is_used(vae: VAE):
    """Encoding needs neither of the other two, and sampling no encoder but the decoder first; a closed one says so."""
    opened = vae._sessions._opened
    assert opened is not None
    vae.encode(rows(1))
    assert set(opened) == {"encoder.onnx"}
    opened.clear()
    vae.prior.sample(0, [0])
    assert list(opened) == ["decoder.onnx", "prior.onnx"]
    vae.close()
    with pytest.raises(ArgumentError, match="closed VAE"):
        vae.prior.sample(0, [0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_and_pickles_have_their_own(vae: VAE):
    """A child draws what its parent drew, and so does a copy."""
    z = vae.prior.sample(0, [0, 1])
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(vae.prior.sample(0, [0, 1]), z) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(vae)).prior.sample(0, [0, 1]), z)


def test_a_missing_or_damaged_graph_is_refused(bundle: Path):
    """By its name, as a bundle's other files are; and where the manifest has none of it."""
    graph = bundle / "prior.onnx"
    data = graph.read_bytes()
    graph.unlink()
    with pytest.raises(BundleError, match=r"bundle incomplete, no such file: .*prior\.onnx; copy or export it again"):
        read(bundle)
    graph.write_bytes(data.replace(b"squares", b"squarEs"))
    with pytest.raises(BundleError, match=r"bundle damaged \(size or sha256 differs\): .*prior\.onnx"):
        read(bundle)
    graph.write_bytes(data)
    files = json.loads((bundle / "manifest.json").read_bytes())["files"]
    del files["prior.onnx"]
    with pytest.raises(BundleError, match=r"bundle incomplete, .*prior\.onnx"):
        read(changed(bundle, files=files))


@pytest.mark.parametrize("what", ["pair", "random", "shape", "fixed"])
def test_a_graph_of_another_kind_is_refused(bundle: Path, tmp_path: Path, what: str):
    """One of another bundle, one with random operators, one of other latents, and one that mixes its two sides."""
    data = (bundle / "prior.onnx").read_bytes()
    contract = contract_of(data)
    if what == "pair":
        data, words = data + stamped({**contract, "pair": "another"}), "graph belongs to another bundle"
    elif what == "random":
        random = graphs.field(7, graphs.fields(1, [graphs.node("RandomNormalLike", ["z"], ["r"])]))
        data, words = data + random, "graph holds what no VAE needs"
    elif what == "shape":
        other = Affine(np.eye(2), np.zeros(2))
        data, words = graphs.affine_flow(other, [2], contract), "graph's shapes are not the contract's"
    else:
        data = graphs.extended(data, "log_prob", [graphs.node("Add", ["_og_prob", "noise"], ["log_prob"])])
        words = "onnxruntime cannot run the graph|graph gives another shape than it declares"
    with pytest.raises(BundleError, match=words):
        VAE.load(bundles.forge(bundle, tmp_path / what, {"prior.onnx": data})).elbo(rows(2))


def test_walks_are_on_circles_of_noise(vae: VAE):
    """Between two observations the noise turns, and both ends are reconstructions; `linear` goes straight in z."""
    x = rows(2)
    ends = vae.encode(x)[0]
    around, straight = (latents.interpolate(vae, x[0], x[1], 5, linear) for linear in (False, True))
    for walk in (around, straight):
        np.testing.assert_array_equal(walk[[0, -1]], vae.reconstruct(x))
    noises = (ends - FLOW.shift) @ np.linalg.inv(FLOW.matrix)
    z = latents.path(*noises.astype(np.float32), 5) @ FLOW.matrix + FLOW.shift
    np.testing.assert_allclose(around, vae.decode(z), rtol=0, atol=1e-4)
    np.testing.assert_allclose(straight, vae.decode(np.linspace(*ends, 5)), rtol=0, atol=1e-5)


def test_a_traversal_knows_how_wide_a_latent_is(vae: VAE):
    """From its mean - 2 to its mean + 2 standard deviations under the prior, the others at what noise of 0 becomes."""
    walked = latents.traverse(vae, steps=3, span=2)
    drawn = np.float64(vae.prior.sample(0, np.arange(500)))
    means, deviations = drawn.mean(axis=0), drawn.std(axis=0)
    np.testing.assert_allclose(means, FLOW.shift, rtol=0, atol=0.3)
    np.testing.assert_allclose(deviations, np.sqrt(np.diag(FLOW.matrix.T @ FLOW.matrix)), rtol=0.2)
    for latent, theta in zip(walked.latents, walked.theta, strict=True):
        z = np.tile(FLOW.shift, (3, 1))
        z[:, latent] = means[latent] + deviations[latent] * np.array([-2, 0, 2])
        np.testing.assert_allclose(theta, vae.decode(z), rtol=0, atol=1e-4)
    mu, logsigma = (np.float64(array) for array in vae.encode(vae.sample(500)))
    variances = (np.exp(2 * logsigma) + (mu - means) ** 2) / deviations**2
    kl = (0.5 * (variances - 1) - logsigma + np.log(deviations)).mean(axis=0)
    np.testing.assert_allclose(walked.kl, np.sort(kl)[::-1], rtol=1e-4)


def test_commands_take_such_a_bundle(bundle: Path, tmp_path: Path, command: Command):
    """Samples, scores with their errors, walks and what the bundle is; a KL by latent there is none."""
    samples = str(tmp_path / "samples.npy")
    for words in (
        ["sample", "-n", "6", "-o", samples],
        ["elbo", samples],
        ["reconstruct", samples, "-o", str(tmp_path / "r.npy")],
        ["encode", samples, "-o", str(tmp_path / "e.npz")],
        ["decode", str(tmp_path / "e.npz"), "-o", str(tmp_path / "d.npy")],
        ["traverse", samples, "-o", str(tmp_path / "t.npy")],
        ["info"],
    ):
        result = command(main, "--bundle", bundle, *words)
        assert result.code == 0, result.err
        if words[0] == "traverse":
            assert result.out.endswith("from -3 to 3 standard deviations\n")
        if words[0] == "info":
            assert "3 dimensions, flow prior" in result.out
    found = score(VAE.load(bundle), np.load(samples), num_samples=9)
    assert found.kl_per_dimension is None
    assert (found.standard_error > 0).all()
