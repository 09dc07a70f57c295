"""The compatibility table: its reference, ticks and crosses, runtimes that are missing, and the JavaScript module."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from support.runs import OF_PIXELS, make_vae
from vae_export import exporter, onnx_graph
from vae_runtime import VAE, likelihoods, noise
from vae_runtime import manifest as manifests
from vae_runtime.bundle import shipped
from vae_runtime.observation import Observation
from vae_runtime.prior import kl_of_draw
from vae_runtime.vectors import Scaling
from vae_train import run_folder
from vae_train.config import LIKELIHOODS
from vae_train.flow import Flow
from vae_train.vae import VAE as VAEOfTorch

HERE = Path(__file__).parent
LOCAL = ("onnxruntime (Python)", "onnx ReferenceEvaluator")  # need nothing that is not installed


def load(name: str) -> ModuleType:
    """A program of this folder as a module."""
    spec = importlib.util.spec_from_file_location(f"compatibility_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


table, reference = load("table"), load("reference")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node: apt-get install nodejs")


@pytest.fixture(scope="module")
def job(run_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny run's bundle with its images and noise, scored in float64."""
    return table.make_job(str(run_bundle), tmp_path_factory.mktemp("work") / "job")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`only("onnxruntime-node")` leaves the table these runtimes."""

    def choose(*names: str) -> None:
        monkeypatch.setattr(table, "RUNTIMES", {name: table.RUNTIMES[name] for name in names})

    return choose


def arrays(job: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A job's images and noise in float64."""
    contract = job.manifest.contract
    x, eps = (np.fromfile(job.folder / name, "<f4").astype(np.float64) for name in ("x.f32", "eps.f32"))
    x, eps = x.reshape(-1, *contract.observation.shape), eps.reshape(-1, *contract.latent_shape)
    return torch.from_numpy(x), torch.from_numpy(eps)


@torch.no_grad()
def check_reference(vae: torch.nn.Module, job: Any) -> None:
    """The job's expected figures are those of the same networks as PyTorch computes them in float64."""
    vae = vae.double().eval()
    x, eps = arrays(job)
    out = vae(x, eps[None])
    for name, tensor in (("mu", out.mu), ("logsigma", out.logsigma), ("parameters", out.parameters)):
        np.testing.assert_allclose(job.expected[name], tensor.numpy().ravel(), rtol=1e-9, atol=1e-9)
    elbo = vae.elbo(x, eps).numpy()
    np.testing.assert_allclose(job.expected["elbo"], elbo, rtol=1e-9)  # constants of graphs are float32


def test_reference_is_pytorchs_in_float64(tiny_run: Path, job: Any) -> None:
    """On 64 drawn images and 6 real ones, the graphs with weights in double give PyTorch's figures in double."""
    assert job.expected["elbo"].shape == (70,)
    check_reference(run_folder.load(tiny_run).vae, job)


def test_runtimes_agree_and_the_table_says_how_far(job: Any, only: Callable[..., None], capsys: Any) -> None:
    """What is right gets a tick with its version and differences, and exit code 0; float32 is not quite float64."""
    only(*LOCAL)
    assert table.main([str(job.folder)]) == 0
    heading, columns, *rows = capsys.readouterr().out.splitlines()
    assert "opset 17, ir 8, 70 images" in heading
    assert columns.split() == ["runtime", "version", "platform", "nats", "of", "allowed", *table.ARRAYS]
    assert [row[:26].strip() for row in rows] == [f"✓ {name}" for name in LOCAL]
    assert onnx.__version__ in rows[1]
    for row in rows:
        nats, share, *of_arrays = (float(cell.rstrip("%")) for cell in row.split()[-5:])
        assert 0 < nats < 1e-3
        assert share < 20
        assert all(0 < figure < 1e-4 for figure in of_arrays)


def change_a_weight(folder: Path) -> None:
    """One bias of the decoder is off by 0.01, in a bundle that is otherwise in order."""
    model = onnx.load(folder / "decoder.onnx")
    (bias,) = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [784]]
    values = numpy_helper.to_array(bias).copy()
    values[400] += 0.01
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["files"]["decoder.onnx"] = exporter._file((folder / "decoder.onnx").read_bytes())
    (folder / "manifest.json").write_bytes(manifests.dump(manifest))


def change_the_noise(folder: Path) -> None:
    """The noise of one image is that of another."""
    eps = np.fromfile(folder / "eps.f32", "<f4").reshape(70, -1)
    eps[5] = eps[6]
    eps.tofile(folder / "eps.f32")


def faulty(runtime: Any, fault: Callable[[Path], None], copy: Path) -> Any:
    """A runtime of the table that gets each job with a fault in it."""

    @contextmanager
    def with_fault(work: Path) -> Iterator[Any]:
        with runtime(work) as score:

            def score_faulty(job: Path) -> Any:
                fault(shutil.copytree(job, copy))
                return score(copy)

            yield score_faulty

    return with_fault


def test_other_numbers_get_a_cross(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A bias that is 0.01 off on one side and an image with other noise get crosses, beside a tick; exit code 1."""
    python, evaluator = (table.RUNTIMES[name] for name in LOCAL)
    runtimes = {
        "right": python,
        "weight": faulty(python, change_a_weight, tmp_path / "weight"),
        "noise": faulty(evaluator, change_the_noise, tmp_path / "noise"),
    }
    monkeypatch.setattr(table, "RUNTIMES", runtimes)
    assert table.main([str(job.folder)]) == 1
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [["✓", "right"], ["✗", "weight"], ["✗", "noise"]]


@pytest.mark.parametrize(
    ("share", "passed"), [(0.99, True), (-0.99, True), (1.01, False), (-1.01, False), (np.nan, False)]
)
def test_the_manifest_decides(job: Any, share: float, passed: bool) -> None:
    """An ELBO passes within the tolerance of the bundle's own manifest, on either side; NaN does not."""
    contract, parity = job.manifest.contract, job.manifest.parity
    output = likelihoods.make(contract.likelihood, contract.observation).output
    rows = [{**asdict(parity.rows[0]), "tensor": name, "inputs": "real images", "tolerance": 0.5}
            for name in ("mu", "logsigma", output, "ELBO")]  # fmt: skip
    changed = {**job.manifest.raw, "parity": {**asdict(parity), "rows": rows}}
    job = replace(job, manifest=manifests.of(changed))
    elbo = job.expected["elbo"].copy()
    elbo[3] += share * 0.5
    row = table.compare("some", job, lambda _: job.expected | {"elbo": elbo})
    assert row.passed is passed
    np.testing.assert_allclose([row.nats, row.share], np.abs(share) * np.array([0.5, 1]))
    assert row.arrays == (0, 0, 0)


def test_a_runtime_that_fails_gets_a_cross_and_its_last_words(job: Any, tmp_path: Path) -> None:
    """A graph that a runtime refuses, or scores of too few images, are a failure with a reason in the row."""
    damaged = shutil.copytree(job.folder, tmp_path / "damaged")
    (damaged / "encoder.onnx").write_bytes(b"no graph")
    for name in LOCAL:
        with table.RUNTIMES[name](tmp_path) as score:
            row = table.compare(name, replace(job, folder=damaged), score)
        assert row.passed is False
        assert re.match(r"failed: exit code 1, .*(damaged|Error|parsing)", row.problem), row.problem
    one = {name: job.expected[name][:1] for name in ("elbo", *table.ARRAYS)}
    row = table.compare("some", job, lambda _: job.expected | one)
    assert (row.passed, row.problem[:33]) == (False, "failed: elbo of 1 numbers for 70,")
    assert "✗ some  failed: elbo of 1" in table.table(job, [row])


def test_what_cannot_be_had_is_listed_with_the_reason(
    job: Any, only: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Without QEMU, node and Chromium, their rows say that they were not run, and what to install."""
    names = ("onnxruntime (Python), emulated ARM", "onnxruntime-node", "onnxruntime-web")
    only(*names)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert table.main([str(job.folder)]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    for row, name, package in zip(rows, names, ("debootstrap", "npm", "chromium"), strict=True):
        assert row.startswith(f"- {name}"), row
        assert re.search(rf"not run: .*(apt-get install.* {package}|not an x86-64 machine)", row), row


def test_a_bundle_that_is_missing_is_one_line(tmp_path: Path, capsys: Any) -> None:
    """A folder that is no bundle ends in its exit code and one line."""
    assert table.main([str(tmp_path / "none")]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"compatibility: bundle not found: .*none.*\n", err)


def run_javascript(code: str, *arguments: object) -> str:
    """Run lines of JavaScript that may use `vae.mjs`, and return what they print."""
    module = json.dumps((table.REPOSITORY / "examples" / "javascript" / "vae.mjs").as_uri())
    code = f"const {{ VAE, LIKELIHOODS, noiseIndex }} = await import({module}); {code}"
    command = ["node", "--input-type=module", "--eval", code, "--", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cases(likelihood: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A contract, images and parameters as float32 holds them, extremes among them."""
    rows, shape = np.arange(20), (2, 3, 5)
    u = noise.uniform(1, noise.PIXELS, rows, 30).reshape(-1, *shape)
    wide = noise.normal(2, noise.PRIOR, rows, 60).reshape(-1, 4, 3, 5)
    match likelihood:
        case "bernoulli":
            return {}, np.float32(u < 0.5), np.concatenate([4 * wide[:10, :2], 1000 * wide[10:, :2]])
        case "gaussian":
            return {"settings": {"logsigma": -1.5}}, u, 3 * wide[:, :2]
        case "heteroscedastic-gaussian":
            return {}, u, 3 * wide
        case "student-t":
            return {"settings": {"logsigma": -1.5, "logdf": 0.9}}, u, 3 * wide[:, :2]
        case "mixed":
            u[:, 1] = np.float32(u[:, 1] < 0.5)
            return {"settings": {"binary": [False, True], "logsigma": [-1.5, 0.0]}}, u, 3 * wide[:, :2]
    x = np.rint(255 * np.clip(2 * u - 0.5, 0, 1)) / np.float32(255)  # a quarter of them black, another white
    loc, log_scale = np.split(wide, 2, axis=1)
    return {}, x, np.concatenate([loc, np.concatenate([log_scale[:10] - 2, 8 * log_scale[10:]])], axis=1)


def torch_log_prob(
    likelihood: str, contract: dict[str, Any], x: torch.Tensor, parameters: torch.Tensor
) -> torch.Tensor:
    """log p(x|z), nats [images], from torch.distributions or, of the discretised logistic, its plain definition."""
    match likelihood:
        case "bernoulli":
            terms = torch.distributions.Bernoulli(logits=parameters).log_prob(x)
        case "gaussian":
            terms = torch.distributions.Normal(parameters, math.exp(contract["settings"]["logsigma"])).log_prob(x)
        case "student-t":
            sigma, df = (math.exp(contract["settings"][name]) for name in ("logsigma", "logdf"))
            terms = torch.distributions.StudentT(df, parameters, sigma).log_prob(x)
        case "mixed":
            real = torch.distributions.Normal(parameters[:, :1], math.exp(-1.5)).log_prob(x[:, :1])
            binary = torch.distributions.Bernoulli(logits=parameters[:, 1:]).log_prob(x[:, 1:])
            terms = torch.cat([real, binary], dim=1)
        case "heteroscedastic-gaussian":
            loc, logsigma = parameters.chunk(2, dim=1)
            terms = torch.distributions.Normal(loc, logsigma.clamp(math.log(1e-3), 7).exp()).log_prob(x)
        case _:
            loc, log_scale = parameters.chunk(2, dim=1)
            scale = log_scale.clamp(-7, 7).exp()
            levels = (255 * x).round()
            upper = torch.where(levels == 255, torch.inf, (x + 0.5 / 255 - loc) / scale)
            lower = torch.where(levels == 0, -torch.inf, (x - 0.5 / 255 - loc) / scale)
            flip = lower > 0  # sigmoid has its digits below zero
            upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
            terms = (upper.sigmoid() - lower.sigmoid()).log()
    return terms.sum((1, 2, 3))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_references_likelihood_is_torchs(likelihood: str) -> None:
    """log p(x|z) of the reference is torch's in float64, wherever the plain definition keeps its digits."""
    contract, x, parameters = cases(likelihood)
    x, parameters = np.float64(x), np.float64(parameters)
    got = reference.log_prob({"name": likelihood, **contract}, x, parameters)
    assert np.isfinite(got).all()
    expected = torch_log_prob(likelihood, contract, torch.from_numpy(x), torch.from_numpy(parameters)).numpy()
    kept = np.isfinite(expected)
    assert kept[:10].all()
    np.testing.assert_allclose(got[kept], expected[kept], rtol=1e-9)


@needs_node
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_javascripts_likelihood_is_the_references(likelihood: str, tmp_path: Path) -> None:
    """log p(x|z) of vae.mjs is the reference's in float64, at extreme parameters too."""
    contract, x, parameters = cases(likelihood)
    data = {"contract": contract, "x": x.reshape(20, -1).tolist(), "parameters": parameters.reshape(20, -1).tolist()}
    (tmp_path / "cases.json").write_text(json.dumps(data))
    code = """
        const { contract, x, parameters } = JSON.parse((await import("node:fs")).readFileSync(process.argv[1]));
        const { logProb } = LIKELIHOODS[process.argv[2]];
        const floats = (rows) => rows.map((row) => Float32Array.from(row));
        const [images, outputs] = [floats(x), floats(parameters)];
        console.log(JSON.stringify(images.map((image, i) => logProb(image, outputs[i], contract.settings))));
    """
    got = json.loads(run_javascript(code, tmp_path / "cases.json", likelihood))
    expected = reference.log_prob({"name": likelihood, **contract}, np.float64(x), np.float64(parameters))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@needs_node
def test_javascript_knows_columns() -> None:
    """A sigma and a unit for each column, of rows and of series, or a sigma for each value, as the runtime has them.

    Rows and windows are scaled as by it.
    """
    settings = {"logsigma": [-1.0, 0.5, -2.0], "log_unit": [3.0, -4.0, 0.25]}
    each = {**settings, "logsigma": noise.normal(4, noise.PRIOR, [0], 12)[0].tolist()}
    x, loc = noise.normal(3, noise.PRIOR, np.arange(2), 12).reshape(2, 1, 12)
    code = """
        const [x, loc, settings, each, rows, columns] = JSON.parse(process.argv[1]);
        const { logProb } = LIKELIHOODS.gaussian;
        const of_shape = (shape) =>
          Object.assign(Object.create(VAE.prototype), { columns, contract: { observation: { shape } } });
        const floats = (values) => Float32Array.from(values);
        const of = (n, settings) => logProb(floats(x.slice(0, n)), floats(loc.slice(0, n)), settings);
        const found = [of(3, settings), of(12, settings), of(12, each)];
        const scaled = [[2], [2, 1], [2, 2]].map((shape) => Array.from(of_shape(shape).standardise(rows)));
        console.log(JSON.stringify([...found, ...scaled]));
    """
    rows, columns = [1e9 + 3, 5.0, 1e9 - 1, 7.0], [{"mean": 1e9, "scale": 2.0}, {"mean": 6.0, "scale": 0.5}]
    given = json.dumps([x.ravel().tolist(), loc.ravel().tolist(), settings, each, rows, columns])
    *found, of_rows, of_one_step, of_windows = json.loads(run_javascript(code, given))
    for got, shape, named in zip(found, [(3,), (3, 4), (3, 4)], [settings, settings, each], strict=True):
        kind = Observation({1: "vector", 2: "series"}[len(shape)], shape, None)
        gaussian = likelihoods.make(manifests.Named("gaussian", named), kind)
        some = [values.ravel()[: math.prod(shape)].reshape(1, *shape) for values in (x, loc)]
        np.testing.assert_allclose(got, gaussian.log_prob(*some)[0], rtol=1e-6)
    assert of_rows == of_one_step == [1.5, -2.0, -0.5, 2.0]
    scale = Scaling.of([manifests.Column("", **column) for column in columns], Observation("series", (2, 2), None))
    assert scale is not None
    windows = scale.standardise(np.array(rows).reshape(1, 2, 2))
    np.testing.assert_array_equal(np.float32(of_windows), windows.ravel())


@needs_node
def test_javascript_refuses_files_that_do_not_belong_together(job: Any, tmp_path: Path) -> None:
    """A graph whose hash is not the manifest's is refused before onnxruntime sees it."""
    code = """
        const { readFile } = await import("node:fs/promises");
        const read = (name) => readFile(`${process.argv[1]}/${name}`);
        await VAE.load({}, read).catch((error) => console.log(error.message));
    """
    damaged = shutil.copytree(job.folder, tmp_path / "damaged")
    data = bytearray((damaged / "encoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "encoder.onnx").write_bytes(data)
    assert "file is not the one of the manifest: encoder.onnx" in run_javascript(code, damaged)


@pytest.fixture
def at_hand() -> None:
    """Node and its packages; tests that need them skip where they are not here already."""
    if shutil.which("node") is None or not all(table.installed(*package) for package in table.PACKAGES.items()):
        pytest.skip("needs node, and the packages that `make compatibility` puts into build/javascript")


@pytest.mark.usefixtures("at_hand")
def test_node_agrees(job: Any, only: Callable[..., None], capsys: Any) -> None:
    """onnxruntime-node with the JavaScript module gives the reference's ELBO."""
    only("onnxruntime-node")
    assert table.main([str(job.folder)]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("✓ onnxruntime-node")
    assert table.PACKAGES["onnxruntime-node"] in row


@pytest.fixture(scope="module")
def job_of_flow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A job of a model of 28 x 28 images with an untrained flow that does much."""
    plain, levels = make_vae("tutorial", "bernoulli", hidden=(8,), latent_dim=4)
    prior, generator = Flow((4,), couplings=2, width=8), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    vae = VAEOfTorch(plain.encoder, plain.decoder, 4, plain.likelihood, prior)
    folder = tmp_path_factory.mktemp("flow")
    exporter.export_vae(vae, Observation.image((1, 28, 28)), levels.numpy(), folder / "bundle")
    return table.make_job(str(folder / "bundle"), folder / "job"), vae


@pytest.mark.slow
def test_a_learned_prior_is_in_the_reference(job_of_flow: Any, only: Callable[..., None], capsys: Any) -> None:
    """It is PyTorch's in float64, and the runtime's and the evaluator's figures agree with it."""
    job, vae = job_of_flow
    check_reference(vae, job)
    only(*LOCAL)
    assert table.main([str(job.folder)]) == 0
    assert capsys.readouterr().out.count("✓") == 2


@pytest.mark.usefixtures("at_hand")
def test_node_knows_a_learned_prior(job_of_flow: Any, only: Callable[..., None], capsys: Any, tmp_path: Path) -> None:
    """vae.mjs scores as the reference does, and gives the runtime's latents and their densities."""
    job, _ = job_of_flow
    only("onnxruntime-node")
    assert table.main([str(job.folder)]) == 0
    assert capsys.readouterr().out.count("✓ onnxruntime-node") == 1
    table.lay_out(tmp_path)
    drawn = noise.normal(1, noise.PRIOR, np.arange(5), 4)
    (tmp_path / "draw.mjs").write_text("""
        import { readFile } from "node:fs/promises";
        import * as ort from "onnxruntime-node";
        import { VAE } from "./vae.mjs";
        const vae = await VAE.load(ort, (name) => readFile(`${process.argv[2]}/${name}`));
        const z = await vae.latents(Float32Array.from(JSON.parse(process.argv[3])));
        console.log(JSON.stringify([Array.from(z), Array.from(await vae.logPrior(z))]));
    """)
    command = ["node", "draw.mjs", str(job.folder), json.dumps(drawn.ravel().tolist())]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    z, log_prob = map(np.array, json.loads(printed))
    prior = VAE.load(job.folder).prior
    np.testing.assert_allclose(z.reshape(5, 4), prior.sample(1, np.arange(5)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(log_prob, prior.log_prob(prior.sample(1, np.arange(5))), rtol=0, atol=1e-4)


@needs_node
def test_javascripts_index_is_the_runtimes(tmp_path: Path) -> None:
    """noiseIndex gives each image the number of noise.index, -0 that of 0, and denormals their own."""
    x = noise.uniform(1, noise.PIXELS, np.arange(5), 30)
    x[3], x[4, ::2], x[2, 7] = -0.0, -x[4, ::2], 1e-40
    x.tofile(tmp_path / "x.f32")
    printed = run_javascript(
        "const { readFileSync } = await import('node:fs');"
        "const x = new Float32Array(new Uint8Array(readFileSync(process.argv.at(-1))).buffer);"
        "console.log(Array.from(await noiseIndex(x, 5), String).join(' '));",
        tmp_path / "x.f32",
    )
    assert [int(word) for word in printed.split()] == noise.index(x).tolist()


def test_another_index_gets_a_cross(job: Any) -> None:
    """A runtime whose index of an image is not the one of vae_runtime fails, whatever its figures."""
    row = table.compare("some", job, lambda _: job.expected | {"index": ["1"] * 70})
    assert row.passed is False
    assert "index" in row.problem


@pytest.mark.usefixtures("at_hand")
def test_shown_javascript_runs(tmp_path: Path) -> None:
    """The page's first example, as it stands beside vae.mjs and the bundle, gives the runtime's figures."""
    page = (table.REPOSITORY / "docs" / "browser.md").read_text()
    example = re.findall(r"^```js\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    table.lay_out(tmp_path)
    (tmp_path / "mnist").symlink_to(shipped())
    (tmp_path / "example.mjs").write_text(example + "console.log(JSON.stringify([elbo[0], ...theta]));\n")
    got = json.loads(subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, check=True).stdout)
    vae = VAE.load(threads=1)
    x = np.zeros((1, *vae.observation.shape), np.float32)
    mu, logsigma = vae.encode(x)
    kl = kl_of_draw(vae.prior, mu, logsigma, np.zeros_like(mu))
    elbo = vae.likelihood.log_prob(x, vae.parameters(mu)) - kl
    np.testing.assert_allclose(got, [*elbo, *vae.reconstruct(x).ravel()], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("newest", [False, True], ids=["oldest-opset", "newest-opset"])
@pytest.mark.parametrize("likelihood", OF_PIXELS)
@pytest.mark.parametrize("preset", ["tutorial", "resnet"])
def test_networks_likelihoods_and_opsets_agree_everywhere(
    preset: str, likelihood: str, newest: bool, only: Callable[..., None], tmp_path: Path, capsys: Any
) -> None:
    """MLPs and ResNets, under every likelihood, of the oldest and the newest opset: ticks in all runtimes but ARM's."""
    vae, levels = make_vae(preset, likelihood, (1, 28, 28))
    opset = onnx_graph.newest_opset() if newest else onnx_graph.OLDEST_OPSET
    exporter.export_vae(vae, Observation.image((1, 28, 28)), levels.numpy(), tmp_path / "bundle", opset=opset)
    check_reference(vae, table.make_job(str(tmp_path / "bundle"), tmp_path / "job"))
    only(*LOCAL, "onnxruntime-node", "onnxruntime-web")
    check_table([str(tmp_path / "bundle")], capsys)


@pytest.mark.slow
def test_shipped_bundles_agree_everywhere(capsys: Any) -> None:
    """What ships gets a tick in every runtime of the table, emulated ARM too."""
    check_table([], capsys)


def check_table(bundles: list[str], capsys: Any) -> None:
    """Make the table; skip, with the reasons, where something was not run."""
    code = table.main(bundles)
    out = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{out}")
    assert code == 0, out
    if missing := re.findall(r"^- .*", out, re.MULTILINE):
        pytest.skip("; ".join(missing))
