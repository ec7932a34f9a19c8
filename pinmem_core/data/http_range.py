"""Resumable HTTP downloads: range requests for the missing part of a file."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import requests
from pydantic import BaseModel, ValidationError
from requests.cookies import RequestsCookieJar
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry, parse_url

from pinmem_core.addresses import HIDDEN, redact_url
from pinmem_core.data.card import Archive
from pinmem_core.data.thread_pool import CancelToken
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Notice, ThrottledProgress
from pinmem_core.files import write_atomic
from pinmem_core.version import __version__

RETRY = Retry(
    total=6,
    status_forcelist=(429, 500, 502, 503, 504),
    backoff_factor=1.0,
    backoff_jitter=1.0,
    backoff_max=60.0,
)
"""Default retry policy. New bytes reset the count; `backoff_max` also limits Retry-After."""
TIMEOUT = (10.0, 60.0)
"""Default time limits in seconds: for the connection, and for the next bytes."""
LARGEST_UNKNOWN = 50 * 10**9
"""Maximum size in bytes of a file whose size neither the card nor the site states."""
_CERTIFICATE_HINT = (
    "If a proxy of your network signs connections, set REQUESTS_CA_BUNDLE to the file with its "
    "certificate. Otherwise check this machine's clock, or download the file in a browser."
)
_SIZE_HINT = "If the file is right, correct its size in the card ('bytes' or 'about')."
_PORTS = {"http": 80, "https": 443}
_BLOCK = 2**20
_SLACK = 2**20
_LONGEST_REASON = 100
_NUMBER = "[0-9]{1,18}"


def new_session(cookies: RequestsCookieJar | None = None) -> requests.Session:
    """Return a session that does not read the body of a redirect.

    By default, `requests` decompresses such a body; a few kilobytes may become gigabytes.
    """

    def close_redirect(response: requests.Response, **_: Any) -> None:
        if response.is_redirect:
            response.close()

    session = requests.Session()
    session.headers["User-Agent"] = f"pinmem/{__version__}"
    session.hooks["response"].append(close_redirect)
    session.cookies.update(cookies or {})
    return session


def origin(address: str) -> str | None:
    """Return scheme, host and port of a web address, or None.

    urllib3, which connects, also parses the address; another parser may see another host.
    """
    try:
        parts = parse_url(address)
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.host:
        return None
    return f"{parts.scheme}://{parts.host}:{parts.port or _PORTS[parts.scheme]}"


def require_encryption(address: str) -> None:
    """Check that a password for `address` is encrypted, or does not leave this machine.

    Raises:
        ConfigError: The address is neither https nor a loopback address.
    """
    scheme, _, rest = (origin(address) or "").partition("://")
    with suppress(ValueError):
        if scheme == "https" or ip_address(rest.rpartition(":")[0].strip("[]")).is_loopback:
            return
    raise ConfigError(
        "the address of the login does not begin with https: no password is sent to it.",
        "Correct 'login' in the dataset's card.",
    )


class TransferError(Exception):
    """A failure that a retry does not change; `reason` continues the sentence "ADDRESS ..."."""

    def __init__(
        self,
        reason: str,
        hint: str = "Open the address in a browser.",
        retry_after: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.retry_after = retry_after


class InterruptedTransferError(TransferError):
    """A failure that a retry may change, after the time in the Retry-After header."""


def transfer_error(error: Exception) -> TransferError:
    """Return the error for an exception from a request.

    The text of requests' own exceptions is left out: it may hold the signed address of a redirect.
    """
    match error:
        case requests.exceptions.SSLError() if "certificate" in str(error).lower():
            reason = "has a certificate that this machine does not trust"
            return TransferError(reason, _CERTIFICATE_HINT)
        case requests.Timeout():
            return InterruptedTransferError("did not answer in time")
        case requests.ConnectionError():
            return InterruptedTransferError("could not be reached")
        case requests.TooManyRedirects():
            return TransferError("redirects in circles")
        case requests.RequestException() | ValueError():
            return TransferError("is no address that can be downloaded from")
        case _:  # REQUESTS_CA_BUNDLE names no file
            return TransferError(f"could not be reached: {error}", _CERTIFICATE_HINT)


class Source(BaseModel, extra="forbid", frozen=True, strict=True):
    """Address and identity of the file whose beginning a partial file holds."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """Value for If-Range, which a weak ETag must not be."""
        strong = self.etag and not self.etag.startswith("W/")
        return self.etag if strong else self.last_modified

    def may_equal(self, other: "Source") -> bool:
        """Return whether both may be the same bytes."""
        totals = {self.total, other.total} - {None}
        etags = {self.etag, other.etag} - {None} if self.url == other.url else set()
        return len(totals) < 2 and len(etags) < 2


class PartialFile:
    """The first bytes of a file, in `path`.part, and their source, in `path`.part.json."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._record = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        """Number of bytes on disk."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def source(self) -> Source | None:
        """Source of the bytes, None if it is unknown."""
        try:
            return Source.model_validate(read_json_object(self._record))
        except (DataError, ValidationError):
            return None

    def set_source(self, source: Source) -> None:
        """Record the source of the bytes."""
        write_atomic(self._record, source.model_dump_json().encode())

    def discard(self) -> None:
        """Remove the bytes and the record."""
        self.path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Sync the complete file to disk and move it to `path`."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(path)
        self._record.unlink(missing_ok=True)


@dataclass(frozen=True)
class TransferOptions:
    """Options that all transfers of a download share."""

    cookies: RequestsCookieJar
    retry: Retry
    timeout: tuple[float, float]
    token: CancelToken
    on_event: Listener


@dataclass(frozen=True)
class Transfer:
    """Download of one archive from one address into a partial file, which is continued."""

    archive: Archive
    url: str
    part: PartialFile
    session: requests.Session
    options: TransferOptions

    def run(self) -> None:
        """Request the missing bytes until the partial file is complete.

        Raises:
            TransferError: The address does not give the file, or no new bytes after all retries.
            OSError: The disk is full.
            CancelledError: The download is cancelled.
        """
        retry, reached = self.options.retry, self.part.size
        while True:
            try:
                return self._request_rest()
            except InterruptedTransferError as error:
                interruption = error
            if self.part.size > reached:
                retry, reached = self.options.retry, self.part.size
            else:
                retry = self._next_retry(retry, interruption)
            seconds = _wait_seconds(retry, interruption.retry_after)
            if retry.history:  # no new bytes
                message = f"{redact_url(self.url)} {interruption.reason}"
                self.options.on_event(Notice(f"{message}; retrying in {seconds:.0f} s."))
            self.options.token.sleep(seconds)

    def _next_retry(self, retry: Retry, interruption: InterruptedTransferError) -> Retry:
        try:
            return retry.increment("GET", error=interruption)
        except MaxRetryError:
            times = len(retry.history) + 1
            reason = f"{interruption.reason}, {times} times in a row"
            raise TransferError(reason, "Try again later.") from None

    def _request_rest(self) -> None:
        """Send one range request for the missing bytes, and append them."""
        source = self.part.source
        is_same_url = bool(source and source.url == _url_id(self.url))
        if not (is_same_url or self.archive.sha256 or self.archive.md5):
            self.part.discard()  # only a checksum can verify bytes of another source
        size = self.part.size
        if size and size == (self.archive.bytes or (source and source.total)):
            return
        headers = {"Accept-Encoding": "identity"}
        if size:
            headers["Range"] = f"bytes={size}-"
            if source and is_same_url and source.validator:
                headers["If-Range"] = source.validator
        with self._get(headers) as response:
            self._check_status(response)
            total = self._check_range(response)
            if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._append(response, total)

    def _get(self, headers: dict[str, str]) -> requests.Response:
        timeout = self.options.timeout
        try:
            return self.session.get(self.url, headers=headers, stream=True, timeout=timeout)
        except (OSError, ValueError) as error:  # ValueError: a broken redirect
            raise transfer_error(error) from None

    def _check_status(self, response: requests.Response) -> None:
        status, headers = response.status_code, response.headers
        answer = f"answered {status} ({str(response.reason)[:_LONGEST_REASON]})"
        if self.options.retry.is_retry("GET", status):
            raise InterruptedTransferError(answer, retry_after=headers.get("Retry-After"))
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise TransferError(answer)
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            raise TransferError(
                "answered with a web page instead of the file",
                "Open the address in a browser: the site may ask for a login or a confirmation.",
            )

    def _check_range(self, response: requests.Response) -> int | None:
        """Check that the answer continues the partial file; return the total size if known."""
        status, headers, part = response.status_code, response.headers, self.part
        first, total = _content_range(headers.get("Content-Range", ""))
        if status == HTTPStatus.OK:
            length = headers.get("Content-Length", "")
            first, total = 0, int(length) if re.fullmatch(_NUMBER, length) else None
        if total and self.archive.bytes not in (None, total):
            raise TransferError(f"offers {total} bytes instead of {self.archive.bytes}")
        if total and total > self._max_bytes(None):
            raise TransferError(f"offers {total} bytes, more than the card allows", _SIZE_HINT)
        source = Source(
            url=_url_id(self.url),
            etag=headers.get("ETag"),
            last_modified=headers.get("Last-Modified"),
            total=total,
        )
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if total != part.size:
                part.discard()
                raise InterruptedTransferError("does not have the requested range")
            return total
        if status == HTTPStatus.OK:
            part.discard()
        elif first != part.size or not (part.source or source).may_equal(source):
            part.discard()
            raise InterruptedTransferError("sent another range than the requested one")
        part.set_source(source)
        return total

    def _max_bytes(self, total: int | None) -> int:
        about = self.archive.about
        by_card = self.archive.bytes or (2 * about + _SLACK if about else None)
        return min(filter(None, (total, by_card)), default=LARGEST_UNKNOWN)

    def _append(self, response: requests.Response, total: int | None) -> None:
        done, limit = self.part.size, self._max_bytes(total)
        expected = total or self.archive.expected_bytes or 0
        progress = ThrottledProgress(self.archive.file, expected, self.options.on_event)
        progress.update(done, force=True)
        token = self.options.token
        with token.on_cancel(lambda: _shut_down(response)), self.part.path.open("ab") as file:
            for block in _blocks(response):
                token.check()  # bytes after a shutdown are not data
                done += len(block)
                if done > limit:
                    break
                file.write(block)
                file.flush()
                progress.update(done)
        if done > limit:
            self.part.discard()
            raise TransferError(f"sends more than the expected {limit} bytes", _SIZE_HINT)
        if total is not None and done != total:
            raise InterruptedTransferError(f"ended after {done} of {total} bytes")
        progress.update(done, force=True)


def _wait_seconds(retry: Retry, retry_after: str | None) -> float:
    """Return how long the site asks to wait, or the back-off; at least `backoff_factor`."""
    seconds = max(retry.get_backoff_time(), retry.backoff_factor)
    if retry_after:
        with suppress(HTTPError, ArithmeticError, TypeError, ValueError):  # not a valid header
            seconds = retry.parse_retry_after(retry_after)
    return min(seconds, retry.backoff_max)


def _url_id(url: str) -> str:
    """Return an identifier of `url` that contains no secret."""
    shown = redact_url(url)
    secret = HIDDEN in shown
    return f"{shown}#{hashlib.sha256(url.encode()).hexdigest()[:16]}" if secret else shown


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the bytes as soon as they arrive, so that an interruption loses none."""
    try:
        while block := response.raw.read1(_BLOCK, decode_content=False):
            yield block
    except (HTTPError, OSError) as error:
        raise InterruptedTransferError("broke off") from error


def _shut_down(response: requests.Response) -> None:
    with suppress(OSError, ValueError, RuntimeError):  # the connection may have ended
        response.raw.shutdown()


def _content_range(header: str) -> tuple[int | None, int | None]:
    """Return the first byte and the total size, None for what the header leaves open."""
    match = re.fullmatch(rf"bytes (?:({_NUMBER})-{_NUMBER}|\*)/(?:({_NUMBER})|\*)", header)
    first, total = match.groups() if match else (None, None)
    return (int(first) if first else None), (int(total) if total else None)
