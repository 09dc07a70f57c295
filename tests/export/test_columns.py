"""Columns said as data: scikit-learn's scalers translated, or named, and done by the device."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import preprocessing as sklearn
from sklearn.pipeline import make_pipeline

import vae_export
from vae_export import columns
from vae_export.columns import Columns
from vae_runtime import ArgumentError, records
from vae_runtime.manifest import Preprocessing
from vae_runtime.observation import Observation
from vae_runtime.vae import VAE as RuntimeVAE
from vae_runtime.vectors import Scaling

RAW = np.random.default_rng(6).normal([70, -3e4, 0.002], [9, 50, 0.0005], (80, 3))
ROWS, WINDOWS = Observation("vector", (3,), None), Observation("series", (3, 8), None)
NAMES = ("pulse", "pressure", "flow")


def of_a_frame(scaler: Any) -> Any:
    """The scaler, as if it had been fitted to a data frame with these columns: so scikit-learn keeps their names."""
    scaler.fit(RAW).feature_names_in_ = np.array(NAMES, object)
    return scaler


@pytest.mark.parametrize(
    "scaler",
    [
        sklearn.StandardScaler(),
        sklearn.StandardScaler(with_mean=False),
        sklearn.StandardScaler(with_std=False),
        sklearn.MinMaxScaler(),
        sklearn.MinMaxScaler((-1, 1)),
        sklearn.MaxAbsScaler(),
        sklearn.RobustScaler(),
        sklearn.RobustScaler(with_centering=False, with_scaling=False),
    ],
    ids=repr,
)
def test_the_device_scales_as_scikit_learn_does(scaler: Any):
    """What the runtime makes of measured rows, with what the manifest holds, is what the scaler makes of them."""
    found = columns.of(scaler.fit(RAW)).entry(ROWS)
    known = records.parse(Preprocessing, found).columns
    scaling = Scaling.of(known, ROWS)
    x = RAW.astype(np.float32) if scaling is None else scaling.standardise(RAW)
    np.testing.assert_allclose(x, scaler.transform(RAW), rtol=1e-5, atol=1e-5)


def test_a_scaler_of_a_data_frame_knows_the_names():
    """Else columns are numbered, or named beside the scaler."""
    assert columns.of(of_a_frame(sklearn.StandardScaler())).columns == NAMES
    scaler = sklearn.MinMaxScaler().fit(RAW)
    assert [column["name"] for column in columns.of(scaler).entry(ROWS)["columns"]] == [
        "column 0",
        "column 1",
        "column 2",
    ]
    named = columns.of({"scaler": scaler, "columns": NAMES})
    assert (named.columns, named.mean) == (NAMES, columns.of(scaler).mean)


def test_the_manifest_says_only_what_is_not_usual():
    """Names, mean and scale of each column; of series how rows are cut into windows, where that is said."""
    assert Columns().entry(ROWS) == {}
    assert columns.of({"columns": NAMES, "mean": 1}).entry(ROWS) == {
        "columns": [{"name": name, "mean": 1.0, "scale": 1.0} for name in NAMES]
    }
    series = columns.of({"std": [1, 2, 3], "stride": 8, "time": "at", "interval": 30.0}).entry(WINDOWS)
    assert [column["scale"] for column in series["columns"]] == [1, 2, 3]
    assert series["windows"] == {"stride": 8, "time": "at", "interval": 30.0}
    assert columns.of({"time": "at"}).entry(WINDOWS) == {"windows": {"stride": 2, "time": "at"}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (sklearn.QuantileTransformer(), ["QuantileTransformer", "mean and std"]),
        (sklearn.MinMaxScaler(clip=True).fit(RAW), ["MinMaxScaler(clip=True)"]),
        (make_pipeline(sklearn.StandardScaler()), ["Pipeline", "mean and std"]),
        (sklearn.StandardScaler(), ["not fitted: StandardScaler"]),
        (np.log1p, ["ufunc"]),
        ({"scaler": sklearn.StandardScaler().fit(RAW), "mean": 3}, ["mean said twice", "scaler"]),
        ({"scale": 3}, ["scale", "columns, mean, std, stride, time, interval, scaler"]),
        ({"columns": "pulse"}, ["pulse", "list of names"]),
        ({"columns": ["pulse", "pulse"]}, ["comes twice"]),
        ({"columns": ["pulse"]}, ["1 for rows of shape [3]"]),
        ({"std": [1, 2]}, ["std of another number: 2"]),
        ({"std": [1, 0, 1]}, ["not positive"]),
        ({"stride": 2}, ["stride of rows"]),
    ],
)
def test_what_cannot_be_translated_is_named(given: Any, words: list[str]):
    """A scaler that does something else, one that was not fitted, an unknown word, numbers that do not fit."""
    with pytest.raises(ArgumentError) as caught:
        columns.of(given).entry(ROWS)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("given", "observation", "words"),
    [
        ({"stride": 0}, WINDOWS, ["stride is 0"]),
        ({"time": "at", "interval": -1.0}, WINDOWS, ["interval is -1"]),
        ({}, Observation.image((3, 8, 8)), ["for an image"]),
    ],
)
def test_windows_that_cannot_be_are_refused(given: dict[str, Any], observation: Observation, words: list[str]):
    """A stride or an interval that is none, and columns of images."""
    with pytest.raises(ArgumentError) as caught:
        columns.of(given).entry(observation)
    assert all(word in str(caught.value) for word in words)


class Small(torch.nn.Module):
    """Networks of three columns that a person has trained on scaled values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mu and log sigma; z is all but mu."""
        mu, logsigma = self.body(x).chunk(2, dim=1)
        return mu, logsigma - 12

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """E[x|z], scaled."""
        return self.head(z)


@pytest.mark.filterwarnings("ignore::vae_export.DescriptionWarning")  # its log sigma might as well be a log variance
def test_a_bundle_of_rows_takes_them_as_they_are_measured(tmp_path: Path):
    """A table whose columns lie in another order; densities are per unit of the columns, and not of scaled values."""
    scaler, network = sklearn.StandardScaler().fit(RAW), Small()
    taken = torch.tensor(scaler.transform(RAW), dtype=torch.float32)
    vae_export.export(
        network, observations=taken, likelihood={"name": "gaussian", "sigma": 0.5}, out=tmp_path / "bundle",
        encoder_gives="mu, logsigma", preprocessing={"scaler": scaler, "columns": NAMES},
    )  # fmt: skip
    table = tmp_path / "rows.csv"
    np.savetxt(table, RAW[:, ::-1], fmt="%.17g", delimiter=",", header=",".join(NAMES[::-1]), comments="")
    vae = RuntimeVAE.load(tmp_path / "bundle")
    x = vae.read([table]).load().x
    mu, _ = vae.encode(x)
    with torch.no_grad():
        np.testing.assert_allclose(mu, network.encode(taken)[0].numpy(), atol=1e-5)
        loc = network.decode(torch.from_numpy(mu))
    np.testing.assert_allclose(vae.decode(mu), scaler.inverse_transform(loc.numpy()), rtol=1e-5)
    scaled = torch.distributions.Normal(loc, 0.5).log_prob(taken).sum(dim=1).numpy()
    in_units = scaled - math.fsum(np.log(scaler.scale_))
    np.testing.assert_allclose(vae.terms(x).reconstruction, in_units, rtol=1e-3)


class OverTime(torch.nn.Module):
    """The same of windows [3, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = torch.nn.Conv1d(3, 4, 8), torch.nn.ConvTranspose1d(2, 3, 8)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mu and log sigma, [batch, 2, 1]."""
        mu, logsigma = self.body(x).chunk(2, dim=1)
        return mu, logsigma

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """E[x|z], scaled."""
        return self.head(z)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vae_export.DescriptionWarning")
def test_a_bundle_of_series_cuts_and_scales_a_table(tmp_path: Path):
    """Windows of the stride that was said, none of which crosses a gap in time, scaled channel by channel."""
    raw = np.random.default_rng(8).normal([70, -3e4, 0.002], [9, 50, 0.0005], (600, 3))
    scaler, network = sklearn.RobustScaler().fit(raw), OverTime()
    scaled = torch.tensor(scaler.transform(raw), dtype=torch.float32)
    taken = scaled.unfold(0, 8, 8)  # [75, 3, 8]
    how = {"scaler": scaler, "columns": NAMES, "stride": 8, "time": "at", "interval": 30.0}
    vae_export.export(
        network, observations=taken, likelihood={"name": "gaussian", "sigma": 0.5}, out=tmp_path / "bundle",
        encoder_gives="mu, logsigma", preprocessing=how,
    )  # fmt: skip
    at = 30.0 * np.arange(600) + np.where(np.arange(600) >= 100, 1000, 0)  # a gap within the thirteenth window
    table = tmp_path / "rows.csv"
    np.savetxt(
        table, np.column_stack([at, raw]), fmt="%.17g", delimiter=",", header=f"at,{','.join(NAMES)}", comments=""
    )
    vae = RuntimeVAE.load(tmp_path / "bundle")
    x = vae.read([table]).load().x
    mu, _ = vae.encode(x)
    expected = torch.cat([scaled[:100].unfold(0, 8, 8), scaled[100:].unfold(0, 8, 8)])
    with torch.no_grad():
        np.testing.assert_allclose(mu, network.encode(expected)[0].numpy(), atol=1e-5)
