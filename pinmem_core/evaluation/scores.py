"""Confusion matrix, and the scores computed from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.evaluation.class_sets import CLASS_SET_NAMES, OCCURRING, averaged
from pinmem_core.labels import CLASS_NAMES

_SIZE = len(CLASS_NAMES)


def share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return `part / whole`; NaN where `whole` is 0."""
    unknown = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=unknown, where=np.asarray(whole) > 0)


def mean_iou(
    hits: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any], class_set: str
) -> NDArray[np.float64]:
    """Return the mean IoU of a batch of counts.

    Args:
        hits: Correctly predicted pixels of each class (TP), (..., 19).
        truth: Pixels of each class (TP + FN), (..., 19).
        predicted: Labelled pixels predicted as each class (TP + FP), (..., 19).
        class_set: Name of the class set to average.

    Returns:
        Mean IoU in 0..1, (...); NaN without a class to average.
    """
    iou = share(hits, truth + predicted - hits)
    taken = averaged(class_set, iou, truth)
    return share(np.where(taken, iou, 0).sum(axis=-1), taken.sum(axis=-1))


@dataclass
class ConfusionMatrix:
    """Exact pixel counts; rows are true classes, columns are predicted classes.

    Attributes:
        counts: Pixels by true and predicted class, (19, 19) int64.
        missed: Pixels of each true class predicted as none of the 19 classes, (19,) int64. They are
            false negatives; with `counts` they sum to the labelled pixels.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((_SIZE, _SIZE), np.int64))
    missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_SIZE, np.int64))

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count the labelled pixels of one image.

        Args:
            truth: TrainIds, (H, W); 255 is ignored.
            prediction: Predicted trainIds, (H, W); values above 18 stand for no class.
        """
        pairs = truth.astype(np.uint16) << 8 | prediction
        table = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:_SIZE]
        self.counts += table[:, :_SIZE]
        self.missed += table[:, _SIZE:].sum(axis=1)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts, self.missed + other.missed)

    @property
    def hits(self) -> NDArray[np.int64]:
        """Correctly predicted pixels of each class (TP), (19,)."""
        return self.counts.diagonal()

    @property
    def truth(self) -> NDArray[np.int64]:
        """Pixels of each class (TP + FN), (19,)."""
        return self.counts.sum(axis=1) + self.missed

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Labelled pixels predicted as each class (TP + FP), (19,)."""
        return self.counts.sum(axis=0)

    @property
    def pixels(self) -> int:
        """Number of labelled pixels."""
        return int(self.truth.sum())

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """Whether each class occurs in the truth, (19,)."""
        return self.truth > 0

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU of each class, TP / (TP + FP + FN), (19,); NaN if in neither truth nor prediction."""
        return share(self.hits, self.truth + self.predicted - self.hits)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Precision of each class, TP / (TP + FP), (19,); NaN if the class is never predicted."""
        return share(self.hits, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Recall of each class, TP / (TP + FN), (19,); NaN if the class does not occur."""
        return share(self.hits, self.truth)

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Fraction of labelled pixels of each class, (19,); NaN without labelled pixels."""
        return share(self.truth, np.full(_SIZE, self.pixels))

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of labelled pixels predicted correctly; NaN without labelled pixels."""
        return float(share(self.hits.sum(), self.truth.sum()))

    def miou(self, class_set: str = OCCURRING) -> float:
        """Return the mean IoU over a class set; NaN without a class to average.

        Args:
            class_set: Name of the set: "occurring" for the classes in the truth; "19", "16" or "13"
                for the classes of that set in truth or prediction.

        Raises:
            ConfigError: The class set does not exist.
        """
        return float(mean_iou(self.hits, self.truth, self.predicted, class_set))


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

    @classmethod
    def of(cls, matrix: ConfusionMatrix, images: int) -> "Scores":
        """Compute the scores from a confusion matrix of `images` images."""
        return cls(
            miou=matrix.miou(),
            iou=_named(np.where(matrix.occurs, matrix.iou, np.nan)),
            pixels=matrix.pixels,
            images=images,
            precision=_named(matrix.precision),
            recall=_named(matrix.recall),
            frequency=_named(matrix.frequency),
            pixel_accuracy=_known(matrix.pixel_accuracy),
            miou_by_set={name: _known(matrix.miou(name)) for name in CLASS_SET_NAMES},
        )


def mean_over_domains(scores: Iterable[Scores], class_set: str = OCCURRING) -> float | None:
    """Return the unweighted mean of the domains' mIoU; None if a domain has no mIoU."""
    mious = [of_domain.miou_by_set[class_set] for of_domain in scores]
    known = [miou for miou in mious if miou is not None]
    return sum(known) / len(known) if known and len(known) == len(mious) else None


def _named(values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _known(value) for name, value in zip(CLASS_NAMES, values.tolist(), strict=True)}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
