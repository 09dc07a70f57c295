"""The VAE inside a larger program: pickled, shared by threads, forked, closed, fed by iterators, short of memory."""

import copy
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support.graphs import extended, inner, node, tensor
from vae_runtime import VAE, ArgumentError, BundleError, InputError, bundle, noise


def test_pickles_and_copies_give_the_same_numbers(loaded):
    """A VAE from a pickle or a deep copy has the same path, threads, samples and ELBOs, to the last bit."""
    for twin in (pickle.loads(pickle.dumps(loaded.vae)), copy.deepcopy(loaded.vae)):
        assert (twin.path, twin.threads, twin.manifest) == (loaded.vae.path, loaded.vae.threads, loaded.vae.manifest)
        assert (twin.memory, twin.rows) == (loaded.vae.memory, loaded.vae.rows)
        np.testing.assert_array_equal(twin.sample(5, seed=1), loaded.vae.sample(5, seed=1))
        np.testing.assert_array_equal(twin.elbo(loaded.x), loaded.vae.elbo(loaded.x))


@pytest.mark.parametrize(("threads", "memory"), [(1, 1), (3, 123_456), (2, 1 << 40)])
def test_pickles_keep_threads_and_memory(tiny_bundle: Path, threads: int, memory: int):
    """What the VAE was given, and not this machine's default, goes into the pickle."""
    vae = VAE.load(tiny_bundle, threads, memory)
    for twin in (pickle.loads(pickle.dumps(vae)), copy.copy(vae), copy.deepcopy(vae)):
        assert (twin.threads, twin.memory, twin.rows) == (threads, memory, vae.rows)


def test_a_pickle_of_a_changed_bundle_is_refused(tiny_bundle: Path, tmp_path: Path, forge: Callable[..., Path]):
    """Unpickling raises BundleError where the bundle's folder now holds another valid bundle, or none."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    pickled = pickle.dumps(VAE.load(path))
    shutil.rmtree(path)
    with pytest.raises(BundleError):
        pickle.loads(pickled)
    forge(change=lambda manifest: manifest["provenance"].update(command="another")).rename(path)
    VAE.load(path).close()
    with pytest.raises(BundleError, match="bundle changed since it was loaded"):
        pickle.loads(pickled)


def test_eight_threads_share_a_vae(loaded):
    """Eight threads that use one VAE at once get the bits that each call gives alone."""

    def work(seed: int) -> list[np.ndarray]:
        vae, x = loaded.vae, loaded.x
        return [vae.sample(40, seed=seed), vae.elbo(x, seed=seed), vae.log_likelihood(x[:20], 30, seed), *vae.encode(x)]

    alone = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for expected, got in zip(alone, pool.map(work, range(8)), strict=True):
            for a, b in zip(expected, got, strict=True):
                np.testing.assert_array_equal(a, b)


FORK = """
import os, sys
from vae_runtime import VAE
vae = VAE.load(sys.argv[1], threads=2)
def show():
    print(vae.sample(600, seed=3).sum(), vae.elbo(vae.sample(300)).tolist(), flush=True)
show()
child = os.fork()
if not child:
    show()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
show()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_vae_works_after_a_fork(loaded):
    """Child and parent of a fork both compute what the parent computed before it."""
    arguments = [sys.executable, "-c", FORK, str(loaded.path)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=True)
    before, child, parent = result.stdout.splitlines()
    assert before == child == parent


FORK_AMID_PUBLISHING = """
import os, sys
import numpy as np
from vae_runtime import VAE, bundle
path, other, bundle._LARGE = *sys.argv[1:3], int(sys.argv[3])
vae = VAE.load(path, threads=1)
expected = vae.sample(1, seed=0)
os.rename(path, path + ".old")
os.rename(other, path)
child = os.fork()
assert np.array_equal(vae.sample(1, seed=0), expected)
assert np.isfinite(vae.elbo(expected)).all()  # which opens the encoder
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("large", [1, 1 << 40], ids=["open", "held"])
def test_a_fork_goes_on_with_the_graphs_that_were_loaded(
    tiny_bundle: Path, tmp_path: Path, forge: Callable[..., Path], large: int
):
    """A child that opens its graphs anew after the bundle was replaced has the old ones, as the parent does."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    other = forge(change=lambda manifest: manifest["provenance"].update(command="another"))
    arguments = [sys.executable, "-c", FORK_AMID_PUBLISHING, str(path), str(other), str(large)]
    subprocess.run(arguments, timeout=600, check=True)


def test_a_vae_travels_to_a_spawned_process(loaded):
    """A process that multiprocessing spawns computes the same bits with the VAE that it is sent."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(loaded.vae.elbo, loaded.x[:9]).result(timeout=600)
    np.testing.assert_array_equal(there, loaded.vae.elbo(loaded.x[:9]))


def test_a_closed_vae_is_refused(tiny_bundle: Path):
    """The context manager closes; use after that raises ArgumentError that names the bundle; closing twice is fine."""
    with VAE.load(tiny_bundle) as vae:
        x = vae.sample(2)
    vae.close()
    for use in (lambda: vae.sample(2), lambda: vae.encode(x), lambda: vae.elbo(x), lambda: next(vae.sample_batches(2))):
        with pytest.raises(ArgumentError, match=f"closed VAE: {tiny_bundle}; load it again"):
            use()


FORK_AMID_OPENING = """
import os, sys, threading
from vae_runtime import VAE, sessions
vae, opening, go_on = VAE.load(sys.argv[1], threads=1), threading.Event(), threading.Event()
open_session = sessions.Session.__init__
def slow(self, *arguments):
    opening.set()
    go_on.wait()
    open_session(self, *arguments)
sessions.Session.__init__ = slow
thread = threading.Thread(target=vae.sample, args=(1,))
thread.start()
opening.wait()
child = os.fork()
go_on.set()
if child == 0:
    vae.sample(1)
    os._exit(0)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_a_graph_is_opened_does_not_hang_the_child(tiny_bundle: Path):
    """A child that is forked while another thread opens a graph opens its own and works."""
    command = [sys.executable, "-W", "ignore", "-c", FORK_AMID_OPENING, str(tiny_bundle)]
    assert subprocess.run(command, timeout=600).returncode == 0


@pytest.mark.parametrize("start", [0, 1, 255, 1000])
@pytest.mark.parametrize("mean", [False, True])
def test_batches_and_offsets_are_parts_of_one_sample(loaded, start: int, mean: bool):
    """`start` skips rows of the same seed's samples, and `sample_batches` cuts them up, bit for bit."""
    whole = loaded.vae.sample(start + 600, seed=7, mean=mean)[start:]
    np.testing.assert_array_equal(loaded.vae.sample(600, seed=7, mean=mean, start=start), whole)
    batches = list(loaded.vae.sample_batches(600, seed=7, mean=mean, start=start))
    assert len(batches) > 1
    np.testing.assert_array_equal(np.concatenate(batches), whole)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_numpys_integers_count_as_pythons(loaded, kind: type):
    """Counts, seeds and starts of any NumPy integer type give what the same Python integers give."""
    vae, x = loaded.vae, loaded.x[:60]
    most = min(200, int(np.iinfo(kind).max))
    for got, expected in (
        (vae.sample(60, kind(3), start=kind(most)), vae.sample(60, 3, start=most)),
        (vae.sample(kind(most), 3), vae.sample(most, 3)),
        (vae.binarise(0.5 * x, kind(3), kind(most)), vae.binarise(0.5 * x, 3, most)),
        (vae.elbo(x, kind(2), kind(3), kind(most)), vae.elbo(x, 2, 3, most)),
        (vae.elbo(x[:2], kind(most)), vae.elbo(x[:2], most)),
        (vae.log_likelihood(x[:2], kind(most), kind(3), kind(most)), vae.log_likelihood(x[:2], most, 3, most)),
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("memory", [0, -1, 1.5, "16", 2**63, 10**30])
def test_a_bad_memory_argument_is_refused(tiny_bundle: Path, memory):
    """Memory that is no positive integer raises ArgumentError with the value."""
    with pytest.raises(ArgumentError, match=f"memory out of range: {memory}; give an integer from 1 to 2\\^63 - 1"):
        VAE.load(tiny_bundle, memory=memory)


def test_rows_follow_memory_and_threads(loaded):
    """Twice the memory gives twice the rows, twice the threads half of them, between 1 and 512 a run."""
    for threads in (1, 2, 5):
        rows = [VAE.load(loaded.path, threads, 1 << power).rows for power in range(0, 60, 4)]
        assert rows == sorted(rows)
        assert (rows[0], rows[-1]) == (1, 512)
    one, two = (VAE.load(loaded.path, 1, memory).rows for memory in (2_000_000, 4_000_000))
    assert abs(two - 2 * one) <= 1
    assert abs(VAE.load(loaded.path, 2, 4_000_000).rows - one) <= 1
    for k in (1, 10, 10**6):
        assert 1 <= VAE.load(loaded.path).rows_per_run(k) <= 512


@pytest.mark.parametrize("large", [1, 1 << 40], ids=["open", "held"])
def test_a_loaded_vae_needs_its_folder_no_more(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int
):
    """Without its folder, or with other files in it, every verb works on, in threads too; only a pickle's reading is a
    BundleError that names what is missing.
    """
    monkeypatch.setattr(bundle, "_LARGE", large)
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    vae, again, whole = VAE.load(path, threads=2), VAE.load(path), VAE.load(tiny_bundle)
    pickled = pickle.dumps(vae)
    shutil.rmtree(path)
    np.testing.assert_array_equal(vae.sample(300), whole.sample(300))
    np.testing.assert_array_equal(vae.elbo(vae.sample(9), 3), whole.elbo(whole.sample(9), 3))
    with pytest.raises(BundleError, match=f"bundle not found: {path} "):
        pickle.loads(pickled)
    path.mkdir()
    (path / "decoder.onnx").write_bytes(b"changed")
    np.testing.assert_array_equal(again.reconstruct(vae.sample(2)), whole.reconstruct(whole.sample(2)))


def test_a_relative_path_survives_another_folder(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A VAE loaded from a relative path is unpickled from the same folder after the working folder has changed."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    vae = VAE.load("bundle")
    pickled = pickle.dumps(vae)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(pickle.loads(pickled).sample(2), vae.sample(2))


def spread(tiny_bundle: Path, value: float) -> bytes:
    """The tiny encoder, but with `value` times the image's largest pixel added to each logsigma."""
    nodes = [
        node("ReduceMax", ["x"], ["top"], axes=[1, 2, 3], keepdims=0),
        node("Reshape", ["top", "column"], ["top column"]),
        node("Mul", ["top column", "value"], ["added"]),
        node("Add", [inner("logsigma"), "added"], ["logsigma"]),
    ]
    weights = [tensor("value", value), tensor("column", [-1, 1], np.int64)]
    return extended((tiny_bundle / "encoder.onnx").read_bytes(), "logsigma", nodes, weights)


@pytest.mark.parametrize("value", [20, 45, 80, 88.5, 95, 200, 1e4, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("num_samples", [1, 5])
def test_extreme_encoders_give_finite_figures_or_name_the_image(
    tiny_bundle: Path, forge: Callable[..., Path], value: float, sign: int, num_samples: int
):
    """logsigma from -10^30 to 10^30, and NaN, give finite figures, or InputError that names the first such image and no
    warning; the images before it are scored as ever.
    """
    vae = VAE.load(forge({"encoder.onnx": spread(tiny_bundle, sign * value)}))
    x = np.zeros((9, 1, 28, 28), np.float32)
    x[4:, 0, 10:14, 10:14] = 1
    if not math.isfinite(value):
        with pytest.raises(
            InputError, match="the model gives no finite figure: image 0; check the image and the model"
        ):
            vae.encode(x)
    else:
        usual = VAE.load(tiny_bundle)
        np.testing.assert_array_equal(vae.elbo(x[:4], num_samples), usual.elbo(x[:4], num_samples))
        mu, logsigma = vae.encode(x)
        assert np.isfinite(mu).all()
        np.testing.assert_allclose(logsigma[4:], usual.encode(x)[1][4:] + np.float32(sign * value), rtol=1e-6)
    scores = [vae.elbo, vae.log_likelihood, lambda *call: vae.terms(*call).standard_error]
    for score in scores[: 2 if num_samples == 1 else 3]:  # of one draw there is no standard error
        try:
            figures = score(x, num_samples)
        except InputError as error:
            first = 4 if math.isfinite(value) else 0
            assert str(error).startswith(f"the model gives no finite figure: image {first}; ")
            assert sign > 0 or not math.isfinite(value)
        else:
            assert np.isfinite(figures).all()


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_extreme_decoders_give_finite_figures(tiny_bundle: Path, forge: Callable[..., Path], scale: float):
    """Logits of 10,000 and beyond give finite samples, means, ELBOs and bounds, with the ELBO of float64."""
    larger = node("Mul", [inner("logits"), "scale"], ["logits"])
    graph = extended((tiny_bundle / "decoder.onnx").read_bytes(), "logits", [larger], [tensor("scale", scale)])
    vae = VAE.load(forge({"decoder.onnx": graph}))
    x = VAE.load(tiny_bundle).sample(20, seed=2)
    mu, logsigma = vae.encode(x)
    z = mu + np.exp(logsigma) * noise.normal(0, noise.POSTERIOR, noise.index(x), 4)
    logits = vae.parameters(z)
    assert np.abs(logits).max() > 1e3
    expected = -np.logaddexp(0, (1 - 2.0 * x) * logits).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(vae.terms(x).reconstruction, expected, rtol=1e-5)
    for figures in (vae.elbo(x, 5), vae.log_likelihood(x, 5), vae.sample(9), vae.sample(9, mean=True), vae.decode(mu)):
        assert np.isfinite(figures).all()


@pytest.mark.parametrize("num_samples", [1, 3, 300])
def test_an_iterator_is_scored_as_one_batch(loaded, num_samples: int):
    """The ELBO and the bound of an iterator over batches equal those of the whole array, bit for bit."""
    x = loaded.x[:10]
    for score in (loaded.vae.elbo, loaded.vae.log_likelihood):
        whole = score(x, num_samples, seed=2)
        np.testing.assert_array_equal(score(iter([x[:4], x[4:5], x[5:]]), num_samples, seed=2), whole)
        assert score(iter([]), num_samples).shape == (0,)


@pytest.mark.parametrize("num_samples", [1, 2, 300])
def test_terms_carry_their_standard_error(loaded, num_samples: int):
    """KL is the sum over dimensions; the error is the sample deviation of log p(x|z_k) / sqrt(K), NaN for K = 1."""
    x, k = loaded.x[:6], num_samples
    terms = loaded.vae.terms(x, k, seed=4)
    assert terms.kl_per_dimension.shape == (6, loaded.vae.latent_dim)
    np.testing.assert_array_equal(terms.kl, terms.kl_per_dimension.sum(axis=1))
    np.testing.assert_array_equal(terms.elbo, terms.reconstruction - terms.kl)
    if k == 1:
        assert np.isnan(terms.standard_error).all()
        return
    mu, logsigma = loaded.vae.encode(x)
    eps = noise.normal(4, noise.POSTERIOR, noise.index(x), k * mu.shape[1]).reshape(6, k, -1)
    z = mu[:, None] + np.exp(logsigma)[:, None] * eps
    logits = loaded.vae.parameters(z.reshape(6 * k, -1)).reshape(6, k, *x.shape[1:])
    log_prob = -np.logaddexp(0, (1 - 2.0 * x[:, None]) * logits).sum(axis=(2, 3, 4))  # [images, k]
    expected = log_prob.std(axis=1, ddof=1) / math.sqrt(k)
    np.testing.assert_allclose(terms.standard_error, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("sample", {"n": 2, "seed": 1.5}, "seed out of range: 1.5"),
        ("sample", {"n": 2.5}, "number of samples out of range: 2.5"),
        ("sample", {"n": 2, "start": -1}, "start out of range: -1"),
        ("sample", {"n": 2, "start": 0.5}, "start out of range: 0.5"),
        ("sample_batches", {"n": 2.5}, "number of samples out of range: 2.5"),
        ("elbo", {"x": [], "num_samples": 10**30}, f"num_samples out of range: {10**30}"),
        ("log_likelihood", {"x": [], "num_samples": 2.5}, "num_samples out of range: 2.5"),
        ("terms", {"x": [], "seed": "1"}, "seed out of range: 1"),
    ],
)
def test_wrong_arguments_are_refused(loaded, verb: str, arguments: dict, words: str):
    """Fractions, negative offsets and absurd counts raise ArgumentError with the value, before any work is done."""
    with pytest.raises(ArgumentError, match=words):
        getattr(loaded.vae, verb)(**arguments)


def test_nothing_is_printed(loaded, capfd: pytest.CaptureFixture[str]):
    """Loading, sampling and scoring write nothing to stdout or stderr, not even from native code."""
    with VAE.load(loaded.path) as vae:
        vae.reconstruct(vae.sample(3))
        vae.log_likelihood(loaded.x[:3])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", " 2", "²", "1025", "9" * 5000])
def test_a_bad_thread_variable_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: str):
    """VAE_EDGE_THREADS that is no number from 1 to 1024 raises ArgumentError."""
    monkeypatch.setenv("VAE_EDGE_THREADS", value)
    with pytest.raises(ArgumentError):
        VAE.load(tiny_bundle)


@pytest.mark.parametrize("value", [0, -1, 1025, 1.5, "2"])
def test_a_bad_thread_argument_is_refused(tiny_bundle: Path, value):
    """A number of threads that is no integer from 1 to 1024 raises ArgumentError."""
    with pytest.raises(ArgumentError):
        VAE.load(tiny_bundle, threads=value)


def test_the_thread_argument_wins(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """VAE_EDGE_THREADS decides where no argument is given, and only there, even where it is bad."""
    monkeypatch.setenv("VAE_EDGE_THREADS", "3")
    assert VAE.load(tiny_bundle).threads == 3
    assert VAE.load(tiny_bundle, threads=2).threads == 2
    monkeypatch.setenv("VAE_EDGE_THREADS", "bad")
    assert VAE.load(tiny_bundle, threads=2).threads == 2
