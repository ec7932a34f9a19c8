"""Flat shapes in metres, each with its bounding box and a point-inside test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pinmem_core.synthetic.projection import Bounds, Floats

Mask = NDArray[np.bool_]
Point = tuple[float, float]


class Shape(Protocol):
    """A region of a plane."""

    @property
    def bounds(self) -> Bounds:
        """Bounding box ``(s0, t0, s1, t1)``."""

    def inside(self, s: Floats, t: Floats) -> Mask:
        """Which points belong to the shape; broadcasts ``s`` and ``t``."""


@dataclass(frozen=True)
class Rect:
    """Axis-aligned rectangle."""

    s0: float
    t0: float
    s1: float
    t1: float

    @property
    def bounds(self) -> Bounds:
        """See `Shape.bounds`."""
        return self.s0, self.t0, self.s1, self.t1

    def inside(self, s: Floats, t: Floats) -> Mask:
        """See `Shape.inside`."""
        return _between(s, self.s0, self.s1) & _between(t, self.t0, self.t1)


@dataclass(frozen=True)
class Ellipse:
    """Axis-aligned ellipse; ``rough`` above 0 frays its edge like foliage or cloud."""

    s: float
    t: float
    rs: float
    rt: float
    rough: float = 0.0

    @property
    def bounds(self) -> Bounds:
        """See `Shape.bounds`."""
        grow = 1.0 + self.rough
        rs, rt = self.rs * grow, self.rt * grow
        return self.s - rs, self.t - rt, self.s + rs, self.t + rt

    def inside(self, s: Floats, t: Floats) -> Mask:
        """See `Shape.inside`."""
        square = ((s - self.s) * (1 / self.rs)) ** 2 + ((t - self.t) * (1 / self.rt)) ** 2
        if self.rough:
            square = square - self.rough * 2.0 * texture(s, t, 14.0)
        return square < 1.0


class Polygon:
    """Convex polygon."""

    def __init__(self, points: Sequence[Point]) -> None:
        """Take the corners in order, either way round."""
        ss, ts = zip(*points, strict=True)
        self.bounds: Bounds = (min(ss), min(ts), max(ss), max(ts))
        edges = tuple(zip(points, [*points[1:], points[0]], strict=True))
        area = sum(a[0] * b[1] - a[1] * b[0] for a, b in edges)
        self._edges = edges if area > 0 else tuple((b, a) for a, b in edges)

    def inside(self, s: Floats, t: Floats) -> Mask:
        """See `Shape.inside`."""
        mask: Mask = np.ones((1, 1), dtype=np.bool_)
        for (s0, t0), (s1, t1) in self._edges:
            ds, dt = s1 - s0, t1 - t0
            # On the left of every edge; s and t stay apart as long as they can be vectors.
            mask = mask & (t * ds >= s * dt + (t0 * ds - s0 * dt))
        return mask


@dataclass(frozen=True)
class Lattice:
    """Rectangles repeated over a box: windows, bars, lane dashes.

    Attributes:
        box: Region that holds the repetition.
        pitch: Distance between neighbours in ``s`` and ``t``.
        share: Part of the pitch that a rectangle covers in ``s`` and ``t``, in (0, 1].
        keep: Fraction of the rectangles that are present, picked by ``salt``.
        salt: Any integer.
    """

    box: Bounds
    pitch: Point
    share: Point
    keep: float = 1.0
    salt: int = 0

    @property
    def bounds(self) -> Bounds:
        """See `Shape.bounds`."""
        return self.box

    def inside(self, s: Floats, t: Floats) -> Mask:
        """See `Shape.inside`."""
        s0, t0, s1, t1 = self.box
        cell_s, cell_t = (s - s0) * (1 / self.pitch[0]), (t - t0) * (1 / self.pitch[1])
        floor_s, floor_t = np.floor(cell_s), np.floor(cell_t)
        mask: Mask = _between(s, s0, s1) & (np.abs(cell_s - floor_s - 0.5) <= self.share[0] / 2)
        mask = mask & _between(t, t0, t1) & (np.abs(cell_t - floor_t - 0.5) <= self.share[1] / 2)
        if self.keep < 1.0:
            rows, cols = floor_t.astype(np.intp) * 37 + self.salt, floor_s.astype(np.intp) * 101
            mask &= _noise()[1][rows & 255, cols & 255] < self.keep
        return mask


def line(a: Point, b: Point, width: float) -> Polygon:
    """Straight bar of the given width from ``a`` to ``b``."""
    ds, dt = b[0] - a[0], b[1] - a[1]
    scale = width / 2 / (math.hypot(ds, dt) or 1.0)
    ns, nt = -dt * scale, ds * scale
    far = [(b[0] + ns, b[1] + nt), (b[0] - ns, b[1] - nt)]
    return Polygon([(a[0] + ns, a[1] + nt), *far, (a[0] - ns, a[1] - nt)])


def regular(s: float, t: float, radius: float, corners: int, turn: float = 0.0) -> Polygon:
    """Regular polygon; ``turn`` in radians, 0 puts a corner on top."""
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return Polygon([(s + radius * math.sin(a), t + radius * math.cos(a)) for a in angles])


def sweep(box: Bounds, shift: Point) -> Polygon:
    """Area that a rectangle passes over on its way along ``shift``."""
    (s0, t0, s1, t1), (ds, dt) = box, shift
    s0, s1 = (s0, s1) if ds > 0 else (s1, s0)
    t0, t1 = (t0, t1) if dt > 0 else (t1, t0)
    ahead = [(s1 + ds, t0 + dt), (s1 + ds, t1 + dt), (s0 + ds, t1 + dt)]
    return Polygon([(s0, t0), (s1, t0), *ahead, (s0, t1)])


def texture(s: Floats, t: Floats, per_metre: float) -> Floats:
    """Cloudy noise in about [-0.5, 0.5] that sticks to the plane's coordinates."""
    cols = (s * np.float32(per_metre)).astype(np.intp) & 255
    rows = (t * np.float32(per_metre)).astype(np.intp) & 255
    return _noise()[0].take((rows << 8) | cols)


def _between(v: Floats, low: float, high: float) -> Mask:
    return (v >= low) & (v <= high)


@cache
def _noise() -> tuple[Floats, Floats]:
    """Fractal and white 256 x 256 tiles, the same for every scene."""
    rng = np.random.default_rng(20)
    freq = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :]) + 1 / 64
    spectrum = np.fft.rfft2(rng.standard_normal((256, 256))) / freq**1.1
    cloud = np.fft.irfft2(spectrum)
    cloud = np.clip(cloud / (4 * cloud.std()), -0.5, 0.5)
    return cloud.astype(np.float32), rng.random((256, 256), dtype=np.float32)
