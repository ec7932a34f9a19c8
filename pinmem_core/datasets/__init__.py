"""WHAT each dataset is: one declarative card a file, found by discovery.

To add a dataset, add a YAML card here; a dataset that is drawn is a module that defines `CARD`.
Users bring cards of their own: the prepared dataset keeps its card beside its data.
"""

from functools import lru_cache
from pathlib import Path

from pinmem_core.datasets.card import Archive, DatasetCard, Layout
from pinmem_core.datasets.label_maps import LabelMapSpec
from pinmem_core.datasets.reader import read_card, write_card
from pinmem_core.discovery import discover
from pinmem_core.errors import unknown_name
from pinmem_core.home import dataset_root, home

__all__ = [
    "Archive",
    "DatasetCard",
    "LabelMapSpec",
    "Layout",
    "card_of_user",
    "cards",
    "get_card",
    "read_card",
    "shipped_cards",
    "write_card",
]


def shipped_cards() -> dict[str, DatasetCard]:
    """Return the card of every dataset that pinmem knows by itself, by name."""
    found: list[DatasetCard] = discover(__name__, "CARD")
    files = (path for folder in __path__ for path in sorted(Path(folder).glob("*.yaml")))
    return {card.name: card for card in [*found, *map(_read_once, files)]}


def cards() -> dict[str, DatasetCard]:
    """Return every known dataset's card by name, sorted; those of the user's own data, too."""
    own = (read_card(path) for path in sorted(home().glob("datasets/[!.]*/card.yaml")))
    known = {card.name: card for card in own} | shipped_cards()
    return {name: known[name] for name in sorted(known)}


def card_of_user(name: str) -> Path:
    """Return where the card of the user's own dataset `name` is kept once it is prepared."""
    return dataset_root(name) / "card.yaml"


def get_card(name: str) -> DatasetCard:
    """Return the card of the dataset `name`.

    Raises:
        ConfigError: No dataset has this name; the closest one is suggested.
    """
    known = cards()
    if name not in known:
        raise unknown_name("dataset", name, known)
    return known[name]


_read_once = lru_cache(maxsize=None)(read_card)
