"""Every command in a hint: it parses with the app's options, and a test runs it word for word."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from hints import HOLE, ROOT, commands_in, filled, parse, templates
from onnx_files import write_onnx

from pinmem_core.images import write_png

TEMPLATES = templates()
TINY = """
    --iterations 2 --batch 2 --crop 64 --device cpu --set model.backbone=tiny
    --set model.feature_dim=16 --set model.memory.init_batches=1 --set checkpoint.every=1
""".split()  # noqa: SIM905
TRAIN = ["train", "--sources", "toy:red", "--targets", "toy:blue", *TINY]
FILL = {
    f"pinmem data prepare {HOLE} {HOLE}": "pinmem data prepare x --from y",
    f"pinmem export push {HOLE}": "pinmem export push x user/name",
    f"pinmem export {HOLE} --help": "pinmem export onnx --help",
    "pinmem train --recipe demo   (synthetic data; minutes on a CPU)": "pinmem train --recipe demo",
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
        done = Result(*TRAIN, "-o", str(root / "home" / "runs" / "first"))
        assert done.code == 0, done.err
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "here" / "home"))
    return tmp_path / "here"


def fresh():
    shutil.rmtree("home")


def stopped_half_way():
    Path("home/runs/first/scores.json").unlink()
    shutil.rmtree("home/runs/first/snapshots/00000002", ignore_errors=True)


def damaged_label():
    next(Path("home/datasets/toy/labels").rglob("*.png")).unlink()


def own_images():
    for number in range(6):
        ids = np.arange(64, dtype=np.uint8).reshape(8, 8) // 16 + number % 3
        write_png(Path(f"mine/images/{number}.png"), np.stack([ids * 40] * 3, axis=2))
        write_png(Path(f"mine/labels/{number}.png"), ids)


def an_onnx_file():
    write_onnx(Path("a.onnx"))


def a_file():
    Path("weights.bin").write_bytes(b"")


_INSPECT, _SHARE, _PREPARE = (
    f"pinmem_cli/data/{name}.py" for name in ("inspect", "share", "prepare")
)
_HUB, _PATHS = "pinmem_core/checkpoints/hub.py", "pinmem_core/paths.py"
RUN_HERE = [
    # the module and its hint, what is there before, the command, and what the user fills in
    (_INSPECT, f"pinmem data info {HOLE}", None, "data list", {}),
    (_INSPECT, f"pinmem data prepare {HOLE}", None, "data info toy", {}),
    ("pinmem_core/data/prepared.py", f"pinmem data prepare {HOLE}", fresh, "data stats toy", {}),
    (_PREPARE, f"pinmem data preview {HOLE}", fresh, "data prepare toy", {}),
    (_INSPECT, f"pinmem data stats {HOLE}", None, "data verify toy", {}),
    (_INSPECT, f"pinmem data prepare {HOLE}{HOLE}", damaged_label, "data verify toy", {}),
    (_INSPECT, f"pinmem data preview {HOLE}", None, "data stats toy", {}),
    ("pinmem_core/data/download.py", f"pinmem data prepare {HOLE}", None, "data download toy", {}),
    (_SHARE, f"pinmem data prepare {HOLE}", None, "data pack toy -o toy.tar", {}),
    (_SHARE, f"pinmem data prepare {HOLE}", own_images, "data new-card mine -o mine.yaml", {}),
    ("pinmem_core/training/setup.py", "pinmem data list", None, "train --recipe resnet18", {}),
    (
        "pinmem_core/training/run_folder.py",
        f"pinmem eval {HOLE}",
        None,
        "train --resume first",
        {},
    ),
    (
        "pinmem_core/evaluation/compare.py",
        f"pinmem eval {HOLE}",
        None,
        "eval compare first first",
        {},
    ),
    (_PATHS, "pinmem runs", None, "train --resume absent", {}),
    (_HUB, "pinmem runs", a_file, "eval weights.bin", {}),
    ("pinmem_cli/lists.py", f"pinmem train --show {HOLE}", None, "train --list", {}),
    (
        "pinmem_cli/lists.py",
        "pinmem train --backbones '*'",
        None,
        "train --backbones nothing-like-it",
        {},
    ),
    (
        "pinmem_cli/eval.py",
        f"pinmem predict {HOLE} -o mask.png --model {HOLE}",
        None,
        "eval first --no-pictures",
        {},
    ),
    ("pinmem_cli/runs.py", f"pinmem eval {HOLE}{HOLE}", None, "runs", {}),
    ("pinmem_cli/runs.py", f"pinmem train --resume {HOLE}", stopped_half_way, "runs", {}),
    ("pinmem_cli/predict.py", f"pinmem eval {HOLE}", None, "predict street.png --model first", {}),
    (
        _HUB,
        f"pinmem predict IMAGE --model {HOLE}",
        an_onnx_file,
        "eval a.onnx",
        {"IMAGE": "street.png"},
    ),
    ("pinmem_cli/export.py", f"pinmem export {HOLE} --help", None, "export first --to onnx", {}),
    (
        "pinmem_cli/export.py",
        f"pinmem export push {HOLE} user/name --dry-run",
        None,
        "export weights first -o w",
        {},
    ),
]


@pytest.mark.parametrize(
    ("module", "template", "before", "command", "fill"),
    RUN_HERE,
    ids=[f"{command}: {template}" for _, template, _, command, _ in RUN_HERE],
)
def test_a_printed_command_runs_word_for_word(here, module, template, before, command, fill):
    if before:
        before()
    shown = Result(*shlex.split(command))
    said = [text for line in (shown.out + shown.err).splitlines() for text in commands_in(line)]
    pattern = re.escape(template).replace(HOLE, ".*")
    (hint, *_) = [text for text in said if re.fullmatch(pattern, text)] or [None]
    assert hint, f"{command} prints {said}"
    assert module in TEMPLATES[template]
    for word, value in fill.items():
        hint = hint.replace(word, value)
    done = Result(*shlex.split(hint)[1:])
    assert done.code == 0, f"{hint}: {done.err}"


ELSEWHERE = {
    ("pinmem_core/training/trainer.py", f"pinmem train --resume {HOLE}"): (
        "tests/training/test_run_resuming.py"
    ),
    ("pinmem_cli/train.py", f"pinmem eval {HOLE}{HOLE}"): "tests/cli/test_cli.py",
    ("pinmem_core/export/push.py", f"pinmem export weights {HOLE} -o whole"): (
        "tests/checkpoints/test_adapter_only.py"
    ),
    ("pinmem_core/data/verify.py", f"pinmem data prepare {HOLE} --hash-images"): (
        "tests/data/test_verify.py"
    ),
}
"""Hints that the tests of their module run."""
_LONG, _NETWORK, _NAME = "takes minutes", "needs a network", "names a command"
_DATA = "repairs what the tests of the module damage"
PARSED = {
    ("pinmem_core/data/prepared.py", "pinmem data list"): "runs as the hint of training/setup.py",
    ("pinmem_core/data/access.py", f"pinmem data download {HOLE}"): _NETWORK,
    ("pinmem_core/data/access.py", f"pinmem data download {HOLE} --accept-terms"): _NETWORK,
    ("pinmem_core/data/download.py", f"pinmem data prepare {HOLE} --from FOLDER"): _NETWORK,
    ("pinmem_core/data/share.py", "pinmem data pack"): _NAME,
    ("pinmem_cli/predict.py", "pinmem eval"): _NAME,
    ("pinmem_core/evaluation/compare.py", "pinmem eval"): _NAME,
    ("pinmem_core/inference/sources.py", "pinmem predict -"): "reads standard input",
    ("pinmem_core/data/locate.py", f"pinmem data prepare {HOLE} {HOLE}"): _DATA,
    ("pinmem_core/data/rare_classes.py", f"pinmem data prepare {HOLE}"): _DATA,
    ("pinmem_core/data/samples.py", f"pinmem data prepare {HOLE}"): _DATA,
    ("pinmem_core/data/samples.py", f"pinmem data verify {HOLE}"): _DATA,
    ("pinmem_core/data/statistics.py", f"pinmem data prepare {HOLE}"): _DATA,
    ("pinmem_core/data/batches.py", f"pinmem data preview {HOLE}"): _DATA,
    (_PREPARE, f"pinmem data prepare {HOLE}"): _NETWORK,
    (_INSPECT, f"pinmem train --sources {HOLE} --dry-run"): _LONG,
    ("pinmem_cli/lists.py", f"pinmem train --recipe {HOLE} --dry-run"): _LONG,
    ("pinmem_cli/lists.py", "pinmem train --recipe demo --set optim.lr=0.02 --dry-run"): _LONG,
    ("pinmem_cli/train.py", "pinmem train --recipe demo"): _LONG,
    ("pinmem_cli/lists.py", "pinmem train --sources demo --method aggregate --dry-run"): _LONG,
    ("pinmem_cli/predict.py", "pinmem train --recipe demo"): _LONG,
    ("pinmem_cli/runs.py", "pinmem train --recipe demo"): _LONG,
    ("pinmem_cli/app.py", next(text for text in FILL if "minutes" in text)): _LONG,
    ("pinmem_cli/sweep.py", f"pinmem eval compare {HOLE}"): _LONG,
    ("pinmem_cli/export.py", f"pinmem eval {HOLE}"): _NETWORK,
    ("pinmem_cli/export.py", f"pinmem export push {HOLE}"): _NETWORK,
    ("pinmem_cli/export.py", f"pinmem export onnx {HOLE}"): _LONG,
    (_HUB, "pinmem export onnx RUN"): _LONG,
    ("pinmem_core/export/int8.py", "pinmem export onnx RUN"): _LONG,
    ("pinmem_core/inference/onnx_runner.py", "pinmem export onnx RUN"): _LONG,
    ("pinmem_cli/predict.py", "pinmem predict --help"): "shows the help",
    ("pinmem_cli/demo.py", "pinmem train --help"): "shows the help",
    ("pinmem_cli/eval.py", "pinmem runs"): "runs in tests/checkpoints/test_runs.py",
}
"""Hints that are only parsed, and why."""


def examples():
    """Return the examples in the help of all commands; they name files that are not there."""
    texts = set()
    for path in (ROOT / "pinmem_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_add = isinstance(node, ast.Call) and ast.unparse(node.func) == "add"
            named = isinstance(node, ast.Assign) and "EXAMPLES" in ast.unparse(node.targets[0])
            if is_add or named:
                texts |= {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
    return texts


def test_every_hint_has_a_test():
    known = {(module, template) for module, template, *_ in RUN_HERE} | {*ELSEWHERE} | {*PARSED}
    shown = examples()
    hints = {(m, t) for t, modules in TEMPLATES.items() if t not in shown for m in modules}
    assert hints - known == set(), "run these hints in RUN_HERE"
    assert {pair for pair in known - hints if pair[1] not in shown} == set(), "no longer printed"
    assert all((ROOT / path).exists() for path in ELSEWHERE.values())
