"""The words of the code, its messages and its pages are those of the field."""

import ast
import re
from pathlib import Path

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


def test_no_word_of_our_own_stands_for_one_of_the_field():
    odd = {}
    for path in [*CODE, *PAGES]:
        text = OLD_NAMES.sub("", path.read_text())
        words = {match[0].lower() for match in WORDS.finditer(text)}
        odd[str(path)] = words - (SCENERY if "synthetic" in path.parts else set())
    assert {path: words for path, words in odd.items() if words} == {}


def test_no_identifier_is_a_word_of_our_own():
    odd = {}
    for path in CODE:
        nodes = ast.walk(ast.parse(path.read_text()))
        names = {getattr(node, kind, None) for node in nodes for kind in ("id", "arg", "attr")}
        odd[str(path)] = names & IDENTIFIERS
    assert {path: names for path, names in odd.items() if names} == {}
