"""Overrides of the configuration such as `optim.lr=0.02`: merge them, and check all values."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from pinmem_core.config import Settings, TrainConfig
from pinmem_core.errors import ConfigError
from pinmem_core.renamed import KEYS

S = TypeVar("S", bound=Settings)


def nested(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with each dotted key of `values` set.

    Raises:
        ConfigError: A key leads into a value that is not a section.
    """
    result: dict[str, Any] = {**settings}
    for key, value in values.items():
        _assign(result, key.split("."), value, key)
    return result


def with_overrides(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `settings` with each text `a.b=value` of `overrides` applied.

    Values are TOML (numbers, booleans, quoted strings, lists) or "none"; anything else is a string.

    Raises:
        ConfigError: An override has no `=`, or leads into a value that is not a section.
    """
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"'--set {override}' is not of the form a.b=value.")
        values[key.strip()] = _parse_value(text.strip())
    return nested(settings, values)


def _assign(section: dict[str, Any], path: list[str], value: object, key: str) -> None:
    for name in path[:-1]:
        inner = section.get(name, {})
        if not isinstance(inner, Mapping):
            raise ConfigError(f"'{key}' cannot be set: '{name}' is a value, not a section.")
        section[name] = {**inner}
        section = section[name]
    section[path[-1]] = value


def _parse_value(text: str) -> object:
    if text.lower() in ("none", "null"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def validate(settings: Mapping[str, Any]) -> TrainConfig:
    """Return the typed configuration.

    Raises:
        ConfigError: A key is unknown (the hint suggests the closest one) or a value is not allowed;
            the message names the key.
    """
    return validated(TrainConfig, settings)


def validated(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Return the section of settings with `values`.

    Args:
        section: Class of the settings.
        values: Values by key.
        prefix: Dotted key of the section, for messages.

    Raises:
        ConfigError: A key is unknown, or a value is not allowed; the message names the key.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(filter(None, [prefix, *path]))
    if first["type"] == "extra_forbidden":
        known = section().model_dump()
        for name in path[:-1]:
            known = known[name]
        raise ConfigError(f"unknown configuration key '{key}'.", _suggestion(key, known))
    where = f"configuration key '{key}'" if key else "configuration"
    reason = first["msg"].removeprefix("Value error, ")
    raise ConfigError(f"{where}: {reason[0].lower()}{reason[1:]}.")


def _suggestion(key: str, known: Mapping[str, Any]) -> str:
    if renamed := KEYS.get(key):
        return f"It is called '{renamed}' now."
    section, _, name = key.rpartition(".")
    elsewhere = [path for path in _paths(TrainConfig().model_dump()) if path.endswith(f".{name}")]
    close = [".".join(filter(None, [section, like])) for like in get_close_matches(name, known, 1)]
    meant = " or ".join(f"'{path}'" for path in elsewhere or close)
    hint = f"Did you mean {meant}? " if meant else ""
    return f"{hint}Known here: {', '.join(sorted(known)) or 'none'}."


def _paths(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every setting."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
