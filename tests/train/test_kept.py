"""What a model keeps: the share of the variance, and nats beside independent values; words where that is little."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from vae_runtime.observation import IMAGE, VECTOR, Observation
from vae_train import kept, likelihoods, pixels
from vae_train.data import Data
from vae_train.likelihoods import Likelihood
from vae_train.vae import VAE


class Encoder(nn.Module):
    """mu is the first two columns, and sigma small."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logsigma [batch, 2]."""
        return x[:, :2], torch.full_like(x[:, :2], -3.0)


def rows(count: int, seed: int) -> Tensor:
    """Rows [count, 4] of which the last two columns are the first two, twice over, but for noise."""
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, generator=noise)
    return torch.cat([z, 2 * z], dim=1) + 0.1 * torch.randn(count, 4, generator=noise)


def data_of(train: Tensor, test: Tensor, kind: str = VECTOR) -> Data:
    """Observations in memory."""
    shape = tuple(train.shape[1:])
    labels = torch.zeros(len(test), dtype=torch.int64)
    return Data(train, test, labels, [""], {}, Observation(kind, shape, None if kind == VECTOR else (0.0, 1.0)))


def vae_that(decodes: Tensor) -> VAE:
    """A VAE whose decoder is z times a matrix [2, 4], under a Gaussian with sigma 0.1."""
    decoder = nn.Linear(2, 4, bias=False)
    likelihood = likelihoods.Gaussian(axes=1)
    with torch.no_grad():
        decoder.weight.copy_(decodes.T)
        likelihood.logsigma.fill_(np.log(0.15))
    return VAE(Encoder(), decoder, latent_shape=2, likelihood=likelihood)


def test_a_model_that_knows_how_columns_move_together_keeps_nearly_all() -> None:
    """And its samples differ as its observations do; nothing is said of it."""
    observations = data_of(rows(2000, 0), rows(500, 1))
    found = kept.measure(vae_that(torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 2]])), observations)
    assert found.reconstructions > 0.98
    assert found.samples == pytest.approx(1, abs=0.1)
    assert found.gain > 2
    assert kept.poor(found, observations) == []


def test_a_model_that_gives_the_same_for_all_is_told_so() -> None:
    """With what to try; of images of which there are few, other images too."""
    observations = data_of(rows(2000, 0), rows(500, 1))
    found = kept.measure(vae_that(torch.zeros(2, 4)), observations)
    assert (found.reconstructions, found.samples) == (pytest.approx(0, abs=0.02), 0)
    assert found.gain < 0
    same, better, todo = sorted(
        kept.poor(found, observations), key=lambda line: "hardly" in line or 2 * ("try" in line)
    )
    assert same == "reconstructions are nearly the same for all rows"
    assert "independent values" in better
    assert "--augment" not in todo
    images = data_of(torch.zeros(300, 1, 8, 8), torch.zeros(30, 1, 8, 8), IMAGE)
    assert "--augment" in kept.poor(found, images)[-1]
    varied = kept.Kept(reconstructions=0.5, samples=0.01, gain=10, error=1)
    assert kept.poor(varied, observations)[0] == "samples are nearly all the same"


LEVELS = torch.randint(100, 150, (50, 2, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize(
    "likelihood", [likelihoods.Bernoulli(), likelihoods.Gaussian(), likelihoods.DiscretisedLogistic()]
)
def test_independent_values_by_another_way(likelihood: Likelihood) -> None:
    """By SciPy's distributions, and by counting levels one by one."""
    train, test = LEVELS[:40], LEVELS[40:]
    if likelihood.binary:
        test = (test > 127).to(torch.uint8) * 255
    mean, std = pixels.moments(train)
    found = kept.independent(likelihood, train, test, mean, std)
    x, m, s = (part.double().numpy() for part in (pixels.unit(test), mean, std))
    if likelihood.binary:
        expected = stats.bernoulli.logpmf(x, m).reshape(10, -1).sum(axis=1)
    elif not likelihood.discrete:  # one sigma for all values
        expected = stats.norm.logpdf(x, m, np.sqrt(np.square(s).mean())).reshape(10, -1).sum(axis=1)
    else:  # 40 images say little of each pixel's 256 levels, and more of a channel's
        expected = np.zeros(10)
        for i, image in enumerate(test.numpy()):
            for channel, plane in enumerate(image):
                known = train[:, channel].numpy()
                expected[i] += sum(np.log(((known == level).sum() + 1) / (known.size + 256)) for level in plane.ravel())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_columns_of_0_and_1_beside_others() -> None:
    """Each by its own kind."""
    likelihood = likelihoods.Mixed(1, columns=2)
    likelihood.binary_columns.copy_(torch.tensor([True, False]))
    train = torch.tensor([[0.0, 1.0], [1.0, 3.0], [1.0, 5.0], [1.0, 7.0]])
    mean, std = pixels.moments(train)
    found = kept.independent(likelihood, train, train[:1], mean, std)
    assert found.item() == pytest.approx(np.log(1 - 3 / 4) + stats.norm.logpdf(1, 4, np.sqrt(5)), rel=1e-6)
    assert not likelihood.logsigma.any(), "the model's own sigma is left alone"
