"""A person's own table, from the file to the device: which columns and rows are trained on, and what is said."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vae_export
from support.commands import Command
from vae_runtime import VAE, noise
from vae_runtime.errors import ArgumentError, InputError
from vae_runtime.observation import Observation
from vae_train import data, run_folder, train
from vae_train.cli import main
from vae_train.config import PRESETS, DataConfig, Place, vector


def readings(n: int = 600) -> np.ndarray:
    """Rows of three sensors in their units, that one hidden cause drives, float64 [n, 3]."""
    random = np.random.default_rng(5)
    cause = random.normal(size=(n, 1))
    return (cause + 0.3 * random.normal(size=(n, 3))) * [4.0, 300.0, 0.01] + [20.0, 101325.0, 0.5]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """600 such rows beside a time, a name, a constant and a label, which is "odd" in every tenth row."""
    lines = ["when,room,temp,pressure,load,spare,state"]
    for i, (temp, pressure, load) in enumerate(readings().tolist()):
        state = "odd" if i % 10 == 0 else "fine"
        lines.append(f"2024-01-{1 + i % 28:02} 00:00,kitchen,{temp},{pressure},{load},7,{state}")
    (tmp_path / "readings.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "readings.csv"


def load(path: Path, **settings: Any) -> tuple[data.Data, list[str]]:
    """The rows, and what is said of them."""
    said: list[str] = []
    config = PRESETS["vector"].replace(dataset=str(path), **settings)
    return data.load(config, Path("absent"), False, pytest.fail, said.append), said


def names(rows: data.Data) -> list[str]:
    """Those of the columns that are trained on."""
    return [column["name"] for column in rows.preprocessing["columns"]]


def restored(rows: data.Data, part: str = "train") -> np.ndarray:
    """The rows in their units again."""
    columns = rows.preprocessing["columns"]
    mean, scale = ([column[name] for column in columns] for name in ("mean", "scale"))
    return np.asarray(getattr(rows, part).double().numpy() * scale + mean)


def test_columns_of_numbers_are_trained_on(table: Path) -> None:
    """Text, time and constants are left out by name; the others are scaled by the rows that are trained on."""
    rows, said = load(table, label="state")
    assert names(rows) == ["temp", "pressure", "load"]
    assert rows.observation == Observation("vector", (3,), None)
    assert said == [
        "a column of text is left out: room; --encode makes columns of 0 and 1 of such",
        "a column of time is left out: when; --columns names those to train on",
        "constant columns are left out: spare (7)",
    ]
    test = data.in_test(readings_as_written(table))
    np.testing.assert_allclose(restored(rows), readings()[~test], rtol=1e-6)
    np.testing.assert_allclose(restored(rows, "test"), readings()[test], rtol=1e-6)
    assert rows.names == ["fine", "odd"]
    assert rows.test_labels.tolist() == [int(i % 10 == 0) for i in np.flatnonzero(test)]
    np.testing.assert_allclose(rows.train.mean(dim=0), np.zeros(3), atol=1e-5)


def readings_as_written(table: Path) -> np.ndarray:
    """All columns of numbers that a row's side is chosen by, the constant one too."""
    return np.loadtxt(table, delimiter=",", skiprows=1, usecols=(2, 3, 4, 5))


def test_named_columns_are_taken_in_their_order(table: Path) -> None:
    """Without a word on the others."""
    rows, said = load(table, columns=("load", "temp"))
    assert (names(rows), said) == (["load", "temp"], [])


def test_half_of_the_normal_rows_are_trained_on(table: Path) -> None:
    """None of another label; the halves are others for another seed, and are the file's rows."""
    rows, said = load(table, label="state", normal="fine", columns=("temp", "pressure", "load"))
    normal = np.array([x for i, x in enumerate(readings()) if i % 10])
    test = data.in_test(normal, 0.5, 0)
    np.testing.assert_allclose(restored(rows), normal[~test], rtol=1e-6)
    np.testing.assert_allclose(restored(rows, "test"), normal[test], rtol=1e-6)
    assert 200 < len(rows.train) < 340
    assert said == ["60 rows with another label than fine are left out; 540 have it"]
    other, _ = load(table, label="state", normal="fine", columns=("temp", "pressure", "load"), seed=1)
    assert not np.array_equal(other.train[:9], rows.train[:9])
    assert rows.preprocessing["split"] == "half of the rows of state fine, by the sha256 of the values and seed 0"


def test_the_last_tenth_may_be_kept(table: Path) -> None:
    """In the order of the file."""
    rows, _ = load(table, columns=("temp",), held_out="last")
    np.testing.assert_allclose(restored(rows, "test")[:, 0], readings()[540:, 0], rtol=1e-6)
    assert rows.preprocessing["split"] == "the last tenth"


def test_rows_with_a_missing_value_are_refused_or_dropped(tmp_path: Path, table: Path) -> None:
    """By row, line and column, or left out and counted; labels stay with their rows."""
    lines = table.read_text().splitlines()
    lines[7] = lines[7].replace(lines[7].split(",")[2], "", 1)
    table.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"missing value: .*readings\.csv, row 6 \(line 8\), column temp; fill it in"):
        load(table)
    rows, said = load(table, columns=("temp",), missing="drop", label="state", held_out="last")
    assert said == ["1 of 600 rows have a missing value and are left out"]
    np.testing.assert_allclose(restored(rows)[:8, 0], np.delete(readings(), 6, axis=0)[:8, 0], rtol=1e-6)
    assert len(rows.train) + len(rows.test) == 599
    assert rows.test_labels.tolist() == [int(i % 10 == 0) for i in range(540 - 1 + 1, 600)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"columns": ("humidity",)}, "no column humidity: "),
        ({"label": "kind"}, "no column kind: "),
        ({"normal": "fine"}, "--normal without labels: "),
        ({"normal": "broken", "label": "state"}, "no row is labelled broken: "),
        ({"columns": ("room",)}, "no number: 'kitchen': "),
        ({"likelihood": "bernoulli", "columns": ("temp",)}, "values other than 0 and 1 under a Bernoulli likelihood: "),
        ({"likelihood": "discretised-logistic"}, "discretised-logistic is a likelihood of 8-bit levels, "),
        ({"image_size": (8, 8)}, "a table has no images: "),
        ({"columns": ("temp", "state"), "label": "state"}, "a column twice: "),
        ({"columns": ("temp", "temp")}, "a column twice: "),
    ],
)
def test_what_does_not_go_with_the_table_is_refused(table: Path, settings: dict[str, Any], words: str) -> None:
    """In one line that names the file."""
    with pytest.raises((InputError, ArgumentError)) as caught:
        load(table, **settings)
    assert str(caught.value).startswith(words)
    assert "readings.csv" in str(caught.value) or words.startswith("a column twice")


@pytest.mark.usefixtures("without_report")
def test_a_row_has_on_the_device_the_score_that_training_gave_it(table: Path, tmp_path: Path) -> None:
    """The ELBO of raw rows from the file, in nats per row in their units: the trainer's own, with the same noise."""
    config = vector(columns=3, rows=600).replace(dataset=str(table), label="state", epochs=100)
    train.train(config, tmp_path / "run", Place(Path(), False, "cpu", 1), "vae-train")
    run = run_folder.load(tmp_path / "run")
    exported = vae_export.export_run(run, tmp_path / "bundle")
    vae = VAE.load(exported.path)
    (raw,) = vae.read(table).batches(1000)
    rows, _ = load(table, label="state")
    test = data.in_test(readings_as_written(table))
    x = vae.standardise(raw[test])
    np.testing.assert_array_equal(x, rows.test)
    eps = torch.from_numpy(noise.normal(0, noise.POSTERIOR, noise.index(x), vae.latent_dim))
    with torch.no_grad():
        expected = run.vae.elbo(rows.test, eps).numpy()
    np.testing.assert_allclose(vae.elbo(raw[test]), expected, atol=1e-3)
    # and in its units: a density of temp, pressure and load, so that the mean is near that of the generating Gaussian
    mean, covariance = readings().mean(axis=0), np.cov(readings().T)
    centred = raw[test] - mean
    squares = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    gaussian = -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert run.evaluation["figures"]["elbo"]["mean"] == pytest.approx(gaussian.mean(), abs=1)


@pytest.mark.usefixtures("without_report")
def test_the_command_trains_on_a_table(command: Command, table: Path, tmp_path: Path) -> None:
    """Its options reach the run, and the terminal says what was left out."""
    made = command(
        main, "--dataset", table, "--label", "state", "--normal", "fine", "--columns", "temp, load", "--epochs", 1,
        "--out", tmp_path / "run", "--device", "cpu", "--threads", 1,
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "2 columns, each scaled to mean 0 and spread 1" in made.err
    assert "vae-train: note: 60 rows with another label than fine are left out" in made.err
    config = run_folder.load(tmp_path / "run").config
    assert (config.data.columns, config.data.label, config.data.normal) == (("temp", "load"), "state", "fine")


@pytest.mark.usefixtures("without_report")
@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_real_tables_train_without_a_network(tmp_path: Path, name: str) -> None:
    """scikit-learn's own: the ELBO of held-out rows is above that of independent Gaussians, in the same units."""
    bunch = getattr(__import__("sklearn.datasets", fromlist=["datasets"]), f"load_{name}")()
    names = [column.replace(",", " ") for column in bunch.feature_names]
    lines = [",".join(names), *(",".join(map(repr, row)) for row in bunch.data.tolist())]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config = vector(len(names), len(bunch.data)).replace(dataset=str(tmp_path / "t.csv"), epochs=60)
    train.train(config, tmp_path / "run", Place(Path(), False, "cpu", 1), "vae-train")
    run = run_folder.load(tmp_path / "run")
    test = data.in_test(bunch.data)
    mean, spread = bunch.data[~test].mean(axis=0), bunch.data[~test].std(axis=0)
    terms = -0.5 * ((bunch.data[test] - mean) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi))
    assert run.evaluation["figures"]["elbo"]["mean"] > terms.sum(axis=1).mean() + 1


def test_settings_of_tables_are_refused_elsewhere(tmp_path: Path, digits_root: Path) -> None:
    """Rather than left aside: a named set, and an array for what it cannot have."""
    for settings in ({"columns": ("a",)}, {"label": "y"}, {"normal": "3"}, {"missing": "drop"}, {"held_out": "last"}):
        config = PRESETS["tutorial"].replace(dataset="digits", **settings)
        with pytest.raises(ArgumentError, match="is for tables: digits; leave it out"):
            data.load(config, digits_root)
    np.save(tmp_path / "a.npy", readings())
    with pytest.raises(ArgumentError, match="--columns is for tables"):
        load(tmp_path / "a.npy", columns=("a",))
    rows, _ = load(tmp_path / "a.npy", held_out="last")
    np.testing.assert_allclose(restored(rows, "test"), readings()[540:], rtol=1e-6)


def test_labels_that_are_numbers_are_one_however_written(tmp_path: Path) -> None:
    """0, 0.0 and 0.00 are one class, and may be named so; an index that pandas wrote is left out."""
    lines = [f"{i},{x},{y},{'0.0' if i % 2 else '0' if i % 4 else '1.0'}" for i, (x, y, _) in enumerate(readings(400))]
    (tmp_path / "t.csv").write_text("\n".join([",a,b,label", *lines]))
    rows, said = load(tmp_path / "t.csv", label="label", normal="0.00")
    assert said[0] == "a column of no name is left out: column 0; --columns names those to train on"
    assert said[1] == "labels 0.0, 0 are taken as one: 0"
    assert said[2] == "100 rows with another label than 0.00 are left out; 300 have it"
    assert (names(rows), rows.names) == (["a", "b"], ["0"])


def test_labels_may_have_a_decimal_comma(tmp_path: Path) -> None:
    """Where the table has it; large ones are not rounded into one."""
    lines = [f"{x:.3f};{('1,0', '1', '1234567', '1234568')[i % 4]}" for i, (x, *_) in enumerate(readings(400))]
    (tmp_path / "t.csv").write_text("\n".join(["a;label", *lines]).replace(".", ","))
    rows, said = load(tmp_path / "t.csv", label="label")
    assert said[1] == "labels 1,0, 1 are taken as one: 1"
    assert rows.names == ["1", "1234567", "1234568"]


def test_spreads_that_no_number_can_have_are_refused(tmp_path: Path) -> None:
    """By the column's name, before a training that could only diverge."""
    for scale in (1e-300, 1e300):
        np.savetxt(tmp_path / "t.csv", readings() * [scale, 1, 1], delimiter=",", header="a,b,c", comments="")
        with pytest.raises(InputError, match=r"a spread of .*: column a; give it in another unit"):
            load(tmp_path / "t.csv")


def test_a_folder_of_tables_is_read_as_one(table: Path) -> None:
    """By the names of the files and of the columns; one with other columns is named, and an image wins over tables."""
    lines = table.read_text().splitlines()
    folder = table.parent / "days"
    (folder / "later").mkdir(parents=True)
    (folder / "b.csv").write_text("\n".join([lines[0], *lines[1:201]]))
    (folder / "notes.txt").write_text("not a table")
    turned = [",".join(reversed(line.split(","))) for line in [lines[0], *lines[201:]]]
    (folder / "later" / "c.csv.gz").write_bytes(gzip.compress("\n".join(turned).encode()))
    settings: dict[str, Any] = {"columns": ("temp", "load"), "label": "state"}
    rows, said = load(folder, **settings)
    alone, _ = load(table, **settings)
    assert said == ["2 tables are read as one, in the order of their names"]
    assert (rows.digest(), rows.test_labels.tolist()) == (alone.digest(), alone.test_labels.tolist())
    assert data.look(DataConfig(str(folder))) == (Observation("vector", (4,), None), 600)
    (folder / "a.csv").write_text("temp,load\n1,2\n")
    with pytest.raises(InputError, match=r"no column state: .*a\.csv; it has temp, load"):
        load(folder, **settings)
    (folder / "a.png").touch()
    assert data.look(DataConfig(str(folder)))[0].kind == "image"


def test_tables_of_other_columns_have_those_that_are_named(table: Path) -> None:
    """A folder's tables may differ in the others; one that lacks a named column is named."""
    lines = table.read_text().splitlines()
    folder = table.parent / "days"
    folder.mkdir()
    (folder / "a.csv").write_text("\n".join([lines[0], *lines[1:201]]))
    (folder / "b.csv").write_text(
        "\n".join([f"new,{lines[0]}", *(f"{i},{line}" for i, line in enumerate(lines[201:]))])
    )
    with pytest.raises(InputError, match=r"different columns in a folder: column new of .*; .*with --columns"):
        load(folder)
    rows, _ = load(folder, columns=("temp", "load"))
    alone, _ = load(table, columns=("temp", "load"))
    assert rows.digest() == alone.digest()
    with pytest.raises(InputError, match=r"no column new: .*a\.csv") as caught:
        load(folder, columns=("temp", "new"))
    assert "room" in str(caught.value)


def test_what_may_be_no_measurement_is_said(tmp_path: Path) -> None:
    """Dates in eight digits and a column that rises from row to row are trained on, and a line says so.

    Not where they are named.
    """
    days = [20240100 + 100 * (i % 12) + 1 + i % 28 for i in range(600)]
    lines = [f"{day},{i / 8},{x},{y}" for i, (day, (x, y, _)) in enumerate(zip(days, readings(), strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(["day,id,temp,pressure", *lines]))
    rows, said = load(tmp_path / "t.csv")
    assert names(rows) == ["day", "id", "temp", "pressure"]
    todo = "it is trained on; --columns names those that are to be"
    assert said == [
        f"column day holds numbers that look like dates, as 20240131; {todo}",
        f"column id rises from row to row, as a counter or a time does; {todo}",
    ]
    assert load(tmp_path / "t.csv", columns=("day", "id", "temp"))[1] == []


def test_how_a_table_is_read_is_said(table: Path) -> None:
    """Its delimiter and decimal mark, where they are not comma and point, and lines of nothing."""
    plain, said = load(table, columns=("temp", "load"))
    assert said == []
    lines = table.read_text().replace(",", ";").replace(".", ",").splitlines()
    lines[9] = "\n" + lines[9]
    table.write_text("\n".join(lines))
    rows, said = load(table, columns=("temp", "load"))
    assert rows.digest() == plain.digest()
    assert said == [
        "columns are read as parted by semicolons, numbers with a decimal comma",
        "1 blank line is skipped",
    ]  # fmt: skip


@pytest.mark.usefixtures("without_report")
def test_text_is_encoded_as_columns_of_0_and_1(tmp_path: Path) -> None:
    """One for each value of the rows that are trained on, and known to the device, where a row scores the same."""
    kinds = np.random.default_rng(3).choice(["red", "green", "blue"], 300)
    x = readings(300)[:, 0] + 5 * (kinds == "red")
    lines = [f"{kind},{value},{i % 2}.0" for i, (kind, value) in enumerate(zip(kinds, x, strict=True))]
    lines.append("violet,21.5,1")  # the last row is kept for testing
    (tmp_path / "t.csv").write_text("\n".join(["colour,temp,gear", *lines]))
    settings: dict[str, Any] = {"dataset": str(tmp_path / "t.csv"), "encode": ("colour", "gear"), "held_out": "last"}
    config = vector(4, 300).replace(epochs=1, **settings)
    said: list[str] = []
    rows = data.load(config, Path("absent"), False, pytest.fail, said.append)
    assert names(rows) == ["colour=blue", "colour=green", "colour=red", "temp", "gear=0", "gear=1"]
    assert said == [
        "constant columns are left out: colour=violet (0)",
        "5 columns of 0 and 1 are taken as such, the likelihood is mixed: colour=blue, colour=green, colour=red, "
        "gear=0, gear=1; --likelihood gaussian takes them as real numbers",
    ]
    gears = np.eye(2)[:, np.arange(300) % 2]
    made = np.column_stack([*(kinds == kind for kind in ("blue", "green", "red")), x, *gears])
    np.testing.assert_allclose(restored(rows), made[: len(rows.train)], atol=1e-5)
    assert restored(rows, "test")[-1, :3].round(6).tolist() == [0, 0, 0]
    train.train(config, tmp_path / "run", Place(Path(), False, "cpu", 1), "vae-train")
    vae = VAE.load(vae_export.export_run(run_folder.load(tmp_path / "run"), tmp_path / "bundle").path)
    (raw,) = vae.read(tmp_path / "t.csv").batches(1000)
    np.testing.assert_array_equal(vae.standardise(raw)[len(rows.train) :], rows.test)
    with pytest.raises(InputError, match="too many values to encode: column temp has 301; "):
        load(tmp_path / "t.csv", encode=("temp",))
    with pytest.raises(InputError, match="no column shape: "):
        load(tmp_path / "t.csv", encode=("shape",))


def test_rows_of_an_array_with_nan_are_refused_or_dropped(tmp_path: Path) -> None:
    """As those of a table."""
    x = readings()
    x[5, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(600) % 2)
    with pytest.raises(InputError, match=r"missing value \(NaN\): .*a\.npz\[5\], column 1; fill it in, or leave such"):
        load(tmp_path / "a.npz")
    rows, said = load(tmp_path / "a.npz", missing="drop", held_out="last")
    assert said == ["1 of 600 rows have a missing value and are left out"]
    np.testing.assert_allclose(restored(rows), np.delete(readings(), 5, axis=0)[:539], rtol=1e-6)
    assert rows.test_labels.tolist() == [i % 2 for i in range(540, 600)]


@pytest.mark.parametrize("window", [None, 10])
def test_tables_to_test_on_inside_the_folder_are_not_trained_on(tmp_path: Path, window: int | None) -> None:
    """The rows of the table that --test names, by a path of another form, are the test part, and only that."""
    (tmp_path / "tab").mkdir()
    values = readings()
    for name, part in (("test.csv", values[:50]), ("train.csv", values[50:])):
        np.savetxt(tmp_path / "tab" / name, part, delimiter=",", header="a,b,c", comments="")
    said: list[str] = []
    test = tmp_path / "tab/../tab/test.csv"
    config = PRESETS["series" if window else "vector"].replace(dataset=str(tmp_path / "tab"), test=str(test))
    config = config.replace(window=window) if window else config
    rows = data.load(config, Path("absent"), False, pytest.fail, said.append)
    assert (len(rows.train), len(rows.test)) == ((550 - 9, 50 - 9) if window else (550, 50))
    np.testing.assert_allclose([column["mean"] for column in rows.preprocessing["columns"]], values[50:].mean(axis=0))
    assert "1 of 2 files are in the test data too, and are not trained on" in said
    with pytest.raises(InputError, match="nothing to train on but the test data"):
        data.load(config.replace(dataset=str(test)), Path("absent"), False)


@pytest.mark.usefixtures("without_report", "one_thread")
def test_a_run_on_flags_beside_a_constant_is_evaluated(command: Command, tmp_path: Path) -> None:
    """The likelihood that auto found is one of the columns that are trained on, and not of the one left out."""
    flags = np.random.default_rng(0).integers(0, 2, (300, 6))
    path = tmp_path / "flags.csv"
    values = np.column_stack([flags, np.full(300, 5)])
    np.savetxt(path, values, "%d", delimiter=",", header="a,b,c,d,e,f,g", comments="")
    words = ["--out", tmp_path / "run", "--hidden", 4, "--latent-dim", 2, "--epochs", 1, "--device", "cpu"]
    done = command(main, "--dataset", path, *words)
    assert done.code == 0 and "constant columns are left out: g (5)" in done.err, done.err
    found = command(main, "evaluate", tmp_path / "run", "-K", 2)
    assert found.code == 0, found.err
    assert names(load(path, likelihood="bernoulli")[0]) == [*"abcdef"]
    values[7, 2] = 3
    np.savetxt(path, values, "%d", delimiter=",", header="a,b,c,d,e,f,g", comments="")
    with pytest.raises(InputError, match=r"flags.csv\[7\], column c, is 3"):
        load(path, likelihood="bernoulli")
