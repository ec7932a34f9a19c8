"""docs/troubleshooting.md quotes messages that pinmem has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(
    r"^\*\*(.+?)\*\*", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M | re.S
)


def _text(node: ast.expr) -> str:
    """Return a message with `...` for its variable parts."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "..."


MESSAGES = {
    re.sub(r"[\s.]+", " ", _text(call.args[0])).strip()
    for path in (ROOT / "pinmem_core").rglob("*.py")
    for call in ast.walk(ast.parse(path.read_text()))
    if isinstance(call, ast.Call) and call.args and str(ast.unparse(call.func)).endswith("Error")
}


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_code(message):
    assert re.sub(r"[\s.]+", " ", message).strip() in MESSAGES
