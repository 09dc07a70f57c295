"""The likelihoods against torch.distributions, sums over all levels in float64, autograd and their NumPy twins."""

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributions

from vae_runtime import likelihoods as numpy_likelihoods
from vae_runtime import noise
from vae_runtime.errors import ArgumentError
from vae_runtime.manifest import Named
from vae_runtime.observation import Observation
from vae_train import networks
from vae_train.config import LIKELIHOODS, PRESETS
from vae_train.likelihoods import (
    KNOWN,
    Bernoulli,
    DiscretisedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Mixed,
    StudentT,
)
from vae_train.likelihoods import make as make_likelihood
from vae_train.vae import VAE as TorchVAE

every_likelihood = pytest.mark.parametrize("name", [name for name in KNOWN if name != "mixed"])  # below
LEVELS = (torch.arange(256, dtype=torch.float64) / 255).reshape(256, 1, 1, 1)
EXTREMES = [-1e4, -200.0, -7.0, 0.0, 0.3, 1.0, 7.0, 200.0, 1e4]


def make(name: str, logsigma: float = -1.2) -> Likelihood:
    """A likelihood in float64; the Gaussian one with a sigma of its own."""
    likelihood = KNOWN[name]().double()
    if isinstance(likelihood, Gaussian | StudentT):
        with torch.no_grad():
            likelihood.logsigma.fill_(logsigma)
    return likelihood


def draw(likelihood: Likelihood, batch: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Seeded images [batch, C, H, W] in the support, levels 0 and 255 among them, and ordinary parameters, float64."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = shape
    if likelihood.binary:
        x = torch.randint(0, 2, (batch, *shape), generator=generator).double()
    else:
        x = torch.randint(-40, 296, (batch, *shape), generator=generator).clamp(0, 255).double() / 255
    sizes = (batch, channels * likelihood.parameters_per_value, height, width)
    parameters = torch.randn(sizes, generator=generator, dtype=torch.float64)
    if isinstance(likelihood, DiscretisedLogistic):
        parameters = torch.cat([0.5 + 0.4 * parameters[:, :channels], parameters[:, channels:] - 1.5], dim=1)
    return x, parameters


def extremes(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Images of one pixel and extreme parameters for them, every combination, float64 [n, 1, 1, 1] and [n, P, 1, 1]."""
    values = torch.tensor(EXTREMES, dtype=torch.float64)
    scales = torch.tensor([-1e4, -200.0, -50.0, -7.0, 0.0, 7.0, 50.0, 200.0, 1e4], dtype=torch.float64)
    pixels = torch.tensor([0, 1] if likelihood.binary else [0, 1, 76, 254, 255], dtype=torch.float64)
    pixels = pixels if likelihood.binary else pixels / 255
    grid = [pixels, values, scales][: 1 + likelihood.parameters_per_value]
    rows = torch.cartesian_prod(*grid)  # [n, 2 or 3]
    return rows[:, :1, None, None], rows[:, 1:, None, None]


def cdf_differences(loc: Tensor, log_scale: Tensor) -> Tensor:
    """P(level) of the 256 levels, last axis, by differences of the logistic's distribution function, in float64.

    Right of the middle the differences are those of 1 - F, which keeps small probabilities.
    """
    edges = (torch.arange(255, dtype=torch.float64) + 0.5) / 255
    standardised = (edges - loc[..., None]) / log_scale.clamp(-7, 7).exp()[..., None]
    below, above = torch.sigmoid(standardised), torch.sigmoid(-standardised)
    zero, one = torch.zeros_like(below[..., :1]), torch.ones_like(below[..., :1])
    below, above = torch.cat([zero, below, one], dim=-1), torch.cat([one, above, zero], dim=-1)
    return torch.where(below[..., :-1] < 0.5, below.diff(dim=-1), -above.diff(dim=-1))


def independent_log_prob(likelihood: Likelihood, x: Tensor, parameters: Tensor) -> Tensor:
    """log p(x|z) per pixel by torch.distributions, or by differences of the distribution function, float64."""
    if isinstance(likelihood, Bernoulli):
        return distributions.Bernoulli(logits=parameters).log_prob(x)
    if isinstance(likelihood, Gaussian):
        return distributions.Normal(parameters, likelihood.logsigma.exp()).log_prob(x)
    if isinstance(likelihood, StudentT):
        return distributions.StudentT(likelihood.logdf.exp(), parameters, likelihood.logsigma.exp()).log_prob(x)
    if isinstance(likelihood, HeteroscedasticGaussian):
        loc, logsigma = parameters.chunk(2, dim=1)
        return distributions.Normal(loc, logsigma.clamp(math.log(1e-3), 7).exp()).log_prob(x)
    probabilities = cdf_differences(*parameters.chunk(2, dim=1))
    return probabilities.gather(-1, (x * 255).round().long()[..., None])[..., 0].log()


def twin(likelihood: Likelihood) -> Any:
    """The runtime's likelihood of the same contract, as it comes out of a manifest."""
    named = json.loads(json.dumps(asdict(likelihood.contract())))
    return numpy_likelihoods.make(Named(**named), Observation.image((3, 5, 4)))


@every_likelihood
def test_log_prob_agrees_with_the_reference(name: str) -> None:
    """The sum over channels and pixels equals the reference's in float64, one number per image."""
    likelihood = make(name)
    x, parameters = draw(likelihood, 6, 3, 5, 4)
    log_prob = likelihood.log_prob(x, parameters)
    assert log_prob.shape == (6,)
    expected = independent_log_prob(likelihood, x, parameters).sum(dim=(1, 2, 3))
    torch.testing.assert_close(log_prob, expected, rtol=1e-10, atol=1e-9)


@every_likelihood
def test_leading_axes_of_the_parameters_are_kept(name: str) -> None:
    """Parameters [K, batch, ...] give [K, batch], each image against its own parameters."""
    likelihood = make(name)
    x, parameters = draw(likelihood, 2, 3, 3, 3)
    many = torch.stack([parameters, 0.5 * parameters, -parameters])
    expected = torch.stack([likelihood.log_prob(x, some) for some in many])
    assert expected.shape == (3, 2)
    torch.testing.assert_close(likelihood.log_prob(x, many), expected)
    channels = 3
    assert likelihood.mean(many).shape == likelihood.sample(many).shape == (3, 2, channels, 3, 3)


@every_likelihood
@pytest.mark.parametrize("shape", [(12,), (2, 6), (3, 2, 2)], ids=["vectors", "series", "images"])
def test_observations_may_have_any_shape(name: str, shape: tuple[int, ...]) -> None:
    """log p(x|z) is summed over all axes but the batch; parameters are stacked along the first of them."""
    images = make(name)
    x, parameters = draw(images, 5, 12, 1, 1)
    expected, parts = images.log_prob(x, parameters), parameters.chunk(images.parameters_per_value, dim=1)
    likelihood = KNOWN[name](len(shape)).double()
    likelihood.load_state_dict(images.state_dict())
    stacked = torch.cat([part.reshape(5, *shape) for part in parts], dim=1)
    torch.testing.assert_close(likelihood.log_prob(x.reshape(5, *shape), stacked), expected)
    many = torch.stack([stacked, stacked])
    torch.testing.assert_close(likelihood.log_prob(x.reshape(5, *shape), many), torch.stack([expected, expected]))
    assert likelihood.mean(stacked).shape == likelihood.sample(stacked).shape == (5, *shape)
    assert likelihood.mean(many).shape == (2, 5, *shape)
    constant = likelihood.constant(torch.full(shape, 0.4), torch.full(shape, 0.2))
    assert constant.shape == (shape[0] * likelihood.parameters_per_value, *shape[1:])


@every_likelihood
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_log_prob_agrees_with_the_runtime(name: str, dtype: type) -> None:
    """PyTorch and NumPy give the same nats for the same parameters.

    To 10^-5 of their size in float32, to 10^-12 in float64, but 10^-6 where the runtime has float32 constants: sigma
    and half a bin.
    """
    tolerance = 1e-5 if dtype is np.float32 else 1e-12 if name == "bernoulli" else 1e-6
    likelihood = make(name).to(torch.float64 if dtype is np.float64 else torch.float32)
    x, parameters = (tensor.numpy().astype(dtype) for tensor in draw(likelihood, 20, 3, 8, 8))
    expected = likelihood.log_prob(torch.from_numpy(x), torch.from_numpy(parameters)).detach().numpy()
    got = twin(likelihood).log_prob(x, parameters)
    np.testing.assert_allclose(got, expected, rtol=tolerance)


@every_likelihood
def test_log_prob_agrees_with_the_runtime_at_extreme_parameters(name: str) -> None:
    """For every combination of extreme parameters PyTorch and NumPy give the same finite nats in float32."""
    likelihood = make(name).float()
    x, parameters = (tensor.float() for tensor in extremes(likelihood))
    expected = likelihood.log_prob(x, parameters).detach()
    assert torch.isfinite(expected).all()
    got = twin(likelihood).log_prob(x.numpy(), parameters.numpy())
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


@every_likelihood
def test_mean_agrees_with_the_runtime(name: str) -> None:
    """E[x|z] is the runtime's to 2^-19, for ordinary and for extreme parameters, and of the images' shape."""
    likelihood = make(name).float()
    for x, parameters in (draw(likelihood, 20, 3, 8, 8), extremes(likelihood)):
        mean = likelihood.mean(parameters.float())
        assert mean.shape == x.shape
        expected = twin(likelihood).mean(parameters.float().numpy())
        tolerance = 2**-19 if likelihood.parameters_per_value == 1 else 1e-4  # the tails' softplus at a scale of 1,097
        np.testing.assert_allclose(mean.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("x", "logit", "expected"),
    [(1, 0, -math.log(2)), (1, 1e4, 0), (0, -1e4, 0), (0, 1e4, -1e4), (1, -1e4, -1e4), (0, 3e38, -3e38)],
)
def test_bernoulli_at_the_extremes(x: float, logit: float, expected: float) -> None:
    """One pixel at extreme logits gives the limit, never NaN or infinity."""
    pixel, logits = torch.full((1, 1, 1, 1), float(x)), torch.full((1, 1, 1, 1), float(logit))
    assert Bernoulli().log_prob(pixel, logits).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("log_scale", [-50.0, -7.0, -4.0, -1.0, 0.0, 3.0, 7.0, 50.0])
@pytest.mark.parametrize("loc", [-1e4, -1.0, 0.0, 0.123, 0.5, 1.0, 1.7, 1e4])
def test_logistic_probabilities_of_all_levels(loc: float, log_scale: float) -> None:
    """The 256 levels' probabilities are the cdf's differences and sum to one, for sharp, flat and far-off pixels."""
    parameters = torch.tensor([loc, log_scale], dtype=torch.float64).reshape(1, 2, 1, 1).expand(256, -1, -1, -1)
    p = DiscretisedLogistic().log_prob(LEVELS, parameters).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-8)
    expected = cdf_differences(*torch.tensor([loc, log_scale], dtype=torch.float64))
    torch.testing.assert_close(p, expected, rtol=1e-7, atol=1e-12)


@every_likelihood
def test_root_is_where_autograd_would_come(name: str) -> None:
    """Backpropagation from the root gives the gradient of -log p(x|z), to the parameters and to sigma."""
    likelihood = make(name)
    x, parameters = draw(likelihood, 4, 3, 5, 4)
    leaves = [torch.stack([parameters, -parameters]).requires_grad_(), *likelihood.parameters()]
    root, gradient = likelihood.root(x, leaves[0])
    assert not gradient.requires_grad
    expected = torch.autograd.grad(-likelihood.log_prob(x, leaves[0]).sum(), leaves)
    got = torch.autograd.grad(root, leaves, gradient)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@every_likelihood
def test_gradient_agrees_with_the_references(name: str) -> None:
    """The gradient of log p(x|z) is that of the reference, of levels 0 and 255 too."""
    likelihood = make(name)
    x, parameters = draw(likelihood, 6, 3, 5, 4)
    leaves = [parameters.requires_grad_(), *likelihood.parameters()]
    got = torch.autograd.grad(likelihood.log_prob(x, parameters).sum(), leaves)
    expected = torch.autograd.grad(independent_log_prob(likelihood, x, parameters).sum(), leaves)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@every_likelihood
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_finite_everywhere(name: str, dtype: torch.dtype) -> None:
    """No combination of extreme parameters and pixels gives an infinity or NaN, in float32 or under autocast."""
    likelihood = make(name).float()
    x, parameters = extremes(likelihood)
    parameters = parameters.to(dtype).requires_grad_()
    log_prob = likelihood.log_prob(x.float(), parameters)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert (parameters.grad != 0).any()
    for leaf in (parameters, *likelihood.parameters()):
        assert torch.isfinite(leaf.grad).all()
    root, gradient = likelihood.root(x.float(), parameters)
    assert torch.isfinite(gradient).all()
    assert gradient.shape == root.shape


@every_likelihood
def test_wrong_pixels_pull_the_parameters_back(name: str) -> None:
    """However far the parameters are off, log p(x|z) rises towards the pixel's value: training can come back."""
    likelihood = make(name).float()
    for far, direction in ((1e4, -1), (-1e4, 1)):
        parameters = torch.zeros(1, likelihood.parameters_per_value, 1, 1)
        parameters[:, 0] = far
        parameters.requires_grad_()
        x = torch.full((1, 1, 1, 1), float(far < 0))
        likelihood.log_prob(x, parameters).sum().backward()
        assert math.copysign(1, parameters.grad[0, 0].item()) == direction
        assert abs(parameters.grad[0, 0].item()) > (1e-4 if name == "student-t" else 0.9)  # few degrees say: let it be


@every_likelihood
def test_samples_have_the_law(name: str) -> None:
    """50,000 draws have the mean and the variance that the likelihood's probabilities give, to 5 standard errors."""
    likelihood = make(name).float()
    _, parameters = draw(likelihood, 1, 2, 3, 2)
    parameters, n = parameters.float(), 50_000
    torch.manual_seed(0)
    with torch.no_grad():
        x = likelihood.sample(parameters.expand(n, -1, -1, -1)).double()
    assert x.shape == (n, 2, 3, 2)
    if isinstance(likelihood, StudentT):
        df = likelihood.logdf.exp().double()
        mean, variance = parameters[0].double(), likelihood.logsigma.exp().square().double() * df / (df - 2)
        fourth = variance**2 * (3 + 6 / (df - 4))
    elif isinstance(likelihood, Gaussian | HeteroscedasticGaussian):
        logsigma = likelihood.logsigma if isinstance(likelihood, Gaussian) else parameters[0, 2:]
        mean, variance = parameters[0, :2].double(), logsigma.exp().square().double()
        fourth = 3 * variance**2
    else:
        values = LEVELS if name == "discretised-logistic" else torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1, 1)
        levels = values.expand(-1, 2, 3, 2)
        assert set(x.unique().tolist()) <= set((levels.float()).double().unique().tolist())
        p = independent_log_prob(likelihood, levels, parameters.double().expand(len(levels), -1, -1, -1)).exp()
        mean = (p * levels).sum(dim=0)
        variance, fourth = ((p * (levels - mean) ** power).sum(dim=0) for power in (2, 4))
    assert ((x.mean(dim=0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    squares = (x - mean).square().mean(dim=0)
    assert ((squares - variance).abs() < 5 * ((fourth - variance**2) / n).sqrt()).all()


def test_logistic_samples_have_every_levels_frequency() -> None:
    """100,000 draws have each level as often as its probability says: chi squared stays in its range."""
    n, parameters = 100_000, torch.tensor([0.1, -2.0]).reshape(1, 2, 1, 1)
    torch.manual_seed(0)
    levels = (DiscretisedLogistic().sample(parameters.expand(n, -1, -1, -1)) * 255).round().long().flatten()
    expected = n * cdf_differences(*parameters.double().flatten())
    often = expected > 20
    assert often.sum() > 150
    assert often[0]
    counts = torch.bincount(levels, minlength=256).double()
    chi_squared = ((counts - expected).square() / expected)[often].sum().item()
    freedom = int(often.sum())
    assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)


def test_logistic_mean_is_the_expectation() -> None:
    """The mean lies in [0, 1] and within half a level of the sum of level times probability."""
    likelihood = DiscretisedLogistic()
    _, parameters = draw(likelihood, 10, 2, 4, 4)
    for some in (parameters, extremes(likelihood)[1]):
        mean = likelihood.mean(some)
        expected = (cdf_differences(*some.chunk(2, dim=1)) * LEVELS.flatten()).sum(dim=-1)
        assert ((mean >= 0) & (mean <= 1)).all()
        torch.testing.assert_close(mean, expected, rtol=0, atol=1 / 510)


def test_bernoulli_mean_is_theta_and_gaussian_mean_is_loc() -> None:
    """The means are those of torch.distributions."""
    for likelihood in (make("bernoulli"), make("gaussian")):
        _, parameters = draw(likelihood, 10, 2, 4, 4)
        kind = distributions.Bernoulli(logits=parameters) if likelihood.binary else distributions.Normal(parameters, 1)
        torch.testing.assert_close(likelihood.mean(parameters), kind.mean, rtol=1e-12, atol=0)


@every_likelihood
def test_constant_image_is_the_best_one(name: str) -> None:
    """The mean log p(x|z) of the training images is highest at the constant image: its gradient there is about zero.

    The logistic's best location and scale have no closed form: it has the pixels' mean and deviation, and beats a flat
    distribution and a sharp one; so has Student's t of ten degrees of freedom.
    """
    likelihood = make(name)
    x, _ = draw(likelihood, 400, 2, 3, 4)
    parameters = likelihood.constant(x.mean(dim=0), x.std(dim=0, correction=0))
    assert parameters.shape == (2 * likelihood.parameters_per_value, 3, 4)
    leaves = [parameters.clone().requires_grad_(), *likelihood.parameters()]
    log_prob = likelihood.log_prob(x, leaves[0].expand(400, -1, -1, -1)).mean()
    if name == "student-t":
        sigma, deviation = likelihood.logsigma.exp(), x.std(dim=0, correction=0).square().mean().sqrt()
        torch.testing.assert_close((sigma * math.sqrt(10 / 8)).detach(), deviation)
        assert (parameters == x.mean(dim=0)).all()
        return
    if name != "discretised-logistic":
        for gradient in torch.autograd.grad(log_prob, leaves):
            assert gradient.abs().max().item() < 1e-10
        return
    for other in (torch.zeros_like(parameters), torch.cat([0.5 * torch.ones(2, 3, 4), -7 * torch.ones(2, 3, 4)])):
        assert log_prob > likelihood.log_prob(x, other.double().expand(400, -1, -1, -1)).mean()
    loc, scale = parameters[:2], parameters[2:].exp()
    torch.testing.assert_close(loc, x.mean(dim=0))
    torch.testing.assert_close(scale * math.pi / math.sqrt(3), x.std(dim=0, correction=0))  # a logistic's deviation


@every_likelihood
def test_constant_image_of_constant_pixels_is_finite(name: str) -> None:
    """Pixels that are black, or white, in every training image give finite parameters that expect just that."""
    likelihood = make(name)
    mean = torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    parameters = likelihood.constant(mean, torch.zeros_like(mean))
    assert torch.isfinite(parameters).all()
    torch.testing.assert_close(likelihood.mean(parameters), mean, rtol=0, atol=2e-3)
    assert all(torch.isfinite(weight) for weight in likelihood.parameters())


@every_likelihood
def test_contract_is_understood_by_the_runtime(name: str) -> None:
    """The runtime makes its twin from the contract, with the same output, number of parameters and support."""
    likelihood = make(name)
    other = twin(likelihood)
    assert type(other).__name__ == type(likelihood).__name__
    for attribute in ("output", "parameters_per_value", "discrete"):
        assert getattr(other, attribute) == getattr(likelihood, attribute)
    if isinstance(likelihood, Gaussian):
        assert other.logsigma == likelihood.logsigma.item() == -1.2


@every_likelihood
def test_samples_are_in_the_runtimes_support(name: str) -> None:
    """What PyTorch draws, the runtime takes."""
    likelihood = make(name).float()
    _, parameters = draw(likelihood, 50, 1, 4, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        numpy_likelihoods.check(twin(likelihood), likelihood.sample(parameters.float()).numpy(), "image")


def test_logistic_draw_is_the_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same uniforms, zero and the largest among them, PyTorch and NumPy draw the same levels."""
    likelihood = DiscretisedLogistic()
    _, parameters = draw(likelihood, 50, 2, 4, 4)
    uniforms = noise.uniform(3, noise.PIXELS, np.arange(50), 32).reshape(50, 2, 4, 4)
    uniforms.flat[:2] = 0, 1 - 2**-24
    parameters[0, :2], parameters[0, 2:] = 0.5, -5  # so sharp that the tails of such draws are inside [0, 1]
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.from_numpy(uniforms))
    got = likelihood.sample(parameters.float())
    expected = twin(likelihood).sample(parameters.float().numpy(), uniforms)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1.01 / 255)  # a draw on an edge may round either way
    assert (got.numpy() == expected).mean() > 0.999


def test_the_runtime_knows_the_same_likelihoods() -> None:
    """Each has a twin of its name, and settings may ask for any of them."""
    assert list(KNOWN) == list(numpy_likelihoods.KNOWN) == list(LIKELIHOODS)
    assert {name: kind.binary for name, kind in KNOWN.items()} == {
        name: kind.binary for name, kind in numpy_likelihoods.KNOWN.items()
    }


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4)], ids=["series", "images"])
@pytest.mark.parametrize("sigma", ["one", "column", "value"])
def test_a_sigma_is_shared_as_asked(sigma: str, shape: tuple[int, ...]) -> None:
    """log p, gradients and the best constant are those of independent normals whose sigma is that of their group."""
    likelihood = make_likelihood("gaussian", shape, sigma).double()
    many = {"one": (), "column": (2, *[1] * (len(shape) - 1)), "value": shape}[sigma]
    assert likelihood.logsigma.shape == many
    generator = torch.Generator().manual_seed(0)
    x, loc = torch.randn(2, 300, *shape, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0.2, 3, math.prod(shape), dtype=torch.float64).reshape(shape)
    constant = likelihood.constant(x.mean(dim=0), x.std(dim=0, correction=0))
    leaves = [constant.clone().requires_grad_(), likelihood.logsigma]
    log_prob = likelihood.log_prob(x, leaves[0].expand(300, *shape)).mean()
    for gradient in torch.autograd.grad(log_prob, leaves):
        assert gradient.abs().max().item() < 1e-10
    likelihood.log_unit = torch.tensor([0.5, -2.0], dtype=torch.float64).reshape(2, *[1] * (len(shape) - 1))
    sigmas = likelihood.logsigma.exp().expand(shape)
    per_value = distributions.Normal(loc, sigmas).log_prob(x) - likelihood.log_unit
    expected = per_value.flatten(1).sum(dim=1)
    got = likelihood.log_prob(x, loc)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)
    of_sigma = [torch.autograd.grad(figures.sum(), likelihood.logsigma)[0] for figures in (got, expected)]
    torch.testing.assert_close(*of_sigma, rtol=1e-10, atol=1e-8)
    torch.manual_seed(0)
    drawn = likelihood.sample(constant.expand(4000, *shape)).std(dim=0)
    torch.testing.assert_close(drawn, likelihood.logsigma.detach().exp().expand(shape), rtol=0.06, atol=0)


def test_a_sigma_is_shared_by_default() -> None:
    """By all values of images, and by those of a column or channel; a likelihood without one is told so."""
    for shape, many in (((1, 4, 4), ()), ((5,), (5,)), ((5, 6), (5, 1))):
        config = PRESETS["tutorial"].replace(likelihood="gaussian")
        assert networks.build(config, shape).likelihood.logsigma.shape == many
    with pytest.raises(ArgumentError, match="--sigma does not go with this likelihood: bernoulli; leave it out"):
        PRESETS["tutorial"].replace(sigma="value")
    with pytest.raises(ArgumentError, match="sigma not known: row"):
        PRESETS["tutorial"].replace(likelihood="gaussian", sigma="row")


@pytest.fixture
def mixed() -> tuple[Mixed, Tensor, Tensor]:
    """One of four columns, of which the second and third are of 0 and 1, rows and parameters, float64."""
    likelihood = Mixed(1, columns=4).double()
    generator = torch.Generator().manual_seed(0)
    x, parameters = torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
    x[:, 1:3] = (x[:, 1:3] > 0.3).double()
    vae = TorchVAE(torch.nn.Identity(), torch.nn.Identity(), 4, likelihood)
    networks.tell_binary(vae, x)
    assert likelihood.binary_columns.tolist() == [False, True, True, False]
    with torch.no_grad():
        likelihood.logsigma.copy_(torch.tensor([-1.0, 9, 9, 0.5]))
    likelihood.log_unit = torch.tensor([2.0, 0, 0, -1]).double()
    return likelihood, x, parameters


def of_columns(likelihood: Mixed, x: Tensor, parameters: Tensor) -> Tensor:
    """log p of each value by torch.distributions."""
    real = distributions.Normal(parameters, likelihood.logsigma.exp()).log_prob(x) - likelihood.log_unit
    binary = distributions.Bernoulli(logits=parameters, validate_args=False).log_prob(x)
    return torch.stack([real[..., 0], binary[..., 1], binary[..., 2], real[..., 3]], dim=-1)


def test_mixed_columns_agree_with_the_references(mixed: tuple[Mixed, Tensor, Tensor]) -> None:
    """log p, its gradients, the root of backpropagation, and the runtime's twin; with draws in front too."""
    likelihood, x, parameters = mixed
    leaves = [torch.stack([parameters, -parameters]).requires_grad_(), likelihood.logsigma]
    expected, got = of_columns(likelihood, x, leaves[0]).sum(dim=-1), likelihood.log_prob(x, leaves[0])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(-figures.sum(), leaves, retain_graph=True) for figures in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-9)
    assert gradients[0][1].tolist()[1:3] == [0, 0]  # those of binary columns are not used
    root, gradient = likelihood.root(x, leaves[0])
    torch.testing.assert_close(torch.autograd.grad(root, leaves, gradient), gradients[0], rtol=1e-12, atol=1e-12)
    named = json.loads(json.dumps(asdict(likelihood.contract())))
    other = numpy_likelihoods.make(Named(**named), Observation("vector", (4,), None))
    single = leaves[0].detach().float().numpy()
    np.testing.assert_allclose(other.log_prob(x.float().numpy(), single), expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(other.mean(single), likelihood.mean(leaves[0]).detach().numpy(), rtol=1e-5)


def test_mixed_columns_start_at_the_best_constant_and_are_kept(mixed: tuple[Mixed, Tensor, Tensor]) -> None:
    """No gradient there; draws have the law and lie in the support; the weights say which columns are binary."""
    likelihood, x, _ = mixed
    constant = likelihood.constant(x.mean(dim=0), x.std(dim=0, correction=0))
    leaves = [constant.clone().requires_grad_(), likelihood.logsigma]
    for gradient in torch.autograd.grad(likelihood.log_prob(x, leaves[0].expand_as(x)).mean(), leaves):
        assert gradient.abs().max().item() < 1e-10
    torch.manual_seed(0)
    drawn = likelihood.sample(constant.expand(40_000, 4)).detach()
    assert set(drawn[:, 1:3].unique().tolist()) == {0, 1}
    torch.testing.assert_close(drawn.mean(dim=0), x.mean(dim=0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(dim=0), x.std(dim=0), rtol=0.03, atol=0)
    anew = Mixed(1, columns=4).double()
    anew.load_state_dict(likelihood.state_dict())
    assert anew.binary_columns.tolist() == [False, True, True, False]


def test_a_mixed_likelihood_needs_both_kinds() -> None:
    """Columns that are all of 0 and 1, or none, are refused with the likelihood that is theirs."""
    vae = TorchVAE(torch.nn.Identity(), torch.nn.Identity(), 4, Mixed(1, columns=4))
    for x, other in ((torch.ones(9, 4), "bernoulli"), (torch.ones(9, 4) / 2, "gaussian")):
        with pytest.raises(ArgumentError, match=f"a mixed likelihood of one kind: .*; add --likelihood {other}"):
            networks.tell_binary(vae, x)
