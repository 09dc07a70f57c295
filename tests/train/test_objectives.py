"""The objectives' gradients against autograd of losses spelled out with torch.distributions; a model solved exactly.

The exact model: a decoder loc = W z + b with orthogonal columns of W under a Gaussian likelihood, so that p(z|x) is a
diagonal Gaussian, which the encoder can be, and log p(x) has a closed form.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from support.runs import OF_PIXELS
from vae_train import bounds, networks, objectives
from vae_train.config import PRESETS, Config
from vae_train.likelihoods import DiscretisedLogistic, Gaussian, Likelihood
from vae_train.objectives import Objective
from vae_train.state import TrainingState
from vae_train.vae import VAE

SHAPE, LATENT, SIGMA = (1, 2, 3), 2, 0.6
Gradients = dict[str, Tensor]

path_or_total = pytest.mark.parametrize("path", [True, False], ids=["path", "total"])
one_or_more_draws = pytest.mark.parametrize("samples", [1, 5])


def normal(*shape: int, seed: int = 2) -> Tensor:
    """Seeded standard normal noise in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp_vae(likelihood: str = "bernoulli") -> VAE:
    """A small untrained VAE in float64 of 2x3 pixels; its weights are scaled so that draws have unequal weights."""
    torch.manual_seed(0)
    vae = networks.build(PRESETS["gated"].replace(likelihood=likelihood, hidden=(8, 7), latent_dim=3), SHAPE).double()
    with torch.no_grad():
        vae.decoder.last.weight.mul_(3)
        vae.encoder.heads.mu.weight.mul_(2)
    return vae


def images(vae: VAE, batch: int = 4) -> Tensor:
    """Binary images for the Bernoulli likelihood, else of 8-bit levels, 0 and 255 among them; float64."""
    generator = torch.Generator().manual_seed(1)
    if vae.likelihood.binary:
        return torch.randint(0, 2, (batch, *SHAPE), generator=generator).double()
    return torch.randint(-40, 296, (batch, *SHAPE), generator=generator).clamp(0, 255).double() / 255


def descend(vae: VAE, objective: Objective, x: Tensor, eps: Tensor, divisor: float = 1) -> Gradients:
    """What `backward` adds to each weight's gradient, by name."""
    vae.zero_grad()
    objectives.backward(objective, vae, x, vae(x, eps), divisor)
    return {name: weight.grad.clone() for name, weight in vae.named_parameters()}


class InSpace(nn.Module):
    """A network, with latents of another shape behind it or before it."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def forward(self, given: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Of an encoder mu and logsigma [batch, *shape], of a decoder the parameters at z [batch, *shape]."""
        if given.shape[1:] == self.shape:
            return self.network(given.flatten(1))
        mu, logsigma = self.network(given)
        return mu.unflatten(1, self.shape), logsigma.unflatten(1, self.shape)


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective(path=False), Objective(3), Objective(3, path=False), Objective(beta=0.5, free_bits=0.4)],
)
def test_latents_may_have_a_shape(objective: Objective) -> None:
    """Latents [C, h, w] give the gradients, terms and bounds of as many in a row."""
    flat, shape = mlp_vae(), (3, 1, 1)
    vae = VAE(InSpace(flat.encoder, shape), InSpace(flat.decoder, shape), shape)
    assert (vae.latent_shape, vae.latent_dim, flat.latent_shape) == (shape, 3, (3,))
    x, eps = images(flat), normal(objective.samples, 4, 3, seed=2)
    expected = descend(flat, objective, x, eps)
    found = descend(vae, objective, x, eps.unflatten(2, shape))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name.replace("coder.", "coder.network.", 1)], gradient)
    one = eps[0].unflatten(1, shape)
    for term, reference in zip(vae.terms(x, one), flat.terms(x, eps[0]), strict=True):
        torch.testing.assert_close(term, reference)
    bounds = [each.log_weights(x, 5, torch.Generator().manual_seed(3)) for each in (vae, flat)]
    torch.testing.assert_close(*bounds)
    assert vae.elbo(x).shape == (4,)
    assert vae.sample(6).shape == (6, *SHAPE)
    assert vae.sample_prior(6).shape == (6, *shape)


def autograd(vae: VAE, loss: Tensor, part: str = "") -> Gradients:
    """The gradient of a loss for each weight whose name starts with `part`."""
    weights = {name: weight for name, weight in vae.named_parameters() if name.startswith(part)}
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), retain_graph=True), strict=True))


def independent_log_prob(likelihood: Likelihood, x: Tensor, parameters: Tensor) -> Tensor:
    """log p(x|z), [...], by torch.distributions, or for 8-bit levels by the logistic distribution function."""
    if isinstance(likelihood, Gaussian):
        per_pixel = Normal(parameters, likelihood.logsigma.exp()).log_prob(x)
    elif isinstance(likelihood, DiscretisedLogistic):
        loc, log_scale = parameters.chunk(2, dim=-3)
        above, below = (torch.sigmoid((x - loc + step / 510) / log_scale.exp()) for step in (1, -1))
        above, below = torch.where(x == 1, 1, above), torch.where(x == 0, 0, below)
        per_pixel = (above - below).log()
    else:
        per_pixel = Bernoulli(logits=parameters).log_prob(x)
    return per_pixel.sum(dim=(-3, -2, -1))


class Spelled:
    """A pass spelled out with torch.distributions: q, the draws, and log p(x|z), [K, batch]."""

    def __init__(self, vae: VAE, x: Tensor, eps: Tensor) -> None:
        mu, logsigma = vae.encoder(x)
        self.q, self.still = Normal(mu, logsigma.exp()), Normal(mu.detach(), logsigma.detach().exp())
        self.prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
        self.z = mu + logsigma.exp() * eps  # [K, batch, latent_dim]
        parameters = torch.stack([vae.decoder(z) for z in self.z])
        self.log_prob = independent_log_prob(vae.likelihood, x, parameters)

    def log_weights(self, q: Normal) -> Tensor:
        """log p(x|z) + log p(z) - log q(z), [K, batch], with this q for log q."""
        return self.log_prob + (self.prior.log_prob(self.z) - q.log_prob(self.z)).sum(dim=-1)


def reference(vae: VAE, objective: Objective, x: Tensor, eps: Tensor, divisor: float) -> Gradients:
    """The gradient as its paper spells it, by plain autograd."""
    spelled = Spelled(vae, x, eps)
    if objective.samples == 1 and not objective.path:  # Kingma and Welling: the KL in closed form
        elbo = spelled.log_prob[0] - kl_divergence(spelled.q, spelled.prior).sum(dim=1)
        return autograd(vae, -elbo.sum() / divisor)
    if objective.samples == 1:  # Roeder et al.: the parameters of log q held still
        return autograd(vae, -spelled.log_weights(spelled.still).sum() / divisor)
    bound = torch.logsumexp(spelled.log_weights(spelled.q), dim=0) - math.log(objective.samples)
    importance_weighted = autograd(vae, -bound.sum() / divisor)
    if not objective.path:  # Burda et al.
        return importance_weighted
    # Tucker et al.: the encoder's weights alone, by sum_k w_k^2 (d log w_k / d z_k) (d z_k / d phi)
    log_weights = spelled.log_weights(spelled.still)
    (in_z,) = torch.autograd.grad(log_weights.sum(), spelled.z, retain_graph=True)
    squared = torch.softmax(log_weights, dim=0).square().detach()[..., None]
    encoder = autograd(vae, -(squared * in_z * spelled.z).sum() / divisor, "encoder")
    return importance_weighted | encoder


@path_or_total
@one_or_more_draws
@pytest.mark.parametrize("likelihood", OF_PIXELS)
def test_gradient_is_that_of_the_spelled_out_loss(likelihood: str, samples: int, path: bool) -> None:
    """Every weight of encoder, decoder and likelihood gets the gradient that the objective's paper says, to 1e-10."""
    vae = mlp_vae(likelihood)
    x, eps, objective = images(vae), normal(samples, 4, 3), Objective(samples, path)
    got, expected = descend(vae, objective, x, eps, 2.5), reference(vae, objective, x, eps, 2.5)
    assert got.keys() == expected.keys()
    assert ("likelihood.logsigma" in got) == (likelihood == "gaussian")
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


def test_the_four_gradients_differ() -> None:
    """The comparison above is not one with itself: encoders get four different gradients, decoders two."""
    vae = mlp_vae()
    x, eps = images(vae), normal(5, 4, 3)
    found = [descend(vae, Objective(k, path), x, eps[:k]) for k in (1, 5) for path in (True, False)]
    for name, differing in (("encoder.heads.mu.weight", 4), ("decoder.last.weight", 2)):
        assert len({tuple(gradients[name].flatten().mul(1e6).round().tolist()) for gradients in found}) == differing


@path_or_total
@one_or_more_draws
def test_gradient_is_divided_by_images(path: bool, samples: int) -> None:
    """`images` divides the gradient of the sum over the batch, and gradients are added to those there are."""
    vae = mlp_vae("gaussian")
    x, eps, objective = images(vae), normal(samples, 4, 3), Objective(samples, path)
    whole, third = (descend(vae, objective, x, eps, divisor) for divisor in (1, 3))
    for name, gradient in whole.items():
        torch.testing.assert_close(third[name], gradient / 3)
    objectives.backward(objective, vae, x, vae(x, eps), 3)
    for name, weight in vae.named_parameters():
        torch.testing.assert_close(weight.grad, 2 * third[name])


@path_or_total
@one_or_more_draws
def test_gradient_of_a_batch_is_the_sum_of_its_images(path: bool, samples: int) -> None:
    """Images do not meddle with each other: a batch's gradient is the sum of theirs."""
    vae = mlp_vae()
    x, eps, objective = images(vae), normal(samples, 4, 3), Objective(samples, path)
    alone = [descend(vae, objective, x[i : i + 1], eps[:, i : i + 1]) for i in range(4)]
    for name, gradient in descend(vae, objective, x, eps).items():
        torch.testing.assert_close(gradient, sum(gradients[name] for gradients in alone), rtol=1e-10, atol=1e-10)


@path_or_total
@one_or_more_draws
def test_gradient_is_finite_for_extreme_logits(path: bool, samples: int) -> None:
    """Logits of +-10,000, half of them wrong, give finite gradients in float32."""
    vae = mlp_vae().float()
    with torch.no_grad():
        vae.decoder.last.bias.copy_(torch.tensor([1e4, -1e4]).repeat(3))
    x = torch.tensor([0.0, 1.0]).repeat_interleave(6).reshape(2, *SHAPE)
    for gradient in descend(vae, Objective(samples, path), x, torch.ones(samples, 2, 3)).values():
        assert torch.isfinite(gradient).all()


@path_or_total
@one_or_more_draws
@pytest.mark.parametrize("likelihood", OF_PIXELS)
def test_gradient_under_autocast_is_nearly_that_of_float32(likelihood: str, samples: int, path: bool) -> None:
    """With products in bfloat16, of 8 bits, every weight's gradient is float32 and off by a few percent at most."""
    vae = mlp_vae(likelihood).float()
    x, eps, objective = images(vae, 64).float(), normal(samples, 64, 3).float(), Objective(samples, path)
    expected = descend(vae, objective, x, eps)
    vae.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = vae(x, eps)
    assert out.parameters.dtype == torch.bfloat16
    objectives.backward(objective, vae, x, out, 1)
    for name, weight in vae.named_parameters():
        assert weight.grad.dtype == torch.float32
        assert (weight.grad - expected[name]).norm() < 0.05 * expected[name].norm(), name


class Constant(nn.Module):
    """A head that does not look at the image and learns nothing."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, h: Tensor) -> Tensor:
        """The value, once per image."""
        return self.value.expand(len(h), -1)


@path_or_total
@one_or_more_draws
def test_encoder_without_a_learned_sigma_is_trained(path: bool, samples: int) -> None:
    """Where sigma is a constant, the other weights get the gradients that they have where it happens to be one."""
    vae = mlp_vae()
    x, eps, objective = images(vae), normal(samples, 4, 3), Objective(samples, path)
    with torch.no_grad():
        vae.encoder.heads.logsigma.weight.zero_()
    expected = descend(vae, objective, x, eps)
    vae.encoder.heads.logsigma = Constant(vae.encoder.heads.logsigma.bias.detach())
    for name, gradient in descend(vae, objective, x, eps).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10)


@path_or_total
@one_or_more_draws
def test_decoder_behind_a_fixed_encoder_is_trained(path: bool, samples: int) -> None:
    """Where the encoder is held fixed, decoder and likelihood get the gradients that they have anyway."""
    vae = mlp_vae("gaussian")
    x, eps, objective = images(vae), normal(samples, 4, 3), Objective(samples, path)
    expected = descend(vae, objective, x, eps)
    vae.encoder.requires_grad_(False)
    vae.zero_grad()
    objectives.backward(objective, vae, x, vae(x, eps), 1)
    for name, weight in vae.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, expected[name])


# beta and free bits


@path_or_total
@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_beta_weighs_the_kl(path: bool, beta: float) -> None:
    """The gradient is that of reconstruction and beta times the KL; with beta = 0 that of the reconstruction alone."""
    vae = mlp_vae("gaussian")
    x, eps = images(vae), normal(1, 4, 3)
    spelled = Spelled(vae, x, eps)
    closed = kl_divergence(spelled.q, spelled.prior)
    drawn = spelled.still.log_prob(spelled.z[0]) - spelled.prior.log_prob(spelled.z[0])
    expected = autograd(vae, -spelled.log_prob.sum() + beta * (drawn if path else closed).sum())
    got = descend(vae, Objective(path=path, beta=beta), x, eps)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-10)


def biased(vae: VAE) -> VAE:
    """The VAE with latent dimensions of very different KL: about 0.01, 0.5 and 5 nats."""
    with torch.no_grad():
        for head in (vae.encoder.heads.mu, vae.encoder.heads.logsigma):
            head.weight.mul_(0.1)
            head.bias.zero_()
        vae.encoder.heads.mu.bias.copy_(torch.tensor([0.05, 1.0, 3.0]))
    return vae


@path_or_total
@pytest.mark.parametrize("free", [0.1, 2.0, 100.0])
def test_free_bits_are_free(path: bool, free: float) -> None:
    """The gradient is that of the KL max(free, batch mean) per dimension: none below the threshold, all above."""
    vae = biased(mlp_vae())
    x, eps = images(vae), normal(1, 4, 3)
    spelled = Spelled(vae, x, eps)
    closed = kl_divergence(spelled.q, spelled.prior).mean(dim=0)  # [latent_dim]
    above = closed > free
    assert above.tolist() == [False, free < 1, free < 10]
    drawn = (spelled.still.log_prob(spelled.z[0]) - spelled.prior.log_prob(spelled.z[0])).mean(dim=0)
    kl = drawn[above] if path else torch.clamp(closed, min=free)
    expected = autograd(vae, -spelled.log_prob.mean() + 0.7 * kl.sum())
    got = descend(vae, Objective(path=path, beta=0.7, free_bits=free), x, eps, len(x))
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-10)


@path_or_total
def test_no_free_bits_is_the_plain_kl(path: bool) -> None:
    """With a threshold below every dimension's KL the gradient is the one without free bits."""
    vae = biased(mlp_vae())
    x, eps = images(vae), normal(1, 4, 3)
    plain, free = (descend(vae, Objective(path=path, free_bits=bits), x, eps) for bits in (0.0, 1e-6))
    for name, gradient in plain.items():
        torch.testing.assert_close(free[name], gradient, rtol=0, atol=0)


def objectives_of(config: Config, steps_per_epoch: int = 4) -> Iterator[Objective]:
    """The objective of each step of a training with this many steps in an epoch."""
    training = TrainingState(mlp_vae(), config, steps_per_epoch * config.optimiser.batch_size - 1, torch.device("cpu"))
    assert training.steps_per_epoch == steps_per_epoch
    for _ in range(config.optimiser.epochs):
        for _ in range(steps_per_epoch):
            yield training.objective()
            training.progress.step += 1
        training.end_epoch({})


def test_warm_up_grows_beta_linearly_and_stays() -> None:
    """beta grows by equal steps from 0, is whole at the last step of the warm-up's epochs, and stays so."""
    config = PRESETS["tutorial"].replace(beta=2.0, warm_up=2.5, epochs=4)
    betas = [objective.beta for objective in objectives_of(config)]
    expected = [2.0 * min(1, (step + 1) / 10) for step in range(16)]
    assert betas == pytest.approx(expected, abs=1e-12)
    assert betas[9:] == [2.0] * 7


def test_without_warm_up_the_objective_is_the_settings() -> None:
    """Every step has the settings' draws, gradient, beta and free bits."""
    config = PRESETS["tutorial"].replace(beta=0.5, free_bits=0.25, gradient="total", epochs=2)
    assert set(objectives_of(config)) == {Objective(1, False, 0.5, 0.25)}
    config = PRESETS["tutorial"].replace(samples=5, epochs=2)
    assert set(objectives_of(config)) == {Objective(5, True, 1.0, 0.0)}


# the exact model


class LinearEncoder(nn.Module):
    """q(z|x) with mu = A x + c and a logsigma that is the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Linear(math.prod(SHAPE), LATENT)
        self.logsigma = nn.Parameter(torch.zeros(LATENT))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images to mu and logsigma."""
        mu = self.mu(x.flatten(1))
        return mu, self.logsigma.expand_as(mu)


class LinearDecoder(nn.Module):
    """loc = W z + b; W has orthogonal columns of lengths 1.5 and 0.5."""

    def __init__(self) -> None:
        super().__init__()
        columns = torch.linalg.qr(normal(math.prod(SHAPE), LATENT, seed=5)).Q
        self.w = nn.Parameter(columns * torch.tensor([1.5, 0.5], dtype=torch.float64))
        self.b = nn.Parameter(0.3 * normal(math.prod(SHAPE), seed=6))

    def forward(self, z: Tensor) -> Tensor:
        """Latents to the images' means."""
        return (z @ self.w.T + self.b).unflatten(1, SHAPE)


def exact_vae() -> VAE:
    """The model whose encoder starts at the prior; its decoder and sigma are fixed by not being trained."""
    torch.manual_seed(0)
    vae = VAE(LinearEncoder(), LinearDecoder(), LATENT, Gaussian()).double()
    with torch.no_grad():
        vae.likelihood.logsigma.fill_(math.log(SIGMA))
        vae.encoder.mu.weight.zero_()
        vae.encoder.mu.bias.zero_()
    return vae


@torch.no_grad()
def solve(vae: VAE) -> VAE:
    """The encoder set to p(z|x) = N(M^-1 W^T (x - b) / sigma^2, M^-1), M = I + W^T W / sigma^2."""
    w, b = vae.decoder.w, vae.decoder.b
    precision = 1 + w.square().sum(dim=0) / SIGMA**2
    vae.encoder.mu.weight.copy_(w.T / SIGMA**2 / precision[:, None])
    vae.encoder.mu.bias.copy_(-vae.encoder.mu.weight @ b)
    vae.encoder.logsigma.copy_(-0.5 * precision.log())
    return vae


@torch.no_grad()
def log_evidence(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) in closed form: x ~ N(b, W W^T + sigma^2 I)."""
    w, b = vae.decoder.w, vae.decoder.b
    covariance = w @ w.T + SIGMA**2 * torch.eye(len(b), dtype=torch.float64)
    return MultivariateNormal(b, covariance).log_prob(x.flatten(1))


def observed(vae: VAE, batch: int) -> Tensor:
    """Images drawn from the model."""
    with torch.no_grad():
        return vae.decoder(normal(batch, LATENT, seed=7)) + SIGMA * normal(batch, *SHAPE, seed=8)


def per_draw(vae: VAE, objective: Objective, x: Tensor, draws: int) -> Tensor:
    """The gradients for mu and logsigma of one image, of each of many draws: [draws, 2 latent_dim]."""
    many = x[:1].expand(draws, *SHAPE)
    out = vae(many, normal(objective.samples, draws, LATENT))
    out.mu.retain_grad()
    out.logsigma.retain_grad()
    objectives.backward(objective, vae, many, out, 1)
    return torch.cat([out.mu.grad, out.logsigma.grad], dim=1)


@torch.no_grad()
def test_elbo_of_the_exact_posterior_is_the_evidence() -> None:
    """The closed forms that the tests below rely on agree: every log weight at the posterior is log p(x)."""
    vae = solve(exact_vae())
    x = observed(vae, 50)
    weights = vae.log_weights(x, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights, log_evidence(vae, x).expand(3, 50))


@one_or_more_draws
def test_path_and_total_gradient_have_the_same_expectation(samples: int) -> None:
    """Away from the posterior, means over 200,000 draws agree within 5 standard errors, which are small."""
    vae, n = exact_vae(), 200_000
    with torch.no_grad():
        vae.encoder.mu.weight.copy_(0.3 * normal(LATENT, math.prod(SHAPE), seed=3))
        vae.encoder.logsigma.copy_(torch.tensor([-0.3, 0.2]))
    x = observed(vae, 1)
    path, total = (per_draw(vae, Objective(samples, kind), x, n) for kind in (True, False))
    error = ((path.var(dim=0) + total.var(dim=0)) / n).sqrt()
    size = total.mean(dim=0).abs()
    assert (error < 0.05 * size.max()).all()
    assert (size > 20 * error).sum() >= 3  # the gradient itself is seen well
    assert ((path.mean(dim=0) - total.mean(dim=0)).abs() < 5 * error).all()
    assert not torch.allclose(path, total)


@path_or_total
@one_or_more_draws
def test_only_the_path_gradient_has_no_variance_at_the_posterior(path: bool, samples: int) -> None:
    """Where q is the true posterior, each draw's path gradient for the encoder is zero; the total one is not."""
    vae = solve(exact_vae())
    gradients = per_draw(vae, Objective(samples, path), observed(vae, 1), 100)
    if path:
        torch.testing.assert_close(gradients, torch.zeros_like(gradients), rtol=0, atol=1e-10)
    else:
        assert (gradients.std(dim=0) > 0.05).all()


def fit_encoder(vae: VAE, x: Tensor, config: Config, weights: list[nn.Parameter] | None = None) -> None:
    """Train the encoder's weights, or those given, by the real training's optimiser and schedule."""
    for weight in vae.parameters():
        weight.requires_grad_(False)
    trained = list(vae.encoder.parameters()) if weights is None else weights
    for weight in trained:
        weight.requires_grad_(True)
    training = TrainingState(vae, config, len(x), torch.device("cpu"))
    for _ in range(config.optimiser.epochs):
        for rows in training.batches():
            eps = normal(config.objective.samples, len(rows), LATENT, seed=training.progress.epoch)
            out = vae(x[rows], eps)
            objectives.backward(training.objective(), vae, x[rows], out, len(rows))
            training.step(out)
        training.end_epoch({})
    assert all(weight.grad is None for weight in vae.decoder.parameters())


@torch.no_grad()
def gap(vae: VAE, x: Tensor) -> float:
    """log p(x) less the expected ELBO: the KL from q(z|x) to p(z|x), in closed form, on average over the images."""
    found, true = (Normal(mu, logsigma.exp()) for mu, logsigma in (vae.encoder(x), solve(exact_vae()).encoder(x)))
    return kl_divergence(found, true).sum(dim=1).mean().item()


@pytest.mark.parametrize("gradient", ["path", pytest.param("total", marks=pytest.mark.slow)])
def test_trained_encoder_reaches_the_evidence(gradient: str) -> None:
    """Trained on the ELBO, the encoder finds the posterior: the expected ELBO is log p(x) to within 0.01 nats."""
    vae = exact_vae()
    x = observed(vae, 256)
    assert gap(vae, x) > 1
    config = PRESETS["tutorial"].replace(gradient=gradient, epochs=40, batch_size=32, lr=0.03)
    fit_encoder(vae, x, config)
    assert 0 <= gap(vae, x) < 0.01
    with torch.no_grad():
        draws = vae.elbo(x.repeat(100, 1, 1, 1), normal(100 * len(x), LATENT))
    error = draws.std().item() / math.sqrt(len(draws))
    assert draws.mean().item() == pytest.approx(log_evidence(vae, x).mean().item(), abs=0.01 + 5 * error)


def test_importance_weighted_bound_lies_between_elbo_and_evidence() -> None:
    """With sigma held too small, training on 16 draws finds mu; ELBO < bound of 4 < of 16 draws < log p(x), by far."""
    vae, exact = exact_vae(), solve(exact_vae())
    x = observed(vae, 64)
    with torch.no_grad():
        vae.encoder.logsigma.copy_(exact.encoder.logsigma + math.log(0.4))
        mu = exact.encoder(x)[0]
        before = (vae.encoder(x)[0] - mu).abs().mean()
    config = PRESETS["tutorial"].replace(samples=16, epochs=40, batch_size=32, lr=0.03)
    fit_encoder(vae, x, config, list(vae.encoder.mu.parameters()))
    with torch.no_grad():
        assert (vae.encoder(x)[0] - mu).abs().mean() < 0.2 * before
        repeats, means, errors = 200, [], []
        for k in (1, 4, 16):
            weights = vae.log_weights(x, k * repeats, torch.Generator().manual_seed(k)).unflatten(0, (repeats, k))
            bounds = (torch.logsumexp(weights, dim=1) - math.log(k)).mean(dim=1)  # [repeats]
            means.append(bounds.mean().item())
            errors.append(bounds.std().item() / math.sqrt(repeats))
        evidence = log_evidence(vae, x).mean().item()
    assert means[0] == pytest.approx(evidence - gap(vae, x), abs=5 * errors[0])
    for lower, upper in zip(means, [*means[1:], evidence], strict=True):
        assert upper - lower > 10 * max(errors)


def test_learned_sigma_finds_the_noise() -> None:
    """Trained on the ELBO at the exact posterior of the true sigma, the likelihood's sigma is the data's, to 3 %."""
    vae = solve(exact_vae())
    x = observed(vae, 4096)
    with torch.no_grad():
        vae.likelihood.logsigma.fill_(0.5)
    config = PRESETS["tutorial"].replace(epochs=10, batch_size=256, lr=0.05)
    fit_encoder(vae, x, config, [vae.likelihood.logsigma])
    assert vae.likelihood.logsigma.exp().item() == pytest.approx(SIGMA, rel=0.03)


@torch.no_grad()
def test_figures_of_the_exact_model() -> None:
    """The evaluation's importance-weighted figure of 8-bit images is log p(x) where q is the exact posterior."""
    vae = solve(exact_vae()).float()
    levels = torch.randint(0, 256, (20, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = bounds.log_likelihood(vae, levels, 7, quiet=True)
    expected = log_evidence(vae.double(), levels.double() / 255)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
