"""The images of a target that went worst and best, for people to look at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.evaluation.evaluate import Target
from pinmem_core.evaluation.reading import my_share
from pinmem_core.evaluation.results import DomainResult
from pinmem_core.events import Listener, ignore
from pinmem_core.inference import Predictor
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

    worst: tuple[Example, ...]
    best: tuple[Example, ...]


def find_examples(
    predictor: Predictor,
    target: Target,
    result: DomainResult,
    count: int,
    *,
    on_event: Listener = ignore,
) -> Examples:
    """Return the images of a target with the lowest and with the highest mIoU.

    Args:
        predictor: What the result is of.
        target: Likewise.
        result: Tells which images to take; those without labelled pixels are passed over.
        count: At most so many of each.
        on_event: Hears of the progress.
    """
    mious = {image.id: image.matrix.miou() for image in result.images}
    ranked = sorted((i for i in mious if not np.isnan(mious[i])), key=lambda i: mious[i])
    worst, best = ranked[:count], ranked[count:][::-1][:count]
    samples = [sample for sample in target.samples if sample.id in (*worst, *best)]
    task = f"showing {target.name}"
    read = my_share(samples, predictor.protocol, on_event=on_event, task=task)
    shown = {name: _example(predictor, name, mious[name], *pair) for name, *pair in read}
    return Examples(tuple(shown[name] for name in worst), tuple(shown[name] for name in best))


def _example(
    predictor: Predictor,
    name: str,
    miou: float,
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8],
) -> Example:
    prediction = predictor.predict(image)
    small = _reduced(image, Image.Resampling.BICUBIC)
    laid = (overlay(small, _reduced(ids, Image.Resampling.NEAREST)) for ids in (truth, prediction))
    return Example(name, miou, small, *laid)


def _reduced(pixels: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
    """Return a picture that is at most `_WIDTH` pixels wide, its shape kept."""
    height, width = pixels.shape[:2]
    scale = min(1, _WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))
