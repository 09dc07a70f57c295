"""The runtime's VAE against ONNX's reference implementation and torch.distributions, and on real images."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae_runtime import VAE, noise
from vae_runtime.bundle import shipped

SEED = 17


def torch_draws(vae: VAE, x: np.ndarray, num_samples: int, seed: int) -> tuple[torch.Tensor, ...]:
    """log p(x|z_k), log p(z_k), log q(z_k|x) as [batch, K] and KL as [batch], in float64 by torch.distributions."""
    mu, logsigma = (torch.from_numpy(a.astype(np.float64)) for a in vae.encode(x))
    eps = noise.normal(seed, noise.POSTERIOR, noise.index(x), num_samples * vae.latent_dim).astype(np.float64)
    q = Normal(mu[:, None], logsigma.exp()[:, None])
    prior = Normal(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    z = q.mean + q.stddev * torch.from_numpy(eps.reshape(len(x), num_samples, vae.latent_dim))
    flat = z.reshape(-1, vae.latent_dim).numpy().astype(np.float32)
    logits = vae.parameters(flat).astype(np.float64).reshape(len(x), num_samples, -1)
    pixels = torch.from_numpy(x.astype(np.float64)).reshape(len(x), 1, -1)
    log_likelihood = Bernoulli(logits=torch.from_numpy(logits)).log_prob(pixels.expand(logits.shape)).sum(2)
    kl = kl_divergence(Normal(mu, logsigma.exp()), prior).sum(1)
    return log_likelihood, prior.log_prob(z).sum(2), q.log_prob(z).sum(2), kl


def test_encode_and_decode_run_the_bundles_graphs(loaded):
    """mu, logsigma and theta equal those of ONNX's own reference implementation on the bundle's files."""
    vae, x = loaded.vae, loaded.x[:7]
    encoder, decoder = (ReferenceEvaluator(onnx.load(loaded.path / f"{role}.onnx")) for role in ("encoder", "decoder"))
    mu, logsigma = vae.encode(x)
    expected_mu, expected_logsigma = encoder.run(["mu", "logsigma"], {"x": x})
    np.testing.assert_allclose(mu, expected_mu, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logsigma, expected_logsigma, rtol=1e-4, atol=1e-4)
    (logits,) = decoder.run(["logits"], {"z": mu})
    np.testing.assert_allclose(vae.parameters(mu), logits, rtol=1e-4, atol=1e-3)
    theta = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(vae.decode(mu), theta, rtol=0, atol=1e-4)
    np.testing.assert_allclose(vae.reconstruct(x), theta, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_samples", [1, 3, 65])
def test_elbo_is_that_of_torch_distributions(loaded, num_samples: int):
    """The ELBO and both its terms equal a float64 computation from the same noise to 1e-4 nats or 1e-6."""
    x = np.concatenate([loaded.x[:10], loaded.x[-10:]])
    log_likelihood, _, _, kl = torch_draws(loaded.vae, x, num_samples, SEED)
    terms = loaded.vae.terms(x, num_samples, SEED)
    np.testing.assert_allclose(terms.reconstruction, log_likelihood.mean(1), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(terms.kl, kl, rtol=0, atol=1e-4)
    np.testing.assert_allclose(loaded.vae.elbo(x, num_samples, SEED), log_likelihood.mean(1) - kl, rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(terms.elbo, terms.reconstruction - terms.kl)


@pytest.mark.parametrize("num_samples", [1, 3, 65])
def test_log_likelihood_is_the_importance_weighted_bound(loaded, num_samples: int):
    """log 1/K sum p(x|z) p(z) / q(z|x) equals a float64 computation from the same noise to 1e-4 nats or 1e-6."""
    x = np.concatenate([loaded.x[:10], loaded.x[-10:]])
    log_likelihood, log_p, log_q, _ = torch_draws(loaded.vae, x, num_samples, SEED)
    expected = (log_likelihood + log_p - log_q).logsumexp(1) - math.log(num_samples)
    got = loaded.vae.log_likelihood(x, num_samples, SEED)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-4)


def test_the_shipped_bundle_has_its_manifests_elbo(data_root):
    """On 1,000 binarised MNIST test images the mean ELBO lies within 4 standard errors of the manifest's figure."""
    from vae_train import data
    from vae_train.config import PRESETS

    images = data.load(PRESETS["tutorial"], data_root, download=False)
    x = images.observed_test(binary=True)[::10].numpy() // 255
    vae = VAE.load(shipped())
    elbo = vae.elbo(x.astype(np.float32))
    figure = vae.manifest.evaluation.figures["elbo"]
    assert elbo.shape == (1000,)
    error = math.hypot(elbo.std(ddof=1) / math.sqrt(len(elbo)), figure.standard_error)
    assert abs(elbo.mean() - figure.mean) < 4 * error
