"""The JSON API: what it answers, what it refuses, and what it never reads."""

import asyncio
import io
import json
import sys
import threading
import time
import tracemalloc
import zipfile
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import Result
from odd_images import huge_png, odd_images, picture
from onnx_files import write_onnx
from PIL import Image
from starlette.testclient import TestClient

from pinmem_core.checkpoints.checkpoint import save_checkpoint
from pinmem_core.config import ModelConfig
from pinmem_core.errors import ConfigError, MachineError
from pinmem_core.events import ignore
from pinmem_core.images import decode_image
from pinmem_core.inference import Predictor
from pinmem_core.models import Segmenter
from pinmem_core.serving.app import create_app
from pinmem_core.serving.limits import Limits, RateLimiter
from pinmem_core.serving.models import load_models
from pinmem_core.serving.server import listen


def encoded(pixels=None, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture() if pixels is None else pixels).save(file, format)
    return file.getvalue()


MIB = 2**20
PNG, JPEG = encoded(), encoded(format="JPEG")


def with_archive(content: bytes) -> bytes:
    """An image that is a zip archive as well."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("index.html", "<script>alert(1)</script>")
    return file.getvalue()


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor(Segmenter(ModelConfig(backbone="tiny", feature_dim=16)), device="cpu")


def client(predictor, limits: Limits = Limits(), on_event=ignore) -> TestClient:  # noqa: B008
    models = {"first": predictor, "user/name": predictor}
    return TestClient(create_app(models, limits, on_event), raise_server_exceptions=False)


def refused(response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert {*body} == {"error", "hint"} and words in body["error"], body
    assert body["error"].endswith(".") and "\n" not in body["error"]


def image(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(b64decode(text))))


def test_the_answer_is_that_of_the_predictor(predictor):
    reply = client(predictor).post("/api/predict", params={"model": "user/name"}, content=PNG)
    body, expected = reply.json(), predictor.analyze(picture(), confidence=True)
    assert (body["model"], body["height"], body["width"]) == ("user/name", *picture().shape[:2])
    assert np.array_equal(image(body["mask"]), expected.train_ids)
    assert np.array_equal(image(body["color"]), expected.train_ids)
    colors = np.asarray(Image.open(io.BytesIO(b64decode(body["color"]))).convert("RGB"))
    assert np.array_equal(colors, expected.space.color_table[expected.train_ids])
    assert np.abs(image(body["confidence"]) / 255 - expected.confidence).max() < 0.003
    shares = {entry["id"]: entry["share"] for entry in body["classes"]}
    for train_id, share in shares.items():
        assert abs(share - (expected.train_ids == train_id).mean()) < 1e-5
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_a_file_of_classes_only_has_no_confidence(tmp_path):
    write_onnx(tmp_path / "classes.onnx", size=picture().shape[:2])
    models = load_models([str(tmp_path / "classes.onnx")])
    reply = TestClient(create_app(models)).post("/api/predict", content=PNG)
    assert (reply.status_code, reply.json()["confidence"]) == (200, None)
    expected = models["classes.onnx"].predict(picture())
    assert np.array_equal(image(reply.json()["mask"]), expected)


def test_a_client_may_ask_for_the_mask_alone(predictor):
    reply = client(predictor).post("/api/predict", content=JPEG, headers={"Accept": "image/png"})
    assert reply.headers["content-type"] == "image/png"
    expected = predictor.predict(decode_image("x", JPEG).pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), expected)


def test_models_health_and_schema(predictor):
    app = client(predictor)
    assert app.get("/api/health").json()["status"] == "ok"
    listed = app.get("/api/models").json()
    assert [model["name"] for model in listed["models"]] == ["first", "user/name"]
    assert listed["models"][0]["classes"]["road"] == [128, 64, 128]
    schema = app.get("/openapi.json").json()
    assert {"/api/predict", "/api/models", "/api/health"} == {*schema["paths"]}


@pytest.mark.slow
def test_every_odd_image_is_predicted_or_refused_in_a_sentence(predictor):
    app = client(predictor)
    for name, odd in odd_images().items():
        reply = app.post("/api/predict", content=odd.content)
        if odd.pixels is None:
            refused(reply, 400, "upload")
        elif reply.status_code != 200:
            refused(reply, 400, "an upload in the format")
        else:
            assert image(reply.json()["mask"]).shape == odd.pixels.shape[:2], name


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "it is empty"),
        (b"hello", 400, "not a supported image"),
        (SVG, 400, "not a supported image"),
        (b"<?xml version='1.0'?>" + SVG, 400, "not a supported image"),
        (PNG[:-30], 400, "cannot be read"),
        (JPEG[: len(JPEG) // 2], 400, "cannot be read"),
        (huge_png(5008), 413, "5008x5008 pixels; at most 1"),
        (encoded(format="TIFF"), 400, "format TIFF is not accepted"),
        (encoded(format="JPEG2000"), 400, "format JPEG2000 is not accepted"),
        (encoded(np.zeros((1100, 1000, 3), np.uint8)), 413, "1000x1100 pixels; at most 1"),
        (b"x" * 100_001, 413, "larger than 0.0954 MiB"),
        (b"x" * 1_000_000, 413, "larger than"),
    ],
)
def test_a_hostile_upload_ends_in_one_sentence(predictor, content, status, words):
    app = client(predictor, Limits(upload=100_000, megapixels=1))
    refused(app.post("/api/predict", content=content), status, words)
    assert app.post("/api/predict", content=PNG).status_code == 200


@pytest.mark.parametrize("content", [b"hello", encoded(format="TIFF")])
def test_a_hint_names_only_formats_that_are_accepted(predictor, content):
    hint = client(predictor).post("/api/predict", content=content).json()["hint"]
    assert hint == "Convert it to one of PNG, JPEG, WEBP, GIF, BMP, AVIF."


def test_an_image_is_known_by_its_bytes_alone(predictor):
    app = client(predictor)
    alone = app.post("/api/predict", content=JPEG).json()
    for content, kind in ((JPEG, "text/html"), (with_archive(JPEG), "application/zip")):
        reply = app.post("/api/predict", content=content, headers={"Content-Type": kind}).json()
        assert reply["mask"] == alone["mask"]


def test_a_jpeg_of_a_phone_with_a_second_picture_is_accepted(predictor):
    first, second = (Image.fromarray(pixels) for pixels in (picture(), 255 - picture()))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    app = client(predictor, Limits(megapixels=0.01))
    reply = app.post("/api/predict", content=file.getvalue())
    assert image(reply.json()["mask"]).shape == picture().shape[:2], reply.text


def test_a_wrong_request_ends_in_one_sentence(predictor):
    app = client(predictor)
    form = app.post("/api/predict", files={"image": PNG})
    refused(form, 415, "a form, not an image")
    kind = {"Content-Type": "Multipart/Form-Data; boundary=x"}
    refused(app.post("/api/predict", content=b"--x", headers=kind), 415, "a form, not an image")
    assert "--data-binary" in form.json()["hint"]
    for name in ("../../etc/passwd", "/etc/passwd", "third", "starter"):
        refused(app.post("/api/predict", params={"model": name}, content=PNG), 404, "no model")
    refused(app.get("/api/predict"), 405, "Method Not Allowed")
    for path in ("/etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page/index.html", "/docs"):
        refused(app.get(path), 404, "Not Found")


def test_no_request_opens_a_file(predictor):
    app = client(predictor)
    app.post("/api/predict", content=JPEG)
    opened = []
    watching = True
    sys.addaudithook(lambda event, a: watching and event == "open" and opened.append(a))
    for path in ("/", "/page.js", "/style.css", "/..%2f..%2fetc/passwd", "/api/models"):
        app.get(path)
    for content in (JPEG, SVG, b"/etc/passwd", b"GIF89a", PNG[:60], with_archive(JPEG)):
        app.post("/api/predict", params={"model": "first"}, content=content)
        app.post("/api/predict", params={"model": "../../etc/passwd"}, content=content)
    watching = False
    assert opened == []


def test_the_page_loads_nothing_from_elsewhere(predictor):
    app = client(predictor)
    page = app.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    texts = [page.text, app.get("/page.js").text, app.get("/style.css").text]
    assert all(text and "http:" not in text and "https:" not in text for text in texts)


def test_requests_of_a_client_are_counted(predictor):
    app = client(predictor, Limits(per_minute=2))
    assert [app.post("/api/predict", content=PNG).status_code for _ in range(2)] == [200, 200]
    reply = app.post("/api/predict", content=PNG)
    refused(reply, 429, "2 requests in a minute")
    assert 1 <= int(reply.headers["retry-after"]) <= 31
    assert app.get("/api/health").status_code == 200


def test_the_rate_recovers_and_forgets_old_clients():
    now = [0.0]
    rate = RateLimiter(60, lambda: now[0])
    assert [rate.take("a") for _ in range(60)] == [0] * 60
    assert rate.take("a") == pytest.approx(1)
    now[0] = 1
    assert rate.take("a") == 0 and rate.take("a") > 0
    for number in range(5000):
        assert rate.take(f"other {number}") == 0
    assert rate.take("a") == 0


class Slow:
    """A predictor that waits until it may go on."""

    classes_only = False

    def __init__(self, predictor):
        self.predictor, self.label_space = predictor, predictor.label_space
        self.go, self.calls = threading.Event(), 0

    def analyze(self, pixels, **options):
        self.calls += 1
        assert self.go.wait(10)
        return self.predictor.analyze(pixels, **options)


def wait_for(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_queue_refuses_and_loses_nothing(predictor):
    slow = Slow(predictor)
    with client(slow, Limits(requests=3)) as app, ThreadPoolExecutor(3) as pool:
        served = [pool.submit(app.post, "/api/predict", content=PNG) for _ in range(3)]
        wait_for(lambda: app.get("/api/health").json()["requests"] == 3)
        reply = app.post("/api/predict", content=PNG)
        refused(reply, 503, "busy")
        assert int(reply.headers["retry-after"]) >= 1
        slow.go.set()
        assert [reply.result().status_code for reply in served] == [200] * 3
        assert app.get("/api/health").json()["requests"] == 0


def test_an_unexpected_error_is_reported_and_the_next_request_served(predictor):
    class Broken:
        label_space = predictor.label_space
        classes_only = False

        def analyze(self, pixels, **_):
            raise ZeroDivisionError(f"division\nby {len(pixels)}")

        def predict(self, pixels):
            raise MachineError("the memory does not suffice.", "Use a smaller image.")

    events = []
    app = client(Broken(), on_event=events.append)
    refused(app.post("/api/predict", content=PNG), 500, "the prediction failed")
    assert "ZeroDivisionError: division by" in events[0].message
    png = {"Accept": "image/png"}
    refused(app.post("/api/predict", content=PNG, headers=png), 500, "the memory does not suffice")


def scope(headers=()) -> dict:
    """A POST request as a server hands it to an application."""
    return {
        "type": "http",
        "method": "POST",
        "path": "/api/predict",
        "query_string": b"",
        "headers": [*headers],
        "client": ("127.0.0.1", 1),
    }


def ask(app, receive, headers=()) -> dict:
    """Send a request as a server does, and return the answer; `receive` gives the body."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope(headers), receive, send))
    return {"status": sent[0]["status"], **json.loads(sent[1]["body"])}


def test_a_slow_upload_ends_in_one_sentence(predictor):
    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    app = create_app({"first": predictor}, Limits(seconds=0.1))
    reply = ask(app, receive)
    assert reply["status"] == 408 and "did not arrive within 0.1 seconds" in reply["error"]


def test_a_client_that_waits_for_permission_is_refused_before_it_sends(predictor):
    async def receive():
        raise AssertionError("the body is read")

    headers = [(b"content-length", b"999999999"), (b"expect", b"100-continue")]
    reply = ask(create_app({"first": predictor}), receive, headers)
    assert reply["status"] == 413


def test_an_endless_upload_is_not_read_to_its_end(predictor):
    parts = []

    async def receive():
        parts.append(1)
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    reply = ask(create_app({"first": predictor}, Limits(upload=2000)), receive)
    assert reply["status"] == 413 and len(parts) == 17


def test_a_waiting_request_whose_client_leaves_is_never_computed(predictor):
    slow = Slow(predictor)
    app = create_app({"first": slow})
    with TestClient(app) as other, ThreadPoolExecutor(1) as pool:
        first = pool.submit(other.post, "/api/predict", content=PNG)
        wait_for(lambda: slow.calls)
        messages = [
            {"type": "http.request", "body": PNG, "more_body": False},
            {"type": "http.disconnect"},
        ]

        async def receive():
            return messages.pop(0)

        assert ask(app, receive)["status"] == 400
        slow.go.set()
        assert first.result().status_code == 200
        assert other.post("/api/predict", content=PNG).status_code == 200
    assert slow.calls == 2


def test_a_request_that_the_end_of_the_server_cancels_ends_in_one_sentence(predictor):
    slow, sent = Slow(predictor), []
    app = create_app({"first": slow})
    messages = [{"type": "http.request", "body": PNG, "more_body": False}]

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def stop() -> None:
        request = asyncio.ensure_future(app(scope(), receive, send))
        while not slow.calls:
            await asyncio.sleep(0.005)
        request.cancel()
        await request

    asyncio.run(stop())
    slow.go.set()
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"] == "the server was stopped."


def test_an_upload_whose_client_leaves_is_not_kept(predictor):
    slow = Slow(predictor)
    app = create_app({"first": slow})
    with TestClient(app) as other, ThreadPoolExecutor(1) as pool:
        first = pool.submit(other.post, "/api/predict", content=PNG)
        wait_for(lambda: slow.calls)
        tracemalloc.start()
        for _ in range(8):
            messages = [
                {"type": "http.request", "body": bytes(MIB), "more_body": False},
                {"type": "http.disconnect"},
            ]

            async def receive(messages=messages):
                return messages.pop(0)

            assert ask(app, receive)["status"] == 400
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        slow.go.set()
        assert first.result().status_code == 200
    assert kept < 2 * MIB


def test_an_answer_is_sent_in_parts_and_counts_until_it_is_taken(predictor):
    """What a client does not take stays one answer of the limited number, not one more."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    app = create_app({"first": predictor}, Limits(requests=1))
    other = TestClient(app)
    sizes, counted = [], []
    messages = [{"type": "http.request", "body": encoded(noise), "more_body": False}]

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message):
        sizes.append(len(message.get("body", b"")))
        counted.append(await asyncio.to_thread(lambda: other.get("/api/health").json()["requests"]))

    asyncio.run(app(scope(), receive, send))
    assert {*counted} == {1} and other.get("/api/health").json()["requests"] == 0
    assert max(sizes) <= 2**16 < sum(sizes)


def test_models_are_named_without_paths(tmp_path):
    network = Segmenter(ModelConfig(backbone="tiny", feature_dim=16))
    folders = [tmp_path / name for name in ("one/first", "two/first")]
    for folder in folders:
        save_checkpoint(network, folder / "checkpoint", {})
    assert [*load_models([str(folders[0])], device="cpu")] == ["first"]
    with pytest.raises(ConfigError, match="two models are called 'first'"):
        load_models([str(folder) for folder in folders], device="cpu")


def test_the_command_refuses_what_it_cannot_serve(monkeypatch):
    done = Result("serve", "--protocol", "paper-mapillary")
    assert done.code == 2 and "for evaluation" in done.err
    done = Result("serve", "--host", "no such host")
    assert done.code == 2 and "not an address of this machine" in done.err
    with listen("127.0.0.1", 0) as busy:
        done = Result("serve", "--port", str(busy.getsockname()[1]))
        assert done.code == 5 and "cannot listen on port" in done.err and "--port" in done.err
    monkeypatch.setattr("pinmem_core.serving.find_spec", lambda name: None)
    done = Result("serve")
    assert done.code == 5 and "pip install 'pinmem[serve]'" in done.err
