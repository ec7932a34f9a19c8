"""Render trainIds as pictures, and lay out pictures on sheets."""

import unicodedata
from collections.abc import Sequence, Set
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pinmem_core.label_space import IGNORE_INDEX, Color, LabelSpace

GAP = 4
"""Gap between the pictures of a sheet in pixels."""
INK = (33, 37, 41)
"""Colour of text."""
FAINT = (134, 142, 150)
"""Colour of secondary text."""
PAPER = (241, 243, 245)
"""Background colour of a picture that does not fill its cell."""

_TEXT = 13
_OPACITY = 0.6
"""Weight of the colours of classes that are blended into an image."""
_TALLEST = 1.5
"""Maximum height of a picture on a sheet, as a multiple of its cell's width."""
_SWATCH = 14
_LEGEND_ROW = 22


def colorize(train_ids: NDArray[np.uint8], space: LabelSpace) -> NDArray[np.uint8]:
    """Return trainIds (H, W) as an RGB picture (H, W, 3) in the colours of their label space."""
    return space.color_table[train_ids]


def overlay(
    image: NDArray[np.uint8], train_ids: NDArray[np.uint8], space: LabelSpace
) -> NDArray[np.uint8]:
    """Blend class colours of `train_ids` (H, W) into an image (H, W, 3), except ignored pixels."""
    painted = (1 - _OPACITY) * image + _OPACITY * colorize(train_ids, space)
    bare = (train_ids == IGNORE_INDEX)[..., None]
    return np.where(bare, image, painted.round()).astype(np.uint8)


def side_by_side(pictures: Sequence[NDArray[np.uint8]], width: int) -> NDArray[np.uint8]:
    """Return RGB `pictures` of equal shape side by side, each in a cell of `width` pixels.

    A picture fills the width of its cell, unless its height would exceed 1.5 times the width.
    """
    panels = [_fitted(Image.fromarray(picture), width) for picture in pictures]
    framed = [np.pad(p, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for p in panels]
    return np.concatenate(framed, axis=1)


def _fitted(picture: Image.Image, width: int) -> NDArray[np.uint8]:
    scale = min(width / picture.width, _TALLEST * width / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Strong enlargement keeps pixels sharp.
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    place = Image.new("RGB", (width, size[1]), PAPER)
    place.paste(picture.resize(size, how), ((width - size[0]) // 2, 0))
    return np.asarray(place)


def caption(names: Sequence[str], width: int) -> NDArray[np.uint8]:
    """Return a row of names for the pictures of `side_by_side`, in cells of `width` pixels."""
    row = Image.new("RGB", ((width + GAP) * len(names), 20), "white")
    draw = ImageDraw.Draw(row)
    for number, name in enumerate(names):
        draw.text((number * (width + GAP), 2), shortened(name, _TEXT, width), FAINT, font(_TEXT))
    return np.asarray(row)


def heading(name: str, details: str, width: int) -> NDArray[np.uint8]:
    """Return a row of `width` pixels with a name and details in secondary colour."""
    row = Image.new("RGB", (width, 24), "white")
    draw = ImageDraw.Draw(row)
    details = shortened(details, _TEXT, width)
    name = shortened(name, _TEXT, width - font(_TEXT).getlength(details) - 2 * GAP)
    draw.text((0, 6), name, INK, font(_TEXT))
    draw.text((font(_TEXT).getlength(name) + 2 * GAP, 6), details, FAINT, font(_TEXT))
    return np.asarray(row)


def legend(train_ids: Set[int], width: int, space: LabelSpace) -> NDArray[np.uint8]:
    """Return a colour legend of `train_ids`, `width` pixels wide; 255 is shown as "ignored"."""
    names = {**dict(enumerate(space.names)), IGNORE_INDEX: "ignored"}
    entries = [(train_id, names[train_id]) for train_id in sorted(names.keys() & train_ids)]
    widest = max((font(_TEXT).getlength(name) for _, name in entries), default=0)
    column = _SWATCH + 2 * GAP + int(widest) + 4 * GAP
    columns = max(1, width // column)
    lines = -(-len(entries) // columns)
    picture = Image.new("RGB", (width, _LEGEND_ROW * lines + 2 * GAP), "white")
    draw = ImageDraw.Draw(picture)
    for number, (train_id, name) in enumerate(entries):
        x, y = number % columns * column, (number // columns) * _LEGEND_ROW + 3 * GAP
        color = tuple(space.color_table[train_id].tolist())
        draw.rectangle((x, y, x + _SWATCH, y + _SWATCH), color)
        draw.text((x + _SWATCH + 2 * GAP, y - 1), name, INK, font(_TEXT))
    return np.asarray(picture)


def color_ramp(shares: NDArray[np.floating], colors: Sequence[Color]) -> NDArray[np.uint8]:
    """Map `shares` (...) in 0..1 to RGB (..., 3) between the first and the last colour."""
    places = np.linspace(0, 1, len(colors))
    channels = [np.interp(shares, places, channel) for channel in zip(*colors, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def color_bar(colors: Sequence[Color], labels: tuple[str, str], width: int) -> NDArray[np.uint8]:
    """Return a row of `width` pixels with a colour bar between the labels of its two ends."""
    row = Image.new("RGB", (width, 36), "white")
    draw = ImageDraw.Draw(row)
    left = int(font(_TEXT).getlength(labels[0])) + 10
    bar = np.broadcast_to(color_ramp(np.linspace(0, 1, 160), colors), (12, 160, 3))
    row.paste(Image.fromarray(bar.copy()), (left, 12))
    draw.text((0, 10), labels[0], FAINT, font(_TEXT))
    draw.text((left + 170, 10), labels[1], FAINT, font(_TEXT))
    return np.asarray(row)


def stacked(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack RGB `rows` of equal width vertically."""
    framed = [np.pad(r, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(framed)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font for all texts, `size` pixels high."""
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """Return `text` in ASCII and "·": accents are removed, other characters become "?"."""
    parts = unicodedata.normalize("NFKD", text)
    letters = (c for c in parts if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c == "·" else "?" for c in letters)


def shortened(text: str, size: int, width: float) -> str:
    """Return `text` in the font's characters, shortened to at most `width` pixels."""
    text = _plain(text)
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…" if text else ""
