"""A bundle of format 1, which releases before 0.2 wrote: it is read, verified, and gives the numbers that it gave."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support import bundles
from support.graphs import stamped
from vae_runtime import VAE, score
from vae_runtime.bundle import GRAPHS, read
from vae_runtime.verify import verify

OLD = Path(__file__).parents[1] / "support" / "tiny_format_1"  # as it was when the format was the newest; never remade
ELBO = [-311.21643894, -324.86278847, -317.84193959]  # of its own samples below, as release 0.1 printed them
BOUND = [-308.09003046, -321.20744874, -315.32847159]


def test_it_is_of_format_1() -> None:
    """The committed file says so; otherwise nothing here would be tested."""
    assert json.loads((OLD / "manifest.json").read_bytes())["contract"]["format"] == 1


def test_it_is_verified() -> None:
    """Its hashes are right, and its golden vectors within tolerance."""
    rows = verify(read(OLD))
    assert [row.name for row in rows] == ["z", "eps", "mu", "logsigma", "logits", "elbo"]
    assert all(row.passed for row in rows)


def test_its_numbers_are_as_they_were() -> None:
    """Samples to the bit, ELBO and bound to float32's rounding, as processors differ."""
    with VAE.load(OLD) as vae:
        x = vae.sample(3, seed=7)
        assert x.sum(axis=(1, 2, 3)).tolist() == [265, 235, 254]
        np.testing.assert_allclose(vae.elbo(x, num_samples=4, seed=1), ELBO, atol=2e-4)
        np.testing.assert_allclose(vae.log_likelihood(x, 5, seed=1), BOUND, atol=2e-4)


def test_the_same_graphs_in_format_2_give_the_same_bits(tmp_path: Path) -> None:
    """Upgraded by hand, contract and evaluation alone changed, it gives equal figures in every verb, and verifies."""
    contract = read(OLD).manifest.contract.json()
    assert contract["format"] == 2
    graphs = {
        name: (OLD / name).read_bytes() + stamped({**contract, "role": name.removesuffix(".onnx")}) for name in GRAPHS
    }

    def upgrade(manifest: dict[str, Any]) -> None:
        measured = manifest["evaluation"]
        manifest |= {"contract": contract, "evaluation": {"observations": measured.pop("images"), **measured}}

    new = bundles.forge(OLD, tmp_path / "new", graphs, upgrade)
    assert all(row.passed for row in verify(read(new)))
    before, now = ({name: values.tobytes() for name, values in figures(path).items()} for path in (OLD, new))
    assert before == now


def figures(path: Path) -> dict[str, NDArray[Any]]:
    """What a bundle gives in every verb."""
    with VAE.load(path) as vae:
        x = vae.sample(20, seed=7)
        mu, logsigma = vae.encode(x)
        elbo = vae.elbo(x, num_samples=4, seed=1)
        return {
            "x": x,
            "theta": vae.decode(mu),
            "mu": mu,
            "logsigma": logsigma,
            "elbo": elbo,
            "bound": vae.log_likelihood(x, 5, seed=1),
            "grey": vae.terms(0.5 * x + 0.25, 2, seed=3, observe=True).elbo,
            "percentile": vae.percentile(elbo),
        }


def test_a_format_of_the_past_gives_the_same_numbers(tiny_bundle: Path) -> None:
    """A bundle of format 1 is read, and gives the numbers of the same graphs in format 2, to the last bit."""
    old, new = VAE.load(OLD), VAE.load(tiny_bundle)
    assert old.manifest.raw["contract"]["format"] == 1
    assert old.manifest.contract == new.manifest.contract
    assert old.manifest.evaluation == new.manifest.evaluation
    x = new.sample(30, seed=2)
    np.testing.assert_array_equal(old.sample(30, seed=2), x)
    for call in (VAE.encode, VAE.elbo, VAE.log_likelihood, VAE.reconstruct):
        np.testing.assert_array_equal(call(old, x), call(new, x))
    np.testing.assert_array_equal(score(old, 0.5 * x).elbo, score(new, 0.5 * x).elbo)
