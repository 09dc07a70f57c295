"""calibrate and detect: from a folder of normal observations to a verdict on others, in each format."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from support.commands import Command
from vae_runtime import VAE, Detector
from vae_runtime.cli import main


@pytest.fixture
def sets(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with normal.npy, 300 of the tiny model's own samples, more.npy, and odd.npy, their negatives."""
    vae = VAE.load(tiny_bundle)
    np.save(tmp_path / "normal.npy", vae.sample(300, 1))
    np.save(tmp_path / "more.npy", vae.sample(20, 2))
    np.save(tmp_path / "odd.npy", 1 - vae.sample(10, 3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_EDGE_BUNDLE", str(tiny_bundle))
    return tmp_path


def test_from_normal_ones_to_a_verdict(sets: Path, command: Command) -> None:
    """The table names each, and the file is what `Detector` saves."""
    ran = command(main, "calibrate", "normal.npy")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "site.json: 300 different normal images, false alarms 1.00%\n"
    ran = command(main, "detect", "more.npy", "odd.npy", "--calibration", "site.json")
    assert (ran.code, ran.err) == (0, "")
    head, *rows, last = ran.out.splitlines()
    assert head.split() == ["image", "score", "p", "odd", "oddest"]
    assert [row.split()[0] for row in rows[19:21]] == ["more.npy[19]", "odd.npy[0]"]
    assert all("  odd  " in row for row in rows[20:])
    assert last == f"{sum('  odd  ' in row for row in rows)} of 30 odd, at 1.00% of false alarms"


@pytest.mark.parametrize("style", ["csv", "jsonl"])
def test_verdicts_for_programs(sets: Path, tiny_bundle: Path, command: Command, style: str) -> None:
    """Every digit, on stdout and in a file alike."""
    vae = VAE.load(tiny_bundle)
    detector = Detector.fit(vae, np.load("normal.npy"), 0.05)
    detector.save("site.json")
    expected = detector.verdict(np.load("odd.npy"))
    words = ("detect", "odd.npy", "--calibration", "site.json")
    printed = command(main, *words, "--format", style)
    written = command(main, *words, "-o", f"verdicts.{style}")
    assert written.out == f"verdicts.{style}: 10 of 10 images odd, at 5.00% of false alarms\n"
    assert Path(f"verdicts.{style}").read_text().splitlines() == printed.out.splitlines()
    if style == "csv":
        rows = list(csv.DictReader(io.StringIO(printed.out)))
    else:
        rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [float(row["score"]) for row in rows] == expected.score.tolist()
    assert [float(row["p"]) for row in rows] == expected.p.tolist()
    assert [bool(int(row["odd"])) for row in rows] == expected.odd.tolist()
    assert [row["oddest"] for row in rows] == expected.oddest.tolist()
    assert [float(row["deviation"]) for row in rows] == expected.deviation.tolist()


def test_an_exit_code_where_one_is_odd(sets: Path, command: Command) -> None:
    """1, and 0 where none is."""
    command(main, "calibrate", "normal.npy", "--false-alarms", "0.004")
    words = ("--calibration", "site.json", "--fail-on-odd")
    assert command(main, "detect", "odd.npy", *words).code == 1
    np.save("usual.npy", np.load("normal.npy")[:5])
    assert command(main, "detect", "usual.npy", *words).code == 0


def test_few_normal_ones_are_said_to_be_few(sets: Path, command: Command) -> None:
    """Of 30 nothing is below 3.2%, and the command says so; of 5 there is no telling."""
    np.save("few.npy", np.load("normal.npy")[:30])
    ran = command(main, "calibrate", "few.npy", "-o", "few.json")
    assert ran.err == (
        "vae-infer: note: of 30 normal ones no p is below 3.23%: that is the share of false alarms, on average "
        "over calibrations of so few, and not 1.00%; "
        "calibrate with more\n"
    )
    assert ran.out == "few.json: 30 different normal images, false alarms 3.23%\n"
    assert command(main, "detect", "odd.npy", "--calibration", "few.json").err == ran.err
    np.save("fewer.npy", np.load("normal.npy")[:5])
    ran = command(main, "calibrate", "fewer.npy", "-o", "fewer.json")
    assert (ran.code, ran.out) == (4, "")
    assert "too few normal images that differ: 5; give 20 or more" in ran.err
    assert not Path("fewer.json").exists()


def test_odd_ones_that_are_normal_ones_too_are_told(sets: Path, command: Command) -> None:
    """Equal ones, by their content: a folder that was named twice, say."""
    np.save("mixed.npy", np.concatenate([np.load("odd.npy"), np.load("normal.npy")[:3]]))
    ran = command(main, "calibrate", "normal.npy", "--odd", "mixed.npy")
    assert "3 of 13 odd ones are among the normal ones too" in ran.err
    assert "among the normal ones" not in command(main, "calibrate", "normal.npy", "--odd", "odd.npy").err


def test_a_threshold_by_hand_or_by_odd_ones(sets: Path, command: Command) -> None:
    """It takes the place of the rate; between normal and odd ones it catches those that are given."""
    ran = command(main, "calibrate", "normal.npy", "--odd", "odd.npy", "-o", "odd.json")
    assert "it catches 100.0% of 10 odd ones, and calls 0.3% of the normal ones odd" in ran.err
    assert "10 of 10 odd" in command(main, "detect", "odd.npy", "--calibration", "odd.json").out
    ran = command(main, "calibrate", "normal.npy", "--threshold", "-1000", "-o", "all.json")
    assert ran.out == "all.json: 300 different normal images, threshold -1000\n"
    assert "20 of 20 odd, by threshold -1000" in command(main, "detect", "more.npy", "--calibration", "all.json").out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("detect", "odd.npy"), 3, "bundle carries no calibration"),
        (("detect", "odd.npy", "--calibration", "absent.json"), 3, "calibration not read: absent.json"),
        (
            ("detect", "odd.npy", "--calibration", "odd.npy"),
            3,
            "not a calibration: odd.npy (it is no JSON); make one: vae-infer --bundle",
        ),
        (("calibrate", "normal.npy", "-o", "site.txt"), 2, "site.txt"),
        (("calibrate", "normal.npy", "--odd", "odd.npy", "--threshold", "1"), 2, "--threshold goes without --odd"),
        (("calibrate", "normal.npy", "--threshold", "nan"), 2, "--threshold is a score, not nan"),
        (("calibrate", "normal.npy", "--false-alarms", "1"), 2, "--false-alarms"),
        (("calibrate", "absent.npy"), 4, "absent.npy"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    sets: Path, command: Command, words: tuple[str, ...], code: int, message: str
) -> None:
    """With its exit code, and nothing on stdout."""
    ran = command(main, *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    assert message in ran.err


def test_the_shipped_model_needs_no_calibration_of_ones_own(command: Command) -> None:
    """It carries that of its test images: of the pictures beside it the one that is no digit is odd."""
    ran = command(main, "detect", Path(__file__).parents[2] / "examples" / "digits")
    odd = [line for line in ran.out.splitlines() if "  odd  " in line and ".png" in line]
    assert len(odd) == 1
    assert "not-a-digit.png" in odd[0]
