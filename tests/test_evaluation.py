import numpy as np
import pytest
from conftest import small_config

from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import (
    ConfusionMatrix,
    Scores,
    evaluate_run,
    load_target,
    load_validation,
)
from pinmem_core.learning import train
from pinmem_core.preparation import draw_missing


def _brute_force(pairs):
    iou = []
    for k in range(19):
        hit = union = 0
        for truth, prediction in pairs:
            for t, p in zip(truth.flat, prediction.flat, strict=True):
                if t != 255:
                    hit += t == p == k
                    union += t == k or p == k
        iou.append(hit / union if union else np.nan)
    return np.array(iou)


def test_iou_equals_counting_by_hand():
    rng = np.random.default_rng(0)
    matrix, pairs = ConfusionMatrix(), []
    for _ in range(3):
        truth = rng.choice([0, 1, 2, 5, 255], (7, 9)).astype(np.uint8)
        prediction = rng.choice([0, 1, 2, 6], (7, 9)).astype(np.uint8)
        matrix.add(truth, prediction)
        pairs.append((truth, prediction))
    np.testing.assert_array_equal(matrix.iou, _brute_force(pairs))
    assert matrix.counts.sum() == sum((t != 255).sum() for t, _ in pairs)


def test_a_class_that_does_not_occur_is_not_averaged_but_costs_the_one_it_replaces():
    matrix = ConfusionMatrix()
    matrix.add(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 9, 1, 1]], np.uint8))
    scores = Scores.of(matrix, images=1)
    assert scores.iou["terrain"] is None and scores.iou["road"] == 0.5
    assert scores.miou == 0.75
    assert scores.pixels == 4


def test_counts_stay_exact_beyond_32_bits():
    matrix = ConfusionMatrix()
    matrix.add(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    matrix.counts *= 2**31
    matrix.add(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    assert matrix.counts.sum() == 2**31 + 1


def test_a_seen_domain_is_scored_on_its_validation_split_only(tmp_path):
    draw_missing(["toy"])
    assert load_target("toy:red", trained_on=["toy:red"]).split == "val"
    assert load_target("toy:red@all", trained_on=["toy:red"]).split == "all"
    assert len(load_target("toy:red@all", trained_on=[], max_images=3).samples) == 3


def test_a_source_that_trains_on_its_validation_images_is_told(tmp_path):
    draw_missing(["toy"])
    events = []
    (target,) = load_validation(["toy:red@all"], None, events.append)
    assert target.name == "toy:red@val" and {s.split for s in target.samples} == {"val"}
    assert "trains on the images that validate it" in events[0].message


def test_evaluating_a_run_repeats_the_scores_that_training_ended_with(tmp_path):
    result = train(small_config(targets=["toy:blue@all"]), tmp_path / "run")
    report = evaluate_run(str(result.run), device="cpu")
    assert report.scores == result.scores["target"]
    assert report.splits == {"toy:blue@all": "all"}
    assert "whole image" in report.protocol
    source = evaluate_run(str(result.checkpoint), ["toy:red"], device="cpu")
    assert source.scores["toy:red"] == result.scores["source"]["toy:red@val"]


def test_what_cannot_be_evaluated_is_said(tmp_path):
    result = train(small_config(), tmp_path / "run")
    with pytest.raises(ConfigError, match="no target"):
        evaluate_run(str(result.run))
    with pytest.raises(ConfigError, match="unknown protocol"):
        evaluate_run(str(result.run), ["toy"], protocol="paper-evil")
