"""Turning trainIds into pictures that people look at."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pinmem_core.labels import COLOR_TABLE, IGNORE_INDEX

GAP = 4
"""White pixels between the pictures of a sheet."""


def colorize(train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the (H, W, 3) RGB picture of (H, W) trainIds in the colours of Cityscapes."""
    return COLOR_TABLE[train_ids]


def overlay(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], opacity: float = 0.6
) -> NDArray[np.uint8]:
    """Lay the class colours of (H, W) `train_ids` over the (H, W, 3) image; ignore stays bare."""
    painted = (1 - opacity) * image + opacity * colorize(train_ids)
    bare = (train_ids == IGNORE_INDEX)[..., None]
    return np.where(bare, image, painted.round()).astype(np.uint8)


def beside(pictures: Sequence[NDArray[np.uint8]], width: int) -> NDArray[np.uint8]:
    """Return RGB `pictures` of one shape, each scaled to `width` pixels, side by side."""
    height = max(1, round(pictures[0].shape[0] * width / pictures[0].shape[1]))
    panels = [np.asarray(Image.fromarray(p).resize((width, height))) for p in pictures]
    framed = [np.pad(p, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for p in panels]
    return np.concatenate(framed, axis=1)


def caption(names: Sequence[str], width: int) -> NDArray[np.uint8]:
    """Return a row that names pictures of `width` pixels, as `beside` lays them out."""
    row = Image.new("RGB", ((width + GAP) * len(names), 16), "white")
    for number, name in enumerate(names):
        ImageDraw.Draw(row).text((number * (width + GAP) + 2, 2), name, fill="black")
    return np.asarray(row)


def stacked(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return RGB `rows` of one width below each other."""
    framed = [np.pad(r, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(framed)
