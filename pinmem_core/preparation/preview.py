"""A picture of what a prepared dataset holds: images with their labels laid over them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pinmem_core.painting import beside, colorize, overlay, stacked
from pinmem_core.preparation.prepared import Sample


def contact_sheet(
    samples: Sequence[Sample], count: int = 6, tile_width: int = 320
) -> NDArray[np.uint8]:
    """Return a picture with `count` evenly spread samples, a row each: image, labels, both."""
    rows = []
    for index in np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int):
        image, train_ids = samples[index].read()
        rows.append(beside([image, colorize(train_ids), overlay(image, train_ids)], tile_width))
    return stacked(rows)
