"""What of an image, and of its label, an evaluation shows and scores."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 1536
"""Of the square that the original shows of Mapillary's images, in pixels."""


def mapillary_original(
    image: NDArray[np.uint8], label: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the square that the original scores of a Mapillary image: 1536 pixels high, centred.

    Image (bicubic) and label (nearest) are resized to that height and cut left and right. Where
    they are narrower, they are padded: the image with black, the label with 0, which is road.

    Args:
        image: (H, W, 3) RGB.
        label: (H, W) trainIds.

    Returns:
        (1536, 1536, 3) and (1536, 1536).
    """
    size = max(1, int(label.shape[1] * SIDE / label.shape[0])), SIDE
    shown = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    truth = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    return _centred(shown), _centred(truth)


def _centred(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the middle of a picture, on black where it is too narrow."""
    square = Image.new(picture.mode, (SIDE, SIDE))
    square.paste(picture, ((SIDE - picture.width) // 2, 0))
    return np.asarray(square)
