"""Overrides of the configuration such as `optim.lr=0.02`: merge them, and check all values."""

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from pinmem_core.config import Settings, TrainConfig
from pinmem_core.errors import ConfigError
from pinmem_core.renamed import KEYS

S = TypeVar("S", bound=Settings)


def nested(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with each dotted key of `values` set.

    A mapping for a section of `TrainConfig` sets the keys that it holds; the others stay.

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
    name, kept = path[-1], section.get(path[-1])
    if isinstance(value, Mapping) and isinstance(kept, Mapping) and _section(TrainConfig, path):
        section[name] = {**kept}
        for inner, each in value.items():
            _assign(section, [name, inner], each, f"{key}.{inner}")
    else:
        section[name] = value


def _section(settings: type[Settings], path: Iterable[str]) -> type[Settings] | None:
    """Return the class of the section of settings at a path; None if it is a value or unknown."""
    section: type[Settings] | None = settings
    for name in path:
        field = section.model_fields.get(name) if section else None
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, Settings)), None)
    return section


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
        inner = _section(section, path[:-1])
        known = inner.model_fields if inner else ()
        raise ConfigError(f"unknown configuration key '{key}'.", _suggestion(key, known))
    where = f"configuration key '{key}'" if key else "configuration"
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    reason = reason or "the value is not allowed"
    raise ConfigError(f"{where}: {reason[0].lower()}{reason[1:]}.")


def _suggestion(key: str, known: Collection[str]) -> str:
    if renamed := KEYS.get(key):
        return f"It is called '{renamed}' now."
    section, _, name = key.rpartition(".")
    paths = [*_paths(TrainConfig().model_dump())]
    if key in paths:  # a TOML file that has "optim.lr" as one key
        return "Write it without quotation marks."
    elsewhere = [path for path in paths if path.endswith(f".{name}")]
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
