"""Pictures of a run: how its losses went, and what its memory holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from pinmem_core.drawing import GRID, MANY, MARGIN, Chart, Curve, Scale, Sheet
from pinmem_core.labels import CLASS_NAMES, Color
from pinmem_core.painting import FAINT, INK

_TERMS = {
    "total": "weighted sum of the terms",
    "seg": "segmentation",
    "aux": "auxiliary head",
    "read": "features should be like their slots",
    "div": "slots should differ",
    "cls": "slots should tell their class",
}
"""Loss terms in the order of their panels, and what they mean."""
_PHASES = {"inner": "inner (meta-train)", "outer": "outer (meta-test)"}
# The colours of Okabe and Ito, which colour-blind people tell apart.
_COLORS: tuple[Color, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    INK,
)

_COLUMNS, _PANEL, _GAP = 3, 384, 24
_WIDTH = 2 * MARGIN + _COLUMNS * _PANEL + (_COLUMNS - 1) * _GAP
_HEAD, _ABOVE, _BELOW = 116, 32, 50
_CHART = 180
_LABELS = 64
"""Width of the labels left of a chart."""
_NAMES = 260
"""Width of the names right of a wide panel's chart."""
_NAME_ROW = 24

_CELL, _MATRIX = 46, 1800
"""Pixels of a cell of the matrix, and at most of all cells in a row."""
_READABLE = 34
"""Pixels of a cell from which on it shows its value."""
_ROW_NAMES, _COLUMN_NAMES = 190, 110
_NARROWEST = 720
_NEVER_SEEN = "never seen"
# ColorBrewer's RdBu, whose ends colour-blind people tell apart.
_COSINES = (-1.0, -0.5, 0.0, 0.5, 1.0)
_COSINE_COLORS = ((5, 113, 176), (146, 197, 222), (247, 247, 247), (244, 165, 130), (202, 0, 32))


@dataclass(frozen=True)
class _Panel:
    """A chart of one curve or more; a wide one takes two columns and names its curves."""

    title: str
    note: str
    curves: Sequence[Curve]
    smooth: bool = False
    wide: bool = False

    @property
    def columns(self) -> int:
        return 2 if self.wide else 1

    @property
    def averaged(self) -> bool:
        return self.smooth and any(len(curve.y) >= MANY for curve in self.curves)

    @property
    def height(self) -> int:
        """Of the chart alone."""
        return max(_CHART, len(self.curves) * _NAME_ROW) if self.wide else _CHART


def plot_losses(lines: Sequence[Mapping[str, float]], title: str) -> NDArray[np.uint8]:
    """Return an (H, W, 3) RGB picture of how losses, learning rate and validation mIoU went.

    Each loss term has a panel with a curve a phase. A curve of many points shows their running mean
    and, fainter, each of them. Values that are not finite are left out.

    Args:
        lines: Of a run's `metrics.jsonl`: each has "iteration" and some of "PHASE/TERM" (every
            phase with a term "total"), "lr", and "val/DOMAIN" in 0..1.
        title: What run it is.
    """
    curves = _curves(lines)
    phases = _phases(curves)
    rows = _in_rows([*_loss_panels(curves, phases), *_other_panels(curves)])
    heights = [_ABOVE + max(panel.height for panel in row) + _BELOW for row in rows]
    sheet = Sheet(_WIDTH, _HEAD + sum(heights))
    last = max((int(line["iteration"]) for line in lines), default=0)
    averaged = any(panel.averaged for row in rows for panel in row)
    _draw_head(sheet, title, phases, last, averaged)
    top = _HEAD
    for row, height in zip(rows, heights, strict=True):
        left = MARGIN
        for panel in row:
            _draw_panel(sheet, panel, left, top, Scale.upto(last))
            left += panel.columns * (_PANEL + _GAP)
        top += height
    return sheet.finished()


def _curves(lines: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    """Return the finite values of each key."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if isfinite(value):
                points.setdefault(key, []).append((line["iteration"], value))
    return {key: Curve(*np.array(pairs, np.float64).T) for key, pairs in points.items()}


def _phases(curves: Mapping[str, Curve]) -> dict[str, Color]:
    """Return the colour of each phase that occurs."""
    names = [key.removesuffix("/total") for key in curves if key.endswith("/total")]
    return dict(zip((name for name in names if name != "val"), cycle(_COLORS), strict=False))


def _loss_panels(curves: Mapping[str, Curve], phases: Mapping[str, Color]) -> list[_Panel]:
    of_term: dict[str, list[Curve]] = {term: [] for term in _TERMS}
    for key, curve in curves.items():
        phase, _, term = key.partition("/")
        if phase in phases:
            of_term.setdefault(term, []).append(replace(curve, color=phases[phase]))
    return [
        _Panel(term, _TERMS.get(term, ""), found, smooth=True)
        for term, found in of_term.items()
        if found
    ]


def _other_panels(curves: Mapping[str, Curve]) -> list[_Panel]:
    """Return the panels of the learning rate and of the validation, as far as they occur."""
    panels = [_Panel("lr", "learning rate", [curves["lr"]])] if "lr" in curves else []
    scores = {k.removeprefix("val/"): c for k, c in curves.items() if k.startswith("val/")}
    named = [
        Curve(curve.x, 100 * curve.y, color, name)
        for (name, curve), color in zip(scores.items(), cycle(_COLORS), strict=False)
    ]
    if named:
        # From the best to the worst, as the ends of the curves are.
        named.sort(key=lambda curve: -curve.y[-1])
        panels.append(_Panel("validation", "mIoU of each domain, in %", named, wide=True))
    return panels


def _in_rows(panels: Sequence[_Panel]) -> list[list[_Panel]]:
    rows: list[list[_Panel]] = []
    for panel in panels:
        if not rows or sum(p.columns for p in rows[-1]) + panel.columns > _COLUMNS:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _draw_head(
    sheet: Sheet, title: str, phases: Mapping[str, Color], last: int, averaged: bool
) -> None:
    sheet.text(MARGIN, 40, title, 24)
    x: float = MARGIN
    for phase, color in phases.items():
        sheet.line([(x, 76), (x + 24, 76)], color, 3)
        x += 32 + sheet.text(x + 32, 76, _PHASES.get(phase, phase)) + 28
    note = f"over {last:,} iteration{'' if last == 1 else 's'}"
    if averaged:
        note += " · strong: the running mean, faint: each logged iteration"
    sheet.text(x, 76, note, color=FAINT, room=_WIDTH - MARGIN - x)


def _draw_panel(sheet: Sheet, panel: _Panel, left: float, top: float, x_scale: Scale) -> None:
    values = np.concatenate([curve.y for curve in panel.curves])
    y_scale = Scale.around(float(values.min()), float(values.max()))
    width = sheet.text(left, top + 8, panel.title, 16)
    note = panel.note + (" (logarithmic)" if y_scale.logarithmic else "")
    sheet.text(left + width + 10, top + 9, note, 12, FAINT, room=_PANEL - width - 10)
    right = left + panel.columns * (_PANEL + _GAP) - _GAP - (_NAMES if panel.wide else 0)
    top += _ABOVE
    chart = Chart(sheet, left + _LABELS, top, right, top + panel.height, x_scale, y_scale)
    chart.draw(panel.curves, panel.smooth)
    if panel.wide:
        _draw_names(sheet, panel.curves, right + _GAP, top)


def _draw_names(sheet: Sheet, curves: Sequence[Curve], left: float, top: float) -> None:
    """Name the curves right of their chart, each with its last value."""
    for number, curve in enumerate(curves):
        y = top + (number + 0.5) * _NAME_ROW
        sheet.disc(left, y, 5, curve.color)
        sheet.text(left + 48, y, f"{curve.y[-1]:.1f}", anchor="rm")
        sheet.text(left + 60, y, curve.name, room=_NAMES - _GAP - 60)


def plot_memory(slots: NDArray[np.float32], title: str) -> NDArray[np.uint8]:
    """Return an (H, W, 3) RGB picture of how alike the slots of a memory are.

    Args:
        slots: (K, D), by trainId; a row of zeros is a class that was never seen.
        title: What memory it is.
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
        known = number < len(CLASS_NAMES)
        name = CLASS_NAMES[number] if known else f"class {number}"
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
    """Return the colour of a cosine, grey where there is none."""
    if not isfinite(cosine):
        return GRID
    channels = zip(*_COSINE_COLORS, strict=True)
    red, green, blue = (round(np.interp(cosine, _COSINES, values)) for values in channels)
    return red, green, blue


def _two_digits(cosine: float) -> str:
    return f"{round(cosine, 2) + 0:.2f}"  # adding 0 makes -0 a 0


def _draw_color_scale(sheet: Sheet, left: float, top: float, height: float) -> None:
    """Draw the colours from 1, above, to -1."""
    steps = 100
    for step in range(steps):
        y = top + height * step / steps
        color = _cosine_color(1 - 2 * (step + 0.5) / steps)
        sheet.rectangle(left, y, left + 14, y + height / steps, color)
    for cosine in _COSINES:
        y = top + height * (1 - cosine) / 2
        sheet.text(left + 22, y, f"{cosine:g}", 12, FAINT)


def _likeness(cosines: NDArray[np.float64]) -> str:
    """Return a sentence on the cosines (K, K) of different slots, NaN being none."""
    count = len(cosines)
    pairs = cosines[~np.eye(count, dtype=bool)]
    seen = int(np.isfinite(cosines.diagonal()).sum())
    if seen < 2:
        return "Fewer than two classes have been seen: there is nothing to compare."
    mean = _two_digits(float(np.nanmean(pairs)))
    return f"{seen} of {count} classes were seen; the mean cosine of two of their slots is {mean}."
