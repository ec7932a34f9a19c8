"""Redact secrets in URLs."""

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
    """Return `address` without possible secrets.

    User name, password and fragment are removed. Query values are hidden, except short words and
    numbers of keys that do not name a secret, such as `packageID=3`.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    rest = rest[authority.rfind("@") + 1 :]
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        parts.port  # noqa: B018  # raises ValueError if a password contains a slash
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    path = re.sub(r";[^/]*", f";{HIDDEN}", parts.path)
    query = "&".join(map(_redact_value, parts.query.split("&"))) if parts.query else ""
    return parts._replace(path=path, query=query, fragment="").geturl()


def redact_text(text: str) -> str:
    """Return `text` with every URL redacted."""
    return _ADDRESS.sub(_redact_match, text) if "://" in text else text


def redact_values(value: Any) -> Any:
    """Return a JSON-like `value` with every URL in its strings redacted."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: redact_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(entry) for entry in value]
    return value


def _redact_match(match: re.Match[str]) -> str:
    address = match[0].rstrip(".,;:!?)]}'\"")  # punctuation of the sentence
    return redact_url(address) + match[0][len(address) :]


def _redact_value(entry: str) -> str:
    name, equals, value = entry.partition("=")
    if not equals:
        name, value = "", name
    harmless = _PLAIN_VALUE.fullmatch(value) and not _SECRET_NAME.search(unquote(name))
    return f"{name}{equals}{value if harmless else HIDDEN}"
