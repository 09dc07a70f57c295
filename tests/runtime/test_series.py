"""Series on the device: rows of tables, arrays and streams become windows, whose scores name the rows they cover."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support import bundles
from support.bundles import Forge
from vae_runtime import VAE, InputError, streams
from vae_runtime.cli import main

LENGTH, STRIDE = 6, 2
COLUMNS = [{"name": "flow", "mean": 20.0, "scale": 4.0}, {"name": "heat", "mean": 300.0, "scale": 9.0}]
ROWS = np.random.default_rng(3).normal(size=(25, 2)) * [4, 9] + [20, 300]
STARTS = list(range(0, 25 - LENGTH + 1, STRIDE))


def text(times: np.ndarray | None = None, rows: np.ndarray = ROWS) -> str:
    """The rows as a table, with a column that the model does not take, and its own ones in another order."""
    times = np.arange(len(rows)) * 10.0 if times is None else times
    lines = (f"{time:g},{heat!r},x,{flow!r}" for time, (flow, heat) in zip(times, rows.tolist(), strict=True))
    return "\n".join(["when,heat,note,flow", *lines, ""])


@pytest.fixture
def series(forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a model of windows; rows.csv lies in the working folder."""
    how = {"columns": COLUMNS, "windows": {"stride": STRIDE, "time": "when", "interval": 10.0}}
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text(text())
    return bundles.changed(bundles.linear(forge, "gaussian", (2, LENGTH)), preprocessing=how)


def windows(starts: list[int] = STARTS) -> np.ndarray:
    """The windows that begin at these rows, [n, 2, LENGTH]."""
    return np.stack([ROWS[start : start + LENGTH].T for start in starts])


def scored(printed: str) -> dict[str, float]:
    """The ELBO of each window by its name."""
    return {row["window"]: float(row["elbo"]) for row in csv.DictReader(io.StringIO(printed))}


def test_rows_become_windows_that_name_them(command, series: Path):
    """Those of tables and of arrays, by columns' names, scaled; the score of each is that of its own rows."""
    vae = VAE.load(series)
    read = vae.read("rows.csv")
    assert len(read) == len(STARTS)
    np.testing.assert_array_equal(np.concatenate(list(read.batches(3))), windows())
    result = command(main, "--bundle", series, "elbo", "rows.csv", "--format", "csv", "-K", 3)
    expected = vae.elbo(windows(), 3)
    assert scored(result.out) == {
        f"rows.csv[{start}:{start + LENGTH}]": elbo for start, elbo in zip(STARTS, expected, strict=True)
    }
    assert result.err.splitlines()[0] == (
        "vae-infer: note: rows.csv: 1 row is in no window, since no whole one begins there"
    )
    for name, array in {"rows": ROWS, "windows": windows()}.items():
        np.save(f"{name}.npy", array)
        done = command(main, "--bundle", series, "elbo", f"{name}.npy", "--format", "csv", "-K", 3)
        assert list(scored(done.out).values()) == expected.tolist(), name
    standardised = VAE.load(series, standardised=True)
    np.testing.assert_array_equal(standardised.elbo(vae.standardise(windows()), 3), expected)


def test_the_stride_may_be_another(command, series: Path):
    """One window at each row, or few that do not touch; models of other kinds have none."""
    for stride in (1, LENGTH, 9):
        result = command(main, "--bundle", series, "elbo", "rows.csv", "--format", "csv", "--stride", stride)
        assert list(scored(result.out)) == [f"rows.csv[{i}:{i + LENGTH}]" for i in range(0, 25 - LENGTH + 1, stride)]
    refused = command(main, "elbo", "rows.csv", "--stride", 3)
    assert (refused.code, "--stride is for models of series" in refused.err) == (2, True)


def test_gaps_in_time_are_noticed(command, series: Path):
    """No window crosses one; another sampling rate is said, or leaves no window; so is a table without times."""
    times = np.arange(25) * 10.0
    times[11:] += 35
    Path("rows.csv").write_text(text(times))
    result = command(main, "--bundle", series, "elbo", "rows.csv", "--format", "csv")
    starts = [0, 2, 4, *range(11, 20, 2)]
    assert list(scored(result.out)) == [f"rows.csv[{i}:{i + LENGTH}]" for i in starts]
    gap = "rows.csv: a gap in time (row 11 is 45 after the row before, usually 10), which no window crosses"
    assert gap in result.err
    np.testing.assert_array_equal(VAE.load(series).read("rows.csv").load().x, windows(starts))
    Path("rows.csv").write_text(text(np.arange(25) * 12.0))
    result = command(main, "--bundle", series, "elbo", "rows.csv")
    assert result.code == 0
    assert "rows.csv: rows are 12 apart in time, and those of the training 10" in result.err
    Path("rows.csv").write_text(text(np.arange(25) * 20.0))
    result = command(main, "--bundle", series, "elbo", "rows.csv")
    assert (result.code, result.out) == (4, "")
    assert "no window of 6 rows: rows.csv; give 6 or more, one after the other, 10 apart in time" in result.err
    Path("rows.csv").write_text(text().replace("when", "then"))
    result = command(main, "--bundle", series, "elbo", "rows.csv")
    assert "rows.csv: no column when, so that gaps in time are not looked for" in result.err


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_has_the_windows_of_the_file(series: Path, size: int):
    """However its bytes come, names apart."""

    class Slow(io.BytesIO):
        def read1(self, most: int | None = -1, /) -> bytes:
            return super().read1(size)

    vae = VAE.load(series)
    times = np.arange(25) * 10.0
    times[11:] += 35
    Path("rows.csv").write_text(text(times))
    notes: list[str] = []
    parts = list(vae.follow(Slow(Path("rows.csv").read_bytes()), note=notes.append))
    read = vae.read("rows.csv")
    assert [name for part in parts for name in part.names] == [
        name.replace("rows.csv", streams.NAME) for name in read.names()
    ]
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), read.load().x)
    assert notes[0] == (
        "standard input: a gap in time (row 11 is 45 after the row before, usually 10), which no window crosses"
    )


def test_a_window_is_scored_when_its_last_row_has_come(series: Path):
    """One line of a pipe gives one line out, at once, the same as of the file."""
    expected = VAE.load(series).elbo(windows(), 16)
    header, *lines = text().splitlines(keepends=True)
    call = [sys.executable, "-m", "vae_runtime", "--bundle", series, "elbo", "-"]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # nobody helps with flushing
    with subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unbuffered
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(header)
        found = {}
        for row, line in enumerate(lines):
            process.stdin.write(line)
            process.stdin.flush()
            if row + 1 - LENGTH in STARTS:
                if row + 1 == LENGTH:
                    assert process.stdout.readline().startswith("window,elbo,")
                found |= scored("window,elbo\n" + ",".join(process.stdout.readline().split(",")[:2]))
        process.stdin.close()
        assert process.wait() == 0
    assert found == {
        f"standard input[{start}:{start + LENGTH}]": elbo for start, elbo in zip(STARTS, expected, strict=True)
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty table: standard input; "),
        (b"when,heat,flow\n", "no window of 6 rows: standard input; "),
        (b"when,heat\n1,2\n", "no column flow: standard input; "),
        (b"when,heat,flow\n0,1,2\n10,,4\n", "missing value: standard input, row 1 (line 3), column heat; "),
        (b"when,heat,flow\n0,1,inf\n", "infinite value: standard input, row 0 (line 2), column flow; "),
        (b"when,heat,flow\n\xff,1,inf\n", "file cannot be read"),
    ],
)
def test_a_stream_that_does_not_fit_is_refused(series: Path, content: bytes, words: str):
    """In the words of a file's, when it comes to it."""
    with pytest.raises(InputError) as caught:
        list(VAE.load(series).follow(io.BytesIO(content)))
    assert str(caught.value).startswith(words)


def test_rows_come_as_a_stream_too(command, forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each row of a model of rows is scored when it has come."""
    folder = bundles.linear(forge, "gaussian", (3,))
    rows = np.random.default_rng(1).normal(size=(5, 3)).round(3)
    table = "\n".join(["a,b,c", *(",".join(map(str, row)) for row in rows.tolist())])
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(table.encode())))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", stdin)
    printed = command(main, "--bundle", folder, "elbo", "-", "--format", "csv").out
    found = {row["row"]: float(row["elbo"]) for row in csv.DictReader(io.StringIO(printed))}
    expected = VAE.load(folder).elbo(rows, 16)
    assert found == {f"standard input[{i}]": elbo for i, elbo in enumerate(expected)}


def test_windows_are_written_as_rows(command, series: Path):
    """A row for each step, under the channels' names, with the window's number; reconstructions beside them."""
    vae = VAE.load(series)
    assert command(main, "--bundle", series, "sample", "-n", 3, "--seed", 5).code == 0
    written = list(csv.DictReader(io.StringIO(Path("samples.csv").read_text())))
    assert list(written[0]) == ["window", "step", "flow", "heat"]
    assert [(int(row["window"]), int(row["step"])) for row in written] == [
        (window, step) for window in range(3) for step in range(LENGTH)
    ]
    values = np.array([[float(row[name]) for name in ("flow", "heat")] for row in written])
    np.testing.assert_array_equal(values.reshape(3, LENGTH, 2).transpose(0, 2, 1), vae.sample(3, 5))
    assert command(main, "--bundle", series, "reconstruct", "rows.csv").code == 0
    both = list(csv.DictReader(io.StringIO(Path("reconstructions.csv").read_text())))
    assert list(both[0]) == ["window", "step", "flow", "heat", "flow reconstructed", "heat reconstructed"]
    assert len(both) == len(STARTS) * LENGTH
    theta = np.array([[float(row[f"{name} reconstructed"]) for name in ("flow", "heat")] for row in both])
    expected = vae.reconstruct(windows())
    np.testing.assert_array_equal(theta.reshape(len(STARTS), LENGTH, 2).transpose(0, 2, 1), expected)


def test_each_channel_says_what_it_adds(command, series: Path):
    """The sums of its steps' contributions, which together are log p(x|z)."""
    vae = VAE.load(series)
    printed = command(main, "--bundle", series, "elbo", "rows.csv", "--by-column", "--format", "csv", "-K", 4).out
    found = list(csv.DictReader(io.StringIO(printed)))
    each = np.array([[float(row[f"log p({name})"]) for name in ("flow", "heat")] for row in found])
    np.testing.assert_allclose(each, vae.contributions(windows(), 4).sum(axis=2), rtol=1e-12)
    np.testing.assert_allclose(each.sum(axis=1), [float(row["reconstruction"]) for row in found], rtol=1e-6)


def test_rows_with_a_missing_value_are_left_out_where_asked(command, series: Path, tmp_path: Path):
    """No window crosses them, from files, arrays and streams alike; how many is said."""
    vae = VAE.load(series)
    lines = ["when,heat,flow", *(f"{10 * i},{i % 5},{'' if i == 9 else i * i % 7}" for i in range(24))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"missing value: .*, row 9 \(line 11\), column flow; fill it in, or "):
        vae.read(tmp_path / "t.csv").load()
    found = vae.read(tmp_path / "t.csv", 1, drop_missing=True).load()
    assert found.names == [f"{tmp_path}/t.csv[{i}:{i + 6}]" for i in [*range(4), *range(10, 19)]]
    parts = list(vae.follow(io.BytesIO((tmp_path / "t.csv").read_bytes()), 1, drop_missing=True))
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), found.x)
    rows = [[np.nan if i == 9 else i * i % 7, i % 5] for i in range(24)]
    np.save(tmp_path / "t.npy", rows)
    np.testing.assert_array_equal(vae.read(tmp_path / "t.npy", 1, drop_missing=True).load().x, found.x)
    said = command(main, "--bundle", series, "encode", tmp_path / "t.csv", "--missing", "drop").err
    assert "vae-infer: note: 1 of 24 rows have a missing value and are left out\n" in said


def test_a_stream_says_what_a_file_does(series: Path, tmp_path: Path):
    """Of the column of times that is not there, and of rows behind the last window; one late row is no other rate."""
    vae = VAE.load(series)
    times = np.arange(25) * 10.0
    times[1:] += 2
    for content in (text().replace("when", "then"), text(times)):
        Path("rows.csv").write_text(content)
        notes: list[str] = []
        list(vae.follow(io.BytesIO(content.encode()), note=notes.append))
        assert notes == [note.replace("rows.csv", streams.NAME) for note in vae.read("rows.csv").notes]


def test_a_stream_of_whole_numbers_may_have_a_decimal_comma_later(series: Path):
    """The first window's rows say how numbers are written."""
    rows = ["when;heat;flow", *(f"{10 * i};{300 + i};{20 + i}" for i in range(5)), "50;305,5;25,25"]

    class Lines(io.BytesIO):
        def read1(self, most: int | None = -1, /) -> bytes:
            return self.readline()

    (part,) = VAE.load(series).follow(Lines("\n".join(rows).encode()))
    assert part.x[0, :, -1].tolist() == [25.25, 305.5]


@pytest.mark.parametrize(("delimiter", "mark"), [(";", "."), (";", ","), ("\t", ",")])
def test_a_stream_of_rows_may_begin_with_whole_numbers(forge: Forge, delimiter: str, mark: str):
    """The first number that is not whole says how decimals are written, which is said where it is a comma."""
    rows = [["a", "b", "c"], ["1", "2", "3"], ["4", f"5{mark}5", "6"], ["7", f"8{mark}25", "9"]]
    lines = "\n".join(map(delimiter.join, rows)).encode()

    class Lines(io.BytesIO):
        def read1(self, most: int | None = -1, /) -> bytes:
            return self.readline()

    said: list[str] = []
    parts = VAE.load(bundles.linear(forge, "gaussian", (3,))).follow(Lines(lines), note=said.append)
    assert [part.x.tolist() for part in parts] == [[[1, 2, 3]], [[4, 5.5, 6]], [[7, 8.25, 9]]]
    assert said == ["numbers are read with a decimal comma: standard input"] * (mark == ",")


def test_a_folder_may_have_a_recording_without_a_window(command, series: Path):
    """It is said, and the others are scored; where none has one, that is an error."""
    Path("days").mkdir()
    Path("days/a.csv").write_text(text(rows=ROWS[:4]))
    Path("days/b.csv").write_text(text())
    result = command(main, "--bundle", series, "elbo", "days", "--format", "csv")
    assert list(scored(result.out)) == [f"days/b.csv[{i}:{i + LENGTH}]" for i in STARTS]
    assert "days/a.csv: 4 rows are in no window" in result.err
    Path("days/b.csv").unlink()
    result = command(main, "--bundle", series, "elbo", "days")
    assert (result.code, "no window of 6 rows: days/a.csv; give 6 or more" in result.err) == (4, True)


def test_written_windows_are_read_as_they_were(command, series: Path):
    """Those of `sample`, and reconstructions: none crosses two of them, and nothing is said of gaps."""
    vae = VAE.load(series)
    command(main, "--bundle", series, "sample", "-n", 4, "--seed", 2, "-o", "x.csv")
    result = command(main, "--bundle", series, "elbo", "x.csv", "--format", "csv", "-K", 3)
    np.testing.assert_array_equal(list(scored(result.out).values()), vae.elbo(vae.sample(4, 2), 3))
    assert (list(scored(result.out))[1], "gap" in result.err) == ("x.csv[6:12]", False)


def test_observations_that_are_not_loaded_are_named(series: Path):
    """What `read` gives is no array: the message says what is."""
    vae = VAE.load(series)
    with pytest.raises(InputError, match=r"give its .load\(\).x"):
        vae.elbo(vae.read("rows.csv"))  # type: ignore[arg-type]
