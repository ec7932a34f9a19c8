"""Confusion matrix, IoU scores over class sets, and calibration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pinmem_core.label_space import CITYSCAPES, IGNORE_INDEX, LabelSpace

OCCURRING = "occurring"
"""Name of the set of classes that occur in the ground truth. The other sets are fixed."""


def class_sets(space: LabelSpace) -> Mapping[str, NDArray[np.bool_] | None]:
    """Return the sets of classes that a mIoU averages, by name, as for `mean_iou`.

    The default, "occurring", comes first. Cityscapes also has the sets "19", "16" and "13".
    """
    return {OCCURRING: None, **space.subsets}


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return `part / whole`; NaN where `whole` is 0."""
    unknown = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=unknown, where=np.asarray(whole) > 0)


def mean_iou(
    hits: NDArray[Any],
    truth: NDArray[Any],
    predicted: NDArray[Any],
    classes: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return the mean IoU of a batch of counts.

    Args:
        hits: Correctly predicted pixels of each class (TP), (..., K).
        truth: Pixels of each class (TP + FN), (..., K).
        predicted: Labelled pixels predicted as each class (TP + FP), (..., K).
        classes: Whether each class belongs to a fixed set, (K,). Of its classes, those that occur
            in truth or prediction are averaged, as in cityscapesScripts: a class that is only
            predicted counts as 0. None averages the classes that occur in the truth.

    Returns:
        Mean IoU in 0..1, (...); NaN without a class to average.
    """
    iou = ratio(hits, truth + predicted - hits)
    averaged = truth > 0 if classes is None else classes & ~np.isnan(iou)
    return ratio(np.where(averaged, iou, 0).sum(axis=-1), averaged.sum(axis=-1))


@dataclass
class ConfusionMatrix:
    """Exact pixel counts; rows are true classes, columns are predicted classes.

    Attributes:
        counts: Pixels by true and predicted class, (K, K) int64; by default zeros for the 19
            classes of Cityscapes.
        missed: Pixels of each true class predicted as none of the K classes, (K,) int64. They are
            false negatives; with `counts` they sum to the labelled pixels.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: _zeros(len(CITYSCAPES))[:, :-1])
    missed: NDArray[np.int64] = field(default_factory=lambda: _zeros(len(CITYSCAPES))[:, -1])

    @classmethod
    def empty(cls, size: int) -> Self:
        """Return a matrix without pixels for `size` classes."""
        return cls(_zeros(size)[:, :-1], _zeros(size)[:, -1])

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count the labelled pixels of one image.

        Args:
            truth: TrainIds, (H, W); 255 is ignored.
            prediction: Predicted trainIds, (H, W); K and above stand for no class.
        """
        size = len(self.missed)
        pairs = truth.astype(np.uint16) << 8 | prediction
        table = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:size]
        self.counts += table[:, :size]
        self.missed += table[:, size:].sum(axis=1)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts, self.missed + other.missed)

    @property
    def hits(self) -> NDArray[np.int64]:
        """Correctly predicted pixels of each class (TP), (K,)."""
        return self.counts.diagonal()

    @property
    def truth(self) -> NDArray[np.int64]:
        """Pixels of each class (TP + FN), (K,)."""
        return self.counts.sum(axis=1) + self.missed

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Labelled pixels predicted as each class (TP + FP), (K,)."""
        return self.counts.sum(axis=0)

    @property
    def pixels(self) -> int:
        """Number of labelled pixels."""
        return int(self.truth.sum())

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """Whether each class occurs in the truth, (K,)."""
        return self.truth > 0

    @property
    def classes(self) -> tuple[list[int], list[int]]:
        """Classes that occur in the truth, and those that occur in truth or prediction."""
        present = self.occurs | (self.predicted > 0)
        return np.flatnonzero(self.occurs).tolist(), np.flatnonzero(present).tolist()

    @property
    def shares(self) -> NDArray[np.float64]:
        """Fraction of each true class predicted as each class, (K, K); NaN without its pixels."""
        return ratio(self.counts, np.broadcast_to(self.truth[:, None], self.counts.shape))

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU of each class, TP / (TP + FP + FN), (K,); NaN if in neither truth nor prediction."""
        return ratio(self.hits, self.truth + self.predicted - self.hits)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Precision of each class, TP / (TP + FP), (K,); NaN if the class is never predicted."""
        return ratio(self.hits, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Recall of each class, TP / (TP + FN), (K,); NaN if the class does not occur."""
        return ratio(self.hits, self.truth)

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Fraction of labelled pixels of each class, (K,); NaN without labelled pixels."""
        return ratio(self.truth, np.full(len(self.truth), self.pixels))

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of labelled pixels predicted correctly; NaN without labelled pixels."""
        return float(ratio(self.hits.sum(), self.truth.sum()))

    def miou(self, classes: NDArray[np.bool_] | None = None) -> float:
        """Return the mean IoU over `classes`, as `mean_iou`; NaN without a class to average."""
        return float(mean_iou(self.hits, self.truth, self.predicted, classes))


def _zeros(size: int) -> NDArray[np.int64]:
    """Return counts of `size` classes with a last column for pixels of no predicted class."""
    return np.zeros((size, size + 1), np.int64)


@dataclass(frozen=True)
class Scores:
    """Scores of one target; all values except counts are in 0..1.

    Attributes:
        miou: Mean IoU over the classes that occur in the truth; NaN without labelled pixels.
            Predicting a class that does not occur lowers the IoU of the true class.
        iou: IoU by class name; None for a class that does not occur.
        pixels: Number of labelled pixels.
        images: Number of images.
        precision: Precision by class name; None for a class that is never predicted.
        recall: Recall by class name; None for a class that does not occur.
        frequency: Fraction of labelled pixels by class name; None without labelled pixels.
        pixel_accuracy: Fraction of labelled pixels predicted correctly; None without labelled
            pixels.
        miou_by_set: Mean IoU by name of the class set; None without a class to average.
        label_space: Name of the label space of the classes.
    """

    miou: float
    iou: dict[str, float | None]
    pixels: int
    images: int
    precision: dict[str, float | None]
    recall: dict[str, float | None]
    frequency: dict[str, float | None]
    pixel_accuracy: float | None
    miou_by_set: dict[str, float | None]
    label_space: str

    @classmethod
    def of(cls, matrix: ConfusionMatrix, images: int, space: LabelSpace = CITYSCAPES) -> "Scores":
        """Compute the scores from a confusion matrix of `images` images in a label space."""

        def by_name(values: NDArray[np.float64]) -> dict[str, float | None]:
            return dict(zip(space.names, map(none_if_nan, values.tolist()), strict=True))

        sets = class_sets(space).items()
        return cls(
            miou=matrix.miou(),
            iou=by_name(np.where(matrix.occurs, matrix.iou, np.nan)),
            pixels=matrix.pixels,
            images=images,
            precision=by_name(matrix.precision),
            recall=by_name(matrix.recall),
            frequency=by_name(matrix.frequency),
            pixel_accuracy=none_if_nan(matrix.pixel_accuracy),
            miou_by_set={name: none_if_nan(matrix.miou(classes)) for name, classes in sets},
            label_space=space.name,
        )


def mean_over_domains(scores: Iterable[Scores], class_set: str = OCCURRING) -> float | None:
    """Return the unweighted mean of the domains' mIoU; None if a domain has no mIoU.

    Args:
        scores: Scores in one label space.
        class_set: Name of a set in `class_sets`.
    """
    mious = [of_domain.miou_by_set[class_set] for of_domain in scores]
    known = [miou for miou in mious if miou is not None]
    return sum(known) / len(known) if known and len(known) == len(mious) else None


def none_if_nan(value: float) -> float | None:
    """Return `value`, or None for NaN."""
    return None if np.isnan(value) else value


BINS = 15
"""Number of equal bins of 0..1. A bin includes its lower edge; the last bin includes 1."""
_DOUBTS = 1 << 14
_SLAB = 64
"""Rows counted at once; they fit into a processor's cache."""


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

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    confidence_sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    hits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    doubts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, _DOUBTS), np.int64))

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
        return ratio(self.hits, self.counts)

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """Mean confidence of each bin in 0..1, (15,); NaN for an empty bin."""
        return ratio(self.confidence_sums, self.counts)

    @property
    def ece(self) -> float:
        """Expected calibration error in 0..1; NaN without pixels.

        It is the mean of |accuracy - confidence| over bins, weighted by their pixels.
        """
        apart = np.abs(self.hits - self.confidence_sums).sum()
        return float(ratio(apart, self.counts.sum()))

    @property
    def auroc(self) -> float:
        """AUROC of detecting wrong pixels by low confidence; NaN if all are right or all wrong.

        It is the fraction of pairs of a wrong and a right pixel in which the wrong one has the
        lower confidence. Ties count half: 0.5 is chance, 1 is perfect.
        """
        wrong, right = self.doubts.astype(np.float64)
        doubted_less = right.cumsum() - right / 2
        return float(ratio((wrong * doubted_less).sum(), wrong.sum() * right.sum()))


def _count(
    confidence: NDArray[np.float32], truth: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> Calibration:
    """Count the pixels of some rows of an image.

    The three parts of each table count wrong, right and ignored pixels. Counting ignored pixels is
    cheaper than filtering them out.
    """
    confidence = confidence.clip(0, 1).ravel()
    right = (prediction == truth).view(np.uint8)
    third = np.where(truth != IGNORE_INDEX, right, np.uint8(2)).ravel()
    bins = np.minimum((confidence * np.float32(BINS)).astype(np.uint8), BINS - 1) + BINS * third
    counts = np.bincount(bins, minlength=3 * BINS).reshape(3, BINS)
    sums = np.bincount(bins, weights=confidence, minlength=3 * BINS).reshape(3, BINS)
    doubts = (1 - confidence).view(np.uint32) >> 16 | third.astype(np.uint32) << 14
    fine = np.bincount(doubts, minlength=3 * _DOUBTS).reshape(3, _DOUBTS)
    return Calibration(counts[:2].sum(axis=0), sums[:2].sum(axis=0), counts[1], fine[:2])
