"""The service: every format in and out, many clients at once, limits, tokens, and the page in a browser."""

import asyncio
import contextlib
import io
import json
import pathlib
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pandas as pd
import pytest
import uvicorn
from PIL import Image

import flaxae
from flaxae import anomaly, command, presets, serving
from flaxae.data import Encoding, Scaling
from flaxae.likelihoods import Gaussian
from flaxae.serving.batching import Batcher, Full
from flaxae.trained import Trained, TrainedDetector

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NPY = {"content-type": "application/x-npy", "accept": "application/x-npy"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def images():
    shape = (8, 8, 1)
    return Trained(flaxae.build(presets.vanilla(4), shape), Scaling((0.0,), (255.0,), "uint8"), shape, "image", None)


@pytest.fixture(scope="module")
def detector():
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    found = anomaly.fit(x, kind="tabular", epochs=1, score="reconstruction")
    return TrainedDetector(Trained(found.models[0], Scaling.fit(x), (3,), "tabular", ("a", "b", "c")), found)


def pixels(n=1, seed=0, shape=(8, 8, 1)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    return file.getvalue()


def ask(app, *requests):
    """The responses to (path, body, headers), one after the other; a body of None is a GET."""

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return [
                await client.request("GET" if body is None else "POST", path, content=body, headers=headers)
                for path, body, headers in requests
            ]

    return asyncio.run(run())


def test_images_by_every_format(images):
    x = pixels()
    expected = images.reconstruct(x)
    app = serving.app(images)
    by_npy, by_json, by_png, code = ask(
        app,
        ("/reconstruct", npy(x), NPY),
        ("/reconstruct", json.dumps({"x": x.tolist()}), JSON),
        ("/reconstruct", png(x[0]), {"content-type": "image/png", "accept": "image/png"}),
        ("/encode", npy(x), {"content-type": "application/x-npy", "accept": "text/csv"}),
    )
    np.testing.assert_array_equal(np.load(io.BytesIO(by_npy.content)), expected)
    np.testing.assert_array_equal(by_json.json()["reconstruction"], expected)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(by_png.content))), expected[0, ..., 0])
    table = pd.read_csv(io.BytesIO(code.content))
    np.testing.assert_allclose(table.to_numpy(), images.encode(x), rtol=1e-4)


def test_a_table_of_numbers_and_categories():
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0] * 5, "colour": ["red", "blue", None, "red"] * 5})
    encoding = Encoding.fit(frame, np.arange(20))
    with pytest.warns(UserWarning, match="missing"):
        x = encoding(frame)
    model = flaxae.build(presets.vanilla(2, Gaussian()), x.shape[1:])
    scaling = Scaling.fit(x, encoding.indicators)
    app = serving.app(Trained(model, scaling, x.shape[1:], "tabular", encoding.features, encoding))
    rows = frame.iloc[1:3].replace({np.nan: None}).to_dict("records")
    about, made, by_csv, wrong = ask(
        app,
        ("/about", None, {}),
        ("/reconstruct", json.dumps({"rows": rows}), JSON),
        ("/reconstruct", frame.to_csv(index=False), {"content-type": "text/csv", "accept": "text/csv"}),
        ("/reconstruct", "height\n1\n", {"content-type": "text/csv"}),
    )
    assert about.json()["columns"] == ["size", "colour"]
    assert set(made.json()["reconstruction"][0]) == {"size", "colour"}
    assert "'colour': 1" in made.headers["x-note"]
    assert list(pd.read_csv(io.BytesIO(by_csv.content))) == ["size", "colour"]
    assert wrong.status_code == 400
    assert "Unknown column 'size'" in wrong.json()["error"]


def test_a_detector_scores_and_flags(detector):
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    (made,) = ask(serving.app(detector, threshold=0.0), ("/score", json.dumps({"x": x.tolist()}), JSON))
    np.testing.assert_allclose(made.json()["score"], detector.score(x), rtol=1e-4)
    np.testing.assert_array_equal(made.json()["anomalous"], detector.score(x) > 0)


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"zz", {"content-type": "image/png"}, 400, "is no image/png that can be read"),
        (b"{", JSON, 400, "is no application/json that can be read"),
        (b'{"y": 1}', JSON, 400, 'without "x"'),
        (b'{"x": [[[["a"]]]]}', JSON, 400, "expected numbers"),
        (b'{"x": []}', JSON, 400, "no examples"),
        (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}", JSON, 400, "is no application/json"),
        (npy(pixels().astype(object)), NPY, 400, "is no application/x-npy"),  # a pickle
        (
            npy(pixels()).replace(b"'shape': (", b"'shape': (("),
            NPY,
            400,
            "is no application/x-npy",
        ),  # NumPy raises a TokenError
        (npy(pixels())[:-9], NPY, 400, "is cut off"),
        (b"a" + b",a" * 10_000, {"content-type": "text/csv"}, 400, "has 10,001 columns"),
        (npy(pixels() / 7.0), NPY, 400, "there are fractions"),
        (npy(pixels(101)), NPY, 400, "at most 100"),
        (npy(pixels(1, shape=(40, 40, 40))), NPY, 413, "larger than 0.05 MiB"),
        (b"zz", {"content-type": "text/html"}, 415, "The body is text/html; expected"),
        (npy(np.zeros((2, 2), np.uint8)), NPY, 400, "model is made for another shape"),
    ],
)
def test_a_bad_request_is_one_message(images, body, headers, status, said):
    app = serving.app(images, limits=serving.Limits(megabytes=0.05, examples=100))
    (made,) = ask(app, ("/encode", body, headers))
    assert made.status_code == status
    assert said in made.json()["error"]
    assert "script-src 'self'" in made.headers["content-security-policy"]


def test_only_the_token_opens_it_and_only_its_own_name(images):
    app = serving.app(images, token="secret")
    body = npy(pixels())
    none, wrong, right, page, health, metrics, alien = ask(
        app,
        ("/encode", body, NPY),
        ("/encode", body, {**NPY, "authorization": "Bearer Secret"}),
        ("/encode", body, {**NPY, "authorization": "Bearer secret"}),
        ("/", None, {}),
        ("/health", None, {}),
        ("/metrics", None, {}),
        ("/encode", body, {**NPY, "authorization": "Bearer secret", "host": "evil.example"}),
    )
    assert [answer.status_code for answer in (none, wrong, right)] == [401, 401, 200]
    assert [answer.status_code for answer in (page, health, metrics, alien)] == [200, 200, 401, 400]


@pytest.mark.parametrize(
    ("flags", "said"),
    [("--host 0.0.0.0", "set a token"), ("--port 99999", "--port is 99999"), ("--seconds 0", "has to be above 0")],
)
def test_it_refuses_to_listen_so(flags, said, capsys, monkeypatch):
    monkeypatch.delenv("FLAXAE_TOKEN", raising=False)
    try:
        status = command.main(["serve", "runs/denoise/1", *flags.split()])
    except SystemExit as ended:  # as tyro does where a flag's value is refused
        status = ended.code
    assert status == 2
    told = capsys.readouterr()
    assert said in " ".join((told.out + told.err).replace("│", " ").split())


@contextlib.contextmanager
def running(app):
    """The address of a server of the application, in a thread."""
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def test_of_64_clients_at_once_each_gets_its_own(images, monkeypatch):
    run = Batcher._run
    monkeypatch.setattr(Batcher, "_run", lambda *given: time.sleep(0.05) or run(*given))  # meanwhile others come in
    expected = [images.encode(pixels(1 + i % 3, seed=i)) for i in range(64)]

    async def all_at_once(url):
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=64)) as client:
            asked = [client.post("/encode", content=npy(pixels(1 + i % 3, seed=i)), headers=NPY) for i in range(64)]
            return await asyncio.gather(*asked), (await client.get("/metrics")).text

    with running(serving.app(images)) as url:
        answers, metrics = asyncio.run(all_at_once(url))
    for answer, code in zip(answers, expected, strict=True):
        assert answer.status_code == 200
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), code, atol=1e-5)
    counted = dict(line.rsplit(" ", 1) for line in metrics.splitlines())
    assert int(counted['flaxae_batches_total{method="encode"}']) < 64  # some ran together
    assert counted["flaxae_body_bytes"] == "0"
    assert counted["flaxae_examples_total"] == str(sum(1 + i % 3 for i in range(64)))


def test_what_can_not_wait_is_refused_and_a_mistake_fails_its_request_alone():
    release = threading.Event()

    def halves(x):
        release.wait(10)
        if (x < 0).any():
            raise ValueError("below 0")
        return {"half": x / 2}

    async def run():
        with ThreadPoolExecutor(1) as worker:
            batcher = Batcher(halves, held=5, worker=worker)
            parts = [np.full((1, 1), value, np.float32) for value in (1.0, 2.0, -1.0, 4.0)]
            tasks = [asyncio.create_task(batcher(part)) for part in parts]
            await asyncio.sleep(0)
            with pytest.raises(Full, match="4 examples wait"):
                await batcher(np.zeros((2, 1), np.float32))
            release.set()
            return await asyncio.gather(*tasks, return_exceptions=True), batcher.count

    made, left = asyncio.run(run())
    assert [made[i]["half"].item() for i in (0, 1, 3)] == [0.5, 1.0, 2.0]
    assert isinstance(made[2], ValueError)
    assert left == 0


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_in_a_browser_a_dropped_file_is_shown(images, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "digit.png"
    path.write_bytes(png(pixels()[0]))
    said = []
    with running(serving.app(images)) as url, playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: said.append(error))
        page.goto(url)
        page.wait_for_selector("#choice input")
        page.set_input_files("#file", path)
        page.wait_for_selector("#result figure:nth-child(2)")
        assert page.inner_text("#said") == "Done."
        page.check("input[value=encode]")
        page.set_input_files("#file", {"name": "bad.png", "mimeType": "image/png", "buffer": b"zz"})
        page.wait_for_selector("#said.wrong")
        assert "can be read" in page.inner_text("#said")
        browser.close()
    assert not said


def test_the_page_is_packaged():
    assert {path.name for path in serving.PAGE.iterdir()} == {"index.html", "page.css", "page.js"}
    assert "http" not in (pathlib.Path(serving.PAGE) / "index.html").read_text()
