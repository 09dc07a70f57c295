"""The report of a run: its figures are the run's, its pictures the model's, and it needs nothing but itself."""

import base64
import dataclasses
import io
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

import vae_train
from vae_export import cli as export_cli
from vae_runtime import cli as runtime_cli
from vae_runtime.observation import Observation
from vae_train import cli, data, pictures, pixels, report, run_folder, train
from vae_train.api import draw_report
from vae_train.config import PRESETS, Place
from vae_train.listener import Listener
from vae_train.metrics import trouble

SECTIONS = [
    "Signs of trouble", "Samples", "Reconstructions", "Latent traversals", "Training", "Latent space",
    "KL per dimension", "Scores", "Test figures", "Epochs", "Settings", "Go on",
]  # fmt: skip
PNGS = ["samples.png", "reconstructions.png", "traversals.png", "latents.png", "kl.png", "scores.png", "curves.png"]
BLUE = (31, 119, 180)  # matplotlib's first colour
VOID = {"meta", "img"}
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "style"}  # attributes that can fetch
NASTY = """a <b>&"'${x}.npz"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


class Page(HTMLParser):
    """A page taken apart: tags with their attributes, the text of each section, the table rows; tags must balance."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {"": ""}
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag."""
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        """Keep the text where it belongs."""
        if not self.open:
            return
        for tag in set(self.open):
            self.texts[tag][-1] += text
        if self.open[-1] == "h2":
            self.sections[text] = ""
        elif "style" not in self.open:
            self.sections[next(reversed(self.sections))] += text
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text

    def facts(self) -> dict[str, str]:
        """The settings' names and values."""
        return dict(zip(self.texts["dt"], self.texts["dd"], strict=True))

    def images(self) -> list[Image.Image]:
        """The pictures in the page."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, encoded = attributes["src"].partition(",")
                assert kind == "data:image/png;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))))
                found[-1].load()
                assert found[-1].size == (int(attributes["width"]), int(attributes["height"]))
                assert attributes["alt"]
        return found


def read(path: Path) -> Any:
    """A JSON file's value."""
    return json.loads(path.read_bytes())


def opened(page: Path, profile: Path, *options: str) -> tuple[str, list[str], list[str]]:
    """A page in Chromium: its DOM, the addresses it asked for besides files and data, and its console's lines."""
    log = profile / "net.json"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run",
            "--enable-logging=stderr", "--v=0", f"--log-net-log={log}", *options, "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logged = read(log)
    start = logged["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event["params"] for event in logged["events"] if event["type"] == start and "url" in event["params"]]
    # what the browser asks for on its own behalf has no origin
    asked = [job["url"] for job in started if job.get("initiator") != "not an origin"]
    outside = [url for url in asked if not url.startswith(("file:", "data:"))]
    return done.stdout, outside, re.findall(r":CONSOLE[:(].*", done.stderr)


@pytest.fixture(scope="module")
def page(tiny_run: Path) -> Page:
    """The report of `tiny_run`."""
    return Page(tiny_run / report.PAGE)


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(tiny_run, tmp_path / "a run"))


def trained(tmp_path: Path, name: str, x: np.ndarray, y: list[str] | None = None, **settings: Any) -> Path:
    """The run of a small network on images of one's own, kept in a file of this name."""
    np.savez(tmp_path / name, x=x, **({"y": np.array(y)} if y else {}))
    small = {"hidden": (16,), "latent_dim": 2, "epochs": 1, "dataset": str(tmp_path / name)}
    config = PRESETS["tutorial"].replace(**{**small, **settings})
    train.train(config, tmp_path / "run", Place(tmp_path, download=False, device="cpu"), command=f"vae-train {name}")
    return tmp_path / "run"


def noise(*shape: int) -> np.ndarray:
    """Grey levels."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_every_section_is_there_in_order(page: Page) -> None:
    """The headline, then each section once, none of them empty."""
    assert page.texts["h2"] == SECTIONS
    assert page.texts["h1"] == ["mnist, preset tutorial"]
    assert all(page.sections[title].strip() for title in SECTIONS)


def test_headline_is_the_test_elbo(tiny_run: Path, page: Page) -> None:
    """The ELBO with its standard error, what it was measured on, the size of the model; bits per dimension too."""
    evaluation = read(tiny_run / "evaluation.json")
    elbo = evaluation["figures"]["elbo"]
    weights = sum(np.prod(w.shape) for w in run_folder.load(tiny_run).vae.state_dict().values())
    seconds = round(sum(row["seconds"] for row in run_folder.read_metrics(tiny_run)))
    bits = f"{-elbo['mean'] / (784 * math.log(2)):.3f} bits per dimension"
    for text in (
        f"test ELBO{elbo['mean']:,.2f} ± {elbo['standard_error']:,.2f}nats per image; {bits}\n",
        "297 test images of mnist; standard-normal prior",
        f"{weights:,.0f} weights, 4 latent dimensions, bernoulli likelihood; 2 epochs in {seconds} s.",
    ):
        assert text in page.sections[""]
    assert evaluation["binarisation"] in page.sections["Test figures"]


def test_tables_hold_the_runs_figures(tiny_run: Path, page: Page) -> None:
    """Test figures with standard errors, and a row of metrics for each epoch, to the digits shown."""
    figures = read(tiny_run / "evaluation.json")["figures"]
    rows = [["nats per image", "mean", "standard error", "bits per dimension"]]
    for name, key in {"ELBO": "elbo", "reconstruction": "reconstruction", "KL": "kl"}.items():
        bits = f"{-figures[key]['mean'] / (784 * math.log(2)):.3f}" if name == "ELBO" else ""  # of log p(x) alone
        rows.append([name, f"{figures[key]['mean']:,.3f}", f"{figures[key]['standard_error']:,.3f}", bits])
    assert page.rows[:4] == rows
    for epoch, shown in zip(run_folder.read_metrics(tiny_run), page.rows[5:], strict=True):
        named = dict(zip(page.rows[4], shown, strict=True))
        for name, key in {
            "epoch": "epoch", "train ELBO": "train_elbo", "test ELBO": "test_elbo", "±": "test_standard_error",
            "reconstruction": "test_reconstruction", "KL": "test_kl", "active": "active_units",
            "gradient": "gradient_norm", "skipped": "skipped_steps", "seconds": "seconds",
        }.items():  # fmt: skip
            assert float(named[name].replace(",", "")) == pytest.approx(epoch[key], abs=0.051)
    for part in ("dataset: mnist", "split: test", "images: 297", "seed 777", "prior: standard-normal"):
        assert part in page.sections["Test figures"]


def test_settings_say_how_the_run_was_made(tiny_run: Path, page: Page) -> None:
    """Every setting, the images and their preprocessing, the command, device, threads and version."""
    facts = page.facts()
    settings = read(tiny_run / "config.json")
    preset, parts = settings["config"].pop("preset"), settings["config"].values()
    for name, value in {"preset": preset, **{name: value for part in parts for name, value in part.items()}}.items():
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            assert facts[name.replace("_", " ")] == (shown or "none")
    assert (facts["shape"], facts["training images"], facts["test images"]) == ("1 x 28 x 28", "1,500", "297")
    assert facts["sha256"] == settings["data_sha256"]
    for name, value in {**settings["preprocessing"], **settings["provenance"]}.items():
        assert facts[name] == str(value)
    assert {"command", "device", "threads", "torch", "training seconds"} <= facts.keys()


def test_bounds_appear_once_they_are_measured(copied: Path, digits_root: Path) -> None:
    """`evaluate`, then `report`: each bound of log p(x) with its K, in the headline and in the table."""
    for num_samples in (2, 20):
        vae_train.evaluate(copied, num_samples, data_root=digits_root, device="cpu")
    draw_report(copied, data_root=digits_root)
    page, figures = Page(copied / report.PAGE), read(copied / "evaluation.json")["figures"]
    for num_samples in (2, 20):
        bound = figures[f"log_likelihood_{num_samples}"]
        name = f"log p(x) ≥ (K = {num_samples})"
        assert f"{name}{bound['mean']:,.2f} ± {bound['standard_error']:,.2f}nats" in page.sections[""]
        bits = f"{-bound['mean'] / (784 * math.log(2)):.3f}"
        assert [name, f"{bound['mean']:,.3f}", f"{bound['standard_error']:,.3f}", bits] in page.rows


def test_trouble_is_told_in_words(copied: Path, digits_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the training has said of its figures, even of those that are good by now, and "None." where that is nothing.

    As many epochs are asked for as are steps enough. The pictures, which take seconds, are drawn once.
    """
    images = data.load(PRESETS["tutorial"], digits_root, download=False)
    drawn = pictures.draw(copied, run_folder.load(copied), images)
    monkeypatch.setattr(pictures, "draw", lambda *given: drawn)
    settings = read(copied / "config.json")
    settings["config"]["optimiser"]["epochs"] = 25
    run_folder.write_json(copied / "config.json", settings)
    row = run_folder.read_metrics(copied)[-1]
    bad, worse = {**row, "active_units": 0}, {**row, "skipped_steps": 3}
    for changed, expected in (
        ([row] * 25, []),
        ([*[row] * 24, bad], trouble([bad], 4)),
        ([*[row] * 9, bad, *[row] * 15], [f"at epoch 10, passed since: {line}" for line in trouble([bad], 4)]),
        ([worse, *[row] * 23, bad], trouble([worse, bad], 4)),
    ):
        run_folder.write_metrics(copied, [{**each, "epoch": i} for i, each in enumerate(changed, 1)])
        draw_report(copied, data_root=digits_root)
        page = Page(copied / report.PAGE)
        assert page.texts["li"][: len(expected)] == expected
        assert (page.sections["Signs of trouble"].strip() == "None.") is (not expected)


def test_what_a_training_said_of_its_images_is_in_the_report(tmp_path: Path) -> None:
    """The warnings of too few images and steps, word for word, and how many files could not be read."""
    (tmp_path / "photos").mkdir()
    for i, levels in enumerate(noise(60, 8, 8)):
        Image.fromarray(levels).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    config = PRESETS["tutorial"].replace(dataset=str(tmp_path / "photos"), image_size=(8, 8), hidden=(4,), latent_dim=2)
    said: list[str] = []
    listener = Listener(warn=said.append)
    train.train(config.replace(epochs=5), tmp_path / "run", Place(tmp_path), "vae-train", listener=listener)
    line = "few steps: 5 in the whole run; give more --epochs, 300 at least"
    few = said[said.index(line) - 1]
    assert few.startswith("few images: ")
    shown = Page(tmp_path / "run" / report.PAGE).texts["li"]
    assert shown[:3] == [few, line, "1 image file could not be read; left out"]


def test_a_long_training_has_a_short_table(copied: Path, digits_root: Path) -> None:
    """Of 1,000 epochs at most 30 rows, among them the first, the last and the best, which is bold and named."""
    row = run_folder.read_metrics(copied)[-1]
    rows = [{**row, "epoch": i, "test_elbo": -abs(i - 777) - 100.0} for i in range(1, 1001)]
    run_folder.write_metrics(copied, rows)
    draw_report(copied, data_root=digits_root)
    page = Page(copied / report.PAGE)
    epochs = [int(row[0]) for row in page.rows[5:]]
    assert epochs == sorted(set(epochs))
    assert {1, 777, 1000} <= set(epochs)
    assert 20 <= len(epochs) <= 30
    assert f"{len(epochs)} of 1000 measured epochs" in page.sections["Epochs"]
    bold = [i for i, (tag, attributes) in enumerate(t for t in page.tags if t[0] == "tr") if "class" in attributes]
    assert [page.rows[i][0] for i in bold] == ["777"]
    assert "--best makes evaluate and export take those of epoch 777" in page.sections["Go on"]


def test_the_page_refers_to_nothing_outside(page: Page) -> None:
    """No script, link, frame or style that fetches; every image is in the page; a policy forbids the rest."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "svg", "video", "audio", "a"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in LOADING or value.startswith("data:image/png;base64,"), (tag, name)
            assert not name.startswith("on")
            assert name == "src" or "//" not in value
    assert not re.search(r"url\(|@import|//", page.texts["style"][0])
    assert page.source.startswith("<!DOCTYPE html>\n")
    assert ("html", {"lang": "en"}) in page.tags
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_pictures_lie_in_the_folder_too(tiny_run: Path, page: Page) -> None:
    """Seven PNGs, those of the page among them pixel by pixel, and nothing half-written."""
    assert {path.name for path in tiny_run.glob("*.png")} == set(PNGS)
    assert not list(tiny_run.glob(".*"))
    shown = {image.tobytes() for image in page.images()}
    assert len(page.images()) == 12  # of which six are parts of curves.png
    for name in PNGS[:-1]:
        assert Image.open(tiny_run / name).tobytes() in shown, name
    curves = np.asarray(Image.open(tiny_run / "curves.png"))
    charts = [np.asarray(image) for image in page.images()[3:9]]
    np.testing.assert_array_equal(
        curves, np.block([[[a], [b]] for a, b in zip(charts[::2], charts[1::2], strict=True)])
    )
    assert all(len(np.unique(chart)) > 10 for chart in charts)


def test_drawing_again_gives_the_same_page(copied: Path, tiny_run: Path, digits_root: Path) -> None:
    """Same run, same bytes of every picture and of the page but its commands; torch's generator is left alone."""
    run, images = run_folder.load(copied), data.load(PRESETS["tutorial"], digits_root, download=False)
    before = torch.get_rng_state()
    report.draw(copied, run, images)
    assert torch.equal(torch.get_rng_state(), before)
    for name in PNGS:
        assert (copied / name).read_bytes() == (tiny_run / name).read_bytes()
    pages = [(run / report.PAGE).read_text().replace(shlex.quote(str(run)), "RUN") for run in (copied, tiny_run)]
    assert pages[0].partition("<pre>")[0] == pages[1].partition("<pre>")[0]


def crop(picture: np.ndarray, top: int, left: int, side: int, scale: int) -> np.ndarray:
    """The image at this place of a grid, [side, side, C]; each of its pixels must be a square of equal ones."""
    large = picture[top : top + side * scale, left : left + side * scale]
    small = large[::scale, ::scale]
    np.testing.assert_array_equal(large, small.repeat(scale, axis=0).repeat(scale, axis=1))
    return small


def pairs(picture: np.ndarray, count: int, side: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The left and the right images of a grid of pairs, four to a row: 2 grey pixels within, 10 between, 6 outside."""
    size = side * scale
    corners = [(6 + i // 4 * (size + 10), 6 + i % 4 * (2 * size + 12)) for i in range(count)]
    lefts = [crop(picture, top, left, side, scale) for top, left in corners]
    rights = [crop(picture, top, left + size + 2, side, scale) for top, left in corners]
    return np.stack(lefts), np.stack(rights)


def as_levels(images: torch.Tensor) -> np.ndarray:
    """Images in [0, 1], others cut off, as levels [n, H, W, C]."""
    return np.rint(images.clamp(0, 1).numpy() * 255).astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretised-logistic"])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 64)])
@torch.no_grad()
def test_pictures_show_the_models_images_with_hard_pixels(likelihood: str, channels: int, side: int) -> None:
    """Pairs of image and E[x|z], draws beside their means, traversals from -3 to 3: levels within 0 to 255."""
    from vae_train import networks

    torch.manual_seed(1)
    config = PRESETS["tutorial"].replace(likelihood=likelihood, latent_dim=3)
    vae = networks.build(config, (channels, side, side))
    if likelihood == "gaussian":
        vae.decoder.load_state_dict({k: 4 * w for k, w in vae.decoder.state_dict().items()})  # means outside [0, 1]
    x = (
        torch.rand(8, channels, side, side).round()
        if likelihood == "bernoulli"
        else torch.rand(8, channels, side, side)
    )
    scale = {8: 11, 32: 2, 64: 1}[side]

    left, right = pairs(pictures.reconstructions(vae, x), 8, side, scale)
    np.testing.assert_array_equal(left, as_levels(x))
    np.testing.assert_array_equal(right, as_levels(vae.likelihood.mean(vae.decoder(vae.encoder(x)[0]))))

    drawn, means = pairs(pictures.samples(vae, 8), 8, side, scale)
    torch.manual_seed(0)
    parameters = vae.decoder(torch.randn(8, 3))
    np.testing.assert_array_equal(means, as_levels(vae.likelihood.mean(parameters)))
    np.testing.assert_array_equal(drawn, as_levels(vae.likelihood.sample(parameters)))

    rest = torch.tensor([0.5, -1.0, 2.0])
    grid, chosen = pictures.traversals(vae, [0.1, 5.0, 0.2], rest)
    assert chosen == [1, 2, 0]
    scale = {8: 8, 32: 2, 64: 1}[side]
    step = side * scale + 2
    for row, latent in enumerate(chosen):
        z = rest.repeat(11, 1)
        z[:, latent] = torch.linspace(-3, 3, 11)
        expected = as_levels(vae.likelihood.mean(vae.decoder(z))).astype(int)
        found = np.stack([crop(grid, 2 + row * step, 2 + column * step, side, scale) for column in range(11)])
        assert np.abs(found - expected).max() <= 1  # a batch of another size rounds otherwise
    assert all(grid.shape[1] <= pictures.WIDTH for grid in (pictures.samples(vae, 8), grid))


@torch.no_grad()
def test_traversals_go_where_a_learned_priors_latents_lie() -> None:
    """Three standard deviations to either side of each latent's mean under the prior, and not about 0."""
    from vae_train import networks

    vae = networks.build(PRESETS["tutorial"].replace(latent_dim=3, prior="flow"), (1, 8, 8))
    for coupling in vae.prior.couplings:
        coupling.body[-1].bias[:3] = torch.tensor([2.0, 0.0, -1.0])
    torch.manual_seed(3)
    z = vae.sample_prior(20_000)
    rest = z[0]
    grid, _ = pictures.traversals(vae, [3.0, 2.0, 1.0], rest)
    for row in range(3):
        ends = rest.repeat(2, 1)
        ends[:, row] = z[:, row].mean() + z[:, row].std() * torch.tensor([-3.0, 3.0])
        expected = as_levels(vae.likelihood.mean(vae.decoder(ends))).astype(int)
        found = np.stack([crop(grid, 2 + row * 66, 2 + column * 66, 8, 8) for column in (0, 10)])
        assert np.abs(found - expected).max() <= 6  # levels: of 500 draws, mean and deviation are known to 5%
        about_zero = rest.repeat(2, 1)
        about_zero[:, row] = torch.tensor([-3.0, 3.0])
        elsewhere = as_levels(vae.likelihood.mean(vae.decoder(about_zero))).astype(int)
        assert row == 1 or np.abs(found - elsewhere).max() > 12


def test_traversals_name_their_rows(tiny_run: Path, page: Page) -> None:
    """Each latent dimension with its KL, the largest first."""
    kl = read(tiny_run / "evaluation.json")["kl_per_dimension"]
    order = sorted(range(4), key=lambda i: -kl[i])
    assert page.texts["li"][-4:] == [f"z{i} {kl[i]:.2f} nats" for i in order]
    assert f"Together {sum(kl):.2f} nats" in page.sections["KL per dimension"]


@pytest.mark.parametrize(
    ("images", "classes", "settings"),
    [
        pytest.param((30, 1, 8, 8), 1, {"latent_dim": 1}, id="one class, one latent"),
        pytest.param((60, 1, 9, 5), 25, {"lr": 1e-9}, id="more classes than a legend holds, nothing learned"),
        pytest.param((60, 3, 8, 8), 2, {"likelihood": "gaussian"}, id="colour, a density"),
        pytest.param((40, 3, 64, 64), 3, {"likelihood": "discretised-logistic"}, id="colour, 64x64, levels"),
    ],
)
def test_odd_runs_have_whole_reports(
    tmp_path: Path, images: tuple[int, ...], classes: int, settings: dict[str, Any]
) -> None:
    """One epoch, few test images, any number of classes with any names, each likelihood: no section is missing."""
    names = [f"_$\\bad{{{i % classes}$ 語{'long' * 20}" for i in range(images[0])] if classes > 1 else None
    run = trained(tmp_path, NASTY, noise(*images), names, **settings)
    page = Page(run / report.PAGE)
    assert page.texts["h2"] == SECTIONS
    assert len(page.images()) == 12
    number = read(run / "evaluation.json")["observations"]
    assert number < 64
    assert f"{number} test images" in page.sections[""]
    assert f"classes{classes}" in page.sections["Settings"]
    mean = read(run / "evaluation.json")["figures"]["elbo"]["mean"]
    bits = f"nats per image; {-mean / (math.log(2) * math.prod(images[1:])):.3f} bits per dimension"
    assert (bits in page.sections[""]) is (settings.get("likelihood") != "gaussian")
    few = number < pictures.FEWEST_MAPPED
    assert ("by its class" in page.sections["Latent space"]) is (classes > 1 and not few)
    assert ("A map needs 16 test images." in page.sections["Latent space"]) is few

    # names that mean something in HTML are text
    assert page.facts()["dataset"] == str(tmp_path / NASTY)
    assert page.facts()["command"] == f"vae-train {NASTY}"
    assert page.texts["h1"] == [f"{NASTY}, preset tutorial"]
    assert page.texts["title"] == [f"{tmp_path / NASTY}, preset tutorial"]
    assert NASTY not in page.source


@pytest.mark.parametrize(
    "mu", [np.eye(16), np.zeros((20, 3)), np.arange(30)[:, None]], ids=["the fewest", "all alike", "one dimension"]
)
def test_any_means_have_a_map(mu: np.ndarray) -> None:
    """Few test means, equal ones, numbers: each has a finite place, and no warning comes."""
    placed = pictures._tsne(mu.astype(np.float32))
    assert placed.shape == (len(mu), 2)
    assert np.isfinite(placed).all()
    picture = pictures.latents(mu.astype(np.float32), np.zeros(len(mu), np.int64), ["all"])
    assert BLUE in {tuple(colour) for colour in picture.reshape(-1, 3)}


@pytest.mark.parametrize("count", [1, 15])
def test_means_too_few_for_a_map_have_words(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dots, which would look like a map: the picture says how many test images there are, and that is too few."""
    shown: list[str] = []
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, words, **style: shown.append(words))
    picture = pictures.latents(np.zeros((count, 2), np.float32), np.zeros(count, np.int64), ["all"])
    assert shown == [f"test images: {count}, too few for t-SNE"]
    assert BLUE not in {tuple(colour) for colour in picture.reshape(-1, 3)}


def test_of_many_test_images_the_map_has_some(copied: Path, digits_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more than t-SNE can place soon, every other, third, ... is chosen, each with its own label."""
    monkeypatch.setattr(pictures, "_MAPPED", 120)
    draw, seen = pictures.latents, []
    monkeypatch.setattr(pictures, "latents", lambda *given: seen.append(given) or draw(*given))
    draw_report(copied, data_root=digits_root)
    images = data.load(PRESETS["tutorial"], digits_root, download=False)
    vae, x = run_folder.load(copied).vae, pixels.unit(images.observed_test(binary=True))
    mu, labels, *_ = seen[0]
    assert len(mu) == 99
    np.testing.assert_allclose(mu, vae.encoder(x)[0].detach()[::3], atol=1e-5)
    np.testing.assert_array_equal(labels, images.test_labels[::3])


@pytest.mark.parametrize("first", [-1e5, math.nan])
def test_the_first_epochs_do_not_squeeze_the_charts(tiny_run: Path, first: float) -> None:
    """Where the ELBO begins far below, its later epochs still take most of the chart's height."""
    row = run_folder.read_metrics(tiny_run)[0]
    elbos = [first, *np.linspace(-120, -100, 29)]
    rows = [{**row, "epoch": i, "train_elbo": elbo, "test_elbo": elbo - 1} for i, elbo in enumerate(elbos, 1)]
    elbo_chart = pictures.curves(rows, 4)[0]
    late = elbo_chart[:, elbo_chart.shape[1] // 4 :]
    heights = np.flatnonzero((late == BLUE).all(axis=2).any(axis=1))
    assert np.ptp(heights) > 0.5 * len(late)


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["dog", "Ärzte", "$x_1$", "собака"], ["dog", "Ärzte", "$x_1$", "собака"]),
        (["dog", "猫"], ["0", "1"]),
        (["כלב", "dog"], ["0", "1"]),
        (["कुत्ता", "dog"], ["0", "1"]),
    ],
)
def test_the_map_has_numbers_where_it_cannot_write_a_name(names: list[str], written: list[str]) -> None:
    """A font that lacks a script draws boxes for it; the page names the numbers in text then."""
    assert pictures.labelled(names) == written
    images = data.Data(
        torch.zeros(90, 1, 2, 2), torch.zeros(30, 1, 2, 2), torch.zeros(30), names, {}, Observation.image((1, 2, 2))
    )
    caption = report._map(images)
    assert all((f"{number} {name}" in caption) == (written != names) for number, name in enumerate(names))


def test_classes_lie_apart_in_the_map() -> None:
    """Means of two far groups: every point's nearest neighbour is of its own class, and each class has its colour."""
    labels = np.arange(100) % 2
    mu = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32) + 20 * labels[:, None]
    placed = pictures._tsne(mu.astype(np.float32))
    distance = np.linalg.norm(placed[:, None] - placed[None], axis=2) + 1e9 * np.eye(100)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    picture = pictures.latents(mu.astype(np.float32), labels, ["even", "odd"])
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)}
    assert {BLUE, (255, 127, 14)} <= colours  # matplotlib's first two


@pytest.mark.slow
def test_commands_run_as_printed(
    copied: Path, digits_root: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    """Evaluate, report, export and sample, as the page has them but fewer samples; the folder has a space."""
    draw_report(copied, data_root=digits_root)
    monkeypatch.chdir(copied.parent)
    monkeypatch.setenv("VAE_EDGE_DATA", str(digits_root))
    mains = {"vae-train": cli.main, "vae-export": export_cli.main, "vae-infer": runtime_cli.main}
    lines = [shlex.split(line) for line in Page(copied / report.PAGE).texts["pre"][0].splitlines()]
    assert [line[0] for line in lines] == ["vae-train", "vae-train", "vae-export", "vae-infer"]
    for name, *arguments in lines:
        done = command(mains[name], *("5" if word == "500" else word for word in arguments))
        assert done.code == 0, (arguments, done.err)
    assert "log_likelihood_5" in read(copied / "evaluation.json")["figures"]
    assert "(K = 5)" in (copied / report.PAGE).read_text()
    assert Path("samples.png").exists()


def test_commands_name_a_runs_own_networks(copied: Path, digits_root: Path) -> None:
    """A run with networks of its own needs `--model` to be evaluated, reported on and exported, and not to be used."""
    run = run_folder.load(copied)
    own = dataclasses.replace(run.settings, config=run.config.replace(model="my nets:make"))
    images = data.load(run.config, digits_root, download=False)
    report.draw(copied, dataclasses.replace(run, settings=own), images)
    lines = [shlex.split(line) for line in Page(copied / report.PAGE).texts["pre"][0].splitlines()]
    at = str(copied)
    assert lines == [
        ["vae-train", "evaluate", at, "--samples", "500", "--model", "my nets:make"],
        ["vae-train", "report", at, "--model", "my nets:make"],
        ["vae-export", at, "--out", "bundles/a run", "--model", "my nets:make"],
        ["vae-infer", "--bundle", "bundles/a run", "sample", "-n", "16"],
    ]
    assert Page(copied / report.PAGE).texts["h1"] == ["mnist, networks my nets:make"]  # the preset made none of them


@needs_chromium
def test_a_browser_opens_the_page_and_nothing_else(tiny_run: Path, tmp_path: Path) -> None:
    """Chromium shows every section, asks for no other address, and has nothing to say of the page."""
    dom, outside, console = opened(tiny_run / report.PAGE, tmp_path)
    assert all(f"<h2>{title}</h2>" in dom for title in SECTIONS)
    assert outside == []
    assert console == []


@needs_chromium
@pytest.mark.parametrize(
    ("body", "asked", "said"),
    [
        ('<img alt="" src="http://127.0.0.1:9/x">', "http://127.0.0.1:9/x", False),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "https://example.org/x.css", False),
        ("<style>p { background: url(http://[::1]:9/y) }</style><p>y", "http://[::1]:9/y", False),
        ("<script>nothing.here()</script>", None, True),
    ],
    ids=["image", "style sheet", "background", "script error"],
)
def test_a_browser_would_notice(tmp_path: Path, body: str, asked: str | None, said: bool) -> None:
    """The check above can fail: whatever comes from outside is a request, and a broken script a console line."""
    page = tmp_path / "page.html"
    page.write_text(f'<!DOCTYPE html><html lang="en"><title>x</title>{body}')
    _, outside, console = opened(page, tmp_path / "profile")
    assert outside == ([asked] if asked else [])
    assert any("nothing is not defined" in line for line in console) is said


@needs_chromium
@pytest.mark.parametrize("width", [500, 1200])
def test_nothing_is_wider_than_the_screen(tiny_run: Path, tmp_path: Path, width: int) -> None:
    """On a phone and on a desktop the page needs no scrolling sideways."""
    source = (tiny_run / report.PAGE).read_text()
    measure = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join(' ')</script></body>"
    source = re.sub(r"<meta http-equiv=[^>]*>", "", source).replace("</body>", measure)
    (tmp_path / "page.html").write_text(source)
    dom, _, _ = opened(tmp_path / "page.html", tmp_path / "profile", f"--window-size={width},800")
    wide, screen = map(int, re.search(r"<title>(\d+) (\d+)</title>", dom).groups())  # type: ignore[union-attr]
    assert screen == width
    assert wide <= screen


def test_the_images_of_the_page_are_those_the_run_was_measured_on(tiny_run: Path, digits_root: Path) -> None:
    """The left images of the reconstructions are the fixed binary draw of the first test images."""
    images = data.load(PRESETS["tutorial"], digits_root, download=False)
    observed = pixels.unit(images.observed_test(binary=True))[:32]
    left, _ = pairs(np.asarray(Image.open(tiny_run / "reconstructions.png"))[..., None], 32, 28, 3)
    np.testing.assert_array_equal(left, as_levels(observed))
