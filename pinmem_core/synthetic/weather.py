"""Weather: fog, rain, reflections and drops on the windscreen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pinmem_core.synthetic.brush import Brush
from pinmem_core.synthetic.projection import Floats


def veil(image: Floats, depth: Floats, brush: Brush) -> Floats:
    """Blend the image with fog by its depth in metres."""
    weather = brush.style.weather
    seen = np.exp(-np.float32(brush.rng.uniform(*weather.fog)) * depth)
    fog = brush.blend(weather.fog_colour)[:, None, None]
    return np.asarray(fog + seen * (image - fog))


def mirror_ground(image: Floats, ground: NDArray[np.bool_], brush: Brush) -> Floats:
    """Reflect objects on the wet street in the rows below them."""
    height, width = ground.shape
    rows = np.arange(height)[:, None]
    foot = np.maximum.accumulate(np.where(ground, -1, rows), axis=0)
    ripple = np.rint(brush.rng.normal(0, height / 160, (height, 1))).astype(int)
    source = np.clip(2 * foot - rows + ripple, 0, np.maximum(foot, 0))
    columns = np.clip(np.arange(width)[None, :] + ripple // 2, 0, width - 1)
    # Grazing rays near the foot mirror most.
    share = np.exp(-(rows - foot) / np.float32(0.35 * height)) * brush.style.weather.wet
    share = np.where(ground & (foot >= 0), share, 0).astype(np.float32)
    return np.asarray(image + share * (image[:, source, columns] - image))


def rain(image: Floats, brush: Brush) -> None:
    """Draw rain streaks in place."""
    rng, (_, height, width) = brush.rng, image.shape
    count, length = int(90 * brush.style.weather.rain), max(height // 10, 4)
    rows = rng.integers(-length, height, (count, 1)) + np.arange(length)
    slant = rng.uniform(-0.35, 0.1)
    columns = rng.integers(0, width, (count, 1)) + np.rint(slant * np.arange(length)).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    light = np.broadcast_to(rng.uniform(0.04, 0.16, (count, 1)), rows.shape)[inside]
    image[:, rows[inside], columns[inside]] += light.astype(np.float32)


def drops(image: Floats, brush: Brush) -> None:
    """Draw drops on the windscreen in place; each shows the view upside down."""
    rng, (_, height, width) = brush.rng, image.shape
    for _ in range(int(rng.integers(brush.style.weather.drops + 1))):
        radius = max(int(height * rng.uniform(0.015, 0.05)), 1)
        if min(height, width) <= 2 * radius + 1:
            continue
        row = int(rng.integers(radius, height - radius))
        col = int(rng.integers(radius, width - radius))
        patch = image[:, row - radius : row + radius + 1, col - radius : col + radius + 1]
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        distance = np.hypot(x, y * 0.85) / radius
        inner = 0.6 * patch[:, ::-1, ::-1] + 0.4 * patch.mean((1, 2), keepdims=True)
        inner = inner * (1.05 - 0.3 * np.clip(distance, 0, 1) ** 3 * np.sign(-y))
        weight = np.clip((1.05 - distance) * 4, 0, 1) * 0.85
        patch += (weight * (inner - patch)).astype(np.float32)
