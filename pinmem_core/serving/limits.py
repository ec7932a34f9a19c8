"""What one client, and all together, may use of a server."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

_CLIENTS = 4096
"""Clients whose requests are counted; the one that was silent for longest is forgotten first."""
_DISCARDED = 8
"""Multiple of the upload limit up to which a refused upload is read."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        upload: Largest upload in bytes.
        megapixels: Largest image in megapixels, whatever the size of its file.
        requests: Uploads that are received, wait or are predicted at the same time. Together with
            `upload`, this bounds the memory.
        per_minute: Requests per minute of one client address. They may come at once.
        seconds: Time in which an upload must arrive.
    """

    upload: int = 16 * 2**20
    megapixels: float = 24
    requests: int = 32
    per_minute: int = 600
    seconds: float = 60


def refusal(
    status: int, message: str, hint: str | None = None, *, retry_after: float | None = None
) -> HTTPException:
    """Return the exception for a request that is not served.

    Args:
        status: HTTP status.
        message: Sentence that says why.
        hint: Sentence that names the fix.
        retry_after: Seconds after which the client may ask again, rounded up.
    """
    headers = None if retry_after is None else {"Retry-After": str(int(retry_after) + 1)}
    return HTTPException(status, {"error": message, "hint": hint}, headers)  # type: ignore[arg-type]


class RateLimiter:
    """Token buckets: count the requests of each client, in bounded memory.

    Args:
        per_minute: Requests per minute and client; as many may come at once.
        clock: Function that returns the time in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> float:
        """Count a request; return 0 if it is allowed, or the seconds until the next one is."""
        now, per_second = self._clock(), self._per_minute / 60
        left, before = self._buckets.pop(client, (self._per_minute, now))
        left = min(self._per_minute, left + (now - before) * per_second)
        allowed = left >= 1
        self._buckets[client] = left - allowed, now
        if len(self._buckets) > _CLIENTS:
            del self._buckets[next(iter(self._buckets))]
        return 0 if allowed else (1 - left) / per_second


async def read_body(request: Request, limits: Limits, *, keep: bool = True) -> bytes:
    """Return the body of a request.

    A body that is too large is read, but not kept: a client that is still sending would not see the
    answer.

    Args:
        request: The request.
        limits: Limits of size and time.
        keep: Whether to keep the body of a request that is served.

    Raises:
        HTTPException: The body is too large, or does not arrive in time.
        ClientDisconnect: The client has gone.
    """
    large = refusal(
        413, f"the upload is larger than {limits.upload / 2**20:.3g} MiB.", "Shrink the image."
    )
    claimed = request.headers.get("content-length", "")
    if claimed.isdigit() and int(claimed) > limits.upload and "expect" in request.headers:
        raise large  # the client waits for the answer before it sends
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > _DISCARDED * limits.upload:
                    break
                if keep and size <= limits.upload:
                    body += part
                else:
                    body.clear()
    except TimeoutError:
        message = f"the upload did not arrive within {limits.seconds:g} seconds."
        raise refusal(408, message, "Send a smaller image.") from None
    if size > limits.upload:
        raise large
    return bytes(body)
