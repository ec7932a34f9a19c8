"""The commands in hints: collected from the code, and from what a command prints."""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

import typer

from pinmem_cli.app import app

ROOT = Path(__file__).parents[2]
WORDS = ("", "--debug", "data", "doctor", "eval", "export", "predict", "runs", "serve", "train")
_QUOTED = re.compile(r"'(pinmem [^']*(?:'[^']*'[^']*)*?)'(?=[\s.,;:)]|$)")
_BARE = re.compile(r"(?:^|(?<=: )|(?<=hint: ))(pinmem .*)$", re.MULTILINE)
HOLE = "\N{WHITE SQUARE}"
"""Stands for what the program fills in."""


def strings(path: Path) -> Iterator[str]:
    """Yield the texts of a module, without docstrings, and with `HOLE` in f-strings."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for inner in body if isinstance(body, list) else []:
            if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant):
                skipped.add(id(inner.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else HOLE for part in node.values
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("without", "with_flag"):
            yield f"pinmem {HOLE}"  # the user's own command, changed
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def commands_in(text: str) -> list[str]:
    """Return the commands that a text quotes, or that end it."""
    quoted = _QUOTED.findall(text)
    return quoted or [command.rstrip(".") for command in _BARE.findall(text)]


def templates() -> dict[str, list[str]]:
    """Return the commands in the texts of all modules, with the modules that hold them."""
    found: dict[str, list[str]] = {}
    for package in ("pinmem_core", "pinmem_cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for text in strings(path):
                for command in commands_in(text):
                    if command.split()[1].strip(HOLE + ".,;") in WORDS:
                        found.setdefault(command, []).append(str(path.relative_to(ROOT)))
    return found


def filled(template: str) -> list[str]:
    """Return the words of a template; a hole of its own becomes "x", one that is glued nothing."""
    text = re.sub(rf"(?<=[\s:=/@]){HOLE}|^{HOLE}", "x", template).replace(HOLE, "")
    words = shlex.split(text, comments=True)
    for redirection in ("<", ">"):
        if redirection in words:
            words = words[: words.index(redirection)]
    return words


def parse(words: list[str]) -> None:
    """Parse a command line with the app's own options, without running it.

    Raises:
        Exception: An option or a command does not exist, or an argument is missing.
    """
    command, arguments = typer.main.get_command(app), words[1:]
    context = command.make_context("pinmem", [*arguments])
    while hasattr(command, "resolve_command"):
        arguments = [*dropwhile(lambda word: word.startswith("-"), arguments)]  # the group's own
        if not arguments:
            return  # the name of a group
        name, command, arguments = command.resolve_command(context, arguments)
        if not arguments:
            return  # the name of a command
        context = command.make_context(name, [*arguments], parent=context, resilient_parsing=False)
