"""Pictures of a prepared dataset: a preview of samples, and the class shares."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.samples import Sample, evenly_spaced
from pinmem_core.data.statistics import Statistics
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.plots import plot_class_shares
from pinmem_core.visualize import (
    GAP,
    caption,
    colorize,
    heading,
    legend,
    overlay,
    side_by_side,
    stacked,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("image", "labels", "overlay")
_MARGIN = 4 * GAP


def contact_sheet(
    samples: Sequence[Sample], count: int = 6, tile_width: int = 320
) -> NDArray[np.uint8]:
    """Return an RGB sheet of samples: image, labels and overlay.

    A heading above each row names the sample. The legend lists the classes that occur.

    Args:
        samples: Samples, at least one.
        count: Maximum number of samples; they are evenly spaced.
        tile_width: Width of each picture in pixels.

    Raises:
        DataError: A sample cannot be read.
    """
    width = (tile_width + GAP) * len(_COLUMNS)
    rows = [caption(_COLUMNS, tile_width)]
    occurring: set[int] = set()
    space = samples[0].reading.space
    for sample in evenly_spaced(samples, count):
        image, train_ids = sample.read()
        occurring |= set(np.unique(train_ids).tolist())
        rows.append(heading(sample.id, _details(sample), width))
        pictures = [image, colorize(train_ids, space), overlay(image, train_ids, space)]
        rows.append(side_by_side(pictures, tile_width))
    rows.append(legend(occurring, width, space))
    frame = ((_MARGIN, _MARGIN - GAP), (_MARGIN, _MARGIN - GAP), (0, 0))  # each row ends in a gap
    return np.pad(stacked(rows), frame, constant_values=255)


def _details(sample: Sample) -> str:
    return f"{sample.domain} · {sample.split} · {sample.width}x{sample.height}"


def plot_statistics(statistics: Statistics, title: str, space: LabelSpace = CITYSCAPES) -> "Figure":
    """Plot the share of each class in a dataset, with the numbers of samples and images.

    Args:
        statistics: Statistics of the samples.
        title: Title of the plot.
        space: Label space of the dataset.
    """
    width, height, _ = statistics.sizes[0]
    others = len(statistics.sizes) - 1
    sizes = f"{width}x{height}" + (f" and {others} other size{'s' * (others > 1)}" * bool(others))
    area = sum(width * height * count for width, height, count in statistics.sizes)
    labelled = sum(statistics.class_pixels.values()) / area
    mean, std = (" ".join(f"{v:.3f}" for v in of) for of in (statistics.mean, statistics.std))
    notes = (
        f"{statistics.samples:,} samples · {sizes} · {labelled:.1%} of pixels labelled",
        f"RGB mean {mean} · deviation {std} · of {statistics.looked_at:,} images",
    )
    return plot_class_shares(
        statistics.class_pixels, statistics.class_images, statistics.samples, title, notes, space
    )
