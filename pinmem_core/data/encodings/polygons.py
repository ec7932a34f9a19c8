"""Labels stored as polygons in JSON."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pinmem_core.data.label_maps import LabelMap
from pinmem_core.documents import read_json
from pinmem_core.errors import DataError
from pinmem_core.images import MAX_MEGAPIXELS

_GROUP = "group"
"""Suffix of the label of several objects in one polygon, e.g. "cargroup"."""
_MIN_CORNERS = 3
_MAX_BYTES = 16 << 20  # Cityscapes' largest file has less than 1 MB
_MAX_COORDINATE = 1_000_000  # annotations reach a little beyond the border
_MAX_WORK = 10_000_000_000  # pixels painted and edges crossed by rows: some seconds


def read_polygons(path: Path, label_map: LabelMap) -> NDArray[Any]:
    """Return the (H, W) ids of a polygon file, later polygons over earlier ones.

    Pixels outside of all polygons are "unlabeled", as in AutoNUE's `createLabels.py`.

    Raises:
        DataError: The file is not such JSON, names an unknown label, or holds an image or polygons
            of an implausible size.
    """
    try:
        scene = read_scene(path)
        size = _side(scene, "imgWidth"), _side(scene, "imgHeight")
        if size[0] * size[1] > MAX_MEGAPIXELS * 1_000_000:
            raise ValueError(f"it claims {size[0]}x{size[1]} pixels")
        shapes = [shape for shape in map(_shape, scene["objects"]) if shape is not None]
        drawn = [(_id(label, label_map), points) for label, points in shapes]
        if sum(_work(points, size) for _, points in drawn) > _MAX_WORK:
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
    """Return the JSON of a polygon file.

    Raises:
        DataError: It cannot be read, is not JSON, or exceeds a limit of `read_json`.
    """
    return read_json(path, _MAX_BYTES)


def _side(scene: Any, key: str) -> int:
    value = scene[key]
    if not isinstance(value, int | float) or not 0 < value < 1 << 31 or value != int(value):
        raise ValueError(f"{key} is no number of pixels")
    return int(value)


def _shape(shape: Any) -> tuple[str, NDArray[Any]] | None:
    """Return the label and the (N, 2) points of an object; None for one that is not drawn."""
    if not isinstance(shape, dict):
        raise ValueError("an object in it is no set of keys")
    if shape.get("deleted"):
        return None
    label, polygon = shape["label"], shape["polygon"]
    if not isinstance(label, str):
        raise ValueError(f"the label {label!r:.40} is no text")
    if not isinstance(polygon, list):
        raise ValueError(f"a polygon of '{label:.40}' is no list")
    if len(polygon) < _MIN_CORNERS:
        return None
    try:
        points = np.asarray(polygon)
    except ValueError:  # lists of different lengths
        points = np.empty(0)
    if points.dtype.kind not in "iuf" or points.shape[1:] != (2,):
        raise ValueError(f"a polygon of '{label:.40}' is no list of points x, y")
    if not ((points >= -_MAX_COORDINATE) & (points <= _MAX_COORDINATE)).all():  # NaN is neither
        raise ValueError(f"a polygon of '{label:.40}' reaches beyond {_MAX_COORDINATE:,} pixels")
    return label, points


def _work(points: NDArray[Any], size: tuple[int, int]) -> float:
    """Return an upper bound of the steps of drawing a polygon."""
    low, high = (np.clip(limit, 0, size) for limit in (points.min(axis=0), points.max(axis=0)))
    width, height = (high - low + 1).tolist()
    return float(height * (width + len(points)))


def _id(label: str, label_map: LabelMap) -> int:
    name = label if label in label_map.ids else label.removesuffix(_GROUP)
    if name not in label_map.ids:
        raise ValueError(f"the label '{label:.40}' is not one of the dataset's")
    return label_map.ids[name]


ENCODINGS = {"polygons": read_polygons}
