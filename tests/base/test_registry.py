"""A plug-in that cannot be used is named with its file, and none replaces another silently."""

import pytest

import pinmem_core.data.cards
import pinmem_core.methods
from pinmem_core import list_datasets, list_methods
from pinmem_core.errors import ConfigError
from pinmem_core.methods import methods

METHOD = "from pinmem_core.methods.base import Method\nclass Mine(Method):\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import there_is_no_such_module", "added.py cannot be imported: ModuleNotFoundError"),
        ("METHODS = (", "added.py cannot be imported: SyntaxError"),
        ("1 / 0", "added.py cannot be imported: ZeroDivisionError"),
        ("METHODS = ['mine']", "METHODS in .*added.py is no dictionary with names as keys"),
        ("METHODS = {5: int}", "METHODS in .*added.py is no dictionary with names as keys"),
        ("METHODS = {'mine': int}", "'mine' in .*added.py is no subclass of Method"),
        (f"{METHOD} pass\nMETHODS = {{'mine': Mine}}", "'mine' .* lacks memory, meta, step"),
        (f"{METHOD} memory = 'maybe'", "Mine.memory must be 'required', 'optional', 'none'"),
        (f"{METHOD} views = 0", "Mine.views must be a number from 1, not 0"),
        (f"{METHOD} Config = dict", "Mine.Config must be a subclass of Settings"),
        (f"{METHOD} __init__ = lambda self: None", r"Mine\(config, scaler\) cannot be called: too"),
        (
            "from pinmem_core.methods.mldg import MLDG\nMETHODS = {'pinmem': MLDG}",
            "pinmem.py and .*added.py both define|added.py and .*pinmem.py both define",
        ),
    ],
)
def test_an_unusable_method_is_named_with_its_file(add_plugin, text, message):
    add_plugin(pinmem_core.methods, text)
    with pytest.raises(ConfigError, match=message):
        list_methods()


def test_a_file_with_the_name_of_another_one_is_not_ignored(add_plugin):
    add_plugin(pinmem_core.methods, "METHODS = {}", name="mixstyle")
    with pytest.raises(ConfigError, match="both have a module 'mixstyle'"):
        methods.get("mixstyle")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CARD = 5", "CARD in .*added.py is no DatasetCard"),
        ("from pinmem_core.data.cards.toy import CARD", "the name of another one, 'toy'"),
    ],
)
def test_an_unusable_card_is_named_with_its_file(add_plugin, text, message):
    add_plugin(pinmem_core.data.cards, text)
    with pytest.raises(ConfigError, match=message):
        list_datasets()
