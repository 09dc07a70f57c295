"""Tables in text files: how they are written is found, columns are read by name, mistakes are named by their place."""

import csv
import gzip
import io
import json
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support import bundles
from support.bundles import Forge
from vae_runtime import VAE, InputError, noise, score
from vae_runtime import manifest as manifests
from vae_runtime.bundle import MANIFEST
from vae_runtime.cli import main
from vae_runtime.indicators import Columns
from vae_runtime.tables import Table

COLUMNS = [
    {"name": "temp", "mean": 20.0, "scale": 4.0},
    {"name": "pressure", "mean": 101325.0, "scale": 300.0},
    {"name": "load", "mean": 0.5, "scale": 0.01},
]
NAMES = [column["name"] for column in COLUMNS]


def table(text: str | bytes) -> Table:
    """A table of this content."""
    content = text.encode() if isinstance(text, str) else text
    return Table("t.csv", lambda: io.BytesIO(content))


def values(text: str | bytes, *columns: str, drop: bool = False) -> list[list[float]]:
    """The numbers of these columns, or of all."""
    read = table(text)
    blocks = list(read.blocks(columns or read.layout.names, drop))
    return [row for block in blocks for row in block.values.tolist()]


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1.5,2\n3,-4e2\n",
        "a;b\n1,5;2\n3;-4e2\n",
        "a\tb\r\n1,5\t2\r\n3\t-4E2\r\n",
        "a|b\n1.5|2\n3|-4e2",
        '\ufeff"a","b"\n"1.5","2"\n3,-4e2\n\n\n',
        " a , b \n 1.5 , 2 \n 3 , -400 \n",
        gzip.compress(b"a,b\n1.5,2\n3,-4e2\n"),
    ],
    ids=["comma", "semicolon", "tab", "bar", "quotes", "blanks", "gzip"],
)
def test_delimiter_and_decimal_mark_are_found(text: str | bytes):
    """The same numbers under the same names, however they are written."""
    assert table(text).layout.names == ("a", "b")
    assert len(table(text)) == 2
    assert values(text) == [[1.5, 2.0], [3.0, -400.0]]
    assert values(text, "b") == [[2.0], [-400.0]]


def test_a_table_without_a_header_has_numbered_columns():
    """All of its lines are rows, and there may be one column alone."""
    assert table("1,2\n3,4\n").layout.names == ("column 0", "column 1")
    assert values("1,2\n3,4\n", "column 1") == [[2.0], [4.0]]
    assert values("5\n6\n") == [[5.0], [6.0]]
    assert table(",b\n0,1\n").layout.names == ("column 0", "b")  # as pandas writes an index


def test_blocks_are_the_whole_as_numpy_reads_it(tmp_path: Path):
    """10,000 rows in blocks, one of which needs a closer look, are those of numpy.loadtxt to the last bit."""
    x = np.random.default_rng(1).normal(size=(10_000, 5)) * 10.0 ** np.arange(-8, 12, 4)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b,c,d,e", comments="")
    lines = (tmp_path / "x.csv").read_text().splitlines(keepends=True)
    lines[5001] = '"' + lines[5001].strip().replace(",", '","') + '"\n'
    (tmp_path / "x.csv").write_text("".join(lines))
    read = Table("x.csv", partial((tmp_path / "x.csv").open, "rb"))
    blocks = list(read.blocks(["d", "a"]))
    np.testing.assert_array_equal(np.concatenate([block.values for block in blocks]), x[:, [3, 0]])
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), np.arange(10_000))
    assert len(blocks) > 1


def test_a_header_without_words_for_a_column_is_one():
    """As pandas writes an index beside columns of numbers."""
    assert table(",0,1\n0,5.5,6\n").layout.names == ("column 0", "0", "1")
    assert table(",0,1\n0,5.5,6\n").layout.unnamed == ("column 0",)


def test_a_decimal_comma_may_come_late():
    """Where the delimiter is a semicolon, whole numbers may come first."""
    text = "a;b\n" + "1;2\n" * 60 + "4,5;3\n"
    assert values(text, "a")[-1] == [4.5]


def test_a_decimal_mark_may_come_late_in_a_file():
    """Whole numbers say nothing of it, in however many blocks of lines."""
    for count in (60, 5000):
        for mark, delimiter in (".;", ",;", ",\t"):
            text = f"a{delimiter}b\n" + f"1{delimiter}2\n" * count + f"1{mark}5{delimiter}3\n"
            assert values(text)[-1] == [1.5, 3.0]


def test_columns_that_are_not_asked_for_do_not_say_how_decimals_are_written():
    """Thousands with a comma, or numbers of versions with a point, beside the columns that are."""
    assert values("a\tb\n1.5\t1,234\n2.25\t5,678\n", "a") == [[1.5], [2.25]]
    assert values("a;b\n1,5;1.2\n2,25;1.3\n", "a") == [[1.5], [2.25]]


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["1.5", *["1"] * 5000, "2,5"], "2,5"),
        (["1,5", *["1"] * 5000, "2.5"], "2.5"),
        (["1.234", *["1"] * 5000, "2,5"], "2,5"),
        (["7"] * 5000 + ["1.234"], "1.234"),
        (["1,5", "1.234"], "1.234"),
    ],
)
def test_a_decimal_mark_is_the_same_from_first_to_last(lines: list[str], wrong: str):
    """What may be thousands is no decimal beside a decimal comma, nor in a file with semicolons that shows none."""
    with pytest.raises(InputError, match=f"no number: '{wrong}'"):
        values("a;b\n" + "".join(f"{line};0\n" for line in lines))


def test_another_columns_decimal_comma_makes_thousands_of_a_point():
    """Where the column that is asked for leaves it open, the others count; nothing is read on a guess."""
    with pytest.raises(InputError, match=r"no number: '1\.234'"):
        values("a\tb\n1.234\t0,5\n", "a")


def test_text_beside_the_numbers_is_left_alone():
    """Names, dates and quoted commas in other columns, and their fields as they are written."""
    text = 'when,what,x\n2024-01-02,"a, b",1\n2024-01-03,c,2\n'
    assert values(text, "x") == [[1.0], [2.0]]
    (block,) = table(text).blocks(["x"], texts=["what"])
    assert block.texts == {"what": ["a, b", "c"]}
    (plain,) = table("x,what\n1, a\n2,\n").blocks(["x"], texts=["what"])
    assert (plain.texts, plain.values.tolist()) == ({"what": ["a", ""]}, [[1.0], [2.0]])
    assert table(text).first()["when"] == ["2024-01-02", "2024-01-03"]


@pytest.mark.parametrize("missing", ["", "NA", "nan", "?", "null", " "])
def test_missing_values_are_refused_or_dropped(missing: str):
    """By row, line and column; or such rows are left out, and the others keep their numbers."""
    text = f"a,b\n1,2\n3,{missing}\n5,6\n"
    with pytest.raises(InputError, match=r"missing value: t\.csv, row 1 \(line 3\), column b; fill it in, or leave"):
        values(text)
    assert values(text, drop=True) == [[1.0, 2.0], [5.0, 6.0]]
    assert [block.rows.tolist() for block in table(text).blocks(["a", "b"], True)] == [[0, 2]]
    assert values(text, "a") == [[1.0], [3.0], [5.0]]  # where the column is not asked for


def test_lines_of_nothing_are_no_rows():
    """They are counted where they stand between rows; a line of tabs is a row of a table with tabs."""
    text = "\n\na,b\n1,2\n\n  \n3,4\n\n5,6\n\n\n"
    assert (len(table(text)), table(text).count.blank, values(text)) == (3, 3, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert values("a\tb\n1\t2\n\t\n", drop=True) == [[1.0, 2.0]]
    assert len(table("a\tb\n1\t2\n\t\n")) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,x\n", "no number: 'x': t.csv, row 1 (line 3), column b; "),
        ("a,b\n1,2\n3\n", "line of 1 fields: t.csv, row 1 (line 3); "),
        ("a,b\n1,2\n3,4,5\n", "line of 3 fields: t.csv, row 1 (line 3); "),
        ("\na,b\n1,2\n\n \n3,x\n", "no number: 'x': t.csv, row 1 (line 6), column b; "),
        ("a,b\n1,2\n3,inf\n", "infinite value: t.csv, row 1 (line 3), column b; "),
        ("a,b,a\n1,2,3\n", "column a comes twice: t.csv; "),
        ("", "empty table: t.csv; "),
        ('a,b\n1,"x\ny"\n3,4\n', "line break within quotes: t.csv, "),
        ('a,b,note\n1,2,"pump on\n4,5,and off"\n7,8,fine\n', "line break within quotes: t.csv, "),
        ('a,b,note\n1,2,"pump on\n', "line break within quotes: t.csv, "),
        ("a,b\n1,2\n3,1_0\n", "no number: '1_0': t.csv, row 1 (line 3), column b; "),
        ("a;b\n1,5;1.000\n", "no number: '1.000': t.csv, row 0 (line 2), column b; "),
        (b"\x89PNG\r\n\x1a\n\0\0", "not a table or array: t.csv; "),
    ],
)
def test_what_is_wrong_is_named_by_its_place(text: str | bytes, words: str):
    """Row, line and column, in one line."""
    with pytest.raises(InputError) as caught:
        values(text)
    assert str(caught.value).startswith(words)


def test_many_columns_take_time_in_proportion():
    """Of 50,000 a quadratic search takes minutes of the processor, and each is looked for where it stands."""
    names = [f"c{i}" for i in range(50_000)]
    before = time.process_time()
    wanted = Columns(names[::-1])
    read = table(",".join(names) + "\n" + ",".join(map(str, range(50_000))) + "\n")
    ((block, _),) = wanted.blocks(read)
    assert block.values[0].tolist() == list(range(50_000))[::-1]
    assert time.process_time() - before < 10


def test_a_line_break_in_quotes_is_noticed_where_blocks_meet():
    """Though the quotes open in one block of lines and close in the next one."""
    lines = ["1,x"] * 4095 + ['2,"pump on', '3,and off"']
    with pytest.raises(InputError, match="line break within quotes"):
        values("\n".join(["a,note", *lines]), "a")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2\r.0,3", "line cannot be read (new-line character seen in unquoted field): t.csv, row 7; "),
        (f"x{'1' * 200_000},3", "line cannot be read (field larger than field limit (131072)): t.csv, row 7; "),
    ],
    ids=["CR", "endless"],
)
def test_a_line_that_csv_cannot_read_is_named(line: str, words: str):
    """As any other line that is no row; of lines that come one by one the number is what the caller counts."""
    with pytest.raises(InputError) as caught:
        table("a,b\n1,2\n").parse(["1,2", line], ["a", "b"], row=6)
    assert str(caught.value).startswith(words)


def test_a_carriage_return_at_the_end_of_a_line_is_none_of_its_fields():
    """Before the line feed, or behind it, where it begins the next line."""
    for lines in (["1,2\r", '"3",4\r'], ["1,2", '\r"3",4', "\r5,6"]):
        block = table("a,b\n1,2\n").parse(lines, ["a", "b"], row=0)
        assert block.values.tolist() == [[1, 2], [3, 4], [5, 6]][: len(lines)]


@pytest.fixture
def rows(forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle of a model that knows three columns, and a table of 12 rows in which they lie among others."""
    folder = bundles.linear(forge, "gaussian", (3,))
    manifest = json.loads((folder / MANIFEST).read_bytes()) | {"preprocessing": {"columns": COLUMNS}}
    (folder / MANIFEST).write_bytes(manifests.dump({name: manifest[name] for name in manifest if name != "sha256"}))
    monkeypatch.chdir(tmp_path)
    x = measured()
    lines = [
        f"2024-01-01 00:{i:02},{load!r},{temp!r},9,{pressure!r}" for i, (temp, pressure, load) in enumerate(x.tolist())
    ]
    Path("readings.csv").write_text("\n".join(["when,load,temp,spare,pressure", *lines]))
    return folder


def measured() -> np.ndarray:
    """Twelve rows in their units, float64 [12, 3]."""
    scale, mean = ([column[name] for column in COLUMNS] for name in ("scale", "mean"))
    return np.random.default_rng(6).normal(size=(12, 3)) * scale + mean


def test_columns_are_found_by_name_and_scaled(rows: Path):
    """In any order and among others; what comes out is in the units that went in."""
    vae, core = VAE.load(rows), VAE.load(rows, standardised=True)
    (x,) = vae.read("readings.csv").batches(100)
    np.testing.assert_array_equal(x, measured())
    scale, mean = (np.array([column[name] for column in COLUMNS]) for name in ("scale", "mean"))
    standardised = ((measured() - mean) / scale).astype(np.float32)
    np.testing.assert_array_equal(vae.standardise(x), standardised)
    np.testing.assert_array_equal(vae.elbo(x, 3), core.elbo(standardised, 3))
    np.testing.assert_array_equal(vae.encode(x)[0], core.encode(standardised)[0])
    np.testing.assert_allclose(vae.reconstruct(x), core.reconstruct(standardised) * scale + mean, rtol=1e-12)
    np.testing.assert_allclose(vae.sample(5, 1), core.sample(5, 1) * scale + mean, rtol=1e-12)
    np.testing.assert_array_equal(score(vae, x, 3).index, score(core, standardised, 3).index)
    np.testing.assert_allclose(vae.observe(x), x, rtol=1e-6)
    assert vae.names == NAMES


def test_the_command_reads_and_writes_tables(command, rows: Path):
    """Scores of a table are those of its numbers; samples come below the names of the columns."""
    vae = VAE.load(rows)
    printed = command(main, "--bundle", rows, "elbo", "readings.csv", "--format", "csv")
    assert (printed.code, printed.err) == (0, "")
    found = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["row"] for row in found] == [f"readings.csv[{i}]" for i in range(12)]
    np.testing.assert_array_equal([float(row["elbo"]) for row in found], vae.elbo(measured(), 16))
    assert command(main, "--bundle", rows, "sample", "-n", 4, "--seed", 3).code == 0
    written = list(csv.DictReader(io.StringIO(Path("samples.csv").read_text())))
    assert list(written[0]) == NAMES
    np.testing.assert_allclose([[float(row[name]) for name in NAMES] for row in written], vae.sample(4, 3), rtol=1e-8)
    assert command(main, "--bundle", rows, "reconstruct", "samples.csv").code == 0
    both = list(csv.DictReader(io.StringIO(Path("reconstructions.csv").read_text())))
    assert list(both[0]) == [*NAMES, *(f"{name} reconstructed" for name in NAMES)]
    np.testing.assert_array_equal([[float(row[name]) for name in NAMES] for row in both], vae.sample(4, 3))
    np.save("x.npy", measured())
    assert command(main, "--bundle", rows, "elbo", "x.npy", "--format", "csv").out.replace("x.npy", "readings.csv") \
        == printed.out  # fmt: skip


def test_each_column_says_what_it_adds(command, rows: Path):
    """Their sum is log p(x|z); each is the mean over the draws of its own density, in float64, in its own unit."""
    vae, core = VAE.load(rows), VAE.load(rows, standardised=True)
    printed = command(main, "--bundle", rows, "elbo", "readings.csv", "--by-column", "--format", "csv", "-K", 5).out
    found = list(csv.DictReader(io.StringIO(printed)))
    each = np.array([[float(row[f"log p({name})"]) for name in NAMES] for row in found])
    np.testing.assert_allclose(each.sum(axis=1), [float(row["reconstruction"]) for row in found], rtol=1e-6)
    np.testing.assert_allclose(each, vae.contributions(measured(), 5), rtol=1e-12)
    x = vae.standardise(measured())
    mu, logsigma = core.encode(x)
    eps = noise.normal(0, noise.POSTERIOR, noise.index(x), 15).reshape(12, 5, 3)
    loc = core.parameters((mu[:, None] + np.exp(logsigma)[:, None] * eps).reshape(-1, 3)).reshape(12, 5, 3)
    sigma = np.exp(np.float64(vae.likelihood.logsigma))
    terms = -0.5 * ((x[:, None] - loc.astype(np.float64)) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(each, terms.mean(axis=1), rtol=1e-5)
    refused = command(main, "--bundle", rows, "elbo", "readings.csv", "--by-column")
    assert (refused.code, "goes with --format" in refused.err) == (2, True)
    assert command(main, "elbo", "readings.csv", "--by-column", "--format", "csv").code in (2, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temp,load\n1,2\n", "no column pressure: t.csv; it has temp, load"),
        ("1,2,3\n4,5,6\n", "table without a header: t.csv; name its columns: temp, pressure, load"),
        ("temp,pressure,load\n1,2,inf\n", "infinite value: t.csv, row 0 (line 2), column load; "),
        ("temp,pressure,load\n", "no rows: t.csv; "),
        ("temp,pressure,load\n1,2,\n", "missing value: t.csv, row 0 (line 2), column load; "),
    ],
)
def test_a_table_that_does_not_fit_is_refused(command, rows: Path, text: str, words: str):
    """What is missing is named, in one line and with exit code 4."""
    Path("t.csv").write_text(text)
    result = command(main, "--bundle", rows, "elbo", "t.csv")
    assert (result.code, result.out) == (4, "")
    assert result.err.startswith(f"vae-infer: error: {words}")


def test_a_model_without_names_takes_as_many_columns(command, forge: Forge, tmp_path: Path):
    """All columns in order; another number is refused."""
    folder = bundles.linear(forge, "gaussian", (3,))
    (tmp_path / "t.csv").write_text("a,b,c\n1,2,3\n")
    np.testing.assert_array_equal(VAE.load(folder).read(tmp_path / "t.csv").load().x, np.float32([[1, 2, 3]]))
    (tmp_path / "u.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="table of 2 columns"):
        VAE.load(folder).read(tmp_path / "u.csv")


def test_a_folder_stands_for_the_tables_in_it(command, rows: Path):
    """By name, in the folders inside too; other files are left aside, and a folder without tables is refused."""
    lines = Path("readings.csv").read_text().splitlines()
    Path("days/later").mkdir(parents=True)
    for name, some in (("days/b.csv", lines[1:5]), ("days/later/c.tsv", lines[5:])):
        Path(name).write_text("\n".join([lines[0], *some]))
    Path("days/notes.txt").touch()
    found = VAE.load(rows).read("days").load()
    np.testing.assert_array_equal(found.x, measured())
    assert [found.names[i] for i in (0, 3, 4, 11)] == [
        "days/b.csv[0]", "days/b.csv[3]", "days/later/c.tsv[0]", "days/later/c.tsv[7]"
    ]  # fmt: skip
    Path("none").mkdir()
    refused = command(main, "--bundle", rows, "elbo", "none")
    assert (refused.code, refused.err) == (
        4, "vae-infer: error: no tables in the folder: none; put .csv, .csv.gz, .tsv, .tsv.gz files there\n"
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_rows_with_a_missing_value_are_left_out_where_asked(command, rows: Path, suffix: str):
    """How many is said in a line; the others keep their numbers and their scores. By default they are refused."""
    x, kept = measured(), np.setdiff1d(np.arange(12), [0, 7])
    x[0, 1] = x[7, 0] = x[7, 2] = np.nan
    np.save("t.npy", x)
    np.savetxt("t.csv", x, delimiter=",", header=",".join(NAMES), comments="")
    refused = command(main, "--bundle", rows, "elbo", f"t.{suffix}")
    assert (refused.code, refused.out, "missing value" in refused.err) == (4, "", True)
    assert "t.npy[0]" in refused.err or "row 0 (line 2), column pressure" in refused.err
    assert refused.err.endswith("or leave such rows out with --missing drop\n")
    found = VAE.load(rows).read(f"t.{suffix}", drop_missing=True)
    assert (len(found), list(found.names())) == (10, [f"t.{suffix}[{i}]" for i in kept])
    np.testing.assert_array_equal(np.concatenate(list(found.batches(3))), measured()[kept])
    printed = command(main, "--bundle", rows, "elbo", f"t.{suffix}", "--missing", "drop", "--format", "csv")
    assert printed.err == "vae-infer: note: 2 of 12 rows have a missing value and are left out\n"
    scored = [float(row["elbo"]) for row in csv.DictReader(io.StringIO(printed.out))]
    np.testing.assert_array_equal(scored, VAE.load(rows).elbo(measured()[kept], 16))
    for verb, written in (("reconstruct", "r.csv"), ("encode", "e.csv"), ("traverse", "w.csv")):
        made = command(main, "--bundle", rows, verb, f"t.{suffix}", "--missing", "drop", "-o", written)
        assert (made.code, "2 of 12 rows" in made.err) == (0, True)
        assert len(Path(written).read_text().splitlines()) == {"traverse": 34}.get(verb, 11)
    x[3, 0] = np.inf
    np.save("t.npy", x)
    with pytest.raises(InputError, match=r"t\.npy\[3\], column temp"):
        VAE.load(rows).read("t.npy", drop_missing=True).load()
    np.save("t.npy", np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="no row has all values"):
        VAE.load(rows).read("t.npy", drop_missing=True)


def test_how_a_table_is_read_is_said_where_it_matters(command, rows: Path):
    """A decimal comma, and lines of nothing; not a delimiter alone."""
    lines = Path("readings.csv").read_text().splitlines()
    plain = command(main, "--bundle", rows, "encode", "readings.csv").out
    Path("readings.csv").write_text("\n".join(lines).replace(",", ";"))
    other = command(main, "--bundle", rows, "encode", "readings.csv")
    assert (other.out, other.err) == (plain, "")
    lines = ["\n" + line if i == 3 else line for i, line in enumerate(lines)]
    Path("readings.csv").write_text("\n".join(lines).replace(",", ";").replace(".", ","))
    other = command(main, "--bundle", rows, "encode", "readings.csv")
    assert (other.out, other.err) == (
        plain,
        "vae-infer: note: numbers are read with a decimal comma: readings.csv\n"
        "vae-infer: note: 1 blank line is skipped\n",
    )
    said: list[str] = []
    parts = VAE.load(rows).follow(io.BytesIO(Path("readings.csv").read_bytes()), note=said.append)
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), measured())
    assert said == ["numbers are read with a decimal comma: standard input"]


def test_a_column_of_text_is_one_of_0_and_1_for_each_value(command, forge: Forge, tmp_path: Path, monkeypatch):
    """As the bundle knows them; a value that it does not know is 0 in all of them, and is said."""
    columns = [
        {"name": "gear=1", "of": "gear", "value": "1"},
        {"name": "temp", "mean": 20.0, "scale": 4.0},
        {"name": "colour=red", "of": "colour", "value": "red"},
        {"name": "gear=2", "of": "gear", "value": "2"},
        {"name": "colour=sea green", "of": "colour", "value": "sea green"},
    ]
    folder = bundles.linear(forge, "gaussian", (5,))
    manifest = json.loads((folder / MANIFEST).read_bytes()) | {"preprocessing": {"columns": columns}}
    (folder / MANIFEST).write_bytes(manifests.dump({name: manifest[name] for name in manifest if name != "sha256"}))
    monkeypatch.chdir(tmp_path)
    lines = ["colour,gear,temp", "red,1,20", '"sea green",2.0,24', "blue,1.0,16", "red,,20", "blue,2,12"]
    Path("t.csv").write_text("\n".join(lines))
    vae = VAE.load(folder)
    with pytest.raises(InputError, match=r"missing value: t\.csv, row 3 \(line 5\), column gear; fill it in"):
        vae.read("t.csv").load()
    found = vae.read("t.csv", drop_missing=True).load()
    expected = [[1, 20, 1, 0, 0], [0, 24, 0, 1, 1], [1, 16, 0, 0, 0], [0, 12, 0, 1, 0]]
    assert (found.x.tolist(), found.names) == (expected, ["t.csv[0]", "t.csv[1]", "t.csv[2]", "t.csv[4]"])
    said = command(main, "--bundle", folder, "elbo", "t.csv", "--missing", "drop").err
    what = "t.csv[2] and 1 more row have 'blue' in column colour, which training did not see: 0 in all columns of it"
    assert f"vae-infer: note: {what}\n" in said
    assert command(main, "--bundle", folder, "sample", "-n", 3, "-o", "s.csv").code == 0
    assert Path("s.csv").read_text().splitlines()[0] == "gear=1,temp,colour=red,gear=2,colour=sea green"
    np.testing.assert_array_equal(vae.read("s.csv").load().x, np.loadtxt("s.csv", delimiter=",", skiprows=1))
    Path("u.csv").write_text("colour,gear,temp\nred,1,\n")
    with pytest.raises(InputError, match=r"no row has all values: u\.csv; "):
        vae.read("u.csv", drop_missing=True)
    Path("u.csv").write_text("gear,temp\n1,20\n")
    with pytest.raises(InputError, match=r"no column colour: u\.csv; it has gear, temp"):
        vae.read("u.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": [1, 2]}\n', "JSON, which is not read: "),
        (b"[\n {}\n]\n", "JSON, which is not read: "),
        (b'[{"a": 1}]\n', "JSON, which is not read: "),
        (b"PAR1\x15\x04\x15", "file cannot be read (it is Parquet; save it as CSV): "),
        (b"\xd0\xcf\x11\xe0\xa1", "file cannot be read (it is an old workbook of sheets; save it as CSV): "),
        (None, "file cannot be read (it is a workbook of sheets; save one of them as CSV): "),
    ],
    ids=["object", "list", "records", "parquet", "xls", "xlsx"],
)
def test_other_kinds_of_tables_are_named(rows: Path, content: bytes | None, words: str):
    """With what to do; a header that begins with a bracket is one."""
    if content is None:
        workbook = io.BytesIO()
        with zipfile.ZipFile(workbook, "w") as archive:
            archive.writestr("xl/workbook.xml", "<workbook/>")
        content = workbook.getvalue()
    Path("t").write_bytes(content)
    with pytest.raises(InputError) as caught:
        VAE.load(rows).read("t")
    assert str(caught.value).startswith(words)
    assert table("[kPa],b\n1,2\n").layout.names == ("[kPa]", "b")
