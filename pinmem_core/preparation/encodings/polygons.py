"""Labels stored as polygons: the JSON files of Cityscapes and IDD."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pinmem_core.errors import DataError
from pinmem_core.labels import LabelMap

_GROUP = "group"
"""Ends the label of several objects drawn as one; the base label counts."""


def read_polygons(path: Path, label_map: LabelMap) -> NDArray[Any]:
    """Return the (H, W) ids of a polygon file, later polygons over earlier ones.

    What no polygon covers is "unlabeled", as AutoNUE's `createLabels.py` has it.

    Raises:
        DataError: The file is no such JSON, or names a label that the dataset does not define.
    """
    try:
        scene = json.loads(path.read_text(encoding="utf-8"))
        size = int(scene["imgWidth"]), int(scene["imgHeight"])
        shapes = [
            (shape["label"], shape["polygon"]) for shape in scene["objects"] if _counts(shape)
        ]
        canvas = Image.new("L", size, label_map.ids["unlabeled"])
        draw = ImageDraw.Draw(canvas)
        for label, polygon in shapes:
            draw.polygon([tuple(point) for point in polygon], fill=_id(label, label_map))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} cannot be read as polygons: {reason}.") from error
    return np.asarray(canvas)


def _counts(shape: dict[str, Any]) -> bool:
    return not shape.get("deleted") and len(shape["polygon"]) >= 3


def _id(label: str, label_map: LabelMap) -> int:
    name = label if label in label_map.ids else label.removesuffix(_GROUP)
    if name not in label_map.ids:
        raise ValueError(f"the label '{label}' is not one of the dataset's")
    return label_map.ids[name]


ENCODINGS = {"polygons": read_polygons}
