"""The part of a Mapillary image that the original implementation evaluates."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 1536
"""Side of the square that the original cuts from Mapillary images, in pixels."""


def mapillary_original(
    image: NDArray[np.uint8], label: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the centred square of a Mapillary image and its label that the original scores.

    Image (bicubic) and label (nearest) are resized to a height of 1536 pixels and cropped left and
    right. Narrower ones are padded: the image with black, the label with trainId 0 (road).

    Args:
        image: RGB image, (H, W, 3).
        label: TrainIds, (H, W).

    Returns:
        Image, (1536, 1536, 3), and label, (1536, 1536).
    """
    size = max(1, int(label.shape[1] * SIDE / label.shape[0])), SIDE
    shown = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    truth = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    return _centred(shown), _centred(truth)


def _centred(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the central square of a picture, padded with zeros where it is too narrow."""
    square = Image.new(picture.mode, (SIDE, SIDE))
    square.paste(picture, ((SIDE - picture.width) // 2, 0))
    return np.asarray(square)
