"""Terms of use: which ones the user has accepted, remembered by what they said."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pinmem_core.datasets import DatasetCard, name_to_type
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.files import write_whole
from pinmem_core.home import home


def accepted(card: DatasetCard) -> bool:
    """Return whether the terms of `card`, as they are worded now, were accepted."""
    return _accepted_terms().get(card.name) == _fingerprint(card)


def accept(card: DatasetCard) -> None:
    """Remember that the user accepts the terms of `card`."""
    terms = _accepted_terms() | {card.name: _fingerprint(card)}
    write_whole(_file(), (json.dumps(terms, indent=2, sort_keys=True) + "\n").encode())


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
