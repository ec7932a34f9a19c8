"""What all requests share, and their failures in words that hold no secret."""

from urllib.parse import urlsplit

import requests

from pinmem_core.version import __version__

CERTIFICATE_HINT = (
    "Where a proxy of your network signs connections, set REQUESTS_CA_BUNDLE to the file with its "
    "certificate; else check this machine's clock, or fetch the file in a browser."
)


def new_session() -> requests.Session:
    """Return a session that knows nobody yet."""
    session = requests.Session()
    session.headers["User-Agent"] = f"pinmem/{__version__}"
    return session


def without_user(url: str) -> str:
    """Return `url` without the user name and password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def distrusts(error: requests.RequestException) -> bool:
    """Return whether the site's certificate was refused, which no second try mends."""
    return isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower()


def explain(error: requests.RequestException) -> str:
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
