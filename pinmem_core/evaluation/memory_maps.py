"""Sheets that show which memory slots the pixels of images read, one row per image."""

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
"""Width of a sheet in pixels; it fits on a page."""
# ColorBrewer's YlOrRd. A black line is visible on all of its colours.
_HEAT: tuple[Color, ...] = (
    (255, 255, 178),
    (254, 204, 92),
    (253, 141, 60),
    (240, 59, 32),
    (189, 0, 38),
)
_LEAST_RANGE = 1e-4
"""Smallest range of weights that a heat map resolves, so that it does not amplify rounding."""
_SCALE = 160
"""Width of the colour bar in pixels."""


def plot_reading(readings: Sequence[Reading]) -> NDArray[np.uint8]:
    """Return an RGB sheet of image, truth, prediction and the slot that each pixel reads most.

    Args:
        readings: Readings, at least one.
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
    """Return up to `count` most frequent trainIds in the truth of all readings, descending."""
    counts = [np.bincount(reading.truth.ravel(), minlength=256) for reading in readings]
    pixels = np.sum(counts, axis=0)[: len(CLASSES)]
    return [int(k) for k in np.argsort(-pixels, kind="stable")[:count] if pixels[k]]


def plot_weights(readings: Sequence[Reading], train_ids: Sequence[int]) -> NDArray[np.uint8]:
    """Return an RGB sheet of heat maps of the read weights of some slots.

    The weights of a network differ little, so the colours of each map span its own range, which is
    printed below it. A black line surrounds the class in the ground truth.

    Args:
        readings: Readings, at least one.
        train_ids: TrainIds of the slots.
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
    """Return a heat map with a line around a mask that stays visible at a width of `width`."""
    low, high = weight.min(), weight.max()
    picture = ramp((weight - low) / max(high - low, _LEAST_RANGE), _HEAT)
    picture[_outline(mask, ceil(mask.shape[1] / width))] = 0
    return picture


def _outline(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask (H, W) that are close to a pixel outside of it."""
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    return mask & (np.asarray(picture.filter(ImageFilter.BoxBlur(thickness))) < 255)


def _key(width: int) -> NDArray[np.uint8]:
    """Return a row with the colour bar of the heat maps."""
    sheet = Sheet(width, 36)
    left = sheet.text(0, 18, "smallest weight of a map", 13, FAINT)
    for step, (red, green, blue) in enumerate(ramp(np.linspace(0, 1, _SCALE), _HEAT).tolist()):
        sheet.rectangle(left + 10 + step, 12, left + 11 + step, 24, (red, green, blue))
    sheet.text(left + _SCALE + 20, 18, "largest", 13, FAINT)
    return sheet.finished()
