"""Labels stored as polygons in JSON, in the format of Cityscapes."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pinmem_core.data.encodings.shapes import Canvas, malformed, points_of
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.documents import read_json

_MIN_CORNERS = 3
_MAX_BYTES = 16 << 20  # Cityscapes' largest file has less than 1 MB


def read_polygons(path: Path, label_map: LabelMap, image: Path | None = None) -> NDArray[Any]:
    """Return the (H, W) ids of a polygon file, later polygons over earlier ones.

    Pixels outside of all polygons are "unlabeled", as in AutoNUE's `createLabels.py`.

    Raises:
        DataError: The file is not such JSON, names an unknown label, or holds an image or polygons
            of an implausible size.
    """
    with malformed(f"{path} cannot be read as polygons"):
        scene = read_scene(path)
        canvas = Canvas((_side(scene, "imgWidth"), _side(scene, "imgHeight")), label_map)
        for shape in scene["objects"]:
            _draw(shape, canvas)
        return canvas.drawn()


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


def _draw(shape: Any, canvas: Canvas) -> None:
    if not isinstance(shape, dict):
        raise ValueError("an object in it is no set of keys")
    if shape.get("deleted"):
        return
    label, polygon = shape["label"], shape["polygon"]
    if not isinstance(label, str):
        raise ValueError(f"the label {label!r:.40} is no text")
    if isinstance(polygon, list) and len(polygon) < _MIN_CORNERS:
        return
    canvas.outline(points_of(polygon, label), canvas.id_of(label))


ENCODINGS = {"polygons": read_polygons}
