"""Every pinmem command in README and docs has options, recipes, methods and settings that exist."""

import re
import shlex

import pytest
import typer
from documented import documented

from pinmem_cli.app import app
from pinmem_core.methods import methods
from pinmem_core.recipe import recipe_names
from pinmem_core.setting_list import list_settings

SETTINGS = {setting.key for setting in list_settings()} | {
    setting.key
    for method in methods.all().values()
    for setting in list_settings(method.Config, "method_config.")
}


def parsed(text: str):
    """Return the context of a command; a usage error fails the test."""
    text = re.split(r" (?:\||>|&&) ", text)[0]
    words = shlex.split(re.sub(r"[\[\]]", "", text), comments=True)
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        context = command.make_context("pinmem", words, parent=context)
        _, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
    return command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("text", documented())
def test_a_documented_command_parses(text):
    given = parsed(text).params
    assert given.get("method") in (None, "METHOD", *methods.all())
    recipe = given.get("recipe")
    assert recipe in (None, "RECIPE", *recipe_names()) or not recipe.islower() or "." in recipe
    for setting in given.get("settings") or ():
        assert setting.split("=")[0] in SETTINGS
