"""Plot the cosine similarity matrix of the memory's slots."""

from math import isfinite

import numpy as np
from numpy.typing import NDArray

from pinmem_core.drawing import GRID, MARGIN, Sheet
from pinmem_core.labels import CLASS_NAMES, Color
from pinmem_core.painting import FAINT, INK

_CELL, _MATRIX = 46, 1800
"""Maximum side of a cell and of the whole matrix, in pixels."""
_READABLE = 34
"""Smallest side of a cell that shows its value, in pixels."""
_ROW_NAMES, _COLUMN_NAMES = 190, 110
_NARROWEST = 720
_NEVER_SEEN = "never seen"
# ColorBrewer's RdBu; colour-blind people can distinguish its ends.
_COSINES = (-1.0, -0.5, 0.0, 0.5, 1.0)
_COSINE_COLORS = ((5, 113, 176), (146, 197, 222), (247, 247, 247), (244, 165, 130), (202, 0, 32))


def slot_name(number: int) -> str:
    """Return the class name of a slot by its trainId."""
    return CLASS_NAMES[number] if number < len(CLASS_NAMES) else f"class {number}"


def plot_memory(slots: NDArray[np.float32], title: str) -> NDArray[np.uint8]:
    """Return an RGB picture (H, W, 3) of the cosine similarities between memory slots.

    Args:
        slots: Slots by trainId, (K, D); a row of zeros is a class that was never seen.
        title: Title of the picture.
    """
    lengths = np.linalg.norm(slots.astype(np.float64), axis=1)
    seen = lengths > 0
    unit = slots / np.where(seen, lengths, 1)[:, None]
    cosines = np.where(np.outer(seen, seen), unit @ unit.T, np.nan)
    cell = max(1, min(_CELL, _MATRIX // len(slots)))
    left, top, side = MARGIN + _ROW_NAMES, MARGIN + 32 + _COLUMN_NAMES, cell * len(slots)
    width = max(_NARROWEST, left + side + 3 * MARGIN)
    sheet = Sheet(width, top + side + 2 * MARGIN)
    sheet.text(MARGIN, 40, title, 24)
    _draw_class_names(sheet, seen, left, top, cell)
    _draw_cells(sheet, cosines, left, top, cell)
    _draw_color_scale(sheet, left + side + 24, top, side)
    sheet.text(MARGIN, top + side + MARGIN, _likeness(cosines))
    return sheet.finished()


def _draw_class_names(
    sheet: Sheet, seen: NDArray[np.bool_], left: float, top: float, cell: int
) -> None:
    size = min(14, cell)
    for number, is_seen in enumerate(seen):
        name = slot_name(number)
        color, middle = INK if is_seen else FAINT, (number + 0.5) * cell
        sheet.slanted(left + middle, top - 8, name, size, color)
        label = name if is_seen else f"{name} ({_NEVER_SEEN})"
        sheet.text(left - 10, top + middle, label, size, color, "rm", room=_ROW_NAMES)


def _draw_cells(
    sheet: Sheet, cosines: NDArray[np.float64], left: float, top: float, cell: int
) -> None:
    for (row, column), cosine in np.ndenumerate(cosines):
        x, y = left + column * cell, top + row * cell
        color = _cosine_color(cosine)
        sheet.rectangle(x, y, x + cell, y + cell, color)
        if cell >= _READABLE and isfinite(cosine):
            ink = INK if sum(color) > 400 else (255, 255, 255)
            sheet.text(x + cell / 2, y + cell / 2, _two_digits(cosine), 12, ink, "mm")


def _cosine_color(cosine: float) -> Color:
    """Return the colour of a cosine; grey for NaN."""
    if not isfinite(cosine):
        return GRID
    channels = zip(*_COSINE_COLORS, strict=True)
    red, green, blue = (round(np.interp(cosine, _COSINES, values)) for values in channels)
    return red, green, blue


def _two_digits(cosine: float) -> str:
    return f"{round(cosine, 2) + 0:.2f}"  # adding 0 turns -0 into 0


def _draw_color_scale(sheet: Sheet, left: float, top: float, height: float) -> None:
    """Draw the colour bar from 1 (top) to -1 (bottom)."""
    steps = 100
    for step in range(steps):
        y = top + height * step / steps
        color = _cosine_color(1 - 2 * (step + 0.5) / steps)
        sheet.rectangle(left, y, left + 14, y + height / steps, color)
    for cosine in _COSINES:
        y = top + height * (1 - cosine) / 2
        sheet.text(left + 22, y, f"{cosine:g}", 12, FAINT)


def _likeness(cosines: NDArray[np.float64]) -> str:
    """Return a sentence on the cosines (K, K) between different slots; NaN entries are ignored."""
    count = len(cosines)
    pairs = cosines[~np.eye(count, dtype=bool)]
    seen = int(np.isfinite(cosines.diagonal()).sum())
    if seen < 2:
        return "Fewer than two classes have been seen: there is nothing to compare."
    mean = _two_digits(float(np.nanmean(pairs)))
    return f"{seen} of {count} classes were seen; the mean cosine of two of their slots is {mean}."
