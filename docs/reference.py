"""Write the reference pages of the documentation from the app, its settings and the cards.

The pages are made whenever the site is built and are not committed, so they cannot be out of date.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator
from json import dumps
from pathlib import Path
from typing import Any, get_args

import typer

import pinmem_core as pm
from pinmem_cli.app import app
from pinmem_cli.names import KINDS
from pinmem_core import events
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import shipped_cards
from pinmem_core.data.convert import Reencoding
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.evaluation import Report, Scores
from pinmem_core.evaluation.results import DomainResult
from pinmem_core.inference import Protocol
from pinmem_core.inference.predictor import Prediction, TiledPredictor
from pinmem_core.methods import methods
from pinmem_core.methods.base import Method
from pinmem_core.models.backbones.timm import weights_of
from pinmem_core.models.decoders import decoders
from pinmem_core.recipe import recipe_names, recipe_text, recipe_title
from pinmem_core.setting_list import Setting, list_settings
from pinmem_core.training import RunResult

BACKBONES = (
    "*dinov2*",
    "*dinov3*",
    "*eva02*patch14*",
    "convnext*",
    "swin*",
    "vit*clip*",
    "resnet*",
)
"""Patterns of the backbones of timm that are listed."""
TYPES = {
    "Results": (RunResult, Report, DomainResult, Scores, PreparedDataset, Prediction),
    "Predictors and options": (TiledPredictor, Protocol, Reencoding),
    "Events": get_args(events.Event),
}
"""Types of the arguments and results of the public functions, by heading."""


def write_reference(folder: Path) -> None:
    """Write all pages, and leave those alone that would not change."""
    for name, lines in _pages():
        file = folder / f"{name}.md"
        text = "\n".join(lines) + "\n"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


def _pages() -> Iterator[tuple[str, list[str]]]:
    for title, name, pages in (
        ("Commands", "commands", _commands()),
        ("Datasets", "datasets", ((n, [*_dataset(card)]) for n, card in shipped_cards().items())),
        ("Methods", "methods", ((n, [*_method(n, of)]) for n, of in methods.all().items())),
        ("Recipes", "recipes", ((n, [*_recipe(n)]) for n in recipe_names())),
    ):
        made = [(f"{name}/{page}", lines) for page, lines in pages]
        yield from made
        yield f"{name}/index", _contents(title, [page.split("/")[1] for page, _ in made])
    settings = [*_table(("key", "type", "default", "meaning"), _settings(list_settings()))]
    about = "Set with `--set KEY=VALUE` or in a [recipe file](../train.md#settings)."
    yield "settings", ["# Settings", "", about, "", *settings]
    yield "backbones", [*_backbones()]
    yield "python", [*_python()]


def _contents(title: str, pages: Iterable[str]) -> list[str]:
    return [f"# {title}", "", "```{toctree}", ":maxdepth: 1", "", *pages, "```"]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    head = [*head]
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"


def _commands() -> Iterator[tuple[str, list[str]]]:
    """Yield a page for each command."""
    root: Any = typer.main.get_command(app)
    yield from _commands_of(root, "pinmem")


def _commands_of(group: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        if hasattr(command, "commands"):
            yield from _commands_of(command, full)
        if getattr(command, "callback", None) and not command.hidden:
            yield full.split(" ", 1)[1].replace(" ", "-"), [*_command(command, full)]


def _command(command: Any, name: str) -> Iterator[str]:
    yield from (f"# {name}", "", inspect.cleandoc(command.help or ""), "")
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```", f"{name} {usage}", "```", "")
    rows = []
    for option in command.params:
        if getattr(option, "hidden", False):
            continue
        names = ", ".join((*option.opts, *option.secondary_opts))
        takes = "" if getattr(option, "is_flag", False) else option.display_type(context)
        default = option.default
        shown = "" if default in (None, False, (), []) or callable(default) else str(default)
        rows.append(
            (f"`{names}`", takes.strip("<>"), shown, _filled(getattr(option, "help", None) or ""))
        )
    yield from _table(("option", "value", "default", "meaning"), rows)


def _filled(text: str) -> str:
    """Return a help text with names in place of `{datasets}` etc."""
    for kind in KINDS:
        text = text.replace(f"{{{kind.__name__}}}", ", ".join(kind()))
    return text


def _settings(settings: Iterable[Setting]) -> Iterator[tuple[str, str, str, str]]:
    for setting in settings:
        yield f"`{setting.key}`", setting.type, f"`{dumps(setting.default)}`", setting.meaning


def _dataset(card: DatasetCard) -> Iterator[str]:
    yield from (f"# {card.name}", "", card.title, "")
    facts = {
        "homepage": card.homepage and f"<{card.homepage}>",
        "citation": card.citation,
        "terms": card.terms,
        "terms at": card.terms_url and f"<{card.terms_url}>",
        "classes": f"{card.space.name} ({len(card.space)})",
        "images": ", ".join(f"{split} {count}" for split, count in card.counts.items()),
        "domains": ", ".join(card.domains),
        "layouts": ", ".join(layout.name for layout in card.layouts),
        "label maps": ", ".join(card.label_maps),
    }
    yield from _table(("field", "value"), ((key, value) for key, value in facts.items() if value))
    if card.archives:
        yield from ("", "## Files", "")
        rows = ((f"`{a.file}`", a.part or "", *(a.url[:1] or ("by hand",))) for a in card.archives)
        yield from _table(("file", "part", "address"), rows)
    if card.steps:
        yield from ("", "## Steps", "", *(f"1. {step}" for step in card.steps))
    if card.notes:
        yield from ("", "## Notes", "", *(f"- {note}" for note in card.notes))
    yield from ("", "```", f"pinmem data prepare {card.name}", "```")


def _method(name: str, method: type[Method]) -> Iterator[str]:
    module = sys.modules[method.__module__]
    yield from (f"# {name}", "", *_text(module), *_text(method))
    yield from (f"Memory: {method.memory}. Code: `{module.__name__}`", "")
    settings = [*_settings(list_settings(method.Config, "method_config."))]
    if settings:
        yield from _table(("key", "type", "default", "meaning"), settings)
    yield from ("", "```", f"pinmem train --recipe paper-resnet50 --method {name}", "```")


def _text(of: Any) -> list[str]:
    """Return a docstring; indented blocks stay code in Markdown."""
    return [*inspect.cleandoc(of.__doc__ or "").splitlines(), ""]


def _recipe(name: str) -> Iterator[str]:
    yield from (f"# {name}", "", recipe_title(name), "", "```toml")
    yield from (*recipe_text(name).splitlines(), "```", "")
    yield from ("```", f"pinmem train --recipe {name} --dry-run", "```")


def _backbones() -> Iterator[str]:
    yield from (
        "# Backbones and decoders",
        "",
        "`pinmem train --backbones PATTERN` lists more.",
        "",
    )
    names = {*pm.list_backbones(), *(n for p in BACKBONES for n in pm.list_backbones(f"timm:{p}"))}
    rows = []
    for name in sorted(names):
        weights = weights_of(name) if name.startswith("timm:") else {}
        licences = ", ".join(f"{tag} ({licence})" for tag, licence in weights.items())
        rows.append((f"`{name}`", licences))
    yield from _table(("backbone", "weights (licence)"), rows)
    yield from ("", "## Decoders", "")
    first = ((f"`{n}`", (d.__doc__ or "").splitlines()[0]) for n, d in decoders.all().items())
    yield from _table(("decoder", "what it is"), first)


def _python() -> Iterator[str]:
    yield from ("# Python", "", "```{eval-rst}", ".. automodule:: pinmem_core", "")
    for value in (getattr(pm, name) for name in pm.__all__):
        if callable(value):
            yield from _documented(value)
    yield "```"
    for heading, types in TYPES.items():
        yield from ("", f"## {heading}", "", "```{eval-rst}")
        for value in types:
            yield from _documented(value)
        yield "```"


def _documented(value: Any) -> Iterator[str]:
    """Yield the directive of a public function or class."""
    kind = "autoclass" if inspect.isclass(value) else "autofunction"
    yield f".. {kind}:: {value.__module__}.{value.__qualname__}"
    if kind == "autoclass" and value is not pm.TrainConfig:  # its fields: the page "Settings"
        yield from ("   :members:", "   :show-inheritance:")
    yield ""
