"""Chart primitives: sheets, axis scales and curves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pinmem_core.label_space import Color
from pinmem_core.visualize import FAINT, INK, font, shortened

MARGIN = 32
"""Empty margin of a sheet in pixels."""
GRID = (222, 226, 230)
"""Colour of grid lines."""
MANY = 50
"""Number of points from which a running mean averages several points."""

_OVERSAMPLING = 2
_LOGARITHMIC_FROM = 1000
"""Ratio of the largest to the smallest value from which a scale is logarithmic."""
_MOST_DECADES = 6
_FEW = 30
"""Maximum number of points of a curve with a mark at each point."""
_FAINT = 90
"""Opacity of faint lines, 0..255."""


class Sheet:
    """White canvas with oversampling for smooth edges.

    All lengths and positions are pixels of the finished picture, from its upper left corner.

    Args:
        width: Width of the finished picture in pixels.
        height: Height of the finished picture in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._picture = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), "white")
        self._draw = ImageDraw.Draw(self._picture)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 14,
        color: Color = INK,
        anchor: str = "lm",
        room: float | None = None,
    ) -> float:
        """Write a line of text, shortened to a width of `room`.

        Args:
            x: Horizontal position of the anchor.
            y: Vertical position of the anchor.
            text: Text to write.
            size: Height of the font.
            color: Colour of the text.
            anchor: Anchor of the text in Pillow's notation.
            room: Maximum width of the text; None for the width of the sheet without margins.

        Returns:
            Width of the written text.
        """
        room = self.width - 2 * MARGIN if room is None else room
        size *= _OVERSAMPLING
        text = shortened(text, size, room * _OVERSAMPLING)
        self._draw.text(_scaled(x, y), text, color, font(size), anchor)
        return font(size).getlength(text) / _OVERSAMPLING

    def slanted(self, x: float, y: float, text: str, size: int = 14, color: Color = INK) -> None:
        """Write a line of text that starts at (x, y) and rises to the right at 45 degrees."""
        size *= _OVERSAMPLING
        text = shortened(text, size, (self.width - 2 * MARGIN) * _OVERSAMPLING)
        reach = ceil(font(size).getlength(text)) + size
        letters = Image.new("L", (2 * reach, 2 * reach))
        ImageDraw.Draw(letters).text((reach, reach), text, 255, font(size), "lm")
        corner = round(x * _OVERSAMPLING) - reach, round(y * _OVERSAMPLING) - reach
        self._picture.paste(color, corner, letters.rotate(45, Image.Resampling.BICUBIC))

    def line(
        self, points: Iterable[tuple[float, float]], color: Color = GRID, width: float = 1
    ) -> None:
        """Draw a line through `points`."""
        places = [_scaled(x, y) for x, y in points]
        self._draw.line(places, color, round(width * _OVERSAMPLING), "curve")

    def faint_line(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """Draw a thin translucent line through `points`."""
        corner = min(floor(x) for x, _ in points), min(floor(y) for _, y in points)
        width = max(ceil(x) for x, _ in points) - corner[0] + 1
        height = max(ceil(y) for _, y in points) - corner[1] + 1
        cover = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
        places = [_scaled(x - corner[0], y - corner[1]) for x, y in points]
        ImageDraw.Draw(cover).line(places, _FAINT, _OVERSAMPLING, "curve")
        at = corner[0] * _OVERSAMPLING, corner[1] * _OVERSAMPLING
        self._picture.paste(color, at, cover)

    def rectangle(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        color: Color,
        radius: float = 0,
    ) -> None:
        """Fill a rectangle with corners rounded by `radius`."""
        ends = _scaled(left, top), _scaled(right, bottom)
        self._draw.rounded_rectangle(ends, radius * _OVERSAMPLING, color)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Fill a circle around (x, y)."""
        ends = _scaled(x - radius, y - radius), _scaled(x + radius, y + radius)
        self._draw.ellipse(ends, color)

    def polygon(self, corners: Iterable[tuple[float, float]], color: Color) -> None:
        """Fill the polygon of `corners`."""
        self._draw.polygon([_scaled(x, y) for x, y in corners], color)

    def finished(self) -> NDArray[np.uint8]:
        """Return the RGB picture, (H, W, 3)."""
        size = self.width, self.height
        return np.asarray(self._picture.resize(size, Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Scale:
    """Range and ticks of an axis.

    Attributes:
        low: Value at the start of the axis.
        high: Value at the end of the axis.
        ticks: Ticks at round values, ascending.
        labels: Labels of the ticks.
        logarithmic: Whether the scale is logarithmic.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    logarithmic: bool = False

    @classmethod
    def upto(cls, last: int, count: int = 5) -> "Scale":
        """Return a scale of integers from 0 to `last`, with about `count` ticks."""
        last = max(1, last)
        step = max(1.0, _round_step(last / count))
        return cls(0, last, *_ticks(0, floor(last / step), step))

    @classmethod
    def around(cls, low: float, high: float, count: int = 4) -> "Scale":
        """Return a scale from `low` to `high` that starts and ends with a tick.

        It is logarithmic if `low` is positive and `high` is at least 1000 times `low`.
        """
        if low > 0 and high / low >= _LOGARITHMIC_FROM:
            return cls._of_decades(floor(log10(low)), ceil(log10(high)))
        low, high = _widened(low, high)
        step = _round_step((high - low) / count)
        # The tolerance keeps rounding errors from adding a step.
        first, last = floor(low / step + 1e-6), ceil(high / step - 1e-6)
        return cls(first * step, last * step, *_ticks(first, last, step))

    @classmethod
    def _of_decades(cls, first: int, last: int) -> "Scale":
        decades = range(first, last + 1, ceil((last - first) / _MOST_DECADES))
        ticks = tuple(10.0**decade for decade in decades)
        labels = tuple(f"{10.0**d:,g}" if -3 <= d < 6 else f"1e{d}" for d in decades)
        return cls(10.0**first, 10.0**last, ticks, labels, logarithmic=True)

    def share(self, value: float) -> float:
        """Return the position of `value` on the axis: 0 at the start, 1 at the end."""
        if self.logarithmic:
            return log10(value / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _round_step(least: float) -> float:
    """Return the smallest step of 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** floor(log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-6))


def _widened(low: float, high: float) -> tuple[float, float]:
    """Widen a range that is too narrow; a nonnegative range stays nonnegative."""
    largest = max(abs(low), abs(high))
    if high - low > 1e-3 * largest:
        return low, high
    half = 0.1 * largest or 0.5
    return (low - half if low < 0 else max(0.0, low - half)), high + half


def _ticks(first: int, last: int, step: float) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Return the multiples of `step` from `first * step` to `last * step`, and their labels."""
    ticks = tuple(number * step for number in range(first, last + 1))
    largest = max(abs(tick) for tick in ticks)
    exponent = floor(log10(step) + 1e-6)
    if 1e-3 <= largest < 1e6:
        return ticks, tuple(f"{tick:,.{max(0, -exponent)}f}" for tick in ticks)
    digits = floor(log10(largest) + 1e-6) - exponent
    return ticks, tuple(_short(f"{tick:.{digits}e}") if tick else "0" for tick in ticks)


def _short(number: str) -> str:
    """Shorten the exponent of a number: 2.5e-05 becomes 2.5e-5."""
    mantissa, _, exponent = number.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


@dataclass(frozen=True)
class Curve:
    """A line through points.

    Attributes:
        x: Integers, ascending, (N,).
        y: Finite values, (N,).
        color: Colour of the line.
        name: Name of the curve.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    color: Color = INK
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """Plot area on a sheet with its scales; labels are at the left and at the bottom."""

    sheet: Sheet
    left: float
    top: float
    right: float
    bottom: float
    x_scale: Scale
    y_scale: Scale

    def draw(self, curves: Sequence[Curve], smooth: bool = False) -> None:
        """Draw the axes and `curves`.

        Args:
            curves: Curves, the topmost last.
            smooth: Whether to draw running means, with faint lines of the points behind them.
        """
        self._draw_axes()
        if smooth:
            for curve in curves:
                self.sheet.faint_line(self._places(curve.x, curve.y), curve.color)
        for curve in curves:
            points = self._places(curve.x, _running_mean(curve.y) if smooth else curve.y)
            self.sheet.line(points, curve.color, 2.5)
            for x, y in points if len(points) <= _FEW else []:
                self.sheet.disc(x, y, 3, curve.color)

    def _draw_axes(self) -> None:
        for tick, label in zip(self.y_scale.ticks, self.y_scale.labels, strict=True):
            y = round(self._y(tick))  # a line between two pixels is blurred
            self.sheet.line([(self.left, y), (self.right, y)])
            self.sheet.text(self.left - 8, y, label, 12, FAINT, "rm")
        for tick, label in zip(self.x_scale.ticks, self.x_scale.labels, strict=True):
            x = self._x(tick)
            self.sheet.line([(x, self.bottom), (x, self.bottom + 4)])
            self.sheet.text(x, self.bottom + 14, label, 12, FAINT, "mm")

    def _places(
        self, xs: NDArray[np.float64], ys: NDArray[np.float64]
    ) -> list[tuple[float, float]]:
        return [(self._x(x), self._y(y)) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]

    def _x(self, value: float) -> float:
        return self.left + self.x_scale.share(value) * (self.right - self.left)

    def _y(self, value: float) -> float:
        return self.bottom - self.y_scale.share(value) * (self.bottom - self.top)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the running mean over about 4 % of the values; fewer than `MANY` stay unchanged."""
    window = np.ones(len(values) // (MANY // 2) | 1)
    counts = np.convolve(np.ones_like(values), window, "same")
    return np.convolve(values, window, "same") / counts


def ramp(shares: NDArray[np.floating], colors: Sequence[Color]) -> NDArray[np.uint8]:
    """Map `shares` (...) in 0..1 to RGB (..., 3) between the first and the last colour."""
    places = np.linspace(0, 1, len(colors))
    channels = [np.interp(shares, places, channel) for channel in zip(*colors, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _scaled(x: float, y: float) -> tuple[float, float]:
    return x * _OVERSAMPLING, y * _OVERSAMPLING
