"""The numeric gate where a row lies far out: it passes the good model, wherever that row is, and no other sigma."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vae_export import candidate, gate
from vae_runtime.observation import VECTOR, Observation
from vae_train import likelihoods
from vae_train.likelihoods import Likelihood
from vae_train.vae import VAE

COLUMNS, LATENTS, ROWS = 5, 3, 64
OBSERVATION = Observation(VECTOR, (COLUMNS,), range=None)


class Encoder(nn.Linear):
    """One linear layer: a row far out gives a mu far out, and the same sigma as any other."""

    def __init__(self) -> None:
        super().__init__(COLUMNS, LATENTS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [batch, 5] to mu and logsigma, both [batch, 3]."""
        mu = super().forward(x)
        return mu, torch.full_like(mu, -1)


@torch.no_grad()
def small(likelihood: Likelihood) -> VAE:
    """A VAE of rows, linear but for a tanh; its sigmas are no powers of 2."""
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(LATENTS, 16), nn.Tanh(), nn.Linear(16, COLUMNS * likelihood.parameters_per_value))
    vae = VAE(Encoder(), decoder, LATENTS, likelihood).eval()
    if hasattr(likelihood, "logsigma"):
        likelihood.logsigma.fill_(-1.3)
    if hasattr(likelihood, "binary_columns"):
        likelihood.binary_columns[3:] = True
    return vae


def rows_with(far: float, at: int) -> NDArray[np.float32]:
    """Seeded rows, the last two columns 0 and 1; the values of the first three are so many times as large in one."""
    random = np.random.default_rng(1)
    real, binary = random.standard_normal((ROWS, 3)), random.integers(2, size=(ROWS, 2))
    real[at] *= far
    return np.hstack([real, binary]).astype(np.float32)


@torch.no_grad()
def test_tolerances_know_of_a_row_far_out_wherever_it_is() -> None:
    """Its standard error from many draws, within a factor of 3, though it alone is furthest off, at a dozen places."""
    vae = small(likelihoods.Gaussian(1, (COLUMNS,)))
    for at in range(0, ROWS, 5):
        x = rows_with(100, at)
        (case,) = [one for one in gate.expect(vae, OBSERVATION, x) if gate.is_real(one.kind) and "ELBO" in one.expected]
        many = [torch.from_numpy(values[[at] * 16]) for values in case.inputs.values()]
        draws = np.concatenate([case.side.exact(*many, seed=seed)[0].numpy() for seed in range(100, 140, 2)])
        error = np.sqrt(np.square(draws - case.expected["ELBO"][at]).mean())
        assert 1 / 3 < case.errors["ELBO"] / error < 3, at


KINDS: dict[str, Callable[[], Likelihood]] = {
    "gaussian": lambda: likelihoods.Gaussian(1),
    "heteroscedastic-gaussian": lambda: likelihoods.HeteroscedasticGaussian(1),
    "student-t": lambda: likelihoods.StudentT(1, (COLUMNS,)),
    "mixed": lambda: likelihoods.Mixed(1, COLUMNS),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in ("gaussian", "student-t") else pytest.mark.slow) for kind in KINDS]
)
@torch.no_grad()
def test_a_row_10000_scales_away_is_no_excuse(kind: str) -> None:
    """The model as it is passes with such a row; with sigmas that are 0.1% too large its ELBO is refused."""
    vae = small(KINDS[kind]())
    cases = gate.expect(vae, OBSERVATION, rows_with(10_000, 9))
    graphs = candidate.export(vae, (COLUMNS,), 17)

    def rows(vae: VAE, graphs: Any) -> list[gate.Comparison]:
        made = candidate.assemble("fp32", "the network in float64", vae, OBSERVATION, graphs)
        return gate.judge(cases, made.runtime())

    assert [row.name for row in rows(vae, graphs) if not row.passed] == []
    if hasattr(vae.likelihood, "logsigma"):  # else it is the decoder's
        vae.likelihood.logsigma += 0.001
    else:
        vae.decoder[2].bias[COLUMNS:] += 0.001
        graphs = candidate.export(vae, (COLUMNS,), 17)
    assert "ELBO" in {row.tensor for row in rows(vae, graphs) if not row.passed}
