"""The confusion matrix and what is read off it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.evaluation.class_sets import CLASS_SET_NAMES, OCCURRING, averaged
from pinmem_core.labels import CLASS_NAMES

_SIZE = len(CLASS_NAMES)


def share(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return `part / whole`, NaN where `whole` is 0."""
    unknown = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=unknown, where=np.asarray(whole) > 0)


def mean_iou(
    hits: NDArray[Any], truth: NDArray[Any], predicted: NDArray[Any], class_set: str
) -> NDArray[np.float64]:
    """Return the mean IoU of each of many counts.

    Args:
        hits: (..., 19) pixels of each class that are predicted as it.
        truth: (..., 19) pixels of each class.
        predicted: (..., 19) labelled pixels that are predicted as each class.
        class_set: Name of the classes that are averaged.

    Returns:
        (...) in 0..1, NaN where there is no class to average.
    """
    iou = share(hits, truth + predicted - hits)
    taken = averaged(class_set, iou, truth)
    return share(np.where(taken, iou, 0).sum(axis=-1), taken.sum(axis=-1))


@dataclass
class ConfusionMatrix:
    """Pixel counts, exact: rows are the true class, columns the predicted one.

    Attributes:
        counts: (19, 19) int64.
        missed: (19,) int64, pixels of each true class that are predicted as none of the 19. They
            count as not found, and with `counts` they sum to the labelled pixels.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((_SIZE, _SIZE), np.int64))
    missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_SIZE, np.int64))

    def add(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count the labelled pixels of one image.

        Args:
            truth: (H, W) trainIds, 255 = ignore.
            prediction: (H, W) trainIds; anything above 18 is a prediction of no class.
        """
        pairs = truth.astype(np.uint16) << 8 | prediction
        table = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:_SIZE]
        self.counts += table[:, :_SIZE]
        self.missed += table[:, _SIZE:].sum(axis=1)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts, self.missed + other.missed)

    @property
    def hits(self) -> NDArray[np.int64]:
        """(19,) pixels of each class that are predicted as it (TP)."""
        return self.counts.diagonal()

    @property
    def truth(self) -> NDArray[np.int64]:
        """(19,) pixels of each class (TP + FN)."""
        return self.counts.sum(axis=1) + self.missed

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(19,) labelled pixels that are predicted as each class (TP + FP)."""
        return self.counts.sum(axis=0)

    @property
    def pixels(self) -> int:
        """Labelled pixels."""
        return int(self.truth.sum())

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """(19,) whether the truth holds a class."""
        return self.truth > 0

    @property
    def iou(self) -> NDArray[np.float64]:
        """(19,) TP / (TP + FP + FN), NaN for a class in neither truth nor prediction."""
        return share(self.hits, self.truth + self.predicted - self.hits)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(19,) TP / (TP + FP), NaN for a class that is never predicted."""
        return share(self.hits, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(19,) TP / (TP + FN), NaN for a class that does not occur."""
        return share(self.hits, self.truth)

    @property
    def frequency(self) -> NDArray[np.float64]:
        """(19,) share of the labelled pixels, NaN where there are none."""
        return share(self.truth, np.full(_SIZE, self.pixels))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted right, NaN where there are none."""
        return float(share(self.hits.sum(), self.truth.sum()))

    def miou(self, class_set: str = OCCURRING) -> float:
        """Return the mean IoU over a class set, NaN where there is no class to average.

        Args:
            class_set: "occurring": the classes in the truth. "19", "16", "13": those of the set
                that are in truth or prediction.

        Raises:
            ConfigError: There is no such set.
        """
        return float(mean_iou(self.hits, self.truth, self.predicted, class_set))


@dataclass(frozen=True)
class Scores:
    """What a report says of one target, in 0..1 where it is no count.

    Attributes:
        miou: Mean IoU over the classes that occur in the truth; NaN where no pixel is labelled.
            Predicting a class that does not occur costs the class that it was mistaken for.
        iou: By class name; None for a class that does not occur.
        pixels: Labelled pixels that were scored.
        images: Images that were scored.
        precision: By class name; None for a class that is never predicted.
        recall: By class name; None for a class that does not occur.
        frequency: Share of the labelled pixels, by class name; None where none is labelled.
        pixel_accuracy: Share of the labelled pixels that are right; None where none is labelled.
        miou_by_set: By name of the class set; None where it has no class to average.
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
        """Read the scores off a confusion matrix of `images` images."""
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
    """Return the mean of the domains' mIoU, as papers do; None where a domain has none.

    Every domain weighs the same, however many images it has.
    """
    mious = [of_domain.miou_by_set[class_set] for of_domain in scores]
    known = [miou for miou in mious if miou is not None]
    return sum(known) / len(known) if known and len(known) == len(mious) else None


def _named(values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _known(value) for name, value in zip(CLASS_NAMES, values.tolist(), strict=True)}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
