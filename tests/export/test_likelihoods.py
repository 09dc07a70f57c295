"""Each likelihood from PyTorch to the device: exported through the numeric gate, and the same numbers on both sides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from support.commands import Command, Result
from support.runs import make_vae
from vae_export import card, export_run, exporter
from vae_export.cli import main as export_main
from vae_runtime import VAE, noise
from vae_runtime.bundle import read
from vae_runtime.cli import main as infer_main
from vae_runtime.manifest import Named
from vae_runtime.observation import SERIES, Observation
from vae_runtime.verify import verify
from vae_train import data, run_folder, train
from vae_train.cli import main as train_main
from vae_train.config import Place, vector
from vae_train.run import Run
from vae_train.vae import VAE as TorchVAE

SMALL = {"hidden": (24,), "latent_dim": 3}


@torch.no_grad()
def assert_the_device_agrees(vae: TorchVAE, device: VAE, x: NDArray[np.float32]) -> None:
    """Golden vectors pass; terms of the ELBO and means are PyTorch's, and draws lie in the support."""
    assert all(row.passed for row in verify(read(device.path)))
    eps = noise.normal(3, noise.POSTERIOR, noise.index(x), vae.latent_dim)
    expected, got = vae.terms(torch.from_numpy(x), torch.from_numpy(eps)), device.terms(x, seed=3)
    for name in ("elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name).numpy(), rtol=1e-5, atol=1e-3)
    means = vae.likelihood.mean(vae.decoder(vae.encoder(torch.from_numpy(x))[0]))
    np.testing.assert_allclose(device.reconstruct(x), means.numpy(), rtol=1e-4, atol=1e-4)
    assert device.likelihood.supports(device.sample(50, seed=1).astype(np.float32)).all()


def exported(vae: TorchVAE, observation: Observation, x: NDArray[Any], out: Path) -> VAE:
    """The VAE on the device, through the gate."""
    exporter.export_vae(vae, observation, x, out)
    return VAE.load(out, threads=1)


@pytest.mark.parametrize(
    ("sigma", "shape", "many"), [("column", (3, 4, 5), (3, 1, 1)), ("value", (3, 6), (3, 6))], ids=["images", "series"]
)
def test_values_share_a_sigma(sigma: str, shape: tuple[int, ...], many: tuple[int, ...], tmp_path: Path) -> None:
    """The contract has as many numbers as there are sigmas, and the device as many again."""
    vae, levels = make_vae("tutorial", "gaussian", shape, sigma=sigma, **SMALL)
    observation = Observation.image(shape) if len(shape) == 3 else Observation(SERIES, shape, None)
    x = (levels.float() / 255).numpy()
    device = exported(vae, observation, x, tmp_path / "bundle")
    settings = device.manifest.contract.likelihood.settings
    assert vae.likelihood.logsigma.shape == device.likelihood.logsigma.shape == many
    np.testing.assert_array_equal(np.ravel(settings["logsigma"]), device.likelihood.logsigma.ravel())
    assert_the_device_agrees(vae, device, x)


def test_images_whose_sigma_the_decoder_gives(tmp_path: Path) -> None:
    """Twice as many parameters as values, and no setting in the contract."""
    vae, levels = make_vae("tutorial", "heteroscedastic-gaussian", (3, 4, 5), **SMALL)
    device = exported(vae, Observation.image((3, 4, 5)), levels.numpy(), tmp_path / "bundle")
    assert device.manifest.contract.likelihood == Named("heteroscedastic-gaussian")
    assert device.parameters(np.zeros((2, 3), np.float32)).shape == (2, 6, 4, 5)
    assert_the_device_agrees(vae, device, (levels.float() / 255).numpy())


def rows(n: int = 900) -> NDArray[np.float64]:
    """Seeded rows of five columns in their units: three that one cause drives, and two of 0 and 1 that it drives too.

    The second is noisier where the fourth is 1, and the third has far values.
    """
    random = np.random.default_rng(3)
    cause = random.normal(size=n)
    flags = (random.normal(size=(n, 2)) < cause[:, None]).astype(float)
    noises = random.normal(size=n), random.normal(size=n) * (0.1 + flags[:, 0]), random.standard_t(2, n)
    real = np.column_stack([cause + 0.3 * noise for noise in noises]) * [4.0, 300.0, 0.01] + [20.0, 101325.0, 0.5]
    return np.column_stack([real, flags])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These rows as a table."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = ["temp,pressure,load,open,warm", *(",".join(map(repr, row)) for row in rows().tolist())]
    path.write_text("\n".join(lines) + "\n")
    return path


@torch.no_grad()
def trained(table: Path, out: Path, likelihood: str, **settings: Any) -> tuple[Run, VAE]:
    """A finished training of the table, and its VAE on the device."""
    config = vector(5, 900).replace(dataset=str(table), likelihood=likelihood, epochs=3, hidden=(16,), **settings)
    with torch.enable_grad():
        train.train(config, out, Place(Path(), False, "cpu", 1), "vae-train")
    run = run_folder.load(out)
    return run, VAE.load(export_run(run, out / "bundle").path, threads=1)


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize(
    "likelihood",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("heteroscedastic-gaussian", "student-t")), "auto"],
)
@torch.no_grad()
def test_a_row_of_a_table_gets_the_score_that_training_computed(likelihood: str, table: Path, tmp_path: Path) -> None:
    """Raw rows on the device, preprocessing and units and all, against the run's network; columns sum to the whole."""
    run, device = trained(table, tmp_path / "run", likelihood)
    observed = data.load(run.config, Path())
    raw = rows()[data.in_test(rows())]
    assert len(raw) == len(observed.test) > 50
    np.testing.assert_array_equal(device.standardise(raw), observed.test.numpy())
    eps = noise.normal(5, noise.POSTERIOR, noise.index(observed.test.numpy()), run.vae.latent_dim)
    expected = run.vae.terms(observed.test, torch.from_numpy(eps))
    got = device.terms(raw, seed=5)
    np.testing.assert_allclose(got.elbo, expected.elbo.numpy(), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(device.contributions(raw, 1, 5).sum(axis=1), got.reconstruction, rtol=1e-9, atol=1e-5)
    assert all(row.passed for row in verify(read(device.path)))
    assert device.sample(200, seed=2).shape == (200, 5)


def test_a_table_with_some_columns_of_0_and_1(
    command: Command, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default they are Bernoulli and the others Gaussian, as a line says; every verb knows that."""
    monkeypatch.chdir(tmp_path)
    here = ["--device", "cpu", "--threads", 1]
    made = command(train_main, "--dataset", table, "--epochs", 2, "--hidden", 16, "--out", "run", *here)
    assert made.code == 0, made.err
    assert (
        "2 columns of 0 and 1 are taken as such, the likelihood is mixed: open, warm; --likelihood gaussian takes them "
        "as real numbers\n" in made.err
    )
    assert "5 columns, 3 of them scaled to mean 0 and spread 1" in made.err
    assert "mixed likelihood" in made.err
    assert run_folder.load(Path("run")).config.network.likelihood == "mixed"
    assert "Columns" in Path("run/report.html").read_text()
    done = command(export_main, "run", "--out", "bundle")
    assert done.code == 0, done.err
    settings = VAE.load("bundle").manifest.contract.likelihood.settings
    assert settings["binary"] == [False, False, False, True, True]
    assert len(settings["logsigma"]) == len(settings["log_unit"]) == 5
    assert "Bernoulli of columns of 0 and 1, Gaussian of real numbers in the others" in card.write(
        read(Path("bundle")).manifest
    )

    def infer(*words: object) -> Result:
        result = command(infer_main, "--bundle", "bundle", *words)
        assert result.code == 0, result.err
        return result

    infer("sample", "-n", 300, "--seed", 1, "-o", "samples.csv")
    drawn = np.genfromtxt("samples.csv", delimiter=",", names=True)
    assert set(drawn["open"]) == set(drawn["warm"]) == {0, 1}
    assert 101000 < drawn["pressure"].mean() < 102000
    infer("reconstruct", "samples.csv", "-o", "both.csv")
    theta = np.genfromtxt("both.csv", delimiter=",", names=True)["open_reconstructed"]
    assert ((theta > 0) & (theta < 1)).all()
    scored = json.loads(infer("elbo", "samples.csv", "--by-column", "--format", "json", "-K", 2).out)
    first = scored["rows"][0]
    of_columns = [first[f"log p({name})"] for name in drawn.dtype.names]
    assert sum(of_columns) == pytest.approx(first["reconstruction"], abs=1e-3)
    assert all(score["log p(open)"] <= 0 for score in scored["rows"])
    assert "mixed likelihood (a log density)" in infer("info").out
    infer("verify")
    assert command(export_main, "check", "bundle", "run").code == 0
    assert command(export_main, "check", "bundle").code == 0
    Path("odd.csv").write_text("warm,open,temp,pressure,load\n1,0,20,101325,0.5\n0.5,1,20,101325,0.5\n")
    for words in (("elbo", "odd.csv"), ("encode", "odd.csv"), ("reconstruct", "odd.csv", "-o", "x.csv")):
        refused = command(infer_main, "--bundle", "bundle", *words)
        assert refused.code == 4
        assert "neither 0 nor 1 in a column of such values: row 1, column warm; clean the data" in refused.err
