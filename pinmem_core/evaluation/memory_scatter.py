"""Plot the memory's slots and the class features of images in a plane."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinmem_core.drawing import MARGIN, Sheet
from pinmem_core.evaluation.marks import SYMBOLS, draw_symbol, place_names
from pinmem_core.evaluation.memory_matrix import slot_name
from pinmem_core.evaluation.projection import Plane
from pinmem_core.labels import COLOR_TABLE, Color
from pinmem_core.painting import FAINT, INK, font

_WIDTH, _HEIGHT, _TOP, _BELOW = 1160, 800, 68, 56
_LEGEND = 220
"""Width of the legend in pixels."""
_EDGE = 40
"""Margin of the chart without marks, in pixels."""
_ROW = 22
_POINT, _SWATCH, _SLOT = 5, 6, 9
"""Radii of the marks in pixels."""
_TEXT = 13
_WHITE: Color = (255, 255, 255)
_BARE = _WHITE, 0


class _Mark(NamedTuple):
    """A mark of a class feature or of a slot; `domain` is the index of the feature's domain."""

    x: float
    y: float
    train_id: int
    domain: int = 0


def plot_projection(
    written: Mapping[str, NDArray[np.float32]], slots: NDArray[np.float32], title: str
) -> NDArray[np.uint8]:
    """Return an RGB picture of memory slots and class features of images, projected by PCA.

    A point is the feature of a class in an image. Its colour shows the class, its shape shows the
    domain (shapes repeat after eight domains). Slots are large and labelled.

    Args:
        written: `Reading.written` of the images of each domain, (images, K, D), by domain; at least
            one domain.
        slots: Memory slots, (K, D); at least two rows must be nonzero. Rows of zeros, here and in
            `written`, are classes that were not seen.
        title: Title of the picture.
    """
    features = np.concatenate([*written.values()])
    domains = np.repeat(np.arange(len(written)), [len(images) for images in written.values()])
    images, classes = np.nonzero(features.any(axis=2))
    (seen,) = np.nonzero(slots.any(axis=1))
    shown = np.concatenate([features[images, classes], slots[seen]])
    plane = Plane.of(shown)
    sheet = Sheet(_WIDTH, max(_HEIGHT, _TOP + (len(written) + len(slots) + 4) * _ROW))
    sheet.text(MARGIN, 36, title, 24)
    room = _draw_frame(sheet, plane)
    places = _fitted(plane.project(shown), room)
    of_points, of_slots = places[: len(images)], places[len(images) :]
    _draw_points(sheet, _marks(of_points, classes, domains[images]))
    _draw_slots(sheet, _marks(of_slots, seen, np.zeros_like(seen)), of_points, room)
    _draw_legend(sheet, sorted({*classes.tolist(), *seen.tolist()}), [*written])
    return sheet.finished()


def _marks(
    places: NDArray[np.float64], classes: NDArray[np.intp], domains: NDArray[np.intp]
) -> list[_Mark]:
    columns = *places.T.tolist(), classes.tolist(), domains.tolist()
    return [_Mark(*values) for values in zip(*columns, strict=True)]


def _draw_frame(sheet: Sheet, plane: Plane) -> NDArray[np.float64]:
    """Draw the frame of the chart; return its upper left and lower right corner, (2, 2)."""
    left, top, bottom = MARGIN, _TOP, sheet.height - _BELOW
    right = sheet.width - 2 * MARGIN - _LEGEND
    sheet.line([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
    across, up = plane.shares
    note = f"across: {across:.0%} of the variance, up: {up:.0%}; both at the same scale"
    sheet.text(left, bottom + 20, note, _TEXT, FAINT)
    return np.array([[left, top], [right, bottom]], np.float64)


def _fitted(places: NDArray[np.float64], room: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale `places` (N, 2) to the largest size that fits, with equal scale on both axes."""
    low, high = places.min(axis=0), places.max(axis=0)
    free = room[1] - room[0] - 2 * _EDGE
    scale = (free / np.maximum(high - low, 1e-9)).min()
    return room.mean(axis=0) + (places - (low + high) / 2) * (scale, -scale)


def _draw_points(sheet: Sheet, points: Sequence[_Mark]) -> None:
    for x, y, train_id, domain in points:
        symbol = SYMBOLS[domain % len(SYMBOLS)]
        draw_symbol(sheet, symbol, (x, y), _POINT, _color(train_id), (_WHITE, 1))


def _draw_slots(
    sheet: Sheet,
    slots: Sequence[_Mark],
    points: NDArray[np.float64],
    room: NDArray[np.float64],
) -> None:
    names = [slot_name(slot.train_id) for slot in slots]
    sizes = np.array([(font(_TEXT).getlength(name) + 6, _TEXT + 4) for name in names])
    places = np.array([(slot.x, slot.y) for slot in slots])
    centres = place_names(places, _SLOT + 2, sizes, points, room).tolist()
    for slot, (x, y) in zip(slots, centres, strict=True):
        sheet.line([(slot.x, slot.y), (x, y)], INK)
    for slot in slots:
        draw_symbol(sheet, SYMBOLS[0], (slot.x, slot.y), _SLOT, _color(slot.train_id), (INK, 2))
    for name, (x, y), (width, height) in zip(names, centres, (sizes / 2).tolist(), strict=True):
        sheet.rectangle(x - width, y - height, x + width, y + height, _WHITE, 4)
        sheet.text(x, y, name, _TEXT, anchor="mm")


def _draw_legend(sheet: Sheet, classes: Sequence[int], domains: Sequence[str]) -> None:
    x, y, room = sheet.width - MARGIN - _LEGEND, _TOP + 8, _LEGEND - 20
    draw_symbol(sheet, SYMBOLS[0], (x, y), _SLOT, _WHITE, (INK, 2))
    sheet.text(x + 20, y, "slot of the memory", _TEXT, room=room)
    for number, domain in enumerate(domains):
        y += _ROW
        draw_symbol(sheet, SYMBOLS[number % len(SYMBOLS)], (x, y), _POINT, FAINT, _BARE)
        sheet.text(x + 20, y, domain, _TEXT, room=room)
    y += _ROW
    for train_id in classes:
        y += _ROW
        draw_symbol(sheet, SYMBOLS[1], (x, y), _SWATCH, _color(train_id), _BARE)
        sheet.text(x + 20, y, slot_name(train_id), _TEXT, room=room)


def _color(train_id: int) -> Color:
    red, green, blue = COLOR_TABLE[train_id].tolist()
    return red, green, blue
