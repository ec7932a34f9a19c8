"""Marks of a scatter plot: symbols of different shapes, and placement of their labels."""

from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

from pinmem_core.drawing import Sheet
from pinmem_core.labels import Color

Symbol = tuple[tuple[float, float], ...]
"""Corners (x, y) of a polygon around (0, 0)."""


def _symbol(corners: int, turn: float = 0.0, size: float = 1.0, inner: float = 1.0) -> Symbol:
    """Return corners around the origin; every second radius is multiplied by `inner`."""
    angles = [2 * pi * number / corners + turn for number in range(corners)]
    radii = [size * (inner if number % 2 else 1) for number in range(corners)]
    return tuple((r * sin(a), -r * cos(a)) for r, a in zip(radii, angles, strict=True))


SYMBOLS: tuple[Symbol, ...] = (
    _symbol(24),
    _symbol(4, turn=pi / 4, size=1.25),
    _symbol(3, size=1.45),
    _symbol(4, size=1.3),
    _symbol(3, turn=pi, size=1.45),
    _symbol(10, size=1.6, inner=0.4),
    _symbol(8, size=1.6, inner=0.35),
    _symbol(8, turn=pi / 4, size=1.6, inner=0.35),
)
"""Symbols of about equal area: disc, square, triangle, diamond, inverted triangle, three stars."""


def draw_symbol(
    sheet: Sheet,
    symbol: Symbol,
    at: tuple[float, float],
    radius: float,
    color: Color,
    edge: tuple[Color, float],
) -> None:
    """Draw a symbol at a position, with an edge given by its colour and width."""
    for size, fill in ((radius + edge[1], edge[0]), (radius, color)):
        sheet.polygon([(at[0] + size * x, at[1] + size * y) for x, y in symbol], fill)


_DIRECTIONS = np.array([(sin(a), -cos(a)) for a in np.arange(16) * pi / 8 + pi / 2])
_DISTANCES = np.array([4.0, 12.0, 24.0, 40.0, 60.0, 84.0])
_NEVER = 1e6


def place_names(
    marks: NDArray[np.float64],
    radius: float,
    sizes: NDArray[np.float64],
    points: NDArray[np.float64],
    room: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return centres (N, 2) for the labels of N marks.

    Labels do not cover each other or a mark, if possible. Among the remaining positions, those that
    hide few points and lie close to the mark are preferred.

    Args:
        marks: Centres of the marks, (N, 2).
        radius: Radius of the marks.
        sizes: Width and height of each label, (N, 2).
        points: Points to keep visible, (M, 2).
        room: Upper left and lower right corner of the label area, (2, 2).
    """
    taken = np.stack([marks - radius, marks + radius], axis=1)
    centres = np.empty_like(marks)
    for number, (mark, half) in enumerate(zip(marks, sizes / 2, strict=True)):
        reach = _DISTANCES[:, None, None] + radius + half
        candidates = (mark + _DIRECTIONS * reach).reshape(-1, 2)
        boxes = np.stack([candidates - half, candidates + half], axis=1)
        outside = ((boxes[:, 0] < room[0]) | (boxes[:, 1] > room[1])).any(axis=1)
        hidden = _overlaps(boxes, np.stack([points, points], axis=1)).sum(axis=1)
        clashes = _overlaps(boxes, taken).sum(axis=1)
        distances = np.repeat(_DISTANCES, len(_DIRECTIONS))
        best = (_NEVER * (clashes + outside) + hidden + distances / 20).argmin()
        centres[number] = candidates[best]
        taken = np.concatenate([taken, boxes[best : best + 1]])
    return centres


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of N boxes (N, 2, 2) overlap which of M others, (N, M)."""
    low = np.maximum(boxes[:, None, 0], others[None, :, 0])
    high = np.minimum(boxes[:, None, 1], others[None, :, 1])
    return np.all(low <= high, axis=2)
