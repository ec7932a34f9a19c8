"""Web addresses in words that hold no secret."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s<>]+")
_SECRET_NAME = re.compile(
    "pass|pwd|token|secret|key|sig|auth|cred|code|session|jwt|pin|otp|user|login|mail",
    re.IGNORECASE,
)
_PLAIN_VALUE = re.compile(r"[A-Za-z]{0,5}|[0-9]{1,6}")


def redact_url(address: str) -> str:
    """Return `address` without what may be a secret in it.

    User name, password and fragment are left out. Values of the query are hidden, but for short
    words and numbers under names that mean no secret, such as `packageID=3`.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    rest = rest[authority.rfind("@") + 1 :]
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        parts.port  # noqa: B018  # raises where a password with a slash has been cut in two
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    path = re.sub(r";[^/]*", f";{HIDDEN}", parts.path)
    query = "&".join(map(_masked_value, parts.query.split("&"))) if parts.query else ""
    return parts._replace(path=path, query=query, fragment="").geturl()


def redact_text(text: str) -> str:
    """Return `text` with every web address in it masked."""
    return _ADDRESS.sub(_masked_match, text) if "://" in text else text


def redact_values(value: Any) -> Any:
    """Return `value`, a text or what JSON makes of texts, with every web address in it masked."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: redact_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(entry) for entry in value]
    return value


def _masked_match(match: re.Match[str]) -> str:
    address = match[0].rstrip(".,;:!?)]}'\"")  # they end a sentence
    return redact_url(address) + match[0][len(address) :]


def _masked_value(entry: str) -> str:
    name, equals, value = entry.partition("=")
    if not equals:
        name, value = "", name
    harmless = _PLAIN_VALUE.fullmatch(value) and not _SECRET_NAME.search(unquote(name))
    return f"{name}{equals}{value if harmless else HIDDEN}"
