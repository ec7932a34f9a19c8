"""Where in images a memory is read: sheets with a row an image."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pinmem_core.drawing import Sheet, ramp
from pinmem_core.evaluation.memory_matrix import slot_name
from pinmem_core.evaluation.memory_reading import Reading
from pinmem_core.labels import CLASSES, Color
from pinmem_core.painting import FAINT, GAP, beside, caption, colorize, heading, legend, stacked

_WIDTH = 1160
"""Pixels of a sheet: what a page shows at once."""
# ColorBrewer's YlOrRd, on all of which a black line can be seen.
_HEAT: tuple[Color, ...] = (
    (255, 255, 178),
    (254, 204, 92),
    (253, 141, 60),
    (240, 59, 32),
    (189, 0, 38),
)
_LEAST_RANGE = 1e-4
"""Weights that differ by less are shown as equal: rounding is no pattern."""
_SCALE = 160
"""Width of the key to these colours."""


def plot_reading(readings: Sequence[Reading]) -> NDArray[np.uint8]:
    """Return an RGB sheet: image, truth, prediction, and the slot that each pixel reads most.

    Args:
        readings: At least one.
    """
    names = ["image", "truth", "prediction", "slot read most"]
    tile = _WIDTH // len(names) - GAP
    rows, seen = [caption(names, tile)], set[int]()
    for reading in readings:
        classes = [reading.truth, reading.prediction, reading.most_read]
        rows.append(heading(reading.id, _rightness(reading), rows[0].shape[1]))
        rows.append(beside([reading.image, *map(colorize, classes)], tile))
        seen |= {*np.unique(classes).tolist()}
    return stacked([*rows, legend(seen, rows[0].shape[1])])


def _rightness(reading: Reading) -> str:
    if not reading.labelled:
        return "no pixel is labelled"
    return f"own slot read most: {reading.right / reading.labelled:.1%} of the labelled pixels"


def commonest_classes(readings: Sequence[Reading], count: int) -> list[int]:
    """Return the trainIds, at most `count`, that label most pixels of all readings, these first."""
    counts = [np.bincount(reading.truth.ravel(), minlength=256) for reading in readings]
    pixels = np.sum(counts, axis=0)[: len(CLASSES)]
    return [int(k) for k in np.argsort(-pixels, kind="stable")[:count] if pixels[k]]


def plot_weights(readings: Sequence[Reading], train_ids: Sequence[int]) -> NDArray[np.uint8]:
    """Return an RGB sheet of how much each pixel reads of some slots, as heat maps.

    The weights of a network differ little, so each map's colours reach from its own smallest weight
    to its own largest, which are told below it. A black line surrounds the class in the truth.

    Args:
        readings: At least one.
        train_ids: Of the slots.
    """
    rows = []
    tile = _WIDTH // (1 + len(train_ids)) - GAP
    for reading in readings:
        weights = {train_id: reading.weight_of(train_id) for train_id in train_ids}
        maps = [_heat(weight, reading.truth == k, tile) for k, weight in weights.items()]
        rows.append(beside([reading.image, *maps], tile))
        ranges = [f"{slot_name(k)}: {w.min():.3f} to {w.max():.3f}" for k, w in weights.items()]
        rows.append(caption([reading.id, *ranges], tile))
    return stacked([*rows, _key(rows[0].shape[1])])


def _heat(weight: NDArray[np.float32], mask: NDArray[np.bool_], width: int) -> NDArray[np.uint8]:
    """Return a heat map with a line around a mask that can be seen where it is `width` wide."""
    low, high = weight.min(), weight.max()
    picture = ramp((weight - low) / max(high - low, _LEAST_RANGE), _HEAT)
    picture[_outline(mask, ceil(mask.shape[1] / width))] = 0
    return picture


def _outline(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return those pixels of a mask (H, W) that are close to one outside it."""
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    return mask & (np.asarray(picture.filter(ImageFilter.BoxBlur(thickness))) < 255)


def _key(width: int) -> NDArray[np.uint8]:
    """Return a row that tells what the colours of heat maps mean."""
    sheet = Sheet(width, 36)
    left = sheet.text(0, 18, "smallest weight of a map", 13, FAINT)
    for step, (red, green, blue) in enumerate(ramp(np.linspace(0, 1, _SCALE), _HEAT).tolist()):
        sheet.rectangle(left + 10 + step, 12, left + 11 + step, 24, (red, green, blue))
    sheet.text(left + _SCALE + 20, 18, "largest", 13, FAINT)
    return sheet.finished()
