"""How sure a mIoU is: intervals by the bootstrap over images.

As many images are drawn as there are, with replacement, over and over; the interval holds the
middle of what the mIoU comes to. It tells what other images of the same kind would give; what
another training would, only where several are given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.evaluation.class_sets import OCCURRING
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.evaluation.scores import mean_iou


class _Counts(NamedTuple):
    """Of N images, each (N, 19). Whole numbers in float64, whose products are fast and exact."""

    hits: NDArray[np.float64]
    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]

    @classmethod
    def of(cls, results: Sequence[ImageResult]) -> "_Counts":
        matrices = [result.matrix for result in results]
        return cls(
            np.array([matrix.hits for matrix in matrices], np.float64),
            np.array([matrix.truth for matrix in matrices], np.float64),
            np.array([matrix.predicted for matrix in matrices], np.float64),
        )

    def mious(self, weights: NDArray[np.float64], class_set: str) -> NDArray[np.float64]:
        """Return the mIoU (draws,) of images taken as often as `weights` (draws, N) says."""
        hits, truth, predicted = (weights @ counts for counts in self)
        return mean_iou(hits, truth, predicted, class_set)


def bootstrap_interval(
    results: Sequence[ImageResult],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    class_set: str = OCCURRING,
) -> tuple[float, float]:
    """Return the interval of a mIoU: (low, high), in 0..1.

    Args:
        results: Of at least one image, with labelled pixels among them.
        level: Share of the draws that lie in it.
        draws: How often images are drawn; equal seeds draw the same.
        seed: Of the random numbers.
        class_set: Which classes are averaged.
    """
    weights = _weights(len(results), draws, seed)
    return _middle(_Counts.of(results).mious(weights, class_set), level)


def paired_interval(
    first: Sequence[ImageResult],
    second: Sequence[ImageResult],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    class_set: str = OCCURRING,
) -> tuple[float, float]:
    """Return the interval of mIoU(second) - mIoU(first) of two models on the same images.

    Each draw takes the same images for both, so that what makes them hard cancels out. 0 outside
    the interval means that the difference is more than the choice of images.

    Args:
        first: Of at least one image.
        second: Of the same images, in any order.
        level: Share of the draws that lie in the interval.
        draws: How often images are drawn; equal seeds draw the same.
        seed: Of the random numbers.
        class_set: Which classes are averaged.

    Raises:
        DataError: The images, or their labels, are not the same.
    """
    return mean_paired_interval(
        [(first, second)], level=level, draws=draws, seed=seed, class_set=class_set
    )


def mean_paired_interval(
    pairs: Sequence[tuple[Sequence[ImageResult], Sequence[ImageResult]]],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    class_set: str = OCCURRING,
) -> tuple[float, float]:
    """Return the interval of mIoU(second) - mIoU(first), averaged over several pairs of models.

    Each draw takes the same images for all, as `paired_interval` does for one pair, and of the
    pairs as many as there are, with replacement. Of few pairs that is too narrow: by a tenth of
    five, by a fifth of three.

    Args:
        pairs: At least one, e.g. one for each seed; all of the same images in the same order.
        level: Share of the draws that lie in the interval.
        draws: How often images are drawn; equal seeds draw the same.
        seed: Of the random numbers.
        class_set: Which classes are averaged.

    Raises:
        DataError: The images, or their labels, are not the same.
    """
    weights = _weights(len(pairs[0][0]), draws, seed)
    differences = []
    for first, second in pairs:
        counts, others = _same_images(first, second)
        differences.append(others.mious(weights, class_set) - counts.mious(weights, class_set))
    chosen = _weights(len(pairs), draws, seed + 1) / len(pairs)
    return _middle((chosen.T * differences).sum(axis=0), level)


def _same_images(
    first: Sequence[ImageResult], second: Sequence[ImageResult]
) -> tuple[_Counts, _Counts]:
    """Return the counts of both, in the order of the first."""
    counts = _Counts.of(first)
    others = _Counts.of(_in_order_of(first, second))
    if not np.array_equal(counts.truth, others.truth):
        raise DataError(
            "the two models were scored on the same images with other labels.",
            "Score both by one protocol, on data prepared in one way.",
        )
    return counts, others


def _in_order_of(
    results: Sequence[ImageResult], others: Sequence[ImageResult]
) -> list[ImageResult]:
    by_id = {other.id: other for other in others}
    ids = [result.id for result in results]
    if by_id.keys() != set(ids):
        only = sorted(by_id.keys() ^ set(ids))
        raise DataError(
            f"the two models were not scored on the same images: {len(only)} are of one of them "
            f"only, '{only[0]}' for example.",
            "Score both on the same target.",
        )
    return [by_id[image] for image in ids]


def _weights(count: int, draws: int, seed: int) -> NDArray[np.float64]:
    """Return how often each draw takes each of `count` images or pairs: (draws, count)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)


def _middle(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
