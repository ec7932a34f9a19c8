"""Labels stored by labelme: one JSON for each image."""

from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.encodings.shapes import Canvas, malformed, points_of
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.documents import read_json_object
from pinmem_core.images import decode_image, image_size

MAX_BYTES = 256 << 20
"""Size limit of a file in bytes: it may hold its image."""
_MIN_CORNERS = 3


def read_labelme(path: Path, label_map: LabelMap, image: Path) -> NDArray[Any]:
    """Return the (H, W) ids of a file of labelme, later shapes over earlier ones.

    Polygons, rectangles, circles and masks are drawn; points and lines have no area. Other pixels
    are "unlabeled".

    Raises:
        DataError: The file is not such JSON, names an unknown label, or holds a malformed or huge
            shape.
    """
    scene = read_json_object(path, MAX_BYTES)
    with malformed(f"{path} cannot be read as labelme's JSON"):
        size = image_size(image)
        named = scene.get("imageWidth") or size[0], scene.get("imageHeight") or size[1]
        if named != size:
            raise ValueError(f"it is of an image of {named[0]}x{named[1]}, not {size[0]}x{size[1]}")
        canvas = Canvas(size, label_map)
        for label, shape in shapes_of(scene):
            _draw(shape, label, canvas)
        return canvas.drawn()


def shapes_of(scene: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the label and the content of each shape in a file.

    Raises:
        ValueError: It is not such a file.
    """
    shapes = scene.get("shapes")
    if not isinstance(shapes, list):
        raise ValueError("it has no list of 'shapes'")
    for shape in shapes:
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise ValueError("a shape in it has no 'label'")
    return [(shape["label"], shape) for shape in shapes]


def _draw(shape: dict[str, Any], label: str, canvas: Canvas) -> None:
    kind = shape.get("shape_type") or "polygon"
    value = canvas.id_of(label)
    points = points_of(shape["points"], label)
    match kind:
        case "polygon" if len(points) >= _MIN_CORNERS:
            canvas.outline(points, value)
        case "rectangle" if len(points) == 2:
            (x0, y0), (x1, y1) = points
            canvas.outline(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), value)
        case "rectangle" if len(points) == 4:
            canvas.outline(points, value)
        case "circle" if len(points) == 2:
            canvas.circle(points[0], float(np.hypot(*(points[1] - points[0]))), value)
        case "mask" if len(points) == 2:
            x, y = points[0].astype(int).tolist()
            canvas.mask(lambda: _mask(shape["mask"]), value, (x, y))
        case "point" | "points" | "line" | "linestrip":
            pass
        case _:
            raise ValueError(f"the {kind!r:.40} of '{label:.40}' has {len(points)} points")


def _mask(text: str) -> NDArray[np.bool_]:
    """Return a mask that is stored as a PNG in base64."""
    return decode_image(Path("a mask"), b64decode(text, validate=True)).pixels[..., 0] > 0


ENCODINGS = {"labelme": read_labelme}
