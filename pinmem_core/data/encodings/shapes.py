"""Shapes of annotation files, drawn into images of ids.

Functions raise `ValueError` with the reason if an annotation is malformed or implausibly
large.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pinmem_core.data.label_maps import LabelMap
from pinmem_core.errors import DataError
from pinmem_core.images import MAX_MEGAPIXELS

UNLABELED = "unlabeled"
"""Name in a label map of the pixels outside of all shapes."""
_GROUP = "group"
"""Suffix of the label of several objects in one polygon, e.g. "cargroup"."""
_MAX_COORDINATE = 1_000_000  # annotations reach a little beyond the border
_MAX_WORK = 10_000_000_000  # pixels painted and edges crossed by rows: some seconds
_MAX_CROSSINGS = 20_000_000  # of one polygon's edges with rows
_RLE_BITS = 5  # of a count in each character of the compressed form
_RLE_CHARACTERS = 7  # of a count below 2**32


@contextmanager
def malformed(message: str) -> Iterator[None]:
    """Convert the errors of the block about malformed annotations to a `DataError`.

    Args:
        message: Beginning of the message, which the reason follows.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{message}: {reason}.") from error


class Canvas:
    """An image of ids on which shapes are drawn, later ones over earlier ones.

    Nothing is drawn before all shapes are known, and known not to take too long.

    Args:
        size: Width and height in pixels.
        label_map: Label map with the ids of the names; "unlabeled" is the id of other pixels.
    """

    def __init__(self, size: tuple[int, int], label_map: LabelMap) -> None:
        if size[0] * size[1] > MAX_MEGAPIXELS * 1_000_000:
            raise ValueError(f"it claims {size[0]}x{size[1]} pixels")
        if UNLABELED not in label_map.ids:
            raise ValueError(f"the label map has no value that is called '{UNLABELED}'")
        self._ids = label_map.ids
        mode = "L" if max(self._ids.values()) < 1 << 8 else "I"
        self._image = Image.new(mode, size, self._ids[UNLABELED])
        self._draw = ImageDraw.Draw(self._image)
        self._shapes: list[Callable[[], None]] = []
        self._work = 0.0

    def drawn(self) -> NDArray[Any]:
        """Draw the shapes, and return the (H, W) ids."""
        for draw in self._shapes:
            draw()
        pixels = np.asarray(self._image)
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)

    def id_of(self, name: str) -> int:
        """Return the id of a name; "cargroup" is "car" unless the label map has both."""
        known = name if name in self._ids else name.removesuffix(_GROUP)
        if known not in self._ids:
            raise ValueError(f"the label '{name:.40}' is not one of the dataset's")
        return self._ids[known]

    def outline(self, points: NDArray[Any], value: int) -> None:
        """Fill an (N, 2) polygon whose corners are pixels, and draw its outline.

        Cityscapes' and labelme's own tools draw so, with Pillow.
        """
        self._add(points, lambda: self._draw.polygon(points.ravel().tolist(), fill=value))

    def circle(self, center: Sequence[float], radius: float, value: int) -> None:
        """Fill a circle."""
        x, y = center
        box = np.array([[x - radius, y - radius], [x + radius, y + radius]])
        self._add(box, lambda: self._draw.ellipse(box.ravel().tolist(), fill=value))

    def polygon(self, points: NDArray[Any], value: int) -> None:
        """Fill the pixels whose centres lie inside an (N, 2) polygon, by the even-odd rule.

        Pixel (x, y) covers x..x+1 and y..y+1, as in COCO.
        """
        self._add(points, lambda: self._fill(points, value))

    def mask(
        self, mask: Callable[[], NDArray[np.bool_]], value: int, corner: tuple[int, int] = (0, 0)
    ) -> None:
        """Fill the pixels of an (H, W) mask whose upper left pixel is at `corner` (x, y)."""
        everything = np.array([(0, 0), self._image.size])
        self._add(everything, lambda: self._paste(mask(), corner, value))

    def _fill(self, points: NDArray[Any], value: int) -> None:
        width, height = self._image.size
        (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
        left, right = _inner(x0.min(), width), _inner(x0.max(), width)
        first, end = (_inner(edge(y0, y1), height) for edge in (np.minimum, np.maximum))
        crossed = end - first  # rows whose centres an edge crosses
        if crossed.sum() > _MAX_CROSSINGS:
            raise ValueError("a polygon in it has too many corners to be drawn")
        edge = np.repeat(np.arange(len(points)), crossed)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
        x = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
        top, columns = first.min(), right - left + 1
        place = (row - top) * columns + np.clip(_inner(x, width), left, right) - left
        toggles = np.bincount(place, minlength=(end.max() - top) * columns).astype(np.uint8)
        inside = np.cumsum(toggles.reshape(-1, columns), axis=1, dtype=np.uint8)[:, :-1] & 1
        self._paste(inside.astype(bool), (int(left), int(top)), value)

    def _paste(self, mask: NDArray[np.bool_], corner: tuple[int, int], value: int) -> None:
        if mask.size:
            self._image.paste(value, corner, Image.fromarray(mask))

    def _add(self, points: NDArray[Any], draw: Callable[[], None]) -> None:
        """Add a shape inside the bounding box of points, unless all take too long together."""
        size = self._image.size
        low, high = (np.clip(limit, 0, size) for limit in (points.min(axis=0), points.max(axis=0)))
        width, height = (high - low + 1).tolist()
        self._work += height * (width + len(points))
        if self._work > _MAX_WORK:
            raise ValueError("its polygons are too many or too large to be drawn")
        self._shapes.append(draw)


def points_of(values: Any, name: str) -> NDArray[Any]:
    """Return the (N, 2) points of a shape.

    Args:
        values: Points as [[x, y], ...].
        name: Label of the shape, for messages.
    """
    if not isinstance(values, list):
        raise ValueError(f"a polygon of '{name:.40}' is no list")
    try:
        points = np.asarray(values)
    except ValueError:  # lists of different lengths
        points = np.empty(0)
    if points.dtype.kind not in "iuf" or points.shape[1:] != (2,):
        raise ValueError(f"a polygon of '{name:.40}' is no list of points x, y")
    if not ((points >= -_MAX_COORDINATE) & (points <= _MAX_COORDINATE)).all():  # NaN is neither
        raise ValueError(f"a polygon of '{name:.40}' reaches beyond {_MAX_COORDINATE:,} pixels")
    return points


def points_in_line(values: Any, name: str) -> NDArray[Any]:
    """Return the (N, 2) points of a polygon that is written x1, y1, x2, y2, ..."""
    if not isinstance(values, list):
        raise ValueError(f"a polygon of '{name:.40}' is no list")
    if len(values) % 2:
        raise ValueError(f"a polygon of '{name:.40}' has an odd number of coordinates")
    return points_of([list(pair) for pair in zip(values[::2], values[1::2], strict=True)], name)


def rle_mask(rle: Any, size: tuple[int, int], name: str) -> NDArray[np.bool_]:
    """Return the (H, W) mask of a run-length encoding of COCO, column by column.

    Args:
        rle: Object with `size` [H, W] and `counts`, a list or compressed text.
        size: Width and height of the image.
        name: Label of the shape, for messages.
    """
    width, height = size
    if rle.get("size") != [height, width]:
        raise ValueError(f"a mask of '{name:.40}' is of another size than the image")
    given = rle.get("counts")
    counts: Any = _decompressed(given) if isinstance(given, str) else given
    valid = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not valid or sum(counts) != width * height:
        raise ValueError(f"the counts of a mask of '{name:.40}' do not fill the image")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _decompressed(text: str) -> list[int] | None:
    """Return the counts of the compressed form; None if it is damaged.

    A count takes one or more characters of five bits each, the lowest first, and from the fourth
    on is the difference to the count before the last. Source: `rleFrString` of COCO's `maskApi.c`.
    """
    counts: list[int] = []
    value = bits = 0
    for character in text:
        code = ord(character) - ord("0")
        if not 0 <= code < 64 or bits >= _RLE_BITS * _RLE_CHARACTERS:
            return None
        value |= (code & 31) << bits
        bits += _RLE_BITS
        if not code & 32:
            value -= (1 << bits) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    return None if bits else counts


def _inner(position: Any, limit: int) -> Any:
    """Return the first pixel, 0..limit, whose centre is not before a position."""
    return np.clip(np.ceil(position - 0.5), 0, limit).astype(np.int64)
