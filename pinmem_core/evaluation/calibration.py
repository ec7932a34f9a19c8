"""Calibration of the confidence, the largest softmax probability of a pixel.

Counts are computed per image and added. The counts are exact, and no pixels are stored.
"""

from dataclasses import dataclass, field
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from pinmem_core.evaluation.scores import share
from pinmem_core.labels import CLASSES

BINS = 15
"""Number of equal bins of 0..1. A bin includes its lower edge; the last bin includes 1."""
_DOUBTS = 1 << 14
_SLAB = 64
"""Rows counted at once; they fit into a processor's cache."""


def _zeros(*shape: int) -> NDArray[np.int64]:
    return np.zeros(shape, np.int64)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Counts of labelled pixels by confidence.

    Attributes:
        counts: Pixels in each bin of confidence, (15,) int64.
        confidence_sums: Sum of confidences in each bin, (15,) float64.
        hits: Correctly predicted pixels in each bin, (15,) int64.
        doubts: Wrong and correct pixels by 1 - confidence, (2, 16384) int64. Bins are the upper 16
            bits of a float32, so that they are at most 0.8 % wide and separate 0.9999 from 0.99999.
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
            confidence: Confidence in 0..1, (H, W).
            truth: TrainIds, (H, W); 255 is ignored.
            prediction: Predicted trainIds, (H, W).
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
        """Accuracy of each bin in 0..1, (15,); NaN for an empty bin."""
        return share(self.hits, self.counts)

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """Mean confidence of each bin in 0..1, (15,); NaN for an empty bin."""
        return share(self.confidence_sums, self.counts)

    @property
    def ece(self) -> float:
        """Expected calibration error in 0..1; NaN without pixels.

        It is the mean of |accuracy - confidence| over bins, weighted by their pixels.
        """
        apart = np.abs(self.hits - self.confidence_sums).sum()
        return float(share(apart, self.counts.sum()))

    @property
    def auroc(self) -> float:
        """AUROC of detecting wrong pixels by low confidence; NaN if all are right or all wrong.

        It is the fraction of pairs of a wrong and a right pixel in which the wrong one has the
        lower confidence. Ties count half: 0.5 is chance, 1 is perfect.
        """
        wrong, right = self.doubts.astype(np.float64)
        doubted_less = right.cumsum() - right / 2
        return float(share((wrong * doubted_less).sum(), wrong.sum() * right.sum()))


def _count(
    confidence: NDArray[np.float32], truth: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> Calibration:
    """Count the pixels of some rows of an image.

    The three parts of each table count wrong, right and ignored pixels. Counting ignored pixels is
    cheaper than filtering them out.
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
