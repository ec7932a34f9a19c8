"""Named recipes: the settings of a run in a TOML file whose header says what it aims at."""

import tomllib
from pathlib import Path
from typing import Any

from pinmem_core.errors import unknown_name

_FOLDER = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def recipe_text(name: str) -> str:
    """Return the file of the recipe `name` as it stands.

    Raises:
        ConfigError: No recipe has this name; the closest one is suggested.
    """
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def recipe_title(name: str) -> str:
    """Return what the recipe `name` is, in a line: its first comment.

    Raises:
        ConfigError: No recipe has this name.
    """
    return recipe_text(name).partition("\n")[0].removeprefix("# ")


def load_recipe(name: str) -> dict[str, Any]:
    """Return the settings of the recipe `name`, not validated yet.

    Raises:
        ConfigError: No recipe has this name.
    """
    return tomllib.loads(recipe_text(name))
