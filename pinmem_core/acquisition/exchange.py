"""One question and answer: asking an address for what a partial file lacks."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import requests
from urllib3.exceptions import HTTPError

from pinmem_core.acquisition.crew import Stop
from pinmem_core.acquisition.meter import Meter
from pinmem_core.acquisition.network import CERTIFICATE_HINT, distrusts, explain
from pinmem_core.acquisition.partial import Origin, Partial, address_of
from pinmem_core.acquisition.patience import Patience, retry_after
from pinmem_core.datasets import Archive
from pinmem_core.events import Listener

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
