"""The routes of `vae-infer serve`: their answers are those of the other verbs, and what is wrong is said in a line."""

import base64
import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from support import bundles
from support.bundles import Forge
from vae_runtime import VAE, Detector, latents, maps
from vae_runtime.cli import main
from vae_runtime.errors import ResourceError
from vae_runtime.serve import app
from vae_runtime.serve_limits import Limits

NAMES = {
    "elbo": "elbo_nats",
    "standard_error": "standard_error_nats",
    "reconstruction": "reconstruction_nats",
    "kl": "kl_nats",
    "percentile": "percentile_percent",
}


def named(line: str) -> dict[str, float]:
    """The figures of a line of `vae-infer elbo --format jsonl`, as the service names them."""
    figures = json.loads(line)
    del figures["image"]
    return {NAMES.get(name, name): figure for name, figure in figures.items()}


def figures(score: dict[str, object]) -> dict[str, object]:
    """A score of the service without its name and verdict."""
    return {name: figure for name, figure in score.items() if name not in ("name", "verdict")}


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    """The file of a black image."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, kind)
    return file.getvalue()


def array(n: int) -> bytes:
    """An .npy of n grey images, all different."""
    file = io.BytesIO()
    np.save(file, np.linspace(0, 1, n * 784, dtype=np.float32).reshape(n, 28, 28))
    return file.getvalue()


def levels(url: str) -> np.ndarray:
    """The levels of an image that JSON has."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_health_is_ok(client: FlaskClient):
    """/health answers that the service is up, and which images it takes."""
    answer = client.get("/health")
    assert answer.get_json() == {
        "status": "ok",
        "observation": {"kind": "image", "shape": [1, 28, 28], "range": [0, 1]},
    }


def test_samples_are_those_of_the_command(client: FlaskClient, command, tmp_path: Path):
    """/sample gives the grid that `vae-infer sample` draws with the same seed, a third as large, or each in JSON."""
    assert command(main, "sample", "-n", 10, "--seed", 7, "-o", tmp_path / "samples.png").code == 0
    answer = client.get("/sample?n=10&seed=7")
    large = np.asarray(Image.open(tmp_path / "samples.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.data))), large[::3, ::3])
    each = client.get("/sample?n=10&seed=7&format=json").get_json()
    assert (each["seed"], each["mean"], len(each["observations"])) == (7, False, 10)
    np.testing.assert_array_equal(levels(each["observations"][1]), large[::3, ::3][2:30, 32:60])


@pytest.mark.parametrize("name", ["two", "not-a-digit"])
@pytest.mark.parametrize(("query", "samples", "seed"), [("", 16, 0), ("?samples=1&seed=5", 1, 5)])
def test_scores_and_verdicts_are_those_of_the_commands(
    client: FlaskClient, command, examples: Path, name: str, query: str, samples: int, seed: int
):
    """/score gives the figures of `vae-infer elbo`, to the last bit, and the verdict of `vae-infer detect`."""
    file = examples / "digits" / f"{name}.png"
    printed = command(main, "elbo", file, "--samples", samples, "--seed", seed, "--format", "jsonl").out
    answer = client.post(f"/score{query}", data=file.read_bytes()).get_json()
    (score,) = answer["scores"]
    assert (answer["samples"], answer["seed"]) == (samples, seed)
    assert figures(score) == named(printed)
    assert "request fitted from 112x112 L to 28x28 L" in answer["notes"]
    told = json.loads(command(main, "detect", file, "--format", "jsonl").out)
    assert score["verdict"] == {key: told[key] for key in score["verdict"]}
    assert score["verdict"]["odd"] == (name == "not-a-digit")


def test_files_of_a_form_are_scored_by_their_names(client: FlaskClient, examples: Path):
    """A form upload, as `curl -F` sends it, gets a score for each file, the one that it gets alone."""
    files = [examples / "digits" / f"{name}.png" for name in ("two", "seven")]
    form = {"file": [(io.BytesIO(file.read_bytes()), file.name) for file in files]}
    scores = client.post("/score?samples=2", data=form).get_json()["scores"]
    assert [score["name"] for score in scores] == ["two.png", "seven.png"]
    for file, score in zip(files, scores, strict=True):
        (alone,) = client.post("/score?samples=2", data=file.read_bytes()).get_json()["scores"]
        assert figures(score) == figures(alone)


@pytest.mark.parametrize("name", ["a\\1.png", "\\d.png", "a\\nb.png", "\\g<0>.png"])
def test_a_file_is_called_by_its_name_whatever_that_is(client: FlaskClient, examples: Path, name: str):
    """Backslashes in a file's name, as of a path in Windows, stand in its score, in notes and in what is refused."""
    two, quoted = (examples / "digits" / "two.png").read_bytes(), name.replace("\\", "\\\\")  # as curl writes it
    answer = client.post("/score?samples=1", data={"file": (io.BytesIO(two), quoted)}).get_json()
    assert [score["name"] for score in answer["scores"]] == [name]
    assert f"{name} fitted from 112x112 L to 28x28 L" in answer["notes"]
    refused = client.post("/score", data={"file": (io.BytesIO(b"%!PS"), quoted)})
    assert refused.status_code == 400
    assert refused.get_json()["error"].startswith(f"not an image or array: {name}; ")


def test_all_images_of_an_array_are_scored(client: FlaskClient, command, tmp_path: Path):
    """Three images get three scores, in their order; each is the one that it gets alone; gzipped they are the same."""
    (tmp_path / "three.npy").write_bytes(array(3))
    printed = command(main, "elbo", tmp_path / "three.npy", "--samples", 4, "--format", "jsonl").out
    answer = client.post("/score?samples=4", data=array(3)).get_json()
    assert list(map(figures, answer["scores"])) == [named(line) for line in printed.splitlines()]
    assert len(answer["scores"]) == 3
    assert client.post("/score?samples=4", data=gzip.compress(array(3))).get_json() == answer


def test_images_go_around_as_data_urls(client: FlaskClient, examples: Path):
    """What an answer shows can be sent again: it is scored as its file is, encoded, and one end of a way."""
    file = (examples / "digits" / "two.png").read_bytes()
    (shown,) = client.post("/score?show=1", data=file).get_json()["scores"]
    (again,) = client.post("/score", json=[shown["observation"]]).get_json()["scores"]
    assert figures(again).items() <= shown.items()
    detector = Detector.load(VAE.load())
    x = levels(shown["observation"])[None, None] / np.float32(255)
    drawn = maps.overlay(x, detector.map(x), detector.calibration.places)[0]
    np.testing.assert_allclose(levels(shown["map"]), 255 * drawn.transpose(1, 2, 0), atol=0.51)
    (q,) = client.post("/encode", json={"observations": [shown["observation"]]}).get_json()["latents"]
    (decoded,) = client.post("/decode", json={"z": [q["mu"]]}).get_json()["observations"]
    np.testing.assert_array_equal(levels(decoded), levels(shown["reconstructed"]))
    ends = [shown["observation"], client.get("/sample?n=1&format=json").get_json()["observations"][0]]
    way = client.post("/interpolate?steps=5", json=ends).get_json()["observations"]
    a, b = (levels(end)[None] / np.float32(255) for end in ends)
    theta = latents.interpolate(VAE.load(), a, b, 5)[:, 0]
    np.testing.assert_allclose(np.stack([levels(each) for each in way]), 255 * theta, atol=0.51)


@pytest.mark.parametrize("shape", [(4,), (2, 6)])
def test_rows_and_series_are_lists_of_numbers(forge: Forge, shape: tuple[int, ...]):
    """Models of rows and of series take and give numbers, and tables; the page learns how far each column goes."""
    vae = VAE.load(bundles.linear(forge, "gaussian", shape), threads=1)
    client = app(vae).test_client()
    x = vae.sample(3, seed=4)
    sent = client.get("/sample?n=3&seed=4").get_json()["observations"]
    np.testing.assert_array_equal(np.array(sent, np.float32), x)
    answer = client.post("/score?show=1", json=sent).get_json()
    np.testing.assert_allclose([score["elbo_nats"] for score in answer["scores"]], vae.elbo(x, 16), rtol=1e-12)
    np.testing.assert_allclose([score["reconstructed"] for score in answer["scores"]], vae.reconstruct(x), rtol=1e-6)
    assert not {"verdict", "map"} & answer["scores"][0].keys()
    detector = Detector.fit(vae, vae.sample(60, seed=1))
    judged = app(vae, detector).test_client().post("/score?show=1", json=sent).get_json()
    np.testing.assert_allclose([score["map"] for score in judged["scores"]], detector.map(x), atol=6e-4)
    told = client.get("/model").get_json()
    assert told["detector"] is None
    assert [column["name"] for column in told["columns"]] == vae.names
    assert all(column["low"] < column["usual"] < column["high"] for column in told["columns"])
    file = io.BytesIO()
    np.save(file, x)
    assert client.post("/score", data=file.getvalue()).get_json()["scores"][0]["elbo_nats"] == pytest.approx(
        answer["scores"][0]["elbo_nats"], rel=1e-12
    )
    refused = client.get("/sample?format=png")
    assert (refused.status_code, refused.get_json()["error"]) == (400, "no such format: png; ask for json")


def test_rows_by_column_are_those_of_a_table(forge: Forge):
    """A row in JSON by its columns' names, in any order, is scored as the same row of a CSV file; none may lack."""
    columns = [{"name": name, "mean": 20.0, "scale": 3.0} for name in ("heat", "flow")]
    bundle = bundles.changed(bundles.linear(forge, "gaussian", (2,)), preprocessing={"columns": columns})
    client = app(VAE.load(bundle, threads=1)).test_client()
    table = client.post("/score", data=b"heat,flow\n21,17.5\n").get_json()["scores"]
    by_name = client.post("/score", json=[{"flow": 17.5, "heat": 21, "more": "x"}]).get_json()["scores"]
    in_order = client.post("/score", json=[[21, 17.5]]).get_json()["scores"]
    assert figures(table[0]) == figures(by_name[0]) == figures(in_order[0])
    half = client.post("/score", data=b'[{"heat": 21, "flow": 1, "\\ud800": 1}]')
    words = "text that is no Unicode: row; send whole characters, no lone surrogates"
    assert (half.status_code, half.get_json()["error"]) == (400, words)
    lacking = client.post("/score", json=[{"flow": 17.5}])
    words = "no column heat: row; it has flow, and the model takes heat, flow"
    assert (lacking.status_code, lacking.get_json()["error"]) == (400, words)


@pytest.mark.parametrize("kind", ["npy", "idx"])
@pytest.mark.parametrize(("shape", "claimed"), [((4,), (4,)), ((1, 4), (1, 4)), ((1, 4), (1,))])
def test_a_header_that_claims_more_than_was_sent_takes_no_memory(
    forge: Forge, peak_memory, shape: tuple[int, ...], claimed: tuple[int, ...], kind: str
):
    """Rows, windows and series of 100 million rows in 128 bytes are refused in a line, and nothing is made for them."""
    client = app(VAE.load(bundles.linear(forge, "gaussian", shape), threads=1)).test_client()
    sizes = (10**8, *claimed)
    if kind == "idx":
        head = struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes)
    else:
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": sizes})
        head = file.getvalue()
    answers = []
    assert peak_memory(lambda: answers.append(client.post("/score", data=head + bytes(128)))) < 20_000_000
    assert (answers[0].status_code, answers[0].get_json()["error"]) == (
        400,
        "file cannot be read (it ends before its 100000000 rows do): request; save it again, with numpy.save",
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/sample?n=0", None, 400, "n out of range: 0; give an integer from 1 to 256"),
        ("/sample?n=257", None, 400, "n out of range: 257; give an integer from 1 to 256"),
        ("/sample?n=many", None, 400, "n out of range: many;"),
        ("/sample?seed=-1", None, 400, "seed out of range: -1;"),
        (f"/sample?seed={2**64}", None, 400, f"seed out of range: {2**64};"),
        ("/sample?format=bmp", None, 400, "no such format: bmp; ask for json, or png"),
        ("/sample?number=4", None, 400, "no such parameter: number; give n or seed or mean or format"),
        ("/encode?seed=1", picture(28, 28), 400, "no such parameter: seed; give none"),
        ("/score?samples=0", picture(28, 28), 400, "samples out of range: 0; give an integer from 1 to 1,000"),
        ("/score?samples=1001", picture(28, 28), 400, "samples out of range: 1001;"),
        ("/score", array(257), 400, "too many images: 257; send at most 256 at a time"),
        (
            "/score",
            b"",
            400,
            "no images: the request is empty; send a file, curl --data-binary @FILE or curl -F file=@FILE",
        ),
        ("/score", b"P4 this is no image", 400, "file cannot be read"),
        ("/score", picture(280, 280)[:100], 400, "file cannot be read"),
        ("/score", b"%!PS-Adobe-3.0 EPSF-3.0", 400, "not an image or array: request; give a PNG, JPEG"),
        ("/score", picture(5001, 5000), 400, "pictures too large: request; send 25,000,000 pixels at most"),
        (
            "/score",
            gzip.compress(bytes(17 << 20)),
            400,
            "file too large once unpacked: request; send at most 16,777,216",
        ),
        ("/score", gzip.compress(gzip.compress(array(1))), 400, "file is packed twice: request; send it unpacked"),
        ("/score", b"\x1f\x8b and no more", 400, "file cannot be read"),
        ("/score", b"[1, 2", 400, "JSON not understood"),
        ("/score", b"[" * 100_000, 400, "JSON not understood"),
        ("/score", b'{"observations": []}', 400, "no images: JSON; send a list of images"),
        ("/score", b'["/etc/passwd"]', 400, "not a data URL: image 0;"),
        ("/score", b"[[[[1, 2]]]]", 400, "images of shape [1, 1, 1, 2]: JSON; this model takes [batch, 1, 28, 28]"),
        ("/score", b'[[["a"]]]', 400, "not an array of numbers: images;"),
        ("/score", b"[[1" + 400 * b"0" + b"]]", 400, "not an array of numbers: images;"),
        ("/score", b"[" + (1 << 20) * b"[]," + b"0]", 400, "JSON too long: 3,145,731 bytes; send at most 2,097,152"),
        ("/encode", b"{}", 400, "no images: JSON;"),
        ("/decode", b'{"z": [[1, 2, 3]]}', 400, "latents of shape [1, 3]: z;"),
        ("/decode", b'{"z": [["a"]]}', 400, "not an array of numbers: z;"),
        ("/interpolate", array(3), 400, "not two images: 3; send the two ends of the way"),
        ("/score", bytes(9 << 20), 413, "body too large: 9,437,184 bytes; send at most 8,388,608"),
        ("/score", None, 405, "no GET: /score; use POST"),
        ("/elsewhere", None, 404, "no such page: /elsewhere; see /"),
        ("/../serve.py", None, 404, "no such page"),
    ],
)
def test_wrong_requests_are_refused(client: FlaskClient, path: str, body: bytes | None, status: int, words: str):
    """What the client got wrong is answered with a 4xx and one line as JSON."""
    answer = client.get(path) if body is None else client.post(path, data=body)
    message = answer.get_json()["error"]
    assert answer.status_code == status
    assert words in message
    assert "\n" not in message


def test_a_form_without_a_file_is_told_how(client: FlaskClient):
    """`curl -F image=two.png`, without the @, is answered with what to write."""
    answer = client.post("/score", data={"image": "two.png"}, content_type="multipart/form-data")
    assert (answer.status_code, answer.get_json()["error"]) == (
        400,
        "no images: a form without a file; send some: curl -F file=@FILE",
    )


def test_a_client_that_asks_too_often_is_told_to_wait(tiny_bundle: Path):
    """Beyond its burst a client gets 429 with Retry-After, while another one is answered."""
    client = app(VAE.load(tiny_bundle), limits=Limits(rate=0.001, burst=2)).test_client()
    statuses = [client.get("/sample").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = client.get("/sample")
    assert refused.headers["Retry-After"] == "1"
    assert refused.get_json() == {"error": "too many requests: over 0.001 in a second; ask again in a second"}
    other = client.get("/sample", environ_base={"REMOTE_ADDR": "192.0.2.7"})
    assert other.status_code == 200


def test_a_busy_service_says_so(tiny_bundle: Path):
    """Where all that compute are taken and none may wait, the answer is 503 with Retry-After; the page still comes."""
    client = app(VAE.load(tiny_bundle), limits=Limits(at_once=1, waiting=0)).test_client()
    inside = app(VAE.load(tiny_bundle), limits=Limits(at_once=0, waiting=0)).test_client()
    assert client.get("/sample").status_code == 200
    busy = inside.get("/sample")
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
    assert busy.get_json()["error"] == "service busy: 0 requests at a time; ask again in a second"
    assert inside.get("/").status_code == 200


def test_a_request_that_takes_too_long_is_ended(tiny_bundle: Path):
    """Work stops at its limit, with a 503 that says what to do, and what it held is free again."""
    client = app(VAE.load(tiny_bundle, threads=1), limits=Limits(seconds=0, at_once=1, waiting=0)).test_client()
    for _ in range(2):
        late = client.post("/score?samples=1000", data=array(8))
        assert late.status_code == 503 and "Retry-After" not in late.headers  # it would take as long again
        assert "request takes too long: over 0 seconds; send less at a time" in late.get_json()["error"]


def test_every_route_that_computes_has_a_limit(tiny_bundle: Path):
    """Where no time is left, none of them begins."""
    vae = VAE.load(tiny_bundle, threads=1)
    client, one = app(vae, limits=Limits(seconds=-1)).test_client(), vae.sample(1)[0].tolist()
    z = {"z": [[0.0] * vae.latent_dim]}
    assert client.get("/sample").status_code == 503
    for route, body in (("score", [one]), ("encode", [one]), ("decode", z), ("interpolate", [one, one])):
        assert client.post(f"/{route}", json=body).status_code == 503, route


@pytest.mark.parametrize("error", [MemoryError(), ResourceError("out of memory", "running decoder.onnx", "free some")])
def test_without_memory_it_says_when_to_come_again(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """What NumPy raises, and what the runtime does: 503 with Retry-After, since others may give theirs back."""

    def full(*given: object) -> None:
        raise error

    vae = VAE.load(tiny_bundle, threads=1)
    monkeypatch.setattr(VAE, "decode", full)
    answer = app(vae).test_client().post("/decode", json={"z": [[0.0] * vae.latent_dim]})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.get_json()["error"].startswith("out of memory: ")


def test_encodings_and_latents_of_many_are_those_of_each(tiny_bundle: Path):
    """They are computed in parts, and come back whole and in order."""
    vae = VAE.load(tiny_bundle, threads=1, memory=1)  # one at a time
    client, x = app(vae).test_client(), np.load(io.BytesIO(array(20)))[:, None]
    for got, part in zip(client.post("/encode", data=array(20)).get_json()["latents"], vae.encode(x)[0], strict=True):
        assert got["mu"] == part.tolist()
    z = vae.encode(x)[0]
    shown = client.post("/decode", json={"z": z.tolist()}).get_json()["observations"]
    for got, theta in zip(shown, vae.decode(z), strict=True):
        np.testing.assert_array_equal(levels(got), np.rint(theta[0] * 255))


def test_the_page_needs_nothing_from_elsewhere(client: FlaskClient):
    """The page and its files come from the service, with a policy that lets in nothing else."""
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "http" not in policy and "unsafe" not in policy
    for name, kind in [("page.js", "text/javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml")]:
        answer = client.get(f"/{name}")
        assert (answer.status_code, answer.mimetype) == (200, kind)
        assert f'"{name}"' in page.text
    assert "Access-Control-Allow-Origin" not in page.headers


def test_a_page_of_another_site_cannot_use_it(client: FlaskClient, examples: Path):
    """A browser says where a request comes from; those that another site's page makes are refused."""
    file = (examples / "digits" / "two.png").read_bytes()
    answer = client.post("/score", data=file, headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://example.org"})
    assert (answer.status_code, answer.get_json()["error"]) == (
        403,
        "request of another site: https://example.org; use the page of this one",
    )


def test_the_model_is_told_as_the_page_needs_it(client: FlaskClient):
    """/model has the figures of the bundle, and the latents by their KL."""
    vae = VAE.load()
    told = client.get("/model").get_json()
    evaluation = vae.manifest.evaluation
    assert evaluation is not None and evaluation.kl_per_dimension is not None
    assert told["elbo_nats"] == evaluation.figures["elbo"].mean
    kl = [slider["kl"] for slider in told["sliders"]]
    assert kl == sorted(evaluation.kl_per_dimension, reverse=True)[: len(kl)]
    assert [evaluation.kl_per_dimension[slider["latent"]] for slider in told["sliders"]] == kl
    assert told["detector"]["observations"] == Detector.load(vae).calibration.observations
