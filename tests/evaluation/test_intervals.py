import numpy as np
import pytest

from pinmem_core.errors import DataError
from pinmem_core.evaluation import ConfusionMatrix
from pinmem_core.evaluation.bootstrap import (
    average_paired_interval,
    bootstrap_interval,
    paired_interval,
)
from pinmem_core.evaluation.metrics import class_sets
from pinmem_core.evaluation.plots import DifferencePoint, plot_differences
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.label_space import CITYSCAPES


def scored(images, skill=0.7, seed=0, classes=19, pixels=200):
    """Results of a network that is right with probability `skill`, more or less by image."""
    labels, mistakes = np.random.default_rng(0), np.random.default_rng([1, seed])
    results = []
    for number in range(images):
        truth = labels.choice([*range(classes), 255], (10, pixels // 10)).astype(np.uint8)
        hard = labels.uniform(-0.3, 0.3)
        right = mistakes.random(truth.shape) < skill + hard
        guess = mistakes.integers(0, classes, truth.shape, dtype=np.uint8)
        matrix = ConfusionMatrix()
        matrix.add(truth, np.where(right, truth % 19, guess).astype(np.uint8))
        results.append(ImageResult(f"image{number}", matrix.counts))
    return results


def drawn_by_loop(results, draws, seed, classes=None):
    """The mIoU of each draw, one image at a time, by the same random numbers."""
    rng = np.random.default_rng(seed)
    mious = []
    for times in rng.multinomial(len(results), [1 / len(results)] * len(results), draws):
        whole = ConfusionMatrix()
        for result, count in zip(results, times, strict=True):
            for _ in range(count):
                whole += ConfusionMatrix(result.counts)
        mious.append(whole.miou(classes))
    return np.array(mious)


@pytest.mark.parametrize("class_set", ["occurring", "16"])
def test_the_interval_is_that_of_a_plain_loop(class_set):
    results = scored(12, pixels=40)  # small enough for classes to be missing in a draw
    classes = class_sets(CITYSCAPES)[class_set]
    mious = drawn_by_loop(results, 50, 3, classes)
    low, high = bootstrap_interval(results, level=0.8, draws=50, seed=3, classes=classes)
    assert (low, high) == pytest.approx(tuple(np.quantile(mious, [0.1, 0.9])), abs=1e-12)
    assert low < sum((r.matrix for r in results), ConfusionMatrix()).miou(classes) < high


def test_the_paired_interval_is_that_of_a_plain_loop_in_any_order_of_images():
    worse, better = scored(12), scored(12, skill=0.75, seed=1)
    differences = drawn_by_loop(better, 50, 3) - drawn_by_loop(worse, 50, 3)
    expected = tuple(np.quantile(differences, [0.025, 0.975]))
    assert paired_interval(worse, better[::-1], draws=50, seed=3) == pytest.approx(expected)
    low, high = paired_interval(better, worse, draws=50, seed=3)
    assert (-high, -low) == pytest.approx(expected)


def test_equal_seeds_give_equal_intervals_and_more_images_narrower_ones():
    few, many = scored(20), scored(320)
    assert bootstrap_interval(few) == bootstrap_interval(few) != bootstrap_interval(few, seed=1)
    widths = [high - low for low, high in map(bootstrap_interval, (few, many))]
    assert 2.5 < widths[0] / widths[1] < 6.5  # 4, as the root of 16 times the images
    narrow = bootstrap_interval(few, level=0.5)
    assert narrow[1] - narrow[0] < widths[0]


def test_pairing_finds_a_difference_that_is_smaller_than_the_choice_of_images():
    worse, better = scored(40), scored(40, skill=0.74, seed=1)
    assert bootstrap_interval(worse)[1] > bootstrap_interval(better)[0]
    assert paired_interval(worse, better)[0] > 0
    same = paired_interval(worse, worse)
    assert same == (0, 0)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Of 100 sets of 50 images from one source, 90 % intervals should hold its mIoU about 90 times.

    The binomial's outer thousandths are 79 and 98; the percentile bootstrap is a little narrow.
    """
    world = scored(4000, classes=4)
    true = sum((r.matrix for r in world), ConfusionMatrix()).miou()
    held = 0
    for start in range(0, 4000, 40):
        low, high = bootstrap_interval(world[start : start + 40], level=0.9, draws=300)
        held += low <= true <= high
    assert 79 <= held <= 98


def test_models_that_were_scored_on_other_images_are_not_compared():
    results = scored(3)
    with pytest.raises(DataError, match="such as 'image2'"):
        paired_interval(results, results[:2])
    other = [ImageResult(r.id, np.roll(r.counts, 1, axis=0)) for r in results]
    with pytest.raises(DataError, match="other labels"):
        paired_interval(results, other)


def test_one_labelled_image_tells_nothing_of_others():
    (only,), (better,) = scored(1), scored(1, skill=0.9, seed=1)
    bare = ImageResult("bare", np.zeros_like(only.counts))
    assert bootstrap_interval([only]) == bootstrap_interval([bare, only]) == (0, 1)
    assert paired_interval([only], [better]) == (-1, 1)
    assert paired_interval([bare, only], [bare, better]) == (-1, 1)
    several = scored(3), scored(3, skill=0.9, seed=1)
    assert average_paired_interval([[several], [([only], [better])]]) == (-1, 1)
    assert average_paired_interval([[several], [several]])[0] > 0


def test_the_interval_of_one_image_does_not_flatten_the_others_in_a_plot():
    close = DifferencePoint("close", 0.02, (0.01, 0.03), None, True)
    single = DifferencePoint("single", 0.01, (-1.0, 1.0), None, False)
    figure = plot_differences({"many": [close], "one": [single]}, "title")
    for axes in figure.axes:
        assert axes.get_xlim() == pytest.approx((-3.15, 3.15))
