"""Scores against counting by hand, and against cityscapesScripts, the authority on them."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes
from cityscapesscripts.helpers.labels import name2label

from pinmem_core.evaluation import ConfusionMatrix, Scores
from pinmem_core.evaluation.metrics import class_sets, mean_iou, mean_over_domains
from pinmem_core.images import write_png
from pinmem_core.label_space import CITYSCAPES, label_space

SETS = class_sets(CITYSCAPES)
COUNTS = ("hits", "truth", "predicted")
IGNORE, TERRAIN, CAR, TRUCK, TRAIN = 255, 9, 13, 14, 16


def ids(*rows):
    return np.array(rows, np.uint8)


def matrix_of(*pairs):
    matrix = ConfusionMatrix()
    for truth, prediction in pairs:
        matrix.add(truth, prediction)
    return matrix


def drawn(seed, classes, predicted, size=(23, 31)):
    rng = np.random.default_rng(seed)
    return tuple(rng.choice(values, size).astype(np.uint8) for values in (classes, predicted))


def by_hand(pairs):
    """Count pixel by pixel; 20 columns, the last for predictions of no class."""
    counts = np.zeros((19, 20), int)
    for truth, prediction in pairs:
        for t, p in zip(truth.flat, prediction.flat, strict=True):
            if t != IGNORE:
                counts[t, min(p, 19)] += 1
    return counts


EVERYTHING = [*range(19), IGNORE]
CASES = {
    "everything": [drawn(n, EVERYTHING, range(19)) for n in range(3)],
    "rare classes": [drawn(3, [0, 1, 2, 13, IGNORE], [0, 1, 2, 13])],
    "predicted only": [drawn(4, [0, 1, IGNORE], [0, 1, TERRAIN, TRUCK])],
    "ignored predictions": [drawn(5, EVERYTHING, EVERYTHING)],
    "nothing labelled": [drawn(6, [IGNORE], range(19))],
    "an empty image among others": [drawn(7, [IGNORE], [3]), drawn(8, [0, 5], [0, 5, 3])],
    "never right": [drawn(9, [0, 1], [2, 3])],
    "a single class": [drawn(10, [10], [10])],
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def pairs(request):
    return request.param


def test_counts_are_those_by_hand(pairs):
    matrix, counts = matrix_of(*pairs), by_hand(pairs)
    assert matrix.counts.dtype == np.int64
    np.testing.assert_array_equal(matrix.counts, counts[:, :19])
    np.testing.assert_array_equal(matrix.missed, counts[:, 19])
    assert matrix.pixels == sum((truth != IGNORE).sum() for truth, _ in pairs)
    assert matrix.pixels == matrix.counts.sum() + matrix.missed.sum()


def test_what_is_read_off_is_what_is_defined(pairs):
    matrix, counts = matrix_of(*pairs), by_hand(pairs)
    for k in range(19):
        tp, fn = counts[k, k], counts[k].sum() - counts[k, k]
        fp = counts[:, k].sum() - tp
        for found, part, whole in (
            (matrix.iou, tp, tp + fp + fn),
            (matrix.precision, tp, tp + fp),
            (matrix.recall, tp, tp + fn),
            (matrix.frequency, tp + fn, counts.sum()),
        ):
            assert found[k] == part / whole if whole else math.isnan(found[k])
    whole = counts.sum()
    accuracy = counts.diagonal().sum() / whole if whole else math.nan
    np.testing.assert_equal(matrix.pixel_accuracy, accuracy)


def cityscapes_result(pairs, folder):
    """What cityscapesScripts says of the same images as PNGs of its own ids."""
    args = cityscapes.args
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    files = {"truth": [], "prediction": []}
    for number, pair in enumerate(pairs):
        for kind, train_ids in zip(files, pair, strict=True):
            path = folder / f"{number}_{kind}.png"
            write_png(path, CITYSCAPES.label_id_table[train_ids])
            files[kind].append(str(path))
    return cityscapes.evaluateImgLists(files["prediction"], files["truth"], args)


def test_every_iou_and_every_mean_is_that_of_cityscapes_scripts(pairs, tmp_path):
    result, matrix = cityscapes_result(pairs, tmp_path), matrix_of(*pairs)
    theirs = [result["classScores"][name] for name in CITYSCAPES.names]
    np.testing.assert_allclose(matrix.iou, theirs, rtol=0, atol=1e-12)
    same = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(matrix.miou(SETS["19"]), result["averageScoreClasses"], **same)
    absent = {"16": {"terrain", "truck", "train"}}
    absent["13"] = absent["16"] | {"wall", "fence", "pole"}
    for name, left_out in absent.items():
        kept = {k: v for k, v in result["classScores"].items() if k not in left_out}
        assert sum(not name2label[k].ignoreInEval for k in kept) == int(name)
        average = cityscapes.getScoreAverage(kept, cityscapes.args)
        np.testing.assert_allclose(matrix.miou(SETS[name]), average, **same)
    occurs = {k for k, row in enumerate(by_hand(pairs)) if row.any()}
    kept = {CITYSCAPES.names[k]: theirs[k] for k in occurs}
    average = cityscapes.getScoreAverage(kept, cityscapes.args)
    np.testing.assert_allclose(matrix.miou(), average, **same)


def test_counts_far_beyond_32_bits_stay_exact_and_score_as_theirs(tmp_path):
    pairs = CASES["ignored predictions"]
    result, times = cityscapes_result(pairs, tmp_path), 2**31 + 1
    matrix = matrix_of(*pairs)
    whole = ConfusionMatrix(matrix.counts * times, matrix.missed * times) + matrix
    assert whole.pixels == matrix.pixels * (times + 1)
    theirs = np.array(result["confMatrix"], np.ulonglong) * np.ulonglong(times + 1)
    for train_id, label in enumerate(CITYSCAPES.label_id_table[:19].tolist()):
        iou = cityscapes.getIouScoreForLabel(label, theirs, cityscapes.args)
        assert whole.iou[train_id] == pytest.approx(iou, abs=1e-12)


def test_a_class_that_is_predicted_but_does_not_occur_is_0_in_a_fixed_set_only():
    matrix = matrix_of((ids([0, 0, 1, 1]), ids([0, CAR, 1, 1])))
    assert matrix.miou() == 0.75
    assert matrix.miou(SETS["19"]) == pytest.approx(0.5)
    assert matrix.iou[CAR] == 0 and math.isnan(matrix.recall[CAR])


def test_the_smaller_sets_leave_classes_out_of_the_mean_and_not_out_of_the_counts():
    matrix = matrix_of((ids([CAR, CAR, TRUCK, TRAIN]), ids([CAR, TRUCK, CAR, TRAIN])))
    assert matrix.miou(SETS["16"]) == matrix.miou(SETS["13"]) == pytest.approx(1 / 3)
    assert matrix.miou(SETS["19"]) == pytest.approx((1 / 3 + 0 + 1) / 3)


def test_scores_name_what_there_is_and_say_none_where_there_is_nothing():
    scores = Scores.of(matrix_of((ids([0, 0, 1, IGNORE]), ids([0, CAR, 1, 1]))), images=1)
    assert (scores.miou, scores.pixels, scores.images) == (0.75, 3, 1)
    assert scores.iou["car"] is None and scores.recall["car"] is None
    assert scores.precision["car"] == 0 and scores.precision["sky"] is None
    assert scores.frequency["road"] == pytest.approx(2 / 3) and scores.frequency["sky"] == 0
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
    assert tuple(scores.miou_by_set) == tuple(SETS) == ("occurring", "19", "16", "13")
    assert scores.miou_by_set["occurring"] == scores.miou
    nothing = Scores.of(matrix_of((ids([IGNORE]), ids([0]))), images=1)
    assert math.isnan(nothing.miou) and nothing.pixel_accuracy is None
    assert set(nothing.miou_by_set.values()) == set(nothing.frequency.values()) == {None}


def test_domains_weigh_the_same_in_their_mean_whatever_their_size():
    small = Scores.of(matrix_of((ids([0]), ids([0]))), images=1)
    large = Scores.of(matrix_of((ids([0, 0, 1, 1]), ids([0, CAR, 1, 1]))), images=99)
    nothing = Scores.of(ConfusionMatrix(), images=1)
    assert mean_over_domains([small, large]) == pytest.approx((1 + 0.75) / 2)
    assert mean_over_domains([small, large], "19") == pytest.approx((1 + 0.5) / 2)
    assert mean_over_domains([small, nothing]) is None and mean_over_domains([]) is None


def test_fixed_sets_exist_only_where_they_mean_something():
    space = label_space("idd-level1")
    assert set(class_sets(space)) == {"occurring"}
    matrix = ConfusionMatrix.empty(len(space))
    matrix.add(ids([0, 0, 6, IGNORE]), ids([0, 255, 6, 1]))
    scores = Scores.of(matrix, images=1, space=space)
    assert scores.iou["drivable"] == 0.5 and scores.iou["sky"] == 1
    assert list(scores.iou) == list(space.names) and scores.label_space == "idd-level1"
    assert scores.miou_by_set == {"occurring": 0.75} and matrix.missed[0] == 1


def test_the_mean_iou_of_a_batch_is_that_of_each_of_its_counts():
    matrices = [matrix_of(*pairs) for pairs in CASES.values()]
    counts = [np.stack([getattr(m, name) for m in matrices]) for name in COUNTS]
    for classes in (None, SETS["16"]):
        expected = [matrix.miou(classes) for matrix in matrices]
        np.testing.assert_array_equal(mean_iou(*counts, classes), expected)


def test_scores_need_a_matrix_of_their_classes_and_do_not_change():
    with pytest.raises(ValueError, match="shorter"):
        Scores.of(ConfusionMatrix.empty(7), images=1)
    scores = Scores.of(ConfusionMatrix(), images=1)
    with pytest.raises(FrozenInstanceError):
        scores.miou = 1.0
