"""A web server on 127.0.0.1 that misbehaves on request."""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs

BLOCK = 4000  # less than a file's buffer holds
LOGIN = "/login"
USER, PASSWORD = "ada@example.org", "open sesame"


@dataclass(frozen=True)
class Mood:
    """How a request is answered; correctly by default."""

    status: int | None = None
    """Answer this, and no file."""
    headers: Mapping[str, str] = field(default_factory=dict)
    page: bool = False
    """Answer 200 with a web page instead of the file."""
    cut: int | None = None
    """Close the connection after this many bytes."""
    deaf: bool = False
    """Ignore Range."""
    trusting: bool = False
    """Ignore If-Range."""
    lie: int = 0
    """Send a Content-Length that differs by this."""
    ration: int | None = None
    """Answer a Range with at most this many bytes, and a correct Content-Range."""
    shift: int = 0
    """Continue this many bytes further than asked for."""
    flip: int | None = None
    """Turn the bits of this byte of the file."""
    pause: float = 0.0
    """Sleep after each block, in seconds."""
    hidden: bool = False
    """Send no Content-Length: the body ends with the connection."""
    endless: bool = False
    """Send the file again and again, in chunks, whatever the Content-Length."""
    body: bytes = b""
    """Body of an answer with `status`."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    time: float = field(default_factory=time.monotonic)


class Site(ThreadingHTTPServer):
    """Serves `files` by path; each request uses up one of `moods`, then `always` holds."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.moods: dict[str, list[Mood]] = {}
        self.always: dict[str, Mood] = {}
        self.members: set[str] = set()
        self.login_status: int | None = None
        self.log: list[Request] = []
        self.sent = 0
        self.reason: str | None = None

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"

    def gets(self, path: str) -> list[Request]:
        return [request for request in self.log if request.path == path]

    def ranges(self, path: str) -> list[str | None]:
        return [request.headers.get("Range") for request in self.gets(path)]


@contextmanager
def serving() -> Iterator[Site]:
    with Site() as site:
        Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        yield site
        site.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.log.append(Request("GET", self.path, dict(self.headers)))
        moods = self.server.moods.get(self.path)
        mood = moods.pop(0) if moods else self.server.always.get(self.path, Mood())
        with suppress(ConnectionError):
            self._answer(mood)

    def do_POST(self) -> None:
        self.server.log.append(Request("POST", self.path, dict(self.headers)))
        if self.server.login_status:
            return self._brief(self.server.login_status, {})
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        right = {"username": [USER], "password": [PASSWORD], "submit": ["Login"]}
        if form == right and "form=seen" in self.headers.get("Cookie", ""):
            return self._brief(302, {"Location": "/", "Set-Cookie": "member=yes; Path=/"})
        return self._page()

    def _answer(self, mood: Mood) -> None:
        member = "member=yes" in self.headers.get("Cookie", "")
        if mood.status:
            self._brief(mood.status, mood.headers, mood.body)
        elif self.path == LOGIN:
            self._page({"Set-Cookie": "form=seen; Path=/"})
        elif mood.page or (self.path in self.server.members and not member):
            self._page()
        elif self.path not in self.server.files:
            self._brief(404, {})
        else:
            self._file(self.server.files[self.path], mood)

    def _brief(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status, self.server.reason)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _page(self, headers: Mapping[str, str] | None = None) -> None:
        html = {"Content-Type": "text/html; charset=utf-8"}
        self._brief(200, html | dict(headers or {}), b"<!DOCTYPE html><form></form>")

    def _file(self, data: bytes, mood: Mood) -> None:
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if mood.flip is not None:
            data = data[: mood.flip] + bytes([data[mood.flip] ^ 255]) + data[mood.flip + 1 :]
        start, total = self._start(etag, mood), len(data) + mood.lie
        if start and start >= len(data):
            return self._brief(416, {"Content-Range": f"bytes */{total}"}, b"too far")
        first, end = 0, total
        if start:
            first = start + mood.shift
            end = min(total, first + (mood.ration or total))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{total}")
        if mood.endless:
            self.send_header("Transfer-Encoding", "chunked")
        if not mood.hidden:
            self.send_header("Content-Length", str(end - first))
        self.send_header("ETag", etag)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        return self._endless(data[first:end]) if mood.endless else self._body(data[first:end], mood)

    def _endless(self, data: bytes) -> None:
        self.close_connection = True
        while True:
            for start in range(0, len(data), 2**16):
                block = data[start : start + 2**16]
                self.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
            self.server.sent += len(data)

    def _start(self, etag: str, mood: Mood) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fits = mood.trusting or self.headers.get("If-Range", etag) == etag
        return int(asked[1]) if asked and fits and not mood.deaf else None

    def _body(self, data: bytes, mood: Mood) -> None:
        self.close_connection = True
        data = data[: mood.cut]
        for start in range(0, len(data), BLOCK):
            self.wfile.write(data[start : start + BLOCK])
            time.sleep(mood.pause)
