"""SVG charts for HTML reports: CSS classes set their colours, tooltips show their values."""

import numpy as np

from pinmem_core.evaluation.calibration import BINS, Calibration

_SIDE = 240
"""Side of the square plot area in pixels."""
_LEFT, _TOP = 44, 12
_STRIP = 44
"""Height of the largest bar of the bins' pixel shares, in pixels."""
_GAP = 12
_BIN = _SIDE / BINS


def reliability(calibration: Calibration) -> str:
    """Return the reliability diagram: accuracy by confidence, above the bins' pixel shares.

    Args:
        calibration: Calibration counts of at least one pixel.
    """
    height = _TOP + _SIDE + _GAP + _STRIP + 40
    parts = [*_axes(), *_bars(calibration), *_shares(calibration)]
    return (
        f'<svg class="chart" viewBox="0 0 {_LEFT + _SIDE + 14} {height}" role="img" '
        'aria-label="Reliability diagram: accuracy of the pixels by confidence; the next table '
        'lists the values">' + "".join(parts) + "</svg>"
    )


def _axes() -> list[str]:
    parts = []
    for tenths in (0, 5, 10):
        x, y = _LEFT + _SIDE * tenths / 10, _TOP + _SIDE * (1 - tenths / 10)
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y:g}" y2="{y:g}"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{tenths * 10}</text>',
            f'<text x="{x:g}" y="{_bottom() + 16}" text-anchor="middle">{tenths * 10}</text>',
        ]
    middle = _TOP + _SIDE / 2
    return [
        *parts,
        f'<text x="{_LEFT + _SIDE / 2:g}" y="{_bottom() + 33}" text-anchor="middle">'
        "confidence %</text>",
        f'<text x="12" y="{middle:g}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle:g})">accuracy %</text>',
    ]


def _bars(calibration: Calibration) -> list[str]:
    """Return a bar of accuracy and a mark at the mean confidence for each bin with pixels."""
    parts = []
    accuracy, confidence = calibration.accuracy, calibration.mean_confidence
    for number in np.flatnonzero(calibration.counts):
        x, right = _LEFT + number * _BIN, accuracy[number]
        y, level = _TOP + _SIDE * (1 - right), _TOP + _SIDE * (1 - confidence[number])
        tooltip = f"confidence {confidence[number]:.1%}: {right:.1%} right"
        parts += [
            f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{_BIN - 2:.1f}" '
            f'height="{_SIDE * right:.1f}"><title>{tooltip}</title></rect>',
            f'<line class="ideal" x1="{x:.1f}" x2="{x + _BIN:.1f}" y1="{level:.1f}" '
            f'y2="{level:.1f}"/>',
        ]
    return parts


def _shares(calibration: Calibration) -> list[str]:
    shares = calibration.counts / calibration.counts.sum()
    largest = shares.max()
    return [
        f'<rect class="share" x="{_LEFT + number * _BIN + 1:.1f}" '
        f'y="{_bottom() - _STRIP * share / largest:.1f}" width="{_BIN - 2:.1f}" '
        f'height="{_STRIP * share / largest:.1f}"><title>{share:.1%} of the pixels</title></rect>'
        for number, share in enumerate(shares)
        if share
    ]


def _bottom() -> int:
    return _TOP + _SIDE + _GAP + _STRIP
