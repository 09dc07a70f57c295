"""Series to train on: rows in order become windows by the runtime's own code, and have its scores on the device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vae_export
from support.commands import Command
from vae_runtime import VAE, noise
from vae_runtime.errors import ArgumentError, InputError
from vae_train import bounds, data, networks, report, run_folder, train
from vae_train.cli import main
from vae_train.config import PRESETS, Config, Place, preset, series
from vae_train.series import blocks

WINDOW = 10


def rows(n: int = 600) -> np.ndarray:
    """Two channels in their units, one behind the other, float64 [n, 2]."""
    random = np.random.default_rng(5)
    phase = np.arange(n) / 7
    return np.column_stack([np.sin(phase), np.cos(phase)] + 0.1 * random.normal(size=(2, n))) * [4, 300] + [20, 1000]


def written(path: Path, values: np.ndarray, first: int = 0, step: int = 30, odd: range = range(0)) -> Path:
    """The rows as a table beside their times, a name, and a state that is 1 in the odd ones."""
    lines = ["time,room,flow,heat,state"]
    for i, (flow, heat) in enumerate(values.tolist()):
        lines.append(f"{first + step * i},hall,{flow!r},{heat!r},{int(i in odd)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def load(path: Path, window: int = WINDOW, **settings: Any) -> tuple[data.Data, list[str]]:
    """The windows, and what is said of them; where nothing else is asked for, the last tenth of the rows is kept."""
    said: list[str] = []
    config = PRESETS["series"].replace(dataset=str(path), window=window, **{"held_out": "last"} | settings)
    return data.load(config, Path("absent"), False, pytest.fail, said.append), said


def restored(found: data.Data, part: str) -> np.ndarray:
    """The windows in their units again, [n, C, T]."""
    mean, scale = (
        np.array([column[name] for column in found.preprocessing["columns"]])[:, None] for name in ("mean", "scale")
    )
    return np.asarray(getattr(found, part).double().numpy() * scale + mean)


def windows(values: np.ndarray, starts: list[int]) -> np.ndarray:
    """Those that begin at these rows."""
    return np.stack([values[start : start + WINDOW].T for start in starts])


@pytest.mark.parametrize("stride", [None, 3])
def test_rows_of_a_table_become_windows(tmp_path: Path, stride: int | None) -> None:
    """The last tenth of the rows is kept, scales are those of the others, and the device is told how they were cut."""
    path = written(tmp_path / "t.csv", rows())
    found, said = load(path, columns=("flow", "heat"), stride=stride)
    step = stride or 1
    np.testing.assert_allclose(restored(found, "train"), windows(rows(), list(range(0, 531, step))), rtol=1e-5)
    np.testing.assert_allclose(restored(found, "test"), windows(rows(), list(range(540, 591, step))), rtol=1e-5)
    columns = found.preprocessing["columns"]
    assert [column["name"] for column in columns] == ["flow", "heat"]
    np.testing.assert_allclose([column["mean"] for column in columns], rows()[:540].mean(axis=0))
    np.testing.assert_allclose([column["scale"] for column in columns], rows()[:540].std(axis=0))
    assert found.preprocessing["windows"] == {"stride": stride or 2, "time": "time", "interval": 30.0}
    assert (found.observation.kind, found.observation.shape) == ("series", (2, WINDOW))
    few = ["a window of 10 rows begins every 3 rows", "4 rows are in no window, since no whole one begins there"]
    few += ["177 windows to train on are few: some hundreds make figures that mean something"]
    assert said == ["column time has the rows' times, which are usually 30 apart", *([] if stride is None else few)]


def test_blocks_from_all_over_are_kept_for_testing(tmp_path: Path) -> None:
    """No window shares a row with one on the other side, whatever files there are."""
    (tmp_path / "days").mkdir()
    values = np.column_stack([np.arange(2000.0), rows(2000)[:, 1]])
    for first, last in ((0, 700), (700, 2000)):
        written(tmp_path / f"days/{first:04}.csv", values[first:last])
    found, _ = load(tmp_path / "days", columns=("flow", "heat"), held_out="blocks")
    trained, kept = (
        set(restored(found, part)[:, 0].round().astype(int).ravel().tolist()) for part in ("train", "test")
    )
    assert not trained & kept
    assert 200 - WINDOW < len(kept) <= 200  # a block may lie across two files
    assert set(range(2000)) - trained - kept <= {*range(690, 710)}
    assert max(np.diff([0, *sorted(kept), 2000])) < 2 * 200


@pytest.mark.parametrize("day", [200, 400, 1000, 1440, 86400 / 64])
def test_blocks_lie_at_all_hours_of_a_day(day: float) -> None:
    """However long it is: also where each stretch that has a block is a day, or a part of one."""
    phase = np.flatnonzero(blocks(40_000, 20)) % day / day
    assert np.histogram(phase, 12, (0, 1))[0].min() > 0.3 * len(phase) / 12


def test_a_short_recording_has_two_blocks_where_a_quarter_of_it_is_enough() -> None:
    """So that what is usual for a window can be told by those of the other block."""
    begun = [int(np.count_nonzero(np.diff([0, *blocks(total, 64)]) == 1)) for total in (500, 512, 600, 2000)]
    assert begun == [1, 2, 2, 3]


def test_arrays_are_rows_or_windows(tmp_path: Path) -> None:
    """Rows in order [n, C], one channel [n], or windows [n, C, T] that are cut already."""
    np.save(tmp_path / "rows.npy", rows())
    np.save(tmp_path / "one.npy", rows()[:, 0])
    np.save(tmp_path / "windows.npy", windows(rows(), list(range(0, 591, 2))))
    found, _ = load(tmp_path / "rows.npy")
    np.testing.assert_allclose(restored(found, "train"), windows(rows(), list(range(531))), rtol=1e-5)
    one, _ = load(tmp_path / "one.npy")
    np.testing.assert_allclose(restored(one, "train"), windows(rows(), list(range(531)))[:, :1], rtol=1e-5)
    cut, _ = load(tmp_path / "windows.npy")
    np.testing.assert_allclose(restored(cut, "train"), windows(rows(), list(range(0, 523, 2))), rtol=1e-5)
    np.testing.assert_allclose(restored(cut, "test"), windows(rows(), list(range(532, 591, 2))), rtol=1e-5)
    with pytest.raises(InputError, match="array of shape"):
        load(tmp_path / "windows.npy", window=9)


def test_windows_cross_neither_files_nor_gaps_nor_other_labels(tmp_path: Path) -> None:
    """Each begins and ends in one stretch of rows; what is left out is said."""
    (tmp_path / "days").mkdir()
    written(tmp_path / "days/a.csv", rows()[:200], odd=range(100, 103))
    b = written(tmp_path / "days/b.csv", rows()[200:600], first=99_000)
    lines = b.read_text().splitlines()
    b.write_text("\n".join([*lines[:51], *lines[81:]]))  # 30 rows are not there, and their time has passed
    found, said = load(tmp_path / "days", label="state", normal="0", stride=1)
    starts = [*range(91), *range(103, 191), *range(200, 241), *range(280, 600 - 57 - WINDOW + 1)]
    np.testing.assert_allclose(restored(found, "train"), windows(rows(), starts), rtol=1e-5)
    assert said[0] == "2 tables are recordings of their own, in the order of their names"
    assert said[2:] == [
        "3 of 570 rows have a missing value or another label than 0 and are left out, and no window crosses them",
        "column time has the rows' times, which are usually 30 apart",
        f"1 gap in time, which no window crosses; the first before {b}[50]: 930, usually 30",
    ]


def test_irregular_times_are_no_clock(tmp_path: Path) -> None:
    """They are said to be none, and hide no window."""
    path = written(tmp_path / "t.csv", rows())
    lines = path.read_text().splitlines()
    random = np.random.default_rng(0)
    times = np.cumsum(random.exponential(30, len(lines)))
    path.write_text("\n".join([lines[0], *(f"{t:.1f},{x.partition(',')[2]}" for t, x in zip(times, lines[1:]))]))  # noqa: B905
    found, said = load(path, columns=("flow", "heat"))
    assert "times in column time are irregular, so that gaps are not looked for" in said
    assert found.preprocessing["windows"]["interval"] is None
    assert len(found.train) == 531


@pytest.mark.parametrize(
    ("count", "settings", "words"),
    [
        (25, {}, "too few rows for windows of 10"),
        (600, {"window": 600}, "too few rows for windows of 600"),
        (600, {"likelihood": "discretised-logistic"}, "discretised-logistic is a likelihood of 8-bit levels"),
        (600, {"likelihood": "bernoulli"}, "values other than 0 and 1 under a Bernoulli likelihood"),
    ],
)
def test_what_makes_no_windows_is_refused(tmp_path: Path, count: int, settings: dict[str, Any], words: str) -> None:
    """In one line that says what."""
    path = written(tmp_path / "t.csv", rows()[:count])
    with pytest.raises((InputError, ArgumentError)) as caught:
        load(path, **{"window": WINDOW, "columns": ("flow", "heat")} | settings)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 7), (1, 64), (8, 100), (2, 513)])
def test_convolutions_take_any_length(shape: tuple[int, int]) -> None:
    """The decoder gives a value for each step of each channel, whatever halves and doubles; both start finite."""
    vae = networks.build(series(shape, 1000), shape)
    x = torch.randn(3, *shape)
    mu, logsigma = vae.encoder(x)
    assert mu.shape == logsigma.shape == (3, *vae.latent_shape)
    assert vae.decoder(mu).shape == x.shape
    assert vae.elbo(x).isfinite().all()


def small(path: Path, **settings: Any) -> Config:
    """A training of seconds."""
    return series((2, WINDOW), 500).replace(
        dataset=str(path), window=WINDOW, columns=("flow", "heat"), epochs=60, hidden=(8,), dense=16, latent_dim=3,
        lr=1e-2, **settings,
    )  # fmt: skip


@pytest.mark.usefixtures("without_report")
def test_a_window_has_on_the_device_the_score_that_training_gave_it(tmp_path: Path) -> None:
    """The ELBO of raw rows from the file, cut, scaled and scored by the bundle: the trainer's, with the same noise."""
    path = written(tmp_path / "t.csv", rows())
    train.train(small(path, stride=2, held_out="last"), tmp_path / "run", Place(Path(), False, "cpu", 1), "vae-train")
    run = run_folder.load(tmp_path / "run")
    vae = VAE.load(vae_export.export_run(run, tmp_path / "bundle").path)
    found, _ = load(path, columns=("flow", "heat"), stride=2)
    read = vae.read(path)
    names, raw = list(read.names()), read.load().x
    first = names.index(f"{path}[540:550]")
    x = vae.standardise(raw)
    np.testing.assert_array_equal(x[: len(found.train)], found.train)
    np.testing.assert_array_equal(x[first:], found.test)
    eps = torch.from_numpy(noise.normal(0, noise.POSTERIOR, noise.index(x), vae.latent_dim))
    with torch.no_grad():
        expected = run.vae.elbo(torch.from_numpy(x), eps).numpy()
    np.testing.assert_allclose(vae.elbo(raw), expected, atol=1e-3)
    mean, spread = rows()[:540].mean(axis=0), rows()[:540].std(axis=0)
    independent = -0.5 * ((rows()[540:] - mean) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi))
    assert run.evaluation["figures"]["elbo"]["mean"] > WINDOW * independent.sum(axis=1).mean() + 5


def test_the_command_trains_on_windows(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options reach the run, whose preset is that of series; the terminal says what was cut."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "t.csv", rows())
    small_ones = ("--hidden", 8, "--dense", 16, "--device", "cpu", "--threads", 1, "--epochs", 1)
    made = command(main, "--dataset", "t.csv", "--window", WINDOW, "--columns", "flow,heat", "--stride", 4, *small_ones)
    assert made.code == 0, made.err
    assert "2 columns in windows of 10 rows, each scaled to mean 0 and spread 1" in made.err
    run = run_folder.load(tmp_path / "runs/t-series")
    assert (run.config.data.window, run.config.data.stride, run.config.preset) == (WINDOW, 4, "series")
    page = (tmp_path / "runs/t-series/report.html").read_text()
    assert page.count("<img") > 4
    assert "windows begin every 4 rows, rows are 30 apart in time (column time)" in page
    trained = rows()[~blocks(600, 2 * WINDOW), 0]
    assert f"flow ({trained.mean():.4g} +- {trained.std():.4g})" in page
    assert "60 of 600 rows, in blocks of 20 from all over" in page
    assert "stride&#x27;" not in page
    np.save("x.npy", windows(rows(), list(range(0, 591, 2))))
    monkeypatch.setattr(report, "draw", lambda *given: None)  # that of the first has been looked at
    made = command(main, "--dataset", "x.npy", "--preset", "series", *small_ones)
    assert made.code == 0, made.err
    assert "vae-train: note: 10 rows are a window; --window says otherwise" in made.err
    refused = command(main, "--dataset", "t.csv", "--stride", 4, *small_ones)
    assert (refused.code, "a stride without a window" in refused.err) == (2, True)
    refused = command(main, "--dataset", "digits", "--window", 4, *small_ones)
    assert (refused.code, "a window of images: digits" in refused.err) == (2, True)


def test_sizes_follow_from_the_windows() -> None:
    """Short windows are halved once, long ones five times; there are never more latents than sense."""
    assert series((1, 4), 1000).network.hidden == (32,)
    assert series((8, 1024), 1000).network.hidden == (32, 64, 64, 64, 64)
    with pytest.raises(ArgumentError, match="a preset of windows"):
        preset("series", data.observation(Config("vector").replace(dataset=str(Path(__file__).parents[2] / "examples/readings.csv")).data), 100)  # fmt: skip  # noqa: E501


def test_windows_that_overlap_are_fewer_than_they_seem(tmp_path: Path) -> None:
    """The standard error of the mean ELBO is that of the windows that share no row; the device gives none."""
    path = written(tmp_path / "t.csv", rows())
    overlapping, _ = load(path, columns=("flow", "heat"))
    apart, _ = load(path, columns=("flow", "heat"), stride=WINDOW)
    assert (overlapping.overlap, apart.overlap) == (WINDOW, 1)
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    error = bounds.figure(values)["standard_error"]
    assert bounds.figure(values, overlap=4.0)["standard_error"] == pytest.approx(2 * error)
    # 400 times the mean of moving sums: its spread is what the error says, and not what their number would
    noise_of_rows = np.random.default_rng(2).normal(size=(400, 300))
    sums = np.lib.stride_tricks.sliding_window_view(noise_of_rows, WINDOW, axis=1).sum(axis=2)
    said = np.mean([bounds.figure(torch.from_numpy(row), WINDOW)["standard_error"] for row in sums])
    assert said == pytest.approx(sums.mean(axis=1).std(), rel=0.15)


def test_what_is_too_short_for_a_window_is_said(tmp_path: Path) -> None:
    """A file of few rows, and one of none; where all are so, that is an error."""
    (tmp_path / "days").mkdir()
    written(tmp_path / "days/a.csv", rows()[:300])
    written(tmp_path / "days/b.csv", rows()[:7])
    empty = written(tmp_path / "days/c.csv", rows()[:0])
    written(tmp_path / "days/d.csv", rows()[300:])
    found, said = load(tmp_path / "days", columns=("flow", "heat"))
    assert len(found.train) == 291 + 300 - 61 - WINDOW + 1
    assert f"{empty} has no rows" in said
    assert "7 rows are in no window, since no whole one begins there" in said
    with pytest.raises(InputError, match="no row has all values"):
        load(empty, columns=("flow", "heat"))


def test_a_channel_is_binary_only_where_it_always_is(tmp_path: Path) -> None:
    """One of 0 and 1 in the rows to train on, and of others in those kept, is scaled as real numbers are."""
    values = rows()
    values[:, 0] = np.arange(600) % 3 == 0
    path = written(tmp_path / "t.csv", values)
    columns = load(path, columns=("flow", "heat"), likelihood="mixed")[0].preprocessing["columns"]
    assert (columns[0]["scale"], columns[1]["scale"] > 1) == (1.0, True)
    values[590:, 0] = 0.5
    columns = load(written(path, values), columns=("flow", "heat"), likelihood="mixed")[0].preprocessing["columns"]
    assert columns[0]["scale"] < 1


def test_missing_values_of_arrays_are_left_out_where_asked(tmp_path: Path) -> None:
    """No window crosses such a row; of windows that are cut already such a one is left out."""
    values = rows()
    values[100, 1] = np.nan
    np.save(tmp_path / "rows.npy", values)
    with pytest.raises(InputError, match="--missing drop"):
        load(tmp_path / "rows.npy")
    found, said = load(tmp_path / "rows.npy", missing="drop")
    starts = [*range(91), *range(101, 531)]
    np.testing.assert_allclose(restored(found, "train"), windows(rows(), starts), rtol=1e-5)
    assert said == ["1 of 600 rows have a missing value and are left out"]
    np.save(tmp_path / "cut.npy", windows(values, list(range(0, 591, 5))))
    found, said = load(tmp_path / "cut.npy", missing="drop")
    assert said[0] == "2 of 119 windows have a missing value and are left out"
    assert len(found.train) + len(found.test) == 117 - 1
    assert said[1] == "1 of 105 windows share rows with those to test on, and are not trained on"


@pytest.mark.parametrize("given", [False, True])
def test_windows_that_share_rows_with_the_test_part_are_not_trained_on(tmp_path: Path, given: bool) -> None:
    """Their own values say which do, also where the test part lies apart; how many is said, and errors know of it."""
    values = np.random.default_rng(0).normal(size=(1000, 2))
    cut = windows(values, list(range(0, 991)))
    train, settings = (cut[:892], {"test": str(tmp_path / "test.npy")}) if given else (cut, {})
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "test.npy", cut[892:])
    found, said = load(tmp_path / "train.npy", held_out="hash", **settings)
    np.testing.assert_allclose(restored(found, "train"), cut[:883], atol=1e-5)
    np.testing.assert_allclose(restored(found, "test"), cut[892:], atol=1e-5)
    assert said == ["9 of 892 windows share rows with those to test on, and are not trained on"]
    assert found.overlap == WINDOW
    np.save(tmp_path / "apart.npy", cut[::WINDOW])
    assert load(tmp_path / "apart.npy", held_out="hash")[0].overlap == 1
    np.save(tmp_path / "few.npy", cut[:8])
    with pytest.raises(InputError, match=r"too few windows of 10 rows: .*few.npy; all share rows with those to test"):
        load(tmp_path / "few.npy", held_out="hash")


@pytest.mark.parametrize("held_out", ["blocks", "last"])
def test_where_no_row_is_left_it_is_said_why(tmp_path: Path, held_out: str) -> None:
    """A label that no row has, a column without a value, an array of missing values, a table of no rows."""
    path = written(tmp_path / "t.csv", rows(), odd=range(3))
    with pytest.raises(InputError, match=r"no row is labelled okay: .*t.csv; name one of its labels: 0, 1$"):
        load(path, label="state", normal="okay", held_out=held_out)
    empty = rows()
    empty[:, 1] = np.nan
    np.save(tmp_path / "x.npy", empty)
    table = tmp_path / "empty.csv"
    table.write_text(written(tmp_path / "n.csv", empty).read_text().replace("nan", ""))
    for source, settings in (
        (tmp_path / "x.npy", {}),
        (table, {"columns": ("flow", "heat")}),
        (table, {"columns": ("flow", "heat"), "label": "state", "normal": "0"}),
    ):
        with pytest.raises(InputError, match=f"no row has all values: {source}"):
            load(source, missing="drop", held_out=held_out, **settings)
    with pytest.raises(InputError, match="no row has all values"):
        load(written(tmp_path / "none.csv", rows()[:0]), held_out=held_out)


def test_arrays_without_rows_are_refused(tmp_path: Path) -> None:
    """To train on and to test on."""
    for name, count in (("none", 0), ("some", 300)):
        np.save(tmp_path / f"{name}.npy", rows(count))
    with pytest.raises(InputError, match=r"^array of shape \[0, 2\]: .*none.npy; it holds no value"):
        load(tmp_path / "none.npy")
    with pytest.raises(InputError, match=r"^array of shape \[0, 2\]: .*none.npy; give one as .*some.npy, \[300, 2\]"):
        load(tmp_path / "some.npy", test=str(tmp_path / "none.npy"), held_out="hash")


@pytest.mark.parametrize(
    ("count", "settings", "words"),
    [
        (300, {"window": 64, "held_out": "blocks"}, "100 of 300 rows, in blocks of 100 from all over"),
        (600, {"held_out": "blocks"}, "60 of 600 rows, in blocks of 20 from all over"),
        (600, {}, "the last 60 of 600 rows"),
        (300, {"window": 64}, "the last 100 of 300 rows"),
    ],
)
def test_a_run_says_which_rows_were_kept(tmp_path: Path, count: int, settings: dict[str, Any], words: str) -> None:
    """How many, and in blocks of which length, also of a recording that is too short for a tenth of it."""
    np.save(tmp_path / "x.npy", rows(count))
    assert load(tmp_path / "x.npy", **settings)[0].preprocessing["split"] == words
