"""The faults that mutation testing puts into a module, and what becomes of them."""

import pytest
from mutation import mutants, run


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a < b", ["a <= b", "a >= b"]),
        (
            "a is b and c in d",
            ["a is b or c in d", "a is not b and c in d", "a is b and c not in d"],
        ),
        ("a + b * c", ["a - b * c", "a + b / c"]),
        ("not a", ["a"]),
        ("3", ["4", "2"]),
        ("True", ["False"]),
        ("f(a, b, c=d)", ["pass", "f(b, a, c=d)", "f(a, b)"]),
        ("f(a, 'text')", ["pass"]),
        ("max(a, b)", ["pass", "max(b, a)", "min(a, b)"]),
        ("int | None", []),
        ("a << 8 | b", ["a << 8 & b", "a >> 8 | b", "a << 9 | b", "a << 7 | b"]),
        ("[a for a in b if a]", ["[a for a in b]"]),
        ("a if b else c", ["a if not b else c"]),
        ("def f():\n    return a", ["return"]),
        ("if a:\n    raise b", ["if not a:", "pass"]),
        ("with a, b:\n    c = d", ["with b:", "with a:"]),
        ("with a:\n    c = d", ["if 1:"]),
    ],
)
def test_each_fault_is_one_change(text, after):
    assert [mutant.after for mutant in mutants("m", text)] == after


TEST = """
import {name}
def test_sum():
    assert {name}.sum_to(4) == 6
"""


def test_faults_that_a_test_finds_are_killed(tmp_path, monkeypatch):
    name, text = "summed_for_mutation", "def sum_to(n):\n    return sum(i for i in range(n))\n"
    (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "test_it.py").write_text(TEST.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    (empty,) = mutants(name, text)
    arguments = ["-c", "/dev/null", f"--rootdir={tmp_path}", str(tmp_path)]
    assert run(None, arguments, 60)[0] == "survived"
    assert run(empty, arguments, 60)[0] == "killed"
    endless = empty._replace(source="def sum_to(n):\n    while True: pass")
    assert run(endless, arguments, 1)[0] == "timed out"
