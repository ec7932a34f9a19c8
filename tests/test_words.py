"""The words of the code, its messages and its pages are those of the field."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for package in ("pinmem_core", "pinmem_cli")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "renamed.py"  # the mapping of old names
)
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "benchmarks.md"),
]  # benchmarks.md quotes the output of earlier versions
WORDS = re.compile(
    r"\b(trunks?|crew|patience|meter|obtain(s|ed)?|pace|footprint|figures|facts|told"
    r"|misfits?|painters?|outcomes?|appetite|quickened|early_conv|conv_beside_resized|own_share"
    r"|from_all|joined|trap|besides?|likewise|whoever|own statistics|drawn streets)\b",
    re.IGNORECASE,
)
OLD_NAMES = re.compile(r"""["']beside["']""")  # of an output format and a key of sweeps
SCENERY = {"trunk", "trunks", "spread"}  # of the synthetic trees
IDENTIFIERS = {"found", "told", "lacking", "facts", "figures", "spread", "outcome", "misfit"}


@pytest.mark.parametrize("path", [*CODE, *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_word_of_our_own_stands_for_one_of_the_field(path):
    text = OLD_NAMES.sub("", path.read_text())
    words = {match[0].lower() for match in WORDS.finditer(text)}
    assert words - (SCENERY if "synthetic" in path.parts else set()) == set()


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_identifier_is_a_word_of_our_own(path):
    names = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            getattr(node, "id", None),
            getattr(node, "arg", None),
            getattr(node, "attr", None),
        )
        if isinstance(name, str)
    }
    assert names & IDENTIFIERS == set()
