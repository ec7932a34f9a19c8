"""The forms in which a prediction can be written."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import unknown_name
from pinmem_core.labels import LABEL_ID_TABLE
from pinmem_core.painting import colorize, overlay

Painter = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.uint8]]
"""Takes the image (H, W, 3) and its trainIds (H, W); gives (H, W) or (H, W, 3) to write."""

PAINTERS: dict[str, Painter] = {
    "color": lambda image, train_ids: colorize(train_ids),
    "trainid": lambda image, train_ids: train_ids,
    "labelid": lambda image, train_ids: LABEL_ID_TABLE[train_ids],
    "overlay": overlay,
}


def get_painter(name: str) -> Painter:
    """Return the painter `name`.

    Raises:
        ConfigError: There is none; the closest one is suggested.
    """
    if name not in PAINTERS:
        raise unknown_name("format", name, PAINTERS)
    return PAINTERS[name]
