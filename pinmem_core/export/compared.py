"""Compare an exported file with its network on the same images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.synthetic import draw_scene

Pixels = NDArray[np.uint8]
Scores = NDArray[Any]
Run = Callable[[Pixels], Scores]
"""Function from RGB images (N, H, W, 3) to logits (N, K, H, W) or uint8 trainIds (N, H, W)."""

LEAST_TOLERANCE = 1e-3
"""Absolute difference of logits that is always accepted."""


@dataclass(frozen=True)
class Comparison:
    """Result of comparing an exported file with its network.

    Attributes:
        shape: Number of images, height and width.
        largest_logit: Largest absolute logit of the network.
        tolerance: Accepted absolute difference of a logit.
        largest_difference: Largest absolute difference of a logit; None if the file returns
            trainIds.
        equal: Fraction of pixels with the same class, in 0..1.
        sure: Fraction of clear pixels, in 0..1. In a clear pixel, the best logit exceeds the second
            by more than the tolerance.
        sure_equal: Fraction of clear pixels with the same class, in 0..1; 1 if there are none.
    """

    shape: tuple[int, int, int]
    largest_logit: float
    tolerance: float
    largest_difference: float | None
    equal: float
    sure: float
    sure_equal: float

    def problem(self) -> str | None:
        """Return a description of the failure, or None if the file passes."""
        count, height, width = self.shape
        where = f"{count} image{'s' * (count > 1)} of {width}x{height}"
        difference = self.largest_difference or 0.0
        if not difference <= self.tolerance:  # also true for NaN
            return (
                f"on {where}, a logit differs by {difference:.2g}; "
                f"the tolerance is {self.tolerance:.2g}"
            )
        if self.sure_equal < 1:
            return f"on {where}, {1 - self.sure_equal:.2%} of the clear pixels change their class"
        return None


def compare(run: Run, network: Run, images: Pixels, share: float) -> Comparison:
    """Compare an exported file with its network on the same images.

    Args:
        run: Function that runs the file.
        network: Function that returns the network's logits.
        images: RGB images, (N, H, W, 3).
        share: Accepted difference of logits as a fraction of the largest logit; a difference up to
            1e-3 is always accepted.
    """
    expected, actual = network(images), run(images)
    largest = float(np.abs(expected).max())
    tolerance = max(LEAST_TOLERANCE, share * largest)
    gives_logits = actual.ndim == expected.ndim
    classes = actual.argmax(axis=1) if gives_logits else actual
    same = classes == expected.argmax(axis=1)
    best = np.partition(expected, -2, axis=1)
    sure = best[:, -1] - best[:, -2] > tolerance
    count, height, width = images.shape[:3]
    return Comparison(
        shape=(count, height, width),
        largest_logit=largest,
        tolerance=tolerance,
        largest_difference=float(np.abs(actual - expected).max()) if gives_logits else None,
        equal=float(same.mean()),
        sure=float(sure.mean()),
        sure_equal=float(same[sure].mean()) if sure.any() else 1.0,
    )


def pictures(shape: tuple[int, int, int]) -> Pixels:
    """Return synthetic scenes as RGB images (N, H, W, 3)."""
    count, height, width = shape
    scenes = [Image.fromarray(draw_scene("cityday", number).image) for number in range(count)]
    return np.stack([np.asarray(scene.resize((width, height))) for scene in scenes])
