"""A person's trained networks as encoder and decoder of a VAE: what they take and give is described, not rewritten."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vae_export import outputs
from vae_export.layout import Layout
from vae_export.outputs import Gives, Named
from vae_runtime.errors import ArgumentError
from vae_train.likelihoods import Likelihood, Mixed


class Part(nn.Module):
    """A network, or a method of a model, as a module: without what torch.compile or DataParallel wrapped around it."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        owner = call if isinstance(call, nn.Module) else getattr(call, "__self__", None)
        self.method = "" if isinstance(call, nn.Module) else _attribute(owner, call)
        if isinstance(owner, nn.Module):
            self.network = getattr(owner, "_orig_mod", owner)
            if isinstance(self.network, nn.DataParallel | nn.parallel.DistributedDataParallel):
                self.network = self.network.module
        else:
            self.held, self.function = _held(call), call

    def forward(self, x: Tensor) -> Any:
        """Whatever it returns."""
        checks = torch.distributions.Distribution._validate_args
        torch.distributions.Distribution.set_default_validate_args(False)  # they look at values, which no graph does
        try:
            if not hasattr(self, "network"):
                return self.function(x)
            return getattr(self.network, self.method)(x) if self.method else self.network(x)
        finally:
            torch.distributions.Distribution.set_default_validate_args(checks)


def _attribute(owner: Any, method: Callable[..., Any]) -> str:
    """What its owner calls a method: one that is wrapped, or a lambda, has another name itself."""
    function = getattr(method, "__func__", None)
    named = (name for each in type(owner).__mro__ for name, value in vars(each).items() if value is function)
    return str(next(named, getattr(method, "__name__", "")))


def _held(call: Callable[..., Any]) -> nn.ModuleList:
    """The modules that a function has from around it, or that are in the object whose method it is."""
    if isinstance(call, partial):
        values = [call.func, *call.args, *call.keywords.values()]
    else:
        values = [*getattr(getattr(call, "__self__", None), "__dict__", {}).values()]
    if inspect.isfunction(call):
        around = inspect.getclosurevars(call)
        values += [getattr(v, "__self__", v) for v in (*around.nonlocals.values(), *around.globals.values())]
    for value in list(values):  # one level of containers too
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return nn.ModuleList({id(value): value for value in values if isinstance(value, nn.Module)}.values())


class Encoder(nn.Module):
    """mu and logsigma of x [batch, *shape], each [batch, *latent_shape], by a person's encoder."""

    def __init__(self, part: Part, layout: Layout, gives: Gives | None, latent_scale: float) -> None:
        super().__init__()
        self.part, self.layout, self.gives, self.latent_scale = part, layout, gives, latent_scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class. Raises ArgumentError where the outputs are not understood."""
        return self.read(self.named(x))

    def read(self, named: Named) -> tuple[Tensor, Tensor]:
        """mu and logsigma of what the network gives, by our words."""
        mu, logsigma = _posterior(named)
        if self.latent_scale != 1:
            scale = torch.tensor(self.latent_scale, dtype=mu.dtype)
            mu, logsigma = mu * scale, logsigma + scale.abs().log()
        return mu, logsigma

    def named(self, x: Tensor) -> Named:
        """What the network gives for x, by our words."""
        taken = self.layout.to_network(x)
        return outputs.named(self.part(taken), self.gives, [("mu", "logsigma")], outputs.ENCODER, "encoder")


class Decoder(nn.Module):
    """The likelihood's parameters for z [batch, *latent_shape], by a person's decoder; theta where it gives that.

    likelihood: ours, in our units.
    """

    def __init__(
        self, part: Part, layout: Layout, likelihood: Likelihood, gives: Gives | None, latent_scale: float
    ) -> None:
        super().__init__()
        self.part, self.layout, self.gives, self.latent_scale = part, layout, gives, latent_scale
        self.kind, self.stacked = likelihood.name, likelihood.parameters_per_value > 1
        flags = likelihood.binary_columns.flatten().tolist() if isinstance(likelihood, Mixed) else []
        self.places = sorted(range(len(flags)), key=lambda column: flags[column])  # real columns, then binary ones

    def forward(self, z: Tensor) -> Tensor:
        """See the class. Raises ArgumentError where the outputs are not what the likelihood needs."""
        given = self.named(z)
        if self.kind == "bernoulli":
            return self.layout.to_ours(self._needed(given, "logits", "theta"))
        if self.kind == "mixed":
            return self._mixed(given)
        loc, spread = self._moments(given)
        if self.stacked:
            assert spread is not None
            return torch.cat([loc, spread], dim=1)
        return loc

    def named(self, z: Tensor) -> Named:
        """What the network gives for z, by our words."""
        if self.latent_scale != 1:
            z = z / torch.tensor(self.latent_scale, dtype=z.dtype)
        usual: dict[str, list[tuple[str, ...]]] = {
            "bernoulli": [("logits",)],
            "mixed": [("parameters",), ("loc", "logits")],
            "heteroscedastic-gaussian": [("parameters",), ("loc", "logsigma")],
            "discretised-logistic": [("parameters",), ("loc", "log_scale")],
        }
        order = usual.get(self.kind, [("loc",)])
        return outputs.named(self.part(z), self.gives, order, outputs.DECODER, "decoder")

    def _needed(self, given: Named, *words: str) -> Tensor:
        found = next((given[word] for word in words if word in given), None)
        if found is None:
            todo = f'say decoder_gives="{words[0]}" if that is what it is, or choose another likelihood'
            raise ArgumentError(f"decoder gives no {' or '.join(words)}", f"{self.kind} needs it", todo)
        return found

    def _moments(self, given: Named) -> tuple[Tensor, Tensor | None]:
        """loc and the logarithm of the spread [batch, *shape] in our units; no spread where the likelihood has it."""
        layout = self.layout
        if self.stacked and (stacked := given.get("parameters", given.get("moments"))) is not None:
            loc, spread = stacked.chunk(2, dim=layout.channel_axis(stacked))
            second = "logvar" if "moments" in given else _SECOND[self.kind]
            given = {"loc": loc, second: spread}
        loc = layout.to_ours(self._needed(given, "loc", "pixels"))
        loc = layout.unscaled(loc) if "loc" in given else loc
        if not self.stacked:
            self._refuse_spread(given)
            return loc, None
        if self.kind == "discretised-logistic":
            log = given["scale"].log() if "scale" in given else self._needed(given, "log_scale")
        else:
            self._needed(given, *outputs.SPREADS)
            log = _log(given)
        log = layout.to_ours(log)
        return loc, log + layout.log_std(log) if layout.scales and "loc" in given else log

    def _refuse_spread(self, given: Named) -> None:
        """Raise ArgumentError where the decoder has a spread of its own, and nobody says that it goes for nothing."""
        said = outputs.said_of(self.gives, outputs.DECODER) or tuple(given)
        if spread := next((word for word in said if word in (*outputs.SPREADS, "log_scale")), None):
            todo = 'say decoder_gives="loc" to leave it out, or likelihood="heteroscedastic-gaussian" if it was trained'
            raise ArgumentError(f"decoder gives {spread} too", f"a {self.kind} likelihood has its own", todo)

    def _mixed(self, given: Named) -> Tensor:
        if "parameters" in given:
            return self.layout.to_ours(given["parameters"])
        loc, logits = self._needed(given, "loc"), self._needed(given, "logits")
        axis = self.layout.channel_axis(loc)
        at = torch.tensor([self.places.index(column) for column in range(len(self.places))])
        return self.layout.to_ours(torch.cat([loc, logits], dim=axis).index_select(axis, at))


_SECOND = {"heteroscedastic-gaussian": "logsigma", "discretised-logistic": "log_scale"}


def _posterior(given: Named) -> tuple[Tensor, Tensor]:
    """mu and logsigma of what an encoder gives."""
    if "moments" in given:
        mu, logvar = given["moments"].chunk(2, dim=1)
        return mu, 0.5 * logvar
    if "mu" not in given or not set(given) & set(outputs.SPREADS):
        lacks = "mu" if "mu" not in given else "spread"
        todo = f'say what it gives, such as encoder_gives="mu, logvar": {", ".join(outputs.ENCODER)}'
        raise ArgumentError(f"encoder gives no {lacks}", f"it gives {', '.join(given)}", todo)
    return given["mu"], _log(given)


def _log(given: Named) -> Tensor:
    """log sigma of whatever says how wide a Gaussian is."""
    word = next(word for word in outputs.SPREADS if word in given)
    spread = given[word]
    if word in ("sigma", "scale", "variance"):
        spread = spread.log()
    return 0.5 * spread if word in ("logvar", "variance") else spread
