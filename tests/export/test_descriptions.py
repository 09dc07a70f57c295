"""What is said of networks from elsewhere is held against them: a wrong word is refused, or warned of."""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae_export
from support import elsewhere
from vae_export import ends, exporter
from vae_runtime import VAE, noise
from vae_runtime.errors import ArgumentError, InputError

Given = dict[str, Any]


@pytest.fixture(scope="module")
def trained() -> elsewhere.Tutorial:
    """The perceptron of log variance and theta, after some hundred steps on digits."""
    torch.manual_seed(0)
    model, x = elsewhere.Tutorial(), torch.from_numpy(elsewhere.digits(1000)).flatten(1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        mu, logvar = model.encode(x)
        theta = model.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))
        loss = (elsewhere.bce(theta, x) + elsewhere.kl(mu, logvar)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture
def given(trained: elsewhere.Tutorial) -> Given:
    """It, described rightly."""
    return {
        "encoder": trained.encode, "decoder": trained.decode, "observations": elsewhere.digits().reshape(-1, 64),
        "shape": (1, 8, 8), "likelihood": "bernoulli", "encoder_gives": "logvar", "decoder_gives": "theta",
    }  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_published(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the description, trace, graphs and gate, has tests of its own: these wait for none of it."""
    monkeypatch.setattr(exporter, "export_vae", lambda *given, **told: given[0])


def softplus(given: Given) -> None:
    """An encoder whose second output is positive, and called a log variance."""
    encode = given["encoder"]
    given["encoder"] = lambda x: (encode(x)[0], F.softplus(encode(x)[1]))


def logits(given: Given) -> None:
    """A decoder without its sigmoid."""
    model = given["decoder"].__self__
    given["decoder"] = nn.Sequential(model.fc3, nn.ReLU(), model.fc4)


def in_tanh(given: Given) -> None:
    """A decoder of pixels in [-1, 1], for a network that is said to take [0, 1]."""
    logits(given)
    given |= {"decoder": nn.Sequential(given["decoder"], nn.Tanh()), "decoder_gives": None}
    given["likelihood"] = {"name": "gaussian", "sigma": 0.1}


def scaled(given: Given) -> None:
    """A network that takes [-1, 1]."""
    given["preprocessing"] = {"mean": 0.5, "std": 0.5}


def scaled_in_sigmoid(given: Given) -> None:
    """A network that takes [-1, 1] and gives pixels in [0, 1], which are said to be what it takes."""
    scaled(given)
    given |= {"likelihood": {"name": "gaussian", "sigma": 0.1}, "decoder_gives": "loc"}
    given["observations"] = 2 * given["observations"] - 1


def last_channels(given: Given) -> None:
    """Images whose channels come last, and nothing said of that."""
    given |= {"observations": elsewhere.digits().reshape(-1, 8, 8, 1), "shape": None}


def first_channels(given: Given) -> None:
    """Images whose channels come first, and are said to come last."""
    given |= {"observations": elsewhere.digits(), "shape": None, "axes": "HWC"}


def one_tensor(given: Given) -> None:
    """An encoder of one tensor."""
    encode = given["encoder"]
    given["encoder"] = lambda x: torch.cat(encode(x), dim=1)


def other_names(given: Given) -> None:
    """An encoder whose outputs have names, none of which is the word."""
    encode = given["encoder"]
    given |= {"encoder": lambda x: dict(zip(("mu", "std"), encode(x), strict=True)), "encoder_gives": "logvar"}


def with_spread(given: Given) -> None:
    """A decoder of a distribution, for a likelihood whose sigma is stated."""
    decode = given["decoder"]
    given |= {"decoder": lambda z: torch.distributions.Normal(decode(z), 1 + decode(z)), "decoder_gives": None}
    given["likelihood"] = {"name": "gaussian", "sigma": 0.1}


def said(**words: Any) -> Callable[[Given], None]:
    """Other words."""
    return lambda given: given.update(words)


def times(factor: float, offset: float = 0.0) -> Callable[[Given], None]:
    """Other observations."""
    return lambda given: given.update(observations=given["observations"] * np.float32(factor) + np.float32(offset))


def both(*changes: Callable[[Given], None]) -> Callable[[Given], None]:
    """One after the other."""
    return lambda given: [change(given) for change in changes] and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (said(encoder_gives=None), r"second output has no name: as logvar .* say encoder_gives=\"logvar\""),
        (said(decoder_gives="logits"), r"logits that end in sigmoid; say decoder_gives=\"theta\""),
        (logits, r"theta that ends in linear, not in a sigmoid; say decoder_gives=\"logits\""),
        (softplus, r"encoder's logvar is never below 0: it ends in softplus; say encoder_gives=\"sigma\""),
        (said(encoder_gives="sigma"), r"encoder's sigma is not above 0.* say encoder_gives=\"logvar\""),
        (in_tanh, r"ends in tanh.* add preprocessing={\"mean\": 0.5, \"std\": 0.5}"),
        (times(2, -1), r"pixels outside of \[0, 1\]: they lie in \[-1, 1\]; add preprocessing="),
        (times(255), r"pixels outside of \[0, 1\]: .*; give levels as uint8, or divide them by 255"),
        (scaled, r"not below 0 anywhere.*: the network takes \[-1, 1\]; give them as the network takes them"),
        (scaled_in_sigmoid, r"loc that ends in sigmoid.* say decoder_gives=\"pixels\""),
        (first_channels, r"channels come first: .* 8 channels by axes='HWC'; leave axes out"),
        (said(shape=(1, 8, 8), axes="CWH"), r"axes not understood: CWH; say 'HWC' where channels come last"),
        (last_channels, r"channels come last: .*; add axes=\"HWC\""),
        (one_tensor, r"encoder gives one tensor: .*\[64, 8\]; say encoder_gives=\"moments\""),
        (other_names, r"encoder gives no logvar by its names: mu, std; say encoder_gives={\"logvar\": "),
        (said(encoder_gives="log variance"), r"encoder_gives not known: log variance; say mu, logsigma, logvar"),
        (said(likelihood="normal"), r"likelihood not known: normal; give one of bernoulli"),
        (said(likelihood=None), r"no likelihood: .* such as \"bernoulli\""),
        (said(likelihood="gaussian"), r"decoder gives no loc or pixels: gaussian needs it; say decoder_gives=\"loc\""),
        (said(likelihood={"name": "gaussian", "sigma": -1}), r"sigma out of range: -1; give positive numbers"),
        (
            said(likelihood={"name": "student-t", "sigma": 1, "df": 1}),
            r"likelihood out of range: df 1; a bundle's is 2",
        ),
        (said(likelihood={"name": "bernoulli", "sigma": 1}), r"parameter of a bernoulli .*: sigma; leave it out"),
        (said(shape=(1, 28, 28)), r"shapes do not go together: observations of shape \[64\] and shape=\(1, 28, 28\)"),
        (said(latent_scale=0), r"latent_scale out of range: 0; give by what number z is multiplied"),
        (with_spread, r"decoder gives scale too: a gaussian .*; say decoder_gives=\"loc\" to leave it out, or lik"),
        (said(likelihood="mse"), r"likelihood not known: mse; .* squared errors are gaussian"),
        (said(likelihood=torch.distributions.Bernoulli), r"likelihood not known: <class .*Bernoulli'>; give one of"),
        (said(encoder=elsewhere.Tutorial, decoder=None), r"a class, not a network: Tutorial; make one, and load"),
        (said(encoder=elsewhere.Tutorial().state_dict()), r"weights, not a network: OrderedDict; .* load_state_dict"),
        (said(encoder=elsewhere.Tutorial().double().encode), r"has weights of float64: give model\.float\(\)"),
        (said(decoder=None, encoder=nn.Linear(64, 8)), r"no decoder: Linear; give encoder and decoder, or one object"),
    ],
)
def test_a_wrong_description_is_refused(given: Given, change: Callable[[Given], None], message: str) -> None:
    """With the word that would be right."""
    change(given)
    with pytest.raises(ArgumentError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore", vae_export.DescriptionWarning)
        vae_export.export(**given, out="unused")


def test_few_observations_are_refused(given: Given) -> None:
    """The gate takes 64."""
    given["observations"] = given["observations"][:63]
    with pytest.raises(InputError, match="too few observations: 63; give 64 or more"):
        vae_export.export(**given, out="unused")


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        ("x_test.npy", "no array of observations: str; give the numbers"),
        ([[1.0], [1.0, 2.0]], r"observations of different shapes: .*; give \[n, \*shape\]"),
        (torch.utils.data.TensorDataset(torch.zeros(64, 64)), r"TensorDataset; .* torch.stack\(\[x for x, "),
        (np.ones((70, 64), np.uint8), r"levels that are all 0 or 1: .*; give binary images as booleans or floats"),
        (np.where(np.arange(70)[:, None] == 3, np.nan, np.ones((70, 64))), "not finite: number 3, counted from 0"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(given: Given, observations: Any, message: str) -> None:
    """By its kind, or its row."""
    given["observations"] = observations
    with pytest.raises(InputError, match=message):
        vae_export.export(**given, out="unused")


class Renamed(elsewhere.Tutorial):
    """A model whose method has another name than its attribute, as some decorators leave it."""

    decode = lambda self, z: elsewhere.Tutorial.decode(self, z)  # noqa: E731


def test_a_method_of_another_name_is_called(given: Given) -> None:
    """By the attribute that it is."""
    model = Renamed()
    model.load_state_dict(given["encoder"].__self__.state_dict())
    vae = vae_export.export(**given | {"encoder": model, "decoder": None}, out="unused")
    x = torch.from_numpy(given["observations"][:2])
    z = torch.ones(2, 4)
    torch.testing.assert_close(vae.decoder(z).flatten(1).sigmoid(), given["decoder"](z))
    torch.testing.assert_close(vae.encoder(x)[0], given["encoder"](x)[0])


def test_a_functions_networks_are_set_to_rest(given: Given) -> None:
    """Those that it has from around it, in training mode before and after."""
    model, drop = given["encoder"].__self__, nn.Dropout(0.5).train()
    given["decoder"] = lambda z: model.decode(drop(z))
    vae = vae_export.export(**given, out="unused")
    z = torch.ones(2, 4)
    torch.testing.assert_close(vae.decoder(z).flatten(1).sigmoid(), model.decode(z))
    assert drop.training


@pytest.mark.parametrize(("is_one", "called"), [("logvar", "logsigma"), ("logsigma", "logvar")])
def test_a_spread_of_another_name_is_warned_of(given: Given, is_one: str, called: str) -> None:
    """Nothing but the ELBO tells a log variance from a log sigma: that of the other reading is better, and said."""
    encode = given["encoder"]
    if is_one == "logsigma":
        given["encoder"] = lambda x: (encode(x)[0], 0.5 * encode(x)[1])
    given["encoder_gives"] = called
    with pytest.warns(vae_export.DescriptionWarning, match=f"encoder_gives='{called}' may be wrong: as {is_one} its"):
        vae_export.export(**given, out="unused")


def test_a_right_description_is_taken_without_a_word(given: Given) -> None:
    """Neither of a trained network nor of one with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_export.export(**given, out="unused")
        torch.manual_seed(1)
        random = elsewhere.Tutorial()
        vae_export.export(**{**given, "encoder": random.encode, "decoder": random.decode}, out="unused")


def colour_vae(images: Tensor) -> nn.Module:
    """A linear VAE of such images, after some hundred steps."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(192, 8), nn.Linear(4, 192)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
    for _ in range(200):
        mu, logvar = encoder(images.flatten(1)).chunk(2, dim=1)
        loc = decoder(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))
        loss = ((loc - images.flatten(1)).square().sum(1) / (2 * 0.1**2) + elsewhere.kl(mu, logvar)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model = nn.Module()
    model.encode = lambda x: encoder(x.flatten(1))
    model.decode = lambda z: decoder(z).unflatten(1, (3, 8, 8))
    return model


def test_the_other_order_of_colours_is_warned_of() -> None:
    """A network that was trained on blue, green, red is given levels of files, which are red, green, blue."""
    levels = elsewhere.colours().astype(np.float32)
    levels = (levels * np.float32([1, 0.6, 0.2])[:, None, None]).astype(np.uint8)
    model = colour_vae(torch.from_numpy(np.ascontiguousarray(levels[:, ::-1])) / 255)
    given = {"observations": levels, "likelihood": {"name": "gaussian", "sigma": 0.1}, "encoder_gives": "moments"}
    with pytest.warns(vae_export.DescriptionWarning, match="the order of colours may be wrong: the other way round"):
        vae_export.export(model, **given, out="unused")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_export.export(model, **given, preprocessing={"colours": "BGR"}, out="unused")


def test_a_sigma_that_is_not_stated_is_fitted_and_said(given: Given) -> None:
    """It is the root of the mean square that the decoder leaves."""
    given |= {"likelihood": "gaussian", "decoder_gives": "loc"}
    with pytest.warns(vae_export.DescriptionWarning, match=r"sigma 0\.\d+ was fitted to the observations"):
        vae = vae_export.export(**given, out="unused")
    x = torch.from_numpy(given["observations"])
    left = given["decoder"](given["encoder"](x)[0]) - x
    torch.testing.assert_close(vae.likelihood.logsigma.exp(), left.square().mean().sqrt())


def test_a_sigma_that_is_said_is_one_that_can_be_stated(given: Given) -> None:
    """In the network's units, where it takes others than ours: stated again, it gives the same likelihood."""
    logits(given)
    given |= {"preprocessing": {"mean": 0.5, "std": 0.5}, "observations": 2 * given["observations"] - 1}
    given |= {"likelihood": "gaussian", "decoder_gives": "loc"}
    with pytest.warns(vae_export.DescriptionWarning, match="sigma .* was fitted") as said_of_it:
        fitted = vae_export.export(**given, out="unused")
    sigma = next(float(str(each.message).split()[1]) for each in said_of_it if "was fitted" in str(each.message))
    given["likelihood"] = {"name": "gaussian", "sigma": sigma}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vae_export.DescriptionWarning)  # it was trained for another likelihood
        stated = vae_export.export(**given, out="unused")
    torch.testing.assert_close(stated.likelihood.logsigma, fitted.likelihood.logsigma, atol=1e-3, rtol=0)


def test_a_spread_that_nobody_wants_is_left_out(given: Given) -> None:
    """Where that is said."""
    with_spread(given)
    given |= {"decoder_gives": "loc"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vae_export.DescriptionWarning)  # it was trained for another likelihood
        assert vae_export.export(**given, out="unused").decoder(torch.ones(2, 4)).shape == (2, 1, 8, 8)


def test_a_decoder_of_other_axes_is_refused() -> None:
    """Windows [n, C, T], and a decoder of [n, T, C]: as many numbers, and others."""
    windows = np.random.default_rng(0).normal(size=(64, 2, 8)).astype(np.float32)
    encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), nn.Linear(3, 16)
    given = {"observations": windows, "likelihood": {"name": "gaussian", "sigma": 1}, "encoder_gives": "moments"}
    with pytest.raises(ArgumentError, match=r"does not fit: \[8, 2\] for an observation of shape \[2, 8\]"):
        vae_export.export(encoder, nn.Sequential(decoder, nn.Unflatten(1, (8, 2))), **given, out="unused")
    vae_export.export(encoder, nn.Sequential(decoder, nn.Unflatten(1, (2, 8))), **given, out="unused")


@pytest.mark.parametrize("sides", [(4, 4, 6), (96,)])
@torch.no_grad()
def test_a_decoder_may_be_flat_where_the_encoder_is_not(sides: tuple[int, ...]) -> None:
    """And the other way round: where channels are is told from what it gives."""
    rng = np.random.default_rng(0)
    taken = rng.random((64, 4, 4, 3) if len(sides) == 1 else (64, 48)).astype(np.float32)
    encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 6)), nn.Sequential(nn.Linear(3, 96))
    decoder.append(nn.Unflatten(1, sides))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae = vae_export.export(
            encoder, decoder, observations=taken, shape=(3, 4, 4), axes="HWC", likelihood="heteroscedastic-gaussian",
            encoder_gives="moments", out="unused",
        )  # fmt: skip
    z = torch.ones(2, 3)
    loc = decoder(z)[..., :3] if len(sides) == 3 else decoder(z)[:, :48].reshape(-1, 4, 4, 3)
    torch.testing.assert_close(vae.decoder(z)[:, :3], loc.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "theta",
    [
        lambda h: torch.sigmoid(h).clamp(1e-3, 0.9).view(-1, 2, 3),
        lambda h: torch.sigmoid(h).clamp(-1, 2),
        lambda h: torch.sigmoid(h).clamp_(0, 1),
        lambda h: h.sigmoid_().clamp_(min=0.2),
    ],
)
@torch.no_grad()
def test_the_sigmoid_that_is_cut_off_leaves_the_logits(theta: Callable[[Tensor], Tensor]) -> None:
    """Clamped where theta was, though the operators write in place."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 6)

        def forward(self, z: Tensor) -> Tensor:
            return theta(self.linear(z))

    torch.manual_seed(0)
    decoder, z = Decoder(), 4 * torch.randn(9, 3)
    cut = ends.without_sigmoid(decoder, z[:2], "z")
    assert cut is not None
    torch.testing.assert_close(cut(z).sigmoid(), decoder(z), atol=1e-6, rtol=0)


def test_columns_that_are_not_scaled_are_warned_of() -> None:
    """Networks of scaled columns are given these as they are measured."""
    scaled = np.random.default_rng(0).normal(size=(200, 1)).repeat(2, axis=1).astype(np.float32)
    encoder, decoder = (lambda x: (x[:, :1], x[:, :1] * 0 - 2.65)), nn.Linear(1, 2, bias=False)
    nn.init.ones_(decoder.weight)
    given = {"likelihood": {"name": "gaussian", "sigma": 0.1}, "encoder_gives": "logsigma"}
    given["preprocessing"] = {"columns": ["pulse", "pressure"], "mean": [70, 120], "std": [9, 15]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_export.export(encoder, decoder, observations=scaled, **given, out="unused")
    with pytest.warns(vae_export.DescriptionWarning, match="columns may not be scaled yet.*: scaled their ELBO is -"):
        vae_export.export(encoder, decoder, observations=scaled * [9, 15] + [70, 120], **given, out="unused")


def test_another_range_of_pixels_is_warned_of() -> None:
    """A network that was trained on [-1, 1] is given levels, and nothing is said of that."""
    levels = elsewhere.colours()
    model = colour_vae(torch.from_numpy(levels) / 127.5 - 1)
    given = {"observations": levels, "likelihood": {"name": "gaussian", "sigma": 0.1}, "encoder_gives": "moments"}
    with pytest.warns(
        vae_export.DescriptionWarning, match=r"the range of the pixels may be wrong: of pixels in \[-1, 1\]"
    ):
        vae_export.export(model, **given, out="unused")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_export.export(model, **given, preprocessing={"mean": 0.5, "std": 0.5}, out="unused")


def test_pixels_that_end_in_tanh_are_refused(given: Given) -> None:
    """Of a network that takes [-1, 1] they are loc."""
    logits(given)
    given |= {"decoder": nn.Sequential(given["decoder"], nn.Tanh()), "decoder_gives": "pixels"}
    given |= {"likelihood": {"name": "gaussian", "sigma": 0.1}, "observations": 2 * given["observations"] - 1}
    with pytest.raises(ArgumentError, match=r"pixels that end in tanh, within \[-1, 1\]; say decoder_gives=\"loc\""):
        vae_export.export(**given, preprocessing={"mean": 0.5, "std": 0.5}, out="unused")


def test_with_a_fitted_sigma_nothing_tells_the_spread(given: Given) -> None:
    """So it must be said, and is taken as it is said."""
    given |= {"likelihood": "gaussian", "decoder_gives": "loc", "encoder_gives": None}
    with pytest.warns(vae_export.DescriptionWarning), pytest.raises(ArgumentError, match="with a fitted sigma nothing"):
        vae_export.export(**given, out="unused")
    with pytest.warns(vae_export.DescriptionWarning) as said:
        vae_export.export(**{**given, "encoder_gives": "logsigma"}, out="unused")
    assert [str(one.message)[:5] for one in said] == ["sigma"]


def test_a_partial_functions_modules_are_at_rest(given: Given) -> None:
    """Its BatchNorm keeps its statistics."""
    norm = nn.BatchNorm1d(64).train()

    def encode(layers: list[nn.Module], x: Tensor) -> Any:
        return layers[1](layers[0](x))

    inner = given["encoder"]
    module = nn.Module()
    module.forward = inner
    given["encoder"] = partial(encode, [norm, module])
    before = norm.running_mean.clone()
    vae_export.export(**given, out="unused")
    assert torch.equal(norm.running_mean, before)
    assert norm.training


def test_flat_images_are_asked_about(given: Given) -> None:
    """Rows of 64 numbers in [0, 1] may be images."""
    given["shape"] = None
    with pytest.warns(vae_export.DescriptionWarning, match=r"rows of 64 numbers; of images, add shape=\(1, 8, 8\)"):
        vae_export.export(**given, out="unused")


@torch.no_grad()
def test_rows_of_0_and_1_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a Bernoulli likelihood, whose log p(x|z) the runtime gives as torch does; others are refused."""
    monkeypatch.undo()
    torch.manual_seed(0)
    encoder, decoder, out = nn.Linear(6, 4), nn.Linear(2, 6), tmp_path / "bundle"
    rows = np.random.default_rng(0).random((64, 6)).astype(np.float32)
    given = {"likelihood": "bernoulli", "encoder_gives": "moments", "out": out}
    with pytest.raises(InputError, match="a row of other values than 0 and 1: number 0, counted from 0; choose"):
        vae_export.export(encoder, decoder, observations=rows, **given)
    x = (rows < 0.5).astype(np.float32)
    vae = VAE.load(vae_export.export(encoder, decoder, observations=rows < 0.5, **given).path)
    mu, logvar = encoder(torch.from_numpy(x)).chunk(2, dim=1)
    eps = torch.from_numpy(noise.normal(0, noise.POSTERIOR, noise.index(x), 2))
    logits = decoder(mu + eps * torch.exp(0.5 * logvar))
    expected = -F.binary_cross_entropy_with_logits(logits, torch.from_numpy(x), reduction="none").sum(1)
    np.testing.assert_allclose(vae.terms(x).reconstruction, expected, rtol=1e-5)


def test_peoples_own_words_will_do(given: Given) -> None:
    """log_var for logvar, probs for theta."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_export.export(**{**given, "encoder_gives": "log_var", "decoder_gives": "probs"}, out="unused")


def test_spreads_that_are_clamped_are_said() -> None:
    """Figures are then others than the network's own."""
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 12)
    given = {"encoder_gives": "moments", "observations": elsewhere.rows(), "likelihood": "heteroscedastic-gaussian"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_export.export(encoder, decoder, **given, out="unused")
    with torch.no_grad():
        decoder.bias[6:] -= 20
    with pytest.warns(
        vae_export.DescriptionWarning, match=r"not the network's own: 100.00% of them lie outside of \[-6"
    ):
        vae_export.export(encoder, decoder, **given, out="unused")


def test_the_networks_are_left_as_they_were(given: Given) -> None:
    """In training mode, and with their own weights."""
    model = given["encoder"].__self__.train()
    before = copy.deepcopy(model.state_dict())
    vae_export.export(**given, out="unused")
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()


@pytest.mark.slow
def test_a_wrong_word_publishes_nothing(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bundle, and no folder of one."""
    monkeypatch.undo()
    with pytest.raises(ArgumentError):
        vae_export.export(**{**given, "decoder_gives": "logits"}, out=tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
