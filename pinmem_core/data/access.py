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
from pinmem_core.data.http_range import (
    CERTIFICATE_HINT,
    Patience,
    distrusts,
    explain,
    origin,
    require_encryption,
)
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.files import write_atomic
from pinmem_core.home import home


def accepted(card: DatasetCard) -> bool:
    """Return whether the terms of `card`, as they are worded now, were accepted."""
    return _accepted_terms().get(card.name) == _fingerprint(card)


def accept(card: DatasetCard) -> None:
    """Remember that the user accepts the terms of `card`."""
    terms = _accepted_terms() | {card.name: _fingerprint(card)}
    write_atomic(_file(), (json.dumps(terms, indent=2, sort_keys=True) + "\n").encode())


def require_accepted(card: DatasetCard) -> None:
    """Do nothing where the terms of `card` are accepted or need not be.

    Raises:
        ConfigError: They have to be accepted first.
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
    """Return what was accepted; a file that cannot be understood accepts nothing."""
    try:
        return read_json_object(_file())
    except DataError:
        return {}


def _file() -> Path:
    return home() / "terms.json"


CITYSCAPES_ORIGINS = frozenset(
    {"https://www.cityscapes-dataset.com:443", "https://cityscapes-dataset.com:443"}
)
"""Where the stored credentials for Cityscapes may go: scheme, host and port."""


@dataclass(frozen=True)
class Credentials:
    """A user name and its password, which is never shown."""

    username: str
    password: str = field(repr=False)


def find_credentials(login: str) -> Credentials | None:
    """Return what the user has stored for the site with the form at `login`.

    Only Cityscapes has such a place: CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD, else the file
    that cityscapesScripts keeps. They go to no other origin, whatever a card says.

    Raises:
        ConfigError: The file holds something else, or the form is sent without encryption.
    """
    require_encryption(login)
    if origin(login) not in CITYSCAPES_ORIGINS:
        return None
    username = os.environ.get("CITYSCAPES_USERNAME")
    password = os.environ.get("CITYSCAPES_PASSWORD")
    if username and password:
        return Credentials(username, password)
    return _from_file(_official_file())


def require_credentials(card: DatasetCard, login: str, given: Credentials | None) -> Credentials:
    """Return `given` credentials for a dataset, else those that are stored.

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
            f"('csDownload') store them in {_official_file()}"
        )
    raise ConfigError(
        f"{card.name} is given to accounts only, and no user name is known.", f"{hint}."
    )


def log_in(
    session: requests.Session, url: str, credentials: Credentials, patience: Patience | None = None
) -> None:
    """Fill in the form at `url`, so that `session` may fetch what the account may.

    Raises:
        ConfigError: The site does not accept the credentials, or would get them in plain text.
        DataError: The site cannot be reached, or is out of order.
    """
    require_encryption(url)
    form = {"username": credentials.username, "password": credentials.password, "submit": "Login"}
    timeout = (patience or Patience()).timeout
    try:
        with session.get(url, allow_redirects=False, stream=True, timeout=timeout):
            pass  # it sets the cookies that the form needs
        with session.post(
            url, data=form, allow_redirects=False, stream=True, timeout=timeout
        ) as answer:
            status = answer.status_code
    except requests.RequestException as error:
        raise _failed(url, explain(error), CERTIFICATE_HINT if distrusts(error) else None) from None
    if status >= 500:
        raise _failed(url, f"answered {status}")
    if status != 302:
        raise ConfigError(
            f"{redact_url(url)} does not accept the password of '{credentials.username}'.",
            "Try the same user name and password in a browser.",
        )


def _failed(url: str, reason: str, hint: str | None = None) -> DataError:
    return DataError(f"cannot log in: {redact_url(url)} {reason}.", hint or "Try again later.")


def _official_file() -> Path:
    """Return where cityscapesScripts keeps credentials; pinmem only ever reads it."""
    return Path(platformdirs.user_data_dir("cityscapesscripts", "cityscapes"), "credentials.json")


def _from_file(path: Path) -> Credentials | None:
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
