"""Does confidence tell how often the network is right?

Confidence is the largest softmax probability of a pixel. Counts are gathered image by image and
added; nothing is approximated in the bins, and no pixel is kept.
"""

from dataclasses import dataclass, field
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from pinmem_core.evaluation.scores import share
from pinmem_core.labels import CLASSES

BINS = 15
"""Equal parts of 0..1; a bin holds its lower edge, and the last one 1, too."""
_DOUBTS = 1 << 14
_SLAB = 64
"""Rows that are counted at once: what the processor's cache holds."""


def _zeros(*shape: int) -> NDArray[np.int64]:
    return np.zeros(shape, np.int64)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The labelled pixels by how confident the network was; an empty one has none.

    Attributes:
        counts: (15,) int64, pixels in each bin of confidence.
        confidence_sums: (15,) float64, sum of their confidences.
        hits: (15,) int64, pixels among them that are predicted right.
        doubts: (2, 16384) int64, the pixels that are predicted wrong, and those that are right, by
            1 - confidence. The bins are the upper 16 bits of a float32: at most 0.8 % wide, so that
            they tell apart 0.9999 and 0.99999.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: _zeros(BINS))
    confidence_sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    hits: NDArray[np.int64] = field(default_factory=lambda: _zeros(BINS))
    doubts: NDArray[np.int64] = field(default_factory=lambda: _zeros(2, _DOUBTS))

    @classmethod
    def of(
        cls,
        confidence: NDArray[np.float32],
        truth: NDArray[np.uint8],
        prediction: NDArray[np.uint8],
    ) -> "Calibration":
        """Count the labelled pixels of one image.

        Args:
            confidence: (H, W) in 0..1.
            truth: (H, W) trainIds, 255 = ignore.
            prediction: (H, W) trainIds.
        """
        slabs = [slice(top, top + _SLAB) for top in range(0, len(truth), _SLAB)]
        counted = (_count(confidence[rows], truth[rows], prediction[rows]) for rows in slabs)
        return reduce(add, counted, cls())

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.counts + other.counts,
            self.confidence_sums + other.confidence_sums,
            self.hits + other.hits,
            self.doubts + other.doubts,
        )

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(15,) share of a bin's pixels that are right, NaN for an empty bin."""
        return share(self.hits, self.counts)

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """(15,) mean confidence of a bin's pixels, NaN for an empty bin."""
        return share(self.confidence_sums, self.counts)

    @property
    def ece(self) -> float:
        """Expected calibration error: how far accuracy and confidence are apart on average.

        In 0..1, weighted by the pixels of the bins; NaN where there are none.
        """
        apart = np.abs(self.hits - self.confidence_sums).sum()
        return float(share(apart, self.counts.sum()))

    @property
    def auroc(self) -> float:
        """Share of the pairs of a wrong and a right pixel in which the wrong one is doubted more.

        Ties count half: 0.5 is chance, 1 is perfect. NaN where all are right, or all wrong.
        """
        wrong, right = self.doubts.astype(np.float64)
        doubted_less = right.cumsum() - right / 2
        return float(share((wrong * doubted_less).sum(), wrong.sum() * right.sum()))


def _count(
    confidence: NDArray[np.float32], truth: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> Calibration:
    """Count some rows of an image.

    Filtering out the ignored pixels would cost more than counting them apart: the first third of
    each table is for wrong pixels, the second for right ones, the last for those.
    """
    confidence = confidence.clip(0, 1).ravel()
    right = (prediction == truth).view(np.uint8)
    third = np.where(truth < len(CLASSES), right, np.uint8(2)).ravel()
    bins = np.minimum((confidence * np.float32(BINS)).astype(np.uint8), BINS - 1) + BINS * third
    counts = np.bincount(bins, minlength=3 * BINS).reshape(3, BINS)
    sums = np.bincount(bins, weights=confidence, minlength=3 * BINS).reshape(3, BINS)
    doubts = (1 - confidence).view(np.uint32) >> 16 | third.astype(np.uint32) << 14
    fine = np.bincount(doubts, minlength=3 * _DOUBTS).reshape(3, _DOUBTS)
    return Calibration(counts[:2].sum(axis=0), sums[:2].sum(axis=0), counts[1], fine[:2])
