"""Example images of a target: those with the lowest and the highest mIoU."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.evaluation.reading import Labelled
from pinmem_core.painting import overlay

_WIDTH = 400
"""Maximum width of an example in pixels."""


@dataclass(frozen=True, eq=False)
class Example:
    """One image in reduced size.

    Attributes:
        id: Id of the sample.
        miou: mIoU of the image over the classes that occur in it, in 0..1.
        image: RGB image, (H, W, 3).
        truth: Overlay of the true classes, (H, W, 3) RGB.
        prediction: Overlay of the predicted classes, (H, W, 3) RGB.
    """

    id: str
    miou: float
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class Examples:
    """Worst and best examples, without duplicates.

    Attributes:
        worst: Examples with the lowest mIoU, ascending.
        best: Examples with the highest mIoU, descending.
    """

    worst: tuple[Example, ...] = ()
    best: tuple[Example, ...] = ()


class Gallery:
    """Collect examples and predictions for a report while a target is evaluated.

    The collection avoids a second prediction. It keeps only a few reduced examples and the
    predictions of the named samples in memory.

    Args:
        count: Maximum number of worst examples, and of best examples.
        named: Ids of the samples whose predictions are kept.

    Attributes:
        predictions: Predicted trainIds, (H, W), of the named samples, by id.
    """

    def __init__(self, count: int, named: Collection[str] = ()) -> None:
        self.predictions: dict[str, NDArray[np.uint8]] = {}
        self._count = count
        self._named = frozenset(named)
        self._order = itertools.count()
        self._worst: list[tuple[float, int, Example]] = []
        self._best: list[tuple[float, int, Example]] = []

    def add(self, seen: Labelled, prediction: NDArray[np.uint8], miou: float) -> None:
        """Add an image; an image without labelled pixels is never an example.

        Args:
            seen: Image with its label.
            prediction: Predicted trainIds, (H, W).
            miou: mIoU of the image in 0..1; NaN without labelled pixels.
        """
        if seen.id in self._named:
            self.predictions[seen.id] = prediction
        if np.isnan(miou):
            return
        order = next(self._order)
        worst, best = (miou, order), (-miou, -order)
        is_worst, is_best = self._enters(self._worst, worst), self._enters(self._best, best)
        if not (is_worst or is_best):
            return
        example = _example(seen, prediction, miou)
        if is_worst:
            self._worst = sorted([*self._worst, (*worst, example)], key=_rank)[: self._count]
        if is_best:
            self._best = sorted([*self._best, (*best, example)], key=_rank)[: self._count]

    def examples(self) -> Examples:
        """Return the examples among all added images."""
        worst = tuple(example for *_, example in self._worst)
        best = tuple(example for *_, example in self._best)
        shown = {example.id for example in worst}
        return Examples(worst, tuple(example for example in best if example.id not in shown))

    def _enters(self, kept: Sequence[tuple[float, int, Example]], rank: tuple[float, int]) -> bool:
        return len(kept) < self._count or rank < _rank(kept[-1])


def _rank(kept: tuple[float, int, Example]) -> tuple[float, int]:
    return kept[:2]


def _example(seen: Labelled, prediction: NDArray[np.uint8], miou: float) -> Example:
    small = _reduced(seen.image, Image.Resampling.BICUBIC)
    classes = (_reduced(ids, Image.Resampling.NEAREST) for ids in (seen.truth, prediction))
    return Example(seen.id, miou, small, *(overlay(small, ids) for ids in classes))


def _reduced(pixels: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
    """Resize a picture to a width of at most `_WIDTH` pixels, keeping its aspect ratio."""
    height, width = pixels.shape[:2]
    scale = min(1, _WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))
