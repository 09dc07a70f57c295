"""The flow: its inverse, its log-determinant against autograd's Jacobian, and a training with it as the prior."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vae_train
from support.runs import interrupted, without_report
from vae_runtime.errors import ArgumentError
from vae_train import bounds, networks, objectives
from vae_train.config import PRESETS, PRIORS, Place
from vae_train.flow import LOG_SCALE_BOUND, Flow
from vae_train.prior import Prior, StandardNormal
from vae_train.settings import Settings
from vae_train.vae import VAE

SHAPES = [(1,), (7,), (2, 3, 2)]
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::vae_train.TrainingWarning"),
]


def normal(*shape: int, seed: int) -> Tensor:
    """Seeded standard normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bent(flow: Flow, much: float = 1.0) -> Flow:
    """The flow with couplings that do much, in float64."""
    with torch.no_grad():
        for seed, coupling in enumerate(flow.couplings):
            for weight in coupling.body[-1].parameters():
                weight.copy_(much * normal(*weight.shape, seed=seed))
    return flow.double()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_starts_as_standard_normal(shape: tuple[int, ...]) -> None:
    """Noise becomes itself, and log-probabilities are those of N(0, I), to the last bit."""
    flow, z = Flow(shape, width=8), normal(3, 5, *shape, seed=0).float()
    assert torch.equal(flow.from_noise(z), z)
    torch.testing.assert_close(flow.log_prob(z), StandardNormal(shape).log_prob(z), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_way_undoes_the_other(shape: tuple[int, ...], dtype: torch.dtype, off: float) -> None:
    """From noise and to it again, and from z, which is another than the noise."""
    flow, noise = bent(Flow(shape, width=8)).to(dtype), normal(50, *shape, seed=0).to(dtype)
    z = flow.from_noise(noise)
    assert (z - noise).abs().mean() > 0.1
    scale = z.abs().max().item()
    torch.testing.assert_close(flow.to_noise(z)[0], noise, rtol=0, atol=off * scale)
    torch.testing.assert_close(flow.from_noise(flow.to_noise(noise)[0]), noise, rtol=0, atol=off * scale)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_det_is_that_of_autograds_jacobian(shape: tuple[int, ...]) -> None:
    """log |d noise / d z| of each z, and with it log p(z)."""
    flow, z, size = bent(Flow(shape, width=8)), normal(6, *shape, seed=1), math.prod(shape)
    noise, log_det = flow.to_noise(z)
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow.to_noise(one)[0], z[i]).reshape(size, size)
        assert log_det[i].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-10)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).flatten(1).sum(dim=1)
    torch.testing.assert_close(flow.log_prob(z), base + log_det)


def test_density_integrates_to_one() -> None:
    """Over a plane of latents, by a fine sum."""
    flow, step = bent(Flow((2,), couplings=4, width=8), 0.3), 0.05
    axis = torch.arange(-12, 12, step, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    assert flow.log_prob(z).exp().sum().item() * step**2 == pytest.approx(1, abs=1e-3)


def test_far_latents_stay_finite() -> None:
    """With weights that are anything, in float32, a latent 1,000 standard deviations away has a finite density."""
    flow = Flow((7,), width=8)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.copy_(3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    z = 1000 * normal(50, 7, seed=0).float()
    assert flow.log_prob(z).isfinite().all()
    assert flow.from_noise(z).isfinite().all()
    assert flow.to_noise(z)[1].abs().max() <= LOG_SCALE_BOUND * 8 * 7


def vae_with(prior: Prior) -> VAE:
    """A small untrained VAE in float64 with this prior of 3 latents."""
    torch.manual_seed(0)
    plain = networks.build(PRESETS["gated"].replace(hidden=(8, 7), latent_dim=3), (1, 2, 3))
    return VAE(plain.encoder, plain.decoder, 3, plain.likelihood, prior).double()


def test_the_kl_of_a_flow_is_refused_and_estimated() -> None:
    """`kl_divergence` says what to do; `terms` has the mean of log q(z|x) - log p(z) over the draws."""
    vae, x = vae_with(bent(Flow((3,), width=8))), torch.ones(5, 1, 2, 3, dtype=torch.float64)
    mu, logsigma = vae.encoder(x)
    with pytest.raises(ArgumentError, match=r"no closed form of the KL: flow prior; vae\.terms"):
        vae.kl_divergence(mu, logsigma)
    eps = normal(5, 3, seed=4)
    q = torch.distributions.Normal(mu, logsigma.exp())
    z = mu + logsigma.exp() * eps
    expected = q.log_prob(z).sum(dim=1) - vae.prior.log_prob(z)
    torch.testing.assert_close(vae.terms(x, eps).kl, expected)


@pytest.mark.parametrize("path", [True, False], ids=["path", "total"])
@pytest.mark.parametrize("samples", [1, 3])
def test_gradients_are_those_of_the_spelled_out_loss(path: bool, samples: int) -> None:
    """Of each weight, the flow's too: by autograd of log p(x|z) + log p(z) - log q(z|x), as each objective has it."""
    vae, x = vae_with(bent(Flow((3,), width=8))), torch.ones(5, 1, 2, 3, dtype=torch.float64)
    eps, names = normal(samples, 5, 3, seed=4), [name for name, _ in vae.named_parameters()]
    objectives.backward(objectives.Objective(samples, path), vae, x, vae(x, eps), 2.5)
    out = vae(x, eps)
    q = Normal(out.mu, out.logsigma.exp())
    still = Normal(out.mu.detach(), out.logsigma.detach().exp())
    joint = vae.likelihood.log_prob(x, out.parameters) + vae.prior.log_prob(out.z)  # [K, batch]
    of_still, of_q = (joint - each.log_prob(out.z).sum(dim=-1) for each in (still, q))
    weights = torch.softmax(of_q, dim=0).detach()
    of_one = of_still if path else joint + q.entropy().sum(dim=-1)
    bound = of_one if samples == 1 else torch.logsumexp(of_q, dim=0)
    expected = dict(
        zip(names, torch.autograd.grad(-bound.sum() / 2.5, vae.parameters(), retain_graph=True), strict=True)
    )
    if path and samples > 1:  # Tucker et al.: weights squared, for the encoder alone
        (in_z,) = torch.autograd.grad(of_still.sum(), out.z, retain_graph=True)
        loss = -(weights.square()[..., None] * in_z * out.z).sum() / 2.5
        encoder = list(vae.encoder.parameters())
        expected |= zip(
            [f"encoder.{name}" for name, _ in vae.encoder.named_parameters()],
            torch.autograd.grad(loss, encoder),
            strict=True,
        )
    for name, weight in vae.named_parameters():
        assert expected[name].abs().max() > 1e-6, name
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-10, atol=1e-10, msg=name)


def test_samples_are_of_the_flow() -> None:
    """Latents are pushed through it, and their log-probabilities are on average its entropy's negative."""
    vae = vae_with(bent(Flow((3,), width=8)))
    torch.manual_seed(1)
    z = vae.sample_prior(4000)
    torch.manual_seed(1)
    noise = torch.randn(4000, 3, dtype=torch.float64)
    assert torch.equal(z, vae.prior.from_noise(noise))
    assert vae.sample(6).shape == (6, 1, 2, 3)


def test_it_learns_a_density_that_no_gaussian_has() -> None:
    """Of two clusters: 100 steps bring it within 0.3 nats of their entropy, and the best Gaussian is 1.2 away."""
    generator = torch.Generator().manual_seed(0)

    def clusters() -> Tensor:
        side = torch.randint(0, 2, (200, 1), generator=generator) * 2 - 1
        return torch.cat([side * 2, -side], dim=1) + 0.3 * torch.randn(200, 2, generator=generator)

    torch.manual_seed(0)
    flow = Flow((2,), width=16)
    adam = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(100):
        loss = -flow.log_prob(clusters()).mean()
        loss.backward()
        adam.step()
        adam.zero_grad()
    entropy = math.log(2) + 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3))
    z = clusters()
    gaussian = 0.5 * torch.logdet(2 * math.pi * math.e * torch.cov(z.T))
    with torch.no_grad():
        loss = -flow.log_prob(z).mean().item()
    assert loss < entropy + 0.3 < gaussian - 0.8


SETTINGS: Settings = {"hidden": 16, "latent_dim": 4, "epochs": 2, "batch_size": 64, "prior": "flow"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> vae_train.Run:
    """A run with a flow, of scikit-learn's digits."""
    with without_report():
        return vae_train.fit("digits", out=tmp_path_factory.mktemp("flow") / "run", threads=1, **SETTINGS)


def test_a_run_keeps_its_flow(run: vae_train.Run) -> None:
    """It says so in settings and figures, its weights come back, and training raised the test ELBO."""
    again = vae_train.load_run(run.path)
    assert (again.config.network.prior, again.evaluation["prior"]) == ("flow", "flow")
    z = normal(5, 4, seed=0).float()
    assert torch.equal(again.vae.prior.log_prob(z), run.vae.prior.log_prob(z))
    assert (again.vae.prior.from_noise(z) - z).abs().max() > 1e-3
    first, last = (row["test_elbo"] for row in run.metrics)
    assert last > first


def test_figures_name_the_prior_and_have_the_errors_of_their_draws(run: vae_train.Run) -> None:
    """`evaluate` and `compare`: the KL is that of one draw each, whose spread its standard error holds."""
    found = run.evaluate(samples=20)
    assert str(found).splitlines()[0].endswith(", flow prior, nats per image")
    assert found.log_likelihood.mean > found.elbo.mean
    compared = vae_train.compare(run.path, run.path)
    assert compared.rows["kl"][0] == found.kl
    assert str(compared).splitlines()[1] == f"a: {run.path}, flow prior"
    test = vae_train.results.load_data(run, Place(Path())).observed_test(True)
    with torch.no_grad():
        out = run.vae(test.float() / 255, torch.randn(50, len(test), 4, generator=torch.Generator().manual_seed(0)))
        kl = -run.vae.prior.log_ratio(out.mu, out.logsigma, out.z)  # [50, n]
    assert abs(kl.mean() - found.kl.mean) < 5 * kl.var(dim=0).mean().sqrt() * len(test) ** -0.5
    assert found.kl.standard_error == pytest.approx((kl.var() / len(test)).sqrt().item(), rel=0.2)


def test_the_kl_by_latent_is_to_what_a_gaussian_knows(run: vae_train.Run) -> None:
    """To the Gaussian of each latent's mean and variance over the observations, never above that to N(0, 1)."""
    levels = torch.randint(0, 2, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    found = bounds.measure(run.vae, levels)
    with torch.no_grad():
        mu, logsigma = run.vae.encoder(levels)
        variance = mu.var(dim=0, correction=0) + (2 * logsigma).exp().mean(dim=0)
        expected = kl_divergence(Normal(mu, logsigma.exp()), Normal(mu.mean(dim=0), variance.sqrt()))
        torch.testing.assert_close(found.kl, expected)
        assert (found.kl.mean(dim=0) <= StandardNormal((4,)).kl(mu, logsigma).mean(dim=0) + 1e-6).all()


def test_an_interrupted_training_goes_on_exactly(
    run: vae_train.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the weights of a training without a break, the flow's among them."""
    with without_report():
        error = interrupted(monkeypatch, 30, "digits", out=tmp_path / "run", threads=1, **SETTINGS)
        again = vae_train.resume(error.folder, threads=1)
    for name, value in run.vae.state_dict().items():
        assert torch.equal(value, again.vae.state_dict()[name]), name


def test_free_bits_are_refused() -> None:
    """They are nats of a latent's own, which the KL to a flow does not have."""
    with pytest.raises(ArgumentError, match="a flow's KL has no parts"):
        PRESETS["tutorial"].replace(prior="flow", free_bits=0.1)


def test_every_prior_has_a_name() -> None:
    """In the settings as in the table of what is built."""
    assert tuple(networks.PRIORS) == PRIORS
