"""Seen is not unseen: which domains a network was trained on, in all that shows its scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import Result, small_config

from pinmem_core.checkpoints.model_card import ModelMetrics
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import TrainedOn, evaluate_run, load_target, shared_images
from pinmem_core.events import Notice
from pinmem_core.images import write_png
from pinmem_core.models import load_checkpoint, save_checkpoint
from pinmem_core.training import resume, train

RED = [f"red_{number:02}" for number in range(10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on toy:red that names a seen target, too."""
    folder = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINMEM_HOME", str(folder / "home"))
        config = small_config(
            iterations=1, sources=["toy:red"], targets=["toy:blue", "toy:red", "toy:red@all"]
        )
        yield train(config, folder / "run").run


def _toy():
    prepare_synthetic(["toy"])


def _checkpoint(run, folder, **changes):
    """Copy a run's checkpoint to a folder of its own, with other entries in its config."""
    segmenter, _ = load_checkpoint(run / "checkpoint")
    about = {k: v for k, v in {**segmenter.about, **changes}.items() if v is not None}
    save_checkpoint(segmenter, folder, about)
    return folder


def test_a_domain_is_seen_by_the_ids_of_its_images_not_by_its_name():
    _toy()
    ids = TrainedOn.of_samples(["toy:mostly"], [["blue_00"]])
    assert load_target("toy:blue", ids).seen is True
    assert load_target("toy:red", ids).seen is False
    assert load_target("toy", ids).seen is True  # among others, blue ones
    again = TrainedOn.of_checkpoint({"trained_on": json.loads(json.dumps(ids.as_json()))})
    assert again.digests == ids.digests


def test_how_many_images_were_trained_on_is_counted():
    _toy()
    trained_on = TrainedOn.of_samples(["toy:red"], [RED[:8]])
    assert load_target("toy:red", trained_on).trained_images == 0
    assert load_target("toy:red@all", trained_on).trained_images == 8
    assert load_target("toy@all", trained_on).trained_images == 8
    assert load_target("toy:red@train", TrainedOn(("toy:red",))).trained_images is None


def test_a_mean_over_targets_that_share_images_is_announced():
    _toy()
    names = ["toy:red", "toy@val", "toy:red@train", "toy:blue@train"]
    assert shared_images([load_target(name) for name in names]) == [
        "toy@val and toy:red share 2 images, which a mean over both counts twice",
        "toy:red@train and toy:red share 8 images, which a mean over both counts twice",
    ]


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        [],
        {"toy": 3},
        {"toy": {"images": 1, "ids": "?"}},
        {"toy": {"images": 2, "ids": "AAAAAAAA"}},
        {"toy": {"images": "one", "ids": "AAAAAAAA"}},
    ],
)
def test_without_a_whole_record_a_domain_is_unknown_never_unseen(record):
    _toy()
    config = {"training": {"sources": ["toy:red"]}, "trained_on": record}
    assert load_target("toy:blue", TrainedOn.of_checkpoint(config)).seen is None
    assert load_target("toy:red", TrainedOn.of_checkpoint(config)).seen is True
    assert load_target("toy:blue", TrainedOn.of_checkpoint({})).seen is None
    assert load_target("toy:blue").seen is None


def test_a_source_that_this_machine_has_no_card_of_is_no_obstacle():
    _toy()
    trained_on = TrainedOn.of_samples(["my-city:day", "toy:red@all"], [["a"], RED])
    assert load_target("toy:blue", trained_on).seen is False


@pytest.mark.parametrize("samples", [{}, {"train": []}, {"train": {"toy:red": 3}}, {"train": {}}])
def test_a_damaged_list_of_samples_tells_nothing(samples):
    _toy()
    config = {"training": {"sources": ["toy:red"]}}
    assert load_target("toy:blue", TrainedOn.of_checkpoint(config, samples)).seen is not False


def test_an_unseen_domain_is_scored_whole_where_no_split_was_published(home):
    _toy()
    whole = load_target("toy:blue", TrainedOn.of_samples(["toy:red"], [RED]))
    assert (whole.split, len(whole.samples)) == ("all", 10)
    seen = load_target("toy:red", TrainedOn.of_samples(["toy:red"], [RED[:8]]))
    assert (seen.split, len(seen.samples)) == ("val", 2)
    assert load_target("toy:blue@val").split == "val"


CARD = """
name: mine
title: My streets
layouts:
  - name: folders
    image: "{split:train|val}/{drive}_{frame}.png"
    label: "labels/{drive}_{frame}.png"
    label_maps: trainids
    id: "{drive}_{frame}"
    domain: "{drive}"
    split: "{split}"
domains: {day: by day, dusk: at dusk}
"""


@pytest.mark.parametrize(
    ("has_split", "evaluate", "day", "dusk"),
    [
        (True, "", ("val", 1), ("all", 5)),  # no frame of the dusk is in the folder "val"
        (True, "evaluate: all", ("all", 5), ("all", 5)),
        (False, "", ("all", 5), ("all", 5)),
        (False, "evaluate: val", ("val", 1), ("val", 1)),
    ],
)
def test_of_an_own_card_an_unseen_domain_is_scored_by_the_split_it_comes_with(
    tmp_path, has_split, evaluate, day, dusk
):
    for drive in ("day", "dusk"):
        for number in range(5):
            split = "val" if drive == "day" and number == 4 else "train"
            flat = np.arange(64, dtype=np.uint8).reshape(8, 8) // 16 + number
            write_png(tmp_path / split / f"{drive}_{number}.png", np.stack([flat] * 3, axis=2))
            write_png(tmp_path / "labels" / f"{drive}_{number}.png", flat)
    text = CARD if has_split else CARD.replace('    split: "{split}"\n', "")
    (tmp_path / "mine.yaml").write_text(text + evaluate)
    options = ("--card", str(tmp_path / "mine.yaml"), "--from", str(tmp_path))
    prepared = Result("data", "prepare", "mine", *options)
    assert prepared.code == 0, prepared.err
    for domain, scored in (("day", day), ("dusk", dusk)):
        target = load_target(f"mine:{domain}")
        assert (target.split, len(target.samples)) == scored


def test_training_says_of_each_domain_whether_it_is_seen(run, tmp_path):
    scores = json.loads((run / "scores.json").read_text())
    assert scores["source"]["toy:red@val"]["seen"] is True
    assert {name: of["seen"] for name, of in scores["target"].items()} == {
        "toy:blue": False,
        "toy:red": True,
        "toy:red@all": True,
    }
    card = (run / "checkpoint" / "README.md").read_text()
    assert "toy:red (seen)" in card and "toy:blue (unseen)" in card
    results = card.split("---\n")[1]
    assert "toy:blue" in results and "dataset_name: toy:red" not in results


def test_the_command_marks_seen_targets_and_warns(tmp_path):
    options = (
        "train", "--sources", "toy:red", "--targets", "toy:blue,toy:red@all", "--iterations", "1",
        "--batch", "2", "--crop", "64", "--device", "cpu", "--set", "model.backbone=tiny",
        "--set", "model.feature_dim=16", "--set", "model.memory.init_batches=1",
    )  # fmt: skip
    refused = Result(*options, "-o", str(tmp_path / "a"))
    assert refused.code == 2 and "trained on toy:red@all, which are targets" in refused.err
    assert "--allow-seen-targets" in refused.err and not (tmp_path / "a").exists()
    planned = Result(*options, "--dry-run", "-o", str(tmp_path / "a"))
    assert planned.code == 2 and "toy:red@all" in planned.err
    options = (*options, "--allow-seen-targets")
    done = Result(*options, "-o", str(tmp_path / "a"))
    assert "(target, unseen)" in done.out and "(target, seen)" in done.out
    assert "trained on 8 of the 10 images of toy:red@all" in done.err
    target = Result(*options, "-o", str(tmp_path / "b"), "--json").json["scores"]["target"]
    assert (target["toy:blue"]["seen"], target["toy:red@all"]["seen"]) == (False, True)


def test_an_evaluation_marks_every_target_and_joins_no_seen_with_unseen(run, tmp_path):
    _toy()
    done = Result("eval", str(run), "-o", str(tmp_path / "out"), "--no-pictures")
    assert done.code == 0 and "mean" in done.out
    assert "(unseen)" in done.out and "mean\n(unseen)" not in done.out
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    targets = data["targets"]
    assert [of["seen"] for of in targets.values()] == [False, True, True]
    assert [of["images_trained_on"] for of in targets.values()] == [0, 0, 8]
    average = {group: of["occurring"] for group, of in data["average_miou_by_set"].items()}
    seen = (targets["toy:red"]["miou"] + targets["toy:red@all"]["miou"]) / 2
    assert average == pytest.approx({"unseen": targets["toy:blue"]["miou"], "seen": seen})
    page = (tmp_path / "out" / "report.html").read_text()
    assert "toy:blue (unseen)" in page and "toy:red (seen)" in page
    assert "mean of the 2 seen targets" in page and "mean of the targets" not in page
    assert "It was trained on 8 of these images." in page


def test_a_foreign_checkpoint_carries_what_it_was_trained_on(run, tmp_path):
    _toy()
    told = []
    for name, changes, seen in (
        ("whole", {}, False),
        ("old", {"trained_on": None}, None),
        ("bare", {"trained_on": None, "training": None}, None),
    ):
        folder = _checkpoint(run, tmp_path / name, **changes)
        report = evaluate_run(str(folder), ["toy:blue"], device="cpu", on_event=told.append)
        assert report.seen == {"toy:blue": seen}
    warnings = [event.message for event in told if isinstance(event, Notice) and event.warning]
    assert sum("not known whether" in warning for warning in warnings) == 2


def test_a_run_of_before_is_known_by_its_list_of_samples(run, tmp_path):
    _toy()
    _checkpoint(run, tmp_path / "old" / "checkpoint", trained_on=None)
    (tmp_path / "old" / "samples.json").write_bytes((run / "samples.json").read_bytes())
    report = evaluate_run(str(tmp_path / "old"), ["toy:blue", "toy:red"], device="cpu")
    assert report.seen == {"toy:blue": False, "toy:red": True}


@pytest.mark.slow
def test_reports_are_averaged_over_targets_that_are_alike_in_all(run, tmp_path):
    _toy()
    targets = ["toy:blue", "toy:blue@train", "toy:red@val", "toy:red@all"]
    other = _checkpoint(run, tmp_path / "other", trained_on=None, training=None)
    for model, name in ((run, "a"), (run, "b"), (other, "c")):
        evaluate_run(str(model), targets, device="cpu", output=tmp_path / name, pictures=False)
    alike = Result("eval", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json").json
    mious = [rows[0]["miou"] for rows in alike["targets"].values()]
    assert alike["average_miou"]["unseen"][0] == pytest.approx((mious[0] + mious[1]) / 2)
    assert alike["average_miou"]["seen"][0] == pytest.approx((mious[2] + mious[3]) / 2)
    assert [rows[0]["seen"] for rows in alike["targets"].values()] == [False, False, True, True]
    differing = Result("eval", "compare", str(tmp_path / "a"), str(tmp_path / "c"))
    assert "mean of the" not in differing.out and "(unknown)" in differing.out
    shown = Result("eval", "compare", str(tmp_path / "a"), str(tmp_path / "b")).out
    assert "mean of the unseen targets" in shown and "mean of the seen targets" in shown


def test_metrics_that_do_not_say_it_are_unknown(run):
    scores = json.loads((run / "scores.json").read_text())
    for phase in ("source", "target"):
        for of in scores[phase].values():
            del of["seen"]
    metrics = ModelMetrics.of_run(scores, "paper-train: whole")
    assert [domain.seen for domain in metrics.domains] == [None, None, None, True]
    assert replace(metrics.domains[0], seen=False).seen is False


def test_a_target_among_the_sources_has_to_be_accepted(tmp_path):
    values = {"iterations": 1, "sources": ["toy:red"], "allow_seen_targets": False}
    for target in ("toy:red", "toy:red@val", "toy", "toy@all"):
        with pytest.raises(ConfigError, match=f"trained on {target}, which are targets"):
            train(small_config(targets=["toy:blue", target], **values), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    accepted = {**values, "allow_seen_targets": True}
    run = train(small_config(targets=["toy:red"], **accepted), tmp_path / "run").run
    config = json.loads((run / "config.json").read_text())
    del config["allow_seen_targets"]  # a run of before, which is resumed without a question
    (run / "config.json").write_text(json.dumps(config))
    (run / "scores.json").unlink()
    assert resume(run).seen == {"toy:red@val": True, "toy:red": True}


def test_an_unfinished_run_is_scored_with_how_far_it_is(run, tmp_path):
    _toy()
    training = load_checkpoint(run / "checkpoint")[1]["training"]
    half = _checkpoint(run, tmp_path / "half", training={**training, "iterations": 40})
    done = Result("eval", str(half), "-o", str(tmp_path / "out"), "--no-pictures")
    assert "(unfinished, iteration 1 of 40)" in done.out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["unfinished"] == {"iteration": 1, "iterations": 40}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The training is unfinished: iteration 1 of 40." in page
    assert "unfinished, iteration 1 of 40" in (half / "README.md").read_text()
    Result("eval", str(run), "-o", str(tmp_path / "whole"), "--no-pictures")
    whole = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert whole["unfinished"] is None
    compared = Result("eval", "compare", str(tmp_path / "out"), str(tmp_path / "whole"))
    assert compared.out.count("unfinished, iteration 1 of 40") == 1
    assert compared.err == "next: pinmem runs\n"
