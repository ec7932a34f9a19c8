"""Reading cards from YAML, with every mistake told by file, line and key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pinmem_core.datasets.card import DatasetCard
from pinmem_core.errors import ConfigError

# the faster of the safe loaders
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_card(path: Path) -> DatasetCard:
    """Return the card in the YAML file `path`.

    Raises:
        ConfigError: The file is missing, no YAML, or no card; the message names line and key.
    """
    text = _text(path, f"the card {path}")
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise _syntax_error(path, error) from None
    if not isinstance(values, dict):
        raise ConfigError(f"the card {path} is no list of 'key: value' lines.")
    try:
        return DatasetCard.model_validate(_with_split_lists(values, path.parent))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "card"
        line = _line(yaml.compose(text, _Loader), first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}, line {line}: {key}: {reason[0].lower()}{reason[1:]}.") from None


def _syntax_error(path: Path, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}, line {mark.line + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return ConfigError(f"{place}: this is no YAML: {problem}.")


def write_card(card: DatasetCard, path: Path) -> None:
    """Write a card as YAML that `read_card` reads back."""
    values = card.model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _with_split_lists(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the name of a split's text file by the entries in it."""
    lists = values.get("split_lists")
    if not isinstance(lists, dict):
        return values
    read = {split: _entries(split, entry, folder) for split, entry in lists.items()}
    return {**values, "split_lists": read}


def _entries(split: str, entry: object, folder: Path) -> object:
    if not isinstance(entry, str):
        return entry
    path = folder / entry
    return _text(path, f"split_lists.{split}: the list {path}").split()


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is no UTF-8 text.") from None


def _line(node: yaml.Node | None, keys: Sequence[int | str]) -> int:
    """Return the line of the innermost key or entry on the path `keys` that exists."""
    line = 1
    for key in keys:
        step = _step(node, key)
        if step is None:
            break
        line, node = step[0].start_mark.line + 1, step[1]
    return line


def _step(node: yaml.Node | None, key: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """Return where `key` stands in `node`, and its value."""
    if isinstance(node, yaml.MappingNode):
        return next(((k, v) for k, v in node.value if str(k.value) == str(key)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        return node.value[key], node.value[key]
    return None
