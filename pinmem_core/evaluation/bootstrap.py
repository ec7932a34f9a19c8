"""Intervals of the mIoU: the bootstrap over images and seeds, and Student's t over seeds."""

from collections.abc import Sequence
from itertools import islice
from math import cos, pi, sin, sqrt, tan
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.evaluation.metrics import mean_iou
from pinmem_core.evaluation.results import ImageResult


def bootstrap_interval(
    results: Sequence[ImageResult],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    classes: NDArray[np.bool_] | None = None,
) -> tuple[float, float]:
    """Return the interval (low, high) of a mIoU, in 0..1.

    One labelled image does not show how much images differ: its interval is the widest, (0, 1).

    Args:
        results: Results of at least one image; at least one pixel must be labelled.
        level: Fraction of the draws inside the interval, in 0..1.
        draws: Number of draws.
        seed: Random seed; equal seeds give equal draws.
        classes: Classes to average, (K,), as for `mean_iou`; None for those that occur.
    """
    if not _vary(results):
        return 0.0, 1.0
    weights = _weights(len(results), draws, seed)
    return _middle(_mious(_counts(results), weights, classes), level)


def paired_interval(
    first: Sequence[ImageResult],
    second: Sequence[ImageResult],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    classes: NDArray[np.bool_] | None = None,
) -> tuple[float, float]:
    """Return the interval of mIoU(second) - mIoU(first) of two models on the same images.

    Each draw uses the same images for both models, so that the difficulty of images cancels out. If
    0 lies outside of the interval, the choice of images does not explain the difference. The
    interval of a single labelled image is the widest, (-1, 1).

    Args:
        first: Results of at least one image.
        second: Results of the same images, in any order.
        level: Fraction of the draws inside the interval, in 0..1.
        draws: Number of draws.
        seed: Random seed; equal seeds give equal draws.
        classes: Classes to average, (K,), as for `mean_iou`; None for those that occur.

    Raises:
        DataError: The images or their labels differ.
    """
    return average_paired_interval(
        [[(first, second)]], level=level, draws=draws, seed=seed, classes=classes
    )


def average_paired_interval(
    targets: Sequence[Sequence[tuple[Sequence[ImageResult], Sequence[ImageResult]]]],
    *,
    names: Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    classes: NDArray[np.bool_] | None = None,
) -> tuple[float, float]:
    """Return the interval of mIoU(second) - mIoU(first), averaged over pairs of models and targets.

    Each draw resamples the images of each target, the same for all of its pairs as in
    `paired_interval`, and the pairs for all targets together. With few pairs the interval is too
    narrow: by a tenth for five pairs, by a fifth for three. If a target has a single labelled
    image, the interval is the widest, (-1, 1).

    Args:
        targets: At least one target with at least one pair of results, e.g. one per seed. All pairs
            of a target are on the same images in the same order; pairs with the same position, e.g.
            of one seed, belong together.
        names: Name of the images of each target; targets of the same images, e.g. in several folds,
            share each draw of them. By default all differ.
        level: Fraction of the draws inside the interval, in 0..1.
        draws: Number of draws.
        seed: Random seed; equal seeds give equal draws.
        classes: Classes to average, (K,), as for `mean_iou`; None for those that occur.

    Raises:
        DataError: The images or their labels differ within a target.
    """
    # The first two streams of random numbers are those of a single target and of its pairs.
    seeds = [seed, *range(seed + 2, seed + 1 + len(targets))]
    if names:
        seeds = [seeds[names.index(name)] for name in names]
    each = [
        _differences(pairs, _weights(len(pairs[0][0]), draws, of_target), classes)
        for pairs, of_target in zip(targets, seeds, strict=True)
    ]
    if not all(_vary(pairs[0][0]) for pairs in targets):
        return -1.0, 1.0
    chosen = _weights(len(targets[0]), draws, seed + 1) / len(targets[0])
    return _middle((chosen.T * np.mean(each, axis=0)).sum(axis=0), level)


def student_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """Return Student's t interval (low, high) of the mean of independent values.

    Args:
        values: E.g. one difference per seed.
        level: Coverage of the interval in 0..1.

    Returns:
        The interval; None for fewer than two values.
    """
    if len(values) < 2:
        return None
    half = student_quantile(level, len(values) - 1) * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def student_quantile(level: float, freedom: int) -> float:
    """Return t with P(-t < T < t) = `level` for Student's distribution.

    Args:
        level: Probability in 0..1.
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _student_within(angle, freedom) < level else (low, angle)
    return sqrt(freedom) * tan(high)


def _student_within(angle: float, freedom: int) -> float:
    """Return P(|T| < sqrt(freedom) tan(angle)): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for factor in range(2 + odd, freedom - 1, 2):
        term *= (factor - 1) / factor * cos(angle) ** 2
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def _differences(
    pairs: Sequence[tuple[Sequence[ImageResult], Sequence[ImageResult]]],
    weights: NDArray[np.float64],
    classes: NDArray[np.bool_] | None,
) -> NDArray[np.float64]:
    """Return mIoU(second) - mIoU(first) of each pair and draw, (pairs, draws)."""
    differences = []
    for first, second in pairs:
        _require_same_images(first, second)
        by_id = {result.id: result for result in second}
        counts, others = _counts(first), _counts([by_id[result.id] for result in first])
        if not np.array_equal(counts[1], others[1]):
            raise DataError(
                "the two models were evaluated on the same images with other labels.",
                "Evaluate both with the same protocol on the same prepared data.",
            )
        differences.append(_mious(others, weights, classes) - _mious(counts, weights, classes))
    return np.array(differences)


def _counts(results: Sequence[ImageResult]) -> NDArray[np.float64]:
    """Return hits, truth and predicted pixels of N images, (3, N, K).

    They are integers in float64, whose products are fast and exact.
    """
    matrices = [result.matrix for result in results]
    parts = [(matrix.hits, matrix.truth, matrix.predicted) for matrix in matrices]
    return np.array(parts, np.float64).swapaxes(0, 1)


def _vary(results: Sequence[ImageResult]) -> bool:
    """Return whether draws of images differ: at least two have labelled pixels."""
    labelled = (result for result in results if result.counts.any() or result.missed.any())
    return len([*islice(labelled, 2)]) == 2


def _mious(
    counts: NDArray[np.float64], weights: NDArray[np.float64], classes: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """Return the mIoU of each draw, (draws,), for the image counts `weights`, (draws, N)."""
    hits, truth, predicted = (weights @ part for part in counts)
    return mean_iou(hits, truth, predicted, classes)


def _require_same_images(first: Sequence[ImageResult], second: Sequence[ImageResult]) -> None:
    only = sorted({result.id for result in first} ^ {result.id for result in second})
    if only:
        raise DataError(
            f"the two models were not evaluated on the same images: {len(only)} images belong to "
            f"only one of them, such as '{only[0]}'.",
            "Evaluate both on the same target.",
        )


def _weights(count: int, draws: int, seed: int) -> NDArray[np.float64]:
    """Return how often each draw contains each of `count` images or pairs, (draws, count)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)


def _middle(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
