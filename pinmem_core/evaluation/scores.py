"""The confusion matrix and what is read off it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pinmem_core.labels import CLASS_NAMES, IGNORE_INDEX


def _empty_matrix() -> NDArray[np.int64]:
    return np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), dtype=np.int64)


@dataclass
class ConfusionMatrix:
    """Pixel counts, exact: rows are the true class, columns the predicted one.

    Attributes:
        counts: (19, 19) int64.
    """

    counts: NDArray[np.int64] = field(default_factory=_empty_matrix)

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count the labelled pixels of one image.

        Args:
            truth: (H, W) trainIds, 255 = ignore.
            prediction: (H, W) trainIds in 0..18.
        """
        size = len(self.counts)
        labelled = truth != IGNORE_INDEX
        pairs = truth[labelled].astype(np.int64) * size + prediction[labelled]
        self.counts += np.bincount(pairs, minlength=size * size).reshape(size, size)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(19,) TP / (TP + FP + FN), NaN for a class in neither truth nor prediction."""
        hits = self.counts.diagonal().astype(np.float64)
        union = self.counts.sum(axis=0) + self.counts.sum(axis=1) - self.counts.diagonal()
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """(19,) whether the truth holds a class."""
        return self.counts.sum(axis=1) > 0


@dataclass(frozen=True)
class Scores:
    """What a report says of one target.

    Attributes:
        miou: Mean IoU over the classes that occur in the truth, in 0..1. Predicting a class that
            does not occur costs the class that it was mistaken for.
        iou: By class name; None for a class that does not occur.
        pixels: Labelled pixels that were scored.
        images: Images that were scored.
    """

    miou: float
    iou: dict[str, float | None]
    pixels: int
    images: int

    @classmethod
    def of(cls, matrix: ConfusionMatrix, images: int) -> "Scores":
        """Read the scores off a confusion matrix of `images` images."""
        occurs, iou = matrix.occurs, matrix.iou
        named = {name: float(iou[i]) if occurs[i] else None for i, name in enumerate(CLASS_NAMES)}
        return cls(float(iou[occurs].mean()), named, int(matrix.counts.sum()), images)
