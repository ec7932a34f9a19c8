"""Recipes: settings by name, from a TOML file, or of another run."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pinmem_core.config import TrainConfig
from pinmem_core.documents import read_json_object, read_text, read_toml
from pinmem_core.errors import ConfigError, DataError, unknown_name
from pinmem_core.overrides import validate
from pinmem_core.paths import expanded, find_run
from pinmem_core.renamed import current_settings

_FOLDER = Path(__file__).with_name("recipes")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def recipe_names() -> list[str]:
    """Return the names of all recipes that ship with pinmem, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def recipe_text(name: str) -> str:
    """Return a recipe as TOML, for `load_recipe`.

    Args:
        name: Name of a recipe, TOML file, or folder or name of a run.

    Raises:
        ConfigError: There is no such recipe, or it is damaged or holds a wrong setting.
    """
    if path := _file(name):
        load_recipe(name)
        return read_text(path)
    changed = _differences(_settings_of_run(name), TrainConfig().model_dump(mode="json"))
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in _dotted(changed))
    return f"# The settings of the run {name}\n{''.join(lines)}"


def recipe_title(name: str) -> str:
    """Return the title of a recipe: its first comment line, or else its name.

    Raises:
        ConfigError: There is no such recipe, or it is damaged or holds a wrong setting.
    """
    first = recipe_text(name).partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("#") else name


def load_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a recipe.

    Args:
        name: Name of a recipe, TOML file, or folder or name of a run.

    Raises:
        ConfigError: There is no such recipe, or it is damaged or holds a wrong setting.
    """
    path = _file(name)
    if path is None:
        return _settings_of_run(name)
    try:
        settings = read_toml(path)
        validate(settings)
    except (ConfigError, DataError) as error:
        raise ConfigError(f"the recipe {_with_file(error.message, name)}", error.hint) from None
    return settings


def _with_file(message: str, name: str) -> str:
    return message if name in message else f"{name}: {message}"


def _file(name: str) -> Path | None:
    """Return the file of a recipe; None for the name of a run."""
    if name in recipe_names():
        return _FOLDER / f"{name}.toml"
    path = expanded(name)
    return path if path.suffix == ".toml" or path.is_file() else None


def _settings_of_run(name: str) -> dict[str, Any]:
    try:
        path = find_run(name) / "config.json"
    except DataError:
        error = unknown_name("recipe", name, recipe_names())
        raise ConfigError(error.message, f"{error.hint} Or name a TOML file or a run.") from None
    try:
        return validate(current_settings(read_json_object(path))).model_dump(mode="json")
    except (ConfigError, DataError) as error:
        raise ConfigError(
            f"the settings of the run {name} cannot be read: {error.message}", error.hint
        ) from None


def _differences(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from their defaults."""
    changed = {}
    for key, value in settings.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = _differences(value, default), {}
        if key not in defaults or value != default:
            changed[key] = value
    return changed


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every setting; None becomes "none"."""
    for key, value in settings.items():
        path = prefix + (key if _BARE.fullmatch(key) else json.dumps(key))
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{path}.")
        else:
            yield path, "none" if value is None else value
