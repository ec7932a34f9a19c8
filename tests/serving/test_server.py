"""A server in a process of its own: many clients, hostile ones, Ctrl-C, and a browser."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import chromium
import numpy as np
import pytest
import requests
from odd_images import picture
from onnx_files import write_onnx
from PIL import Image

from pinmem_core.images import write_png

pytestmark = pytest.mark.slow
MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield the process and the address of a server of a network and of a file of classes only."""
    classes = tmp_path_factory.mktemp("models") / "classes.onnx"
    write_onnx(classes, size=(64, 64))
    limits = "--max-requests 250 --max-upload 1 --max-megapixels 4 --per-minute 5000"
    command = [sys.executable, "-m", "pinmem_cli", "serve", "--port", "0"]
    command += ["--model", f"starter,{classes}"]
    with subprocess.Popen(
        [*command, "--json", *limits.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Where the tests run in the background, Ctrl-C is ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        answer = ""
        while not answer.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            answer += line
        yield process, json.loads(answer)["url"]
        process.kill()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def peak_memory(process: subprocess.Popen) -> float:
    """Return the most memory that a process had, in MiB; Linux only."""
    (line,) = [
        line
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


def send(url: str, *parts: bytes, close: bool = False) -> bytes:
    """Send bytes that need not be HTTP, and return the answer."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        if close:
            return b""
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
        return answer


HEAD = b"POST /api/predict HTTP/1.1\r\nHost: x\r\n"
MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 1_000_000 + b"\r\n\r\n",
    b"GET /\x00\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
]


@pytest.mark.parametrize("content", MALFORMED)
def test_a_malformed_request_is_answered_in_json(server, content):
    head, _, body = send(server[1], content).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert {*json.loads(body)} == {"error", "hint"}


def test_200_clients_at_once_beside_hostile_ones_lose_nothing(server):
    process, url = server
    address = f"{url}/api/predict"
    photo = png(picture())
    expected = requests.post(address, data=photo, timeout=60).json()
    before = peak_memory(process)

    def ask(number: int) -> tuple[int, str]:
        reply = requests.post(address, data=photo, timeout=120)
        return reply.status_code, reply.json().get("mask", "")

    def attack(number: int) -> int:
        match number % 5:
            case 0:  # more than it takes
                return requests.post(address, data=bytes(6 * MIB), timeout=120).status_code
            case 1:  # an endless body without a length
                parts = (bytes(MIB // 4) for _ in range(40))
                try:
                    return requests.post(address, data=parts, timeout=120).status_code
                except requests.ConnectionError:  # it was closed while the client was sending
                    return 413
            case 2:  # a small file, many pixels
                bomb = png(np.zeros((6000, 6000), np.uint8))
                return requests.post(address, data=bomb, timeout=120).status_code
            case 3:  # half of an upload
                send(url, HEAD + b"Content-Length: 900000\r\n\r\n", bytes(400_000), close=True)
                return 400
            case _:
                return requests.post(address, data=b"<svg/>" * 1000, timeout=120).status_code

    with ThreadPoolExecutor(220) as pool:
        hostile = [pool.submit(attack, number) for number in range(20)]
        replies = Counter(pool.map(ask, range(200)))
        statuses = Counter(attacker.result() for attacker in hostile)
    assert replies == {(200, expected["mask"]): 200}
    assert statuses == {413: 12, 400: 8}
    assert peak_memory(process) - before < 150
    assert requests.get(f"{url}/api/health", timeout=60).json()["requests"] == 0


@pytest.mark.skipif(not chromium.FOUND, reason="there is no Chromium")
def test_a_browser_shows_the_prediction(server, tmp_path):
    url = server[1]
    photo = tmp_path / "street.png"
    write_png(photo, picture())
    by_id = "document.getElementById"
    with chromium.Page(tmp_path / "profile", offline=False) as tab:
        for width, scheme in ((1280, "light"), (400, "dark")):
            tab.open(f"{url}/", width, scheme)
            tab.until(f"{by_id}('model').value === 'starter'")
            tab.choose_file("#file", photo)
            tab.until(f"!{by_id}('result').hidden && {by_id}('layer').naturalWidth === 45")
            assert tab.value(f"{by_id}('classes').rows.length") > 0
            assert tab.value(f"{by_id}('layer').clientWidth") > 300  # a small photo is enlarged
            tab.value("document.querySelector('[value=confidence]').click()")
            assert tab.value(f"{by_id}('layer').src === {by_id}('confidence').href")
            assert tab.value(f"{by_id}('mask').download") == "street-mask.png"
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.accessibility_findings() == []
            tab.value(f"{by_id}('model').value = 'classes.onnx'")
            tab.value(f"{by_id}('model').dispatchEvent(new Event('change'))")
            tab.until(f"{by_id}('status').textContent.startsWith('classes.onnx')")
            assert tab.value("document.querySelector('[value=confidence]').disabled")
            assert tab.value(f"{by_id}('layer').src === {by_id}('color').href")
            assert tab.value(f"{by_id}('confidence').parentElement.hidden")
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no image")
        tab.choose_file("#file", broken)
        tab.until(f"{by_id}('error').textContent.includes('not a supported image')")
        assert [text for text in tab.complaints if "400 (Bad Request)" not in text] == []
        assert all(address.startswith((url, "blob:")) for address in tab.requests)


_UNREAD = """
from pinmem_core.serving import server

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more in [True] * int(scope["path"][1:]) + [False]:
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": more})

server.ANSWER_SECONDS = 0.5
listening = server.listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
server.run(app, listening)
"""


def test_a_client_that_does_not_take_its_answer_is_cut_off():
    parts, taken = 500, 0
    command = [sys.executable, "-c", _UNREAD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{process.stdout.readline()}".strip()
            whole = len(requests.get(f"{url}/{parts}", timeout=60).content)
            with socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=60) as slow:
                slow.sendall(f"GET /{parts} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                time.sleep(2)
                with suppress(ConnectionResetError):
                    while part := slow.recv(1 << 16):
                        taken += len(part)
        finally:
            process.kill()
    assert taken < whole == (parts + 1) << 16


def test_ctrl_c_ends_the_server(server):
    process, _ = server
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    output = process.stderr.read()
    assert "stopped" in output and "Traceback" not in output
