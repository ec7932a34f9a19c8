"""Named recipes: TOML files with the settings of a run, and a header that describes them."""

import tomllib
from pathlib import Path
from typing import Any

from pinmem_core.errors import unknown_name

_FOLDER = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def recipe_text(name: str) -> str:
    """Return the text of the recipe `name`.

    Raises:
        ConfigError: No recipe has this name; the hint suggests the closest one.
    """
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def recipe_title(name: str) -> str:
    """Return the title of the recipe `name`: its first comment line.

    Raises:
        ConfigError: No recipe has this name.
    """
    return recipe_text(name).partition("\n")[0].removeprefix("# ")


def load_recipe(name: str) -> dict[str, Any]:
    """Return the settings of the recipe `name`, without validation.

    Raises:
        ConfigError: No recipe has this name.
    """
    return tomllib.loads(recipe_text(name))
