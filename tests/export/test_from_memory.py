"""A VAE in memory becomes a bundle in one call, without a run: what is told of it, what is not, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import vae_export
from support.runs import make_vae
from vae_export import check, exporter
from vae_runtime import VAE, noise, prior
from vae_runtime.bundle import read
from vae_runtime.errors import ArgumentError, BundleError, InputError
from vae_runtime.observation import Observation
from vae_runtime.verify import verify
from vae_train import fingerprint
from vae_train.prior import StandardNormal
from vae_train.vae import VAE as TorchVAE

IMAGES = Observation.image((1, 8, 8))


@pytest.fixture(scope="module")
def vae() -> TorchVAE:
    """Two perceptrons of binary images."""
    return make_vae("deep", "bernoulli")[0]


@pytest.fixture(scope="module")
def observations() -> Any:
    """Real images, uint8 [64, 1, 8, 8]."""
    return make_vae("deep", "bernoulli")[1].numpy()


def test_a_vae_in_memory_is_exported(
    vae: TorchVAE, observations: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One call publishes a bundle that verifies, returns what the gate compared, and prints nothing."""
    vae.train()
    exported = vae_export.export_vae(vae, IMAGES, observations, tmp_path / "bundle")
    assert capfd.readouterr() == ("", "")
    assert vae.training  # it is as it was
    assert exported.path == tmp_path / "bundle"
    assert (exported.precision, exported.cost, exported.tried) == ("fp32", None, [])
    assert len(exported.comparisons) == 40
    assert all(comparison.passed for comparison in exported.comparisons)
    assert all(row.passed for row in verify(read(exported.path)))
    z = np.random.default_rng(0).standard_normal((5, vae.latent_dim), np.float32)
    with torch.no_grad():
        expected = vae.eval().decoder(torch.from_numpy(z))
    np.testing.assert_allclose(VAE.load(exported.path).parameters(z), expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_known_is_left_out(vae: TorchVAE, observations: Any, tmp_path: Path) -> None:
    """Without a training the manifest has no figures, settings and preprocessing; what is given stands there."""
    vae_export.export_vae(vae, IMAGES, observations, tmp_path / "bare", keep_failing=tmp_path / "failing")
    bare = json.loads((tmp_path / "bare" / "manifest.json").read_bytes())
    assert not {"settings", "preprocessing", "evaluation", "precision"} & bare.keys()
    assert bare["provenance"].keys() == {"vae-edge", "onnx", "onnxscript", "onnxruntime"}
    told = {
        "provenance": {"command": "my own loop"},
        "settings": {"beta": 1},
        "evaluation": {"dataset": "mine", "observations": 64},
    }
    vae_export.export_vae(vae, IMAGES, observations, tmp_path / "told", **told)
    manifest = json.loads((tmp_path / "told" / "manifest.json").read_bytes())
    assert manifest["provenance"] == {**bare["provenance"], **told["provenance"]}
    assert (manifest["settings"], manifest["evaluation"]) == (told["settings"], told["evaluation"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "failing"))] == []


def test_no_graph_is_published_that_is_off(
    vae: TorchVAE, observations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the exporter writes another graph than the network, GateFailed carries every comparison."""
    real = exporter.onnx_graph.to_onnx

    def off(*given: Any) -> onnx.ModelProto:
        model = real(*given)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bias"))
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return model

    monkeypatch.setattr(exporter.onnx_graph, "to_onnx", off)
    with pytest.raises(vae_export.GateFailed, match=r"^numeric gate failed: \d+ of 40 rows, the worst ") as caught:
        vae_export.export_vae(vae, IMAGES, observations, tmp_path / "bundle", keep_failing=tmp_path / "failing")
    verdict = caught.value.verdict
    assert verdict.heading == "fp32 in onnxruntime against the network in float64"
    assert len(verdict.comparisons) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["failing"]


def test_a_smaller_precision_is_weighed_on_the_observations(vae: TorchVAE, observations: Any, tmp_path: Path) -> None:
    """Without a run, the same observations say what float16 costs."""
    exported = vae_export.export_vae(vae, IMAGES, observations, tmp_path / "bundle", precision="fp16")
    assert exported.precision == "fp16"
    assert exported.cost is not None
    assert [verdict.precision for verdict in exported.verdicts] == ["fp32", "fp16"]
    assert read(exported.path).manifest.raw["precision"]["nats"] == exported.cost.nats < 0.5


@pytest.mark.slow
def test_another_network_than_the_fingerprint_is_refused(vae: TorchVAE, observations: Any, tmp_path: Path) -> None:
    """What a network gave when its training ended is held against what it gives now."""
    kept = fingerprint.compute(vae, observations)
    vae_export.export_vae(vae, IMAGES, observations, tmp_path / "same", fingerprint=kept)
    other = TorchVAE(vae.encoder, nn.Sequential(vae.decoder, nn.Tanh()), vae.latent_dim)
    with pytest.raises(BundleError, match="not the network that was trained: ELBO of kept image"):
        vae_export.export_vae(other, IMAGES, observations, tmp_path / "other", fingerprint=kept)


def test_an_unknown_precision_is_wrong_usage(vae: TorchVAE, observations: Any, tmp_path: Path) -> None:
    """It is named, with those that there are."""
    with pytest.raises(ArgumentError, match="unknown precision: fp8; choose fp32, fp16, int8, auto"):
        vae_export.export_vae(vae, IMAGES, observations, tmp_path / "bundle", precision="fp8")


def test_what_no_runtime_would_read_is_refused(vae: TorchVAE, observations: Any, tmp_path: Path) -> None:
    """Figures that do not say of how many observations they are, before any work."""
    with pytest.raises(
        ArgumentError, match=r"^entry of the manifest not understood: evaluation\.observations is missing;"
    ):
        vae_export.export_vae(vae, IMAGES, observations, tmp_path / "bundle", evaluation={"dataset": "mine"})
    assert not list(tmp_path.iterdir())


def test_the_top_level_has_what_it_names() -> None:
    """Every public name is there, and no other; the function is not hidden by a module of its name."""
    assert all(getattr(vae_export, name) for name in vae_export.__all__)
    assert callable(vae_export.export_vae)
    assert dir(vae_export) == sorted(vae_export.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        vae_export.nothing  # noqa: B018


def test_a_frozen_layer_stays_frozen(observations: Any, tmp_path: Path) -> None:
    """Each layer is left in the mode that it was in, not in that of the whole."""
    vae = make_vae("deep", "bernoulli")[0].train()
    vae.encoder.eval()
    before = [module.training for module in vae.modules()]
    vae_export.export_vae(vae, IMAGES, torch.from_numpy(observations), tmp_path / "bundle")  # a tensor will do
    assert [module.training for module in vae.modules()] == before


class NoClosedForm(StandardNormal):
    """N(0, I) as the trainer has it, with a KL that has to be estimated."""

    def kl(self, mu: torch.Tensor, logsigma: torch.Tensor) -> Any:
        """None."""


class RuntimeTwin(prior.StandardNormal):
    """The same on the device."""

    def kl(self, mu: Any, logsigma: Any) -> None:
        """None."""


def test_a_prior_without_a_closed_form_passes_the_gate(
    vae: TorchVAE, observations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate, golden vectors and both checks estimate its KL from one draw, and notice where that is wrong."""
    monkeypatch.setitem(prior.KNOWN, "standard-normal", RuntimeTwin)
    estimated = TorchVAE(vae.encoder, vae.decoder, vae.latent_shape, vae.likelihood, NoClosedForm(vae.latent_shape))
    exported = vae_export.export_vae(estimated, IMAGES, observations, tmp_path / "bundle")
    made = read(exported.path)
    assert all(row.passed for row in verify(made))
    assert all(row.passed for row in check.alone(made))
    x = VAE.load(exported.path).sample(4)
    eps = torch.from_numpy(noise.normal(0, noise.POSTERIOR, noise.index(x), vae.latent_dim))
    expected = estimated.elbo(torch.from_numpy(x), eps).detach().numpy()
    np.testing.assert_allclose(VAE.load(exported.path).elbo(x), expected, rtol=1e-5)
    assert np.abs(vae.elbo(torch.from_numpy(x), eps).detach().numpy() - expected).max() > 0.01
    monkeypatch.setattr(RuntimeTwin, "log_ratio", lambda self, z, eps, logsigma: np.zeros(len(z)))
    assert [row.name for row in verify(made) if not row.passed] == ["elbo"]


def test_values_off_the_support_are_refused_before_the_gate(tmp_path: Path) -> None:
    """Between the levels of a discretised logistic, and other than 0 and 1 in rows, which are not drawn."""
    logistic, observed = make_vae("deep", "discretised-logistic")
    with pytest.raises(InputError, match="no 8-bit levels: image 0"):
        vae_export.export_vae(logistic, IMAGES, observed.float() / 255 * 0.999, tmp_path / "bundle")


def test_levels_are_of_images_in_0_to_1(vae: TorchVAE, observations: Any, tmp_path: Path) -> None:
    """uint8 values are divided by 255 where the range says so, and nowhere else: there they are refused as numbers."""
    other = Observation("image", (1, 8, 8), (-1.0, 1.0))
    with pytest.raises(InputError, match=r"pixels outside \[-1, 1\]: image 0; scale them as in training"):
        vae_export.export_vae(vae, other, observations, tmp_path / "bundle")


@pytest.mark.parametrize("told", [{"provenance": {"at": Path("x")}}, {"settings": {"lr": float("nan")}}])
def test_what_json_cannot_hold_is_refused_before_the_work(
    vae: TorchVAE, observations: Any, tmp_path: Path, told: dict[str, Any]
) -> None:
    """An entry of the manifest that is no JSON is an ArgumentError, and nothing is made."""
    with pytest.raises(ArgumentError, match="entry of the manifest not understood"):
        vae_export.export_vae(vae, IMAGES, observations, tmp_path / "bundle", **told)
    assert list(tmp_path.iterdir()) == []
