"""The images of a target that went worst and best, for people to look at."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.evaluation.reading import Labelled
from pinmem_core.painting import overlay

_WIDTH = 400
"""Pixels that an example is wide at most: as a page shows it."""


@dataclass(frozen=True, eq=False)
class Example:
    """One image, made small.

    Attributes:
        id: Of the sample.
        miou: Its own, over the classes that occur in it, in 0..1.
        image: (H, W, 3) RGB.
        truth: The classes of its label laid over it, alike.
        prediction: The classes that were predicted, alike.
    """

    id: str
    miou: float
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class Examples:
    """The worst images, the worst first, and the best, the best first; none is in both."""

    worst: tuple[Example, ...] = ()
    best: tuple[Example, ...] = ()


class Gallery:
    """What the pictures of a report need of a target, kept while its images are scored.

    Nothing is predicted a second time for them, and little is in memory: a few reduced examples and
    the predictions of the images that are named.

    Args:
        count: Number of the worst examples, and of the best ones, at most.
        named: Ids of the samples whose whole predictions are kept.

    Attributes:
        predictions: (H, W) trainIds of the named samples by id.
    """

    def __init__(self, count: int, named: Collection[str] = ()) -> None:
        self.predictions: dict[str, NDArray[np.uint8]] = {}
        self._count = count
        self._named = frozenset(named)
        self._order = itertools.count()
        self._worst: list[tuple[float, int, Example]] = []
        self._best: list[tuple[float, int, Example]] = []

    def add(self, seen: Labelled, prediction: NDArray[np.uint8], miou: float) -> None:
        """Take an image into account; one without labelled pixels is no example.

        Args:
            seen: The image and its label.
            prediction: (H, W) trainIds.
            miou: Of the image, NaN where none of its pixels is labelled.
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
        """Return the examples of all images that were added."""
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
    """Return a picture that is at most `_WIDTH` pixels wide, its shape kept."""
    height, width = pixels.shape[:2]
    scale = min(1, _WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))
