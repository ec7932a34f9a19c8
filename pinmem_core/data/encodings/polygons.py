"""Labels stored as polygons in JSON."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pinmem_core.documents import read_json
from pinmem_core.errors import DataError
from pinmem_core.images import MAX_MEGAPIXELS
from pinmem_core.label_space import LabelMap

_GROUP = "group"
"""Ends the label of several objects drawn as one; the base label counts."""
_CORNERS = 3
"""Of the smallest polygon that covers anything; smaller ones are not drawn."""
_LARGEST_FILE = 16 << 20
"""Bytes; Cityscapes' largest has less than 1 MB."""
_FARTHEST = 1_000_000
"""The largest coordinate, in pixels; annotators draw a little beyond the border."""
_MOST_WORK = 10_000_000_000
"""Pixels that may be painted and edges that may be met by rows: some seconds of drawing."""


def read_polygons(path: Path, label_map: LabelMap) -> NDArray[Any]:
    """Return the (H, W) ids of a polygon file, later polygons over earlier ones.

    What no polygon covers is "unlabeled", as AutoNUE's `createLabels.py` has it.

    Raises:
        DataError: The file is no such JSON, names a label that the dataset does not define, or
            claims a picture or polygons of a size that no photo has.
    """
    try:
        scene = read_scene(path)
        size = _side(scene, "imgWidth"), _side(scene, "imgHeight")
        if size[0] * size[1] > MAX_MEGAPIXELS * 1_000_000:
            raise ValueError(f"it claims {size[0]}x{size[1]} pixels")
        shapes = [shape for shape in map(_shape, scene["objects"]) if shape is not None]
        drawn = [(_id(label, label_map), points) for label, points in shapes]
        if sum(_work(points, size) for _, points in drawn) > _MOST_WORK:
            raise ValueError("its polygons are too many or too large to be drawn")
        canvas = Image.new("L", size, label_map.ids["unlabeled"])
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} cannot be read as polygons: {reason}.") from error
    draw = ImageDraw.Draw(canvas)
    for value, points in drawn:
        draw.polygon(points.ravel().tolist(), fill=value)
    return np.asarray(canvas)


def read_scene(path: Path) -> Any:
    """Return what a polygon file holds, as JSON has it.

    Raises:
        DataError: It cannot be read, is no JSON, or breaks a limit of `read_json`.
    """
    return read_json(path, _LARGEST_FILE)


def _side(scene: Any, key: str) -> int:
    """Return a side of the picture."""
    value = scene[key]
    if not isinstance(value, int | float) or not 0 < value < 1 << 31 or value != int(value):
        raise ValueError(f"{key} is no number of pixels")
    return int(value)


def _shape(shape: Any) -> tuple[str, NDArray[Any]] | None:
    """Return the label and the (N, 2) points of an object; None of one that does not count."""
    if not isinstance(shape, dict):
        raise ValueError("an object in it is no set of keys")
    if shape.get("deleted"):
        return None
    label, polygon = shape["label"], shape["polygon"]
    if not isinstance(label, str):
        raise ValueError(f"the label {label!r:.40} is no text")
    if not isinstance(polygon, list):
        raise ValueError(f"a polygon of '{label:.40}' is no list")
    if len(polygon) < _CORNERS:
        return None
    try:
        points = np.asarray(polygon)
    except ValueError:  # lists of different lengths
        points = np.empty(0)
    if points.dtype.kind not in "iuf" or points.shape[1:] != (2,):
        raise ValueError(f"a polygon of '{label:.40}' is no list of points x, y")
    if not ((points >= -_FARTHEST) & (points <= _FARTHEST)).all():  # NaN is neither
        raise ValueError(f"a polygon of '{label:.40}' reaches beyond {_FARTHEST:,} pixels")
    return label, points


def _work(points: NDArray[Any], size: tuple[int, int]) -> float:
    """Return how many steps drawing a polygon takes at most."""
    low, high = (np.clip(limit, 0, size) for limit in (points.min(axis=0), points.max(axis=0)))
    width, height = (high - low + 1).tolist()
    return float(height * (width + len(points)))


def _id(label: str, label_map: LabelMap) -> int:
    name = label if label in label_map.ids else label.removesuffix(_GROUP)
    if name not in label_map.ids:
        raise ValueError(f"the label '{label:.40}' is not one of the dataset's")
    return label_map.ids[name]


ENCODINGS = {"polygons": read_polygons}
