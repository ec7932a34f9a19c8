"""WHAT each dataset is: one declarative card a file, found by discovery.

To add a dataset, add a module here that defines `CARD`.
"""

from pinmem_core.datasets.card import DatasetCard, Layout
from pinmem_core.discovery import discover
from pinmem_core.errors import unknown_name

__all__ = ["DatasetCard", "Layout", "cards", "get_card"]


def cards() -> dict[str, DatasetCard]:
    """Return every known dataset's card by name, sorted."""
    found: list[DatasetCard] = discover(__name__, "CARD")
    return {card.name: card for card in sorted(found, key=lambda card: card.name)}


def get_card(name: str) -> DatasetCard:
    """Return the card of the dataset `name`.

    Raises:
        ConfigError: No dataset has this name; the closest one is suggested.
    """
    known = cards()
    if name not in known:
        raise unknown_name("dataset", name, known)
    return known[name]
