"""The VAE's mathematics against torch.distributions, closed forms and quadrature."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae_train import bounds, data, loop, mlp, networks, pixels
from vae_train.config import PRESETS
from vae_train.state import TrainingState
from vae_train.vae import VAE

SHAPE = (1, 4, 4)


@pytest.fixture
def vae() -> VAE:
    """A small untrained VAE in float64, its decoder scaled so that p(z|x) is far from the prior."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"].replace(hidden=(8,), latent_dim=2), SHAPE).double()
    with torch.no_grad():
        vae.decoder.last.weight.mul_(4)
    return vae


@pytest.fixture
def x() -> Tensor:
    """Three binary images."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (3, *SHAPE), generator=generator).double()


def normal(*shape: int, seed: int = 2) -> Tensor:
    """Seeded standard normal noise in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def independent_elbo(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The ELBO spelled out with torch.distributions, KL in closed form."""
    mu, logsigma = vae.encoder(x)
    q, prior = Normal(mu, logsigma.exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))
    p = Bernoulli(logits=vae.decoder(mu + q.stddev * eps))
    return p.log_prob(x).sum(dim=(1, 2, 3)) - kl_divergence(q, prior).sum(dim=1)


class ConstantPosterior(nn.Module):
    """An encoder whose q is the same for every image: two free parameters per latent dimension."""

    def __init__(self, mu: Tensor, logsigma: Tensor) -> None:
        super().__init__()
        self.mu, self.logsigma = nn.Parameter(mu.clone()), nn.Parameter(logsigma.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters, once per image."""
        return self.mu.expand(len(x), -1), self.logsigma.expand(len(x), -1)


class GaussianFactor(nn.Module):
    """A decoder with log p(x = 0 | z_j) = -a_j (z_j - b_j)^2 / 2 - c per pixel, so that p(z | x = 0) is Gaussian."""

    a, b, c = torch.tensor([3.0, 0.5]).double(), torch.tensor([1.0, -2.0]).double(), 0.1

    def forward(self, z: Tensor) -> Tensor:
        """Two pixels, one per latent: softplus(logit) = a (z - b)^2 / 2 + c."""
        return torch.log(torch.expm1(self.a * (z - self.b) ** 2 / 2 + self.c)).reshape(-1, 1, 1, 2)

    @classmethod
    def posterior(cls) -> tuple[Tensor, Tensor]:
        """The exact mu and logsigma of p(z | x = 0)."""
        return cls.a * cls.b / (1 + cls.a), -0.5 * torch.log(1 + cls.a)

    @classmethod
    def log_evidence(cls) -> Tensor:
        """The exact log p(x = 0)."""
        return (-cls.c - 0.5 * torch.log(1 + cls.a) - 0.5 * cls.a * cls.b**2 / (1 + cls.a)).sum()


def gaussian_toy() -> VAE:
    """A VAE whose encoder is the exact posterior of the all-black image."""
    return VAE(ConstantPosterior(*GaussianFactor.posterior()), GaussianFactor(), 2)


def test_pass_draws_and_decodes(vae: VAE, x: Tensor) -> None:
    """A pass holds encoder's parameters, z = mu + sigma * eps for each of K draws, and what each z decodes to."""
    eps = normal(4, 3, 2)
    out = vae(x, eps)
    mu, logsigma = vae.encoder(x)
    torch.testing.assert_close((out.mu, out.logsigma, out.eps), (mu, logsigma, eps), rtol=0, atol=0)
    torch.testing.assert_close(out.z, mu + logsigma.exp() * eps, rtol=0, atol=0)
    assert out.parameters.shape == (4, 3, *SHAPE)
    for z, parameters in zip(out.z, out.parameters, strict=True):
        torch.testing.assert_close(parameters, vae.decoder(z), rtol=1e-12, atol=1e-12)


def test_a_draw_has_its_own_noise_unless_given() -> None:
    """Without eps, sample_with_reparam draws from N(mu, sigma^2); with it, z is mu + sigma * eps, K draws of it too."""
    mu, logsigma, eps = normal(3, 2, seed=0), normal(3, 2, seed=1), normal(4, 3, 2)
    q = Normal(mu, logsigma.exp())
    torch.testing.assert_close(VAE.sample_with_reparam(mu, logsigma, eps), q.loc + q.scale * eps)
    n = 20_000
    torch.manual_seed(0)
    z = VAE.sample_with_reparam(mu.expand(n, 3, 2), logsigma.expand(n, 3, 2))
    assert ((z.mean(dim=0) - q.mean) / q.stddev).abs().max() < 5 / math.sqrt(n)
    torch.testing.assert_close(z.std(dim=0), q.stddev, rtol=0.05, atol=0)


def test_terms_of_a_pass_average_its_draws(vae: VAE, x: Tensor) -> None:
    """Of K draws of z the reconstruction term is the mean; the KL has none."""
    eps = normal(4, 3, 2)
    found, each = vae.terms_of(x, vae(x, eps)), [vae.terms(x, one) for one in eps]
    torch.testing.assert_close(found.reconstruction, torch.stack([one.reconstruction for one in each]).mean(dim=0))
    torch.testing.assert_close(found.kl, each[0].kl)


def test_samples_are_of_the_prior_and_the_likelihood(vae: VAE) -> None:
    """x ~ p(x|z), z ~ N(0, I): binary images, whose mean is E[theta] under the prior by quadrature."""
    n = 20_000
    torch.manual_seed(0)
    samples = vae.sample(n)
    assert samples.shape == (n, *SHAPE)
    assert set(samples.unique().tolist()) == {0, 1}
    side = torch.linspace(-6, 6, 201, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    weights = torch.softmax(-0.5 * z.square().sum(dim=1), dim=0)
    with torch.no_grad():
        theta = (weights[:, None, None, None] * torch.sigmoid(vae.decoder(z))).sum(dim=0)
    error = (theta * (1 - theta) / n).sqrt()
    assert ((samples.mean(dim=0) - theta).abs() < 5 * error).all()
    assert vae.sample_prior(3).shape == (3, 2)
    assert vae.sample_prior(3).dtype == torch.float64


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other in such small products take many times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_five_lines_train_as_the_loop_does() -> None:
    """Adam on -vae.elbo(x).mean(), at the loop's settings: the test ELBO is within 0.5 nats of the loop's."""
    config = PRESETS["tutorial"].replace(dataset="digits", epochs=20)
    images = data.load(config, Path())
    test = images.observed_test(binary=True)

    def begin() -> VAE:
        torch.manual_seed(0)
        vae = networks.build(config, images.observation.shape)
        networks.start_at_constant(vae, *pixels.moments(images.train))
        return vae

    training = TrainingState(begin(), config, len(images.train), torch.device("cpu"))
    loop.fit(training, images.train, lambda: training.end_epoch({}), quiet=True)
    vae = begin()
    before, expected = (bounds.measure(each, test).terms.elbo.mean().item() for each in (vae, training.vae))

    optimizer = torch.optim.Adam(vae.parameters())
    steps = config.optimiser.epochs * config.optimiser.steps_per_epoch(len(images.train))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.optimiser.lr, total_steps=steps, pct_start=0.1)
    for _ in range(config.optimiser.epochs):
        for levels in images.train[torch.randperm(len(images.train))].split(config.optimiser.batch_size):
            loss = -vae.elbo(torch.bernoulli(levels / 255)).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    assert bounds.measure(vae, test).terms.elbo.mean().item() == pytest.approx(expected, abs=0.5)
    assert expected > before + 3


def test_gradients_of_a_draw(vae: VAE, x: Tensor) -> None:
    """The gradient of z is 1 with respect to mu and sigma * eps with respect to logsigma."""
    eps = normal(4, 3, 2)
    out = vae(x, eps)
    in_mu, in_logsigma = torch.autograd.grad(out.z.sum(), [out.mu, out.logsigma])
    torch.testing.assert_close(in_mu, torch.full_like(out.mu, 4))
    torch.testing.assert_close(in_logsigma, (out.logsigma.exp() * eps).sum(dim=0))


@torch.no_grad()
def test_elbo_draws_its_own_noise(vae: VAE, x: Tensor) -> None:
    """Without eps the ELBO has a fresh standard normal draw for each image, of which its mean is the same."""
    torch.manual_seed(0)
    n = 20_000
    many = x[:1].expand(n, *SHAPE)
    own, given = vae.elbo(many), vae.elbo(many, normal(n, 2))
    assert len(own.unique()) == n
    error = math.hypot(own.std().item(), given.std().item()) / math.sqrt(n)
    assert own.mean().item() == pytest.approx(given.mean().item(), abs=5 * error)
    assert own.std().item() == pytest.approx(given.std().item(), rel=0.1)


def test_elbo_agrees_with_torch_distributions(vae: VAE, x: Tensor) -> None:
    """The ELBO and its gradients equal an independent computation with the same noise."""
    eps = normal(3, 2)
    parameters = list(vae.parameters())
    elbo, expected = vae.elbo(x, eps), independent_elbo(vae, x, eps)
    assert elbo.shape == (3,)
    torch.testing.assert_close(elbo, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(elbo.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_elbo_is_reconstruction_minus_kl(vae: VAE, x: Tensor) -> None:
    """The terms add up: elbo = reconstruction - kl, the kl that of kl_divergence."""
    eps = normal(3, 2)
    terms = vae.terms(x, eps)
    torch.testing.assert_close(terms.kl, vae.kl_divergence(*vae.encoder(x)))
    torch.testing.assert_close(vae.elbo(x, eps), terms.reconstruction - terms.kl, rtol=0, atol=0)


def test_log_weights_are_the_evidence_at_the_true_posterior() -> None:
    """Where q is the true posterior, every draw's log weight is log p(x) itself."""
    toy = gaussian_toy()
    weights = toy.log_weights(torch.zeros(5, 1, 1, 2).double(), 30, torch.Generator().manual_seed(0))
    assert weights.shape == (30, 5)
    torch.testing.assert_close(weights, GaussianFactor.log_evidence().expand(30, 5))


@torch.no_grad()
def test_importance_weighted_bound_tightens_to_log_p(vae: VAE, x: Tensor) -> None:
    """K = 1 has the ELBO as its mean, larger K gives more, none exceeds log p(x), K = 100,000 gives log p(x)."""
    side = torch.linspace(-8, 8, 401, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    prior = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum(dim=1)
    logits = vae.decoder(z)
    cell = 2 * math.log((side[1] - side[0]).item())
    log_p = torch.stack(
        [torch.logsumexp(Bernoulli(logits=logits).log_prob(i).sum(dim=(1, 2, 3)) + prior, dim=0) + cell for i in x]
    )

    repeats = 2000
    means, errors = [], []
    for k in (1, 4, 32):
        weights = vae.log_weights(x, k * repeats, torch.Generator().manual_seed(k)).unflatten(0, (repeats, k))
        bounds = torch.logsumexp(weights, dim=1) - math.log(k)  # [repeats, batch]
        means.append(bounds.mean(dim=0))
        errors.append(bounds.std(dim=0) / math.sqrt(repeats))
        assert (means[-1] < log_p + 5 * errors[-1]).all()
    draws = vae.elbo(x.repeat(repeats, 1, 1, 1), normal(3 * repeats, 2)).unflatten(0, (repeats, 3))
    assert ((draws.mean(dim=0) - means[0]).abs() < 5 * (errors[0] + draws.std(dim=0) / math.sqrt(repeats))).all()
    assert (means[1] - means[0] > 2 * (errors[0] + errors[1])).all()
    assert (means[2] - means[1] > 2 * (errors[1] + errors[2])).all()

    k = 100_000
    weights = vae.log_weights(x, k, torch.Generator().manual_seed(0))
    bound = torch.logsumexp(weights, dim=0) - math.log(k)
    ratios = (weights - bound).exp()
    error = ratios.std(dim=0) / math.sqrt(k)  # of log p(x), by the delta method
    assert (error < 0.05).all()
    assert ((bound - log_p).abs() < 5 * error).all()


@torch.no_grad()
def test_log_weights_follow_their_generator(vae: VAE, x: Tensor) -> None:
    """The same generator seed gives the same weights, another seed others."""
    first, again, other = (vae.log_weights(x, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_terms_and_gradients_are_finite_for_extreme_logits() -> None:
    """Logits of +-10,000 give finite terms and finite gradients in float32."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"].replace(hidden=(8,), latent_dim=2), SHAPE)
    with torch.no_grad():
        vae.decoder.last.bias.copy_(torch.tensor([1e4, -1e4]).repeat(8))
    x = torch.tensor([0.0, 1.0]).repeat_interleave(16).reshape(2, *SHAPE)
    terms = vae.terms(x, torch.ones(2, 2))
    assert torch.isfinite(torch.stack(terms)).all()
    assert (terms.reconstruction < -7e4).all()  # half of the pixels are wrong by 10,000 nats each
    terms.elbo.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


def test_terms_are_finite_for_a_blown_up_encoder(x: Tensor) -> None:
    """Encoder weights a million times too large give finite terms: logsigma is clamped."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"].replace(hidden=(8,), latent_dim=2), SHAPE)
    with torch.no_grad():
        for weight in vae.encoder.parameters():
            weight.mul_(1e6)
        mu, logsigma = vae.encoder(x.float())
        assert mu.abs().max() > 1e6
        assert logsigma.min() == mlp.LOGSIGMA_RANGE[0]
        assert logsigma.max() <= mlp.LOGSIGMA_RANGE[1]
        assert torch.isfinite(torch.stack(vae.terms(x.float(), torch.ones(3, 2)))).all()
