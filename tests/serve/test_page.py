"""The page of `vae-infer serve` in Chromium, by acts: it needs Chromium and `pip install playwright`."""

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import bundles
from support.bundles import Forge
from support.programs import Program, Start
from vae_runtime import VAE, Detector, latents
from vae_runtime.manifest import Named
from vae_runtime.observation import Observation

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
SEVEN = [(0.3, 0.27), (0.68, 0.25), (0.45, 0.8)]
TWO = [(0.3, 0.35), (0.4, 0.22), (0.6, 0.22), (0.68, 0.38), (0.3, 0.78), (0.72, 0.78)]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    """One Chromium for all tests."""
    with playwright.sync_playwright() as driver:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium has none for root
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page that is open, and what went wrong or elsewhere in it."""

    page: "playwright.Page"
    address: str
    wrong: list[str] = field(default_factory=list)
    asked: list[object] = field(default_factory=list)
    under_way: set[object] = field(default_factory=set)

    def draw(self, stroke: list[tuple[float, float]]) -> None:
        """Draw on the pad with the mouse, and wait until all has been answered."""
        pad = self.page.locator("#pad")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        self.page.mouse.move(*at[0])
        self.page.mouse.down()
        for point in at[1:]:
            self.page.mouse.move(*point, steps=12)
        self.page.mouse.up()
        self.page.wait_for_selector("#draw-made img")
        self.settle()

    def settle(self) -> None:
        """Wait until the page has asked for nothing for a while: between two requests it pauses for 60 ms."""
        quiet = 0
        while quiet < 6:
            before = len(self.asked)
            self.page.wait_for_timeout(50)
            quiet = 0 if self.under_way or len(self.asked) > before else quiet + 1

    def picture(self, selector: str) -> np.ndarray:
        """The levels of an image of the page."""
        url = self.page.locator(selector).first.get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"), np.float32)


def address_of(program: Program) -> str:
    """Where a service is reached that was just started."""
    return program.process.stdout.readline().decode().split()[1].rstrip(",")


@pytest.fixture(scope="module")
def service(start: Start) -> str:
    """The shipped model's service."""
    return address_of(start("--port", 0))


@pytest.fixture
def opened(browser: "playwright.Browser", request: pytest.FixtureRequest) -> Iterator:
    """Open the page at an address: `opened(service, viewport=PHONE, color_scheme="dark")`."""
    contexts, pages = [], []

    def call(address: str, viewport: dict[str, int] = DESKTOP, **settings: object) -> Opened:
        contexts.append(browser.new_context(viewport=viewport, **settings))
        page = contexts[-1].new_page()
        pages.append(Opened(page, address))
        page.on("pageerror", lambda error: pages[-1].wrong.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and pages[-1].wrong.append(said.text))
        page.on("request", asks)
        page.on("requestfinished", lambda made: pages[-1].under_way.discard(made))
        page.on("requestfailed", lambda made: pages[-1].under_way.discard(made))
        page.goto(address)
        page.wait_for_selector("body[data-ready=yes]")
        return pages[-1]

    def asks(made: object) -> None:
        if made.url.startswith(pages[-1].address):
            pages[-1].asked.append(made)
            pages[-1].under_way.add(made)
        elif not made.url.startswith("data:"):
            pages[-1].wrong.append(made.url)

    yield call
    for context in contexts:
        context.close()
    assert [wrong for each in pages for wrong in each.wrong] == []


@pytest.fixture(scope="module")
def classifier():
    """What tells digits that shares nothing with the model: scikit-learn's 8x8 digits, and a support vector machine."""
    datasets, svm = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.svm")
    digits = datasets.load_digits()
    fitted = svm.SVC().fit(digits.images.reshape(-1, 64) / 16, digits.target)

    def tell(levels: np.ndarray) -> int:
        rows, columns = (np.flatnonzero(levels.max(axis=axis) > 64) for axis in (1, 0))
        inside = Image.fromarray(levels.astype(np.uint8)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        width = max(1, round(8 * inside.width / max(inside.size)))
        small = Image.new("L", (8, 8))  # these digits fill their height
        small.paste(inside.resize((width, 8), Image.Resampling.BOX), ((8 - width) // 2, 0))
        return int(fitted.predict(np.asarray(small, float).reshape(1, 64) / 255)[0])

    return tell


@pytest.mark.parametrize(("stroke", "digit"), [(SEVEN, 7), (TWO, 2)])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_drawn_digit_has_a_reconstruction_of_that_digit(
    opened, service: str, classifier, stroke: list, digit: int, viewport: dict[str, int]
):
    """What the model makes of a 7 is a 7, for a classifier that knows nothing of it; ELBO and verdict stand below."""
    page = opened(service, viewport)
    page.draw(stroke)
    assert classifier(page.picture("#draw-seen img")) == digit
    assert classifier(page.picture("#draw-made img")) == digit
    words = page.page.locator("#draw-figures").inner_text()
    assert "ELBO \N{MINUS SIGN}" in words and "of normal images are as odd" in words


def test_the_figures_are_those_of_the_last_stroke(opened, service: str):
    """While the mouse moves, one request is under way at a time, and the last one is of the whole drawing."""
    page = opened(service)
    most, before = [], len(page.asked)
    page.page.on("request", lambda made: most.append(len(page.under_way)))
    page.draw(SEVEN)
    page.draw([(0.35, 0.55), (0.65, 0.53)])
    assert max(most) == 1 and len(page.asked) - before < 40
    vae = VAE.load(threads=1)
    seen = page.picture("#draw-seen img")[None, None] / 255
    np.testing.assert_allclose(page.picture("#draw-made img"), 255 * vae.reconstruct(seen)[0, 0], atol=0.51)
    verdict = Detector.load(vae).verdict(seen)
    assert ("Odd" in page.page.locator("#draw-figures").inner_text()) == bool(verdict.odd[0])
    page.page.get_by_role("button", name="Clear").click()
    page.settle()
    assert page.page.locator("#draw-figures").inner_text() == ""


def test_a_slider_changes_the_picture(opened, service: str):
    """By the keyboard: End takes the first latent to 3 standard deviations, and the picture is the decoder's of that.

    A sample that is tapped brings its own latents.
    """
    page, vae = opened(service), VAE.load()
    before = page.picture("#latents-shown img")
    latent = int(np.argmax(vae.manifest.evaluation.kl_per_dimension))
    first = page.page.get_by_role("slider", name=re.compile(rf"^z{latent}\b"))
    first.focus()
    page.page.keyboard.press("End")
    page.settle()
    (_, unit), z = latents.spread(vae), latents.rest(vae)[None].copy()
    far, z[0, latent] = z[0, latent] + 3 * unit[latent], float(first.input_value())
    assert z[0, latent] == pytest.approx(far, abs=0.02)
    after = page.picture("#latents-shown img")
    np.testing.assert_allclose(after, 255 * vae.decode(z)[0, 0], atol=0.51)
    assert np.abs(after - before).max() > 50
    page.page.locator("#samples-tiles button").nth(2).click()
    page.settle()
    sample = np.asarray(page.picture("#samples-tiles button:nth-child(3) img"))[None, None] / 255
    z = vae.encode(sample)[0]
    assert float(first.input_value()) == pytest.approx(float(z[0, latent]), abs=0.02)
    np.testing.assert_allclose(page.picture("#latents-shown img"), 255 * vae.decode(z)[0, 0], atol=0.51)
    page.page.get_by_role("button", name="Reset").click()
    page.settle()
    np.testing.assert_array_equal(page.picture("#latents-shown img"), before)


def test_samples_have_their_seed_and_can_be_saved(opened, service: str, tmp_path: Path):
    """New samples show a new seed; the same seed brings the same ones back, and the file is the grid of them."""
    page = opened(service)
    first = page.page.locator("#samples-tiles img").first.get_attribute("src")
    page.page.get_by_role("button", name="New samples").click()
    page.settle()
    seed = page.page.get_by_label("Seed").input_value()
    assert seed != "7" and page.page.locator("#samples-tiles img").first.get_attribute("src") != first
    page.page.get_by_label("Seed").fill("7")
    page.settle()
    assert page.page.locator("#samples-tiles img").first.get_attribute("src") == first
    with page.page.expect_download() as download:
        page.page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "samples-7.png"
    download.value.save_as(tmp_path / "x.png")
    theta = VAE.load().sample(1, seed=7, mean=True)[0, 0]
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "x.png"))[2:30, 2:30], 255 * theta, atol=0.51)


def test_the_way_and_files(opened, service: str, examples: Path):
    """The ends of the way may be drawn or files; a file that is chosen is scored, and one that is none is told so."""
    page = opened(service)
    page.draw(SEVEN)
    page.page.get_by_role("button", name="The drawing as the first image").click()
    with page.page.expect_file_chooser() as chooser:
        page.page.get_by_role("button", name="A file as the second image").click()
    chooser.value.set_files(examples / "digits" / "zero.png")
    page.settle()
    slider = page.page.get_by_label("Along the way")
    slider.focus()
    page.page.keyboard.press("Home")
    np.testing.assert_allclose(page.picture("#way-shown img"), page.picture("#draw-made img"), atol=0.51)
    files = [examples / "digits" / name for name in ("two.png", "not-a-digit.png")]
    page.page.set_input_files("#file-input", files)
    page.page.wait_for_selector(".scored")
    scores = page.page.locator(".scored").all_inner_texts()
    assert "two.png" in scores[0] and "Usual" in scores[0]
    assert "not-a-digit.png" in scores[1] and "Odd" in scores[1]
    page.page.set_input_files("#file-input", Path(__file__))
    page.page.wait_for_selector("#file .fault:not(:empty)")
    assert "test_page.py" in page.page.locator("#file .fault").inner_text()
    page.wrong.clear()  # the browser's own line on the 400 that this was


def test_it_works_by_the_keyboard_alone(opened, service: str):
    """Tab reaches every control, each of which is named and shows its focus; the pad is drawn on with arrows."""
    page = opened(service)
    reached = []
    for _ in range(60):
        page.page.keyboard.press("Tab")
        name, outline = page.page.evaluate(
            "() => { const on = document.activeElement;"
            " return [on.id || on.textContent, getComputedStyle(on.closest('.drop') ?? on).outlineStyle] }"
        )
        reached.append(name)
        assert outline == "solid", name
        if reached[-1] == "file-input":
            break
    assert {"samples-new", "samples-seed", "samples-file", "pad", "draw-clear", "way-at", "file-input"} <= {*reached}
    page.page.locator("#pad").focus()
    for key in ["ArrowUp"] * 60 + [" "] + ["ArrowDown"] * 120:
        page.page.keyboard.press(key)
    page.page.wait_for_selector("#draw-made img")
    page.settle()
    seen = page.picture("#draw-seen img")
    assert seen[:, 12:16].max(axis=1)[8:20].min() > 200 and seen[:, :10].max() == 0


def test_everything_that_can_be_focused_has_a_name(opened, service: str):
    """For a screen reader no control is without a name, no picture without words, and there is one main heading."""
    page = opened(service)
    page.draw(SEVEN)
    tree = page.page.context.new_cdp_session(page.page).send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in tree if not node.get("ignored")]
    focusable = [node for node in shown if "focusable" in {each["name"] for each in node.get("properties", [])}]
    roles = [node["role"]["value"] for node in shown]
    assert len(focusable) > 20 and roles.count("image") > 18 and roles.count("region") >= 5
    named = [node for node in shown if node["role"]["value"] in ("image", "region", "heading")]
    for node in [*focusable, *named]:
        assert node["role"]["value"] == "RootWebArea" or node.get("name", {}).get("value"), node
    assert page.page.get_by_role("heading", level=1).count() == 1


def test_it_is_dark_where_that_is_preferred(opened, service: str):
    """Ground and text change places, and both are far enough apart (WCAG 2.1: 4.5 to 1), grey words too."""
    for scheme, dark in (("light", False), ("dark", True)):
        page = opened(service, color_scheme=scheme)
        ground = luminance(page, "html", "backgroundColor")
        assert (ground < 0.2) == dark
        card = luminance(page, "section", "backgroundColor")
        for selector in ("h2", ".quiet", ".kind", "#samples-file"):
            low, high = sorted((luminance(page, selector, "color"), card))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, selector)


def luminance(page: Opened, selector: str, of: str) -> float:
    """Relative luminance of a colour on the page (WCAG 2.1)."""
    words = page.page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{of}")
    levels = np.array([float(part) for part in words[words.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def faults(page: Opened) -> list[str]:
    """What the sections of the page say of requests that were refused."""
    return [text for text in page.page.locator(".fault").all_inner_texts() if text]


def test_samples_of_binary_columns_can_be_sent_again(
    opened, start: Start, forge: Forge, monkeypatch: pytest.MonkeyPatch
):
    """Of a model some of whose columns are 0 or 1, samples are the ends of the way, and one is scored."""
    mixed = Named("mixed", {"binary": [True, False, True, False], "logsigma": [0.0] * 4})
    monkeypatch.setitem(bundles.LIKELIHOODS, "mixed", mixed)
    monkeypatch.setattr(bundles, "Observation", lambda kind, shape, _: Observation(kind, shape, None))
    page = opened(address_of(start("--port", 0, before=("--bundle", bundles.linear(forge, "mixed", (4,))))))
    page.page.locator("#row-sample").click()
    page.settle()
    assert faults(page) == []
    assert page.page.locator("#way-shown").locator("table").count() == 1


def test_large_images_are_asked_for_as_many_at_a_time_as_may_be(opened, start: Start, forge: Forge):
    """Where an answer holds ten images of 640x640 pixels, the page shows ten samples and ten steps of the way."""
    page = opened(address_of(start("--port", 0, before=("--bundle", bundles.linear(forge, "gaussian", (1, 640, 640))))))
    page.settle()
    assert faults(page) == []
    assert page.page.locator("#samples-tiles img").count() == 4_194_304 // 640**2 == 10
    assert page.page.locator("#way-at").get_attribute("max") == "9"


@pytest.mark.parametrize("kind", ["image", "vector", "series"])
def test_a_phone_needs_no_sideways_scrolling(
    opened, start: Start, forge: Forge, service: str, tmp_path: Path, kind: str
):
    """At 360 pixels nothing is wider than the screen, for each kind of model, with what a file brought; it says what
    the model is of, and rows and windows are shown as numbers and lines."""
    shape = {"vector": (7,), "series": (3, 24)}.get(kind)
    address, x = service, None
    if shape:
        bundle = bundles.linear(forge, "gaussian", shape)
        vae = VAE.load(bundle)
        x = 10 * vae.sample(3)
        Detector.fit(vae, vae.sample(60, seed=1)).save(tmp_path / "site.json")
        words = ("--port", 0, "--calibration", tmp_path / "site.json")
        address = address_of(start(*words, before=("--bundle", bundle)))
    page = opened(address, PHONE)
    if x is not None:
        file = io.BytesIO()
        np.save(file, x)
        page.page.set_input_files(
            "#file-input", {"name": "x.npy", "mimeType": "application/octet-stream", "buffer": file.getvalue()}
        )
        page.page.wait_for_selector(".scored")
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.page.locator("#draw").is_visible() == (kind == "image")
    assert page.page.locator("#row").is_visible() == (kind == "vector")
    shown = page.page.locator("#latents-shown").locator({"image": "img", "vector": "table", "series": "svg"}[kind])
    assert shown.count() == 1
    if kind == "vector":
        value = page.page.locator("#row-figures").inner_text()
        page.page.get_by_role("slider", name="column 0").fill("3")
        page.settle()
        assert page.page.locator("#row-figures").inner_text() != value
