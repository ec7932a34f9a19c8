"""WHAT each dataset is: one declarative card a file, found by discovery.

To add a dataset, add a YAML card here; a dataset that is drawn is a module that defines `CARD`.
Users bring cards of their own: the prepared dataset keeps its card beside its data.
"""

from functools import lru_cache
from pathlib import Path

from pinmem_core.datasets.card import FIELD, Archive, DatasetCard, Layout, fields_of
from pinmem_core.datasets.label_maps import LabelMapSpec
from pinmem_core.datasets.reader import read_card, write_card
from pinmem_core.discovery import discover
from pinmem_core.errors import ConfigError, unknown_name
from pinmem_core.home import dataset_root, home

__all__ = [
    "FIELD",
    "Archive",
    "DatasetCard",
    "LabelMapSpec",
    "Layout",
    "card_of_user",
    "cards",
    "damaged_cards",
    "fields_of",
    "get_card",
    "name_to_type",
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
    """Return every known dataset's card by name, sorted; those of the user's own data, too.

    An own card that cannot be read is left out: `damaged_cards` returns its error.
    """
    known = _own_cards()[0] | shipped_cards()
    return {name: known[name] for name in sorted(known)}


def damaged_cards() -> dict[str, ConfigError]:
    """Return why cards of the user's own data cannot be read, by the dataset's name."""
    return _own_cards()[1]


def card_of_user(name: str) -> Path:
    """Return where the card of the user's own dataset `name` is kept once it is prepared."""
    return dataset_root(name) / "card.yaml"


def name_to_type(card: DatasetCard) -> str:
    """Return what names a dataset in a command: its card's file, too, until it is prepared."""
    return card.name if card.name in cards() else f"{card.name} --card CARD.yaml"


def get_card(name: str) -> DatasetCard:
    """Return the card of the dataset `name`.

    Raises:
        ConfigError: No dataset has this name (the closest one is suggested), or its card cannot be
            read.
    """
    shipped = shipped_cards()
    if name in shipped:
        return shipped[name]
    own, damaged = _own_cards()
    if name in damaged:
        raise damaged[name]
    if name not in own:
        raise unknown_name("dataset", name, own | shipped)
    return own[name]


def _own_cards() -> tuple[dict[str, DatasetCard], dict[str, ConfigError]]:
    """Return the readable cards of the user's own data by name, and the errors of the others."""
    found, damaged = {}, {}
    for path in sorted(home().glob("datasets/[!.]*/card.yaml")):
        name = path.parent.name
        try:
            card = read_card(path)
            if card.name != name:
                raise ConfigError(f"{path} is the card of '{card.name}', not of '{name}'.")
            found[name] = card
        except ConfigError as error:
            hint = f"Mend or remove it: {path}. Other datasets are not affected."
            damaged[name] = ConfigError(error.message, error.hint or hint)
    return found, damaged


_read_once = lru_cache(maxsize=None)(read_card)
