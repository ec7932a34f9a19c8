"""What makes the CLI print each of its hints, and what is there before."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from conftest import Result
from hints import HOLE
from http_server import Site, serving
from hub_server import serving_hub
from onnx_files import write_onnx

from pinmem_cli.signals import Stop
from pinmem_core import doctor
from pinmem_core.config import ModelConfig
from pinmem_core.data.cards import demo
from pinmem_core.doctor import contents
from pinmem_core.errors import MachineError
from pinmem_core.images import write_png
from pinmem_core.models import Segmenter
from pinmem_core.recipe import load_recipe
from pinmem_core.training.step import TrainStep

TINY = (
    "--iterations 2 --batch 2 --crop 64 --device cpu --set model.backbone=tiny "
    "--set model.feature_dim=16 --set model.memory.init_batches=1 --set checkpoint.every=1"
)
TRAIN = f"train --sources toy:red --targets toy:blue {TINY}"


class Stage(ExitStack):
    """What a situation may use: patches, and servers that close after the test."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.patch = patch


def fresh(_: Stage) -> None:
    Path("home").rename("old")


def stopped_half_way(_: Stage) -> None:
    Path("home/runs/first/scores.json").unlink()


def damaged_label(_: Stage) -> None:
    for path in Path("home/datasets/toy/labels").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:50])


def lost_label(stage: Stage) -> None:
    next(Path("home/datasets/toy/labels").rglob("*.png")).unlink()
    few_checks(stage)


def few_checks(stage: Stage) -> None:
    stage.patch.setattr(doctor, "CHECKS", {"datasets": contents.check_datasets})


def other_version(_: Stage) -> None:
    path = Path("home/datasets/toy/dataset.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))


def damaged_summary(_: Stage) -> None:
    Path("home/datasets/toy/dataset.json").write_text("{")


def lost_records(_: Stage) -> None:
    path = Path("home/datasets/toy/conversions.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def unlabelled(_: Stage) -> None:
    for path in Path("home/datasets/toy/labels").rglob("*.png"):
        write_png(path, np.full((64, 96), 255, np.uint8))


def own_images(_: Stage) -> None:
    for number in range(6):
        ids = np.arange(64, dtype=np.uint8).reshape(8, 8) // 16 + number % 3
        write_png(Path(f"mine/images/{number}.png"), np.stack([ids * 40] * 3, axis=2))
        write_png(Path(f"mine/labels/{number}.png"), ids)


def own_card(stage: Stage) -> None:
    own_images(stage)
    assert Result("data", "new-card", "mine", "-o", "mine.yaml").code == 0


def own_archive(stage: Stage) -> None:
    """The own data lie in an archive that the card does not name."""
    own_card(stage)
    Path("in").mkdir()
    with zipfile.ZipFile("in/mine.zip", "w") as archive:
        for path in Path("mine").rglob("*.png"):
            archive.write(path)


def archive_by_hand(stage: Stage) -> None:
    """The card names an archive without an address."""
    own_archive(stage)
    card = yaml.safe_load(Path("mine.yaml").read_text()) | {"archives": [{"file": "mine.zip"}]}
    Path("mine.yaml").write_text(yaml.safe_dump(card))


def web(stage: Stage) -> Site:
    """A web server offers the own data; their terms are to be accepted."""
    own_archive(stage)
    site = stage.enter_context(serving())
    site.files["/mine.zip"] = Path("in/mine.zip").read_bytes()
    archive = {"file": "mine.zip", "url": site.url("/mine.zip")}
    card = yaml.safe_load(Path("mine.yaml").read_text())
    card |= {"archives": [archive], "terms": "Be kind.", "must_accept": True}
    Path("mine.yaml").write_text(yaml.safe_dump(card))
    return site


def own_pack(stage: Stage) -> None:
    own_card(stage)
    for words in ("--card mine.yaml --from mine", "--from mine.tar"):
        assert Result("data", "prepare", "mine", *words.split()).code == 0
        assert Result("data", "pack", "mine", "--force").code == 0


def moved(stage: Stage) -> None:
    """The own data were prepared, and their folder has moved since."""
    own_card(stage)
    assert Result("data", "prepare", "mine", "--card", "mine.yaml", "--from", "mine").code == 0
    Path("mine").rename("elsewhere")


def moved_but_on_the_web(stage: Stage) -> None:
    web(stage)
    card = yaml.safe_load(Path("mine.yaml").read_text()) | {"must_accept": False}
    Path("mine.yaml").write_text(yaml.safe_dump(card))
    assert Result("data", "prepare", "mine", "--card", "mine.yaml", "--from", "mine").code == 0
    Path("mine").rename("elsewhere")


def pack_without_end(_: Stage) -> None:
    assert Result("data", "pack", "toy", "-o", "whole.tar").code == 0
    with tarfile.open("whole.tar") as whole, tarfile.open("toy.tar", "w") as tar:
        first = whole.next()
        assert first
        tar.addfile(first, whole.extractfile(first))


def an_onnx_file(_: Stage) -> None:
    write_onnx(Path("a.onnx"))


def foreign_onnx_file(_: Stage) -> None:
    onnx = pytest.importorskip("onnx")
    write_onnx(Path("a.onnx"))
    model = onnx.load("a.onnx")
    del model.metadata_props[:]
    onnx.save(model, "a.onnx")


def a_file(_: Stage) -> None:
    Path("weights.bin").write_bytes(b"")


def official_file(_: Stage) -> None:
    from reference.names import official_tensors

    config = ModelConfig(backbone="resnet18", output_stride=32, feature_dim=8, memory=None)
    torch.save(official_tensors(Segmenter(config)), "original.pth")


def hub(stage: Stage) -> None:
    stage.enter_context(serving_hub()).answer(stage.patch, Path("hub").absolute())


def scored(_: Stage) -> None:
    assert Result("eval", "first", "--no-pictures").code == 0


def only_training(_: Stage) -> None:
    only("train")


def only_validation(_: Stage) -> None:
    only("val")


def only(split: str) -> None:
    """Replace the dataset by a pack of one split."""
    assert Result("data", "pack", "toy", "--splits", split).code == 0
    shutil.rmtree("home/datasets/toy")
    assert Result("data", "prepare", "toy", "--from", "toy.tar").code == 0


def small_demo(stage: Stage) -> None:
    """The demo's recipe with two iterations on ten images."""
    short = {"iterations": 2, "batch": 2}
    stage.patch.setattr("pinmem_core.training.fit.load_recipe", lambda n: load_recipe(n) | short)
    stage.patch.setattr(demo, "IMAGES_PER_DOMAIN", {"train": 2, "val": 1})


def no_runs(stage: Stage) -> None:
    small_demo(stage)
    fresh(stage)


def study(_: Stage) -> None:
    Path("study.toml").write_text("""
        title = "toy"
        recipe = "demo"
        seeds = [0]
        sources = ["toy:red"]
        targets = ["toy:blue"]
        baseline = "plain"
        [settings]
        iterations = 2
        batch = 2
        device = "cpu"
        "augmentation.crop" = 64
        "model.backbone" = "tiny"
        "model.feature_dim" = 16
        "model.memory.init_batches" = 1
        [variants]
        plain = { about = "all domains in one batch", settings = { method = "aggregate" } }
        paper = { about = "as published" }
    """)


def study_of_two_label_spaces(stage: Stage) -> None:
    study(stage)
    file = Path("study.toml")
    own = 'about = "as published", settings = { classes = "idd-level1" }'
    file.write_text(file.read_text().replace('about = "as published"', own))


def a_signal(stage: Stage) -> None:
    """The first command is asked to stop once it has saved a checkpoint."""
    asked: list[Stop] = []

    def heed(stop: Stop) -> bool:
        asked.append(stop)
        return stop is asked[0] and Path("a/checkpoint").exists()

    stage.patch.setattr(Stop, "__call__", heed)


def a_failure(stage: Stage) -> None:
    """The second iteration fails once."""
    whole, done = TrainStep.step, []

    def step(*arguments: Any) -> Any:
        done.append(arguments)
        if len(done) == 2:
            raise MachineError("the disk is full.")
        return whole(*arguments)

    stage.patch.setattr(TrainStep, "step", step)


def nothing(_: Stage) -> None:
    pass


class Row(NamedTuple):
    """A hint of a module, and how it is run.

    Attributes:
        module: Module that holds the hint.
        template: The hint's command, with `HOLE` for what the program fills in.
        command: Command that prints it.
        before: What is there before.
        fill: What the user fills in.
        code: Exit code of the hint's command.
        repairs: Whether `command` succeeds after the hint's command.
    """

    module: str
    template: str
    command: str
    before: Callable[[Stage], object] = nothing
    fill: Mapping[str, str] = MappingProxyType({})
    code: int = 0
    repairs: bool = False


INSPECT, SHARE, PREPARE = (f"pinmem_cli/data/{name}.py" for name in ("inspect", "share", "prepare"))
CLI = {
    name: f"pinmem_cli/{name}.py"
    for name in (
        *("app", "demo", "doctor", "eval", "export", "lists", "predict", "runs", "sweep", "train"),
    )
}
DATA = {
    name: f"pinmem_core/data/{name}.py"
    for name in (
        *(
            "access",
            "batches",
            "catalog",
            "download",
            "locate",
            "prepared",
            "rare_classes",
            "samples",
        ),
        *("statistics", "unpack", "verify"),
    )
}
HUB, PATHS = "pinmem_core/checkpoints/hub.py", "pinmem_core/paths.py"
RUN, TRAINER = "pinmem_core/training/run.py", "pinmem_core/training/trainer.py"
_PREPARE = f"pinmem data prepare {HOLE}"
_DEMO = "pinmem train --recipe demo"
_PUSH = f"pinmem export push {HOLE} user/name --dry-run"
_MY_CARD = {"CARD.yaml": "mine.yaml"}
_ARE_MINE = {**_MY_CARD, "FOLDER": "mine"}
_ONNX = "predict street.png --model a.onnx"

ROWS = [
    Row(INSPECT, f"pinmem data info {HOLE}", "data list"),
    Row(INSPECT, _PREPARE, "data info toy"),
    Row(INSPECT, f"pinmem data stats {HOLE}", "data verify toy"),
    Row(INSPECT, _PREPARE, "data verify toy", damaged_label, repairs=True),
    Row(INSPECT, f"pinmem data preview {HOLE}", "data stats toy"),
    Row(INSPECT, f"pinmem train --sources {HOLE} --dry-run", "data preview toy"),
    Row(PREPARE, f"pinmem data preview {HOLE}", "data prepare toy", fresh),
    Row(PREPARE, _PREPARE, "data download mine --card mine.yaml --accept-terms", web),
    Row(
        PREPARE,
        f"pinmem {HOLE}",
        "data prepare mine --card mine.yaml --accept-terms --dry-run",
        web,
    ),
    Row(
        PREPARE,
        f"pinmem {HOLE}",
        "data prepare mine --card mine.yaml --from mine --dry-run",
        own_card,
    ),
    Row(
        PREPARE,
        f"pinmem {HOLE}",
        "data prepare mine --card mine.yaml --from in/mine.zip --dry-run",
        own_archive,
    ),
    Row(PREPARE, _PREPARE, "data extract mine --card mine.yaml --from in/mine.zip", own_archive),
    Row(SHARE, _PREPARE, "data pack toy -o toy.tar"),
    Row(SHARE, _PREPARE, "data new-card mine -o mine.yaml", own_images),
    Row(DATA["prepared"], _PREPARE, "data stats toy", fresh, repairs=True),
    Row(DATA["prepared"], _PREPARE, "data stats toy", other_version, repairs=True),
    Row(DATA["prepared"], _PREPARE, "data stats toy", damaged_summary, repairs=True),
    Row(DATA["prepared"], "pinmem data list", f"{TRAIN} -o a", only_validation),
    Row(
        DATA["catalog"],
        "pinmem data new-card FOLDER",
        "train --sources mine --dry-run",
        own_images,
        {"FOLDER": "mine"},
    ),
    Row(
        DATA["access"],
        f"pinmem data download {HOLE} --accept-terms",
        "data download mine --card mine.yaml",
        web,
        _MY_CARD,
        repairs=True,
    ),
    Row(DATA["download"], _PREPARE, "data download toy"),
    Row(
        DATA["download"],
        f"pinmem data prepare {HOLE} --from FOLDER",
        "data download mine --card mine.yaml",
        own_card,
        _ARE_MINE,
    ),
    Row(
        DATA["download"],
        f"pinmem data prepare {HOLE} --from FOLDER",
        "data prepare mine --card mine.yaml",
        archive_by_hand,
        _ARE_MINE | {"FOLDER": "in"},
        repairs=True,
    ),
    Row(
        DATA["locate"],
        f"pinmem data prepare {HOLE} {HOLE}",
        "data prepare mine --card mine.yaml --from in",
        own_archive,
        _MY_CARD,
    ),
    Row(
        DATA["locate"],
        f"pinmem data prepare {HOLE} --from PACK",
        "data prepare mine",
        own_pack,
        {"PACK": "mine.tar"},
    ),
    Row(
        DATA["locate"],
        f"pinmem data prepare {HOLE} --from FOLDER",
        "data prepare mine",
        moved,
        {"FOLDER": "elsewhere"},
        repairs=True,
    ),
    Row(
        DATA["locate"],
        f"pinmem data download {HOLE}",
        "data prepare mine",
        moved_but_on_the_web,
        repairs=True,
    ),
    Row(
        DATA["unpack"],
        "pinmem data pack DATASET",
        "data prepare toy --from toy.tar",
        pack_without_end,
        {"DATASET": "toy --force"},
        repairs=True,
    ),
    Row(DATA["verify"], f"{_PREPARE} --hash-images", "data verify toy --deep", repairs=True),
    Row(DATA["statistics"], _PREPARE, "data stats toy", lost_records, repairs=True),
    Row(
        DATA["rare_classes"],
        _PREPARE,
        f"{TRAIN} --set augmentation.rare_classes=0.01",
        lost_records,
        repairs=True,
    ),
    Row(DATA["samples"], f"pinmem data verify {HOLE}", TRAIN, damaged_label, code=4),
    Row(
        "pinmem_core/doctor/contents.py", f"pinmem data verify {HOLE}", "doctor", lost_label, code=4
    ),
    Row(CLI["doctor"], "pinmem runs", "doctor", few_checks),
    Row(DATA["samples"], _PREPARE, TRAIN, damaged_label, repairs=True),
    Row(
        DATA["samples"],
        f"pinmem data prepare {HOLE} --from FOLDER",
        "data stats mine",
        moved,
        {"FOLDER": "elsewhere"},
        repairs=True,
    ),
    Row(DATA["batches"], f"pinmem data preview {HOLE}", TRAIN, unlabelled),
    Row(CLI["app"], _DEMO, "--help", no_runs),
    Row(CLI["runs"], _DEMO, "runs", no_runs),
    Row(CLI["runs"], f"pinmem eval {HOLE}{HOLE}", "runs"),
    Row(CLI["runs"], f"pinmem train --resume {HOLE}", "runs", stopped_half_way),
    Row(CLI["lists"], f"pinmem train --show {HOLE}", "train --list"),
    Row(
        CLI["lists"],
        f"pinmem train --recipe {HOLE} --dry-run",
        "train --show demo",
        small_demo,
    ),
    Row(
        CLI["lists"],
        f"{_DEMO} --set optim.lr=0.02 --dry-run",
        "train --settings",
        small_demo,
    ),
    Row(CLI["lists"], "pinmem train --backbones '*'", "train --backbones nothing-like-it"),
    Row(CLI["lists"], "pinmem train --list", "train --backbones resnet10"),
    Row(
        CLI["lists"],
        "pinmem train --sources demo --method aggregate --dry-run",
        "train --methods",
        small_demo,
    ),
    Row(CLI["train"], f"pinmem eval {HOLE}{HOLE}", f"{TRAIN} -o a"),
    Row(CLI["train"], f"pinmem {HOLE}", f"{TRAIN} --dry-run -o a"),
    Row("pinmem_core/training/setup.py", "pinmem data list", "train --recipe resnet18"),
    Row(
        "pinmem_core/training/run_folder.py",
        f"pinmem eval {HOLE}",
        "train --resume first",
    ),
    Row(TRAINER, f"pinmem train --resume {HOLE}", f"{TRAIN} -o a", a_signal),
    Row(RUN, f"pinmem train --resume {HOLE}", f"{TRAIN} -o a", a_failure),
    Row(CLI["sweep"], f"pinmem eval compare {HOLE}", "train --sweep study.toml", study),
    Row(CLI["sweep"], f"pinmem {HOLE}", "train --sweep study.toml --dry-run", study),
    Row(
        "pinmem_core/study/plan.py",
        "pinmem eval RUN --classes NAME",
        "train --sweep study.toml --dry-run",
        study_of_two_label_spaces,
        {"RUN": "first", "NAME": "idd-level1"},
    ),
    Row(PATHS, "pinmem runs", "train --resume absent"),
    Row(PATHS, "pinmem runs", "eval last", fresh),
    Row(HUB, "pinmem runs", "eval weights.bin", a_file),
    Row("pinmem_core/methods/distillation.py", "pinmem runs", f"{TRAIN} --method distillation"),
    Row(
        HUB,
        f"pinmem predict IMAGE --model {HOLE}",
        "eval a.onnx",
        an_onnx_file,
        {"IMAGE": "street.png"},
    ),
    Row(
        HUB,
        "pinmem export onnx RUN",
        _ONNX,
        fill={"RUN": "first -o a.onnx"},
        repairs=True,
    ),
    Row(
        "pinmem_core/inference/onnx_runner.py",
        "pinmem export onnx RUN",
        _ONNX,
        foreign_onnx_file,
        {"RUN": "first"},
    ),
    Row(
        CLI["eval"],
        f"pinmem predict {HOLE} -o mask.png --model {HOLE}",
        "eval first --no-pictures",
    ),
    Row(
        CLI["eval"],
        f"pinmem predict {HOLE} -o mask.png --model {HOLE}",
        "eval first --no-pictures",
        only_training,
    ),
    Row(CLI["eval"], "pinmem runs", "eval compare first first", scored),
    Row(
        "pinmem_core/evaluation/compare.py",
        f"pinmem eval {HOLE}",
        "eval compare first first",
        repairs=True,
    ),
    Row(CLI["predict"], f"pinmem eval {HOLE}", "predict street.png --model first"),
    Row(CLI["predict"], "pinmem predict --help", _ONNX, an_onnx_file),
    Row(CLI["predict"], _DEMO, "predict street.png", small_demo),
    Row(
        "pinmem_core/inference/sources.py",
        "pinmem predict - < IMAGE",
        "predict /dev/null",
        fill={"IMAGE": "street.png"},
    ),
    Row(CLI["export"], f"pinmem export {HOLE} --help", "export first --to onnx"),
    Row(CLI["export"], _PUSH, "export weights first -o w"),
    Row(CLI["export"], _PUSH, "export torch first"),
    Row(CLI["export"], f"pinmem export push {HOLE}", "export push first ada/a --dry-run", hub),
    Row(CLI["export"], f"pinmem eval {HOLE}", "export push first ada/a", hub),
    Row(
        CLI["export"],
        f"pinmem export onnx {HOLE}",
        "export convert original.pth -o c",
        official_file,
    ),
]
