"""Every command in a hint: it parses with the app's options, and a test runs it word for word."""

import ast
import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from hint_rows import CLI, DATA, ROWS, TINY, TRAIN, Row, Stage
from hints import HOLE, ROOT, commands_in, filled, parse, templates

from pinmem_cli.app import main
from pinmem_cli.demo import run_demo
from pinmem_cli.output import Output
from pinmem_core.data.cards import demo
from pinmem_core.images import write_png

TEMPLATES = templates()
FILL = {
    f"pinmem {HOLE}": "pinmem runs",
    f"pinmem --debug {HOLE}": "pinmem --debug runs",
    f"pinmem data prepare {HOLE} {HOLE}": "pinmem data prepare x --from y",
    f"pinmem export push {HOLE}": "pinmem export push x user/name",
    f"pinmem export {HOLE} --help": "pinmem export onnx --help",
}
"""Templates whose holes stand for several words."""


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_the_command_of_a_hint_parses_with_the_options_of_the_app(template):
    try:
        parse(filled(FILL.get(template, template)))
    except Exception as error:
        if getattr(error, "exit_code", None) == 0:  # --help
            return
        raise AssertionError(f"{template}, in {TEMPLATES[template]}: {error}") from error


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with the dataset toy, a run "first", and a photo; made once, copied for each test."""
    root = tmp_path_factory.mktemp("made")
    write_png(root / "street.png", np.full((64, 96, 3), 90, np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINMEM_HOME", str(root / "home"))
        assert Result("data", "prepare", "toy").code == 0
        done = Result(*TRAIN.split(), "-o", str(root / "home" / "runs" / "first"))
        assert done.code == 0, done.err
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "here" / "home"))
    return tmp_path / "here"


def run(command: str) -> Result:
    """Run a command as a shell does."""
    command, _, file = command.partition(" < ")
    return Result(*shlex.split(command)[1:], stdin=Path(file).read_bytes() if file else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=[f"{row.command.replace(TINY, '...')}: {row.template}" for row in ROWS],
)
def test_a_printed_command_runs_word_for_word(here, monkeypatch, row: Row):
    with Stage(monkeypatch) as stage:
        row.before(stage)
        command = f"pinmem {row.command}"
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        shown = run(command)
        said = [text for line in (shown.out + shown.err).splitlines() for text in commands_in(line)]
        pattern = re.escape(row.template).replace(HOLE, ".*")
        (hint, *_) = [text for text in said if re.fullmatch(pattern, text)] or [None]
        assert hint, f"{command} prints {said}: {shown.out[-500:]} {shown.err[-1500:]}"
        for word, value in row.fill.items():
            hint = hint.replace(word, value)
        done = run(hint)
        assert done.code == row.code, f"{hint}: {done.err}"
        if row.repairs:
            again = run(command)
            assert again.code == 0, again.err


@pytest.mark.slow
def test_the_command_after_the_demo_runs_word_for_word(here, monkeypatch, capsys):
    """The demo runs 'pinmem train --recipe demo' for two methods; here, with fewer iterations."""
    python = Path("python")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --iterations 1 --batch 2\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python.absolute()))
    monkeypatch.setattr(demo, "IMAGES_PER_DOMAIN", {"train": 2, "val": 1})
    run_demo(Output())
    *_, hint = [text for line in capsys.readouterr().err.splitlines() for text in commands_in(line)]
    assert run(hint).code == 0


def test_the_command_after_an_unexpected_error_shows_where_it_happened(monkeypatch, capsys):
    monkeypatch.setattr("pinmem_core.checkpoints.runs.list_runs", lambda: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["pinmem", "runs", "--quiet"])
    with pytest.raises(SystemExit):
        main()
    (hint,) = commands_in(capsys.readouterr().err)
    monkeypatch.setattr(sys, "argv", shlex.split(hint))
    with pytest.raises(ZeroDivisionError):
        main()


ELSEWHERE = {
    (CLI["predict"], f"pinmem {HOLE}"): (
        "tests/inference/test_predict_inputs.py",
        "test_the_hint_after_ctrl_c_works_when_pasted",
    ),
    (DATA["access"], f"pinmem data download {HOLE}"): (
        "tests/data/test_prompts.py",
        "test_the_command_that_asks_for_credentials_works_when_pasted",
    ),
    ("pinmem_core/export/push.py", f"pinmem export weights {HOLE} -o whole"): (
        "tests/checkpoints/test_adapter_only.py",
        "test_the_whole_network_of_the_hint_needs_no_base",
    ),
    (CLI["demo"], "pinmem train --help"): (
        "tests/cli/test_hints.py",
        "test_the_command_after_the_demo_runs_word_for_word",
    ),
    ("pinmem_cli/output.py", f"pinmem --debug {HOLE}"): (
        "tests/cli/test_hints.py",
        "test_the_command_after_an_unexpected_error_shows_where_it_happened",
    ),
}
"""Hints that other tests run word for word."""


def examples() -> Counter[tuple[str, str]]:
    """Return the examples in the help of all commands; they name files that are not there."""
    texts: Counter[tuple[str, str]] = Counter()
    for path in (ROOT / "pinmem_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_add = isinstance(node, ast.Call) and ast.unparse(node.func) == "add"
            named = isinstance(node, ast.Assign) and "EXAMPLES" in ast.unparse(node.targets[0])
            if is_add or named:
                module = str(path.relative_to(ROOT))
                found = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
                texts += Counter((module, text) for text in found)
    return texts


def test_every_hint_is_run_as_often_as_it_occurs():
    hints = Counter((m, t) for t, modules in TEMPLATES.items() for m in modules) - examples()
    run_here = Counter((row.module, row.template) for row in ROWS)
    assert hints - run_here - Counter([*ELSEWHERE]) == Counter(), "run these hints in ROWS"
    assert {*run_here, *ELSEWHERE} <= {*hints}, "no longer printed"
    assert all(f"def {test}(" in (ROOT / file).read_text() for file, test in ELSEWHERE.values())
