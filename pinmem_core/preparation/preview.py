"""A picture of what a prepared dataset holds: images with their labels laid over them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pinmem_core.preparation.samples import Sample
from pinmem_core.preparation.spread import spread
from pinmem_core.visualize import (
    GAP,
    beside,
    caption,
    colorize,
    heading,
    legend,
    overlay,
    stacked,
)

_COLUMNS = ("image", "labels", "overlay")
_MARGIN = 4 * GAP


def contact_sheet(
    samples: Sequence[Sample], count: int = 6, tile_width: int = 320
) -> NDArray[np.uint8]:
    """Return a picture with `count` evenly spread samples, a row each: image, labels, overlay.

    Above each row stands what sample it is; the legend below tells the classes that occur.

    Raises:
        DataError: A sample cannot be read.
    """
    width = (tile_width + GAP) * len(_COLUMNS)
    rows = [caption(_COLUMNS, tile_width)]
    occurring: set[int] = set()
    for sample in spread(samples, count):
        image, train_ids = sample.read()
        occurring |= set(np.unique(train_ids).tolist())
        rows.append(heading(sample.id, _details(sample), width))
        rows.append(beside([image, colorize(train_ids), overlay(image, train_ids)], tile_width))
    rows.append(legend(occurring, width))
    frame = ((_MARGIN, _MARGIN - GAP), (_MARGIN, _MARGIN - GAP), (0, 0))  # each row ends in a gap
    return np.pad(stacked(rows), frame, constant_values=255)


def _details(sample: Sample) -> str:
    return f"{sample.domain} · {sample.split} · {sample.width}x{sample.height}"
