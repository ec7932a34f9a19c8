"""What a web server answers to the downloader."""

import hashlib
import socketserver
from functools import cache
from pathlib import Path
from random import Random
from threading import Thread

from fuzz.cases import ACCEPTED, INTACT_SHARE, RIGHT, Case, Target, require
from fuzz.mutators import ODD_TEXTS, mutated_bytes
from fuzz.targets_archives import intact
from pinmem_core.data.card import Archive, DatasetCard, Layout
from pinmem_core.data.download import download
from pinmem_core.data.http_range import RETRY

_HURRY = RETRY.new(total=1, backoff_factor=0.001, backoff_jitter=0.0, backoff_max=0.01)
_SHORT = (1.0, 0.5)
_HEADERS = (
    *("Content-Encoding: gzip", "Transfer-Encoding: chunked", "Content-Length: -1"),
    *("Content-Length: 99999999999999999999", "Content-Range: bytes 5-9/3", "Set-Cookie: a=b"),
    *("Location: /a.zip", "Location: file:///etc/passwd", "Location: http://[", "ETag: \x1b[31m"),
    *(
        "Retry-After: Mon, 99 Foo",
        "Content-Type: text/html",
        "Connection: close",
        "Content-Length:",
    ),
)


class _Handler(socketserver.StreamRequestHandler):
    timeout = 2

    def handle(self) -> None:
        while (line := self.rfile.readline(65536)) and line.strip():
            pass
        self.wfile.write(self.server.answer)  # type: ignore[attr-defined]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    answer = b""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that goes away is no error."""


@cache
def _server() -> _Server:
    server = _Server(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def _make(rng: Random) -> Case:
    data = intact("x.zip")
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(data)}", "Connection: close"]
    lines += ["Content-Type: application/zip", 'ETag: "abc"']
    checked = rng.random() < 0.7
    if rng.random() < INTACT_SHARE:
        return Case({"answer": _joined(lines) + data}, intact=True, known=checked)
    for _ in range(rng.randint(0, 2)):
        match rng.randrange(4):
            case 0:
                status = rng.choice((200, 204, 206, 301, 302, 304, 401, 403, 404, 416, 429, 503))
                lines[0] = f"HTTP/1.1 {status} {rng.choice(('OK', *ODD_TEXTS))[:200]}"
            case 1:
                lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_HEADERS))
            case 2 if len(lines) > 1:
                del lines[rng.randrange(1, len(lines))]
            case _:
                place = rng.randrange(len(lines))
                lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(ODD_TEXTS)[:300]
    answer = _joined(lines) + data
    answer = mutated_bytes(rng, answer) if rng.random() < 0.6 else answer
    return Case({"answer": answer}, known=checked)


def _joined(lines: list[str]) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass")


def _read(case: Case, folder: Path) -> str:
    server = _server()
    server.answer = case.files["answer"]
    data = intact("x.zip")
    digest = {"sha256": hashlib.sha256(data).hexdigest()} if case.known else {}
    url = f"http://127.0.0.1:{server.server_address[1]}/a.zip"
    layout = Layout(name="x", image="{n}.png", label="{n}_l.png", label_maps="trainids", id="{n}")
    card = DatasetCard(
        name="toytown",
        title="Toytown",
        layouts=(layout,),
        archives=(Archive(file="a.zip", url=(url,), **digest),),
    )
    (path,) = download(card, folder / "archives", retry=_HURRY, timeout=_SHORT)
    if case.known:
        require(path.read_bytes() == data, "other bytes than those that were published")
        return RIGHT
    return RIGHT if path.read_bytes() == data else ACCEPTED


TARGETS = (Target("HTTP answers", _make, _read, 3),)
