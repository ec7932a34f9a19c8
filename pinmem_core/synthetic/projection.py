"""Pinhole camera over a flat street, and the planes of the objects.

World axes are metres with the camera above the origin: ``x`` right, ``y`` up from the street,
``z`` ahead.  A plane maps its own coordinates ``(s, t)`` to the frame and back, so that a shape
defined in metres can stand across the view, stand along the street or lie on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bounds = tuple[float, float, float, float]  # s0, t0, s1, t1 in metres
Window = tuple[slice, slice]  # rows, columns

NEAR, FAR = 0.6, 400.0


@dataclass(frozen=True)
class Camera:
    """Pinhole camera without tilt: the vanishing point carries pitch and yaw.

    Attributes:
        width: Frame width in pixels.
        height: Frame height in pixels.
        focal: Focal length in pixels.
        u0: Column of the vanishing point.
        v0: Row of the horizon.
        eye: Height above the street in metres.
    """

    width: int
    height: int
    focal: float
    u0: float
    v0: float
    eye: float

    def column(self, x: float, z: float) -> float:
        """Column of a point ``x`` metres right at depth ``z``."""
        return self.u0 + self.focal * x / z

    def row(self, y: float, z: float) -> float:
        """Row of a point ``y`` metres above the street at depth ``z``."""
        return self.v0 + self.focal * (self.eye - y) / z

    def entry(self, x: float) -> float:
        """Least depth at which a line ``x`` metres right of the axis is inside the frame."""
        return max(x * self.focal / (self.width - self.u0), -x * self.focal / self.u0, NEAR)

    def window(self, us: tuple[float, ...], vs: tuple[float, ...]) -> Window | None:
        """Pixels whose centres lie in the bounding box of the given columns and rows."""
        left, right = max(math.ceil(min(us) - 0.5), 0), min(math.floor(max(us) + 0.5), self.width)
        top, low = max(math.ceil(min(vs) - 0.5), 0), min(math.floor(max(vs) + 0.5), self.height)
        return (slice(top, low), slice(left, right)) if left < right and top < low else None

    def rays(self, window: Window) -> tuple[Floats, Floats]:
        """Slopes ``x / z`` of shape (1, w) and ``(y - eye) / z`` of shape (h, 1)."""
        rows, cols = window
        across, up = self._slopes
        return across[:, cols], up[rows]

    @cached_property
    def _slopes(self) -> tuple[Floats, Floats]:
        across = (np.arange(self.width) + 0.5 - self.u0) / self.focal
        up = (self.v0 - 0.5 - np.arange(self.height)) / self.focal
        return across[None, :].astype(np.float32), up[:, None].astype(np.float32)


class Plane(Protocol):
    """A plane in the world with its own metric coordinates."""

    @property
    def facing(self) -> str:
        """Side of the light that the plane sees: ``up``, ``front``, ``left`` or ``right``."""

    def window(self, camera: Camera, bounds: Bounds) -> Window | None:
        """Part of the frame that can show ``bounds``; None when out of view."""

    def local(self, camera: Camera, window: Window) -> tuple[Floats, Floats, Floats]:
        """``s``, ``t`` and depth of the window's pixels, broadcastable to (h, w)."""


@dataclass(frozen=True)
class Front:
    """Upright plane across the view; ``s`` runs right (``sign`` -1: left), ``t`` up.

    ``squeeze`` below 1 narrows what stands on it, as if turned away from the camera.
    """

    z: float
    x: float = 0.0
    sign: int = 1
    squeeze: float = 1.0
    facing: ClassVar[str] = "front"

    def window(self, camera: Camera, bounds: Bounds) -> Window | None:
        """See `Plane.window`."""
        s0, t0, s1, t1 = bounds
        if self.z < NEAR:
            return None
        step = self.sign * self.squeeze
        us = camera.column(self.x + step * s0, self.z), camera.column(self.x + step * s1, self.z)
        return camera.window(us, (camera.row(t0, self.z), camera.row(t1, self.z)))

    def local(self, camera: Camera, window: Window) -> tuple[Floats, Floats, Floats]:
        """See `Plane.local`."""
        across, up = camera.rays(window)
        z = np.float32(self.z)
        s = (across * z - np.float32(self.x)) * np.float32(self.sign / self.squeeze)
        return s, up * z + np.float32(camera.eye), np.array([[z]])


@dataclass(frozen=True)
class Side:
    """Upright plane along the street at ``x``; ``s`` runs away from ``z`` (``sign`` -1: back)."""

    x: float
    z: float = 0.0
    sign: int = 1

    @property
    def facing(self) -> str:
        """See `Plane.facing`: a plane on the right shows its left face."""
        return "left" if self.x > 0 else "right"

    def window(self, camera: Camera, bounds: Bounds) -> Window | None:
        """See `Plane.window`."""
        s0, t0, s1, t1 = bounds
        ends = sorted((self.z + self.sign * s0, self.z + self.sign * s1))
        near, far = max(ends[0], camera.entry(self.x)), min(ends[1], FAR)
        if near >= far:
            return None
        us = camera.column(self.x, near), camera.column(self.x, far)
        return camera.window(us, tuple(camera.row(t, z) for t in (t0, t1) for z in (near, far)))

    def local(self, camera: Camera, window: Window) -> tuple[Floats, Floats, Floats]:
        """See `Plane.local`."""
        across, up = camera.rays(window)
        z = np.float32(self.x) / across
        return (z - np.float32(self.z)) * self.sign, up * z + np.float32(camera.eye), z


@dataclass(frozen=True)
class Floor:
    """Level plane at height ``y``; ``s`` is world ``x`` and ``t`` is world ``z``."""

    y: float = 0.0
    facing: ClassVar[str] = "up"

    def window(self, camera: Camera, bounds: Bounds) -> Window | None:
        """See `Plane.window`."""
        s0, t0, s1, t1 = bounds
        inner = max(s0, 0.0) + min(s1, 0.0)
        near, far = max(t0, camera.entry(inner)), min(t1, FAR)
        if near >= far or self.y >= camera.eye:
            return None
        us = tuple(camera.column(s, z) for s in (s0, s1) for z in (near, far))
        return camera.window(us, (camera.row(self.y, near), camera.row(self.y, far)))

    def local(self, camera: Camera, window: Window) -> tuple[Floats, Floats, Floats]:
        """See `Plane.local`."""
        across, up = camera.rays(window)
        z = np.float32(self.y - camera.eye) / up
        return across * z, z, z
