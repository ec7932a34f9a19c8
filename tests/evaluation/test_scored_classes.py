"""Labels and networks of different classes are scored in classes that both have."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import Result, camvid_folder, small_config

from pinmem_core.checkpoints.hub import STARTER
from pinmem_core.checkpoints.model_card import ModelMetrics, model_card
from pinmem_core.config import ModelConfig
from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare, prepare_synthetic
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import evaluate_run
from pinmem_core.evaluation.compare import SavedReport, compare
from pinmem_core.evaluation.scored_classes import ScoredClasses
from pinmem_core.images import write_png
from pinmem_core.inference.predictor import Prediction
from pinmem_core.label_space import CITYSCAPES, LabelSpace, label_space
from pinmem_core.models import Segmenter, save_checkpoint
from pinmem_core.training import train

LEVEL1, CAMVID = label_space("idd-level1"), label_space("camvid-11")
OWN = LabelSpace(name="own", classes=["mud", "grass"])
OTHER = LabelSpace(name="own", classes=["mud", "water"])


def idd_lite(folder):
    """Write and prepare an IDD-Lite of three random images."""
    rng = np.random.default_rng(0)
    for split, drive in (("train", "1"), ("train", "2"), ("val", "3")):
        image = folder / "leftImg8bit" / split / drive / "frame1_image.png"
        write_png(image, rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        label = rng.integers(0, 7, (4, 6), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        write_png(folder / "gtFine" / split / drive / "frame1_label.png", label)
    prepare(get_card("idd-lite"), [folder])


def checkpoint(folder, space=CITYSCAPES):
    torch.manual_seed(0)
    config = ModelConfig(backbone="tiny", feature_dim=16, label_space=space)
    save_checkpoint(Segmenter(config), folder, {"training": {"sources": ["toy:red"]}})
    return str(folder)


@pytest.mark.parametrize(
    ("network", "labels", "name", "expected"),
    [
        (CITYSCAPES, CITYSCAPES, None, "cityscapes-19"),
        (CITYSCAPES, CAMVID, None, "cityscapes-19"),
        (LEVEL1, CITYSCAPES, None, "idd-level1"),
        (CITYSCAPES, LEVEL1, None, "idd-level1"),
        (label_space("cityscapes-16"), CITYSCAPES, None, "cityscapes-16"),
        (CITYSCAPES, CITYSCAPES, "idd-level1", "idd-level1"),
        (CITYSCAPES, CITYSCAPES, "cityscapes-13", "cityscapes-13"),
        (OWN, OWN, "own", "own"),
    ],
)
def test_scores_are_in_the_finest_classes_that_both_have(network, labels, name, expected):
    scored = ScoredClasses.of(network, labels, name)
    assert scored.space.name == expected
    assert (scored.table is None) == scored.space.same_as(network)


def test_a_known_space_is_found_for_two_that_do_not_map_to_each_other():
    two = LabelSpace(name="two", classes=["a", "b"], maps={"idd-level1": {"sky": ["a", "b"]}})
    assert ScoredClasses.of(CITYSCAPES, two).space == LEVEL1


@pytest.mark.parametrize(
    ("network", "labels", "name", "said", "hint"),
    [
        (OWN, CITYSCAPES, None, "'cityscapes-19' cannot be mapped to the classes 'own'", "card"),
        (LEVEL1, CITYSCAPES, "cityscapes-19", "'non-drivable' is several", "--classes idd-level1"),
        (CITYSCAPES, LEVEL1, "cityscapes-19", "'non-drivable' is several", "--classes idd-level1"),
        (CITYSCAPES, CITYSCAPES, "idd", "unknown label space 'idd'", "idd-level1"),
        (OWN, OTHER, None, "two sets of different classes have the name 'own'", "card"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(network, labels, name, said, hint):
    with pytest.raises(ConfigError, match=said) as error:
        ScoredClasses.of(network, labels, name)
    assert hint in error.value.hint and "\n" not in error.value.message


def test_a_predicted_class_without_counterpart_is_never_right():
    scored = ScoredClasses.of(CITYSCAPES, CITYSCAPES, "cityscapes-13")
    wall = CITYSCAPES.train_ids["wall"]
    assert scored.predicted(np.array([wall, 255], np.uint8)).tolist() == [255, 255]


def test_confidence_is_the_sum_over_the_classes_of_a_group():
    scored = ScoredClasses.of(CITYSCAPES, LEVEL1)
    shares = np.zeros((19, 1, 3), np.float16)
    for name, pixel, share in (
        ("car", 0, 0.5), ("bus", 0, 0.25), ("sky", 0, 0.25),
        ("road", 1, 0.75), ("sidewalk", 1, 0.25),
        ("terrain", 2, 0.5), ("sidewalk", 2, 0.5),
    ):  # fmt: skip
        shares[CITYSCAPES.train_ids[name], 0, pixel] = share
    best = shares.argmax(axis=0).astype(np.uint8)
    prediction = Prediction(best, shares.max(axis=0).astype(np.float32), probabilities=shares)
    assert scored.confidence(prediction).tolist() == [[0.75, 0.75, 1.0]]
    names = [LEVEL1.names[k] for k in scored.predicted(best)[0]]
    assert names == ["vehicle", "drivable", "non-drivable"]


def test_a_report_of_targets_with_different_classes_says_which(tmp_path):
    idd_lite(tmp_path / "raw")
    prepare_synthetic(["toy"])
    model = checkpoint(tmp_path / "c")
    targets = ["toy:red", "toy:blue", "idd-lite"]
    folder = tmp_path / "report"
    report = evaluate_run(model, targets, device="cpu", output=folder, pictures=False)
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    spaces = {name: target["label_space"] for name, target in data["targets"].items()}
    assert spaces == {"toy:red": "cityscapes-19", "toy:blue": "cityscapes-19"} | {
        "idd-lite": "idd-level1"
    }
    lite = data["targets"]["idd-lite"]
    assert lite["classes"] == list(lite["iou"]) == list(LEVEL1.names)
    assert set(lite["miou_by_set"]) == {"occurring"}
    assert set(data["targets"]["toy:red"]["miou_by_set"]) == {"occurring", "19", "16", "13"}
    assert not any(group == "seen" for group in data["average_miou_by_set"])
    assert [space.name for space in report.parts] == ["cityscapes-19", "idd-level1"]
    page = (tmp_path / "report" / "report.html").read_text()
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    assert "by the classes of idd-level1" in text and "living thing" in text
    assert "or different classes" in text
    card = model_card(json.loads((tmp_path / "c" / "config.json").read_text()), _metrics(data))
    assert "| classes | cityscapes-19 | cityscapes-19 | idd-level1 |" in card.replace("\\", "")
    saved = SavedReport.read(tmp_path / "report" / "report.json")
    again = compare([saved, saved])
    assert {row[0].difference for row in again.targets.values()} == {0}
    assert {row[0].label_space for row in again.targets.values()} == {*spaces.values()}


def _metrics(data):
    return ModelMetrics.of_report(data)


def test_scores_of_one_label_space_look_as_before(tmp_path):
    prepare_synthetic(["toy"])
    model = checkpoint(tmp_path / "c")
    result = Result(
        "eval", model, "--targets", "toy:red,toy:blue", "--device", "cpu", "--no-pictures"
    )
    assert result.code == 0 and "mIoU-16" in result.out and "cityscapes" not in result.out
    assert "idd" not in result.out


def test_classes_can_be_grouped_on_request(tmp_path):
    prepare_synthetic(["toy"])
    model, out = checkpoint(tmp_path / "c"), tmp_path / "grouped"
    options = "--targets", "toy:red", "--no-pictures", "--device", "cpu", "--classes", "idd-level1"
    result = Result("eval", model, *options, "-o", str(out))
    assert result.code == 0 and "IoU %, idd-level1" in result.out
    assert "living thing" in result.out and "mIoU-19" not in result.out
    whole = tmp_path / "whole"
    assert Result("eval", model, *options[:5], "-o", str(whole)).code == 0
    refused = Result("eval", "compare", str(whole / "report.json"), str(out / "report.json"))
    assert refused.code == 2 and "set of classes" in refused.err
    assert "Traceback" not in refused.err
    unknown = Result("eval", model, *options[:6], "idd-level2")
    assert unknown.code == 2 and "unknown label space" in unknown.err


@pytest.mark.parametrize("space", [OWN, LEVEL1], ids=["own", "level1"])
def test_a_target_that_cannot_be_scored_ends_in_one_sentence(tmp_path, space):
    prepare_synthetic(["toy"])
    model = checkpoint(tmp_path / "c", space)
    if space is OWN:
        result = Result("eval", model, "--targets", "toy:red", "--device", "cpu")
        assert result.code == 2 and "cannot be mapped to the classes 'own'" in result.err
    else:
        report = evaluate_run(model, ["toy:red"], device="cpu")
        assert report.domains["toy:red"].space == LEVEL1


def test_camvid_and_idd_lite_train_together_and_are_scored_by_the_same_classes(tmp_path):
    idd_lite(tmp_path / "idd")
    folder = camvid_folder(tmp_path / "camvid", {"0001TP": 3, "0016E5": 5}, size=(96, 64))
    prepare(get_card("camvid"), [folder])
    events = []
    config = small_config(
        sources=["camvid:0016E5", "idd-lite"], targets=["camvid:0001TP"], iterations=1,
        augmentation__crop=32,
    )  # fmt: skip
    result = train(config, tmp_path / "run", on_event=events.append)
    said = [event.message for event in events if hasattr(event, "message")]
    assert "classes: idd-level1 (7), common to camvid and idd-lite" in said
    scores = result.scores["source"] | result.scores["target"]
    assert set(scores) == {"camvid:0016E5@val", "idd-lite@val", "camvid:0001TP"}
    assert {tuple(of.iou) for of in scores.values()} == {LEVEL1.names}
    card = (result.checkpoint / "README.md").read_text()
    assert "street" not in card.partition("## Licence")[0].partition("predict")[0]
    assert "living thing" in card and "of Cityscapes" not in card


@pytest.mark.slow
def test_the_pictures_of_a_report_show_the_scored_classes(tmp_path):
    idd_lite(tmp_path / "raw")
    model, folder = checkpoint(tmp_path / "c"), tmp_path / "report"
    evaluate_run(model, ["idd-lite"], device="cpu", output=folder)
    page = (folder / "report.html").read_text()
    assert "slot that each pixel reads most" in page and "Cosine similarity" in page
    assert "projected by PCA" not in page  # nothing is written by labels of other classes


@pytest.mark.slow
def test_the_starter_is_scored_on_seven_classes(tmp_path):
    idd_lite(tmp_path / "raw")
    report = evaluate_run(STARTER, ["idd-lite"], device="cpu")
    assert report.domains["idd-lite"].space == LEVEL1
    assert report.scores["idd-lite"].pixels == 64 * 96
