"""What a file and the network it was made of say of the same images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.scenes import draw_scene

Pixels = NDArray[np.uint8]
Scores = NDArray[Any]
Run = Callable[[Pixels], Scores]
"""From RGB images (N, H, W, 3) to logits (N, K, H, W), or to uint8 trainIds (N, H, W)."""

LEAST_TOLERANCE = 1e-3
"""By so much logits may always differ."""


@dataclass(frozen=True)
class Comparison:
    """How a file did beside the network.

    Attributes:
        shape: Images, rows and columns.
        largest_logit: The network's, by absolute value.
        tolerance: What a logit may differ by.
        largest_difference: Of a logit; None for a file that gives trainIds.
        equal: Share of the pixels whose class is the same.
        sure: Share of the pixels whose best logit leads the second by more than the tolerance.
        sure_equal: Share of those whose class is the same; 1 where there are none.
    """

    shape: tuple[int, int, int]
    largest_logit: float
    tolerance: float
    largest_difference: float | None
    equal: float
    sure: float
    sure_equal: float

    def problem(self) -> str | None:
        """Return what is wrong with the file, or None."""
        count, height, width = self.shape
        where = f"{count} image{'s' * (count > 1)} of {width}x{height}"
        difference = self.largest_difference or 0.0
        if not difference <= self.tolerance:  # which NaN is not
            return (
                f"of {where} a logit differs by {difference:.2g}, "
                f"where rounding explains {self.tolerance:.2g}"
            )
        if self.sure_equal < 1:
            return f"of {where} {1 - self.sure_equal:.2%} of the clear pixels change their class"
        return None


def compare(run: Run, network: Run, images: Pixels, share: float) -> Comparison:
    """Show the same images to both.

    Args:
        run: The file.
        network: What it was made of; gives logits.
        images: (N, H, W, 3) RGB.
        share: Of the largest logit, by which logits may differ; by 1e-3 they always may.
    """
    expected, found = network(images), run(images)
    largest = float(np.abs(expected).max())
    tolerance = max(LEAST_TOLERANCE, share * largest)
    gives_logits = found.ndim == expected.ndim
    classes = found.argmax(axis=1) if gives_logits else found
    same = classes == expected.argmax(axis=1)
    best = np.partition(expected, -2, axis=1)
    sure = best[:, -1] - best[:, -2] > tolerance
    count, height, width = images.shape[:3]
    return Comparison(
        shape=(count, height, width),
        largest_logit=largest,
        tolerance=tolerance,
        largest_difference=float(np.abs(found - expected).max()) if gives_logits else None,
        equal=float(same.mean()),
        sure=float(sure.mean()),
        sure_equal=float(same[sure].mean()) if sure.any() else 1.0,
    )


def pictures(shape: tuple[int, int, int]) -> Pixels:
    """Return drawn streets as RGB images (N, H, W, 3)."""
    count, height, width = shape
    scenes = [Image.fromarray(draw_scene("cityday", number).image) for number in range(count)]
    return np.stack([np.asarray(scene.resize((width, height))) for scene in scenes])
