"""The commands and the Python code of README and docs run, in a small place that has all they name.

The blocks of a page are pasted as they are, each into a fresh copy of the place. Only trainings get
smaller settings (`small`). What cannot run here is listed with the reason.
"""

import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import Result
from documented import Block, Command, blocks
from documented_place import (
    change_label,
    copy_place,
    enter,
    make_place,
    tear_photo,
    unfinish_run,
)
from hub_server import serving_hub
from huggingface_hub import constants

from pinmem_core.recipe import load_recipe
from pinmem_core.study import plan
from pinmem_core.training import dry_run
from pinmem_core.training.step import TrainStep
from pinmem_core.training.time_limit import Timing

_SLOW = (
    "torch traces the starter's network for a minute; 'export onnx RUN' does the same with a small "
    "one"
)
LEFT_OUT = {
    "predict --watch inbox/ -o masks/": "ends at Ctrl-C; tests/inference/test_predict_inputs.py",
    "serve": "ends at Ctrl-C; tests/serving",
    "serve --model RUN --model starter": "ends at Ctrl-C; tests/serving",
    "export onnx run -o run.onnx": f"{_SLOW}, and the place has a run.onnx",
    "export onnx starter -o onnx": _SLOW,
    "train --sweep methods.toml -o studies/methods --jobs 2": "trains 27 runs; the line above "
    "plans them, and tests/study/test_jobs.py trains a small study",
}
"""Commands that do not run here."""
CODE_LEFT_OUT = {
    '"""`mixstyle`: mix': "tests/methods/test_methods.py compares it with the module",
    "class TestMixStyle(": "tests/methods/test_methods.py has this test",
}
"""Beginnings of Python blocks that do not run here."""
SMALL = "--iterations 2 --batch 2 --crop 64 --device cpu --set evaluation.max_images=2"
SMALL_NETWORK = (
    "--set model.backbone=resnet10 --set model.feature_dim=16 --set init_weights=none "
    "--set model.memory.init_batches=1"
)
SMALL_FOUNDATION = "--set model.backbone=timm:vit_small_patch14_dinov2"
NO_NETWORK = ("--show", "--backbones", "--resume")


class Situation(NamedTuple):
    """What is there before a command, and the exit code of the command."""

    before: Callable[[pytest.MonkeyPatch], object]
    code: int = 0


def press_ctrl_c(patch: pytest.MonkeyPatch) -> None:
    """Send the signal in the first iteration."""
    whole, done = TrainStep.step, []

    def step(*arguments: object) -> object:
        if not done:
            signal.raise_signal(signal.SIGINT)
        done.append(arguments)
        return whole(*arguments)

    patch.setattr(TrainStep, "step", step)


SITUATIONS = {
    ": 2 findings": Situation(lambda _: change_label(), 4),
    ", 1 failed": Situation(lambda _: tear_photo(), 1),
    "stopped at iteration": Situation(press_ctrl_c, 130),
    "train --resume RUN": Situation(lambda _: unfinish_run()),
    "train --resume auto": Situation(lambda _: unfinish_run()),
}
"""Situations by a part of the command, or of the output that the page shows."""


def runs() -> Iterator[tuple[Block, list[Command]]]:
    """Yield blocks with their commands, without repeated ones whose output is not shown."""
    seen: set[str] = set()
    for block in blocks():
        commands = [c for c in block.commands if c.shown or c.text not in seen]
        seen.update(command.text for command in commands)
        commands = [command for command in commands if command.text not in LEFT_OUT]
        if commands:
            yield block, commands


def is_long(block: Block) -> bool:
    """Whether a block exports in 8-bit integers, which takes a minute."""
    return any("int8" in command.text for command in block.commands)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        make_place()
    return root


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of the place, and a Hub."""
    copy_place(made, tmp_path / "place")
    enter(tmp_path / "place", monkeypatch)
    with serving_hub() as hub:
        hub.answer(monkeypatch, tmp_path / "hub")
        yield tmp_path / "place"


def small(words: list[str], patch: pytest.MonkeyPatch) -> list[str]:
    """Return the command with smaller settings; what it writes must not be there."""
    if words[0] == "train" and "-o" in words:
        shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
    if words[:2] == ["export", "onnx"]:
        shutil.rmtree(f"{words[2]}/export", ignore_errors=True)
    if words[0] != "train" or {*words} & {*NO_NETWORK}:
        return words
    if "--sweep" in words:
        plan_only(patch)
        return [*words, "--dry-run"] if "--dry-run" not in words else words
    words = [word.replace("vit_giant", "vit_small") for word in words]
    added = SMALL.split()
    names_backbone = any(word.startswith("model.backbone=") for word in words)
    if "--dry-run" in words:
        plan_only(patch)
    if any(part in word for word in words for part in ("dinov2", "timm:")):
        plan_only(patch)
        added += ["--dry-run", *([] if names_backbone else SMALL_FOUNDATION.split())]
    elif not {"--from", "--init-weights"} & {*words}:
        added += SMALL_NETWORK.split()
    return [*words, *added]


def plan_only(patch: pytest.MonkeyPatch) -> None:
    """Take the cost of an iteration as given: measuring it takes most of the time of a plan."""
    patch.setattr(dry_run, "estimate", lambda *_: dry_run.Estimate(1e9, 10**9, 1.0))
    patch.setattr(
        plan,
        "measure",
        lambda config, network, domains, scored, device: Timing(
            1.0, tuple((0.1, len(target.samples)) for target in scored)
        ),
    )


def run(command: Command, patch: pytest.MonkeyPatch) -> Result:
    """Run a command as a shell does; optional parts in brackets are left out."""
    text, _, written = re.sub(r" \[[^]]*\]", "", command.text).partition(" > ")
    text, _, read = text.partition(" < ")
    words = [str(Path(w).expanduser()) if w.startswith("~") else w for w in shlex.split(text)]
    for name, value in command.variables.items():
        patch.setattr(constants, name, value == "1")
    done = Result(*small(words, patch), stdin=Path(read).read_bytes() if read else None)
    if written:
        Path(written).write_text(done.out)
    return done


def labels(shown: list[str]) -> list[str]:
    """Return the beginnings of shown lines, up to a value; error messages as they are."""
    found = []
    for before, line in pairwise(["", *shown]):
        is_error = line.startswith("error: ") or before.startswith("error: ")
        label = line if is_error else re.split(r"\d|  +|: |\.\.\.|/home/you", line.strip())[0]
        if len(label) > 2:
            found.append(label.strip())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "commands"),
    [
        pytest.param(*each, id=each[0].name, marks=[pytest.mark.exhaustive] * is_long(each[0]))
        for each in runs()
    ],
)
def test_the_commands_of_a_block_run_and_print_what_the_page_shows(place, block, commands):
    for command in commands:
        shown = "\n".join([command.text, *command.shown])
        code = 0
        with pytest.MonkeyPatch.context() as patch:
            for text, situation in SITUATIONS.items():
                if text in shown:
                    situation.before(patch)
                    code = situation.code
            done = run(command, patch)
        said = f"{block.name}: {command.text} ends with {done.code}: {done.err[-1000:]}"
        assert done.code != 0 if "\nerror: " in shown else done.code == code, said
        printed = done.out + done.err
        assert [label for label in labels(command.shown) if label not in printed] == [], said


CODE = [block for block in blocks() if block.language == "python"]


@pytest.fixture
def names(place, monkeypatch):
    """Names that the code uses without defining them."""
    short = {"iterations": 2, "batch": 2, "device": "cpu"}
    monkeypatch.setattr("pinmem_core.training.fit.load_recipe", lambda n: load_recipe(n) | short)
    return {"torch": torch, "images": torch.zeros(1, 3, 64, 64)}


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in CODE}))
def test_the_python_code_of_a_page_runs(place, names, page):
    code = [b for b in CODE if b.page == page and not b.text.startswith(tuple(CODE_LEFT_OUT))]
    if page == "docs/export.md":
        for command in (
            "export push RUN user/name --revision v2",
            "export push RUN user/name",
            "export onnx RUN --preprocess --argmax -o model.onnx",
            "export torch RUN -o model.pt2",
        ):
            assert Result(*command.split()).code == 0
    for block in code:
        exec(compile(block.text, block.name, "exec"), names)


def test_what_is_left_out_is_documented():
    assert {*LEFT_OUT} <= {command.text for block in blocks() for command in block.commands}
    for start in CODE_LEFT_OUT:
        assert any(block.text.startswith(start) for block in CODE)
    pages = "\n".join(line for b in blocks() for c in b.commands for line in (c.text, *c.shown))
    assert all(text in pages for text in SITUATIONS)
