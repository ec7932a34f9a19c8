"""Pictures of a prepared dataset: a preview of samples, and the class shares."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.samples import Sample, spread
from pinmem_core.data.statistics import Statistics
from pinmem_core.drawing import MARGIN, Sheet
from pinmem_core.label_space import CLASSES, StreetClass
from pinmem_core.visualize import (
    FAINT,
    GAP,
    INK,
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


_WIDTH, _ROW = 1000, 26
_TOP = 148
_HEIGHT = _TOP + _ROW * len(CLASSES) + 56
_NAMES_END, _BARS_START, _BARS_END = 150, 162, 716
_SHARES_END, _IMAGES_END, _PART_END = 802, 900, _WIDTH - MARGIN
_BAR = 16
_TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def plot(statistics: Statistics, title: str) -> NDArray[np.uint8]:
    """Return an RGB picture with a bar for each class, on a scale that shows rare ones, too.

    Args:
        statistics: What to draw.
        title: What the figures are of.
    """
    sheet = Sheet(_WIDTH, _HEIGHT)
    total = max(1, sum(statistics.class_pixels.values()))
    shares = {name: pixels / total for name, pixels in statistics.class_pixels.items()}
    longest = max(shares.values()) or 1.0
    _draw_head(sheet, statistics, title)
    _draw_axis(sheet, longest)
    for number, street_class in enumerate(CLASSES):
        y = _TOP + number * _ROW + _ROW // 2
        _draw_class(sheet, y, street_class, shares[street_class.name], longest)
        _draw_images(sheet, y, statistics.class_images[street_class.name], statistics.samples)
    return sheet.finished()


def _draw_head(sheet: Sheet, statistics: Statistics, title: str) -> None:
    width, height, _ = statistics.sizes[0]
    others = len(statistics.sizes) - 1
    plural = "" if others == 1 else "s"
    sizes = f"{width}x{height}" + (f" and {others} other size{plural}" if others else "")
    area = sum(width * height * count for width, height, count in statistics.sizes)
    labelled = sum(statistics.class_pixels.values()) / area
    mean = " ".join(f"{value:.3f}" for value in statistics.mean)
    std = " ".join(f"{value:.3f}" for value in statistics.std)
    sheet.text(MARGIN, 40, title, 24)
    sheet.text(
        MARGIN, 72, f"{statistics.samples:,} samples · {sizes} · {labelled:.1%} of pixels labelled"
    )
    sheet.text(
        MARGIN, 94, f"RGB mean {mean} · deviation {std} · of {statistics.looked_at:,} images"
    )


def _draw_axis(sheet: Sheet, longest: float) -> None:
    bottom = _TOP + _ROW * len(CLASSES)
    for share in (tick for tick in _TICKS if tick <= longest):
        x = _BARS_START + _length(share, longest)
        sheet.line([(x, _TOP), (x, bottom + 4)])
        sheet.text(x, bottom + 14, f"{share:.0%}", 12, FAINT, "mm")
    note = "share of labelled pixels (square-root scale)"
    sheet.text(_BARS_START, _TOP - 14, note, 12, FAINT)
    sheet.text(_SHARES_END, _TOP - 14, "share", 12, FAINT, "rm")
    sheet.text(_PART_END, _TOP - 14, "images it occurs in", 12, FAINT, "rm")


def _draw_class(
    sheet: Sheet, y: float, street_class: StreetClass, share: float, longest: float
) -> None:
    color = INK if share else FAINT
    sheet.text(_NAMES_END, y, street_class.name, color=color, anchor="rm")
    sheet.text(_SHARES_END, y, _percent(share), color=color, anchor="rm")
    if share:
        end = _BARS_START + _length(share, longest)
        top, bottom = y - _BAR / 2, y + _BAR / 2
        sheet.rectangle(_BARS_START, top, end, bottom, street_class.color, radius=_BAR / 5)


def _draw_images(sheet: Sheet, y: float, images: int, samples: int) -> None:
    color = INK if images else FAINT
    sheet.text(_IMAGES_END, y, f"{images:,}", color=color, anchor="rm")
    sheet.text(_PART_END, y, _percent(images / samples), color=FAINT, anchor="rm")


def _length(share: float, longest: float) -> float:
    return sqrt(share / longest) * (_BARS_END - _BARS_START)


def _percent(share: float) -> str:
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.00005:
        return "<0.01%"
    return f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
