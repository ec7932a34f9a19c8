"""A network of any number of classes: trained, saved, resumed, scored, predicted, exported."""

import json

import numpy as np
import pytest
from conftest import Result, small_config
from test_run_resuming import StopAfter

from pinmem_core.config import TrainConfig
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.prepare import prepare, prepare_synthetic
from pinmem_core.errors import DataError, StoppedRunError
from pinmem_core.evaluation import evaluate_run
from pinmem_core.export.files import export_graph
from pinmem_core.images import write_png
from pinmem_core.inference import load
from pinmem_core.label_space import CITYSCAPES, LabelSpace, label_space
from pinmem_core.models import load_checkpoint
from pinmem_core.study.plan import plan_study
from pinmem_core.study.sweep import read_sweep
from pinmem_core.training import resume, train
from pinmem_core.training.dry_run import plan


def _slow(count):
    return pytest.param(count, marks=pytest.mark.slow)


def space_of(count):
    return LabelSpace(name=f"own-{count}", classes=[f"thing {n}" for n in range(count)])


def prepare_own(folder, count, maps=None):
    """Prepare a dataset 'own' of `count` classes: noise that is brighter for later classes."""
    rng = np.random.default_rng(0)
    for number in range(10):
        label = rng.integers(0, count, (4, 6)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        image = np.repeat(label[..., None], 3, axis=2)
        write_png(folder / "images" / f"{number}.png", image)
        write_png(folder / "labels" / f"{number}.png", label)
    layout = {"image": "images/{n}.png", "label": "labels/{n}.png", "label_maps": ["trainids"]}
    card = {
        "name": "own",
        "title": "own classes",
        "label_space": {**space_of(count).model_dump(), "maps": maps or {}},
        "layouts": [{"name": "folders", "id": "{n}", **layout}],
    }
    prepare(DatasetCard.model_validate(card), [folder])


@pytest.mark.parametrize("count", [_slow(2), 7, _slow(60), _slow(254)])
def test_a_network_of_any_number_of_classes(tmp_path, count):
    prepare_own(tmp_path / "raw", count)
    config = small_config(sources=["own"], iterations=2)
    result = train(config, tmp_path / "run")
    segmenter, saved = load_checkpoint(result.checkpoint)
    assert segmenter.label_space == space_of(count) and len(segmenter.memory.slots) == count
    assert saved["training"]["model"]["num_classes"] == count
    assert list(result.scores["source"]["own@val"].iou) == list(space_of(count).names)
    report = evaluate_run(str(result.run), ["own@val"], device="cpu")
    assert report.domains["own@val"].space == space_of(count)
    prediction = load(str(result.run), device="cpu").predict(np.zeros((64, 96, 3), np.uint8))
    assert prediction.shape == (64, 96) and prediction.max() < count


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 7, 60, 254])
def test_an_onnx_file_names_its_own_classes(tmp_path, count):
    prepare_own(tmp_path / "raw", count)
    run = train(small_config(sources=["own"], iterations=1), tmp_path / "run").run
    (file,) = export_graph(str(run), "onnx", tmp_path / "out", size=(64, 96), argmax=True)
    described = json.loads((tmp_path / "out" / "model.onnx.json").read_text())
    names = json.dumps(described)
    assert all(name in names for name in space_of(count).names) and file.bytes > 0


def test_a_run_takes_the_classes_that_are_named(tmp_path):
    events = []
    run = tmp_path / "run"
    result = train(small_config(classes="idd-level1", iterations=1), run, on_event=events.append)
    assert "classes: idd-level1 (7)" in [getattr(event, "message", "") for event in events]
    assert load_checkpoint(result.checkpoint)[0].label_space == label_space("idd-level1")
    assert {len(of.iou) for of in result.scores["source"].values()} == {7}
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["classes"] == "idd-level1"
    assert TrainConfig.model_validate(recorded).model.label_space == label_space("idd-level1")
    scores = json.loads((run / "scores.json").read_text())
    assert {of["label_space"] for of in scores["source"].values()} == {"idd-level1"}


@pytest.mark.slow
def test_a_stopped_run_of_other_classes_is_resumed_bit_for_bit(tmp_path):
    config = small_config(classes="idd-level1", checkpoint__every=1)
    whole = train(config, tmp_path / "whole")
    stop = StopAfter(2)
    with pytest.raises(StoppedRunError):
        train(config, tmp_path / "run", on_event=stop.hear, stop=stop)
    resumed = resume(tmp_path / "run")
    weights = [(of.checkpoint / "model.safetensors").read_bytes() for of in (whole, resumed)]
    assert weights[0] == weights[1] and resumed.scores == whole.scores


@pytest.mark.slow
def test_the_plan_of_a_run_shows_its_classes(tmp_path):
    prepare_own(tmp_path / "raw", 7)
    events = []
    planned = plan(small_config(sources=["own"]), on_event=events.append)
    assert planned.config.model.label_space == space_of(7)
    said = [getattr(event, "message", "") for event in events]
    assert "classes: own-7 (7), those of own" in said


@pytest.mark.slow
def test_without_other_classes_nothing_is_said(tmp_path):
    prepare_synthetic(["toy"])
    events = []
    planned = plan(small_config(), on_event=events.append)
    assert planned.config.model.label_space == CITYSCAPES
    assert not any("classes:" in getattr(event, "message", "") for event in events)
    assert "label_space" not in planned.config.model_dump()["model"]


def test_a_run_is_not_resumed_with_other_classes_for_those_of_a_source(tmp_path):
    before, after = (
        {"cityscapes-19": {"road": "thing 0", name: "thing 1"}} for name in ("sky", "car")
    )
    prepare_own(tmp_path / "raw", 3, before)
    config = small_config(
        sources=["own"], classes="cityscapes-19", iterations=4, method="aggregate"
    )
    stop = StopAfter(2)
    with pytest.raises(StoppedRunError):
        train(config, tmp_path / "run", on_event=stop.hear, stop=stop)
    samples = tmp_path / "run" / "samples.json"
    said = json.loads(samples.read_text())
    assert said["classes"] == {"own": {"thing 0": "road", "thing 1": "sky", "thing 2": None}}
    prepare_own(tmp_path / "raw", 3, after)
    with pytest.raises(DataError, match="cards assign other classes") as error:
        resume(tmp_path / "run")
    assert "cards as before" in error.value.hint
    prepare_own(tmp_path / "raw", 3, before)
    del said["classes"]  # of an older version
    samples.write_text(json.dumps(said))
    assert resume(tmp_path / "run").iterations == 4


@pytest.mark.slow
def test_the_command_takes_classes(tmp_path):
    prepare_synthetic(["toy"])
    options = ["--recipe", "demo", "--sources", "toy", "--device", "cpu", "--crop", "32"]
    tiny = ["--set", "model.backbone=tiny", "--set", "model.memory.init_batches=0", "--json"]
    shown = Result("train", *options, *tiny, "--classes", "idd-level1", "--dry-run")
    assert shown.code == 0 and shown.json["config"]["model"]["num_classes"] == 7
    refused = Result("train", *options, *tiny, "--classes", "camvid-11", "--dry-run")
    assert refused.code == 2 and "cannot be mapped to the classes 'camvid-11'" in refused.err


def test_a_study_in_classes_that_no_other_dataset_has_is_planned(tmp_path):
    prepare_own(tmp_path / "raw", 7)
    (tmp_path / "study.toml").write_text(
        'title = "own"\nrecipe = "demo"\nseeds = [0]\nsources = ["own"]\ntargets = ["own@all"]\n'
        'baseline = "plain"\n[settings]\nallow_seen_targets = true\n"augmentation.crop" = 64\n'
        '[variants.plain]\nabout = "plain"\nsettings = { method = "aggregate" }\n'
    )
    (plan,) = plan_study(read_sweep(tmp_path / "study.toml"), only_long=True).values()
    assert plan.images == 8 and plan.scored == 12
