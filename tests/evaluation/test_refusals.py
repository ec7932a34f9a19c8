"""What cannot be scored is refused or named, and takes no scores of others with it."""

import hashlib
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import Result

import pinmem_core as pm
from pinmem_core.config import ModelConfig
from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.prepared import Selection, select
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation import TrainedOn, evaluate_run
from pinmem_core.evaluation.compare import SavedReport, compare, find_report
from pinmem_core.evaluation.report import new_report_folder
from pinmem_core.events import Notice, Progress
from pinmem_core.images import write_png
from pinmem_core.inference import Predictor
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.models import Segmenter, save_checkpoint

CARD = """
name: land
title: land
homepage: ""
citation: ""
terms: ""
layouts:
  - {name: all, image: "{domain}/{n}.jpg", label: "{domain}/{n}.png", id: "{domain}-{n}",
     domain: "{domain}", encoding: ids, label_maps: [own]}
evaluate: all
label_space: {classes: [sand, rock, sky], maps: {cityscapes-19: [sky]}}
label_maps:
  own: {values: {0: sand, 1: rock, 2: sky}, classes: {sand: 0, rock: 1, sky: 2}}
"""


def land(folder, card=CARD):
    """Prepare a domain with a class of Cityscapes and one without."""
    rng = np.random.default_rng(0)
    for domain, classes in (("coast", [0, 2]), ("desert", [0, 1])):
        write_png(folder / domain / "a.png", rng.choice(classes, (64, 96)).astype(np.uint8))
        write_png(folder / domain / "a.jpg", rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
    (folder / "card.yaml").write_text(card)
    pm.prepare(yaml.safe_load(card)["name"], folder, card=folder / "card.yaml")


@pytest.mark.parametrize("finished", [0, 1])
def test_ctrl_c_keeps_the_scores_of_the_finished_targets(tmp_path, finished):
    prepare_synthetic(["toy"])
    model(tmp_path / "model")
    reports = []

    def interrupt(event):
        if isinstance(event, Progress) and event.task.startswith("scoring"):
            reports.append(event.task)
            if len(dict.fromkeys(reports)) > finished:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        evaluate_run(
            str(tmp_path / "model"),
            ["toy:red", "toy:blue"],
            device="cpu",
            output=tmp_path / "report",
            on_event=interrupt,
        )
    assert (tmp_path / "report").exists() == bool(finished)
    if finished:
        kept = json.loads((tmp_path / "report" / "report.json").read_text())
        assert [*kept["targets"]] == ["toy:red"]
        assert f"other targets are in {tmp_path / 'report' / 'report.html'}" in str(stop.value)


def model(folder, space=CITYSCAPES):
    torch.manual_seed(0)
    config = ModelConfig(backbone="tiny", feature_dim=16, label_space=space)
    seen = TrainedOn.of_samples(["toy:red"], [["red_00"]])
    about = {"training": {"sources": ["toy:red"]}, "trained_on": seen.as_json()}
    save_checkpoint(Segmenter(config), folder, about)
    return folder


def test_a_target_that_fails_leaves_the_scores_of_the_others(tmp_path):
    prepare_synthetic(["toy"])
    torn = select(Selection.parse("toy:blue"), "val")[0]
    write_png(torn.label, np.zeros((3, 5), np.uint8))
    out = tmp_path / "report"
    options = "--targets", "toy:blue,toy:red", "--device", "cpu", "-o", str(out)
    failed = Result("eval", str(model(tmp_path / "model")), *options)
    assert failed.code == 3 and f"{torn.label} is 5x3" in failed.err
    assert f"The scores of the other targets are in {out / 'report.html'}" in failed.err
    assert [*json.loads((out / "report.json").read_text())["targets"]] == ["toy:red"]
    alone = tmp_path / "alone"
    with pytest.raises(DataError) as error:
        evaluate_run(str(tmp_path / "model"), ["toy:blue"], device="cpu", output=alone)
    assert "other targets" not in error.value.hint and not alone.exists()


def test_labels_without_a_scored_class_are_called_so(tmp_path):
    land(tmp_path / "land")
    network = str(model(tmp_path / "model"))
    assert evaluate_run(network, ["land:coast"], device="cpu").scores["land:coast"].pixels > 0
    with pytest.raises(DataError, match="with one of the classes 'cityscapes-19'") as error:
        evaluate_run(network, ["land:desert"], device="cpu")
    assert "maps: cityscapes-19" in error.value.hint and "'@val'" not in error.value.hint


def test_classes_that_the_network_lacks_are_named(tmp_path):
    prepare_synthetic(["toy"])
    said = []
    network = model(tmp_path / "two", LabelSpace(name="two", classes=["road", "sky"]))
    report = evaluate_run(str(network), ["toy:red"], device="cpu", on_event=said.append)
    occurring = [k for k, iou in report.scores["toy:red"].iou.items() if iou is not None]
    missing = [name for name in occurring if name not in ("road", "sky")]
    (warning,) = (
        e.message
        for e in said
        if isinstance(e, Notice) and e.warning and "has no class" in e.message
    )
    assert f"for {', '.join(missing[:5])} and {len(missing) - 5} others of toy:red" in warning


def test_an_unknown_domain_of_own_data_is_called_so(tmp_path):
    land(tmp_path / "land")
    with pytest.raises(ConfigError, match="unknown domain of land 'dessert'") as error:
        evaluate_run(str(model(tmp_path / "model")), ["land:dessert"], device="cpu")
    assert "Did you mean 'desert'? Known: coast, desert." in error.value.hint


def test_targets_may_be_one_text(tmp_path):
    prepare_synthetic(["toy"])
    report = pm.evaluate(model(tmp_path / "model"), "toy:red, toy:blue", device="cpu")
    assert [*report.domains] == ["toy:red", "toy:blue"]


def test_scores_that_are_not_finite_are_no_prediction(tmp_path):
    network = Segmenter(ModelConfig(backbone="tiny", feature_dim=16))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1e20 if weight.ndim > 1 else 1)
    black = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(DataError, match="not finite"):
        Predictor(network, device="cpu").predict(black)
    save_checkpoint(network, tmp_path / "model", {})
    for name in "ab":
        write_png(tmp_path / "in" / f"{name}.png", black)
    options = "-o", str(tmp_path / "out"), "--model", str(tmp_path / "model"), "--device", "cpu"
    failed = Result("predict", str(tmp_path / "in"), *options)
    assert failed.code == 3 and failed.err.count("not finite") == 2
    assert not [*(tmp_path / "out").glob("*.png")]


def test_reports_of_the_same_second_have_folders_of_their_own(tmp_path):
    folders = [new_report_folder(tmp_path, "fast") for _ in range(4)]
    assert len({*folders}) == 4 and all(not any(folder.iterdir()) for folder in folders)
    network = model(tmp_path / "model")
    assert Result("eval", str(network), "--targets", "nowhere").code == 2
    assert not [*(network / "eval").iterdir()]


def test_one_set_of_classes_in_other_colours_has_one_mean(tmp_path):
    card = CARD.replace("name: all", "name: a").replace(
        "classes: [sand", "name: soil, classes: [sand"
    )
    other = card.replace("[sand, rock, sky]", "{sand: , rock: , sky: [1, 2, 3]}")
    for name, text in (("first", card), ("second", other)):
        land(tmp_path / name, text.replace("land", name))
    space = LabelSpace(name="less", classes=["sand", "rock"])
    network = str(model(tmp_path / "model", space))
    report = evaluate_run(network, ["first", "second"], device="cpu", classes="soil")
    assert [len(part.domains) for part in report.parts.values()] == [2]
    ((group, means),) = report.averages.items()
    mious = [of.miou for of in report.scores.values()]
    assert group == "unseen" and means["occurring"] == pytest.approx(sum(mious) / 2)


def test_a_network_is_scored_by_maps_that_its_card_got_after_the_training(tmp_path):
    prepare_synthetic(["toy"])
    land(tmp_path / "land", CARD.replace(", maps: {cityscapes-19: [sky]}", ""))
    network = str(model(tmp_path / "model", get_card("land").space))
    with pytest.raises(ConfigError, match=r"^toy:red: .* mapped to the classes 'land'") as error:
        evaluate_run(network, ["land:coast", "toy:red"], device="cpu")
    assert "'land' in its card, 'label_space: maps: cityscapes-19: ...'" in error.value.hint
    land(tmp_path / "land")
    report = evaluate_run(network, ["toy:red", "land:coast"], device="cpu")
    spaces = [domain.space.name for domain in report.domains.values()]
    assert spaces == ["cityscapes-19", "land"]


def test_a_report_needs_images_each_of_them_once_and_a_comparison_two_reports(tmp_path):
    prepare_synthetic(["toy"])
    evaluate_run(
        str(model(tmp_path / "model")), ["toy:red"], device="cpu", output=tmp_path / "whole"
    )
    whole = tmp_path / "whole" / "report.json"
    with pytest.raises(ConfigError, match="needs two reports"):
        compare([SavedReport.read(whole)])
    for said, change in {
        "targets: Dictionary should have at least 1": lambda d: d["targets"].clear(),
        "per_image: List should have at least 1": lambda d: _images(d).clear(),
        "an image occurs twice": lambda d: _images(d).append(_images(d)[0]),
    }.items():
        data = json.loads(whole.read_text())
        change(data)
        (tmp_path / "report.json").write_text(json.dumps(data))
        with pytest.raises(DataError, match=said):
            SavedReport.read(tmp_path / "report.json")


def _images(data):
    return data["targets"]["toy:red"]["per_image"]


def test_a_report_on_other_weights_is_not_that_of_a_run(tmp_path):
    """A run that was trained on, and a model whose report an earlier version left behind."""
    (tmp_path / "checkpoint").mkdir()
    weights = tmp_path / "checkpoint" / "model.safetensors"
    weights.write_bytes(b"first")
    file = tmp_path / "eval" / "one" / "report.json"
    file.parent.mkdir(parents=True)
    digest = hashlib.sha256(b"first").hexdigest()
    file.write_text(json.dumps({"checkpoint": {"weights_sha256": digest}}))
    assert find_report(str(tmp_path)) == file
    weights.write_bytes(b"second")
    with pytest.raises(DataError, match="no report on its present weights, only on") as error:
        find_report(str(tmp_path))
    assert f"pinmem eval {tmp_path}" in error.value.hint
    assert find_report(str(file)) == file
