"""Help and completion: names, flags, speed, and what is never imported."""

import inspect

import pytest
from conftest import Result

from pinmem_cli import names
from pinmem_core.data.catalog import shipped_cards
from pinmem_core.inference import PROTOCOLS
from pinmem_core.inference.writers import FORMATS
from pinmem_core.methods import methods
from pinmem_core.models.backbones import backbones
from pinmem_core.models.decoders import decoders
from pinmem_core.paths import runs_root
from pinmem_core.recipe import recipe_names
from pinmem_core.training.loggers import loggers

COMMANDS = """
    train|eval|eval compare|predict|runs|doctor
    |data list|data info|data download|data extract|data prepare
    |data verify|data stats|data preview|data pack|data new-card|export onnx|export torch
    |export weights|export push|export convert
""".replace("\n", "").split("|")


def test_names_are_those_of_the_core():
    shipped = {n for n, c in methods.all().items() if "plugins" not in inspect.getfile(c)}
    assert {*names.methods()} == shipped
    assert {*names.datasets()} == {*shipped_cards()} - {"drawn", "toy"}
    assert names.recipes() == recipe_names()
    assert names.formats() == [*FORMATS] and names.protocols() == [*PROTOCOLS]
    plugins = {"tiny", "timm:*", "timm:"}
    assert {*names.backbones()} - plugins == {*backbones.all()} - plugins
    assert {*names.decoders()} <= {*decoders.all()} and {*names.loggers()} <= {*loggers.all()}
    assert len(names.decoders()) >= 4 and "timm:" in names.backbones()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_names_and_flags_without_a_type(command):
    shown = Result(*command.split(), "--help")
    assert shown.code == 0 and "<bool>" not in shown.out and "{datasets}" not in shown.out
    assert "by comma, or repeated" not in shown.out


@pytest.mark.parametrize(
    ("command", "known"),
    [
        ("train", [*names.methods(), *names.recipes(), *names.datasets()]),
        ("predict", [*FORMATS, *PROTOCOLS]),
        ("eval", [*PROTOCOLS]),
        ("data prepare", names.datasets()),
    ],
)
def test_help_knows_the_names(command, known):
    words = Result(*command.split(), "--help").out.replace("│", " ")
    assert set(known) <= set(words.replace(",", " ").replace(".", " ").replace(";", " ").split())


def test_completion_offers_names_and_continues_lists():
    (runs_root() / "first").mkdir(parents=True)
    (runs_root() / "first" / "config.json").write_text("{}")
    assert names.complete(names.models)("") == ["starter", "last", "first"]
    assert names.complete(names.formats)("color,ov") == ["color,overlay"]
    assert names.complete(names.datasets)("gt") == ["gtav"]
    assert names.complete(names.methods)("pin") == ["pinmem"]
