"""What all requests share, and their failures in words that hold no secret."""

from ipaddress import ip_address
from typing import Any

import requests
from urllib3.util import parse_url

from pinmem_core.errors import ConfigError
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
