"""Terms of use and logins of dataset sites."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import requests

from pinmem_core.addresses import redact_url
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import name_to_type
from pinmem_core.data.http_range import TIMEOUT, origin, require_encryption, transfer_error
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.files import write_atomic
from pinmem_core.paths import home

CITYSCAPES_ORIGINS = frozenset(
    {"https://www.cityscapes-dataset.com:443", "https://cityscapes-dataset.com:443"}
)
"""Scheme, host and port of the sites that receive the stored Cityscapes credentials."""


def accepted(card: DatasetCard) -> bool:
    """Return whether the user has accepted the current terms of `card`."""
    return _accepted_terms().get(card.name) == _fingerprint(card)


def accept(card: DatasetCard) -> None:
    """Record that the user accepts the terms of `card`."""
    terms = _accepted_terms() | {card.name: _fingerprint(card)}
    write_atomic(_terms_file(), (json.dumps(terms, indent=2, sort_keys=True) + "\n").encode())


def require_accepted(card: DatasetCard) -> None:
    """Check that the terms of `card` are accepted, if they must be.

    Raises:
        ConfigError: The user must accept them first.
    """
    if card.must_accept and not accepted(card):
        where = card.terms_url or card.homepage or "the dataset's terms"
        command = f"pinmem data download {name_to_type(card)} --accept-terms"
        raise ConfigError(
            f"the terms of {card.name} are not accepted yet.",
            f"Read {where}; '{command}' accepts them.",
        )


def _fingerprint(card: DatasetCard) -> str:
    return hashlib.sha256(f"{card.terms}\n{card.terms_url}".encode()).hexdigest()


def _accepted_terms() -> dict[str, Any]:
    try:
        return read_json_object(_terms_file())
    except DataError:
        return {}


def _terms_file() -> Path:
    return home() / "terms.json"


@dataclass(frozen=True)
class Credentials:
    """A user name and its password, which `repr` omits."""

    username: str
    password: str = field(repr=False)


def find_credentials(login: str) -> Credentials | None:
    """Return the stored credentials for a login form.

    Only Cityscapes has stored credentials: the environment variables CITYSCAPES_USERNAME and
    CITYSCAPES_PASSWORD, or the file of cityscapesScripts. No other origin receives them.

    Args:
        login: Address of the form.

    Raises:
        ConfigError: The file is invalid, or the form is not encrypted.
    """
    require_encryption(login)
    if origin(login) not in CITYSCAPES_ORIGINS:
        return None
    username = os.environ.get("CITYSCAPES_USERNAME")
    password = os.environ.get("CITYSCAPES_PASSWORD")
    if username and password:
        return Credentials(username, password)
    path = _credentials_file()
    try:
        if not path.exists():
            return None
        stored = read_json_object(path)
        return Credentials(str(stored["username"]), str(stored["password"]))
    except (OSError, DataError, KeyError):
        # The cause would carry the file's text, and with it the password.
        raise ConfigError(
            f"{path} does not hold a user name and a password.",
            "Let cityscapesScripts ('csDownload') write it anew, or delete it.",
        ) from None


def require_credentials(card: DatasetCard, login: str, given: Credentials | None) -> Credentials:
    """Return the `given` credentials, or the stored ones.

    Raises:
        ConfigError: There are none.
    """
    credentials = given or find_credentials(login)
    if credentials:
        return credentials
    command = f"pinmem data download {name_to_type(card)}"
    hint = f"Run '{command}' in a terminal, which asks for them"
    if origin(login) in CITYSCAPES_ORIGINS:
        hint += (
            "; or set CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD; or let cityscapesScripts "
            f"('csDownload') store them in {_credentials_file()}"
        )
    raise ConfigError(
        f"{card.name} is given to accounts only, and no user name is known.", f"{hint}."
    )


def log_in(
    session: requests.Session,
    url: str,
    credentials: Credentials,
    timeout: tuple[float, float] = TIMEOUT,
) -> None:
    """Log in with the form at `url`; the session keeps the cookies.

    Raises:
        ConfigError: The site refuses the credentials, or the form is not encrypted.
        DataError: The site cannot be reached, or answers with an error.
    """
    require_encryption(url)
    form = {"username": credentials.username, "password": credentials.password, "submit": "Login"}
    prefix = f"cannot log in: {redact_url(url)}"
    try:
        session.get(url, allow_redirects=False, stream=True, timeout=timeout).close()  # cookies
        answer = session.post(url, data=form, allow_redirects=False, stream=True, timeout=timeout)
        answer.close()
    except OSError as error:
        failure = transfer_error(error)
        raise DataError(f"{prefix} {failure.reason}.", failure.hint) from None
    if answer.status_code >= 500:
        raise DataError(f"{prefix} answered {answer.status_code}.", "Try again later.")
    if answer.status_code != 302:
        raise ConfigError(
            f"{redact_url(url)} does not accept the password of '{credentials.username}'.",
            "Try the same user name and password in a browser.",
        )


def _credentials_file() -> Path:
    return Path(platformdirs.user_data_dir("cityscapesscripts", "cityscapes"), "credentials.json")
