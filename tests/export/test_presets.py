"""Every preset under every likelihood at every opset, from PyTorch to the runtime: the same numbers, in tidy graphs."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from support.runs import OF_PIXELS, SHAPES, make_vae, smooth_images
from vae_export import exporter, onnx_graph, tradeoff
from vae_runtime import VAE, noise
from vae_runtime.bundle import read
from vae_runtime.observation import Observation
from vae_runtime.verify import verify
from vae_train import run_folder, train
from vae_train.config import PRESETS, Place
from vae_train.vae import VAE as TorchVAE

PREPROCESSING = {"levels": "made up", "split": "none", "unreadable": 3}
Exported = Callable[[str, str, int], tuple[TorchVAE, torch.Tensor, Path]]
PERCEPTRON = {"Gemm", "Reshape"}
CONVOLUTIONAL = {"Conv", "Gemm", "Reshape", "Sigmoid", "Mul", "Add"}
OPERATORS = {  # of encoder and decoder, besides the encoder's Clip
    "tutorial": (PERCEPTRON | {"Relu"}, PERCEPTRON | {"Relu"}),
    "deep": (PERCEPTRON | {"Sigmoid", "Mul"}, PERCEPTRON | {"Sigmoid", "Mul"}),
    "gated": (PERCEPTRON | {"Sigmoid", "Mul"}, PERCEPTRON | {"Sigmoid", "Mul"}),
    "resnet": (CONVOLUTIONAL, CONVOLUTIONAL | {"DepthToSpace"}),
    "resnet-colour": (CONVOLUTIONAL, CONVOLUTIONAL | {"DepthToSpace"}),
}
OPSETS = range(onnx_graph.OLDEST_OPSET, onnx_graph.newest_opset() + 1)
PAIRS = [(preset, likelihood) for preset in SHAPES for likelihood in OF_PIXELS]
OWN = [
    pair for pair in PAIRS if pair[0] == "tutorial" or pair[1] == PRESETS[pair[0]].network.likelihood
]  # the smallest: all
FAST = {(OWN[i % len(OWN)], OPSETS[i % len(OPSETS)]) for i in range(max(len(OWN), len(OPSETS)))}  # 3 to 6 s each
CASES = [
    pytest.param(*pair, opset, marks=[] if (pair, opset) in FAST else pytest.mark.slow)
    for pair in PAIRS
    for opset in OPSETS
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported(preset, likelihood, opset)`: such a VAE, what its likelihood sees of images, and its bundle."""
    made: dict[tuple[str, str, int], tuple[TorchVAE, torch.Tensor, Path]] = {}

    def get(preset: str, likelihood: str, opset: int) -> tuple[TorchVAE, torch.Tensor, Path]:
        if (preset, likelihood, opset) not in made:
            out = tmp_path_factory.mktemp("presets") / "bundle"
            vae, levels = make_vae(preset, likelihood)
            told = {"preprocessing": PREPROCESSING}
            exporter.export_vae(vae, Observation.image(SHAPES[preset]), levels.numpy(), out, opset=opset, **told)
            x = torch.from_numpy(tradeoff.samples_of(vae, levels.numpy()).test)
            made[preset, likelihood, opset] = vae, x, out
        return made[preset, likelihood, opset]

    return get


def test_default_cases_have_each_preset_likelihood_and_opset() -> None:
    """Of the whole matrix, the cases that always run leave no preset, no likelihood and no opset out."""
    pairs, opsets = {pair for pair, _ in FAST}, {opset for _, opset in FAST}
    assert {preset for preset, _ in pairs} == set(PRESETS) - {"vector", "series"}  # test_vectors.py, test_series.py
    assert {likelihood for _, likelihood in pairs} == set(OF_PIXELS)
    assert opsets == set(OPSETS)
    assert {17, 18, 19, 20} <= opsets


@pytest.mark.parametrize(("preset", "likelihood", "opset"), CASES)
@torch.no_grad()
def test_bundle_gives_pytorchs_numbers(exported: Exported, preset: str, likelihood: str, opset: int) -> None:
    """The graphs pass the gate, verify, and give PyTorch's posterior, parameters, means and terms of the ELBO."""
    vae, x, out = exported(preset, likelihood, opset)
    shape, latent_dim = SHAPES[preset], vae.latent_dim

    loaded = read(out)
    assert all(row.passed for row in verify(loaded))
    manifest = loaded.manifest.raw
    assert manifest["onnx"]["opset"] == opset
    assert manifest["preprocessing"] == PREPROCESSING
    assert manifest["parameters"] == sum(weight.numel() for weight in vae.parameters())
    assert manifest["contract"]["latent_shape"] == [latent_dim]
    assert manifest["contract"]["observation"] == {"kind": "image", "shape": list(shape), "range": [0, 1]}
    contract: dict[str, Any] = {"name": likelihood}
    if likelihood == "gaussian":
        contract["settings"] = {"logsigma": vae.likelihood.logsigma.item()}
    assert manifest["contract"]["likelihood"] == contract

    runtime = VAE.load(out, threads=1)
    mu, logsigma = vae.encoder(x)
    assert mu.std(dim=0).max() > 1e-3  # the encoder tells images apart, so that equal numbers mean something
    for got, expected in zip(runtime.encode(x.numpy()), (mu, logsigma), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
    z = noise.normal(5, noise.PRIOR, np.arange(9), latent_dim)
    parameters = vae.decoder(torch.from_numpy(z))
    np.testing.assert_allclose(runtime.parameters(z), parameters.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(runtime.decode(z), vae.likelihood.mean(parameters).numpy(), rtol=1e-4, atol=1e-4)

    eps = noise.normal(3, noise.POSTERIOR, noise.index(x.numpy()), latent_dim)
    expected = vae.terms(x, torch.from_numpy(eps))
    got = runtime.terms(x.numpy(), seed=3)
    for name in ("elbo", "reconstruction", "kl"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name).numpy(), rtol=1e-5, atol=1e-3)
    assert expected.elbo.std() > 0.1
    drawn = runtime.sample(4, seed=1)
    assert drawn.shape == (4, *shape)
    assert runtime.likelihood.supports(drawn).all()


@pytest.mark.parametrize(("preset", "likelihood", "opset"), CASES)
def test_graphs_are_short_and_readable(exported: Exported, preset: str, likelihood: str, opset: int) -> None:
    """Nothing in a graph is unused or left from torch, its operators are few, and its names are the network's."""
    vae, _, out = exported(preset, likelihood, opset)
    manifest = json.loads((out / "manifest.json").read_bytes())
    for role, network, operators in zip(
        ("encoder", "decoder"), (vae.encoder, vae.decoder), OPERATORS[preset], strict=True
    ):
        model = onnx.load(out / f"{role}.onnx")
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset}
        assert model.graph.name == role
        assert_nothing_unused(model.graph)
        assert_nothing_left_from_torch(model)
        assert_names_are_the_networks(model.graph, network)
        count = Counter(node.op_type for node in model.graph.node)
        assert set(count) == operators | ({"Clip"} if role == "encoder" else set())
        assert count["Gemm"] == sum(isinstance(part, nn.Linear) for part in network.modules())
        assert count["Conv"] == sum(isinstance(part, nn.Conv2d) for part in network.modules())
        assert count["Reshape"] == 1
        assert manifest["onnx"]["operators"][role] == count
    assert (
        manifest["onnx"]["ir_version"] == model.ir_version == helper.find_min_ir_version_for(list(model.opset_import))
    )


def assert_nothing_unused(graph: onnx.GraphProto) -> None:
    """Every node, weight and described value leads somewhere."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output}
    assert made <= used
    assert {tensor.name for tensor in graph.initializer} <= used
    assert {value.name for value in graph.value_info} == made - {value.name for value in graph.output}


def assert_nothing_left_from_torch(model: onnx.ModelProto) -> None:
    """No metadata but the contract, no documentation, and no attribute that only says what is so anyway."""
    graph = model.graph
    assert [entry.key for entry in model.metadata_props] == ["vae_edge"]
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        assert not part.metadata_props
        assert not part.doc_string
    assert not any(attribute.name == "allowzero" for node in graph.node for attribute in node.attribute)
    for value in (*graph.value_info, *graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def assert_names_are_the_networks(graph: onnx.GraphProto, network: nn.Module) -> None:
    """Weights are called as in the state_dict, nodes after modules, and constants after the nodes that they are for."""
    modules, weights = dict(network.named_modules()), network.state_dict()
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, weight in weights.items():
        np.testing.assert_array_equal(tensors.pop(name), weight.numpy())
    for node in graph.node:
        module, _, operator = node.name.rpartition("/")
        assert module in modules
        assert operator.partition("_")[0] == node.op_type
        if node.op_type in ("Gemm", "Conv"):
            assert list(node.input[1:]) == [f"{module}.weight", f"{module}.bias"]
        if node.output[0] not in {value.name for value in graph.output}:
            assert list(node.output) == [node.name]
    constants = {"Reshape": ["shape"], "Clip": ["min", "max"]}
    assert set(tensors) == {f"{node.name}.{part}" for node in graph.node for part in constants.get(node.op_type, ())}


@torch.no_grad()
def test_importance_weighted_bounds_agree(exported: Exported) -> None:
    """For a colour model of 8-bit levels, both sides' bounds of log p(x), each with its own noise, have one mean."""
    (opset,) = (opset for pair, opset in FAST if pair == ("resnet-colour", "discretised-logistic"))
    vae, x, out = exported("resnet-colour", "discretised-logistic", opset)
    weights = vae.log_weights(x[:20], 100, torch.Generator().manual_seed(0)).double()
    bound = torch.logsumexp(weights, dim=0) - np.log(100)
    error = ((weights - bound).exp().std(dim=0) / 10).square().sum().sqrt().item() / 20  # delta method
    got = VAE.load(out, threads=1).log_likelihood(x[:20].numpy(), 100, seed=2)
    assert error < 0.1
    assert abs((got - bound.numpy()).mean()) < 5 * np.sqrt(2) * error
    assert (bound - vae.elbo(x[:20])).mean() > 0


@pytest.mark.usefixtures("without_report")
def test_run_of_a_folder_of_colour_images_is_exported(tmp_path: Path) -> None:
    """A folder of pictures, trained on for one epoch, becomes a bundle that scores those pictures as the run does."""
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(smooth_images(60, (3, 20, 16)).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{i}.png")
    config = PRESETS["resnet-colour"].replace(
        dataset=str(tmp_path / "pictures"),
        image_size=(8, 8),
        hidden=(8, 8),
        dense=16,
        latent_dim=4,
        epochs=1,
        batch_size=16,
    )
    train.train(config, tmp_path / "run", Place(tmp_path, download=False, device="cpu"), command="vae-train")
    run = run_folder.load(tmp_path / "run")
    exporter.export_run(run, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    assert manifest["contract"]["likelihood"] == {"name": "discretised-logistic"}
    assert manifest["preprocessing"] == run.settings.preprocessing
    assert "8x8" in manifest["preprocessing"]["levels"]
    assert str(tmp_path) not in json.dumps(manifest)
    x = run.probe / np.float32(255)
    got = VAE.load(tmp_path / "bundle").terms(x, 200, seed=0).elbo.mean()
    assert got == pytest.approx(run.evaluation["figures"]["elbo"]["mean"], rel=0.05)


class Listed(nn.Module):
    """An encoder whose mu and logsigma are a list."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        """The encoder's, as a list."""
        return list(self.encoder(x))


def test_encoder_may_return_a_list(tmp_path: Path) -> None:
    """A list of mu and logsigma passes the gate as a pair does."""
    vae, levels = make_vae("gated", "bernoulli")
    vae.encoder = Listed(vae.encoder)
    exporter.export_vae(vae, Observation.image(SHAPES["gated"]), levels.numpy(), tmp_path / "bundle")
    assert all(row.passed for row in verify(read(tmp_path / "bundle")))
