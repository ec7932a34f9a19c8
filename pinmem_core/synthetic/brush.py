"""Drawing tools of a scene: canvas, style, sun and random generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from pinmem_core.label_space import CITYSCAPES
from pinmem_core.synthetic.canvas import Canvas, Colour
from pinmem_core.synthetic.projection import Floats, Floor, Plane
from pinmem_core.synthetic.shapes import Rect, Shape, sweep, texture
from pinmem_core.synthetic.styles import Light, Style, Swatch

_SHADOWLESS = 40.0  # depth beyond which shadows are too thin to see
BLACK = np.zeros(3, dtype=np.float32)


@cache
def rgb(code: str) -> Floats:
    """Return a hex colour such as ``c0ffee`` as (3,) float32 in [0, 1]."""
    return np.array([v / 255 for v in bytes.fromhex(code)], dtype=np.float32)


@dataclass(frozen=True)
class Sun:
    """Shadow direction: metres to the right and ahead per metre of height."""

    right: float
    ahead: float

    @classmethod
    def rise(cls, rng: np.random.Generator, light: Light) -> Sun:
        """Return a sun at a random height and side."""
        reach = 1 / math.tan(math.radians(rng.uniform(*light.elevation)))
        bearing = math.radians(rng.uniform(25, 75))
        right, ahead = (1 if rng.random() < 0.5 else -1 for _ in range(2))
        return cls(right * reach * math.sin(bearing), ahead * reach * math.cos(bearing))

    def factors(self, light: Light) -> dict[str, Floats]:
        """Return the RGB factor of the light on a surface, by its facing."""
        norm = math.sqrt(1 + self.right**2 + self.ahead**2)
        ambient, sun = rgb(light.ambient), rgb(light.sun)
        lit = {
            "up": 0.45 + 0.55 / norm,
            "front": max(self.ahead / norm, 0.0),
            "left": max(self.right / norm, 0.0),
            "right": max(-self.right / norm, 0.0),
        }
        return {side: np.asarray(ambient + sun * min(1.4 * k, 1.0)) for side, k in lit.items()}


@dataclass(frozen=True)
class Brush:
    """Drawing tools of one scene."""

    canvas: Canvas
    style: Style
    sun: Sun
    rng: np.random.Generator

    def fill(
        self,
        plane: Plane,
        shape: Shape,
        colour: Colour,
        name: str | None = None,
        *,
        opacity: float = 1.0,
        glow: bool = False,
    ) -> bool:
        """Call `Canvas.fill` with the class of the given name."""
        label = None if name is None else CITYSCAPES.train_ids[name]
        return self.canvas.fill(plane, shape, colour, label, opacity=opacity, glow=glow)

    def pick(self, swatch: Swatch) -> Floats:
        """Return a random colour of a swatch with small variation."""
        return self._vary(rgb(swatch[int(self.rng.integers(len(swatch)))]))

    def blend(self, swatch: Swatch) -> Floats:
        """Return a random blend of two colours of a swatch."""
        a, b = (rgb(swatch[int(i)]) for i in self.rng.integers(len(swatch), size=2))
        return self._vary(a + np.float32(self.rng.random()) * (b - a))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.rng.random() < probability)

    def grained(self, colour: Floats, per_metre: float, strength: float = 1.0) -> Colour:
        """Return a colour with the surface texture of the style."""
        amount = self.style.palette.grain * strength
        if amount == 0:
            return colour
        shift = int(self.rng.integers(256)) / per_metre

        def paint(s: Floats, t: Floats) -> Floats:
            return colour[:, None, None] * (1 + amount * texture(s + shift, t, per_metre))

        return paint

    def shadow(self, box: tuple[float, float, float, float], height: float) -> None:
        """Cast the shadow of a box with base ``(x0, z0, x1, z1)`` on the street."""
        if box[1] < _SHADOWLESS:
            shift = height * self.sun.right, height * self.sun.ahead
            self.canvas.shade(sweep(box, shift), self.style.light.shadow)

    def contact(self, box: tuple[float, float, float, float]) -> None:
        """Darken the street under a box."""
        if box[1] < _SHADOWLESS:
            self.fill(Floor(), Rect(*box), BLACK, opacity=0.6)

    def _vary(self, colour: Floats) -> Floats:
        noise = self.rng.standard_normal(3, dtype=np.float32)
        return np.asarray(np.maximum(colour + np.float32(self.style.palette.jitter) * noise, 0))
