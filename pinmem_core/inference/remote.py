"""Fetch an image from a web address."""

import time

import requests
from urllib3.exceptions import HTTPError

from pinmem_core.addresses import redact_url
from pinmem_core.data.http_range import InterruptedTransferError, new_session, transfer_error
from pinmem_core.errors import DataError, MachineError

TIMEOUT = (10.0, 30.0)
"""Time limits in seconds: for the connection, and for the next bytes."""
LONGEST = 300.0
"""Time limit for the whole image in seconds."""
LARGEST = 64 * 10**6
"""Maximum size of an image in bytes."""
_BLOCK = 2**16


def fetch_image(address: str) -> bytes:
    """Return the file at a web address; redirects are followed.

    Args:
        address: Address that begins with http:// or https://.

    Raises:
        DataError: There is no such file, it is a web page, or it is larger than `LARGEST`.
        MachineError: The site cannot be reached, or takes too long.
    """
    shown = redact_url(address)
    whole = {"Accept-Encoding": "identity"}
    try:
        with (
            new_session() as session,
            session.get(address, headers=whole, stream=True, timeout=TIMEOUT) as answer,
        ):
            return _content(answer, shown)
    except HTTPError:
        raise MachineError(f"{shown} broke off.", "Try again.") from None
    except (requests.RequestException, ValueError, OSError) as error:
        failure = transfer_error(error)
        if isinstance(failure, InterruptedTransferError):
            hint = "Check the network connection, and try again."
            raise MachineError(f"{shown} {failure.reason}.", hint) from None
        raise DataError(f"{shown} {failure.reason}.", failure.hint) from None


def _content(answer: requests.Response, shown: str) -> bytes:
    if answer.status_code != 200:
        raise DataError(
            f"{shown} cannot be fetched: the site answers with status {answer.status_code}.",
            "Open the address in a browser.",
        )
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise DataError(f"{shown} is a web page, not an image.", "Name the image itself.")
    content, deadline = bytearray(), time.monotonic() + LONGEST
    while block := answer.raw.read1(_BLOCK, decode_content=True):
        content += block
        if len(content) > LARGEST:
            raise DataError(
                f"{shown} is larger than {LARGEST // 10**6} MB.", "Download it, and name the file."
            )
        if time.monotonic() > deadline:
            raise MachineError(
                f"{shown} takes longer than {LONGEST:.0f} s.", "Download it, and name the file."
            )
    return bytes(content)
