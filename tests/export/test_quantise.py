"""Smaller graphs: what float16 weights and 8-bit products change, what they cost, and which is chosen."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import nn

from vae_export import candidate, gate, quantise
from vae_export import tradeoff as tradeoff_of
from vae_export.candidate import Candidate
from vae_export.tradeoff import Samples, Tradeoff, best, choice, pick, samples_of_run, weigh
from vae_runtime import noise, safety
from vae_runtime.errors import BundleError
from vae_runtime.observation import Observation
from vae_runtime.sessions import Session
from vae_train import data, pixels, run_folder
from vae_train.run import Run
from vae_train.vae import VAE

LATENTS = 8
IMAGES = Observation.image((1, 8, 8))
QUANTISING = {"QuantizeLinear", "DequantizeLinear"}

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def run(mlp_of_digits: Path) -> Run:
    """An MLP trained for seconds on scikit-learn's digits."""
    return run_folder.load(mlp_of_digits)


@pytest.fixture(scope="module")
def images(run: Run, tmp_path_factory: pytest.TempPathFactory) -> data.Data:
    """The digits."""
    return data.load(run.config, tmp_path_factory.mktemp("none"), download=False)


@pytest.fixture(scope="module")
def x(images: data.Data) -> Floats:
    """The test digits, binary, as the runtime takes them."""
    return pixels.unit(images.observed_test(True)).numpy()


@pytest.fixture(scope="module")
def plain(run: Run) -> Candidate:
    """The run's float32 graphs."""
    return candidate.fp32(run.vae, IMAGES, 17)


@pytest.fixture(scope="module")
def half(plain: Candidate) -> Candidate:
    """The run's graphs of float16 weights."""
    return quantise.fp16(plain)


@pytest.fixture(scope="module")
def quantised(plain: Candidate, images: data.Data) -> Candidate:
    """The run's graphs of 8-bit products."""
    return quantise.int8(plain, observed(images), max_nats=0.5)


def tensors(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The graph's stored tensors by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def observed(images: data.Data) -> Floats:
    """The training digits, binary, as the runtime takes them."""
    return pixels.unit(images.observed_train(True)).numpy()


def random_latents(n: int) -> Floats:
    """z of the prior."""
    return noise.normal(3, noise.PRIOR, np.arange(n), LATENTS)


def test_float16_weights_are_the_runs_rounded(run: Run, half: Candidate) -> None:
    """Every weight but biases is stored as its nearest float16, and nothing else about the graphs changes."""
    for module, model in ((run.vae.encoder, half.graphs["encoder"]), (run.vae.decoder, half.graphs["decoder"])):
        stored = tensors(model)
        for name, weight in module.state_dict().items():
            if weight.numel() >= 64 and weight.ndim > 1:
                got = stored[f"{name}.fp16"]
                assert got.dtype == np.float16
                np.testing.assert_array_equal(got, weight.numpy().astype(np.float16))
    for value in (it for model in half.graphs.values() for it in (*model.graph.input, *model.graph.output)):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_float16_weights_halve_the_graphs_and_compute_as_float32(plain: Candidate, half: Candidate) -> None:
    """Half the bytes, and PyTorch's numbers for the rounded weights to float32's precision."""
    assert half.size < 0.55 * plain.size
    z = random_latents(50)
    with torch.no_grad():
        expected = half.vae.decoder(torch.from_numpy(z)).numpy()
        exact = plain.vae.decoder(torch.from_numpy(z)).numpy()
    got = half.runtime().parameters(z)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(exact - expected).max() > 1e-4  # so that the comparison tells them apart


def test_weights_too_large_for_float16_are_named(run: Run) -> None:
    """A weight beyond 65,504 is refused with its name instead of becoming infinite."""
    large = quantise.rounded(run.vae)
    with torch.no_grad():
        next(large.decoder.parameters())[0, 0] = 1e6
    name = next(name for name, _ in large.decoder.named_parameters())
    with pytest.raises(BundleError, match=rf"^fp16 refused: decoder\.{name} is too large for float16; choose fp32$"):
        quantise.rounded(large)


def test_quantised_graphs_multiply_integers(plain: Candidate, quantised: Candidate) -> None:
    """Weights are 7-bit integers with a step for each output channel, every operator is ONNX's own, and it is small."""
    for model in quantised.graphs.values():
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        assert {node.op_type for node in model.graph.node} >= QUANTISING
        safety.check(model.SerializeToString(), "graph")
        integers = {name: values for name, values in tensors(model).items() if values.dtype == np.int8 and values.ndim}
        matrices = {name: values for name, values in integers.items() if values.ndim > 1}
        assert matrices
        for name, values in matrices.items():
            assert np.abs(values.astype(int)).max() <= 64
            assert len(tensors(model)[name.replace("_quantized", "_scale")]) in values.shape
    assert quantised.size < 0.5 * plain.size


def test_quantised_numbers_do_not_depend_on_the_batch(quantised: Candidate, x: Floats) -> None:
    """Each row of a batch of 64 is what it is alone, to the last bit."""
    encoder = Session(quantised.files["encoder.onnx"], "encoder")
    decoder = Session(quantised.files["decoder.onnx"], "decoder")
    z = random_latents(64)
    together = [*encoder.run(("mu", "logsigma"), x[:64]), *decoder.run(("logits",), z)]
    for i in range(64):
        alone = [*encoder.run(("mu", "logsigma"), x[i : i + 1]), *decoder.run(("logits",), z[i : i + 1])]
        for whole, row in zip(together, alone, strict=True):
            np.testing.assert_array_equal(whole[i], row[0])


def test_quantised_convolutions_do_not_depend_on_the_batch(run: Run, images: data.Data) -> None:
    """Nor do those of a decoder that resizes and convolves: each row of 64 is what it is alone, to the last bit.

    But for a value in the middle between two levels, before which onnxruntime resizes a batch otherwise than one row.
    """
    torch.manual_seed(0)
    vae = VAE(run.vae.encoder, Doubled(transposed=False).eval(), LATENTS, run.vae.likelihood)
    made = quantise.int8(candidate.fp32(vae, IMAGES, 17), observed(images), max_nats=100)
    assert "decoder last/Conv" not in made.float32_layers
    decoder, z = Session(made.files["decoder.onnx"], "decoder"), random_latents(64)
    (together,) = decoder.run(("logits",), z)
    alone = np.concatenate([decoder.run(("logits",), row[None])[0] for row in z])
    assert (together != alone).mean() < 1e-3
    assert np.abs(together - alone).max() < 0.02  # a level or two


@torch.no_grad()
def test_quantised_numbers_are_those_of_onnxs_own_evaluator(quantised: Candidate, x: Floats) -> None:
    """But for rows in which a value lies within rounding of the middle between two levels; those are few."""
    runtime = quantised.runtime()
    mu, _ = quantised.vae.encoder(torch.from_numpy(x))
    z = random_latents(200)
    logits = quantised.vae.decoder(torch.from_numpy(z))
    for got, expected in ((runtime.encode(x)[0], mu.numpy()), (runtime.parameters(z), logits.numpy())):
        off = np.abs(got - expected).reshape(len(got), -1).max(axis=1)
        assert (off > 1e-4).mean() < 0.1
        assert off.max() < 0.5
    assert np.abs(runtime.parameters(z) - logits.numpy()).max() < np.abs(logits.numpy()).max()


def test_costliest_layers_are_left_out() -> None:
    """Layers go out, costliest first, until what is left costs no more than it may."""
    costs = {"a": 0.3, "b": 0.02, "c": 0.1, "d": 0.25}

    def cost(nodes: quantise.Nodes) -> float:
        return sum(costs[name] for part in nodes for name in part)

    assert quantise.choose((["a", "b"], ["c", "d"]), cost, 1.0) == (["a", "b"], ["c", "d"])
    assert quantise.choose((["a", "b"], ["c", "d"]), cost, 0.4) == (["b"], ["c", "d"])
    assert quantise.choose((["a", "b"], ["c", "d"]), cost, 0.13) == (["b"], ["c"])
    assert quantise.choose((["a", "b"], ["c", "d"]), cost, 0.01) == ([], [])


@torch.no_grad()
def test_layers_that_8_bits_would_ruin_stay_float32(run: Run, plain: Candidate, images: data.Data) -> None:
    """Two hidden units a thousand times larger, their weights onwards as much smaller: the same network in float32."""
    vae = copy.deepcopy(run.vae)
    into, onwards = vae.decoder.body[0][0], vae.decoder.body[1][0]
    into.weight[:2] *= 1000
    into.bias[:2] *= 1000
    onwards.weight[:, :2] /= 1000
    scaled = candidate.fp32(vae, IMAGES, 17)
    z = random_latents(64)
    np.testing.assert_allclose(scaled.runtime().parameters(z), plain.runtime().parameters(z), rtol=1e-3, atol=1e-3)

    quantised = quantise.int8(scaled, observed(images), max_nats=0.5)
    kept = {node.input[1] for node in quantised.graphs["decoder"].graph.node if node.op_type == "Gemm"} & set(
        tensors(quantised.graphs["decoder"])
    )
    assert kept == {"body.1.0.weight"}


def test_without_a_nat_to_lose_int8_is_refused(plain: Candidate, images: data.Data) -> None:
    """Where no layer may be quantised, one line says so and what to do."""
    with pytest.raises(
        BundleError,
        match=r"^int8 refused: each layer alone costs more than 0.8 of -9 nats; allow more with --max-nats, or",
    ):
        quantise.int8(plain, observed(images), max_nats=-9)


def test_the_cost_is_the_difference_of_the_elbos(plain: Candidate, quantised: Candidate, x: Floats) -> None:
    """Mean, standard error and worst image of the loss, from PyTorch's network and ONNX's own evaluator in float64."""
    weighed = weigh(quantised, plain, x)
    eps = noise.normal(0, noise.POSTERIOR, noise.index(x), LATENTS)

    def elbo(vae: Any) -> NDArray[np.float64]:
        with torch.no_grad():
            mu, logsigma = (values.numpy() for values in vae.encoder(torch.from_numpy(x)))
            logits = vae.decoder(torch.from_numpy((mu + np.exp(logsigma) * eps).astype(np.float32)))
            pixels = torch.distributions.Bernoulli(logits=logits.double()).log_prob(torch.from_numpy(x).double())
        kl = 0.5 * (np.exp(2 * logsigma) + mu**2 - 2 * logsigma - 1).sum(axis=1)
        return pixels.sum(dim=(1, 2, 3)).numpy() - kl

    lost = elbo(plain.vae) - elbo(quantised.vae)
    assert weighed.observations == len(x) == 221
    assert weighed.nats == pytest.approx(lost.mean(), abs=5e-3)
    assert weighed.standard_error == pytest.approx(lost.std(ddof=1) / np.sqrt(len(lost)), rel=0.1)
    assert weighed.most_nats == pytest.approx(lost.max(), abs=0.2)
    assert weighed.size == (quantised.size, plain.size)
    assert set(weighed.seconds) == {"encode 1", "decode 1", "encode 64", "decode 64"}


def test_the_costs_error_is_that_of_what_does_not_overlap(plain: Candidate, quantised: Candidate, x: Floats) -> None:
    """Of windows of which each value is in four, it is twice as large: so many fewer are independent."""
    alone, overlapping = (weigh(quantised, plain, x, overlap).standard_error for overlap in (1.0, 4.0))
    assert alone is not None
    assert overlapping == pytest.approx(2 * alone)


def tradeoff(nats: float, size: int, ours: float) -> Tradeoff:
    """One that loses `nats`, takes `size` per cent of the bytes and `ours` times the time."""
    return Tradeoff("int8", 1000, nats, 0.01, 1.0, (size, 100), {"encode 1": (ours, 1.0), "decode 1": (ours, 1.0)})


def test_the_table_says_what_is_faster_and_what_takes_longer() -> None:
    """Half the time is 2 times as fast; 1.25 times the time is not said to be 0.8 times as fast."""
    assert "encode 1   500.000 ms for 1000.000 ms, 2.00 times as fast" in tradeoff(0.1, 30, 0.5).table()
    assert "encode 1   1250.000 ms for 1000.000 ms, 1.25 times as long" in tradeoff(0.1, 30, 1.25).table()


@pytest.mark.parametrize(
    ("weighed", "reason"),
    [
        (tradeoff(0.4, 30, 0.5), None),
        (tradeoff(0.4, 30, 2.0), None),
        (tradeoff(0.4, 120, 0.5), None),
        (tradeoff(0.6, 30, 0.5), "it costs 0.600 nats per image, more than 0.5"),
        (tradeoff(float("nan"), 30, 0.5), "it costs nan nats per image, more than 0.5"),
        (tradeoff(0.1, 100, 2.0), "it is 2.00 times as slow and not smaller"),
    ],
)
def test_what_costs_too_much_or_brings_nothing_is_refused(weighed: Tradeoff, reason: str | None) -> None:
    """More nats than allowed, or slower and not smaller."""
    assert weighed.refusal(0.5) == reason


def test_worth_is_size_times_time() -> None:
    """A third of the bytes at half the time is worth 0.15; twice the bytes at the same time 2."""
    assert tradeoff(0.1, 30, 0.5).worth == pytest.approx(0.15)
    assert tradeoff(0.1, 200, 1.0).worth == pytest.approx(2.0)


def test_the_best_is_what_pays_most() -> None:
    """The least product of size and time; none where float32's is less."""
    small, fast = tradeoff(0.1, 50, 1.0), tradeoff(0.2, 60, 0.5)
    assert best([small, fast]) is fast
    assert best([small]) is small
    assert best([tradeoff(0.0, 90, 1.2)]) is None
    assert best([]) is None


@pytest.fixture(scope="module")
def samples(run: Run, images: data.Data) -> Samples:
    """Of the run's images, to make and weigh precisions with."""
    return samples_of_run(run, images)


def test_auto_says_what_it_tried_and_takes_the_best(
    plain: Candidate, half: Candidate, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half a nat to lose, one that is smaller; with none, float32, and the reasons."""
    monkeypatch.setattr(tradeoff_of, "fp16", lambda *given: half)  # as `pick` makes it, but once
    chosen, cost, tried = pick("auto", plain, samples, 0.5)
    assert chosen is not None
    assert cost is not None
    assert chosen.precision == cost.precision != "fp32"
    assert [one.table().split(" against")[0] for one in tried] == ["fp16", "int8"]
    words = choice(chosen.precision, tried)
    assert words.startswith(f"auto takes {chosen.precision}: size times time is 1 for fp32, 0.")
    chosen, cost, tried = pick("auto", plain, samples, -1)
    assert (chosen, cost) == (None, None)
    assert tried[0].table().splitlines()[-1].startswith("fp16 refused: it costs ")
    assert tried[1].table() == "int8 refused: each layer alone costs more than 0.8 of -1 nats"
    assert choice("fp32", tried) == "auto takes fp32: size times time is 1 for fp32"


def test_a_precision_asked_for_is_refused_with_the_reason(plain: Candidate, samples: Samples) -> None:
    """Where float16 costs more than allowed, one line says how much."""
    with pytest.raises(BundleError, match=r"^fp16 refused: it costs -?0\.\d{3} nats per image, more than -1; choose"):
        pick("fp16", plain, samples, -1)


class Doubled(nn.Module):
    """A decoder that doubles the sides by Resize, then convolves, if `transposed` by a transposed convolution."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENTS, 4 * 16)
        self.resize = nn.Upsample(scale_factor=2)
        self.last = nn.ConvTranspose2d(4, 1, 3, padding=1) if transposed else nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Logits [n, 1, 8, 8]."""
        return self.last(self.resize(self.dense(z).relu().view(-1, 4, 4, 4)))


@pytest.mark.parametrize("transposed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sizes_are_no_weights(run: Run, images: data.Data, transposed: bool) -> None:
    """A network whose graph resizes passes its gate in 8 bits; a transposed convolution is named as left in float32."""
    torch.manual_seed(0)
    vae = VAE(run.vae.encoder, Doubled(transposed).eval(), LATENTS, run.vae.likelihood)
    made = quantise.int8(candidate.fp32(vae, IMAGES, 17), observed(images), max_nats=100)
    assert ("decoder last/ConvTranspose" in made.float32_layers) is transposed
    rows = gate.compare(made.vae, made.runtime(), run.probe)
    assert all(row.passed for row in rows)


def test_networks_without_products_of_numbers_are_told_so(plain: Candidate, images: data.Data) -> None:
    """Where there is nothing to quantise, the reason is that, and not the bound."""
    bare = copy.deepcopy(plain)
    for model in bare.graphs.values():
        for node in model.graph.node:
            node.op_type = "Identity" if node.op_type == "Gemm" else node.op_type
    with pytest.raises(BundleError, match=r"^int8 refused: the networks have no Conv, Gemm or MatMul; choose fp16$"):
        quantise.int8(bare, observed(images), max_nats=1e9)


def test_steps_come_from_all_images(plain: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every z of 100 is calibrated on, whatever the batch size leaves over."""
    import onnxruntime.quantization as onnx_quantization

    seen: list[Floats] = []

    def quantize_static(plain: Any, file: Any, reader: Any, **options: Any) -> None:
        while (inputs := reader.get_next()) is not None:
            seen.append(inputs["z"])
        onnx.save(onnx.load(plain), file)

    monkeypatch.setattr(onnx_quantization, "quantize_static", quantize_static)
    z = random_latents(100)
    quantise.quantise(plain.graphs["decoder"], quantise.products(plain.graphs["decoder"]), z)
    assert {len(batch) for batch in seen} == {64}
    assert {row.tobytes() for batch in seen for row in batch} == {row.tobytes() for row in z}


def test_a_quantiser_at_fault_is_noticed(plain: Candidate, images: data.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of the 8-bit graphs a step off: the export ends, whatever that does to the ELBO."""
    real = quantise.quantise

    def faulty(*given: Any) -> onnx.ModelProto:
        model = real(*given)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor).copy()
            if values.dtype == np.int8 and values.ndim == 2:
                values.flat[0] += 1 if values.flat[0] < 64 else -1
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                break
        return model

    monkeypatch.setattr(quantise, "quantise", faulty)
    with pytest.raises(
        BundleError, match=r"^int8 refused: onnxruntime's quantiser puts a weight [12](\.\d)? steps off; "
    ):
        quantise.int8(plain, observed(images), max_nats=0.5)


def test_steps_are_those_of_training_images_and_of_both_kinds_of_z(
    plain: Candidate, images: data.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is calibrated on training images, the decoder on as many z of the prior as of their posteriors."""
    seen: dict[str, Floats] = {}
    real = quantise.quantise

    def watched(model: onnx.ModelProto, nodes: list[str], inputs: Floats) -> onnx.ModelProto:
        seen[model.graph.input[0].name] = inputs
        return real(model, nodes, inputs)

    monkeypatch.setattr(quantise, "quantise", watched)
    x = observed(images)
    quantise.int8(plain, x, max_nats=0.5)
    rows = {row.tobytes() for row in x}
    assert 200 < len(seen["x"]) <= 512
    assert all(row.tobytes() in rows for row in seen["x"])
    prior, posterior = np.split(seen["z"], 2)
    np.testing.assert_array_equal(prior, noise.normal(0, noise.PRIOR, np.arange(len(prior)), LATENTS))
    with torch.no_grad():
        mu, logsigma = (values.numpy() for values in plain.vae.encoder(torch.from_numpy(seen["x"])))
    eps = noise.normal(0, noise.POSTERIOR, np.arange(len(mu)), LATENTS)
    np.testing.assert_allclose(posterior, mu + np.exp(logsigma) * eps, rtol=1e-4, atol=1e-4)


def test_weights_are_counted_in_steps(plain: Candidate, quantised: Candidate) -> None:
    """Of its own float32 weights a graph is half a step off; of weights 2% larger more; of others infinitely far."""
    for its, of in zip(quantised.graphs.values(), plain.graphs.values(), strict=True):
        assert 0.4 < quantise.steps_off(of, its) <= 0.5
        larger, missing = copy.deepcopy(of), copy.deepcopy(its)
        for tensor in larger.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.02), tensor.name))
        assert quantise.steps_off(larger, its) > 0.6
        del missing.graph.initializer[:]
        del missing.graph.node[:]
        assert quantise.steps_off(of, missing) == np.inf
