"""All known dataset cards, and reading and writing cards as YAML."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from pydantic import ValidationError

import pinmem_core.data.cards as cards_package
from pinmem_core.addresses import redact_values
from pinmem_core.data.card import DatasetCard
from pinmem_core.documents import MAX_BYTES, read_text
from pinmem_core.errors import ConfigError, DataError, unknown_name
from pinmem_core.paths import dataset_root, home
from pinmem_core.registry import discover
from pinmem_core.yaml_text import YamlTextError, compose_yaml, load_yaml

_LARGEST_LIST = 64 << 20
"""Bytes of the text file of a split list."""
_LONG_LIST = 10_000
"""Entries of a split list that are written into the card: reading YAML is slow and bounded."""


def read_card(path: Path) -> DatasetCard:
    """Return the card in the YAML file `path`.

    Raises:
        ConfigError: The file is missing, not YAML, or not a card; the message names line and key.
    """
    return parse_card(_text(path, "the card ", MAX_BYTES), path)


def parse_card(text: str, path: Path) -> DatasetCard:
    """Return the card in a YAML text.

    Args:
        text: The YAML.
        path: File of the card, for messages; text files of split lists are in its folder.

    Raises:
        ConfigError: The text is not YAML, or not a card; the message names line and key.
    """
    try:
        values = load_yaml(text)
    except YamlTextError as error:
        place = f"{path}, line {error.line}" if error.line else str(path)
        raise ConfigError(f"{place}: {error.reason}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"the card {path} is not a list of 'key: value' lines.")
    try:
        return DatasetCard.model_validate(_with_split_lists(values, path.parent))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        inner = getattr(first.get("ctx", {}).get("error"), "keys", ())
        keys = [part for part in (*first["loc"], *inner) if part != "[key]"]
        key = ".".join(map(str, keys)) or "card"
        line = _line(compose_yaml(text), keys)
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}, line {line}: {key}: {reason[0].lower()}{reason[1:]}.") from None


def card_text(card: DatasetCard) -> str:
    """Return a card as YAML for others, without passwords and tokens in addresses."""
    return _yaml(redact_values(_values(card)))


def write_card(card: DatasetCard, path: Path) -> None:
    """Write a card as YAML for `read_card`; long split lists become text files next to it."""
    values = _values(card)
    lists = values.get("split_lists", {})
    for number, (split, entries) in enumerate(lists.items()):
        text = "\n".join(entries)
        if len(entries) > _LONG_LIST and text.split() == entries:
            lists[split] = f"{path.stem}.split-{number}.txt"
            (path.parent / lists[split]).write_text(f"{text}\n", encoding="utf-8")
    path.write_text(_yaml(values), encoding="utf-8")


def _values(card: DatasetCard) -> dict[str, Any]:
    return card.model_dump(mode="json", exclude_defaults=True)


def _yaml(values: Any) -> str:
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _with_split_lists(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the text file of a split list by its entries."""
    lists = values.get("split_lists")
    if not isinstance(lists, dict):
        return values
    read = {split: _entries(split, entry, folder) for split, entry in lists.items()}
    return {**values, "split_lists": read}


def _entries(split: str, entry: object, folder: Path) -> object:
    if not isinstance(entry, str):
        return entry
    name = f"split_lists.{split}: the list '{entry[:200]}'"
    is_absolute = PurePosixPath(entry).is_absolute() or PureWindowsPath(entry).anchor
    if not entry or is_absolute or ".." in PurePosixPath(entry.replace("\\", "/")).parts:
        raise ConfigError(f"{name} is not a path below the card's folder.")
    path = folder / entry
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{name} is a link that leads out of the card's folder.")
    return _text(path, f"split_lists.{split}: the list ", _LARGEST_LIST).split()


def _text(path: Path, name: str, limit: int) -> str:
    try:
        return read_text(path, limit)
    except DataError as error:
        raise ConfigError(f"{name}{error.message}", error.hint) from None


def _line(node: yaml.Node | None, keys: Sequence[int | str]) -> int:
    """Return the line of the innermost key or entry on the path `keys` that exists."""
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pairs = [(k, v) for k, v in node.value if str(k.value) == str(key)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            pairs = [(node.value[key], node.value[key])]
        else:
            break
        if not pairs:
            break
        line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
    return line


def shipped_cards() -> dict[str, DatasetCard]:
    """Return the cards that come with pinmem by name.

    Raises:
        ConfigError: A card cannot be read, or two have one name.
    """
    by_file: dict[str, DatasetCard] = discover(cards_package.__name__, "CARD")
    folders = map(Path, cards_package.__path__)
    files = (path for folder in folders for path in sorted(folder.glob("*.yaml")))
    by_file |= {str(path): _read_once(path) for path in files}
    known: dict[str, DatasetCard] = {}
    for file, card in by_file.items():
        if not isinstance(card, DatasetCard):
            raise ConfigError(f"CARD in {file} is no DatasetCard.")
        if card.name in known:
            raise ConfigError(
                f"the card {file} has the name of another one, '{card.name}'.",
                "Rename one of them.",
            )
        known[card.name] = card
    return known


def cards() -> dict[str, DatasetCard]:
    """Return all known cards by name, sorted, including those of the user's prepared datasets.

    A user's card that cannot be read is left out; `damaged_cards` returns its error.
    """
    known = _user_cards()[0] | shipped_cards()
    return {name: known[name] for name in sorted(known)}


def damaged_cards() -> dict[str, ConfigError]:
    """Return the errors of the user's cards that cannot be read, by dataset name."""
    return _user_cards()[1]


def card_of_user(name: str) -> Path:
    """Return the file of the card of the user's prepared dataset `name`."""
    return dataset_root(name) / "card.yaml"


def name_to_type(card: DatasetCard) -> str:
    """Return the arguments that name a dataset in a command: with its card until it is prepared."""
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
    own, damaged = _user_cards()
    if name in damaged:
        raise damaged[name]
    if name not in own:
        error = unknown_name("dataset", name, own | shipped)
        yours = "For images of your own: 'pinmem data new-card FOLDER'."
        raise ConfigError(error.message, f"{error.hint} {yours}")
    return own[name]


def _user_cards() -> tuple[dict[str, DatasetCard], dict[str, ConfigError]]:
    """Return the cards of the user's prepared datasets, and the errors of damaged ones."""
    own, damaged = {}, {}
    for path in sorted(home().glob("datasets/[!.]*/card.yaml")):
        name = path.parent.name
        try:
            card = read_card(path)
            if card.name != name:
                raise ConfigError(f"{path} is the card of '{card.name}', not of '{name}'.")
            own[name] = card
        except ConfigError as error:
            hint = f"Correct or remove it: {path}. Other datasets are not affected."
            damaged[name] = ConfigError(error.message, error.hint or hint)
    return own, damaged


_read_once = lru_cache(maxsize=None)(read_card)
