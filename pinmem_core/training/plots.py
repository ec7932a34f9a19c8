"""Plots of a run: its losses and its memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from pinmem_core.drawing import MANY, MARGIN, Chart, Curve, Scale, Sheet
from pinmem_core.evaluation.memory_analysis import plot_memory
from pinmem_core.label_space import Color
from pinmem_core.visualize import FAINT, INK

__all__ = ["plot_losses", "plot_memory"]

_TERMS = {
    "total": "weighted sum of the terms",
    "seg": "segmentation",
    "aux": "auxiliary head",
    "read": "features should match their slots",
    "div": "slots should differ",
    "cls": "slots should predict their class",
}
"""Loss terms in the order of their panels, with their titles."""
_PHASES = {"inner": "inner (meta-train)", "outer": "outer (meta-test)"}
# Colours of Okabe and Ito, which colour-blind people can distinguish.
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
"""Width of the labels to the left of a chart."""
_NAMES = 260
"""Width of the names to the right of a wide panel's chart."""
_NAME_ROW = 24
_PHASE = 200
"""Maximum width of the name of a phase."""


@dataclass(frozen=True)
class _Panel:
    """A chart of one or more curves; a wide one spans two columns and names its curves."""

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
        """Height of the chart, in pixels."""
        return max(_CHART, len(self.curves) * _NAME_ROW) if self.wide else _CHART


def plot_losses(lines: Sequence[Mapping[str, float]], title: str) -> NDArray[np.uint8]:
    """Plot losses, learning rate and validation mIoU of a run; return an (H, W, 3) RGB picture.

    Each loss term has a panel with one curve per phase. A curve with many points shows the running
    mean and, fainter, the points. Values that are not finite are omitted.

    Args:
        lines: Lines of a run's `metrics.jsonl`. Each has "iteration" and some of "PHASE/TERM"
            (every phase with a term "total"), "lr", and "val/DOMAIN" in 0..1.
        title: Title of the picture.
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
        _Panel(term, _TERMS.get(term, ""), term_curves, smooth=True)
        for term, term_curves in of_term.items()
        if term_curves
    ]


def _other_panels(curves: Mapping[str, Curve]) -> list[_Panel]:
    """Return the panels of learning rate and validation, where they have values."""
    panels = [_Panel("lr", "learning rate", [curves["lr"]])] if "lr" in curves else []
    scores = {k.removeprefix("val/"): c for k, c in curves.items() if k.startswith("val/")}
    named = [
        Curve(curve.x, 100 * curve.y, color, name)
        for (name, curve), color in zip(scores.items(), cycle(_COLORS), strict=False)
    ]
    if named:
        # Sorted by the last value, best first.
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
        x += 32 + sheet.text(x + 32, 76, _PHASES.get(phase, phase), room=_PHASE) + 28
    note = f"over {last:,} iteration{'' if last == 1 else 's'}"
    if averaged:
        note += " · strong: the running mean, faint: each logged iteration"
    sheet.text(x, 76, note, color=FAINT, room=_WIDTH - MARGIN - x)


def _draw_panel(sheet: Sheet, panel: _Panel, left: float, top: float, x_scale: Scale) -> None:
    values = np.concatenate([curve.y for curve in panel.curves])
    y_scale = Scale.around(float(values.min()), float(values.max()))
    width = sheet.text(left, top + 8, panel.title, 16, room=0.7 * _PANEL)
    note = panel.note + (" (logarithmic)" if y_scale.logarithmic else "")
    sheet.text(left + width + 10, top + 9, note, 12, FAINT)
    right = left + panel.columns * (_PANEL + _GAP) - _GAP - (_NAMES if panel.wide else 0)
    top += _ABOVE
    chart = Chart(sheet, left + _LABELS, top, right, top + panel.height, x_scale, y_scale)
    chart.draw(panel.curves, panel.smooth)
    if panel.wide:
        _draw_names(sheet, panel.curves, right + _GAP, top)


def _draw_names(sheet: Sheet, curves: Sequence[Curve], left: float, top: float) -> None:
    """Name the curves to the right of their chart, each with its last value."""
    for number, curve in enumerate(curves):
        y = top + (number + 0.5) * _NAME_ROW
        sheet.disc(left, y, 5, curve.color)
        sheet.text(left + 48, y, f"{curve.y[-1]:.1f}", anchor="rm")
        sheet.text(left + 60, y, curve.name, room=_NAMES - _GAP - 60)
