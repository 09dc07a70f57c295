"""The figures in the manifests of the bundles that ship, computed again on the real test images."""

import numpy as np
import pytest

from vae_runtime import VAE
from vae_train import data, pixels
from vae_train.config import PRESETS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_shipped_bundles_have_their_manifests_figures(name, data_root):
    """The bound on 500 test images within 4 standard errors; K = 1 on all 10,000 within 4 of the noise in z."""
    images = data.load(PRESETS["tutorial"].replace(dataset=name), data_root, download=False)
    x = pixels.unit(images.observed_test(binary=True)).numpy()
    vae = VAE.load(name)
    some = vae.log_likelihood(x[::20], num_samples=100)
    figures = vae.manifest.evaluation.figures
    assert abs(some.mean() - figures["log_likelihood_100"].mean) < 4 * some.std(ddof=1) / np.sqrt(len(some))
    one, other = vae.elbo(x, seed=0), vae.elbo(x, seed=1)
    error = np.sqrt(np.square(one - other).mean() / len(x))  # of the difference between two means over draws of z
    assert abs(one.mean() - figures["elbo"].mean) < 4 * error
