"""Bootstrap intervals of the mIoU over images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.evaluation.metrics import OCCURRING, mean_iou
from pinmem_core.evaluation.results import ImageResult


class _Counts(NamedTuple):
    """Counts of N images, (N, 19) each: integers in float64, whose products are fast and exact."""

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
        """Return the mIoU of each draw, (draws,), for the image counts `weights`, (draws, N)."""
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
    """Return the interval (low, high) of a mIoU, in 0..1.

    Args:
        results: Results of at least one image; at least one pixel must be labelled.
        level: Fraction of the draws inside the interval, in 0..1.
        draws: Number of draws.
        seed: Random seed; equal seeds give equal draws.
        class_set: Name of the class set to average.
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

    Each draw uses the same images for both models, so that the difficulty of images cancels out. If
    0 lies outside of the interval, the choice of images does not explain the difference.

    Args:
        first: Results of at least one image.
        second: Results of the same images, in any order.
        level: Fraction of the draws inside the interval, in 0..1.
        draws: Number of draws.
        seed: Random seed; equal seeds give equal draws.
        class_set: Name of the class set to average.

    Raises:
        DataError: The images or their labels differ.
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

    Each draw uses the same images for all pairs, as in `paired_interval`, and resamples the pairs
    with replacement. With few pairs the interval is too narrow: by a tenth for five pairs, by a
    fifth for three.

    Args:
        pairs: At least one pair of results, e.g. one per seed; all on the same images in the same
            order.
        level: Fraction of the draws inside the interval, in 0..1.
        draws: Number of draws.
        seed: Random seed; equal seeds give equal draws.
        class_set: Name of the class set to average.

    Raises:
        DataError: The images or their labels differ.
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
    """Return the counts of both models, in the image order of the first."""
    counts = _Counts.of(first)
    others = _Counts.of(_in_order_of(first, second))
    if not np.array_equal(counts.truth, others.truth):
        raise DataError(
            "the two models were evaluated on the same images with other labels.",
            "Evaluate both with the same protocol on the same prepared data.",
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
            f"the two models were not evaluated on the same images: {len(only)} images belong to "
            f"only one of them, such as '{only[0]}'.",
            "Evaluate both on the same target.",
        )
    return [by_id[image] for image in ids]


def _weights(count: int, draws: int, seed: int) -> NDArray[np.float64]:
    """Return how often each draw contains each of `count` images or pairs, (draws, count)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)


def _middle(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
