"""`vae-train compare`: the figures of two runs side by side, and their differences in pairs."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vae_train
from vae_runtime.errors import ArgumentError
from vae_train import bounds, data, results, run_folder, train
from vae_train.cli import main
from vae_train.config import PRESETS, Place

Command = Callable[..., Any]
CPU = torch.device("cpu")
DIGITS = PRESETS["tutorial"].replace(dataset="digits", hidden=(16,), latent_dim=3, epochs=2, batch_size=64)
RUNS = {
    "a": DIGITS,
    "b": DIGITS.replace(hidden=(32, 8), latent_dim=2, seed=1),
    "grey": DIGITS.replace(likelihood="discretised-logistic"),
    "grey too": DIGITS.replace(likelihood="discretised-logistic", hidden=(8,)),
    "density": DIGITS.replace(likelihood="gaussian"),
}


@pytest.fixture(scope="module", autouse=True)
def without_pictures(tiny_run: Path) -> Iterator[None]:
    """Reports are not looked at here, but for that of `tiny_run`, made before; small networks like one thread best."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(results.report, "draw", lambda *given: None)
        patched.setenv("VAE_EDGE_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of RUNS."""
    folder = tmp_path_factory.mktemp("compared")
    for name, config in RUNS.items():
        train.train(config, folder / name, Place(folder, download=False, device="cpu"), "vae-train")
    return folder


def compare(command: Command, a: Path, b: Path, *words: object) -> dict[str, list[tuple[float, float]]]:
    """The table's rows: mean and standard error of a, b and b - a."""
    result = command(main, "compare", a, b, "--device", "cpu", *words)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[1:3] == [f"a: {a}", f"b: {b}"]
    assert lines[3].split() == ["a", "b", "b", "-", "a"]
    rows = {}
    for line in lines[4:]:
        label, *figures = re.split(r"  +", line)
        rows[label] = [(float(mean), float(error)) for mean, error in (figure.split(" +- ") for figure in figures)]
    return rows


@torch.no_grad()
def per_image(run: Path, num_samples: int) -> dict[str, np.ndarray]:
    """Each test image's figures, float64, from the run's weights and torch.distributions alone."""
    vae = run_folder.load(run).vae
    images = data.load(DIGITS, run, download=False)
    x = images.observed_test(binary=True).double() / 255  # [n, 1, 8, 8]
    mu, logsigma = (part.double() for part in vae.encoder(x.float()))
    q, prior = torch.distributions.Normal(mu, logsigma.exp()), torch.distributions.Normal(0.0, 1.0)

    def log_prob(z: torch.Tensor) -> torch.Tensor:
        logits = vae.decoder(z.float()).double()
        return torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(dim=(1, 2, 3))

    def draws(samples: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return mu + logsigma.exp() * torch.randn(samples, len(x), vae.latent_dim, generator=generator)

    kl = torch.distributions.kl_divergence(q, prior).sum(dim=1)
    reconstruction = log_prob(draws(1)[0])
    weights = [log_prob(z) + (prior.log_prob(z) - q.log_prob(z)).sum(dim=1) for z in draws(num_samples)]
    bound = torch.stack(weights).logsumexp(dim=0) - np.log(num_samples)
    found = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
    found[f"log p(x) >= (K = {num_samples})"] = bound
    return {name: values.numpy() for name, values in found.items()}


def test_the_table_is_what_torch_computes(command: Command, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means, standard errors, and those of the differences per image, each to the two places printed."""
    monkeypatch.setattr(bounds, "_PIXELS", 1 << 30)  # all noise in one draw, as here
    rows = compare(command, runs / "a", runs / "b", "-K", 7)
    a, b = (per_image(runs / name, 7) for name in "ab")
    assert rows.keys() == a.keys()
    for name, figures in rows.items():
        for (mean, error), values in zip(figures, (a[name], b[name], b[name] - a[name]), strict=True):
            assert mean == pytest.approx(values.mean(), abs=0.006)
            assert error == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, abs=0.006)


def test_differences_in_pairs_vary_less_than_the_images(command: Command, runs: Path) -> None:
    """The paired standard error is far below that of two independent means, which is why it is shown."""
    (_, a), (_, b), (_, paired) = compare(command, runs / "a", runs / "b")["elbo"]
    assert 0 < paired < 0.5 * np.hypot(a, b)


def test_one_sample_compares_the_elbo_alone(command: Command, runs: Path) -> None:
    """Bounds of log p(x) cost K passes, and are left out unless asked for."""
    assert list(compare(command, runs / "a", runs / "b")) == ["elbo", "reconstruction", "kl"]


def test_the_order_of_the_runs_is_the_sign_of_the_difference(command: Command, runs: Path) -> None:
    """b - a is a - b turned round; a run does not differ from itself."""
    forth, back = compare(command, runs / "a", runs / "b"), compare(command, runs / "b", runs / "a")
    for name, (a, b, (mean, error)) in forth.items():
        assert back[name] == [b, a, (pytest.approx(-mean), error)]
    assert [figures[2] for figures in compare(command, runs / "a", runs / "a").values()] == [(0, 0)] * 3


def test_runs_of_grey_levels_are_compared_on_them(command: Command, runs: Path) -> None:
    """Two runs of a likelihood of grey levels are measured on those, and the page says which images these are."""
    result = command(main, "compare", runs / "grey", runs / "grey too", "--device", "cpu")
    assert result.code == 0, result.err
    levels = data.load(DIGITS, runs, download=False).test
    line = result.out.splitlines()[0]
    assert line.startswith(f"{len(levels)} test images, 8-bit levels as they are, sha256 ")
    evaluation = run_folder.load(runs / "grey").evaluation
    assert evaluation["binarisation"] in line
    assert f"{evaluation['figures']['elbo']['mean']:.2f} +- " in result.out


@pytest.mark.parametrize(("a", "b"), [("a", "grey"), ("grey", "a"), ("a", "tiny"), ("tiny", "a")])
def test_runs_of_other_test_images_are_refused(
    command: Command, runs: Path, tiny_run: Path, digits_root: Path, a: str, b: str
) -> None:
    """Binary draws against grey levels, digits of 8x8 against those of 28x28: exit code 2, one line, no figures."""
    folders = [tiny_run if name == "tiny" else runs / name for name in (a, b)]
    result = command(main, "compare", *folders, "--device", "cpu", "--data-root", digits_root, "--no-download")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"vae-train: error: runs of different test images cannot be compared: {folders[1]}; name runs of one data set\n"
    )


def test_a_density_is_not_compared_with_a_probability(runs: Path) -> None:
    """A Gaussian's density of the same images has other units than probabilities of levels."""
    with pytest.raises(ArgumentError) as caught:
        vae_train.compare(runs / "density", runs / "grey", device="cpu")
    assert str(caught.value) == (
        "a density and a probability cannot be compared: gaussian and discretised-logistic; name runs of one likelihood"
    )


def test_compared_on_other_images_than_the_runs_own(
    command: Command, tiny_run: Path, digits_root: Path, tmp_path: Path
) -> None:
    """Where --data-root holds other images than both were measured on: exit code 4, and the folder is named."""
    root = tmp_path / "other"
    (root / "MNIST").mkdir(parents=True)
    (root / "MNIST" / "raw").symlink_to(digits_root / "MNIST" / "raw")
    fine = command(main, "compare", tiny_run, tiny_run, "--device", "cpu", "--data-root", root, "--no-download")
    assert fine.code == 0, fine.err
    (root / "MNIST" / "raw").unlink()
    (root / "MNIST" / "raw").mkdir()
    for path in (digits_root / "MNIST" / "raw").iterdir():
        name = {"train": "t10k", "t10k": "train"}[path.name.split("-")[0]] + path.name[path.name.index("-") :]
        (root / "MNIST" / "raw" / name).symlink_to(path)
    result = command(main, "compare", tiny_run, tiny_run, "--device", "cpu", "--data-root", root, "--no-download")
    assert (result.code, result.out) == (4, "")
    assert result.err == (
        f"vae-train: error: test images are not the run's: {root}; name the --data-root that the run was trained on\n"
    )


@pytest.mark.parametrize(("words", "code"), [(["a"], 2), (["a", "b", "grey"], 2), (["a", "absent"], 3), ([], 2)])
def test_it_takes_two_runs(command: Command, runs: Path, words: list[str], code: int) -> None:
    """Fewer or more are wrong usage; what is no run is said to be none."""
    result = command(main, "compare", *(runs / word for word in words), "--device", "cpu")
    assert (result.code, result.out) == (code, "")
    assert re.fullmatch(r"vae-train: error: [^\n;]+; [^\n]+\n", result.err), result.err
