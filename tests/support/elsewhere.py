"""VAEs as people write them elsewhere: of every kind one, with its own way to compute the ELBO, and no word of ours."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, distributions, nn
from torch.nn.utils.parametrizations import weight_norm

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Origin:
    """A VAE from elsewhere.

    given: what `vae_export.export` is told. x: observations as the runtime takes them, [n, *shape]; the ones in `given`
    are the same as the networks take them. elbo(x, eps): nats of each, by the origin's own words, of what its networks
    take and eps [n, *latent_shape]. jacobian: nats, by which a density of x is more than one in the networks' units.
    """

    given: dict[str, Any]
    x: NDArray[Any]
    elbo: Callable[[Tensor, Tensor], Any]
    jacobian: float = 0.0
    taken: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "taken", torch.as_tensor(self.given["observations"]).float())


def digits(size: int = 200) -> Floats:
    """Digits in black and white, float32 [size, 1, 8, 8]."""
    binary: Floats = (load_digits().images[:size, None] > 7).astype(np.float32)
    return binary


def colours(size: int = 80) -> NDArray[np.uint8]:
    """Soft spots in colours, uint8 levels [size, 3, 8, 8]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(size, 3, 3, 3, generator=generator)
    x = F.interpolate(coarse, (8, 8), mode="bilinear", align_corners=True)
    levels: NDArray[np.uint8] = (128 + 60 * x).clamp(0, 255).to(torch.uint8).numpy()
    return levels


def waves(size: int = 80, channels: int = 2, steps: int = 16) -> Floats:
    """Windows of waves with phases of their own, float32 [size, channels, steps]."""
    phases = np.random.default_rng(0).normal(size=(size, channels, 1)) * 3
    made: Floats = np.sin(np.arange(steps) / 3 + phases).astype(np.float32)
    return made


def rows(size: int = 80, columns: int = 6) -> Floats:
    """Rows of numbers that depend on each other, float32 [size, columns]."""
    rng = np.random.default_rng(1)
    made: Floats = (rng.normal(size=(size, 2)) @ rng.normal(size=(2, columns))).astype(np.float32)
    return made + 0.1 * rng.normal(size=made.shape).astype(np.float32)


def kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """As most loops have it."""
    return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).flatten(1).sum(1)


def bce(theta: Tensor, x: Tensor) -> Tensor:
    """The binary cross-entropy of each observation."""
    return F.binary_cross_entropy(theta.double(), x.double(), reduction="none").flatten(1).sum(1)


class Tutorial(nn.Module):
    """A perceptron of flat images that gives log variance and theta, as in the best-known example."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(64, 40), nn.Linear(40, 4), nn.Linear(40, 4)
        self.fc3, self.fc4 = nn.Linear(4, 40), nn.Linear(40, 64)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance."""
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def decode(self, z: Tensor) -> Tensor:
        """Theta."""
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))


def tutorial() -> Origin:
    """A flat perceptron with log variance and a sigmoid."""
    model, x = Tutorial(), digits()

    def elbo(x: Tensor, eps: Tensor) -> Any:
        mu, logvar = model.encode(x)
        return -bce(model.decode(mu + eps * torch.exp(0.5 * logvar)), x) - kl(mu, logvar)

    given = {"observations": x.reshape(-1, 64), "shape": (1, 8, 8), "likelihood": "bernoulli"}
    return Origin({"encoder": model, "encoder_gives": "logvar", "decoder_gives": "theta", **given}, x, elbo)


def tanh() -> Origin:
    """Convolutions with batch normalisation, pixels in [-1, 1], a decoder that ends in tanh."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Flatten())
            self.mu, self.logvar = nn.Linear(128, 5), nn.Linear(128, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x)
            return self.mu(h), self.logvar(h)

    encoder = Encoder()
    decoder = nn.Sequential(
        nn.Linear(5, 128), nn.Unflatten(1, (8, 4, 4)), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    x = colours().astype(np.float32) / 255
    taken = torch.from_numpy(x) * 2 - 1
    with torch.no_grad():
        decoder(encoder(taken)[0])  # running statistics of their own
    encoder.eval()
    decoder.eval()

    def elbo(x: Tensor, eps: Tensor) -> Any:
        mu, logvar = encoder(x)
        mse = F.mse_loss(decoder(mu + eps * torch.exp(0.5 * logvar)), x, reduction="none").flatten(1).sum(1)
        constant = x[0].numel() * (math.log(0.3) + 0.5 * math.log(2 * math.pi))
        return -mse / (2 * 0.3**2) - constant - kl(mu, logvar)

    given = {
        "encoder": encoder, "decoder": decoder, "observations": taken, "encoder_gives": "logvar",
        "likelihood": {"name": "gaussian", "sigma": 0.3}, "preprocessing": {"mean": 0.5, "std": 0.5},
    }  # fmt: skip
    return Origin(given, x, elbo, jacobian=3 * 64 * math.log(2))


def convolutions_over_time() -> Origin:
    """One-dimensional convolutions that give a dict with a log standard deviation; a sigma for each channel."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv1d(2, 8, 4, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(64, 6))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            mean, log_std = self.body(x).chunk(2, dim=1)
            return {"mean": mean, "log_std": log_std}

    encoder = Encoder()
    decoder = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (8, 8)), nn.SiLU(), nn.ConvTranspose1d(8, 2, 4, 2, 1))
    sigma = torch.tensor([0.2, 0.5])

    def elbo(x: Tensor, eps: Tensor) -> Any:
        out = encoder(x)
        q = distributions.Normal(out["mean"], out["log_std"].exp())
        p = distributions.Normal(decoder(q.loc + q.scale * eps), sigma[:, None])
        prior = distributions.Normal(0.0, 1.0)
        return p.log_prob(x).flatten(1).sum(1) - distributions.kl_divergence(q, prior).sum(1)

    likelihood = {"name": "gaussian", "sigma": [0.2, 0.5]}
    given = {"encoder": encoder, "decoder": decoder, "observations": waves(), "likelihood": likelihood}
    return Origin(given, waves(), elbo)


def gru() -> Origin:
    """Recurrent networks over steps of readings, [batch, time, channels]."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader, self.heads = nn.GRU(2, 12, batch_first=True), nn.Linear(12, 6)
            self.start, self.writer = nn.Linear(3, 12), nn.GRU(12, 12, batch_first=True)
            self.out = nn.Linear(12, 2)

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            _, last = self.reader(x)
            mu, logvar = self.heads(last[-1]).chunk(2, dim=-1)
            return mu, logvar

        def decode(self, z: Tensor) -> Tensor:
            states, _ = self.writer(self.start(z)[:, None].expand(-1, 16, -1))
            out: Tensor = self.out(states)
            return out

    model, x = Model(), waves()

    def elbo(x: Tensor, eps: Tensor) -> Any:
        mu, logvar = model.encode(x)
        p = distributions.Normal(model.decode(mu + eps * torch.exp(0.5 * logvar)), 0.4)
        return p.log_prob(x).flatten(1).sum(1) - kl(mu, logvar)

    given = {
        "encoder": model, "observations": x.transpose(0, 2, 1), "axes": "TC", "encoder_gives": "logvar",
        "likelihood": {"name": "gaussian", "sigma": 0.4},
    }  # fmt: skip
    return Origin(given, x, elbo)


def spatial_latents() -> Origin:
    """Latents in space, one tensor of moments, and a factor that latents are multiplied with."""
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1))
    decoder = nn.Sequential(nn.ConvTranspose2d(2, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 1, 3, 1, 1), nn.Sigmoid())

    def elbo(x: Tensor, eps: Tensor) -> Any:
        mean, logvar = torch.chunk(encoder(x), 2, dim=1)
        mean, logvar = 0.5 * mean, logvar + 2 * math.log(0.5)  # what the prior is of is half of what the encoder gives
        return -bce(decoder((mean + eps * torch.exp(0.5 * logvar)) / 0.5), x) - kl(mean, logvar)

    given = {
        "encoder": encoder, "decoder": decoder, "observations": digits(), "likelihood": "bernoulli",
        "encoder_gives": "moments", "decoder_gives": "theta", "latent_scale": 0.5,
    }  # fmt: skip
    return Origin(given, digits(), elbo)


def heads() -> Origin:
    """A distribution of torch from the encoder, and a decoder of two heads: each value has a variance of its own."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.loc, self.scale = nn.Linear(6, 16), nn.Linear(16, 2), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Any:
            h = torch.tanh(self.body(x))
            return distributions.Independent(distributions.Normal(self.loc(h), F.softplus(self.scale(h))), 1)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.mean, self.log_var = nn.Linear(2, 16), nn.Linear(16, 6), nn.Linear(16, 6)

        def forward(self, z: Tensor) -> dict[str, Tensor]:
            h = torch.tanh(self.body(z))
            return {"log_var": self.log_var(h), "mean": self.mean(h)}

    encoder, decoder = Encoder(), Decoder()

    def elbo(x: Tensor, eps: Tensor) -> Any:
        q = encoder(x)
        out = decoder(q.base_dist.loc + q.base_dist.scale * eps)
        p = distributions.Normal(out["mean"], torch.exp(0.5 * out["log_var"]))
        prior = distributions.Independent(distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
        return p.log_prob(x).sum(1) - distributions.kl_divergence(q, prior)

    given = {"encoder": encoder, "decoder": decoder, "observations": rows(), "likelihood": "heteroscedastic-gaussian"}
    return Origin(given, rows(), elbo)


class Posterior(NamedTuple):
    """What an encoder gives by name."""

    loc: Tensor
    std: Tensor


def weight_normed() -> Origin:
    """Weight normalisation, a named tuple with a standard deviation, and logits."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.loc = weight_norm(nn.Linear(64, 24)), weight_norm(nn.Linear(24, 3))
            self.std = weight_norm(nn.Linear(24, 3))

        def forward(self, x: Tensor) -> Posterior:
            h = F.elu(self.first(x.flatten(1)))
            return Posterior(self.loc(h), torch.exp(self.std(h)) + 1e-4)

    encoder = Encoder()
    decoder = nn.Sequential(weight_norm(nn.Linear(3, 24)), nn.ELU(), nn.Linear(24, 64), nn.Unflatten(1, (1, 8, 8)))

    def elbo(x: Tensor, eps: Tensor) -> Any:
        q = encoder(x)
        logits = decoder(q.loc + q.std * eps)
        log_p = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        return log_p - kl(q.loc, 2 * torch.log(q.std))

    given = {"encoder": encoder, "decoder": decoder, "observations": digits(), "likelihood": "bernoulli"}
    return Origin(given, digits(), elbo)


def mixture_of_heads() -> Origin:
    """Real columns beside columns of 0 and 1, and a head for each kind."""
    x = rows()
    x[:, [1, 4]] = x[:, [1, 4]] > 0
    encoder = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.real, self.binary = nn.Linear(2, 16), nn.Linear(16, 4), nn.Linear(16, 2)

        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            h = F.gelu(self.body(z))
            return self.real(h), self.binary(h)

    decoder = Decoder()

    def elbo(x: Tensor, eps: Tensor) -> Any:
        mu, logvar = encoder(x).chunk(2, dim=1)
        real, binary = decoder(mu + eps * torch.exp(0.5 * logvar))
        log_p = distributions.Normal(real, 0.3).log_prob(x[:, [0, 2, 3, 5]]).sum(1)
        return log_p + distributions.Bernoulli(logits=binary).log_prob(x[:, [1, 4]]).sum(1) - kl(mu, logvar)

    flags = [False, True, False, False, True, False]
    given = {
        "encoder": encoder, "decoder": decoder, "observations": x, "encoder_gives": "moments",
        "likelihood": {"name": "mixed", "sigma": 0.3, "binary": flags},
    }  # fmt: skip
    return Origin(given, x, elbo)


def channels_last() -> Origin:
    """Images [height, width, channel] in the order blue, green, red, with mean and deviation of each taken off."""
    mean, std = [0.4, 0.45, 0.5], [0.2, 0.25, 0.3]  # of blue, green and red

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.heads, self.last = nn.Linear(192, 24), nn.Linear(24, 8), nn.Linear(4, 192)

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu, logvar = self.heads(F.relu(self.first(x.reshape(-1, 192)))).chunk(2, dim=1)
            return mu, mu, logvar  # a draw of z in its first place, when it trains

        def decode(self, z: Tensor) -> Tensor:
            x: Tensor = self.last(z).reshape(-1, 8, 8, 3)
            return x

    model, x = Model(), colours().astype(np.float32) / 255
    taken = ((x[:, ::-1].transpose(0, 2, 3, 1) - mean) / std).astype(np.float32)

    def elbo(x: Tensor, eps: Tensor) -> Any:
        _, mu, logvar = model.encode(x)
        p = distributions.Normal(model.decode(mu + eps * torch.exp(0.5 * logvar)), 0.7)
        return p.log_prob(x).flatten(1).sum(1) - kl(mu, logvar)

    given = {
        "encoder": model.encode, "decoder": model.decode, "observations": np.ascontiguousarray(taken), "axes": "HWC",
        "encoder_gives": "_, mu, logvar", "likelihood": {"name": "gaussian", "sigma": 0.7},
        "preprocessing": {"mean": mean, "std": std, "colours": "BGR"},
    }  # fmt: skip
    return Origin(given, x, elbo, jacobian=-64 * sum(map(math.log, std)))


def attention() -> Origin:
    """A transformer's layer over the rows of an image, layer normalisation, and functions for encoder and decoder."""
    embed, layer = nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    heads, back = nn.Linear(128, 6), nn.Sequential(nn.Linear(3, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 64))
    layer.eval()

    def encoder(x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = heads(layer(embed(x.squeeze(1))).flatten(1)).chunk(2, dim=1)
        return mu, logvar

    def decoder(z: Tensor) -> Tensor:
        return torch.sigmoid(back(z)).clamp(1e-4, 1 - 1e-4).view(-1, 1, 8, 8)

    def elbo(x: Tensor, eps: Tensor) -> Any:
        mu, logvar = encoder(x)
        return -bce(decoder(mu + eps * torch.exp(0.5 * logvar)), x) - kl(mu, logvar)

    given = {
        "encoder": encoder, "decoder": decoder, "observations": digits(), "likelihood": "bernoulli",
        "encoder_gives": "logvar", "decoder_gives": "theta",
    }  # fmt: skip
    return Origin(given, digits(), elbo)


def levels() -> Origin:
    """Residual convolutions with group normalisation, and a discretised logistic of 8-bit levels in [0, 1]."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.GroupNorm(2, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.body(x)
            return out

    encoder = nn.Sequential(nn.Conv2d(3, 8, 2, 2), Block(8), nn.Flatten(), nn.Linear(128, 8))
    decoder = nn.Sequential(
        nn.Linear(4, 128), nn.Unflatten(1, (8, 4, 4)), Block(8), nn.Conv2d(8, 24, 3, 1, 1), nn.PixelShuffle(2)
    )
    x = colours()

    def elbo(x: Tensor, eps: Tensor) -> Any:
        mu, logvar = encoder(x / 255).chunk(2, dim=1)
        loc, log_scale = decoder(mu + eps * torch.exp(0.5 * logvar)).double().chunk(2, dim=1)
        cdf = [torch.sigmoid((x.double() / 255 + half - loc) / log_scale.exp()) for half in (1 / 510, -1 / 510)]
        upper, lower = torch.where(x == 255, 1.0, cdf[0]), torch.where(x == 0, 0.0, cdf[1])
        return torch.log(upper - lower).flatten(1).sum(1) - kl(mu, logvar)

    given = {
        "encoder": encoder, "decoder": decoder, "observations": x, "likelihood": "discretised-logistic",
        "encoder_gives": "moments",
    }  # fmt: skip
    return Origin(given, x.astype(np.float32) / 255, elbo)


class Wrapper:
    """An object that is no module, with networks inside and a variance."""

    def __init__(self) -> None:
        self.first, self.mean, self.var, self.back = (
            nn.Linear(6, 12),
            nn.Linear(12, 2),
            nn.Linear(12, 2),
            nn.Linear(2, 6),
        )

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """By names that nobody else has."""
        h = torch.relu(self.first(x))
        return {"q_m": self.mean(h), "q_v": F.softplus(self.var(h)) + 1e-3}

    def decode(self, z: Tensor) -> Tensor:
        """The mean."""
        mean: Tensor = self.back(z)
        return mean


def no_module() -> Origin:
    """An object that is no module, whose outputs have names of their own, and Student's t."""
    model = Wrapper()

    def elbo(x: Tensor, eps: Tensor) -> Any:
        out = model.encode(x)
        p = distributions.StudentT(4.0, model.decode(out["q_m"] + out["q_v"].sqrt() * eps), 0.5)
        return p.log_prob(x).sum(1) - kl(out["q_m"], torch.log(out["q_v"]))

    given = {
        "encoder": model, "observations": rows(), "encoder_gives": {"mu": "q_m", "variance": "q_v"},
        "likelihood": {"name": "student-t", "sigma": 0.5, "df": 4.0},
    }  # fmt: skip
    return Origin(given, rows(), elbo)


ORIGINS = {
    made.__name__: made
    for made in (
        tutorial, tanh, convolutions_over_time, gru, spatial_latents, heads, weight_normed, mixture_of_heads,
        channels_last, attention, levels, no_module,
    )
}  # fmt: skip


def make(name: str) -> Origin:
    """One of ORIGINS, with seeded weights."""
    torch.manual_seed(0)
    return ORIGINS[name]()
