"""A learned prior's graph through the gate, in golden vectors and checks; and what the gate refuses of it."""

import contextlib
import copy
import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import vae_export
from support.runs import make_vae
from vae_export import (
    candidate,
    card,
    check,
    failing,
    gate,
    measured,
    onnx_graph,
    prior_graph,
    publish,
    quantise,
    reference,
    requirements,
)  # fmt: skip
from vae_export.candidate import Candidate
from vae_export.exporter import Exported
from vae_export.gate import Case
from vae_export.rounding import Precise
from vae_runtime import VAE, noise
from vae_runtime.bundle import read
from vae_runtime.errors import ArgumentError
from vae_runtime.observation import Observation
from vae_runtime.sessions import Session
from vae_runtime.verify import verify
from vae_train import fingerprint, pixels
from vae_train.flow import Flow
from vae_train.vae import VAE as TorchVAE

IMAGES = Observation.image((1, 6, 6))

Made = tuple[TorchVAE, np.ndarray]


class Small(Flow):
    """A flow of few weights."""

    def __init__(self) -> None:
        super().__init__((4,), couplings=3, width=8)


@pytest.fixture(scope="module")
def made() -> Made:
    """A VAE of binary images with a flow that does much, untrained, and 64 images."""
    plain, levels = make_vae("tutorial", "bernoulli", IMAGES.shape, hidden=(8,), latent_dim=4)
    prior, generator = Small(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return TorchVAE(plain.encoder, plain.decoder, 4, plain.likelihood, prior).eval(), levels.numpy()


@pytest.fixture(scope="module")
def exported(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Its bundle."""
    vae, levels = made
    kept = fingerprint.compute(vae, levels)
    return vae_export.export_vae(vae, IMAGES, levels, tmp_path_factory.mktemp("flow") / "bundle", fingerprint=kept)


def test_all_comparisons_pass(made: Made, exported: Exported) -> None:
    """Both directions at all batch sizes, near and far, there and back; parameters are counted with the prior's."""
    assert all(row.passed for row in exported.comparisons)
    found = Counter((row.tensor, row.inputs) for row in exported.comparisons if row.inputs.endswith(("z", "noise")))
    assert found == {
        ("logits", "prior z"): 4, ("logits", "posterior z"): 4, ("logits", "far z"): 1,
        ("z_of_noise", "noise"): 4, ("z_of_noise", "far noise"): 1,
        ("round trip", "noise"): 4, ("round trip", "far noise"): 1,
        ("noise_of_z", "prior z"): 4, ("noise_of_z", "posterior z"): 4, ("noise_of_z", "far z"): 1,
        ("log_prob", "prior z"): 4, ("log_prob", "posterior z"): 4, ("log_prob", "far z"): 1,
    }  # fmt: skip
    assert exported.manifest.parameters == sum(weight.numel() for weight in made[0].parameters())
    assert exported.manifest.contract.prior.name == "flow"


def test_one_graph_has_both_directions_on_the_same_weights(made: Made, exported: Exported) -> None:
    """Its inputs and outputs are named, their rows are two batches, and each weight is stored once, by its name."""
    model = onnx.load(exported.path / "prior.onnx")
    named = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert named == {
        "noise": ["draws", 4], "z": ["batch", 4],
        "z_of_noise": ["draws", 4], "noise_of_z": ["batch", 4], "log_prob": ["batch"],
    }  # fmt: skip
    assert [entry.version for entry in model.opset_import] == [17]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for i, coupling in enumerate(made[0].prior.couplings):
        second = coupling.body[2]
        np.testing.assert_array_equal(stored["weight_2"][i], second.weight.detach().numpy())
        np.testing.assert_array_equal(stored["bias_2"][i], second.bias.detach().numpy())
        unseen, kept = coupling.kept.numpy() == 0, np.tile(coupling.kept.numpy() == 1, 2)
        assert not stored["weight_1"][i][:, unseen].any()  # masks are in the weights
        assert not stored["weight_3"][i][kept].any()
        assert not stored["bias_3"][i][kept].any()
    weights = {f"{part}_{layer}" for part in ("weight", "bias") for layer in (1, 2, 3)}
    assert max(stored[name].size for name in stored.keys() - weights) == 2


def test_a_graph_has_the_nodes_of_one_coupling(made: Made, exported: Exported) -> None:
    """However many couplings there are: it is opened and checked in a moment. What is in the bodies is counted too."""
    more = prior_graph.to_onnx(Flow((4,), couplings=30, width=8), 17)
    graph = onnx.load(exported.path / "prior.onnx")
    assert len(more.graph.node) == len(graph.graph.node) < 20
    found = exported.manifest.onnx
    assert found is not None
    assert (found.operators["prior"]["Scan"], found.operators["prior"]["Gemm"]) == (2, 2 * 3)
    assert found.working_bytes["prior"] == requirements.working_bytes(more)
    assert 4 * (4 + 2 * 8) <= found.working_bytes["prior"] <= 4 * 20 * 8  # a few layers, and no weights


@pytest.mark.parametrize("shape", [(1,), (2, 3, 2)])
@pytest.mark.parametrize("opset", [17, onnx_graph.newest_opset()])
def test_latents_of_any_shape(shape: tuple[int, ...], opset: int) -> None:
    """Both directions at both ends of the opsets, in onnxruntime and ONNX's own evaluator, are the network's."""
    flow, generator = Flow(shape, width=8), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        z = torch.randn(5, *shape, generator=generator)
        expected = [flow.from_noise(z), flow.to_noise(z)[0], flow.log_prob(z)]
    model = prior_graph.to_onnx(flow, opset)
    session, given = Session(model.SerializeToString(), "prior"), z.numpy()
    got = [*session.run(["z_of_noise"], given, "noise"), *session.run(["noise_of_z", "log_prob"], given, "z")]
    readable = reference.readable(model)
    evaluated = [reference.run(readable, given, "noise")[0], *reference.run(readable, given, "z")[1:]]
    for one in (got, evaluated):
        for values, exact in zip(one, expected, strict=True):
            np.testing.assert_allclose(values, exact, rtol=1e-5, atol=1e-5)


def test_the_runtime_has_pytorchs_figures(made: Made, exported: Exported) -> None:
    """Samples of z, log p(z) and the bound are those of the network in float64, with the same noise."""
    vae, device = made[0].double(), VAE.load(exported.path)
    try:
        with torch.no_grad():
            drawn = torch.from_numpy(noise.normal(5, noise.PRIOR, np.arange(700), 4)).double()
            z = vae.prior.from_noise(drawn)
            np.testing.assert_allclose(device.prior.sample(5, np.arange(700)), z, rtol=0, atol=1e-4)
            expected = vae.prior.log_prob(torch.from_numpy(device.prior.sample(5, np.arange(700))).double())
            np.testing.assert_allclose(device.prior.log_prob(z.float().numpy()), expected, rtol=0, atol=1e-3)
            x = device.sample(5, seed=1)
            eps = noise.normal(2, noise.POSTERIOR, noise.index(x), 300 * 4).reshape(5, 300, 4).transpose(1, 0, 2)
            out = vae(torch.from_numpy(x).double(), torch.tensor(eps).double())
            log_p = vae.likelihood.log_prob(torch.from_numpy(x).double(), out.parameters)
            weights = log_p + vae.prior.log_ratio(out.mu, out.logsigma, out.z)
            np.testing.assert_allclose(device.elbo(x, 300, seed=2), weights.mean(dim=0), rtol=0, atol=1e-4)
            bound = weights.logsumexp(dim=0) - np.log(300)
            np.testing.assert_allclose(device.log_likelihood(x, 300, seed=2), bound, rtol=0, atol=1e-4)
    finally:
        vae.float()


def test_no_latent_depends_on_the_others(exported: Exported) -> None:
    """One alone has the bits that it has in company, in both directions and in its density."""
    prior = VAE.load(exported.path).prior
    z = noise.normal(1, noise.PRIOR, np.arange(70), 4)
    for of_z in (prior.from_noise, prior.to_noise, prior.log_prob):
        whole = of_z(z)
        for size in (1, 2, 3, 16, 69):
            np.testing.assert_array_equal(np.concatenate([of_z(z[i : i + size]) for i in range(0, 70, size)]), whole)


def test_golden_vectors_have_the_prior(exported: Exported) -> None:
    """Noise to the last bit, z and log p(z) within the gate's tolerance; ONNX's own evaluator agrees with them."""
    bundle = read(exported.path)
    rows = {row.name: row for row in verify(bundle)}
    assert list(rows) == ["noise", "z", "log_prob", "eps", "mu", "logsigma", "logits", "elbo"]
    assert all(row.passed for row in rows.values())
    assert (rows["noise"].tolerance, rows["eps"].tolerance) == (0, 0)
    assert 0 < rows["z"].tolerance < 1e-4
    checked = check.alone(bundle)
    assert all(row.passed for row in checked)
    assert {"z_of_noise, reference, batch 64", "log_prob, reference, batch 64"} <= {row.name for row in checked}


def test_a_card_tells_of_the_prior(exported: Exported) -> None:
    """That it was learned, and what its graph takes and gives."""
    text = card.write(exported.manifest)
    assert "as three ONNX graphs" in text
    assert "4 dimensions, flow prior, which was learned" in text
    assert "| `prior.onnx` | `noise` [m, 4] to `z_of_noise`, `z` [n, 4] to `noise_of_z` and `log_prob` [n] |" in text


def test_its_figures_are_measured_with_it(made: Made, exported: Exported) -> None:
    """The KL is that of one draw for each; of each latent it is that to a Gaussian of its moments, which is no sum."""
    device = VAE.load(exported.path)
    found = measured.on(made[1], "some", 20)(made[0], device)
    drawn = pixels.unit(pixels.fixed_draw(torch.from_numpy(made[1]))).numpy()
    assert found["figures"]["kl"]["mean"] == pytest.approx(device.terms(drawn).kl.mean())
    assert found["prior"] == "flow"
    assert len(found["kl_per_dimension"]) == 4


@pytest.fixture(scope="module")
def cases(made: Made) -> list[Case]:
    """What the gate expects."""
    return gate.expect(made[0], IMAGES, made[1])


@pytest.fixture(scope="module")
def plain(made: Made, exported: Exported) -> Candidate:
    """The graphs that were exported."""
    graphs = {role: onnx.load(exported.path / f"{role}.onnx") for role in ("encoder", "decoder", "prior")}
    return candidate.assemble("fp32", candidate.NETWORK, made[0], IMAGES, graphs)


def scale(name: str, by: float) -> Callable[[onnx.ModelProto], None]:
    """Make a weight larger."""

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(by), name))

    return change


def operator(direction: str, old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    """Put another operator in the place of the first such in the body of one direction, or outside of both."""

    def change(model: onnx.ModelProto) -> None:
        bodies = {it.g.name: it.g for node in model.graph.node for it in node.attribute if it.name == "body"}
        node = next(node for node in bodies.get(direction, model.graph).node if node.op_type == old)
        node.op_type = new

    return change


@pytest.mark.parametrize(
    ("change", "tensors"),
    [
        (scale("weight_3", 1.001), {"z_of_noise", "noise_of_z", "log_prob", "ELBO"}),
        (operator("from_noise", "Exp", "Identity"), {"z_of_noise", "round trip"}),
        (operator("to_noise", "Exp", "Identity"), {"round trip", "noise_of_z", "log_prob", "ELBO"}),
        (operator("", "Mul", "Add"), {"log_prob", "ELBO"}),
    ],
    ids=["weight", "forth", "back", "square"],
)
def test_a_graph_with_a_fault_is_refused(
    cases: list[Case],
    plain: Candidate,
    change: Callable[[onnx.ModelProto], None],
    tensors: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By each tensor that the fault reaches, in nats too; and what is kept of it says how far it is off."""
    model = copy.deepcopy(plain.graphs["prior"])
    change(model)
    faulty = candidate.assemble("fp32", plain.reference, plain.vae, IMAGES, {**plain.graphs, "prior": model})
    failed = [row for row in gate.judge(cases, faulty.runtime()) if not row.passed]
    assert {row.tensor for row in failed} == tensors
    assert max(row.nats for row in failed) > 1e-3
    for tensor in tensors:
        (tmp_path / tensor / "bundle").mkdir(parents=True)
        for name, data in faulty.files.items():
            (tmp_path / tensor / "bundle" / name).write_bytes(data)
        some = [row for row in failed if row.tensor == tensor]
        failing.keep(tmp_path / tensor / "kept", tmp_path / tensor / "bundle", some)
        line = (tmp_path / tensor / "kept" / failing.LINE).read_text()
        assert some[0].name in line
        if tensor not in ("ELBO", "round trip"):  # which load a bundle
            monkeypatch.chdir(tmp_path / tensor / "kept")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(line.split('"')[1])  # what python3 -c runs
            assert float(printed.getvalue()) == pytest.approx(some[0].max_abs, rel=1e-3)


def test_a_network_whose_two_directions_differ_is_refused(made: Made, plain: Candidate) -> None:
    """However exact its graph: there and back again is the noise itself."""

    class OneWay(Small):
        """What it gives is a little more than what it takes."""

        def from_noise(self, noise: Tensor) -> Tensor:
            """More by 0.1%."""
            return super().from_noise(noise) * 1.001

    vae, model = copy.deepcopy(made[0]), copy.deepcopy(plain.graphs["prior"])
    vae.prior = OneWay()
    vae.prior.load_state_dict(made[0].prior.state_dict())
    next(node for node in model.graph.node if "z_of_noise" in node.output).output[0] = "less"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.001), "more"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["less", "more"], ["z_of_noise"]))
    its = candidate.assemble("fp32", candidate.NETWORK, vae, IMAGES, {**plain.graphs, "prior": model})
    failed = [row for row in gate.compare(vae, its.runtime(), made[1]) if not row.passed]
    assert {row.tensor for row in failed} == {"round trip"}


@pytest.mark.slow
def test_float16_weights_are_the_priors_too(made: Made, plain: Candidate) -> None:
    """They are rounded in both directions alike, and pass against the network that is rounded so."""
    half = quantise.fp16(plain)
    assert half.size < plain.size
    stored = {tensor.name: tensor.data_type for tensor in half.graphs["prior"].graph.initializer}
    assert stored["weight_2.fp16"] == onnx.TensorProto.FLOAT16
    assert all(row.passed for row in gate.compare(half.vae, half.runtime(), made[1]))
    z = torch.zeros(1, 4)
    rounded, exact = (Precise(vae).evaluate(vae.prior.log_prob, z) for vae in (half.vae, plain.vae))
    assert 1e-7 < abs(rounded - exact).item() < 1e-2


def test_a_prior_from_elsewhere_is_refused(made: Made) -> None:
    """It would be lost without a word; where encoder and decoder are given by themselves, N(0, I) is what is meant."""
    theirs = nn.Module()
    theirs.prior, theirs.encoder, theirs.decoder = nn.Linear(4, 4), made[0].encoder, made[0].decoder
    for given, message in (
        (made[0], "a learned prior: Small; give the VAE to export_vae, which takes it"),
        (theirs, r"a learned prior: Linear; give encoder and decoder each by itself, whose prior then is N\(0, I\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            vae_export.export(given, observations=made[1], likelihood="bernoulli", out="unused")


def test_a_bundle_with_a_prior_may_be_replaced(exported: Exported, tmp_path: Path) -> None:
    """Its files are a bundle's, and another one beside them is not."""
    publish.check_target(exported.path)
    copied = Path(shutil.copytree(exported.path, tmp_path / "copied"))
    (copied / "notes.txt").write_text("")
    with pytest.raises(ArgumentError, match=r"output holds more than a bundle \(notes.txt\)"):
        publish.check_target(copied)
