"""Supersampled colour, label and depth buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pinmem_core.synthetic.projection import FAR, Camera, Floats, Floor, Plane
from pinmem_core.synthetic.shapes import Shape

OVERSAMPLE = 2
_SPECK = 12  # pixels below which marks are not worth drawing
# A colour is RGB in [0, 1], or a function of (s, t) giving an array broadcastable to (3, h, w).
Colour = Floats | Callable[[Floats, Floats], Floats]


class Canvas:
    """Frame buffers with a depth test.

    Attributes:
        camera: Camera of the oversampled frame.
        image: (3, h, w) RGB, nominally in [0, 1].
        label: (h, w) trainIds.
        depth: (h, w) metres; `FAR` where nothing stands.
    """

    def __init__(self, camera: Camera, light: Mapping[str, Floats], sky_id: int) -> None:
        """Create an empty sky; ``light`` maps the facing of a plane to an RGB factor."""
        shape = camera.height, camera.width
        self.camera = camera
        self.image: Floats = np.zeros((3, *shape), dtype=np.float32)
        self.label: NDArray[np.uint8] = np.full(shape, sky_id, dtype=np.uint8)
        self.depth: Floats = np.full(shape, FAR, dtype=np.float32)
        self._light = light
        self._shaded: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)

    def fill(
        self,
        plane: Plane,
        shape: Shape,
        colour: Colour,
        label: int | None = None,
        *,
        opacity: float = 1.0,
        glow: bool = False,
    ) -> bool:
        """Fill a shape on a plane.

        Args:
            plane: Where the shape lies.
            shape: What to fill, in the plane's metres.
            colour: RGB or a function of the plane's coordinates.
            label: trainId to write, with the depth; None for marks on what is already there.
            opacity: Weight of the colour over the one beneath, in [0, 1].
            glow: The surface shines by itself instead of taking the scene's light.

        Returns:
            Whether any of it can be seen.
        """
        window = plane.window(self.camera, shape.bounds)
        if window is None:
            return False
        rows, cols = window
        if label is None and (rows.stop - rows.start) * (cols.stop - cols.start) < _SPECK:
            return False
        s, t, depth = plane.local(self.camera, window)
        # The tolerance lets marks win over the surface that they lie on.
        mask = shape.inside(s, t) & (depth * 0.997 <= self.depth[window])
        if not np.count_nonzero(mask):
            return False
        tint = colour(s, t) if callable(colour) else colour[:, None, None]
        if not glow:
            tint = tint * self._light[plane.facing][:, None, None]
        target = self.image[:, rows, cols]
        if opacity < 1.0:
            beneath = target[:, mask]
            over = np.broadcast_to(tint, target.shape)[:, mask]
            target[:, mask] = beneath + np.float32(opacity) * (over - beneath)
        else:
            np.copyto(target, tint, where=mask)
        if label is not None:
            np.copyto(self.label[window], np.uint8(label), where=mask)
            np.copyto(self.depth[window], depth, where=mask)
        return True

    def shade(self, shape: Shape, darkness: float) -> None:
        """Shade a part of the street; overlapping shadows count once."""
        ground = Floor()
        window = ground.window(self.camera, shape.bounds)
        if window is None:
            return
        s, t, depth = ground.local(self.camera, window)
        lit = shape.inside(s, t) & (depth * 0.997 <= self.depth[window]) & ~self._shaded[window]
        self._shaded[window] |= lit
        self.image[:, *window] *= 1 - np.float32(darkness) * lit

    def resolve(self) -> tuple[Floats, NDArray[np.uint8], Floats]:
        """Return the averaged image and the sampled label and depth at the final size."""
        k = OVERSAMPLE
        image = sum(self.image[:, i::k, j::k] for i in range(k) for j in range(k)) / np.float32(
            k * k
        )
        return (
            np.asarray(image),
            self.label[k // 2 :: k, k // 2 :: k].copy(),
            self.depth[k // 2 :: k, k // 2 :: k],
        )
