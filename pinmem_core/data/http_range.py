"""Resumable HTTP downloads: range requests for the missing part of a file."""

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import requests
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from pinmem_core.addresses import HIDDEN, redact_url
from pinmem_core.data.card import Archive
from pinmem_core.data.thread_pool import Meter, Stop
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.events import Listener
from pinmem_core.files import write_atomic
from pinmem_core.version import __version__

CERTIFICATE_HINT = (
    "Where a proxy of your network signs connections, set REQUESTS_CA_BUNDLE to the file with its "
    "certificate; else check this machine's clock, or fetch the file in a browser."
)
_PORTS = {"http": 80, "https": 443}


def new_session() -> requests.Session:
    """Return a session without cookies that reads no body of a redirect.

    Left to itself, `requests` reads and decompresses such a body before it goes on: a few kilobytes
    may unpack to gigabytes.
    """
    session = requests.Session()
    session.headers["User-Agent"] = f"pinmem/{__version__}"
    session.hooks["response"].append(_close_redirect)
    return session


def origin(address: str) -> str | None:
    """Return scheme, host and port of `address`, None where it is no web address.

    It is parsed by the library that connects: what another parser takes for the host may differ.
    """
    try:
        parts = parse_url(address)
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.host:
        return None
    return f"{parts.scheme}://{parts.host}:{parts.port or _PORTS[parts.scheme]}"


def require_encryption(address: str) -> None:
    """Do nothing where what is sent to `address` cannot be read on its way.

    Plain http is accepted to this machine's own loopback address alone, which nothing leaves.

    Raises:
        ConfigError: It can be read.
    """
    found = origin(address) or ""
    if found.startswith("https://"):
        return
    host = found.removeprefix("http://").rpartition(":")[0].strip("[]")
    try:
        if ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise ConfigError(
        "the address of the login does not begin with https: no password is sent to it.",
        "Correct 'login' in the dataset's card.",
    )


def distrusts(error: Exception) -> bool:
    """Return whether the site's certificate was refused, which no second try mends."""
    return isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower()


def explain(error: Exception) -> str:
    """Return what an address did, as the end of a sentence that begins with it.

    The error's own text is left out: it may hold the signed address of a redirect.
    """
    if distrusts(error):
        return "has a certificate that this machine does not trust"
    if isinstance(error, requests.Timeout):
        return "did not answer in time"
    if isinstance(error, requests.ConnectionError):
        return "could not be reached"
    if isinstance(error, requests.TooManyRedirects):
        return "redirects in circles"
    return "is no address that can be fetched from"


def _close_redirect(response: requests.Response, **_: Any) -> None:
    if response.is_redirect:
        response.close()


@dataclass(frozen=True)
class Patience:
    """Limits of waiting, in seconds."""

    retries: int = 6
    """How many tries in a row may fail without a single new byte."""
    first_wait: float = 1.0
    """Wait before the second try; each further one waits twice as long."""
    longest_wait: float = 60.0
    """Most that is waited between two tries, whatever the site asks for."""
    connect: float = 10.0
    """Time for a connection to be made."""
    read: float = 60.0
    """Time for the next bytes to come."""

    @property
    def timeout(self) -> tuple[float, float]:
        """The limits of one request, as `requests` wants them."""
        return self.connect, self.read

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Return how long to wait after `failures` in a row; `asked` is what the site asks for."""
        if asked is not None:
            return min(asked, self.longest_wait)
        doubled = self.first_wait * 2.0 ** max(failures - 1, 0)
        return min(doubled, self.longest_wait) * random.uniform(0.5, 1.0)


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, or None where it says nothing."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def address_of(url: str) -> str:
    """Return what stands for `url` in a record: no secret, but as distinct as the address."""
    shown = redact_url(url)
    if HIDDEN not in shown:
        return shown
    return f"{shown}#{hashlib.sha256(url.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Origin:
    """Which bytes a partial file is the beginning of, as the site told."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None

    @classmethod
    def told(cls, url: str, headers: Mapping[str, str], total: int | None) -> "Origin":
        """Return what the `headers` of an answer from `url` tell."""
        return cls(url, headers.get("ETag"), headers.get("Last-Modified"), total)

    @property
    def validator(self) -> str | None:
        """What asks the site whether the file is still the same; a weak tag cannot."""
        strong = self.etag and not self.etag.startswith("W/")
        return self.etag if strong else self.last_modified

    def agrees(self, other: "Origin") -> bool:
        """Return whether both may be the same bytes."""
        totals = {self.total, other.total} - {None}
        tags = {self.etag, other.etag} - {None} if self.url == other.url else set()
        return len(totals) < 2 and len(tags) < 2


class Partial:
    """The `.part` file beside a file to come, with a record of its origin.

    All methods that write raise MachineError where the disk does not take it.

    Args:
        path: The file to come.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._record = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def origin(self) -> Origin | None:
        """Where they came from, or None where that is not known."""
        try:
            origin = Origin(**read_json_object(self._record))
        except (DataError, TypeError):
            return None
        texts = (origin.url, origin.etag or "", origin.last_modified or "")
        right = all(isinstance(text, str) for text in texts)
        return origin if right and isinstance(origin.total, int | None) else None

    def belongs_to(self, origin: Origin) -> None:
        """Remember where the bytes come from."""
        with self._writing():
            write_atomic(self._record, json.dumps(asdict(origin)).encode())

    @contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that appends bytes; they outlive the process once it returns."""
        with self._writing():
            file = self.path.open("ab")

        def append(block: bytes) -> None:
            with self._writing():
                file.write(block)
                file.flush()

        with file:
            yield append

    def discard(self) -> None:
        """Forget all."""
        with self._writing():
            self.path.unlink(missing_ok=True)
            self._record.unlink(missing_ok=True)

    def become(self, path: Path) -> None:
        """Give the file its name, now that it is complete; it is safe on disk before."""
        with self._writing():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            self.path.replace(path)
            self._record.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "Make room, or name another folder; what is there stays, and the rest follows."
            raise MachineError(f"cannot write {self.path}: {error.strerror}.", hint) from error


_BLOCK = 2**20
_BUSY = {429, 500, 502, 503, 504}
_SLACK = 2**20
LARGEST_UNKNOWN = 50 * 10**9
"""Most bytes of a file whose size neither the card nor the site tells."""
_SIZE_HINT = "If the file is right, correct its size in the card ('bytes' or 'about')."
_LONGEST_REASON = 100
_NUMBER = "[0-9]{1,18}"


@dataclass(frozen=True)
class Means:
    """What all transfers of a download share."""

    open_session: Callable[[], requests.Session]
    patience: Patience
    stop: Stop
    on_event: Listener


class RefusalError(Exception):
    """An address that is of no use; `reason` ends a sentence that begins with it."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class InterruptionError(Exception):
    """An exchange that may go better next time, after `wait` seconds where the site says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


class Exchange:
    """Fetches one archive from one address.

    Args:
        archive: What is fetched.
        url: The address.
        session: Sends the requests.
        means: Waiting, stopping and telling.
    """

    def __init__(self, archive: Archive, url: str, session: requests.Session, means: Means) -> None:
        self._archive = archive
        self._url = url
        self._session = session
        self._means = means

    def fetch_rest(self, part: Partial) -> None:
        """Ask once for what `part` lacks, and append it; it is complete when this returns.

        Raises:
            InterruptionError: What came so far is in `part`; trying again may bring the rest.
            RefusalError: Trying again is of no use.
            MachineError: The disk does not take it.
            StoppedError: It was given up.
        """
        if not self._may_continue(part):
            part.discard()
        if part.size and part.size == self._total_of(part):
            return
        with self._ask(part) as response:
            _check(response)
            total = self._agree_on_start(response, part)
            if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._append(response, part, total)

    def _may_continue(self, part: Partial) -> bool:
        """Return whether what is there may be the beginning of what the address gives.

        A published checksum tells in the end, wherever the bytes came from.
        """
        origin = part.origin
        checked = self._archive.sha256 or self._archive.md5
        return bool(checked or (origin and origin.url == address_of(self._url)))

    def _total_of(self, part: Partial) -> int | None:
        return self._archive.bytes or (part.origin.total if part.origin else None)

    def _ask(self, part: Partial) -> requests.Response:
        headers = {"Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            origin = part.origin
            if origin and origin.url == address_of(self._url) and origin.validator:
                headers["If-Range"] = origin.validator
        timeout = self._means.patience.timeout
        try:
            return self._session.get(self._url, headers=headers, stream=True, timeout=timeout)
        except (requests.ConnectionError, requests.Timeout) as error:
            if distrusts(error):
                raise RefusalError(explain(error), CERTIFICATE_HINT) from None
            raise InterruptionError(explain(error)) from None
        except (requests.RequestException, ValueError) as error:  # an address that is no text
            raise RefusalError(explain(error)) from None

    def _agree_on_start(self, response: requests.Response, part: Partial) -> int | None:
        """Make `part` the beginning that the answer continues; return the size of the whole."""
        first, total = _content_range(response.headers.get("Content-Range"))
        if response.status_code == HTTPStatus.OK:
            first, total = 0, _content_length(response)
        origin = Origin.told(address_of(self._url), response.headers, total)
        if total and self._archive.bytes not in (None, total):
            raise RefusalError(f"offers {total} bytes instead of {self._archive.bytes}")
        if total and total > self._most_bytes(None):
            raise RefusalError(f"offers {total} bytes, more than the card lets expect", _SIZE_HINT)
        if response.status_code == HTTPStatus.OK:
            part.discard()
            part.belongs_to(origin)
        elif response.status_code == HTTPStatus.PARTIAL_CONTENT:
            self._require_continuation(part, first, origin)
        elif total != part.size:
            part.discard()
            raise InterruptionError("has no bytes where it should go on")
        return total

    def _require_continuation(self, part: Partial, first: int | None, origin: Origin) -> None:
        known = part.origin or origin
        if first != part.size or not known.agrees(origin):
            part.discard()
            raise InterruptionError("goes on with other bytes than asked for")
        part.belongs_to(origin)

    def _most_bytes(self, total: int | None) -> int:
        """Return how large the file may become; `total` is what the site announces."""
        about = self._archive.about
        by_card = self._archive.bytes or (2 * about + _SLACK if about else None)
        return min(filter(None, (total, by_card)), default=LARGEST_UNKNOWN)

    def _append(self, response: requests.Response, part: Partial, total: int | None) -> None:
        done, most = part.size, self._most_bytes(total)
        expected = total or self._archive.expected_bytes or 0
        meter = Meter(self._archive.file, expected, self._means.on_event)
        meter.show(done, now=True)
        with self._means.stop.ending(lambda: _hang_up(response)), part.appending() as append:
            for block in _blocks(response):
                self._means.stop.check()  # what comes after a hang-up is no data
                done += len(block)
                if done > most:
                    break
                append(block)
                meter.show(done)
        if done > most:
            part.discard()
            raise RefusalError(f"sends more than the {most} bytes that it may", _SIZE_HINT)
        if total is not None and done != total:
            raise InterruptionError(f"ended after {done} of {total} bytes")
        meter.show(done, now=True)


def _check(response: requests.Response) -> None:
    """Refuse an answer that does not hold the file."""
    status = response.status_code
    answer = f"answered {status} ({str(response.reason)[:_LONGEST_REASON]})"
    if status in _BUSY:
        raise InterruptionError(answer, retry_after(response.headers.get("Retry-After")))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise RefusalError(answer)
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise RefusalError(
            "answered with a web page instead of the file",
            "Open the address in a browser: the site may ask for a login or a confirmation.",
        )


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the bytes as they come: nothing that has arrived is lost when the rest does not."""
    try:
        while block := response.raw.read1(_BLOCK, decode_content=False):
            yield block
    except (HTTPError, OSError) as error:
        raise InterruptionError("broke off") from error


def _hang_up(response: requests.Response) -> None:
    with suppress(OSError, ValueError, RuntimeError):  # it may have ended by itself
        response.raw.shutdown()


def _content_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(_NUMBER, length) else None


def _content_range(header: str | None) -> tuple[int | None, int | None]:
    """Return first byte and total, None for what the header leaves open."""
    match = re.fullmatch(rf"bytes (?:({_NUMBER})-{_NUMBER}|\*)/(?:({_NUMBER})|\*)", header or "")
    first, total = match.groups() if match else (None, None)
    return (int(first) if first else None), (int(total) if total else None)
