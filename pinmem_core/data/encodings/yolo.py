"""Labels stored as polygons in text, in the format of YOLO's segmentation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.encodings.shapes import Canvas, malformed, points_in_line
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.documents import read_text
from pinmem_core.images import image_size

_MAX_BYTES = 16 << 20
_BOX = 4  # numbers of a box: its centre and size


def read_yolo(path: Path, label_map: LabelMap, image: Path) -> NDArray[Any]:
    """Return the (H, W) ids of a text file with a polygon on each line, later ones over earlier.

    A line is "class x1 y1 x2 y2 ...", with coordinates as fractions of the image's width and
    height. The id of a pixel is the number of the class; other pixels are "unlabeled".

    Raises:
        DataError: A line is no such polygon, or the image cannot be read.
    """
    with malformed(f"{path} cannot be read as polygons of YOLO"):
        size = image_size(image)
        canvas = Canvas(size, label_map)
        for number, points in lines_of(path):
            if number not in label_map.entries:
                raise ValueError(f"the class {number} is not one of the dataset's")
            canvas.polygon(points * size, number)
        return canvas.drawn()


def lines_of(path: Path) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the class and the (N, 2) points, as fractions of the image, of each polygon.

    Raises:
        ValueError: A line is not such a polygon.
        DataError: The file cannot be read.
    """
    for number, line in enumerate(read_text(path, _MAX_BYTES).splitlines(), start=1):
        name, *words = line.split() or [""]
        if not name:
            continue
        if not (name.isascii() and name.isdigit() and len(name) < 6):
            raise ValueError(f"line {number} does not begin with the number of a class")
        if len(words) == _BOX:
            raise ValueError(f"line {number} is a box, not a polygon")
        try:
            points = points_in_line([float(word) for word in words], name)
            if len(points) < 3 or np.abs(points - 0.5).max() > 1:
                raise ValueError("a polygon needs three points between 0 and 1")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        yield int(name), points


ENCODINGS = {"yolo": read_yolo}
