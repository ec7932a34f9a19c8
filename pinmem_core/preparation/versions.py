"""Telling versions of a dataset apart that lie in the same folders under the same names."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pinmem_core.datasets import DatasetCard, Layout
from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError
from pinmem_core.label_space import CLASSES, TRAIN_ID
from pinmem_core.preparation.encodings import ENCODINGS
from pinmem_core.preparation.raw_files import RawFiles
from pinmem_core.preparation.spread import spread

_LOOKED_AT = 32
"""Label files that are opened to find the largest id."""
_CONFIG = re.compile(r"config(_v[0-9.]+)?\.json", re.IGNORECASE)
_ROAD = CLASSES[TRAIN_ID["road"]].color


def count_classes(files: RawFiles) -> int | None:
    """Return how many classes the configuration among some files lists.

    Returns:
        The number; None without a configuration, or with several that differ.
    """
    counts = set()
    for number, text in enumerate(files.texts):
        if _CONFIG.fullmatch(PurePosixPath(text).name):
            try:
                labels = read_json_object(files.path(number)).get("labels")
            except DataError:
                continue  # the configuration of something else
            if isinstance(labels, list):
                counts.add(len(labels))
    return counts.pop() if len(counts) == 1 else None


def fits_version(
    card: DatasetCard, layout: Layout, labels: Sequence[Path], classes: int | None, *, named: bool
) -> bool:
    """Return whether labels may be of the version that a layout is for.

    The label map that the user names decides; else the palette in the labels; else the number of
    classes in a configuration; else the largest id.

    Args:
        card: The dataset.
        layout: Its layout.
        labels: Label files.
        classes: How many classes a configuration lists; None where none does.
        named: Whether the user has named the label map of the layout.
    """
    if layout.largest_id is None:
        return True
    low, high = layout.largest_id
    if labels and largest_id(card, layout, labels) > high:
        return False
    if named:
        return True
    road = _road_in_palette(labels)
    if road is not None:
        train_ids, _ = card.label_map(layout.label_maps[0]).apply(np.array([[road]], np.uint8))
        return bool(train_ids[0, 0] == TRAIN_ID["road"])
    if classes is not None:
        return low < classes <= high + 1
    return largest_id(card, layout, labels) >= low


def is_assumed(layout: Layout, labels: Sequence[Path], classes: int | None) -> bool:
    """Return whether nothing but small ids speaks for the version that a layout is for."""
    if layout.largest_id is None or layout.largest_id[0] > 0:
        return False
    return classes is None and _road_in_palette(labels) is None


def largest_id(card: DatasetCard, layout: Layout, labels: Sequence[Path]) -> int:
    """Return the largest raw id in a few evenly spread label files."""
    decode = ENCODINGS.get(layout.encoding)
    largest = 0
    for path in spread(labels, _LOOKED_AT):
        try:
            largest = max(largest, int(decode(path, card.label_map(layout.label_maps[0])).max()))
        except DataError:
            continue  # prepare leaves it out
    return largest


def _road_in_palette(labels: Sequence[Path]) -> int | None:
    """Return which value the palette of the first label paints as road; None without a palette."""
    if not labels:
        return None
    try:
        with Image.open(labels[0]) as image:
            palette = image.getpalette() if image.mode == "P" else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    colours = list(zip(*[iter(palette or [])] * 3, strict=True))
    return colours.index(_ROAD) if colours.count(_ROAD) == 1 else None
