"""The bundle that ships: what its manifest claims, and the same figures computed again on the real test images."""

import numpy as np
import pytest

from vae_runtime import VAE
from vae_runtime.bundle import shipped


def test_the_manifests_figures_are_what_the_readers_are_promised():
    """log p(x) >= -87 nats at K = 500 over MNIST's 10,000 test images, on the literature's binary draw of them."""
    info = VAE.load().info
    evaluation = info["evaluation"]
    bound = evaluation["figures"]["log_likelihood_500"]
    assert (bound["num_samples"], evaluation["images"]) == (500, 10_000)
    assert (evaluation["dataset"], evaluation["split"], evaluation["prior"]) == ("mnist", "test", "standard-normal")
    assert evaluation["binarisation"] == "fixed draw, seed 777, sha256 a700b0d972959b58"
    assert 0 > bound["mean"] >= -87.0
    assert bound["mean"] > evaluation["figures"]["elbo"]["mean"]
    assert info["provenance"]["command"].startswith("vae-train --preset deep ")


def test_the_shipped_bundle_is_small():
    """All its files together take at most 6 MB."""
    assert sum(path.stat().st_size for path in shipped().iterdir()) <= 6_000_000


@pytest.mark.slow
def test_the_shipped_bundle_has_its_manifests_figures(data_root):
    """K = 500 on 1,000 test images within 4 standard errors; K = 1 on all 10,000 within 4 of the noise in z."""
    from vae_train import data, pixels
    from vae_train.config import PRESETS

    images = data.load(PRESETS["tutorial"], data_root, download=False)
    x = pixels.unit(images.observed_test(binarise=True)).numpy()
    vae = VAE.load()
    figures = vae.info["evaluation"]["figures"]
    some = vae.log_likelihood(x[::10], num_samples=500)
    assert abs(some.mean() - figures["log_likelihood_500"]["mean"]) < 4 * some.std(ddof=1) / np.sqrt(len(some))
    one, other = vae.elbo(x, seed=0), vae.elbo(x, seed=1)
    error = np.sqrt(np.square(one - other).mean() / len(x))  # of the difference between two means over draws of z
    assert abs(one.mean() - figures["elbo"]["mean"]) < 4 * error
