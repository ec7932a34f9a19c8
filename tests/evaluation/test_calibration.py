from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from pinmem_core.evaluation.metrics import Calibration

SIZE = (150, 40)  # several slabs of rows, the last one not full


def drawn(seed, sharpness=3.0, wrong=0.3):
    """Confidence, truth and prediction of an image whose network is unsure where it is wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 18, 255], SIZE).astype(np.uint8)
    mistaken = rng.random(SIZE) < wrong
    prediction = np.where(mistaken, (truth + 1) % 19, truth % 19).astype(np.uint8)
    doubt = rng.random(SIZE) ** np.where(mistaken, 1, sharpness)
    return (1 - 0.9 * doubt).astype(np.float32), truth, prediction


def by_hand(images):
    pixels = [
        (float(c), bool(t == p))
        for confidence, truth, prediction in images
        for c, t, p in zip(confidence.flat, truth.flat, prediction.flat, strict=True)
        if t != 255
    ]
    bins = [[(c, hit) for c, hit in pixels if min(int(c * 15), 14) == b] for b in range(15)]
    ece = sum(abs(sum(hit for _, hit in b) - sum(c for c, _ in b)) for b in bins) / len(pixels)
    return pixels, bins, ece


def auroc_by_hand(pixels):
    wrong = np.array([c for c, hit in pixels if not hit])[:, None]
    right = np.array([c for c, hit in pixels if hit])
    return ((wrong < right) + 0.5 * (wrong == right)).mean()


def test_bins_and_ece_are_those_by_hand():
    images = [drawn(seed) for seed in range(3)]
    calibration = sum((Calibration.of(*image) for image in images), Calibration())
    pixels, bins, ece = by_hand(images)
    assert calibration.counts.tolist() == [len(b) for b in bins]
    assert calibration.hits.tolist() == [sum(hit for _, hit in b) for b in bins]
    sums = [sum(c for c, _ in b) for b in bins]
    np.testing.assert_allclose(calibration.confidence_sums, sums, rtol=1e-12)
    assert calibration.counts.dtype == calibration.hits.dtype == np.int64
    assert calibration.ece == pytest.approx(ece, abs=1e-12) and ece > 0.05
    right = sum(hit for _, hit in pixels)
    assert calibration.doubts.sum(axis=1).tolist() == [len(pixels) - right, right]
    filled = calibration.counts > 0
    np.testing.assert_array_equal(np.isnan(calibration.accuracy), ~filled)
    gap = np.abs(calibration.accuracy - calibration.mean_confidence)[filled]
    assert (gap * calibration.counts[filled]).sum() / len(pixels) == pytest.approx(ece)


@pytest.mark.parametrize("sharpness", [1.0, 3.0, 60.0])
def test_auroc_is_that_of_all_pairs_even_where_the_network_is_nearly_sure(sharpness):
    image = drawn(5, sharpness)
    pixels, _, _ = by_hand([image])
    assert Calibration.of(*image).auroc == pytest.approx(auroc_by_hand(pixels), abs=1e-3)


def test_auroc_tells_certainties_apart_that_equal_bins_would_mix():
    confidence = np.array([[0.99999, 0.9999]], np.float32)
    truth, prediction = np.array([[0, 0]], np.uint8), np.array([[0, 1]], np.uint8)
    assert Calibration.of(confidence, truth, prediction).auroc == 1
    assert Calibration.of(confidence[:, ::-1], truth, prediction).auroc == 0
    assert Calibration.of(np.full_like(confidence, 0.7), truth, prediction).auroc == 0.5


def test_a_calibrated_network_has_no_error():
    rng = np.random.default_rng(0)
    confidence = np.repeat(np.float32([0.3, 0.5, 0.9]), 1000)[None]
    prediction = (np.arange(3000) % 1000 >= confidence * 1000).astype(np.uint8)
    shuffled = rng.permutation(3000)
    calibration = Calibration.of(
        confidence[:, shuffled], np.zeros((1, 3000), np.uint8), prediction[:, shuffled]
    )
    assert calibration.ece == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(calibration.accuracy[[4, 7, 13]], [0.3, 0.5, 0.9])


def test_the_edges_are_in_the_bins_that_they_begin_and_1_is_in_the_last():
    confidence = np.array([[0, 1, 0.5, 1 + 1e-6]], np.float32)
    zeros = np.zeros((1, 4), np.uint8)
    calibration = Calibration.of(confidence, zeros, zeros)
    assert calibration.counts[[0, 7, 14]].tolist() == [1, 1, 2]
    assert calibration.confidence_sums[14] == 2


def test_the_order_of_images_does_not_matter():
    parts = [Calibration.of(*drawn(seed)) for seed in range(4)]
    forth, back = sum(parts, Calibration()), sum(parts[::-1], Calibration())
    assert (forth.ece, forth.auroc) == (back.ece, back.auroc)


def test_nothing_labelled_is_nothing_known():
    confidence, truth, prediction = drawn(0)
    calibration = Calibration.of(confidence, np.full_like(truth, 255), prediction)
    assert calibration.counts.sum() == 0
    assert np.isnan([calibration.ece, calibration.auroc]).all()
    all_right = Calibration.of(confidence, prediction, prediction)
    assert np.isnan(all_right.auroc)


def test_counts_do_not_change_and_are_compared_by_identity():
    calibration = Calibration()
    assert calibration == calibration and calibration != Calibration()
    with pytest.raises(FrozenInstanceError):
        calibration.hits = calibration.counts
