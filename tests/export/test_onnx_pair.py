"""A pair of ONNX files that were made elsewhere becomes a bundle, or is refused by what is wrong with it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import vae_export
from support import elsewhere
from support.commands import Command
from vae_export import check, exporter, onnx_network, operators
from vae_export import elsewhere as sources
from vae_export.cli import main as vae_export_command
from vae_export.described import Part
from vae_runtime import VAE, noise
from vae_runtime.bundle import read
from vae_runtime.errors import ArgumentError, BundleError
from vae_runtime.verify import verify

Floats = NDArray[np.float32]

ENCODER = """
<ir_version: 8, opset_import: ["": 13]>
encoder (float[1,8,8,1] pixels) => (float[1,3] z_mean, float[1,3] z_log_var, float[1,3] z)
<int64[2] flat = {1, 128}, float half = {0.5}>
{
  channels_first = Transpose <perm = [0, 3, 1, 2]> (pixels)
  convolved = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (channels_first, kernel, offset)
  positive = Relu (convolved)
  channels_last = Transpose <perm = [0, 2, 3, 1]> (positive)
  row = Reshape (channels_last, flat)
  product = MatMul (row, mean_weight)
  z_mean = Add (product, mean_bias)
  z_log_var = Gemm (row, variance_weight, variance_bias)
  exponent = Mul (z_log_var, half)
  sigma = Exp (exponent)
  [draw] eps = RandomNormalLike (z_mean)
  noise = Mul (sigma, eps)
  z = Add (z_mean, noise)
}
"""
DECODER = """
<ir_version: 8, opset_import: ["": 13]>
decoder (float[1,3] latents) => (float[1,8,8,1] dense_3)
<int64[4] grid = {1, 4, 4, 8}>
{
  row = Gemm (latents, weight, bias)
  elu = Elu (row)
  channels_last = Reshape (elu, grid)
  channels_first = Transpose <perm = [0, 3, 1, 2]> (channels_last)
  larger = ConvTranspose <auto_pad = "SAME_UPPER", strides = [2, 2]> (channels_first, kernel, offset)
  pixels = Transpose <perm = [0, 2, 3, 1]> (larger)
  dense_3 = Sigmoid (pixels)
}
"""
WEIGHTS = {
    "encoder": {"kernel": (8, 1, 3, 3), "offset": (8,), "mean_weight": (128, 3), "mean_bias": (3,),
                "variance_weight": (128, 3), "variance_bias": (3,)},
    "decoder": {"weight": (3, 128), "bias": (128,), "kernel": (8, 1, 3, 3), "offset": (1,)},
}  # fmt: skip


def keras_like(role: str, change: Callable[[str], str] = lambda text: text) -> onnx.ModelProto:
    """A graph as converters make it of Keras: channels last, outputs named, z drawn inside, a batch of 1."""
    model = onnx.parser.parse_model(change({"encoder": ENCODER, "decoder": DECODER}[role]))
    rng = np.random.default_rng(len(role) + len(WEIGHTS[role]))
    for name, shape in WEIGHTS[role].items():
        values = rng.normal(scale=0.2, size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def run(model: onnx.ModelProto, x: Floats, name: str) -> NDArray[np.float64]:
    """One output for rows that go through ONNX's own evaluator one by one."""
    evaluator = ReferenceEvaluator(model)
    rows = [evaluator.run([name], {evaluator.input_names[0]: row[None]})[0] for row in x]
    return np.concatenate(rows).astype(np.float64)


def bernoulli_elbo(encoder: onnx.ModelProto, decoder: onnx.ModelProto, x: Floats, eps: Floats) -> Any:
    """By NumPy, of what files that give means, log variances and theta give."""
    mu, logvar = (run(encoder, x, output.name) for output in encoder.graph.output[:2])
    z = (mu + np.exp(logvar / 2) * eps).astype(np.float32)
    theta = run(decoder, z, decoder.graph.output[0].name).reshape(x.shape)
    log_prob = np.where(x > 0.5, np.log(theta), np.log1p(-theta)).reshape(len(x), -1).sum(1)
    return log_prob - 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(1)


def eps_of(x: Floats, latents: int) -> Floats:
    """As the runtime draws it."""
    return noise.normal(0, noise.POSTERIOR, noise.index(x), latents)


class Encoder(nn.Module):
    """As many people's: convolutions, and a z that is drawn inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Flatten())
        self.heads = nn.Linear(96, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log variance and z."""
        mu, logvar = self.heads(self.body(x)).chunk(2, dim=1)
        return mu, logvar, mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)


class Decoder(nn.Module):
    """With a view, whose sizes the older exporter computes in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = (
            nn.Linear(3, 96),
            nn.Sequential(nn.GELU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 1, 3, 1, 1)),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Theta."""
        return torch.sigmoid(self.body(self.first(z).view(z.shape[0], 6, 4, 4)))


def exported(network: nn.Module, example: Tensor, file: Path, outputs: list[str] | None, dynamo: bool = False) -> None:
    """What torch.onnx.export writes."""
    free: dict[str, Any] = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"input": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (example,), file, input_names=["input"], output_names=outputs, dynamo=dynamo,
            opset_version=18 if dynamo else 13, verbose=False, **free,
        )  # fmt: skip


@pytest.fixture(scope="module")
def torch_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files that torch's older exporter wrote, with names of its own."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    encoder = Encoder()
    encoder(torch.rand(50, 1, 8, 8))  # running statistics of their own
    exported(encoder, torch.zeros(2, 1, 8, 8), folder / "e.onnx", None)
    exported(Decoder(), torch.zeros(2, 3), folder / "d.onnx", None)
    return folder / "e.onnx", folder / "d.onnx"


@pytest.mark.slow
def test_files_of_torch(torch_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Numbered outputs are said in order; z and its noise are left out; the manifest says what was compared."""
    x = elsewhere.digits()
    with pytest.warns(vae_export.DescriptionWarning, match="of different models, or untrained: log p") as said:
        made = vae_export.export(
            *torch_pair, observations=x, likelihood="bernoulli", out=tmp_path / "bundle",
            encoder_gives="mu, logvar, _", decoder_gives="theta",
        )  # fmt: skip
    assert len(said) == 1  # nothing was trained here
    bundle, some = read(made.path), x[:20]
    assert bundle.manifest.evaluation is not None
    assert all(row.passed for row in verify(bundle))
    assert "Sigmoid" not in bundle.manifest.raw["onnx"]["operators"]["decoder"]
    weights = [numpy_helper.to_array(w) for file in torch_pair for w in onnx.load(file).graph.initializer]
    assert bundle.manifest.parameters == sum(w.size for w in weights if w.dtype == np.float32 and w.size > 1)
    encoder, decoder = map(onnx.load, torch_pair)
    expected = bernoulli_elbo(encoder, decoder, some, eps_of(some, 3))
    np.testing.assert_allclose(VAE.load(made.path).elbo(some), expected, rtol=0, atol=1e-3)


def keras_pair(x: Floats) -> tuple[str, ...]:
    """The options that export a pair as of Keras with observations x [n, 1, 8, 8], all written into this folder."""
    onnx.save(keras_like("encoder"), "e.onnx")
    onnx.save(keras_like("decoder"), "d.onnx")
    np.save("x.npy", x.transpose(0, 2, 3, 1))
    words = ("--observations", "x.npy", "--axes", "HWC", "--likelihood", "bernoulli", "--decoder-gives", "theta")
    return "--encoder", "e.onnx", "--decoder", "d.onnx", *words


def test_graphs_as_of_keras_by_the_command(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last, names of its own, opset 13, a batch of 1: the bundle takes batches of any size."""
    monkeypatch.chdir(tmp_path)
    x = elsewhere.digits()
    encoder, decoder, words = keras_like("encoder"), keras_like("decoder"), keras_pair(x)
    onnx.save(keras_like("decoder"), "d.onnx", save_as_external_data=True, location="d.weights", size_threshold=0)
    ran = command(vae_export_command, *words, "--out", "bundles/mine")
    assert ran.code == 0
    assert ran.err.startswith(
        "vae-export: warning: encoder and decoder may be of different models, or untrained: log p"
    )
    assert ran.err.count("\n") == 1
    assert ran.out.startswith(
        "fp32 in onnxruntime against the ONNX files in float64, as ONNX's own evaluator has them\n"
    )
    expected = bernoulli_elbo(encoder, decoder, x[:20].transpose(0, 2, 3, 1), eps_of(x[:20], 3))
    assert all(row.passed for row in check.alone(read(Path("bundles/mine"))))  # whose evaluator knows all operators
    parity = read(Path("bundles/mine")).manifest.parity
    assert parity is not None
    assert parity.reference == "the ONNX files in float64, as ONNX's own evaluator has them"
    np.testing.assert_allclose(VAE.load("bundles/mine").elbo(x[:20]), expected, rtol=0, atol=1e-3)
    assert "calibration.json" in read(Path("bundles/mine")).manifest.files


@pytest.mark.slow
def test_doubts_are_said_where_the_export_fails_too(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be why: here 8 bits cost more than is allowed, of networks that were never trained."""
    monkeypatch.chdir(tmp_path)
    words = keras_pair(elsewhere.digits())
    ran = command(vae_export_command, *words, "--precision", "int8", "--max-nats", "-1000", "--out", "mine")
    assert ran.code == 3
    doubt, error = ran.err.splitlines()
    assert doubt.startswith("vae-export: warning: encoder and decoder may be of different models, or untrained: log p")
    assert error.startswith("vae-export: error: int8 refused: ")
    assert not Path("mine").exists()


@pytest.mark.slow
def test_a_bundle_without_a_calibration_is_told(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten observations that differ say little of what is usual."""
    monkeypatch.chdir(tmp_path)
    ran = command(vae_export_command, *keras_pair(np.repeat(elsewhere.digits()[:10], 8, axis=0)), "--out", "few")
    assert ran.code == 0
    assert "note: it carries no calibration: too few normal images that differ, 10; vae-infer calibrate" in ran.err
    assert "calibration.json" not in read(Path("few")).manifest.files


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True], ids=["older exporter", "newer exporter"])
@pytest.mark.parametrize(
    "name", ["tutorial", "tanh", "convolutions_over_time", "gru", "spatial_latents", "weight_normed", "channels_last"]
)
@torch.no_grad()
def test_the_files_elbo_is_the_origins_own(name: str, dynamo: bool, tmp_path: Path) -> None:
    """Networks of many kinds, of which nothing but what torch.onnx.export wrote is left."""
    origin = elsewhere.make(name)
    given = dict(origin.given)
    parts = [Part(part) for part in sources._both(given.pop("encoder"), given.pop("decoder", None))]
    z = torch.zeros(2, *vae_latents(parts[0](origin.taken[:2])))
    for file, part, example in (("e.onnx", parts[0], origin.taken[:2]), ("d.onnx", parts[1], z)):
        out = part(example)
        exported(part, example, tmp_path / file, list(out) if isinstance(out, dict) else None, dynamo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vae_export.DescriptionWarning)  # nothing was trained here
        made = vae_export.export(tmp_path / "e.onnx", tmp_path / "d.onnx", **given, out=tmp_path / "bundle")
    vae = VAE.load(made.path)
    eps = eps_of(origin.x, vae.latent_dim).reshape(-1, *vae.latent_shape)
    expected = origin.elbo(origin.taken, torch.from_numpy(eps)).double() + origin.jacobian
    np.testing.assert_allclose(vae.elbo(origin.x), expected, rtol=0, atol=1e-3)


def vae_latents(out: Any) -> tuple[int, ...]:
    """The shape of a latent, by what an encoder gives."""
    if isinstance(out, Tensor):  # moments
        return (out.shape[1] // 2, *out.shape[2:])
    return tuple((next(iter(out.values())) if isinstance(out, dict) else out[0]).shape[1:])


PAIR = ("--encoder", "e.onnx", "--decoder", "d.onnx", "--observations", "x.npy", "--out", "bundles/b")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--encoder", "e.onnx"), 2, "a pair of ONNX files needs --decoder, --likelihood, --observations, --out too"),
        (("--axes", "HWC", "run"), 2, "--encoder goes without RUN"),
        (("--from", "mine:networks", "--axes", "HWC"), 2, "--from says all of a VAE itself"),
        ((*PAIR, "--likelihood", "{gaussian"), 2, "'{gaussian' is no JSON object: "),
        ((*PAIR, "--likelihood", "bernoulli", "--shape", "1,8,8"), 2, "'1,8,8' is no shape such as 1x28x28"),
        ((*PAIR, "--likelihood", "bernoulli"), 3, "ONNX file is missing: e.onnx; name the file"),
        ((*PAIR, "--likelihood", "bernoulli", "--encoder", "x.npy"), 3, "no ONNX file: x.npy ("),
        ((*PAIR, "--likelihood", "bernoulli", "--encoder", "moved.onnx"), 3, "no ONNX file: moved.onnx ("),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    """And nothing is published."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", elsewhere.digits())
    onnx.save(keras_like("encoder"), "moved.onnx", save_as_external_data=True, location="gone", size_threshold=0)
    Path("gone").unlink()
    ran = command(vae_export_command, *words)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not Path("bundles").exists()


def test_a_damaged_weight_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_pair: tuple[Path, Path]
) -> None:
    """One weight of the graph that would be published, 1% off those of the file."""
    real = exporter.onnx_graph.to_onnx

    def off(*given: Any) -> onnx.ModelProto:
        model = real(*given)
        kernel = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        values = numpy_helper.to_array(kernel).copy()
        values.flat[np.abs(values).argmax()] *= 1.01
        kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
        return model

    monkeypatch.setattr(exporter.onnx_graph, "to_onnx", off)
    with pytest.raises(vae_export.GateFailed, match="numeric gate failed"):
        refused(*torch_pair, tmp_path)


def refused(encoder: Any, decoder: Any, folder: Path, **given: Any) -> None:
    """An export of digits that leaves nothing behind."""
    said = {"encoder_gives": "mu, logvar, _", "decoder_gives": "theta", **given}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", vae_export.DescriptionWarning)  # nothing was trained here
            vae_export.export(
                encoder, decoder, observations=elsewhere.digits(), likelihood="bernoulli", out=folder / "b", **said
            )
    finally:
        assert not (folder / "b").exists()


def test_what_is_understood_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_pair: tuple[Path, Path]
) -> None:
    """ONNX's own evaluator is the judge of what a file means: here a slope is another."""
    monkeypatch.setitem(operators.TRANSLATED, "LeakyRelu", lambda node, x: nn.functional.leaky_relu(x, 0.2001))
    with pytest.raises(
        BundleError, match=r"^ONNX graph is understood otherwise here: e\.onnx: .* is .* off what ONNX's"
    ):
        refused(*torch_pair, tmp_path)


def test_a_decoder_of_other_latents_is_refused(torch_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """By the sizes that it takes."""
    exported(nn.Linear(4, 64), torch.zeros(2, 4), tmp_path / "other.onnx", None)
    with pytest.raises(
        ArgumentError, match=r"does not fit the ONNX graph: other\.onnx takes \[batch, 4\], not \[batch, 3\]"
    ):
        refused(torch_pair[0], tmp_path / "other.onnx", tmp_path)


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        ({"encoder_gives": {"mu": "z_mean", "logvar": "z"}}, "that is random: encoder: z (RandomNormalLike draw)"),
        ({"encoder_gives": "mu, _, logvar"}, "output that is random: encoder: z (RandomNormalLike draw)"),
        ({"encoder_gives": {"mu": "z_mean", "logvar": "there"}}, "encoder gives no there"),
        ({"encoder_gives": "logsigma"}, "encoder gives no logsigma by its names: z_mean, z_log_var"),
        ({"decoder_gives": "logits"}, "logits that end in sigmoid"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused(gives: dict[str, Any], said: str, tmp_path: Path) -> None:
    """By the names that the graph has, and by its last operators."""
    x = elsewhere.digits().transpose(0, 2, 3, 1)
    told = {"decoder_gives": "theta", **gives}
    with pytest.raises(ArgumentError) as caught:
        vae_export.export(
            keras_like("encoder"), keras_like("decoder"), observations=x, axes="HWC", likelihood="bernoulli",
            out=tmp_path / "bundle", **told,
        )  # fmt: skip
    assert said in str(caught.value)


class Flat(nn.Module):
    """A perceptron that takes rows of pixels; its outputs in one order or the other."""

    def __init__(self, seed: int, other_way: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vae, self.other_way = elsewhere.Tutorial(), other_way
        x = torch.from_numpy(elsewhere.digits(300)).flatten(1)
        optimiser = torch.optim.Adam(self.parameters(), 1e-2)
        for _ in range(120):
            mu, logvar = self.vae.encode(x)
            theta = self.vae.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))
            optimiser.zero_grad()
            (elsewhere.bce(theta, x) + elsewhere.kl(mu, logvar)).mean().backward()
            optimiser.step()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Both outputs."""
        return self.vae.encode(x)[:: -1 if self.other_way else 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files: the encoder of a model, with its outputs both ways, its decoder, and another model's."""
    folder = tmp_path_factory.mktemp("trained")
    flat, other = Flat(0), Flat(1)
    exported(flat, torch.zeros(2, 64), folder / "e.onnx", None)
    flat.other_way = True
    exported(flat, torch.zeros(2, 64), folder / "other_way.onnx", None)
    for name, model in (("d.onnx", flat), ("other.onnx", other)):
        exported(Decoding(model.vae), torch.zeros(2, 4), folder / name, None)
    return folder


class Decoding(nn.Module):
    """A model's decoder."""

    def __init__(self, vae: elsewhere.Tutorial) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        """Theta."""
        return self.vae.decode(z)


@pytest.mark.parametrize(
    ("encoder", "decoder", "gives", "said"),
    [
        ("e.onnx", "d.onnx", "logvar", ""),
        ("e.onnx", "d.onnx", None, 'has no name: as logvar its ELBO is .*; say encoder_gives="logvar" or encoder_'),
        (
            "other_way.onnx",
            "d.onnx",
            None,
            'has no name: as logvar, mu its ELBO is .*; say encoder_gives="logvar, mu" or',
        ),
        ("other_way.onnx", "d.onnx", "mu, logvar", "'mu, logvar' may be wrong: as logvar, mu its ELBO"),
        ("other_way.onnx", "d.onnx", "logvar, mu", ""),
        ("e.onnx", "other.onnx", "logvar", "encoder and decoder may be of different models"),
    ],
)
def test_files_that_are_mixed_up(
    trained: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, decoder: str, gives: str | None, said: str
) -> None:
    """Outputs that have no name, and files of different models, are told by what the observations are likely under."""
    monkeypatch.setattr(exporter, "export_vae", lambda *given, **told: None)  # the gate has other tests
    doubts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", vae_export.DescriptionWarning)
        try:
            vae_export.export(
                trained / encoder, trained / decoder, observations=elsewhere.digits().reshape(-1, 64), shape=(1, 8, 8),
                likelihood="bernoulli", out="unused", encoder_gives=gives, decoder_gives="theta",
            )  # fmt: skip
        except ArgumentError as error:
            doubts.append(str(error))
    doubts += [str(each.message) for each in caught]
    assert re.search(said, doubts[0]) if said else not doubts


LABEL = ("pixels) =>", "pixels, float[1,128] label) =>")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("=> (float[1,3] z_mean, float[1,3] z_log_var, ", "=> (")], "no function of one input: e.onnx: z is by Ran"),
        ([LABEL, ("(row, mean_weight)", "(label, mean_weight)")], "z_log_var is by pixels"),
        ([LABEL, ("Relu (convolved)", "Add (convolved, label)")], "z_log_var is by the inputs pixels, label; z is by"),
        ([("Relu (convolved)", "Dropout (convolved, half, yes)"), ("float half =", "bool yes = {1}, float half =")],
         "z_mean is by Dropout positive in training mode"),
        ([("Relu (convolved)", "NonZero (convolved)")], "ONNX operator that is not known here: e.onnx: NonZero"),
        ([("Relu (convolved)", "com.microsoft.Gelu (convolved)")], "outside of ONNX: e.onnx: com.microsoft::Gelu"),
        ([('"": 13', '"": 6')], "opset that is not known here: e.onnx: 6; export it with opset 9 to"),
    ],
)  # fmt: skip
def test_graphs_that_are_no_network_are_refused(changes: list[tuple[str, str]], said: str) -> None:
    """By the node, or the inputs, that each output is made of."""
    with pytest.raises(BundleError) as caught:
        onnx_network.OnnxNetwork(changed("encoder", *changes), "e.onnx")
    assert said in str(caught.value)


def test_an_input_that_decides_nothing_is_no_hindrance() -> None:
    """Such as the noise of a z that is not used."""
    model = changed("encoder", LABEL, ("Mul (sigma, eps)", "Mul (sigma, label)"))
    network = onnx_network.OnnxNetwork(model, "e.onnx")
    assert network.input == "pixels"
    assert list(network.left_out) == ["z"]


def changed(role: str, *changes: tuple[str, str]) -> onnx.ModelProto:
    """A graph as of Keras, with other words in its text."""

    def change(text: str) -> str:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return text

    return keras_like(role, change)


def test_a_batch_that_is_baked_in_is_refused_by_its_node() -> None:
    """Where the input is said to be of any batch, and a size in the graph is not."""
    model = changed("encoder", ("float[1,8,8,1] pixels", "float[batch,8,8,1] pixels"))
    network = onnx_network.OnnxNetwork(model, "e.onnx")
    assert network(torch.zeros(1, 8, 8, 1))["z_mean"].shape == (1, 3)
    with pytest.raises(BundleError, match=r"node of the ONNX graph fails: e\.onnx: Reshape row \(shape '\[1, 128\]'"):
        network(torch.zeros(2, 8, 8, 1))


@pytest.mark.parametrize(("stored", "close"), [("FLOAT16", 2e-2), ("DOUBLE", 1e-6)])
def test_files_of_another_precision(stored: str, close: float, tmp_path: Path) -> None:
    """Are computed in float32, and that is said; the weights are the file's."""
    plain = keras_like("encoder")
    kind = onnx.TensorProto.DataType.Value(stored)
    model = onnx_network.of_type(plain, kind)
    onnx.save(model, tmp_path / "e.onnx")
    with pytest.warns(vae_export.DescriptionWarning, match=rf"^e\.onnx is of {stored}: the bundle computes in float32"):
        network, _ = sources._opened(tmp_path / "e.onnx", "encoder", None)
    x = torch.from_numpy(elsewhere.digits(8)).permute(0, 2, 3, 1)
    network.check(x)
    expected = onnx_network.OnnxNetwork(plain, "plain")(x)["z_mean"]
    np.testing.assert_allclose(network(x)["z_mean"], expected, atol=close)
    assert all(weight.dtype == torch.float32 for weight in network.parameters())
