"""The bundles that ship: what their manifests claim."""

import pytest

from vae_runtime import VAE
from vae_runtime.bundle import shipped

SHIPPED = {"mnist": (-79.5, "a700b0d972959b58"), "fashion-mnist": (-225.5, "33bc86729d1a5fab")}
EACH = pytest.mark.parametrize("name", SHIPPED)


def bound(evaluation):
    """The bound of log p(x) with the most samples."""
    return max(evaluation.figures.values(), key=lambda figure: figure.num_samples or 0)


@EACH
def test_the_manifests_figures_are_what_the_readers_are_promised(name):
    """log p(x) of at least so many nats over all 10,000 test images, on the literature's binary draw of them."""
    least, drawn = SHIPPED[name]
    manifest = VAE.load(name).manifest
    evaluation, best = manifest.evaluation, bound(manifest.evaluation)
    assert evaluation.observations == 10_000
    assert best.num_samples >= 100
    assert (evaluation.dataset, evaluation.split, evaluation.prior) == (name, "test", "flow")
    assert evaluation.binarisation == f"fixed draw, seed 777, sha256 {drawn}"
    assert 0 > best.mean >= least
    assert best.mean > evaluation.figures["elbo"].mean
    assert manifest.provenance.command.startswith(f"vae-train --dataset {name} --preset resnet --prior flow ")


def test_the_default_is_mnist():
    """Without a name, and by the name `default`, the model of digits is loaded."""
    assert shipped() == shipped("default") == shipped("mnist")
    assert VAE.load().manifest == VAE.load("mnist").manifest


@EACH
def test_the_shipped_bundles_are_small(name):
    """All files of one together take at most 6 MB."""
    assert sum(path.stat().st_size for path in shipped(name).iterdir()) <= 6_000_000
