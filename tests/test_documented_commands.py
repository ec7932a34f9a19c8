"""Every pinmem command in README and docs has options, recipes, methods and settings that exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from pinmem_cli.app import app
from pinmem_core.methods import methods
from pinmem_core.recipe import recipe_names
from pinmem_core.setting_list import list_settings

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "benchmarks.md"),
]
BLOCK = re.compile(r"^```(?:bash|text|)\n(.*?)^```", re.M | re.S)
START = re.compile(r"(?:\$ )?(?:.*-m pinmem_cli|pinmem) (.*?)(?: {2,}.*)?$")
SETTINGS = {setting.key for setting in list_settings()} | {
    setting.key
    for method in methods.all().values()
    for setting in list_settings(method.Config, "method_config.")
}


def documented() -> list[str]:
    """Return the commands of all code blocks, without a leading prompt and the program's name."""
    blocks = (block for page in PAGES for block in BLOCK.findall(page.read_text()))
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return sorted({match[1] for line in lines if (match := START.match(line))})


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
