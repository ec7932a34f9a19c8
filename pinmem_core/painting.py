"""Turning trainIds into pictures that people look at, and setting pictures on a sheet."""

import unicodedata
from collections.abc import Sequence, Set
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pinmem_core.labels import CLASSES, COLOR_TABLE, IGNORE_INDEX

GAP = 4
"""White pixels between the pictures of a sheet."""
INK = (33, 37, 41)
"""Colour of text."""
FAINT = (134, 142, 150)
"""Colour of text of less weight."""
PAPER = (241, 243, 245)
"""Colour of what lies behind a picture that does not fill its place."""

_TEXT = 13
_TALLEST = 1.5
"""Height of a picture on a sheet, in widths of its place."""
_SWATCH = 14
_LEGEND_ROW = 22


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
    """Return RGB `pictures` of one shape side by side, each in a place of `width` pixels.

    A picture fills the width of its place, unless it would be taller than one and a half of it.
    """
    panels = [_fitted(Image.fromarray(picture), width) for picture in pictures]
    framed = [np.pad(p, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for p in panels]
    return np.concatenate(framed, axis=1)


def _fitted(picture: Image.Image, width: int) -> NDArray[np.uint8]:
    scale = min(width / picture.width, _TALLEST * width / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Enlarged a lot, pixels and not smears are what there is to see.
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    place = Image.new("RGB", (width, size[1]), PAPER)
    place.paste(picture.resize(size, how), ((width - size[0]) // 2, 0))
    return np.asarray(place)


def caption(names: Sequence[str], width: int) -> NDArray[np.uint8]:
    """Return a row that names pictures in places of `width` pixels, as `beside` lays them out."""
    row = Image.new("RGB", ((width + GAP) * len(names), 20), "white")
    draw = ImageDraw.Draw(row)
    for number, name in enumerate(names):
        draw.text((number * (width + GAP), 2), shortened(name, _TEXT, width), FAINT, font(_TEXT))
    return np.asarray(row)


def heading(name: str, details: str, width: int) -> NDArray[np.uint8]:
    """Return a row of `width` pixels with a name and, fainter, some details."""
    row = Image.new("RGB", (width, 24), "white")
    draw = ImageDraw.Draw(row)
    details = shortened(details, _TEXT, width)
    name = shortened(name, _TEXT, width - font(_TEXT).getlength(details) - 2 * GAP)
    draw.text((0, 6), name, INK, font(_TEXT))
    draw.text((font(_TEXT).getlength(name) + 2 * GAP, 6), details, FAINT, font(_TEXT))
    return np.asarray(row)


def legend(train_ids: Set[int], width: int) -> NDArray[np.uint8]:
    """Return rows of `width` pixels that tell the colours of `train_ids`, 255 being "ignored"."""
    names = {c.train_id: c.name for c in CLASSES} | {IGNORE_INDEX: "ignored"}
    entries = [(train_id, names[train_id]) for train_id in sorted(names.keys() & train_ids)]
    widest = max((font(_TEXT).getlength(name) for _, name in entries), default=0)
    column = _SWATCH + 2 * GAP + int(widest) + 4 * GAP
    columns = max(1, width // column)
    lines = -(-len(entries) // columns)
    picture = Image.new("RGB", (width, _LEGEND_ROW * lines + 2 * GAP), "white")
    draw = ImageDraw.Draw(picture)
    for number, (train_id, name) in enumerate(entries):
        x, y = number % columns * column, (number // columns) * _LEGEND_ROW + 3 * GAP
        color = tuple(COLOR_TABLE[train_id].tolist())
        draw.rectangle((x, y, x + _SWATCH, y + _SWATCH), color)
        draw.text((x + _SWATCH + 2 * GAP, y - 1), name, INK, font(_TEXT))
    return np.asarray(picture)


def stacked(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return RGB `rows` of one width below each other."""
    framed = [np.pad(r, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(framed)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of all texts, `size` pixels high."""
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """Return `text` in the letters that the font has: accents fall away, others become "?"."""
    parts = unicodedata.normalize("NFKD", text)
    letters = (c for c in parts if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c == "·" else "?" for c in letters)


def shortened(text: str, size: int, width: float) -> str:
    """Return `text`, in the font's letters, cut so that it takes at most `width` pixels."""
    text = _plain(text)
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…" if text else ""
