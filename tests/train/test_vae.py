"""The VAE's mathematics against torch.distributions, closed forms, quadrature and an independent STL estimator."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae_train import networks
from vae_train.config import PRESETS
from vae_train.vae import VAE

SHAPE = (1, 4, 4)


@pytest.fixture
def vae() -> VAE:
    """A small untrained VAE in float64, its decoder scaled so that p(z|x) is far from the prior."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"].replace(hidden=(8,), latent_dim=2), SHAPE).double()
    with torch.no_grad():
        vae.decoder.logits.weight.mul_(4)
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
    return VAE(ConstantPosterior(*GaussianFactor.posterior()), GaussianFactor(), latent_dim=2)


def test_kl_agrees_with_torch_distributions() -> None:
    """The KL equals torch.distributions' in float64, one number per image."""
    mu, logsigma = 3 * normal(50, 7, seed=0), normal(50, 7, seed=1)
    q, prior = Normal(mu, logsigma.exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu))
    kl = VAE.kl_divergence(mu, logsigma)
    assert kl.shape == (50,)
    torch.testing.assert_close(kl, kl_divergence(q, prior).sum(dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mu", "sigma", "expected"),
    [
        ([0.0, 0.0], [1.0, 1.0], 0.0),
        ([3.0, 0.0], [1.0, 1.0], 4.5),
        ([0.0, 0.0], [2.0, 1.0], 1.5 - math.log(2)),
        ([1.0, -2.0], [0.5, 3.0], 2.5 + (0.25 - 1) / 2 + math.log(2) + 4 - math.log(3)),
    ],
)
def test_kl_by_hand(mu: list[float], sigma: list[float], expected: float) -> None:
    """The KL equals values worked out by hand, zero at the prior."""
    kl = VAE.kl_divergence(torch.tensor([mu]).double(), torch.tensor([sigma]).double().log())
    assert kl.item() == pytest.approx(expected, abs=1e-12)


def test_reparameterised_sample_and_its_gradients(vae: VAE) -> None:
    """A draw is mu + sigma * eps; its gradient is 1 with respect to mu and sigma * eps with respect to logsigma."""
    mu, logsigma, eps = normal(5, 2).requires_grad_(), normal(5, 2, seed=3).requires_grad_(), normal(5, 2, seed=4)
    z = vae.sample_with_reparam(mu, logsigma, eps)
    torch.testing.assert_close(z, mu + logsigma.exp() * eps, rtol=0, atol=0)
    z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones_like(eps))
    torch.testing.assert_close(logsigma.grad, logsigma.detach().exp() * eps)


def test_reparameterised_sample_draws_its_own_noise(vae: VAE) -> None:
    """Without eps the draws follow N(mu, sigma^2)."""
    torch.manual_seed(0)
    n = 100_000
    z = vae.sample_with_reparam(torch.full((n, 1), 2.0), torch.full((n, 1), math.log(3.0)))
    assert z.mean().item() == pytest.approx(2, abs=5 * 3 / math.sqrt(n))
    assert z.std().item() == pytest.approx(3, abs=5 * 3 / math.sqrt(2 * n))


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


def test_stl_has_the_expectation_of_the_closed_form(vae: VAE, x: Tensor) -> None:
    """Averaged over many draws, the KL of stl=True is the closed form; each draw's reconstruction is the same."""
    n = 20_000
    many, eps = x[:1].expand(n, *SHAPE), normal(n, 2)
    with torch.no_grad():
        closed, stl = vae.terms(many, eps), vae.terms(many, eps, stl=True)
    assert stl.kl.std() > 0
    error = stl.kl.std().item() / math.sqrt(n)
    assert stl.kl.mean().item() == pytest.approx(closed.kl[0].item(), abs=5 * error)
    torch.testing.assert_close(stl.reconstruction, closed.reconstruction)


def test_stl_gradient_has_no_score_term(vae: VAE, x: Tensor) -> None:
    """The gradient equals Roeder et al. 2017: log q(z|x) with detached parameters, z still a function of them."""
    eps = normal(3, 2)
    parameters = list(vae.parameters())
    mu, logsigma = vae.encoder(x)
    z = mu + logsigma.exp() * eps
    log_q = Normal(mu.detach(), logsigma.detach().exp()).log_prob(z).sum(dim=1)
    log_prior = Normal(torch.zeros_like(mu), torch.ones_like(mu)).log_prob(z).sum(dim=1)
    expected = Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(dim=(1, 2, 3)) + log_prior - log_q
    elbo = vae.elbo(x, eps, stl=True)
    torch.testing.assert_close(elbo, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(elbo.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stl", [True, False])
def test_only_stl_has_a_zero_variance_gradient_at_the_true_posterior(stl: bool) -> None:
    """Where q is the true posterior, every draw's stl gradient is zero; the closed-form KL's is not."""
    toy = gaussian_toy()
    x, eps = torch.zeros(1, 1, 1, 2).double(), normal(20, 2)
    gradients = torch.stack(
        [
            torch.cat(torch.autograd.grad(toy.elbo(x, row[None], stl).sum(), list(toy.encoder.parameters())))
            for row in eps
        ]
    )  # [draws, 4]
    if stl:
        torch.testing.assert_close(gradients, torch.zeros_like(gradients), rtol=0, atol=1e-10)
    else:
        assert (gradients.std(dim=0) > 0.05).all()


def test_stl_elbo_is_the_evidence_at_the_true_posterior() -> None:
    """Where q is the true posterior, every draw's stl ELBO and every log weight is log p(x) itself."""
    toy = gaussian_toy()
    x = torch.zeros(5, 1, 1, 2).double()
    evidence = GaussianFactor.log_evidence()
    torch.testing.assert_close(toy.elbo(x, normal(5, 2), stl=True), evidence.expand(5))
    weights = toy.log_weights(x, 30, torch.Generator().manual_seed(0))
    assert weights.shape == (30, 5)
    torch.testing.assert_close(weights, evidence.expand(30, 5))


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


@torch.no_grad()
def test_sample_draws_binary_images_with_the_decoders_means(vae: VAE) -> None:
    """Samples have the images' shape, only the values 0 and 1, and pixel frequencies theta."""
    assert vae.sample(3).shape == (3, *SHAPE)
    vae.decoder.logits.weight.zero_()  # theta is the same for every z
    torch.manual_seed(0)
    n = 20_000
    images = vae.sample(n)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    theta = torch.sigmoid(vae.decoder.logits.bias).unflatten(0, SHAPE)
    assert ((images.mean(dim=0) - theta).abs() < 5 * (theta * (1 - theta) / n).sqrt()).all()


@pytest.mark.parametrize("stl", [False, True])
def test_terms_and_gradients_are_finite_for_extreme_logits(stl: bool) -> None:
    """Logits of +-10,000 give finite terms and finite gradients in float32."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"].replace(hidden=(8,), latent_dim=2), SHAPE)
    with torch.no_grad():
        vae.decoder.logits.bias.copy_(torch.tensor([1e4, -1e4]).repeat(8))
    x = torch.tensor([0.0, 1.0]).repeat_interleave(16).reshape(2, *SHAPE)
    terms = vae.terms(x, torch.ones(2, 2), stl)
    assert torch.isfinite(torch.stack(terms)).all()
    assert (terms.reconstruction < -7e4).all()  # half of the pixels are wrong by 10,000 nats each
    terms.elbo.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


@pytest.mark.parametrize("stl", [False, True])
def test_terms_are_finite_for_a_blown_up_encoder(x: Tensor, stl: bool) -> None:
    """Encoder weights a million times too large give finite terms: logsigma is clamped."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["tutorial"].replace(hidden=(8,), latent_dim=2), SHAPE)
    with torch.no_grad():
        for weight in vae.encoder.parameters():
            weight.mul_(1e6)
        mu, logsigma = vae.encoder(x.float())
        assert mu.abs().max() > 1e6
        assert logsigma.abs().max() == networks.LOGSIGMA_BOUND
        assert torch.isfinite(torch.stack(vae.terms(x.float(), torch.ones(3, 2), stl))).all()
