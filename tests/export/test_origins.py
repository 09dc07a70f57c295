"""VAEs of other libraries are exported by the lines that docs/bring-your-own.md has for them, with their own ELBO.

Each origin skips where its package is missing; CONTRIBUTING.md says how to get them.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor, distributions, nn

import vae_export
from support import elsewhere
from vae_runtime import VAE, noise

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what other libraries warn of is theirs

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own.md"
Elbo = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Origin:
    """A trained VAE of some library.

    names: what the lines of the page use. x: observations as the runtime takes them. elbo(x, eps): nats of each, as the
    library computes it, of what its networks take. jacobian: nats, by which a density of x is more than one in the
    networks' units.
    """

    names: dict[str, Any]
    x: NDArray[np.float32]
    elbo: Elbo
    jacobian: float = 0.0


def lines_for(heading: str) -> str:
    """The lines of Python below a heading of the page."""
    section = PAGE.read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(block)


def patches(size: int = 80, side: int = 16) -> NDArray[np.float32]:
    """Pieces of scikit-learn's two photographs, [size, 3, side, side], in [0, 1]."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    corners = [rng.integers((0, 0, 0), (2, *np.subtract(photographs[0].shape[:2], side))) for _ in range(size)]
    cut = np.stack([photographs[i][y : y + side, x : x + side] for i, y, x in corners])
    scaled: NDArray[np.float32] = cut.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return scaled


def fit(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor, steps: int = 60) -> None:
    """Some steps of Adam on batches of x."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(x[torch.randint(len(x), (64,))]).mean().backward()
        optimiser.step()


def one_object() -> Origin:
    """The best-known example: encode and decode, flat images, log variance and a sigmoid."""
    model, x = elsewhere.Tutorial(), elsewhere.digits()

    def elbo(x: Tensor, eps: Tensor) -> Tensor:
        x = x.view(-1, 64)
        mu, logvar = model.encode(x)
        return -elsewhere.bce(model.decode(mu + eps * torch.exp(0.5 * logvar)), x) - elsewhere.kl(mu, logvar)

    fit(model, lambda x: -elbo(x, torch.randn(len(x), 4)), torch.from_numpy(x))
    return Origin({"model": model, "x_test": torch.from_numpy(x)}, x, elbo)


def two_modules() -> Origin:
    """Convolutions; the encoder gives a distribution of torch, the decoder the mean of a Gaussian of sigma 0.2."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
            self.heads = nn.Linear(128, 8)

        def forward(self, x: Tensor) -> distributions.Normal:
            loc, scale = self.heads(self.body(x)).chunk(2, dim=1)
            return distributions.Normal(loc, F.softplus(scale))

    encoder, x = Encoder(), elsewhere.digits()
    decoder = nn.Sequential(nn.Linear(4, 128), nn.Unflatten(1, (8, 4, 4)), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))

    def elbo(x: Tensor, eps: Tensor) -> Tensor:
        q = encoder(x)
        p = distributions.Normal(decoder(q.loc + q.scale * eps), 0.2)
        prior = distributions.Normal(0.0, 1.0)
        return p.log_prob(x).flatten(1).sum(1) - distributions.kl_divergence(q, prior).sum(1)

    both = nn.ModuleList([encoder, decoder])
    fit(both, lambda x: -elbo(x, torch.randn(len(x), 4)), torch.from_numpy(x))
    both.eval()
    return Origin({"encoder": encoder, "decoder": decoder, "x_test": x}, x, elbo)


def forward_alone() -> Origin:
    """A model in training mode whose forward gives reconstruction, mean and log variance, with dropout inside."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.BatchNorm1d(40), nn.ReLU())
            self.encoder.append(nn.Linear(40, 8))
            self.decoder = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 64), nn.Sigmoid())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu, logvar = self.encoder(x).chunk(2, dim=1)
            z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
            return self.decoder(z).view(-1, 1, 8, 8), mu, logvar

    model, x = Model(), elsewhere.digits()

    def loss(x: Tensor) -> Tensor:
        theta, mu, logvar = model(x)
        return elsewhere.bce(theta, x) + elsewhere.kl(mu, logvar)

    def elbo(x: Tensor, eps: Tensor) -> Tensor:
        model.eval()
        _, mu, logvar = model(x)
        theta = model.decoder(mu + eps * torch.exp(0.5 * logvar)).view(-1, 1, 8, 8)
        return -elsewhere.bce(theta, x) - elsewhere.kl(mu, logvar)

    fit(model, loss, torch.from_numpy(x))
    return Origin({"model": model, "x_test": x}, x, elbo)


def lightning(folder: Path) -> Origin:
    """A LightningModule after an epoch of its Trainer."""
    lightning = pytest.importorskip("lightning")

    class LitVAE(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU())
            self.fc_mu, self.fc_var = nn.Linear(40, 4), nn.Linear(40, 4)
            self.decoder = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 64), nn.Unflatten(1, (1, 8, 8)))

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.encoder(x)
            return self.fc_mu(h), self.fc_var(h)

        def decode(self, z: Tensor) -> Tensor:
            logits: Tensor = self.decoder(z)
            return logits

        def elbo(self, x: Tensor, eps: Tensor) -> Tensor:
            mu, log_var = self.encode(x)
            q = distributions.Normal(mu, torch.exp(log_var / 2))
            p = distributions.Bernoulli(logits=self.decode(mu + q.scale * eps))
            kl = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
            return p.log_prob(x).flatten(1).sum(1) - kl

        def training_step(self, batch: Any, _: int) -> Tensor:
            (x,) = batch
            return -self.elbo(x, torch.randn(len(x), 4)).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 3e-3)

    x = elsewhere.digits(1000)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(x)), 32, shuffle=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, **quiet)
    model = LitVAE()
    trainer.fit(model, batches)
    trainer.save_checkpoint(folder / "last.ckpt")
    return Origin({"LitVAE": LitVAE, "x_test": x[:200]}, x[:200], model.eval().elbo)


def pythae(folder: Path, loss: str) -> Origin:
    """Its VAE with its own networks, after an epoch of its trainer."""
    pytest.importorskip("pythae")
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    x = elsewhere.digits(1000)
    model = VAE(VAEConfig(input_dim=(1, 8, 8), latent_dim=4, reconstruction_loss=loss))
    config = BaseTrainerConfig(output_dir=str(folder), num_epochs=1, no_cuda=True)
    BaseTrainer(model, BaseDataset(torch.from_numpy(x), torch.zeros(len(x))), training_config=config).train()
    (trained,) = folder.glob("*/final_model")
    trained.rename(folder / "my_model")
    model.eval().cpu()

    def elbo(x: Tensor, eps: Tensor) -> Tensor:
        given = model.encoder(x)
        mu, log_var = given.embedding, given.log_covariance
        z = mu + torch.exp(0.5 * log_var) * eps
        each = zip(model.decoder(z).reconstruction.split(1), x.split(1), mu.split(1), log_var.split(1), strict=True)
        total = torch.stack([model.loss_function(recon, x, mu, log_var, None)[0] for recon, x, mu, log_var in each])
        return -total - (32 * math.log(2 * math.pi) if loss == "mse" else 0)  # a constant that it leaves out

    return Origin({"x_test": x[:200]}, x[:200], elbo)


def diffusers(folder: Path) -> Origin:
    """An AutoencoderKL of random weights, in a folder as its from_pretrained reads it."""
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, sample_size=16, **blocks).eval()
    model.save_pretrained(folder / "autoencoder")
    x, scale = patches(), model.config.scaling_factor

    def elbo(x: Tensor, eps: Tensor) -> Tensor:
        latent_dist = model.encode(2 * x - 1).latent_dist
        q = distributions.Normal(scale * latent_dist.mean, scale * latent_dist.std)
        p = distributions.Normal(model.decode((q.loc + q.scale * eps) / scale).sample, 0.5)
        kl = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0))
        return p.log_prob(2 * x - 1).flatten(1).sum(1) - kl.flatten(1).sum(1)

    return Origin({"x_test": 2 * x - 1}, x, elbo, jacobian=x[0].size * math.log(2))


MADE: dict[str, Callable[[Path], Origin]] = {
    "Plain PyTorch": lambda _: one_object(),
    "Two modules": lambda _: two_modules(),
    "Nothing but forward": lambda _: forward_alone(),
    "Lightning": lightning,
    "pythae": lambda folder: pythae(folder, "bce"),
    "pythae, squared errors": lambda folder: pythae(folder, "mse"),
    "diffusers": diffusers,
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Weights and steps, whatever ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("heading", MADE)
def test_the_lines_of_the_page_make_a_bundle_of_the_same_elbo(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-3 nats of each observation with the same noise; the network is not changed, and nothing is doubted."""
    monkeypatch.chdir(tmp_path)
    origin = MADE[heading](tmp_path)
    lines = lines_for(heading)
    assert len(list(filter(None, lines.splitlines()))) <= 5
    names = {"vae_export": vae_export, "torch": torch, **origin.names}
    with warnings.catch_warnings():
        warnings.simplefilter("error", vae_export.DescriptionWarning)
        exec(compile(lines, PAGE.name, "exec"), names)
    bundle = names["bundle"]
    assert all(row.passed for row in bundle.comparisons)
    vae = VAE.load(bundle.path)
    eps = noise.normal(0, noise.POSTERIOR, noise.index(origin.x), vae.latent_dim).reshape(-1, *vae.latent_shape)
    with torch.no_grad():
        expected = origin.elbo(torch.from_numpy(origin.x), torch.from_numpy(eps)).double().numpy() + origin.jacobian
    got = vae.elbo(origin.x)
    off = np.abs(got - expected).max()
    print(f"{heading}: {len(bundle.comparisons)} rows, ELBO {got.mean():.2f}, off by {off:.1e} nats")
    np.testing.assert_allclose(got, expected, atol=1e-3, rtol=0)
